from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_ckptcompat import CheckpointError
from pytest_ckptcompat.files import read_ahead
from pytest_ckptcompat.files.file import File
from pytest_ckptcompat.files.read_ahead import Held, ReadAhead

if TYPE_CHECKING:
    from collections.abc import Iterable

DATA = bytes(n % 251 for n in range(20_000))


class Far(File):
    """A file far away, which counts what it is asked for."""

    remote = True

    def __init__(self, path: str = "far", data: bytes = DATA) -> None:
        super().__init__(path, len(data))
        self.data = data
        self.asked: list[tuple[int, int]] = []

    def _read_some(self, offset: int, view: memoryview) -> int:
        part = self.data[offset : offset + len(view)]
        view[: len(part)] = part
        self.asked.append((offset, len(part)))
        return len(part)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read_ahead, "WINDOW", 4000)
    monkeypatch.setattr(read_ahead, "_GAP", 100)


def ahead(file: File, parts: Iterable[tuple[int, int]]) -> ReadAhead:
    return ReadAhead(file, parts, {})


def test_neighbours_come_with_one_request() -> None:
    file = Far()
    parts = [(n * 120, n * 120 + 100) for n in range(30)]
    reader = ahead(file, parts)
    for start, end in parts:
        assert reader.read_at(start, end - start) == DATA[start:end]
    assert file.asked == [(0, 3580)]


def test_what_lies_far_apart_and_what_is_large_is_read_by_itself() -> None:
    file = Far()
    reader = ahead(file, [(0, 100), (300, 400), (400, 9000), (9000, 9100)])
    for start, size in ((0, 100), (300, 100), (400, 8600), (9000, 100)):
        assert reader.read_at(start, size) == DATA[start : start + size]
    assert file.asked == [(0, 100), (300, 100), (400, 8600), (9000, 100)]


def test_where_it_is_not_sure_windows_are_fetched_for_reads_that_go_on() -> None:
    file = Far()
    reader = ReadAhead(file, [(n * 120, n * 120 + 100) for n in range(30)], {}, sure=False)
    for place in (20, 5, 6, 7, 25):
        assert reader.read_at(place * 120, 100) == DATA[place * 120 : place * 120 + 100]
    assert file.asked == [(2400, 100), (600, 100), (720, 2860)]  # the rest of the window


def test_several_parts_in_any_order_promise_the_others() -> None:
    file = Far()
    reader = ReadAhead(file, [(n * 120, n * 120 + 100) for n in range(30)], {}, sure=False)
    for place in (20, 10, 5, 17, 2):
        assert reader.read_at(place * 120, 100) == DATA[place * 120 : place * 120 + 100]
    assert file.asked == [(2400, 100), (1200, 100), (0, 3580)]


def test_several_reads_of_one_part_do_not_promise_the_next() -> None:
    file = Far()
    reader = ReadAhead(file, [(n * 120, n * 120 + 120) for n in range(30)], {}, sure=False)
    for offset, size in ((240, 30), (270, 20), (300, 60)):
        reader.read_at(offset, size)
    assert sum(size for _, size in file.asked) == 110


def test_what_was_not_expected_is_read_all_the_same() -> None:
    file = Far()
    reader = ahead(file, [(100, 200)])
    assert reader.read_at(0, 50) == DATA[:50]
    assert reader.read_at(150, 100) == DATA[150:250]
    assert file.asked == [(0, 50), (150, 100)]


def test_a_window_ends_where_the_file_ends() -> None:
    file = Far()
    reader = ahead(file, [(19_900, 30_000)])
    assert reader.read_at(19_950, 50) == DATA[19_950:]
    with pytest.raises(CheckpointError, match="truncated"):
        reader.read_at(19_950, 51)
    assert ahead(file, [(30_000, 30_010)]).read_at(0, 5) == DATA[:5]


def test_few_windows_are_held_of_all_files_together() -> None:
    held: Held = {}
    files = [Far(f"far{n}") for n in range(5)]
    readers = [ReadAhead(file, [(0, 1000)], held) for file in files]
    for reader in readers:
        reader.read_at(0, 1000)
    for reader in (readers[4], readers[1], readers[0]):  # the first was given up for the fifth
        reader.read_at(0, 1000)
    assert [len(file.asked) for file in files] == [2, 1, 1, 1, 1]


def test_windows_that_are_no_help_are_given_up() -> None:
    """Parts read in any order: every byte comes at most twice, and once more by itself."""
    parts = [(n * 100, n * 100 + 100) for n in range(200)]
    file = Far()
    reader = ahead(file, parts)
    random.Random(0).shuffle(parts)
    for start, end in parts:
        assert reader.read_at(start, 100) == DATA[start:end]
    assert sum(size for _, size in file.asked) <= 2 * len(DATA)


@given(
    st.lists(st.tuples(st.integers(0, 20_100), st.integers(0, 6000)), max_size=30),
    st.lists(st.tuples(st.integers(0, 19_999), st.integers(0, 3000)), max_size=30),
)
def test_what_is_read_is_what_is_there(expected: list[tuple[int, int]], read: list[tuple[int, int]]) -> None:
    reader = ahead(Far(), [(start, start + size) for start, size in expected])
    for start, size in read:
        size = min(size, len(DATA) - start)
        assert reader.read_at(start, size) == DATA[start : start + size]
