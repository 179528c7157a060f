"""What a gate against git takes, a search over a long history, and outputs on synthetic values.

    python benchmarks/history.py [--runs 5] [--commits 1000]

Whole processes, medians, in seconds of wall and of CPU time, the CPU time in parts of that of pytest and
``import torch``. To reach: cached 1.2 of it with ``--ckpt-device none`` and 1.9 with ``auto``; a search 12
times ``import torch`` and 1 s with ``--good``, 21 times without; outputs of ResNet-50's size 3 s.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from measure import options, python

NET = """
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(64, 64), nn.ReLU())
        self.head = nn.Linear(64, {outputs})

    def forward(self, x):
        return self.head(self.body(x))
"""
GATE = """
import pytest
from net import Net

@pytest.mark.ckpt_compat(model=Net, inputs=(2, 64))
def test(): ...
"""
LARGE = """
import time
import torch
from torch import nn
from pytest_ckptcompat.checks.behaviours import recorded
from pytest_ckptcompat.forward.inputs import Inputs
from pytest_ckptcompat.models.blueprint import blueprint

def net():  # 25 M parameters, 4 G multiplications
    layers = [nn.Conv2d(3, 64, 7, 4, 3)]
    for width, blocks in ((64, 6), (128, 8), (256, 12), (512, 6)):
        layers += [nn.Conv2d(layers[-1].out_channels, width, 3, 1 if width == 64 else 2, 1), nn.ReLU()]
        layers += [each for _ in range(blocks) for each in (nn.Conv2d(width, width, 3, 1, 1), nn.ReLU())]
        layers.pop()
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 1000))

made, batch = blueprint(net), Inputs.parse((1, 3, 224, 224)).plain()
table = made.schema().state_dict()
start, cpu = time.perf_counter(), time.process_time()
found = recorded(made, table, (), batch)
print(f"{sum(each.numel() for each in table.values()) / 1e6:.0f} M values, gain {found.get('gain', 1)}: "
      f"{time.perf_counter() - start:.2f} s, {time.process_time() - cpu:.2f} s CPU")
"""


def history(folder: Path, commits: int) -> None:
    """A line of commits, of which those of the last third have another head."""
    lines = []
    for number in range(commits):
        text = NET.format(outputs=4 if number < commits * 2 // 3 else 5) + f"# {number}\n"
        lines.append(
            f"commit refs/heads/main\ncommitter a <a@b.c> {number} +0000\ndata 1\nx\n"
            f"M 100644 inline net.py\ndata {len(text)}\n{text}\n"
        )
    git = ["git", "-C", str(folder)]
    subprocess.run([*git, "init", "-q", "-b", "main"], check=True)
    subprocess.run([*git, "fast-import", "--quiet"], input="".join(lines).encode(), check=True)
    subprocess.run([*git, "reset", "-q", "--hard", "main"], check=True)


def main() -> None:
    given = options(__doc__, runs=5, commits=1000)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        history(folder, given.commits)
        (folder / "pytest.ini").write_text("[pytest]\n")
        (folder / "test_torch.py").write_text("import torch\ndef test(): ...\n")
        (folder / "test_gate.py").write_text(GATE)
        (folder / "large.py").write_text(LARGE)
        pytest, gate = ("-m", "pytest", "-q"), ("test_gate.py", "--ckpt=git:HEAD", "--ckpt-device")
        works = {
            "pytest and import torch": (*pytest, "test_torch.py"),
            "cached, none": (*pytest, *gate, "none"),
            "cached, auto": (*pytest, *gate, "auto"),
            "import torch": ("-c", "import torch"),
        }
        for work in works.values():
            python(folder, *work)
        works["first, none"] = (*works["cached, none"], "-p", "no:cacheprovider")
        found = {work: [python(folder, *works[work]) for _ in range(given.runs)] for work in works}
        first = f"HEAD~{given.commits - 1}"
        lock = ("-m", "pytest_ckptcompat", "lock", "net:Net", "--at", first, "-o", "a.ckpt.json")
        python(folder, *lock)
        bisect = ("-m", "pytest_ckptcompat", "bisect", "a.ckpt.json", "net:Net")
        found["bisect"] = [python(folder, *bisect)]
        found["bisect --good"] = [python(folder, *bisect, "--good", first)]
        base = statistics.median(used.cpu for used in found["pytest and import torch"])
        for work, runs in found.items():
            wall, cpu, _ = (statistics.median(column) for column in zip(*runs, strict=True))
            print(f"{work:<24}{wall:8.2f} s{cpu:8.2f} s CPU{cpu / base:8.2f}")
        subprocess.run([sys.executable, "large.py"], cwd=folder, check=True)


if __name__ == "__main__":
    main()
