"""Values that were read are known by their bits, and read once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

from pytest_ckptcompat import open_checkpoint
from pytest_ckptcompat.tensors.witness import Room, Witness, digest

if TYPE_CHECKING:
    from pathlib import Path


def saved(folder: Path, **tensors: torch.Tensor) -> Any:
    torch.save(tensors, folder / "net.pth")
    return open_checkpoint(folder / "net.pth")


def test_a_tensor_that_was_filled_is_known_until_one_bit_changes(tmp_path: Path) -> None:
    ckpt = saved(tmp_path, w=torch.randn(300, 7))
    stored = ckpt.stored(once=True)["w"]
    filled = torch.empty(300, 7).copy_(stored)
    read = ckpt.bytes_read
    assert stored.is_in(filled)
    assert stored.is_in(filled.clone())
    for place in (0, 1000, 2099):
        changed = filled.clone()
        changed.view(torch.int32).view(-1)[place] ^= 1
        assert not stored.is_in(changed)
    assert not stored.is_in(filled.double())
    assert not stored.is_in(filled[:299])
    assert not stored.is_in(filled.t().contiguous().t())  # other strides: not known, not denied
    assert ckpt.bytes_read == read


def test_another_tensor_is_filled_from_the_first_and_from_disk_once_that_has_changed(tmp_path: Path) -> None:
    values = torch.randn(50, 5)
    ckpt = saved(tmp_path, w=values)
    stored = ckpt.stored(once=True)["w"]
    first = nn.Parameter(torch.zeros(50, 5))
    with torch.no_grad():
        first.copy_(stored)
    read = ckpt.bytes_read
    assert torch.equal(torch.empty(50, 5).copy_(stored), values)
    assert torch.equal(torch.empty(50, 5, dtype=torch.float64).copy_(stored), values.double())
    assert torch.equal(stored.read(), values)
    assert ckpt.bytes_read == read
    del stored
    again = ckpt.stored(once=True)["w"]
    with torch.no_grad():
        first.copy_(again)
    read = ckpt.bytes_read
    first.data.mul_(2)  # which torch counts as no change
    assert torch.equal(torch.empty(50, 5).copy_(again), values)
    assert ckpt.bytes_read > read


def test_values_that_were_looked_at_are_held_while_nobody_writes_into_them(tmp_path: Path) -> None:
    values = torch.randn(50, 5)
    ckpt = saved(tmp_path, w=values)
    stored = ckpt.stored(once=True)["w"]
    assert torch.equal(stored + 0, values)
    read = ckpt.bytes_read
    assert torch.equal(stored * 1, values)
    assert ckpt.bytes_read == read
    stored.read().zero_()
    assert torch.equal(ckpt.stored(once=True)["w"].read(), values)
    assert torch.equal(torch.empty(50, 5).copy_(stored), values)


def test_tied_names_are_read_once(tmp_path: Path) -> None:
    values = torch.randn(40, 40)
    ckpt = saved(tmp_path, a=values, b=values)
    stored, headers = ckpt.stored(once=True), ckpt.bytes_read
    model = nn.ParameterDict({"a": torch.zeros(40, 40)})
    model["b"] = model["a"]
    model.load_state_dict(stored)
    assert torch.equal(model["a"], values)
    assert ckpt.bytes_read - headers < 1.1 * ckpt.nbytes


def test_no_more_is_held_than_there_is_room_for() -> None:
    room = Room(100)
    small, large = Witness(room), Witness(room)
    small.keep(torch.zeros(10))
    large.keep(torch.zeros(20))
    assert small.values() is not None
    assert large.values() is None
    assert room.left == 60


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8, torch.bool, torch.complex64])
def test_a_digest_is_of_the_bytes(dtype: torch.dtype) -> None:
    tensor = torch.randn(3, 4).to(dtype)
    assert digest(tensor) == digest(tensor.clone())
    assert digest(tensor[:0]) == 0
    assert digest(tensor.to("meta")) is None
    assert digest(torch.randn(3, 4).t()) is None


def test_without_being_asked_to_nothing_is_remembered(tmp_path: Path) -> None:
    ckpt = saved(tmp_path, w=torch.randn(50, 5))
    stored = ckpt.stored()["w"]
    filled = torch.empty(50, 5).copy_(stored)
    assert not stored.is_in(filled)
    read = ckpt.bytes_read
    torch.empty(50, 5).copy_(stored)
    assert ckpt.bytes_read > read
