"""Whether what we read is what torch reads, to the bit."""

from __future__ import annotations

import ctypes
import warnings
from typing import TYPE_CHECKING, Any

import torch

from pytest_ckptcompat.checkpoint.checkpoint import Checkpoint, open_checkpoint

if TYPE_CHECKING:
    from pathlib import Path


def raw(tensor: torch.Tensor) -> bytes:
    """The bytes of a tensor's elements, in order."""
    dense = tensor.detach().contiguous()
    return ctypes.string_at(dense.data_ptr(), dense.numel() * dense.element_size()) if dense.numel() else b""


def assert_same(ours: torch.Tensor, torchs: torch.Tensor, what: str = "") -> None:
    assert ours.dtype == torchs.dtype, what
    assert ours.shape == torchs.shape, what
    assert raw(ours) == raw(torchs), what


def assert_same_state(ckpt: Checkpoint, torchs: dict[str, Any]) -> None:
    """Whether a checkpoint is a state dict that torch loaded: keys, order, shapes, strides, values, ties."""
    tensors = {key: value for key, value in torchs.items() if isinstance(value, torch.Tensor)}
    assert list(ckpt) == list(tensors)
    whole, meta, stored = ckpt.state_dict(), ckpt.meta(), ckpt.stored()
    assert list(whole) == list(meta) == list(stored) == list(torchs)
    for key, wanted in tensors.items():
        assert ckpt[key].dtype == str(wanted.dtype).removeprefix("torch."), key
        assert ckpt[key].shape == tuple(wanted.shape), key
        assert ckpt[key].stride == wanted.stride() == whole[key].stride() == meta[key].stride(), key
        assert_same(whole[key], wanted, key)
        assert_same(ckpt.tensor(key), wanted, key)
        copied = torch.empty_like(wanted, memory_format=torch.contiguous_format)
        copied.copy_(stored[key])
        assert_same(copied, wanted, key)
        assert meta[key].is_meta, key
    assert shared(whole) == shared(torchs) == shared(meta)
    assert getattr(whole, "_metadata", None) == getattr(torchs, "_metadata", None)


def shared(state: dict[str, Any]) -> set[frozenset[str]]:
    """Which keys share memory."""
    groups: dict[int, set[str]] = {}
    for key, value in state.items():
        if isinstance(value, torch.Tensor) and value.numel():
            groups.setdefault(value.untyped_storage()._cdata, set()).add(key)
    return {frozenset(keys) for keys in groups.values() if len(keys) > 1}


def assert_like_torch(path: Path, **how: Any) -> Checkpoint:
    """Open a checkpoint whose outer object is the state dict, and compare it with what torch loads."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    ckpt = open_checkpoint(path, **how)
    assert_same_state(ckpt, loaded)
    return ckpt
