"""What the benchmarks share: their options, and processes with the time and memory that they take."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from pathlib import Path


class Used(NamedTuple):
    """Seconds of wall time and of CPU time, and the most memory held, in GB."""

    wall: float
    cpu: float
    memory: float


def python(folder: str | Path, *arguments: str) -> Used:
    """Run Python in a folder. Modules are compiled once for all runs there, as an installation does."""
    environment = {**os.environ, "PYTHONPYCACHEPREFIX": f"{folder}/compiled", "PYTHONDONTWRITEBYTECODE": ""}
    start = time.perf_counter()
    command = [sys.executable, *arguments]
    process = subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    assert status == 0, arguments
    cpu = used.ru_utime + used.ru_stime
    return Used(time.perf_counter() - start, cpu, used.ru_maxrss * 1024 / 1e9)


def options(description: str | None, **defaults: Any) -> argparse.Namespace:
    """Parse the command line: an option for each default, of its type."""
    plain = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=description, formatter_class=plain)
    for name, default in defaults.items():
        parser.add_argument(f"--{name}", type=type(default), default=default)
    return parser.parse_args()
