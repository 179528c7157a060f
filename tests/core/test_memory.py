from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from networks import Words

from pytest_ckptcompat.core import memory
from pytest_ckptcompat.tensors.footprint import weights

if TYPE_CHECKING:
    from pathlib import Path

GB = 1024**3


def machine(root: Path, available: int) -> None:
    (root / "proc").mkdir()
    (root / "proc/meminfo").write_text(f"MemTotal: 99999999 kB\nMemAvailable:  {available // 1024} kB\n")


def container(root: Path, version: int, limit: str, used: int, cache: int) -> None:
    base = root / "sys/fs/cgroup" / ("" if version == 2 else "memory")
    base.mkdir(parents=True)
    names = (
        ("memory.max", "memory.current")
        if version == 2
        else ("memory.limit_in_bytes", "memory.usage_in_bytes")
    )
    (base / names[0]).write_text(f"{limit}\n")
    (base / names[1]).write_text(f"{used}\n")
    name = "inactive_file" if version == 2 else "total_inactive_file"
    (base / "memory.stat").write_text(f"anon 5\n{name} {cache}\n")


@pytest.mark.parametrize("version", [1, 2])
def test_a_container_has_less_than_its_machine(tmp_path: Path, version: int) -> None:
    machine(tmp_path, 64 * GB)
    container(tmp_path, version, str(8 * GB), 5 * GB, 2 * GB)
    assert memory.free(tmp_path) == 5 * GB


def test_an_unlimited_container_has_what_the_machine_has(tmp_path: Path) -> None:
    machine(tmp_path, 64 * GB)
    container(tmp_path, 2, "max", 5 * GB, GB)
    assert memory.free(tmp_path) == 64 * GB


def test_the_machine_may_have_less_than_the_container_allows(tmp_path: Path) -> None:
    machine(tmp_path, 3 * GB)
    container(tmp_path, 2, str(8 * GB), 0, 0)
    assert memory.free(tmp_path) == 3 * GB


def test_this_machine_says_something_sensible() -> None:
    free = memory.free()
    assert free is not None
    assert 10**7 < free < 10**14


def test_shared_weights_count_once() -> None:
    model = Words()
    total = sum(parameter.numel() * 4 for parameter in model.parameters())
    assert weights(model) == total
    assert weights(model, itemsize=8) == 2 * total


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [(0, "0 B"), (999, "999 B"), (1800, "1.8 kB"), (26e9, "26 GB"), (999.9e9, "1000 GB"), (5e15, "5000 TB")],
)
def test_shown(nbytes: float, text: str) -> None:
    assert memory.shown(nbytes) == text
