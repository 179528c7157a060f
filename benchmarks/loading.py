"""Loading the values of a checkpoint into a model, each way in a process of its own.

    python benchmarks/loading.py [--gigabytes 2.1] [--runs 3] [--folder /tmp]

Writes a ``.pth`` of 100 tensors, then builds the model it is for and loads it: the way everybody does, with
``mmap=True``, and through `open_checkpoint`. Prints the best of the runs: seconds, and the peak of memory
above the same process without a load, as a multiple of the checkpoint. To reach: 1.1 copies at most, and
the time of ``torch.load(mmap=True)`` followed by ``load_state_dict``.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from pytest_ckptcompat.checkpoint.checkpoint import open_checkpoint
from pytest_ckptcompat.models.blueprint import Blueprint, blueprint
from pytest_ckptcompat.models.skeleton import skeleton
from pytest_ckptcompat.recipes.operators.tile import tile
from pytest_ckptcompat.recipes.recipe import Recipe

if TYPE_CHECKING:
    from collections.abc import Callable

LAYERS, OUTPUTS = 49, 4


class Net(nn.Module):
    def __init__(self, width: int, outputs: int = OUTPUTS) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(LAYERS))
        self.head = nn.Linear(width, outputs)


def nothing(path: Path, width: int) -> None:
    """What every way needs: the imports, and the model on meta."""
    blueprint(lambda: Net(width)).schema()


def build_only(path: Path, width: int) -> None:
    Net(width)


def as_usual(path: Path, width: int) -> nn.Module:
    model = Net(width)
    model.load_state_dict(torch.load(path, weights_only=True))
    return model


def mapped(path: Path, width: int) -> nn.Module:
    model = Net(width)
    model.load_state_dict(torch.load(path, weights_only=True, mmap=True))
    return model


def stored(path: Path, width: int) -> nn.Module:
    """Built for real, then read straight into its parameters."""
    model = Net(width)
    model.load_state_dict(open_checkpoint(str(path)).stored())
    return model


def undrawn(path: Path, width: int) -> nn.Module:
    """As a check does it: random numbers that the load overwrites are not drawn."""
    state_dict = open_checkpoint(str(path)).stored()
    return spared(blueprint(lambda: Net(width)), state_dict)


def grown(path: Path, width: int) -> nn.Module:
    """The same, the head grown from 4 to 14 outputs on the way."""
    plan, ckpt = blueprint(lambda: Net(width, 14)), open_checkpoint(str(path))
    return spared(plan, Recipe(tile("head.*", dim=0)).apply(ckpt.stored(), plan.schema().state_dict()))


def spared(plan: Blueprint, state_dict: dict[str, Any]) -> nn.Module:
    model = skeleton(plan.build, lambda model: model.load_state_dict(state_dict))
    assert model is not None
    return model


WAYS: dict[str, Callable[[Path, int], Any]] = {
    "nothing": nothing,
    "build alone": build_only,
    "torch.load": as_usual,
    "torch.load(mmap=True)": mapped,
    "stored, built": stored,
    "stored, undrawn": undrawn,
    "stored, undrawn, tile": grown,
}


def peak() -> int:
    """The most memory this program has held, in bytes; rusage would count what held its parent, too."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def run(way: str, path: Path, width: int) -> None:
    """One way, in this process."""
    start = time.perf_counter(), time.process_time()
    WAYS[way](path, width)
    spent = time.perf_counter() - start[0], time.process_time() - start[1]
    print(json.dumps([*spent, peak()]))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gigabytes", type=float, default=2.1)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--folder", default=tempfile.gettempdir())
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--path", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    width = int((options.gigabytes * 1e9 / 4 / LAYERS) ** 0.5)
    if options.way:
        run(options.way, options.path, width)
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        path = Path(folder) / "net.pth"
        torch.save(Net(width).state_dict(), path)
        size = path.stat().st_size
        print(f"torch {torch.__version__}, {size / 1e9:.2f} GB, {2 * (LAYERS + 1)} tensors, {width} wide\n")
        print(f"{'':<24}{'wall':>8}{'CPU':>8}{'memory':>10}{'copies':>8}")
        figures: dict[str, list[list[float]]] = {way: [] for way in WAYS}
        for _ in range(options.runs):  # interleaved: what else the machine does, it does to all
            for way in WAYS:
                command = [sys.executable, __file__, "--way", way, "--path", str(path)]
                command += ["--gigabytes", str(options.gigabytes)]
                figures[way].append(
                    json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
                )
        base = min(memory for _, _, memory in figures["nothing"])
        for way, runs in figures.items():
            wall, cpu, memory = (min(column) for column in zip(*runs, strict=True))
            print(
                f"{way:<24}{wall:7.2f}s{cpu:7.2f}s{(memory - base) / 1e9:8.2f}GB{(memory - base) / size:8.2f}"
            )


if __name__ == "__main__":
    main()
