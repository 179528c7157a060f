"""How the search for a suggestion grows with the keys, and what a check of many findings takes.

    python benchmarks/suggestions.py [MOST]

The search alone on 100 to MOST keys (100,000), of which all differ, with all the time it wants: seconds of
the processor, and how many times as long as with a tenth of the keys (to reach: 10). Then on MOST keys within
its 2 s: wall time. Then a whole `check` of as many findings, up to 10,000, and its report as text: seconds of
the processor (to reach: 3).
"""

from __future__ import annotations

import random
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch import nn

from pytest_ckptcompat import check
from pytest_ckptcompat.core import collection
from pytest_ckptcompat.suggest.budget import SECONDS, Budget
from pytest_ckptcompat.suggest.search import suggest

WIDE = 10


def layers(count, name="layers", leaf="fc", rows=8):
    """Blocks of ten layers each."""
    return {f"{name}.{i // WIDE}.{leaf}{i % WIDE}.weight": (rows, 8 + i % WIDE) for i in range(count)}


def words(count, seed):
    """Names that have nothing in common."""
    rng = random.Random(seed)
    return {"".join(rng.choices("bcdfghjklmnp", k=9)) + ".weight": (8, 8) for _ in range(count)}


KINDS = {
    "a wrapper": lambda n: (layers(n, "module.layers"), layers(n)),
    "renamed blocks": lambda n: (layers(n), layers(n, "blocks")),
    "renamed leaves": lambda n: (layers(n), layers(n, leaf="linear")),
    "grown rows": lambda n: (layers(n), layers(n, rows=12)),
    "unrelated names": lambda n: (words(n, 0), words(n, 1)),
    "gone": lambda n: (layers(n), layers(max(n // 100, 1))),
}


def search(checkpoint, model, limit=600.0):
    """Seconds of the processor, wall time, and what was found."""
    old, new = (
        {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
        for shapes in (checkpoint, model)
    )

    def differences(recipe):
        grown = recipe.apply(old, new)
        shared = grown.keys() & new.keys()
        return [*(grown.keys() ^ new.keys()), *(key for key in shared if grown[key].shape != new[key].shape)]

    with collection.paused():
        start, processor = time.perf_counter(), time.process_time()
        found = suggest(old, new, differences, budget=Budget(limit))
        return time.process_time() - processor, time.perf_counter() - start, found


class Net(nn.Module):
    def __init__(self, keys, rows):
        super().__init__()
        self.layers = nn.ModuleList(
            nn.ModuleList(nn.Linear(4, rows, bias=False) for _ in range(WIDE)) for _ in range(keys // WIDE)
        )


def whole(keys):
    """Seconds of a check in which every key differs, and of its report."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "old.pth")
        torch.save(Net(keys, 4).state_dict(), path)
        start = time.process_time()
        report = check(lambda: Net(keys, 6), path)
        checked = time.process_time()
        str(report)
        return checked - start, time.process_time() - checked, len(report.findings)


def main():
    most = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    sizes = [10**power for power in range(2, 6) if 10**power <= most]
    search(*KINDS["a wrapper"](100))
    print(f"{'the search':<18}" + "".join(f"{size:>18,}" for size in sizes) + " keys")
    for name, make in KINDS.items():
        cells, before = [], 0.0
        for size in sizes:
            took, _, _ = search(*make(size))
            told = f"x{took / before:.0f}" if before else ""
            cells.append(f"{took * 1e3:8.0f} ms {told:>6}")
            before = took
        print(f"{name:<18}" + "".join(f"{cell:>18}" for cell in cells))
    for name, make in KINDS.items():
        _, took, found = search(*make(most), SECONDS)
        print(f"{most:,} keys, {name}: {took:.1f} s{', stopped' if found.stopped else ''}")
    whole(100)
    for size in (each for each in sizes if each <= 10_000):
        checked, shown, findings = whole(size)
        print(f"check of {findings:,} findings: {checked:.2f} s, its report {shown:.2f} s")


if __name__ == "__main__":
    main()
