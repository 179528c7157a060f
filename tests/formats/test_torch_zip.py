from __future__ import annotations

import pickle
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import pytest
import torch
from equality import assert_like_torch, assert_same, assert_same_state
from interpreter import run_python
from tensor_zoo import dtypes, layouts, of_dtype
from torch import nn

from pytest_ckptcompat import open_checkpoint

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "net.pth"


def test_a_state_dict_is_torchs(path: Path) -> None:
    torch.save(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).state_dict(), path)
    ckpt = assert_like_torch(path)
    assert (ckpt.format, ckpt.name, ckpt.state_dict_key, ckpt.unsafe) == ("torch-zip", "net.pth", "", "")
    assert ckpt.metadata is not None
    assert ckpt.metadata["1"] == {"version": 2}


def test_every_dtype(path: Path) -> None:
    torch.save({str(dtype): of_dtype(dtype, 3, 5) for dtype in dtypes()}, path)
    assert_like_torch(path)


def test_every_layout(path: Path) -> None:
    torch.save(layouts(), path)
    ckpt = assert_like_torch(path)
    assert ckpt.ties == [("base", "tied")]


@pytest.mark.parametrize("protocol", [1, 2, 3, 4, 5])
def test_every_pickle_protocol(path: Path, protocol: int) -> None:
    state = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).state_dict()
    torch.save(state, path, pickle_protocol=protocol)
    assert_same_state(open_checkpoint(path), state)


def test_parameters_and_tensors_with_attributes(path: Path) -> None:
    marked = torch.ones(2)
    marked.mark = "a"  # type: ignore[attr-defined]
    parameter = nn.Parameter(torch.randn(3))
    parameter.mark = 1  # type: ignore[attr-defined]
    plain = nn.Parameter(torch.randn(2), requires_grad=False)
    torch.save({"marked": marked, "parameter": parameter, "plain": plain}, path)
    assert_like_torch(path)


def test_a_storage_that_is_only_partly_used(path: Path) -> None:
    base = torch.arange(1000.0)
    torch.save({"a": base[500:510], "b": base[505:520].view(3, 5), "whole": torch.ones(3)}, path)
    assert_like_torch(path)


def test_two_dtypes_over_one_untyped_storage(path: Path) -> None:
    data = torch.arange(24, dtype=torch.uint8)
    state = {
        "a": data.view(torch.uint16)[3:],
        "b": data.view(torch.float8_e5m2)[1:2],
        "c": data.view(torch.uint32)[1],
    }
    torch.save(state, path)
    assert_like_torch(path)


# -- modules pickled whole ---------------------------------------------------------------------------------


class Nest(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.PReLU())
        self.again = self.first
        self.heads = nn.ModuleDict({"a": nn.Linear(4, 2)})
        self.scale = nn.Parameter(torch.ones(1))
        self.register_buffer("seen", torch.zeros(2))
        self.register_buffer("scratch", torch.zeros(2), persistent=False)
        self.register_buffer("nothing", None)
        self.register_parameter("absent", None)
        self.extra: Any = None


def test_a_whole_module_gives_its_state_dict(path: Path) -> None:
    module = Nest()
    torch.save(module, path)
    ckpt = open_checkpoint(path)
    assert ckpt.metadata is None
    assert ckpt.unsafe.startswith("torch.load(weights_only=True) refuses it: it names test_torch_zip.Nest")
    wanted = module.state_dict()
    del wanted._metadata  # type: ignore[attr-defined]
    assert_same_state(ckpt, wanted)
    assert ("first.0.weight", "again.0.weight") in ckpt.ties


def test_a_whole_module_inside_a_dict(path: Path) -> None:
    module = nn.Linear(2, 3)
    torch.save(
        {"epoch": 3, "model": module, "optimizer": torch.optim.Adam(module.parameters()).state_dict()}, path
    )
    ckpt = open_checkpoint(path)
    assert ckpt.state_dict_key == "model"
    assert_same(ckpt.tensor("weight"), module.weight)


def test_the_classes_of_a_whole_module_are_not_needed(path: Path) -> None:
    class Gone(nn.Linear):
        pass

    Gone.__qualname__ = Gone.__name__ = "Gone"
    Gone.__module__ = __name__
    globals()["Gone"] = Gone
    torch.save(Gone(2, 2), path)
    del globals()["Gone"]
    assert list(open_checkpoint(path)) == ["weight", "bias"]


# -- tensors without a plain layout ------------------------------------------------------------------------

ODD = {
    "sparse": lambda: torch.eye(3).to_sparse(),
    "csr": lambda: torch.eye(3).to_sparse_csr(),
    "conjugated": lambda: torch.tensor([1 + 2j, 3 - 1j]).conj(),
    "negated": lambda: torch.tensor([1 + 2j, 3 - 1j]).conj().imag,
    "quantized": lambda: torch.quantize_per_tensor(torch.randn(2, 3), 0.1, 3, torch.qint8),
    "by channel": lambda: torch.quantize_per_channel(
        torch.randn(2, 3), torch.tensor([0.1, 0.2]), torch.tensor([0, 1]), 0, torch.quint8
    ),
    "meta": lambda: torch.empty(2, 3, device="meta"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ODD)
def test_odd_layouts_keep_their_place_and_are_read_by_torch(path: Path, kind: str) -> None:
    odd = ODD[kind]()
    torch.save(OrderedDict(before=torch.ones(2), odd=odd, after=torch.zeros(3)), path)
    ckpt = open_checkpoint(path)
    assert list(ckpt) == ["before", "odd", "after"]
    assert ckpt["odd"].shape == tuple(odd.shape)
    assert ckpt["odd"].dtype == str(odd.dtype).removeprefix("torch.")
    assert ckpt["odd"].note
    assert ckpt.meta()["odd"].shape == odd.shape
    read = ckpt.state_dict()["odd"]
    assert type(read) is torch.Tensor
    assert (read.dtype, read.layout, read.device) == (odd.dtype, odd.layout, odd.device)
    if kind != "meta":
        assert torch.equal(_plain(read), _plain(odd))
        assert torch.equal(_plain(ckpt.tensor("odd")), _plain(odd))


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    return (tensor.dequantize() if tensor.is_quantized else tensor.to_dense()).resolve_conj().resolve_neg()


@pytest.mark.filterwarnings("ignore")
def test_a_nested_tensor_is_marked(path: Path) -> None:
    torch.save(
        {"nested": torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]), "plain": torch.ones(1)}, path
    )
    ckpt = open_checkpoint(path)
    assert ckpt["nested"].note == "nested"
    assert ckpt.tensor("nested").is_nested


class Marked(torch.Tensor):
    pass


def test_a_subclass_is_marked_and_its_values_are_read(path: Path) -> None:
    torch.save({"odd": torch.ones(2).as_subclass(Marked), "plain": torch.ones(1)}, path)
    ckpt = open_checkpoint(path)
    assert ckpt["odd"].note == "subclass test_torch_zip.Marked"
    assert_same(ckpt.tensor("plain"), torch.ones(1))
    assert_same(ckpt.tensor("odd"), torch.ones(2))


# -- what torch.load(weights_only=True) would say ----------------------------------------------------------


class Opaque:
    def __init__(self) -> None:
        self.inner = [1, 2]


@pytest.mark.parametrize(
    "extra",
    [
        *(
            None,
            {"a": (1, 2.5, "x", b"y", True, None)},
            {1, 2},
            2j,
            bytearray(b"q"),
            1 << 70,
            OrderedDict(a=1),
        ),
        *(torch.Size([1]), torch.float16, torch.device("cpu")),
        *(Opaque(), Opaque, frozenset([1]), slice(1), range(3), print),
    ],
    ids=lambda value: type(value).__name__,
)
def test_unsafe_is_what_torch_refuses(path: Path, extra: Any) -> None:
    torch.save({"state_dict": {"w": torch.ones(2)}, "extra": extra}, path)
    try:
        torch.load(path, weights_only=True)
    except pickle.UnpicklingError:
        refused = True
    else:
        refused = False
    ckpt = open_checkpoint(path)
    assert bool(ckpt.unsafe) == refused
    assert_same(ckpt.tensor("w"), torch.ones(2))


def test_unsafe_names_what_torch_names(path: Path) -> None:
    torch.save({"state_dict": {"w": torch.ones(2)}, "a": Opaque(), "b": nn.ReLU()}, path)
    (*_, names) = open_checkpoint(path).unsafe.partition("it names ")
    assert set(names.split(", ")) == set(torch.serialization.get_unsafe_globals_in_checkpoint(path))


@pytest.mark.filterwarnings("ignore")
def test_reading_leaves_torch_out(path: Path) -> None:
    torch.save(nn.Linear(2, 2).state_dict(), path)
    out = run_python(
        "from pytest_ckptcompat import open_checkpoint\n"
        f"c = open_checkpoint({str(path)!r}); print(list(c), 'torch' in sys.modules, 'numpy' in sys.modules)"
    )
    assert out == "['weight', 'bias'] False False\n"
