"""Half the key and value heads: each serves two heads of queries, and the cache of a long text halves.

pytest examples/decoder/test_grouped_queries.py
"""

from pathlib import Path

import pytest
import torch
from decoder import Decoder
from sorting import draw, loss, optimizer, train

from pytest_ckptcompat import Recipe, reduce

# Heads that are to be one are averaged (Ainslie et al., GQA, 2023). That changes what the model says, and the
# report says so: it has to be trained on a little.
GROUPED = Recipe(reduce("layers.*.self_attn.[kv]_proj.weight", dim=0, groups=2, op="mean"))


def grouped() -> Decoder:
    return Decoder(kv_heads=2)


@pytest.mark.ckpt_compat(
    model=grouped,
    source_model=Decoder,
    ckpt=Path(__file__).with_name("sorter.pth"),
    recipe=GROUPED,
    inputs="4x10:int64<11",
    protect=("embed_tokens.*", "positions.*", "*.mlp.*", "*norm*"),
)
def test_the_sorter_shares_keys_and_values(ckpt_model):
    lines = draw(200, seed=-1)
    torch.manual_seed(0)
    afresh = grouped()
    for model in (ckpt_model, afresh):
        train(model, optimizer(model.parameters()), steps=30)
    assert loss(ckpt_model, lines) < 0.5 * loss(afresh, lines)
