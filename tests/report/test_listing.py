"""Checkpoints as tables on a terminal."""

from __future__ import annotations

import unicodedata
from typing import TYPE_CHECKING
from zipfile import ZipFile

import pytest
import torch

from pytest_ckptcompat import open_checkpoint
from pytest_ckptcompat.report.listing import changes, contrasted, listed

if TYPE_CHECKING:
    from pathlib import Path

    from pytest_ckptcompat import Checkpoint

LONG = "encoder." + "deep." * 30


def _saved(path: Path, **keys: torch.Tensor) -> Checkpoint:
    torch.save(keys, path)
    return open_checkpoint(path)


def _columns(line: str) -> int:
    """Columns that a terminal gives to a line."""
    return sum(
        2 if unicodedata.east_asian_width(c) in "WF" else unicodedata.category(c) not in ("Mn", "Me")
        for c in line
    )


@pytest.fixture
def odd(tmp_path: Path) -> Checkpoint:
    keys = ["a", "层.0.重み", "e\u0301", "i\u200bj", "b…c", "tail "]
    return _saved(tmp_path / "层.pth", **{key: torch.zeros(2, n + 1) for n, key in enumerate(keys)})


def test_cells_stand_below_each_other_whatever_keys_are_made_of(odd: Checkpoint, tmp_path: Path) -> None:
    _, _, _, rule, *rows = listed(odd).split("\n")
    assert {_columns(row) for row in rows} == {_columns(rule)}
    assert len(rows) == len(odd)
    new = _saved(tmp_path / "new.pth", a=torch.zeros(2, 1))
    _, _, _, rule, *rows = contrasted(odd, new, changes(odd, new)).split("\n")
    assert {row.index("(") for row in rows} == {rule.rindex("  ", 0, rule.rindex("  ")) + 2}


def test_how_the_file_was_read_is_told(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(2, 3)}, tmp_path / "net.pth")
    with ZipFile(tmp_path / "net.pth") as archive:
        archive.extractall(tmp_path / "unpacked")
    title = listed(open_checkpoint(tmp_path / "unpacked/net")).partition("\n")[0]
    assert title.endswith("torch-zip, 1 tensors, 24 B, unpacked")


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_it_fits_the_terminal_and_no_two_keys_look_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    ckpt = _saved(
        tmp_path / "long.pth",
        **{LONG + part: torch.zeros(2, 3) for part in ("query.weight", "key.weight", "a.bias")},
    )
    rows = listed(ckpt).split("\n")[4:]
    assert len(set(rows)) == 3
    assert all(len(row) <= columns for row in rows)
    assert [row.split()[0][-6:] for row in rows] == ["weight", "weight", "a.bias"]
    new = _saved(tmp_path / "new.pth", a=torch.zeros(2, 3))
    rows = contrasted(ckpt, new, changes(ckpt, new)).split("\n")[4:]
    assert len(set(rows)) == 4
    assert all(len(row) <= columns for row in rows)
