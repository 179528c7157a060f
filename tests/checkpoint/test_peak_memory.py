"""Peak memory of reading the values of one tensor: that tensor, in every format."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
import torch.distributed.checkpoint as dcp
from interpreter import run_python
from safetensors.torch import save_file

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a peak that can be reset")

LARGE = torch.arange(12_000_000.0).reshape(3000, 4000)
MEASURE = """
import torch
from pathlib import Path
from pytest_ckptcompat import open_checkpoint
from pytest_ckptcompat.checkpoint.reader import PIECE

def memory(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(name))

def peak(work):
    before = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
    made = work()
    return made, memory("VmHWM") - before

def loaded(ckpt, key, dtype):
    destination = torch.empty(ckpt[key].shape, dtype=dtype)
    return destination.copy_(ckpt.stored()[key])

ckpt = open_checkpoint({path!r})
loaded(ckpt, "few", torch.float64)
nbytes = ckpt[{key!r}].nbytes
tensor, read = peak(lambda: ckpt.tensor({key!r}))
del tensor
same, straight = peak(lambda: loaded(ckpt, {key!r}, getattr(torch, ckpt[{key!r}].dtype)))
del same
half, converted = peak(lambda: loaded(ckpt, {key!r}, torch.bfloat16))
assert torch.equal(half, ckpt.tensor({key!r}).bfloat16())
print(nbytes, half.nbytes, PIECE, read, straight, converted)
"""
SLACK = 4 << 20
"""What Python and the allocator take for themselves (Python 3.13 a little more than 3 MB): a quarter of a piece."""


def _measured(path: Path, key: str = "large", pieces: int = 0) -> None:
    """Hold the peaks against the sizes: of reading, of loading as it is, and of loading as bfloat16.

    Args:
        path: of a checkpoint.
        key: of its large tensor.
        pieces: how many pieces beside the tensor reading takes, where its bytes are scattered over the tensor.
    """
    out = run_python(MEASURE.format(path=str(path), key=key))
    nbytes, half, piece, read, straight, converted = map(int, out.split())
    assert nbytes > 40_000_000 > 2 * piece
    assert 0.9 * nbytes < read < nbytes + pieces * piece + SLACK
    assert 0.9 * nbytes < straight < nbytes + pieces * piece + SLACK
    assert 0.9 * half < converted < half + piece + SLACK


def _zip(folder: Path) -> Path:
    torch.save({"large": LARGE, "few": torch.ones(3)}, folder / "x")
    return folder / "x"


def _zip_transposed(folder: Path) -> Path:
    torch.save({"large": LARGE.t(), "few": torch.ones(3)}, folder / "x")
    return folder / "x"


def _legacy(folder: Path) -> Path:
    torch.save({"large": LARGE, "few": torch.ones(3)}, folder / "x", _use_new_zipfile_serialization=False)
    return folder / "x"


def _safetensors(folder: Path) -> Path:
    save_file({"large": LARGE, "few": torch.ones(3)}, folder / "x")
    return folder / "x"


def _dcp(folder: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save({"large": LARGE, "few": torch.ones(3)}, checkpoint_id=folder / "x")
    return folder / "x"


@pytest.mark.parametrize("save", [_zip, _legacy, _safetensors, _dcp])
def test_one_tensor(tmp_path: Path, save: Callable[[Path], Path]) -> None:
    _measured(save(tmp_path))


def test_one_that_was_saved_transposed(tmp_path: Path) -> None:
    _measured(_zip_transposed(tmp_path), pieces=1)


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A distributed checkpoint whose tensors are in two blocks, 49 and 67 MB."""
    folder = tmp_path_factory.mktemp("ranks") / "x"
    script = Path(__file__).parents[1] / "support" / "dcp_ranks.py"
    subprocess.run([sys.executable, script, folder, "350000"], check=True, timeout=300)
    return folder


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no torch.distributed")
@pytest.mark.parametrize(("key", "pieces"), [("rows", 0), ("columns", 1)])
def test_one_in_blocks(ranks: Path, key: str, pieces: int) -> None:
    _measured(ranks, key, pieces)
