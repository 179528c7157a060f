"""Peak memory of reading the values of one tensor: that tensor, in every format."""

from __future__ import annotations

import pickle
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch
import torch.distributed.checkpoint as dcp
from interpreter import run_python
from safetensors.torch import save_file

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a peak that can be reset")

LARGE = torch.arange(12_000_000.0).reshape(3000, 4000)
MEASURE = """
import ctypes
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

ctypes.CDLL(None).mallopt(-3, 1 << 20)  # what is freed is given back, whatever was freed before
for path, key in {paths!r}:
    ckpt = open_checkpoint(path)
    loaded(ckpt, "few", torch.float64)
    nbytes = ckpt[key].nbytes
    tensor, read = peak(lambda: ckpt.tensor(key))
    del tensor
    same, straight = peak(lambda: loaded(ckpt, key, getattr(torch, ckpt[key].dtype)))
    del same
    half, converted = peak(lambda: loaded(ckpt, key, torch.bfloat16))
    assert torch.equal(half, ckpt.tensor(key).bfloat16())
    print(nbytes, half.nbytes, PIECE, read, straight, converted)
    del half
"""
SLACK = 4 << 20
"""What Python and the allocator take for themselves (Python 3.13 a little more than 3 MB): a quarter of a piece."""


def _zip(path: Path) -> None:
    torch.save({"large": LARGE, "few": torch.ones(3)}, path)


def _transposed(path: Path) -> None:
    torch.save({"large": LARGE.t(), "few": torch.ones(3)}, path)


def _legacy(path: Path) -> None:
    torch.save({"large": LARGE, "few": torch.ones(3)}, path, _use_new_zipfile_serialization=False)


def _safetensors(path: Path) -> None:
    save_file({"large": LARGE, "few": torch.ones(3)}, path)


def _distributed(path: Path) -> None:
    dcp.save({"large": LARGE, "few": torch.ones(3)}, checkpoint_id=path)


def _in_blocks(path: Path) -> None:
    """Two tensors in two blocks each, as two ranks would have written them."""
    blocks = {f"rows{n}": block for n, block in enumerate(LARGE.split(1500))}
    blocks |= {f"columns{n}": block.contiguous() for n, block in enumerate(LARGE.split(2000, dim=1))}
    dcp.save({**blocks, "few": torch.ones(3)}, checkpoint_id=path)
    metadata = pickle.loads((path / ".metadata").read_bytes())
    tensors, places = metadata.state_dict_metadata, metadata.storage_data
    for key, second in (("rows", torch.Size((1500, 0))), ("columns", torch.Size((0, 2000)))):
        tensors[key], other = tensors.pop(f"{key}0"), tensors.pop(f"{key}1")
        tensors[key].size = LARGE.shape
        tensors[key].chunks += [replace(other.chunks[0], offsets=second)]
        metadata.planner_data[key] = (key,)
        for index in [index for index in places if index.fqn in (f"{key}0", f"{key}1")]:
            number = int(index.fqn[-1])
            offset = second if number else index.offset
            places[replace(index, fqn=key, offset=offset, index=number)] = places.pop(index)
    (path / ".metadata").write_bytes(pickle.dumps(metadata))


WRITERS = (_zip, _transposed, _legacy, _safetensors, _distributed, _in_blocks)
PIECES = {
    ("zip", "large"): 0,
    ("transposed", "large"): 1,
    ("legacy", "large"): 0,
    ("safetensors", "large"): 0,
    ("distributed", "large"): 0,
    ("in_blocks", "rows"): 0,
    ("in_blocks", "columns"): 1,
}
"""Format and key -> pieces beside the tensor that reading takes, where its bytes are scattered over it."""


@pytest.fixture(scope="module")
def peaks(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], list[int]]:
    """Peaks of reading each tensor, of loading it as it is, and as bfloat16; all in one process."""
    folder = tmp_path_factory.mktemp("peaks")
    for write in WRITERS:
        write(folder / write.__name__.strip("_"))
    out = run_python(MEASURE.format(paths=[(str(folder / name), key) for name, key in PIECES]))
    lines = [list(map(int, line.split())) for line in out.splitlines()]
    return dict(zip(PIECES, lines, strict=True))


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no torch.distributed")
@pytest.mark.parametrize("what", PIECES)
def test_one_tensor(peaks: dict[tuple[str, str], list[int]], what: tuple[str, str]) -> None:
    nbytes, half, piece, read, straight, converted = peaks[what]
    room = PIECES[what] * piece + SLACK
    assert nbytes > 40_000_000 > 2 * piece
    assert 0.9 * nbytes < read < nbytes + room
    assert 0.9 * nbytes < straight < nbytes + room
    assert 0.9 * half < converted < half + piece + SLACK
