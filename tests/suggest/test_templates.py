from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pace import within

from pytest_ckptcompat.core.keys import select
from pytest_ckptcompat.suggest.templates import Globs

parts = st.sampled_from(["a", "b", "layers", "fc", "weight", "bias", "0", "1", "2", "10", "x1", "c[0]", "*"])
keys = st.lists(st.lists(parts, min_size=1, max_size=5).map(".".join), min_size=1, max_size=30, unique=True)


@given(keys, st.data())
def test_the_patterns_match_the_chosen_keys_and_no_others(keys, data):
    chosen = data.draw(st.lists(st.sampled_from(keys), min_size=1, unique=True))
    matched = [key for pattern in Globs(keys).cover(chosen) for key in select(pattern, keys)]
    assert set(matched) == set(chosen)


@pytest.mark.parametrize(
    ("chosen", "others", "patterns"),
    [
        (["out2.weight", "out2.bias"], ["out1.weight", "conv.weight"], ["out2.*"]),
        (["bn.weight", "bn.bias"], ["bn.num_batches_tracked"], ["bn.weight", "bn.bias"]),
        (
            [f"h.{i}.mlp.c_fc.weight" for i in range(9)],
            ["h.0.mlp.c_fc.bias", "wte.weight"],
            ["h.*.mlp.c_fc.weight"],
        ),
        (["a.weight"], ["b.weight"], ["a.weight"]),
        (["a[0].w", "a[0].b"], ["a0.w"], ["a[0].w", "a[0].b"]),
        (["h.0.a", "h.1.a"], ["h.0.b.a"], ["h.0.a", "h.1.a"]),
        (["q.0.k.w", "q.0.e.w", "q.1.k.w"], ["q.1.e.w"], ["q.0.*.w", "q.1.k.w"]),  # not "q.*.k.w" by chance
    ],
)
def test_siblings_are_one_glob_only_where_it_matches_nothing_else(chosen, others, patterns):
    assert Globs([*chosen, *others]).cover(chosen) == patterns


def test_thousands_of_patterns_are_found_in_no_time():
    every = [f"x{i}.{leaf}" for i in range(10_000) for leaf in ("weight", "bias")]
    with within(2):
        assert len(Globs(every).cover(key for key in every if int(key.split(".")[0][1:]) % 2)) == 5_000
