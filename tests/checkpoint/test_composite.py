"""Tensors without a plain layout are read as torch reads them, without torch's unpickler."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import pytest
import torch
from raw_zip import Call, Ref, checkpoint

from pytest_ckptcompat import CheckpointError, open_checkpoint

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.filterwarnings("ignore")


def zoo() -> dict[str, torch.Tensor]:
    numbers = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    scales, zeros = torch.tensor([0.1, 0.2, 0.3, 0.4]), torch.tensor([0, 1, 2, 3])
    sparse = torch.eye(4).to_sparse()
    return {
        "qint8": torch.quantize_per_tensor(numbers, 0.1, 3, torch.qint8),
        "quint8 by channel": torch.quantize_per_channel(numbers, scales, zeros, 0, torch.quint8),
        "qint32, transposed": torch.quantize_per_tensor(numbers, 0.1, 0, torch.qint32).t(),
        "quint4x2": torch.quantize_per_channel(numbers, scales, zeros.float(), 0, torch.quint4x2),
        "sparse": sparse,
        "sparse, not coalesced": torch.sparse_coo_tensor([[0, 0], [1, 1]], [1.0, 2.0], (2, 3)),
        "hybrid": torch.sparse_coo_tensor([[0, 2]], torch.ones(2, 5), (3, 5)),
        "csr": torch.eye(4).to_sparse_csr(),
        "csc": torch.eye(4).to_sparse_csc(),
        "bsr": torch.eye(4).to_sparse_bsr((2, 2)),
        "nested": torch.nested.nested_tensor([torch.ones(2, 3), torch.zeros(1, 4)]),
        "conjugated": torch.randn(3, dtype=torch.complex64).conj(),
        "negated": torch.randn(3, dtype=torch.complex64).conj().imag,
        "meta": torch.empty(2, 3, device="meta"),
    }


def same(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    about = ("dtype", "layout", "is_quantized", "is_nested", "device")
    if any(getattr(ours, name) != getattr(theirs, name) for name in about):
        return False
    if theirs.is_meta:
        return ours.shape == theirs.shape and ours.stride() == theirs.stride()
    if theirs.is_nested:
        return all(torch.equal(*pair) for pair in zip(ours.unbind(), theirs.unbind(), strict=True))
    if theirs.is_quantized:
        quantizer: tuple[Any, ...] = ours.qscheme(), theirs.qscheme()
        dense = ours.dequantize(), theirs.dequantize()
        return quantizer[0] == quantizer[1] and ours.stride() == theirs.stride() and torch.equal(*dense)
    if theirs.layout is torch.sparse_coo:
        assert ours.is_coalesced() == theirs.is_coalesced()
    if theirs.layout is not torch.strided:
        return torch.equal(ours.to_dense(), theirs.to_dense())
    return (ours.is_conj(), ours.is_neg()) == (theirs.is_conj(), theirs.is_neg()) and torch.equal(
        ours, theirs
    )


@pytest.mark.parametrize("zipped", [True, False])
def test_they_are_what_torch_loads(tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / "net.pth"
    state = zoo()
    if not zipped:
        del state["nested"]  # torch fails to load it from the legacy layout
    torch.save(state, path, _use_new_zipfile_serialization=zipped)
    theirs = torch.load(path, weights_only=False)  # torch 2.15 trusts no nested tensors
    ckpt = open_checkpoint(path)
    whole = ckpt.state_dict()
    for key, wanted in theirs.items():
        assert ckpt[key].shape == (tuple(wanted.shape) if not wanted.is_nested else ckpt[key].shape)
        assert same(whole[key], wanted), key
        assert same(ckpt.tensor(key), wanted), key


def test_what_meta_lacks_is_read_for_a_load_without_memory(tmp_path: Path) -> None:
    path = tmp_path / "net.pth"
    torch.save({"a": torch.eye(3).to_sparse(), "b": torch.eye(3), "c": zoo()["qint8"]}, path)
    for state in (open_checkpoint(path).meta(), open_checkpoint(path).stored()):
        assert torch.equal(state["a"].to_dense(), torch.eye(3))
        assert state["c"].is_quantized
    assert open_checkpoint(path).meta()["b"].is_meta


class Tagged(torch.Tensor):
    pass


def test_a_subclass_gives_its_values(tmp_path: Path) -> None:
    """Those who load the file get an object of the class; copying it into a parameter copies these values."""
    path = tmp_path / "net.pth"
    torch.save({"weight": torch.ones(2, 3).as_subclass(Tagged)}, path)  # type: ignore[no-untyped-call]
    ckpt = open_checkpoint(path)
    assert "Tagged" in ckpt["weight"].note
    assert type(ckpt.tensor("weight")) is torch.Tensor
    assert torch.equal(ckpt.tensor("weight"), torch.ones(2, 3))


def ints(*numbers: int, at: int, shape: tuple[int, ...] | None = None) -> Call:
    shape = (len(numbers),) if shape is None else shape
    stride = torch.empty(shape).stride()
    ref = Ref(f"i{at}", len(numbers), torch.LongStorage)
    return Call(torch._utils._rebuild_tensor_v2, ref, 0, shape, stride, False, {})


@pytest.mark.parametrize(
    ("sizes", "strides", "offsets"),
    [((2, 4), (4, 1), (0,)), ((1, 2), (1 << 40, 1), (6,)), ((2, 3), (3, 1), (-1,)), ((-2, 3), (3, 1), (0,))],
)
def test_a_nested_tensor_beyond_its_memory(
    tmp_path: Path, sizes: tuple[int, ...], strides: tuple[int, ...], offsets: tuple[int, ...]
) -> None:
    """torch trusts these numbers, and reads what does not belong to it."""
    path = tmp_path / "net.pth"
    parts = (sizes, strides, offsets)
    shapes = ((1, 2), (1, 2), (1,))
    tensors = [
        ints(*part, at=n, shape=shape) for n, (part, shape) in enumerate(zip(parts, shapes, strict=True))
    ]
    buffer = Call(torch._utils._rebuild_tensor_v2, Ref(), 0, (6,), (1,), False, {})
    storages = [
        ("0", bytes(24)),
        *((f"i{n}", torch.tensor(part).numpy().tobytes()) for n, part in enumerate(parts)),
    ]
    tree = {"w": Call(torch._utils._rebuild_nested_tensor, buffer, *tensors)}
    path.write_bytes(checkpoint(tree, storages=storages).to_bytes())
    with pytest.raises(CheckpointError, match=r"net\.pth: a tensor \(nested\) can't be put together"):
        open_checkpoint(path).tensor("w")


def test_sparse_indices_beyond_the_shape(tmp_path: Path) -> None:
    path = tmp_path / "net.pth"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrong = torch.sparse_coo_tensor([[7]], [1.0], (2,), check_invariants=False)
    torch.save({"w": wrong}, path)
    with pytest.raises(CheckpointError, match=r"a tensor \(sparse\) can't be put together"):
        open_checkpoint(path).tensor("w")
