from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import pytest
import torch
from equality import assert_same, assert_same_state
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pytest_ckptcompat import CheckpointError, open_checkpoint
from pytest_ckptcompat.checkpoint import reader as reading
from pytest_ckptcompat.tensors.deferred import DeferredTensor, materialise
from pytest_ckptcompat.tensors.finite import count_not_finite

if TYPE_CHECKING:
    from pathlib import Path

    from pytest_ckptcompat import Checkpoint


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 5)).double()


@pytest.fixture
def ckpt(net: nn.Module, tmp_path: Path) -> Checkpoint:
    torch.save(net.state_dict(), tmp_path / "net.pth")
    return open_checkpoint(tmp_path / "net.pth")


def read_since(ckpt: Checkpoint, before: int) -> int:
    return ckpt.bytes_read - before


# -- any view of any storage -------------------------------------------------------------------------------


@st.composite
def views(draw: st.DrawFn) -> torch.Tensor:
    """A view of a small tensor: sliced, permuted, squeezed, expanded."""
    shape = draw(st.lists(st.integers(1, 6), min_size=1, max_size=4))
    view = torch.arange(float(torch.tensor(shape).prod())).reshape(shape)
    for _ in range(draw(st.integers(0, 4))):
        dim = draw(st.integers(0, max(view.dim() - 1, 0)))
        match draw(st.sampled_from(["slice", "permute", "expand", "select"])):
            case "slice" if view.dim():
                start = draw(st.integers(0, view.shape[dim]))
                view = view.transpose(0, dim)[start :: draw(st.integers(1, 3))].transpose(0, dim)
            case "permute" if view.dim():
                view = view.permute(draw(st.permutations(range(view.dim()))))
            case "expand":
                view = view.unsqueeze(0).expand(draw(st.integers(1, 3)), *view.shape)
            case "select" if view.dim() and view.shape[dim]:
                view = view.select(dim, draw(st.integers(0, view.shape[dim] - 1)))
    return view


@settings(deadline=None, max_examples=100)
@given(view=views(), piece=st.sampled_from([1, 8, 40, 1 << 20]), legacy=st.booleans())
def test_any_view_is_read(tmp_path_factory: Any, view: torch.Tensor, piece: int, legacy: bool) -> None:
    path = tmp_path_factory.getbasetemp() / "view.pth"
    torch.save({"v": view}, path, _use_new_zipfile_serialization=not legacy)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "PIECE", piece)
        ckpt = open_checkpoint(path)
        assert_same_state(ckpt, {"v": view})
        for destination in (
            torch.empty(view.shape, dtype=torch.float64),
            torch.empty((*view.shape, 2))[..., 0],
            torch.empty(view.shape, dtype=torch.complex64).conj(),
        ):
            destination.copy_(ckpt.stored()["v"])
            assert torch.equal(destination.resolve_conj(), view.to(destination.dtype))


def test_views_that_repeat_too_much_keep_their_place_but_are_not_read(tmp_path: Path) -> None:
    huge = torch.ones(1).expand(1 << 20, 1 << 20)
    torch.save({"huge": huge, "fine": torch.zeros(1).expand(1 << 10, 1 << 10)}, tmp_path / "x.pth")
    ckpt = open_checkpoint(tmp_path / "x.pth")
    assert ckpt["huge"].shape == (1 << 20, 1 << 20)
    assert ckpt.meta()["huge"].shape == huge.shape
    assert ckpt.tensor("fine").shape == (1 << 10, 1 << 10)
    with pytest.raises(CheckpointError, match="repeats 4 bytes into 4398046511104"):
        ckpt.tensor("huge")


def test_only_the_part_that_is_used_is_read(tmp_path: Path) -> None:
    base = torch.arange(1_000_000.0)
    torch.save({"a": base[1000:1010], "b": base[2000:2010]}, tmp_path / "x.pth")
    ckpt = open_checkpoint(tmp_path / "x.pth")
    before = ckpt.bytes_read
    ckpt.tensor("a")
    assert read_since(ckpt, before) == 40
    before = ckpt.bytes_read
    ckpt.state_dict()
    assert read_since(ckpt, before) < 5000


# -- stored tensors ----------------------------------------------------------------------------------------


def test_nothing_is_read_for_what_the_header_tells(ckpt: Checkpoint) -> None:
    before = ckpt.bytes_read
    stored = ckpt.stored()["0.weight"]
    assert (stored.shape, stored.dtype, stored.stride()) == ((4, 3, 3, 3), torch.float64, (27, 9, 3, 1))
    assert (stored.device.type, stored.is_meta, stored.is_cuda, stored.is_cpu) == ("cpu", False, False, True)
    assert (stored.numel(), stored.dim(), stored.ndim, len(stored), stored.element_size()) == (
        108,
        4,
        4,
        4,
        8,
    )
    assert (stored.layout, stored.requires_grad, stored.is_floating_point()) == (torch.strided, False, True)
    assert stored.is_contiguous()
    assert stored.size(1) == 3
    assert isinstance(stored.detach(), DeferredTensor)
    assert isinstance(stored.data, DeferredTensor)
    assert "DeferredTensor" in repr(stored)
    assert read_since(ckpt, before) == 0


def test_a_model_loads_each_byte_once(ckpt: Checkpoint, net: nn.Module) -> None:
    wanted = {key: value.clone() for key, value in net.state_dict().items()}
    for parameter in net.parameters():
        nn.init.zeros_(parameter)
    before = ckpt.bytes_read
    net.load_state_dict(ckpt.stored())
    assert 0 <= read_since(ckpt, before) - ckpt.nbytes < 100 * len(ckpt)
    for key, value in net.state_dict().items():
        assert_same(value, wanted[key], key)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int32])
def test_loading_converts_as_torch_does(ckpt: Checkpoint, net: nn.Module, dtype: torch.dtype) -> None:
    for key, value in net.state_dict().items():
        destination = torch.empty(value.shape, dtype=dtype)
        assert destination.copy_(ckpt.stored()[key]) is destination
        assert_same(destination, value.to(dtype), key)


def test_copying_counts_as_a_change(ckpt: Checkpoint) -> None:
    destination = torch.empty(5, dtype=torch.float64)
    version = destination._version
    destination.copy_(ckpt.stored()["3.bias"])
    assert destination._version > version


def test_copying_respects_autograd(ckpt: Checkpoint) -> None:
    leaf = torch.zeros(5, dtype=torch.float64, requires_grad=True)
    with pytest.raises(RuntimeError, match="leaf Variable"):
        leaf.copy_(ckpt.stored()["3.bias"])
    product = leaf * 1
    product.copy_(ckpt.stored()["3.bias"])
    product.sum().backward()
    assert torch.equal(leaf.grad, torch.zeros(5, dtype=torch.float64))  # type: ignore[arg-type]


def test_copying_broadcasts_and_refuses_as_torch_does(ckpt: Checkpoint, net: nn.Module) -> None:
    bias = ckpt.stored()["3.bias"]
    assert_same(torch.empty(3, 5, dtype=torch.float64).copy_(bias), net[3].bias.expand(3, 5))  # type: ignore[index]
    with pytest.raises(RuntimeError, match="size"):
        torch.empty(4, dtype=torch.float64).copy_(bias)


OPERATIONS = {
    "cat": lambda t: torch.cat([t, t[:1]]),
    "stack in a tuple": lambda t: torch.stack((t, t)),
    "clone": lambda t: t.clone(),
    "to": lambda t: t.to(torch.float16),
    "cpu": lambda t: t.cpu(),
    "index": lambda t: t[1:3],
    "arithmetic": lambda t: 2 * t + t,
    "isfinite": lambda t: torch.isfinite(t),
    "reshape": lambda t: t.reshape(-1),
    "expand": lambda t: t.expand(2, *t.shape),
    "as parameter": lambda t: nn.Parameter(t) * 1,
    "deepcopy": lambda t: copy.deepcopy({"t": [t]})["t"][0],
    "new_zeros": lambda t: t.new_zeros(3),
    "zeros_like": lambda t: torch.zeros_like(t),
    "chunk": lambda t: t.chunk(2)[0],
    "out": lambda t: torch.add(t, 1, out=torch.empty(t.shape, dtype=t.dtype)),
    "numpy": lambda t: torch.from_numpy(t.numpy()),
    "tolist": lambda t: torch.tensor(t.tolist(), dtype=t.dtype),
    "keyword": lambda t: torch.mul(input=t, other=t),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_any_operation_sees_the_values(ckpt: Checkpoint, net: nn.Module, name: str) -> None:
    plain = net.state_dict()["3.weight"]
    result = OPERATIONS[name](ckpt.stored()["3.weight"])
    assert not result.is_meta
    assert_same(materialise(result), OPERATIONS[name](plain))


CHANGES = {
    "in place": lambda t: t.mul_(2),
    "operator": lambda t: t.__imul__(3),
    "item": lambda t: t.__setitem__(0, 7),
    "view": lambda t: t[1:].zero_(),
    "view of a view": lambda t: t.t()[1:][0][:3].fill_(5),
    "flat": lambda t: t.view(-1)[:3].fill_(5),
    "numpy": lambda t: t.numpy().__setitem__(0, 4),
    "out": lambda t: torch.add(torch.ones_like(t), 1, out=t),
    "copy": lambda t: t.copy_(torch.ones_like(t)),
    "through data": lambda t: t.data.mul_(1),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_is_changed_in_place_stays_changed(ckpt: Checkpoint, net: nn.Module, name: str) -> None:
    plain = net.state_dict()["3.weight"].clone()
    stored = ckpt.stored()["3.weight"]
    CHANGES[name](plain)
    CHANGES[name](stored)
    assert_same(materialise(stored), plain)
    assert_same(torch.empty_like(plain).copy_(stored), plain)


def test_a_stored_tensor_that_was_only_looked_at_keeps_no_memory(ckpt: Checkpoint) -> None:
    stored = ckpt.stored()["3.weight"]
    stored.sum()
    torch.isfinite(stored)
    torch.equal(stored, stored)
    assert stored._kept is None


def test_materialise_leaves_ordinary_tensors_alone(ckpt: Checkpoint) -> None:
    plain = torch.ones(2)
    assert materialise(plain) is plain
    assert type(materialise(ckpt.stored()["3.weight"])) is torch.Tensor


def test_hooks_of_a_model_work_on_stored_tensors(ckpt: Checkpoint) -> None:
    class Renamed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(16, 10).double()
            self.register_load_state_dict_pre_hook(self.grow)

        @staticmethod
        def grow(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
            for name in ("weight", "bias"):
                old = state.pop(f"3.{name}")
                if old.device.type == "cpu":
                    state[f"head.{name}"] = torch.cat([old, old.to(torch.float64)])

    model = Renamed()
    model.load_state_dict(ckpt.stored(), strict=False)
    assert torch.equal(model.head.weight[:5], ckpt.tensor("3.weight"))
    assert torch.equal(model.head.weight[5:], ckpt.tensor("3.weight"))


def test_loading_onto_meta_and_by_assignment(ckpt: Checkpoint, net: nn.Module) -> None:
    wanted = net.state_dict()
    meta = copy.deepcopy(net).to("meta")
    before = ckpt.bytes_read
    with pytest.warns(UserWarning, match="meta parameter"):
        meta.load_state_dict(ckpt.stored())
    assert read_since(ckpt, before) == 0
    meta.load_state_dict(ckpt.stored(), assign=True)
    for key, value in meta.state_dict().items():
        assert_same(materialise(value), wanted[key], key)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_values_go_straight_to_a_card(ckpt: Checkpoint, net: nn.Module, dtype: torch.dtype) -> None:
    for key, value in net.state_dict().items():
        on_card = torch.empty(value.shape, dtype=dtype, device="cuda")
        on_card.copy_(ckpt.stored()[key])
        assert_same(on_card.cpu(), value.to(dtype), key)


# -- finite ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.complex64, torch.float8_e5m2]
)
def test_finite_counts(dtype: torch.dtype) -> None:
    values = torch.tensor([[1.0, float("nan"), 2.0], [float("inf"), -float("inf"), 0.0]]).to(dtype)
    assert count_not_finite(values) == 3
    assert count_not_finite(values.t()) == 3
    assert count_not_finite(values[:0]) == 0


def test_finite_of_what_is_always_finite() -> None:
    assert count_not_finite(torch.ones(3, dtype=torch.int64)) == 0
    assert count_not_finite(torch.ones(2, dtype=torch.bool)) == 0


@pytest.mark.filterwarnings("ignore:Sparse")
def test_finite_of_sparse_tensors() -> None:
    dense = torch.tensor([[0.0, float("nan")], [1.0, 0.0]])
    assert count_not_finite(dense.to_sparse()) == 1
    assert count_not_finite(torch.cat([dense, dense.neg()]).to_sparse_bsr((2, 2))) == 2
    twice = torch.sparse_coo_tensor([[0, 0, 1]], [1.0, 2.0, float("nan")], (3,), check_invariants=True)
    assert count_not_finite(twice) == 1


def test_finite_reads_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pytest_ckptcompat.tensors.finite._PIECE", 2)
    assert count_not_finite(torch.tensor([1.0, float("nan")] * 50)) == 50
