"""The verdict is that of torch's own strict load, for state that is more than plain tensors."""

from __future__ import annotations

import collections
import dataclasses
import datetime as dt
import enum
import pickle
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import nn

from pytest_ckptcompat import check, open_checkpoint

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from pytest_ckptcompat.report.report import Report

pytestmark = pytest.mark.filterwarnings("ignore")


def torch_says(make: Callable[[], nn.Module], path: Path) -> str:
    """What its strict load says of a file of ours, whose pickle may run."""
    try:
        try:
            state = torch.load(path, weights_only=True)
        except pickle.UnpicklingError:
            state = torch.load(path, weights_only=False)
        make().load_state_dict(state)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def judged(make: Callable[[], nn.Module], path: Path, **how: Any) -> Report:
    """Our report; on the header alone, and on the values, it must be as torch says."""
    says = torch_says(make, path)
    for device in ("none", "cpu"):
        report = check(make, path, **{"device": device, **how})
        assert report.ok == (not says), f"{device}: torch says {says!r}, the report {report}"
        assert "Stub" not in str(report)
        assert "TensorSpec" not in str(report)
        assert "Unread" not in str(report)
    return report


# -- extra state -------------------------------------------------------------------------------------------


def with_extra(state: Any, setter: Callable[[Any], object]) -> Callable[[], nn.Module]:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(2, 2)

        def get_extra_state(self) -> Any:
            return state

        def set_extra_state(self, given: Any) -> None:
            setter(given)

    return Net


class Mode(enum.IntEnum):
    FAST = 1


Point = collections.namedtuple("Point", "x y")  # noqa: PYI024  # as people pickle it


@dataclasses.dataclass
class Config:
    width: int = 1


def same(wanted: Any) -> Callable[[Any], None]:
    """A setter that wants to be given exactly this."""

    def setter(given: Any) -> None:
        if type(given) is not type(wanted):
            raise TypeError(f"{type(given)} is not {type(wanted)}")
        if isinstance(wanted, torch.Tensor):
            assert torch.equal(given, wanted)
            assert given.requires_grad == wanted.requires_grad
        elif isinstance(wanted, dict):
            for key, value in wanted.items():
                same(value)(given[key])
        elif isinstance(wanted, (list, tuple)):
            for mine, theirs in zip(given, wanted, strict=True):
                same(theirs)(mine)
        else:
            assert given == wanted

    return setter


PLAIN: dict[str, Any] = {
    "a number": 3,
    "nothing": None,
    "a dict": {"amax": torch.ones(3), "n": 2, "deep": {"list": [torch.zeros(2), "x"]}},
    "an ordered dict": collections.OrderedDict(a=torch.ones(1)),
    "a counter": collections.Counter("abca"),
    "a list": [torch.ones(3), torch.zeros(3)],
    "a tuple": (1, torch.ones(2)),
    "a tensor": torch.arange(5.0),
    "a scalar": torch.tensor(7),
    "parameters": {"p": nn.Parameter(torch.ones(2)), "frozen": nn.Parameter(torch.ones(2), requires_grad=False)},
    "one parameter": nn.Parameter(torch.ones(2)),
    "a tensor with a gradient": {"t": torch.ones(2, requires_grad=True)},
    "many bytes": torch.arange(10_000, dtype=torch.uint8),
    "a sparse tensor": {"s": torch.eye(3).to_sparse().coalesce().to_dense()},
    "sizes": torch.Size([2, 3]),
    "a dtype": torch.float16,
    "a device": torch.device("cpu"),
    "a layout": torch.strided,
    "a set": {1, "a", 2.5},
    "a set of tuples": {(1, 2), (3, 4)},
    "keys that are tuples": {(1, "a"): 2, 7: 3},
    "bytes": b"\x00\xff",
    "a byte array": bytearray(b"abc"),
    "a complex number": 1 + 2j,
    "an empty dict": {},
}  # fmt: skip


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("what", PLAIN)
def test_the_setter_gets_what_torch_gives(tmp_path: Path, what: str, zipped: bool) -> None:
    path = tmp_path / "net.pth"
    make = with_extra(PLAIN[what], same(PLAIN[what]))
    torch.save(make().state_dict(), path, _use_new_zipfile_serialization=zipped)
    assert not judged(make, path).findings
    same(PLAIN[what])(open_checkpoint(path).state_dict()["_extra_state"])


@pytest.mark.parametrize("what", ["a number", "a dict", "a tensor", "one parameter", "a set of tuples"])
def test_a_setter_that_refuses_it_is_heard(tmp_path: Path, what: str) -> None:
    def refuse(given: Any) -> None:
        raise ValueError(f"too old: {type(given)}")

    path = tmp_path / "net.pth"
    make = with_extra(PLAIN[what], refuse)
    torch.save(make().state_dict(), path)
    assert "too old" in str(judged(make, path))


OBJECTS: dict[str, tuple[Any, Callable[[Any], object]]] = {
    "an array": (np.arange(3.0), lambda s: s.sum() + s.shape[0]),
    "a number of numpy": (np.float64(2), lambda s: s + 1),
    "a date": (dt.datetime(2020, 1, 1), lambda s: s.isoformat()),
    "an enum": (Mode.FAST, lambda s: s.value + 1),
    "a named tuple": (Point(1, 2), lambda s: s.x + s.y),
    "a dataclass": (Config(), lambda s: s.width + 1),
    "a frozen set": (frozenset({1}), lambda s: s | {2}),
    "a default dict": (collections.defaultdict(list, a=[1]), lambda s: s["new"].append(2)),
    "one deep inside": ({"a": [1, {"b": Config()}]}, lambda s: s["a"][1]["b"].width),
}


@pytest.mark.parametrize("what", OBJECTS)
def test_what_torch_would_refuse_is_not_judged(tmp_path: Path, what: str) -> None:
    path = tmp_path / "net.pth"
    make = with_extra(*OBJECTS[what])
    torch.save(make().state_dict(), path)
    report = judged(make, path)
    (found,) = [each for each in report.findings if each.rule == "extra-state-unread"]
    assert found.key == "_extra_state"
    assert "torch.load(weights_only=True) refuses" in found.message


def test_a_bare_storage_is_not_read(tmp_path: Path) -> None:
    """torch loads it: the message does not say that it refuses."""
    path = tmp_path / "net.pth"
    make = with_extra(torch.ones(2).untyped_storage(), lambda s: s.nbytes())
    torch.save(make().state_dict(), path)
    (found,) = judged(make, path).findings
    assert found.message == "was not judged: it holds a bare storage, which is not read"


def test_tensors_are_judged_beside_extra_state_that_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "net.pth"
    make = with_extra(Config(), lambda s: None)
    torch.save({"fc.weight": torch.ones(3, 2), "fc.bias": torch.ones(2), "_extra_state": Config()}, path)
    assert judged(make, path).mismatched


def test_an_array_in_the_place_of_a_tensor(tmp_path: Path) -> None:
    path = tmp_path / "net.pth"
    torch.save({**nn.Linear(2, 2).state_dict(), "weight": np.ones((2, 2), "f4")}, path)
    told = " ".join(str(judged(lambda: nn.Linear(2, 2), path)).split())
    assert "weight was not read: it holds numpy.ndarray" in told
    assert "torch.from_numpy" in told


def test_a_loader_that_looks_at_such_an_object_is_not_told_lies(tmp_path: Path) -> None:
    class Net(nn.Linear):
        def _load_from_state_dict(self, state: Any, prefix: str, *rest: Any) -> None:
            self.width = state.pop(prefix + "config").width
            super()._load_from_state_dict(state, prefix, *rest)

    path = tmp_path / "net.pth"
    torch.save({**nn.Linear(2, 2).state_dict(), "config": Config()}, path)
    report = check(lambda: Net(2, 2), path, device="none")
    assert "an object that was not read" in str(report)


def test_a_lock_has_no_extra_state(tmp_path: Path) -> None:
    from pytest_ckptcompat.cli import main

    def setter(given: Any) -> None:
        assert isinstance(given, dict)

    path, lock = tmp_path / "net.pth", tmp_path / "net.ckpt.json"
    for state in ({"a": 1}, torch.ones(3)):
        make = with_extra(state, setter)
        torch.save(make().state_dict(), path)
        main(["lock", str(path), "-o", str(lock)])
        report = check(make, lock)
        assert report.ok, str(report)
        assert [found.rule for found in report.findings] == ["extra-state-unread"]


def test_extra_state_is_there_for_the_forward_pass(tmp_path: Path) -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.kept = nn.Linear(2, 2), {"scale": torch.ones(2)}

        def get_extra_state(self) -> Any:
            return self.kept

        def set_extra_state(self, given: Any) -> None:
            self.kept = given

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc(x) * self.kept["scale"]

    torch.save(Scaled().state_dict(), tmp_path / "net.pth")
    report = check(Scaled, tmp_path / "net.pth", inputs=(4, 2), device="cpu")
    assert report.ok, str(report)


# -- layouts -----------------------------------------------------------------------------------------------


def with_buffer(make: Callable[[], torch.Tensor], *, persistent: bool) -> Callable[[], nn.Module]:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(2, 2)
            self.register_buffer("b", make(), persistent=persistent)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc(x)

    return Net


BUFFERS: dict[str, Callable[[], torch.Tensor]] = {
    "sparse": lambda: torch.eye(3).to_sparse(),
    "sparse, built": lambda: torch.sparse_coo_tensor([[0, 1], [1, 0]], [1.0, 2.0], (2, 2)),
    "csr": lambda: torch.eye(3).to_sparse_csr(),
    "bsr": lambda: torch.eye(4).to_sparse_bsr((2, 2)),
    "nested": lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
    "quantized": lambda: torch.quantize_per_tensor(torch.ones(2, 3), 0.1, 0, torch.qint8),
    "complex": lambda: torch.ones(3, dtype=torch.complex64),
    "expanded": lambda: torch.ones(1).expand(3),
}


@pytest.mark.parametrize("persistent", [True, False])
@pytest.mark.parametrize("what", BUFFERS)
def test_buffers(tmp_path: Path, what: str, persistent: bool) -> None:
    path = tmp_path / "net.pth"
    make = with_buffer(BUFFERS[what], persistent=persistent)
    torch.save(make().state_dict(), path)
    judged(make, path)
    judged(make, path, inputs=(4, 2))


@pytest.mark.parametrize("what", BUFFERS)
def test_a_buffer_of_another_layout(tmp_path: Path, what: str) -> None:
    path = tmp_path / "net.pth"
    state = with_buffer(BUFFERS[what], persistent=True)().state_dict()
    for other in ("sparse", "csr", "quantized"):
        make = with_buffer(BUFFERS[other], persistent=True)
        torch.save(state, path)
        judged(make, path)
    judged(with_buffer(lambda: torch.ones(3, 3), persistent=True), path)
    torch.save({**state, "b": torch.ones(3, 3)}, path)
    judged(with_buffer(BUFFERS[what], persistent=True), path)


def static(*layers: nn.Module, shape: tuple[int, ...] = (2, 4)) -> nn.Module:
    net: Any = nn.Sequential(
        torch.ao.quantization.QuantStub(),
        *(layers or (nn.Linear(4, 3),)),
        torch.ao.quantization.DeQuantStub(),
    )
    net.qconfig = torch.ao.quantization.default_qconfig
    prepared = torch.ao.quantization.prepare(net.eval())
    prepared(torch.randn(shape))
    return torch.ao.quantization.convert(prepared)  # type: ignore[no-any-return]


def static_convolution() -> nn.Module:
    return static(nn.Conv2d(3, 4, 1), shape=(1, 3, 4, 4))


def dynamic(dtype: torch.dtype = torch.qint8) -> nn.Module:
    net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    return torch.ao.quantization.quantize_dynamic(net, {nn.Linear}, dtype=dtype)  # type: ignore[no-any-return]


def dynamic_half() -> nn.Module:
    """A rehearsal of its kernels on fake tensors would end the process."""
    return dynamic(torch.float16)


@pytest.mark.parametrize(
    ("make", "shape"),
    [(static, (5, 4)), (static_convolution, (2, 3, 4, 4)), (dynamic, (5, 4)), (dynamic_half, (5, 4))],
)
def test_quantised_models(tmp_path: Path, make: Callable[[], nn.Module], shape: tuple[int, ...]) -> None:
    if "none" in str(torch.backends.quantized.engine):
        pytest.skip("this torch has no quantized kernels")
    path = tmp_path / "net.pth"
    torch.save(make().state_dict(), path)
    assert not [found for found in judged(make, path).findings if found.severity == "error"]
    judged(make, path, inputs=shape)
    assert check(make, path, inputs=shape, device="auto").ok
    state = make().state_dict()
    state.popitem()
    torch.save(state, path)
    judged(make, path)


def test_a_quantised_recurrent_network_keeps_objects_that_are_not_read(tmp_path: Path) -> None:
    """torch pickles its weights as a ScriptObject, which an unpickler would have to call."""
    if "none" in str(torch.backends.quantized.engine):
        pytest.skip("this torch has no quantized kernels")

    def make() -> nn.Module:
        return torch.ao.quantization.quantize_dynamic(
            nn.Sequential(nn.Linear(3, 3), nn.LSTM(3, 2)), {nn.LSTM}, dtype=torch.qint8
        )  # type: ignore[no-any-return]

    path = tmp_path / "net.pth"
    torch.save(make().state_dict(), path)
    report = check(make, path, inputs=(5, 2, 3), device="cpu")
    assert report.ok, str(report)
    assert {found.rule for found in report.findings} == {"extra-state-unread", "unsafe-pickle"}
    assert [stage.status for stage in report.stages if stage.name == "forward"] == ["skipped"]


def lazy() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 2), nn.LazyLinear(3), nn.LazyBatchNorm1d())


def test_lazy_modules(tmp_path: Path) -> None:
    path = tmp_path / "net.pth"
    torch.save(lazy().state_dict(), path)
    assert judged(lazy, path).ok
    run = lazy()
    run(torch.ones(4, 2))
    torch.save(run.state_dict(), path)
    assert judged(lazy, path).ok
    assert judged(lazy, path, inputs=(4, 2)).ok
    torch.save({**run.state_dict(), "0.weight": torch.ones(3, 3)}, path)
    assert judged(lazy, path).mismatched


@pytest.mark.parametrize(
    ("saved", "words"),
    [
        (lambda: nn.LazyConv2d(3, 3).state_dict(), "parameters, such as 'weight', are uninitialized"),
        (lambda: nn.Sequential(nn.LazyLinear(3)), "parameters, such as '0.weight', are uninitialized"),
        (lambda: dynamic(), "are packed for quantized kernels"),
    ],
)
def test_files_without_a_tensor_say_why(tmp_path: Path, saved: Callable[[], Any], words: str) -> None:
    torch.save(saved(), tmp_path / "net.pth")
    with pytest.raises(ValueError, match=words):
        open_checkpoint(tmp_path / "net.pth")


def test_a_buffer_on_meta_has_no_values(tmp_path: Path) -> None:
    path = tmp_path / "net.pth"
    make = with_buffer(lambda: torch.ones(2, device="meta"), persistent=True)
    torch.save(make().state_dict(), path)
    assert judged(make, path).ok
    report = check(make, path, inputs=(4, 2), device="cpu")
    assert "unloaded-parameter" in {found.rule for found in report.findings}


class Quantised(torch.Tensor):
    """Knows detaching and copying, and nothing else, as tensor subclasses of quantisers do."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> Any:
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype, device=inner.device)  # type: ignore[attr-defined]

    def __init__(self, inner: torch.Tensor) -> None:
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.detach.default:
            return Quantised(args[0].inner.detach())  # type: ignore[abstract]
        if func is torch.ops.aten.copy_.default:
            source = args[1].inner if isinstance(args[1], Quantised) else args[1]
            (args[0].inner if isinstance(args[0], Quantised) else args[0]).copy_(source)
            return args[0]
        raise NotImplementedError(f"Quantised has no {func}")


@pytest.mark.parametrize("width", [4, 100])
def test_tensors_of_a_class_that_refuses_meta(tmp_path: Path, width: int) -> None:
    def make() -> nn.Module:
        net = nn.Sequential(nn.Linear(width, 50), nn.Linear(50, 2))
        net[0].weight = nn.Parameter(Quantised(net[0].weight.detach()), requires_grad=False)  # type: ignore[abstract]
        return net

    path = tmp_path / "net.pth"
    plain = nn.Sequential(nn.Linear(width, 50), nn.Linear(50, 2)).state_dict()
    torch.save(plain, path)
    assert not torch_says(make, path)
    assert check(make, path, device="none").ok
    torch.save({**plain, "1.bias": torch.ones(3)}, path)
    assert check(make, path, device="none").mismatched == [("1.bias", (3,), (2,))]


def test_a_module_with_such_tensors_that_is_given_ready_made(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(4, 3))
    net[0].weight = nn.Parameter(Quantised(net[0].weight.detach()), requires_grad=False)  # type: ignore[abstract]
    torch.save(nn.Sequential(nn.Linear(4, 3)).state_dict(), tmp_path / "net.pth")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        report = check(net, tmp_path / "net.pth", device="none")
    assert report.ok or [found.rule for found in report.findings] == ["model-error"]
