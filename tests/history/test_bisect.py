from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from repositories import Repository

from pytest_ckptcompat.history.bisect import Found, line_of, search
from pytest_ckptcompat.history.reference import Reference, resolve


def asking(first, skipped=()):
    asked = []

    def ask(index):
        assert index not in asked
        asked.append(index)
        return "skipped" if index in skipped else "differs" if index <= first else "fits"

    return ask


@settings(deadline=None)
@given(st.integers(2, 3000).flatmap(lambda count: st.tuples(st.just(count), st.integers(0, count - 2))))
def test_the_first_one_is_found_in_few_tries(sizes):
    count, first = sizes
    found = search(count, asking(first))
    assert (found.first, found.between) == (first, ())
    assert found.tried <= 2 * math.ceil(math.log2(count)) + 2
    given_good = search(count, asking(first), count - 1)
    assert given_good.first == first
    assert given_good.tried <= math.ceil(math.log2(count)) + 2


@settings(deadline=None)
@given(st.integers(0, 58), st.sets(st.integers(1, 58)))
def test_skipped_ones_are_stepped_over(first, skipped):
    found = search(60, asking(first, skipped), 59)
    told = {found.first, *found.between}
    assert first in told
    assert told - {found.first} <= skipped
    assert found.first == max(index for index in range(first + 1) if index not in skipped)
    assert found.skipped <= len(skipped)


def test_it_fits_everywhere():
    assert search(9, lambda index: "fits") == Found(None, (), 1, 0, fits=True)


def test_it_fits_nowhere():
    found = search(9, lambda index: "differs")
    assert (found.first, found.fits) == (None, False)
    assert found.tried == 5  # 0, 1, 2, 4 and the root


def test_what_was_said_to_be_good_is_not():
    assert search(9, asking(8), 4).first is None


@pytest.mark.parametrize("count", [1, 2])
def test_short_histories(count):
    assert search(count, asking(0)).first == (None if count == 1 else 0)


def test_first_parents_alone(tmp_path):
    repository = Repository(tmp_path / "repo")
    one = repository.commit(a="1")
    repository.git("checkout", "-q", "-b", "side")
    repository.commit(b="2")
    repository.git("checkout", "-q", "main")
    two = repository.commit(a="3")
    repository.git("merge", "-q", "--no-ff", "-m", "merge", "side")
    head = repository.git("rev-parse", "HEAD")
    assert line_of(resolve(Reference("HEAD"), repository.folder)) == [head, two, one]
