"""Tracing a loaded model to its file, side by side with ``torch.load`` of the same file.

    python benchmarks/tracing.py [--gigabytes 2.1] [--runs 3] [--folder /tmp]

Writes a ``.pth`` of attention blocks, makes of it what loaders make (as it is, cast, renamed, transposed,
fused), and a model that holds nothing of it. Prints the best CPU time of the runs, as a multiple of
``torch.load``. To reach: 2 where everything is found.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from measure import options

from pytest_ckptcompat.checkpoint.checkpoint import open_checkpoint
from pytest_ckptcompat.verification.origins import trace

if TYPE_CHECKING:
    from collections.abc import Callable

    State = dict[str, torch.Tensor]

BLOCKS, PARTS = 12, ("q", "k", "v", "o")


def saved(width: int) -> State:
    shapes = {"weight": (width, width), "bias": (width,)}
    return {
        f"blocks.{block}.{part}.{leaf}": torch.randn(shape)
        for block in range(BLOCKS)
        for part in PARTS
        for leaf, shape in shapes.items()
    }


def fused(state: State) -> State:
    made = {}
    for block in range(BLOCKS):
        for leaf in ("weight", "bias"):
            parts = [state[f"blocks.{block}.{part}.{leaf}"] for part in PARTS]
            made[f"h.{block}.qkv.{leaf}"], made[f"h.{block}.o.{leaf}"] = torch.cat(parts[:3]), parts[3]
    return made


def renamed(state: State, change: Callable[[torch.Tensor], torch.Tensor]) -> State:
    return {f"model.{key}": change(value) for key, value in state.items()}


MODELS: dict[str, Callable[[State], State]] = {
    "as it is": lambda state: state,
    "cast": lambda state: {key: value.half() for key, value in state.items()},
    "rounded": lambda state: {key: value.bfloat16().float() for key, value in state.items()},
    "renamed": lambda state: renamed(state, torch.clone),
    "renamed, cast": lambda state: renamed(state, torch.Tensor.half),
    "renamed, transposed": lambda state: renamed(state, lambda value: value.t().contiguous()),
    "fused": fused,
    "fused, cast": lambda state: {key: value.half() for key, value in fused(state).items()},
    "other values": lambda state: {key: torch.randn_like(value) for key, value in state.items()},
    "other values and names": lambda state: renamed(state, torch.randn_like),
}


def best(runs: int, work: Callable[[], object]) -> float:
    spent = []
    for _ in range(runs):
        start = time.process_time()
        work()
        spent.append(time.process_time() - start)
    return min(spent)


def main() -> None:
    given = options(__doc__, gigabytes=2.1, runs=3, folder=tempfile.gettempdir())
    torch.manual_seed(0)
    state = saved(int((given.gigabytes * 1e9 / 4 / BLOCKS / len(PARTS)) ** 0.5))
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        path = Path(folder) / "net.pth"
        torch.save(state, path)
        plain = best(given.runs + 1, lambda: torch.load(path, weights_only=True))
        print(f"torch {torch.__version__}, {path.stat().st_size / 1e9:.2f} GB, torch.load {plain:.2f} s\n")
        for name, make in MODELS.items():
            model = make(state)
            spent = best(given.runs, lambda model=model: trace(model, open_checkpoint(path).stored()))
            print(f"{name:<24}{spent:7.2f}s{spent / plain:8.2f}")


if __name__ == "__main__":
    main()
