"""A folder of save_pretrained: config.json, safetensors in shards and their index.

pytest examples/transformers
"""

from pathlib import Path

import pytest
from transformers import AutoConfig, AutoModelForCausalLM

CHECKPOINT = Path(__file__).parent / "tiny-llama"


def from_config():
    """The model of config.json, without weights and without the hub."""
    return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(CHECKPOINT))


@pytest.mark.ckpt_compat(model=from_config, ckpt=CHECKPOINT, inputs={"input_ids": "2x8:int64<64"})
def test_this_transformers_reads_it(ckpt_model):
    assert ckpt_model.config.num_key_value_heads == 2
