"""How much memory is free, so that a check that would not fit can say so."""

from __future__ import annotations

from pathlib import Path

_CGROUPS = (
    ("memory.max", "memory.current"),  # version 2
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),  # version 1
)


def free(root: Path = Path("/")) -> int | None:
    """Return how many bytes can be allocated without swapping, or None if the system does not say.

    This is the machine's own figure, or what the control group (a container's limit) leaves if that is less.
    Page cache counts as free in both.
    """
    figures = [figure for figure in (_machine(root), _container(root)) if figure is not None]
    return min(figures) if figures else None


def shown(nbytes: float) -> str:
    """Return a number of bytes in a readable unit: ``1.8 MB``, ``26 GB``."""
    units = iter(("B", "kB", "MB", "GB", "TB"))
    unit = next(units)
    while nbytes >= 1000 and unit != "TB":
        nbytes, unit = nbytes / 1000, next(units)
    return f"{nbytes:.1f} {unit}" if nbytes < 10 and unit != "B" else f"{nbytes:.0f} {unit}"


def _machine(root: Path) -> int | None:
    try:
        lines = (root / "proc/meminfo").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError, IndexError):
        return None  # only Linux has it


def _container(root: Path) -> int | None:
    for limit, used in _CGROUPS:
        base = root / "sys/fs/cgroup"
        try:
            most, now = int((base / limit).read_text()), int((base / used).read_text())
            cache = _file_cache((base / used).with_name("memory.stat"))
        except (OSError, ValueError):
            continue
        return max(most - now + cache, 0)
    return None


def _file_cache(stat: Path) -> int:
    fields = dict(line.split() for line in stat.read_text().splitlines())
    return int(fields.get("inactive_file", fields.get("total_inactive_file", 0)))
