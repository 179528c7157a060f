"""The gate on shapes alone: a whole pytest process, beside one that does no more than import torch.

    python benchmarks/gate.py [--gigabytes 2.1] [--runs 5] [--folder /tmp]

Modules are compiled before, as an installation does. Prints medians of wall and CPU time and of the most
memory held. To reach: 1.1 times the time of pytest and ``import torch``, and 60 MB above it.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from measure import Used, options, python

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


def main() -> None:
    given = options(__doc__, gigabytes=2.1, runs=5, folder=tempfile.gettempdir())
    width = int((given.gigabytes * 1e9 / 4 / LAYERS) ** 0.5)
    with tempfile.TemporaryDirectory(dir=given.folder) as name:
        folder = Path(name)
        (folder / "pytest.ini").write_text("[pytest]\n")
        (folder / "net.py").write_text(NET.format(width=width, layers=LAYERS))
        for suite, text in SUITES.items():
            (folder / f"test_{suite.split()[-1]}.py").write_text(text)
        subprocess.run([sys.executable, "net.py"], cwd=folder, check=True)
        pytest = ("-m", "pytest", "-q", "-p", "no:cacheprovider")
        for suite in SUITES:
            python(folder, *pytest, f"test_{suite.split()[-1]}.py")
        figures: dict[str, list[Used]] = {suite: [] for suite in SUITES}
        for _ in range(given.runs):  # interleaved: what else the machine does, it does to all
            for suite in SUITES:
                figures[suite].append(python(folder, *pytest, f"test_{suite.split()[-1]}.py"))
        print(f"{(folder / 'net.pth').stat().st_size / 1e9:.2f} GB\n")
    print(f"{'':<16}{'wall':>8}{'CPU':>8}{'memory':>10}{'CPU, ratio':>12}")
    base = statistics.median(used.cpu for used in figures["import torch"])
    for suite, runs in figures.items():
        wall, cpu, memory = (statistics.median(column) for column in zip(*runs, strict=True))
        print(f"{suite:<16}{wall:7.2f}s{cpu:7.2f}s{memory:8.2f}GB{cpu / base:12.2f}")


if __name__ == "__main__":
    main()
