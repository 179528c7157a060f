"""Formats that others add: the example's, and plugins that make mistakes."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from equality import assert_same_state

from pytest_ckptcompat import CheckpointError, open_checkpoint
from pytest_ckptcompat.core import hooks
from pytest_ckptcompat.core.header import Header
from pytest_ckptcompat.core.tensor_spec import Extent, TensorSpec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pluggy import HookRelay

np = pytest.importorskip("numpy")

CONFTEST = Path(__file__).parents[2] / "examples" / "npz" / "conftest.py"


@pytest.fixture
def known() -> Iterator[Callable[[object], None]]:
    """Makes the hooks of a plugin, or of a module, known."""
    relays: list[HookRelay] = []

    def use(plugin: object) -> None:
        relays.append(hooks.of_module(plugin))
        hooks.use(relays[-1])

    yield use
    for relay in relays:
        hooks.forget(relay)


@pytest.fixture
def npz(known: Callable[[object], None]) -> None:
    spec = importlib.util.spec_from_file_location("npz_conftest", CONFTEST)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    known(module)


# -- the example's -----------------------------------------------------------------------------------------

ARRAYS = {
    **{
        f"of/{name}": np.arange(-12, 12).reshape(2, 3, 4).astype(name)
        for name in ("float16", "float32", "float64", "complex64", "complex128", "bool", "int8", "int16", "int32",
                     "int64", "uint8", "uint16", "uint32", "uint64")
    },
    "columns first": np.asfortranarray(np.arange(24.0).reshape(2, 3, 4)),
    "scalar": np.array(3.5),
    "empty": np.zeros((0, 3), dtype=np.float32),
}  # fmt: skip


def _torch(arrays: dict[str, Any]) -> dict[str, torch.Tensor]:
    return {key: torch.from_numpy(array) for key, array in arrays.items()}


def test_every_array_is_what_numpy_loads(tmp_path: Path, npz: None) -> None:
    np.savez(tmp_path / "x.npz", **ARRAYS)
    ckpt = open_checkpoint(tmp_path / "x.npz")
    assert ckpt.format == "npz"
    with np.load(tmp_path / "x.npz") as loaded:
        assert_same_state(ckpt, _torch(dict(loaded)))


def test_values_that_are_compressed_are_refused(tmp_path: Path, npz: None) -> None:
    np.savez_compressed(tmp_path / "x.npz", a=np.zeros((2, 3)))
    ckpt = open_checkpoint(tmp_path / "x.npz")
    assert ckpt["a"].shape == ckpt.meta()["a"].shape == (2, 3)
    with pytest.raises(
        CheckpointError, match=r"x\.npz: a tensor's values have no plain layout \(compressed\)"
    ):
        ckpt.tensor("a")


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (np.zeros(3, dtype=">f4"), "a has dtype >f4, which torch does not have"),
        (np.array(["x"]), "a has dtype <U1, which torch does not have"),
        (np.array([{}]), "a has dtype object, which torch does not have"),
    ],
)
def test_what_torch_has_not_is_refused(tmp_path: Path, npz: None, array: Any, said: str) -> None:
    np.savez(tmp_path / "x.npz", a=array)
    with pytest.raises(CheckpointError, match=rf"x\.npz: {said}$"):
        open_checkpoint(tmp_path / "x.npz")


def test_damage_is_told(tmp_path: Path, npz: None) -> None:
    np.savez(tmp_path / "x.npz", a=np.zeros(3))
    data = (tmp_path / "x.npz").read_bytes()
    (tmp_path / "x.npz").write_bytes(data.replace(b"NUMPY", b"NUMPX"))
    with pytest.raises(CheckpointError, match=r"x\.npz: it is damaged: Bad CRC-32 for file 'a"):
        open_checkpoint(tmp_path / "x.npz")


def test_without_the_plugin_nobody_knows_it(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", a=np.zeros(3))
    with pytest.raises(CheckpointError, match=r"is a NumPy archive \(\.npz\)"):
        open_checkpoint(tmp_path / "x.npz")


def test_an_installed_package_adds_it(pytester: pytest.Pytester) -> None:
    """Through its entry point, for the command too, which does not import pytest."""
    pytester.makepyfile(
        npz_format=CONFTEST.read_text()
        .replace("def pytest_ckpt", "@hookimpl\ndef pytest_ckpt")
        .replace("    escape,", "    escape,\n    hookimpl,")
    )
    info = pytester.path / "npz_format-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: npz_format\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[pytest_ckptcompat]\nnpz = npz_format\n")
    np.savez(pytester.path / "x.npz", kernel=np.zeros((2, 3)))
    result = pytester.run(sys.executable, "-m", "pytest_ckptcompat", "show", "x.npz")
    assert (result.ret, result.stderr.str()) == (0, "")
    result.stdout.fnmatch_lines(["x.npz: npz, 1 tensors*", "kernel*(2, 3) f64*48*"])


# -- mistakes ----------------------------------------------------------------------------------------------


class Plugin:
    """Knows files that begin with ``own``, and does with them what a test says."""

    def __init__(self, answer: Callable[[], object]) -> None:
        self.answer = answer

    def pytest_ckptcompat_open(self, file: Any) -> object:
        return self.answer() if file.read_at(0, 3) == b"own" else None


def _given(**spec: Any) -> Callable[[], Header]:
    return lambda: Header("own", {"net": {"a": TensorSpec(**spec)}}, {"s": (Extent("own", 3, 8),)})


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (lambda: 1 // 0, "the plugin that reads this format failed: ZeroDivisionError: integer division or modulo by zero"),
        (lambda: {"a": 1}, "gave a wrong header: dict is not a Header"),
        (_given(dtype="float32", shape=(2,), storage="s"), "gave a wrong header: a tensor has shape (2,), and stride ()"),
        (_given(dtype="f4", shape=()), "gave a wrong header: a tensor has dtype 'f4', which torch does not have"),
        (_given(dtype="int8", shape=(), storage="t"), "a tensor lies in storage 't', and it is not told where that is"),
    ],
)  # fmt: skip
def test_a_mistake_of_a_plugin_is_told(
    tmp_path: Path, known: Callable[[object], None], answer: Callable[[], object], said: str
) -> None:
    known(Plugin(answer))
    (tmp_path / "x").write_bytes(b"own" + bytes(8))
    with pytest.raises(
        CheckpointError,
        match=rf"x: the plugin that reads this format .*{re.escape(said)}|x: {re.escape(said)}",
    ):
        open_checkpoint(tmp_path / "x")


def test_what_a_plugin_refuses_is_refused(tmp_path: Path, known: Callable[[object], None]) -> None:
    def refuse() -> None:
        raise CheckpointError("it is upside down: turn it")

    (tmp_path / "x").write_bytes(b"own")
    known(Plugin(refuse))
    with pytest.raises(CheckpointError, match=r"x: it is upside down: turn it$"):
        open_checkpoint(tmp_path / "x")


def test_values_beyond_what_a_plugin_says_there_is_are_refused(
    tmp_path: Path, known: Callable[[object], None]
) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"own" + bytes(8))
    header = Header(
        "own", {"a": TensorSpec("float32", (3,), (1,), 0, "s")}, {"s": (Extent(str(path), 3, 8),)}
    )
    known(Plugin(lambda: header))
    ckpt = open_checkpoint(path)
    with pytest.raises(CheckpointError, match="a tensor reaches beyond its storage"):
        ckpt.tensor("a")


def test_a_file_that_we_know_is_not_shown_to_plugins(tmp_path: Path, known: Callable[[object], None]) -> None:
    class Nosy:
        def pytest_ckptcompat_open(self) -> None:
            raise AssertionError

    torch.save({"a": torch.ones(2)}, tmp_path / "x.pth")
    known(Nosy())
    assert list(open_checkpoint(tmp_path / "x.pth")) == ["a"]
