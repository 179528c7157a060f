"""What the plugin costs a suite that does not use it: pytest's start with it and with ``-p no:ckptcompat``.

    python benchmarks/startup.py [PAIRS]

Runs in turns on an empty suite, each in a process of its own; medians, in milliseconds.
"""

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def seconds(folder: str, *options: str) -> float:
    start = time.perf_counter()
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return time.perf_counter() - start


def main() -> None:
    pairs = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "test_plain.py").write_text("def test_plain(): ...\n")
        seconds(folder)
        timings = [(seconds(folder), seconds(folder, "-p", "no:ckptcompat")) for _ in range(pairs)]
    with_it, without = (statistics.median(column) * 1e3 for column in zip(*timings, strict=True))
    difference = statistics.median(one - other for one, other in timings) * 1e3
    print(f"{pairs} pairs: {with_it:.0f} ms with, {without:.0f} ms without, {difference:+.1f} ms")


if __name__ == "__main__":
    main()
