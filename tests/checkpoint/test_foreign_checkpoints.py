"""Checkpoints that nobody here wrote: what packages ship with them, where they happen to be installed."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from equality import assert_same, assert_same_state

from pytest_ckptcompat import open_checkpoint
from pytest_ckptcompat.checkpoint.wrappers import state_dict_at

SHIPPED = (
    "facenet_pytorch/data/onet.pt",
    "facenet_pytorch/data/pnet.pt",
    "facenet_pytorch/data/rnet.pt",
    "lpips/weights/v0.0/squeeze.pth",
    "lpips/weights/v0.1/alex.pth",
    "DISTS_pytorch/weights.pt",
    "pesto/weights/mir-1k.ckpt",
    "chgnet/pretrained/0.3.0/*.pth.tar",
    "torchmetrics/functional/image/dists_models/weights.pt",
    "torchmetrics/functional/image/lpips_models/vgg.pth",
)


@pytest.mark.parametrize("name", SHIPPED)
def test_it_is_what_torch_loads(name: str) -> None:
    """The state dict, and every tensor beside it."""
    package, _, inside = name.partition("/")
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        pytest.skip(f"{package} is not installed")
    (path,) = Path(spec.submodule_search_locations[0]).glob(inside)
    loaded = torch.load(path, map_location="cpu", weights_only=True)
    ckpt = open_checkpoint(path)
    assert ckpt.unsafe == ""
    state: Any = state_dict_at(loaded, ckpt.state_dict_key)
    assert list(ckpt) == list(state)
    assert_same_state(ckpt, state)
    for read, expected in _pairs(ckpt.wrapper, loaded):
        assert_same(ckpt.materialise(read), expected)


def _pairs(read: Any, loaded: object) -> list[tuple[Any, torch.Tensor]]:
    """The tensors of what torch loaded, each with what stands at its place."""
    if isinstance(loaded, torch.Tensor):
        return [(read, loaded)]
    if isinstance(loaded, dict):
        return [pair for key, part in loaded.items() for pair in _pairs(read[key], part)]
    if isinstance(loaded, (list, tuple)):
        return [pair for place, part in enumerate(loaded) for pair in _pairs(read[place], part)]
    return []
