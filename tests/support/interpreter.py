"""Python code in a process of its own, watched for time and memory."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def run_python(code: str, *, memory: int | None = None, seconds: float = 60) -> str:
    """What `code` prints, in a fresh interpreter that imports this package, and the helpers of these tests.

    Args:
        code: Python source.
        memory: bytes of address space it may have.
        seconds: of CPU time, after which it is killed.
    """

    def confine() -> None:
        if memory is not None:
            resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
        resource.setrlimit(resource.RLIMIT_CPU, (int(seconds) + 1, int(seconds) + 1))

    done = subprocess.run(
        [
            sys.executable,
            "-c",
            f"import sys; sys.path[:0] = {[str(ROOT), str(ROOT / 'tests' / 'support')]}\n{code}",
        ],
        capture_output=True,
        text=True,
        preexec_fn=confine,
        timeout=seconds * 20,
    )
    assert done.returncode == 0, f"exit {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout
