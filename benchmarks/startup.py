"""What the plugin costs a suite that does not use it: pytest's start with it and with ``-p no:ckptcompat``.

    python benchmarks/startup.py [PAIRS]

Runs in turns on an empty suite, each in a process of its own; medians of wall and CPU time, in milliseconds.
Modules are compiled before, as an installation does. To reach: 15 ms.
"""

import statistics
import sys
import tempfile
from pathlib import Path

from measure import python

PYTEST = ("-m", "pytest", "-q", "-p", "no:cacheprovider")


def main() -> None:
    pairs = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "test_plain.py").write_text("def test_plain(): ...\n")
        Path(folder, "pytest.ini").write_text("[pytest]\n")
        python(folder, *PYTEST)
        timings = [
            (python(folder, *PYTEST), python(folder, *PYTEST, "-p", "no:ckptcompat")) for _ in range(pairs)
        ]
    print(f"{pairs} pairs")
    for name, kind in (("wall", 0), ("CPU", 1)):
        pair = [(one[kind] * 1e3, other[kind] * 1e3) for one, other in timings]
        with_it, without = (statistics.median(column) for column in zip(*pair, strict=True))
        difference = statistics.median(one - other for one, other in pair)
        print(f"{name:<6}{with_it:4.0f} ms with, {without:4.0f} ms without, {difference:+.1f} ms")


if __name__ == "__main__":
    main()
