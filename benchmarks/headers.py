"""Headers against whole files: what opening a checkpoint costs, beside torch's own ways.

    python benchmarks/headers.py [FOLDER]

Writes about 4.5 GB to FOLDER (a temporary one by default) and takes it away again. Each figure is from a
process of its own with everything imported, page cache warm; memory is the peak above what that took.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

OURS = "from pytest_ckptcompat import open_checkpoint as load"
MEASURE = """
import sys, time
def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) / 1024
{before}
base = peak()
start = time.perf_counter()
{work}
seconds = time.perf_counter() - start
print(seconds, peak() - base)
"""


def measured(work: str, before: str = "") -> tuple[float, float]:
    """Seconds and MB of `work`, the best of three processes."""
    code = MEASURE.format(before=before, work=work)
    runs = [
        tuple(map(float, subprocess.check_output([sys.executable, "-c", code], text=True).split()))
        for _ in range(3)
    ]
    return min(runs)[0], min(runs)[1]


def write(folder: Path) -> None:
    import torch
    from safetensors.torch import save_file

    big = {f"layers.{i}.weight": torch.empty(2048, 2560) for i in range(100)}
    torch.save({"a": torch.zeros(1)}, folder / "small.pth")
    torch.save(big, folder / "zip.pth")
    torch.save(big, folder / "legacy.pth", _use_new_zipfile_serialization=False)
    many = {f"layers.{i // 10}.block.{i % 10}.weight": torch.zeros(1) for i in range(100_000)}
    torch.save(many, folder / "many.pth")
    save_file(many, folder / "many.safetensors")


def row(name: str, ours: tuple[float, float], theirs: tuple[float, float]) -> None:
    print(
        f"| {name} | {ours[0] * 1e3:.1f} ms, {ours[1]:.1f} MB | {theirs[0] * 1e3:.0f} ms, {theirs[1]:.0f} MB "
        f"| {theirs[0] / ours[0]:.0f}x |"
    )


def main() -> None:
    with tempfile.TemporaryDirectory(dir=sys.argv[1] if len(sys.argv) > 1 else None) as name:
        folder = Path(name)
        write(folder)
        print("| file | header alone | torch.load, safe_open | ratio |\n| --- | --- | --- | --- |")
        small = str(folder / "small.pth")
        for file, title in (
            ("zip.pth", "2.1 GB zip, 100 tensors"),
            ("legacy.pth", "2.1 GB legacy, 100 tensors"),
            ("many.pth", "100,000 keys, zip"),
        ):
            path = str(folder / file)
            ours = measured(f"load({path!r})", f"{OURS}\nload({small!r})")
            theirs = measured(f"torch.load({path!r}, weights_only=True)", "import torch")
            row(title, ours, theirs)
        path = str(folder / "many.safetensors")
        keys = f"f = safe_open({path!r}, 'pt')\nfor k in f.keys(): f.get_slice(k).get_shape()"
        row(
            "100,000 keys, safetensors",
            measured(f"load({path!r})", f"{OURS}\nload({small!r})"),
            measured(keys, "import torch\nfrom safetensors import safe_open"),
        )
        show = [sys.executable, "-m", "pytest_ckptcompat", "show", str(folder / "zip.pth")]
        command = f"import subprocess; subprocess.check_output({show!r})"
        print(f"`ckptcompat show` of the 2.1 GB file, whole process: {measured(command)[0]:.2f} s")


if __name__ == "__main__":
    main()
