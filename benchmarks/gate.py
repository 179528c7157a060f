"""The gate on shapes alone: a whole pytest process, beside one that does no more than import torch.

    python benchmarks/gate.py [--gigabytes 2.1] [--runs 5] [--folder /tmp]

Modules are compiled before, as an installation does. Prints medians of wall and CPU time and of the most
memory held. To reach: 1.1 times the time of pytest and ``import torch``, and 60 MB above it.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

LAYERS = 49
NET = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear({width}, {width}) for _ in range({layers}))
        self.head = nn.Linear({width}, 4)

if __name__ == "__main__":
    torch.save(Net().state_dict(), "net.pth")
"""
SUITES = {
    "import torch": "import torch\ndef test(): ...\n",
    "the gate": """
import pytest
from net import Net

@pytest.mark.ckpt_compat(model=Net, ckpt="net.pth")
def test(): ...
""",
    "by hand": """
import torch
from net import Net

def test():
    Net().load_state_dict(torch.load("net.pth"))
""",
}


def run(folder: Path, name: str) -> tuple[float, float, float]:
    """Seconds of wall and of CPU time, and GB, of pytest on one suite."""
    start = time.perf_counter()
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"test_{name.split()[-1]}.py"]
    environment = {**os.environ, "PYTHONPYCACHEPREFIX": f"{folder}/compiled", "PYTHONDONTWRITEBYTECODE": ""}
    process = subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    assert status == 0, name
    return time.perf_counter() - start, used.ru_utime + used.ru_stime, used.ru_maxrss * 1024 / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gigabytes", type=float, default=2.1)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--folder", default=tempfile.gettempdir())
    options = parser.parse_args()
    width = int((options.gigabytes * 1e9 / 4 / LAYERS) ** 0.5)
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        (folder / "pytest.ini").write_text("[pytest]\n")
        (folder / "net.py").write_text(NET.format(width=width, layers=LAYERS))
        for suite, text in SUITES.items():
            (folder / f"test_{suite.split()[-1]}.py").write_text(text)
        subprocess.run([sys.executable, "net.py"], cwd=folder, check=True)
        for suite in SUITES:
            run(folder, suite)
        figures: dict[str, list[tuple[float, float, float]]] = {suite: [] for suite in SUITES}
        for _ in range(options.runs):  # interleaved: what else the machine does, it does to all
            for suite in SUITES:
                figures[suite].append(run(folder, suite))
        print(f"{(folder / 'net.pth').stat().st_size / 1e9:.2f} GB\n")
    print(f"{'':<16}{'wall':>8}{'CPU':>8}{'memory':>10}{'CPU, ratio':>12}")
    base = statistics.median(cpu for _, cpu, _ in figures["import torch"])
    for suite, runs in figures.items():
        wall, cpu, memory = (statistics.median(column) for column in zip(*runs, strict=True))
        print(f"{suite:<16}{wall:7.2f}s{cpu:7.2f}s{memory:8.2f}GB{cpu / base:12.2f}")


if __name__ == "__main__":
    main()
