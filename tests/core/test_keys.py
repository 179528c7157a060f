from __future__ import annotations

import re
from itertools import product

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pace import within

from pytest_ckptcompat.core.escape import escape, printable
from pytest_ckptcompat.core.key_groups import group
from pytest_ckptcompat.core.keys import matches, natural, nearest, select


def expand(pattern: str) -> list[str]:
    """What a reader of the report takes a pattern for, written without a look at how patterns are made."""
    alternatives: list[list[str]] = []
    for token in re.findall(r"\{\{|\}\}|\{[0-9,-]+\}|[^{}]|[{}]", pattern):
        if token in ("{{", "}}"):
            alternatives.append([token[0]])
        elif len(token) == 1:
            assert token not in "{}", f"a lone brace in {pattern!r}"
            alternatives.append([token])
        else:
            values: list[str] = []
            for run in token[1:-1].split(","):
                first, _, last = run.partition("-")
                values.extend(map(str, range(int(first), int(last or first) + 1)))
            alternatives.append(values)
    return ["".join(choice) for choice in product(*alternatives)]


names = st.sampled_from(
    ["layers", "attn", "w", "fc1", "fc2", "fc3", "fc10", "", "{0-1}", "{", "}}", "a-1", "007", "½"]
)
indices = st.integers(0, 12).map(str)
likely_keys = st.lists(st.one_of(names, indices, indices), min_size=1, max_size=6).map(".".join)
odd_keys = st.text(alphabet="{}0129,-.a\n\\", max_size=12)


@given(st.lists(st.one_of(likely_keys, odd_keys), max_size=60))
@example([f"{i}.{j}" for i in range(3) for j in range(3) if (i, j) != (1, 1)])
@example(["{0-1}", "0", "1", "{{0-1}}"])
@example(["1" * 5000, "1" * 4999 + "2"])
def test_the_patterns_of_the_groups_are_exactly_the_keys(keys: list[str]) -> None:
    groups = group(keys)
    assert sorted(key for found in groups for key in found.keys) == sorted(set(keys))
    for found in groups:
        assert sorted(expand(found.pattern)) == sorted(found.keys)
        assert list(found.keys) == sorted(found.keys, key=natural)


def test_layers_with_a_hole_are_one_group() -> None:
    keys = [f"layers.{i}.attn.q_proj.weight" for i in range(32) if i != 17]
    (only,) = group(keys)
    assert only.pattern == "layers.{0-16,18-31}.attn.q_proj.weight"
    assert only.keys == tuple(keys)


@pytest.mark.parametrize(
    ("keys", "patterns"),
    [
        (["out2.weight"], ["out2.weight"]),
        (["0.weight", "1.weight"], ["{0,1}.weight"]),
        (["h.0", "h.1", "h.2"], ["h.{0-2}"]),
        (["b.0.w", "b.1.w", "b.0.b", "b.1.b"], ["b.{0,1}.w", "b.{0,1}.b"]),
        ([f"e.{i}.f.{j}.w" for i in range(3) for j in (0, 1)], ["e.{0-2}.f.{0,1}.w"]),
        (["s.0.w", "s.3.w", "s.6.w"], ["s.{0,3,6}.w"]),
        (["x.0", "a", "x.1"], ["x.{0,1}", "a"]),
    ],
)
def test_groups_as_they_are_shown(keys: list[str], patterns: list[str]) -> None:
    assert [found.pattern for found in group(keys)] == patterns


def test_blocks_of_unequal_depth_claim_no_key_that_is_not_there() -> None:
    keys = [f"stages.{s}.{b}.w" for s, depth in enumerate((2, 2, 4)) for b in range(depth)]
    assert [found.pattern for found in group(keys)] == ["stages.{0-2}.{0,1}.w", "stages.2.{2,3}.w"]


def test_numbers_inside_names_are_indices_from_three_on() -> None:
    assert [found.pattern for found in group(["fc1.w", "fc2.w"])] == ["fc1.w", "fc2.w"]
    assert [found.pattern for found in group([f"layer{i}.w" for i in range(1, 17)])] == ["layer{1-16}.w"]


def test_a_number_that_is_no_index_stays_text() -> None:
    assert [found.pattern for found in group(["a.00", "a.01", "a.2"])] == ["a.00", "a.01", "a.2"]


def test_repeated_keys_count_once() -> None:
    (only,) = group(["a.0", "a.0", "a.1"])
    assert only.keys == ("a.0", "a.1")


@pytest.mark.parametrize(
    "keys",
    [
        [f"layers.{i}.experts.{j}.w{k}.weight" for i in range(50) for j in range(1000) for k in (1, 2)],
        [f"k{i * i}.{i % 7}.{i % 11}.{i % 13}.{i % 17}" for i in range(100_000)],
        [".".join(["1"] * 400 + [str(i)]) for i in range(10_000)],
    ],
    ids=["regular", "irregular", "deep"],
)
def test_a_hundred_thousand_keys_group_at_once(keys: list[str]) -> None:
    with within(5):
        groups = group(keys)
    assert sum(len(found.keys) for found in groups) == len(keys)


def test_globs_cross_dots_and_mind_case() -> None:
    assert matches("layers.*", "layers.3.fc.weight")
    assert matches("layers.*", "layers.\n")
    assert matches("layers.?.w", "layers.3.w")
    assert not matches("Layers.*", "layers.3.w")
    assert not matches("layers", "layers.3")


def test_a_key_with_glob_characters_is_named_by_itself() -> None:
    assert matches("blocks[0].weight", "blocks[0].weight")
    assert matches("a[", "a[")
    assert select("blocks[0].weight", ["blocks0.weight", "blocks[0].weight"]) == ["blocks[0].weight"]
    assert select("*", ["b", "*"]) == ["*"]


def test_select_keeps_the_order_of_the_keys() -> None:
    assert select("b*", ["b2", "a", "b1"]) == ["b2", "b1"]
    assert select("out2.*", {"out2.bias": 0, "out2.weight": 1}) == ["out2.bias", "out2.weight"]
    assert select("nothing", ["something"]) == []


@pytest.mark.parametrize(
    ("name", "first"),
    [
        ("out3.weight", "out2.weight"),
        ("out3.*", "out2.bias"),
        ("*2.wieght", "out2.weight"),
        ("layers.12.attn.qproj.weight", "layers.12.attn.q_proj.weight"),
    ],
)
def test_the_nearest_key_is_the_one_that_was_meant(name: str, first: str) -> None:
    layers = [f"layers.{i}.attn.{p}_proj.weight" for i in range(40) for p in "qkvo"]
    assert nearest(name, ["conv.bias", "out2.bias", "out2.weight", *layers])[0] == first


def test_nothing_is_near_to_nonsense() -> None:
    assert nearest("zzz", ["out2.weight", "conv.bias"]) == []
    assert nearest("x", []) == []


def test_nearest_stays_quick_on_many_and_on_long_keys() -> None:
    keys = [f"layers.{i}.mlp.experts.{j}.w.weight" for i in range(100) for j in range(500)] + [
        "x" * 1_000_000
    ]
    with within(2):
        assert nearest("layers.7.mlp.expert.9.w.weight", keys)[0] == "layers.7.mlp.experts.9.w.weight"


def test_natural_order() -> None:
    keys = ["l.10", "l.9", "l.010", "l", "k.2", "l.9a"]
    assert sorted(keys, key=natural) == ["k.2", "l", "l.9", "l.9a", "l.010", "l.10"]


@given(st.lists(st.text(alphabet="01a.²٣", max_size=8)))
def test_natural_orders_anything(keys: list[str]) -> None:
    assert sorted(sorted(keys, reverse=True), key=natural) == sorted(sorted(keys), key=natural)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("out2.weight", "out2.weight"),
        ("gewöhnlich", "gewöhnlich"),
        ("a\nb", r"a\nb"),
        (r"a\nb", r"a\\nb"),
        ("\x1b[31mred", r"\x1b[31mred"),
        ("\r", r"\r"),
        ("abc\u202edef", r"abc\u202edef"),
        ("\u200b\ufeff", r"\u200b\ufeff"),
        ("\ud800", r"\ud800"),
        ("e\u0301", r"e\u0301"),
        ("::error::boom", r"\x3a:error::boom"),
        ("  ::error::boom", r"  \x3a:error::boom"),
        ("std::vector", "std::vector"),
        ("##[error]boom", r"\x23#[error]boom"),
        ("x ##vso[task]", r"x \x23#vso[task]"),
        ("#1", "#1"),
    ],
)
def test_escaped_text(text: str, shown: str) -> None:
    assert escape(text) == shown


@given(st.text(), st.text())
def test_escaped_texts_are_one_line_and_differ_where_the_texts_do(one: str, other: str) -> None:
    shown = escape(one, limit=None)
    assert shown.isprintable()
    assert "##" not in shown
    assert not shown.lstrip().startswith("::")
    assert (shown == escape(other, limit=None)) == (one == other)


@given(st.text(alphabet="ab:#\n\\\U0010ffff", max_size=600), st.integers(40, 300))
def test_a_limit_is_kept_and_the_cut_is_visible(text: str, limit: int) -> None:
    shown = escape(text, limit)
    assert len(shown) <= limit
    if shown != escape(text, limit=None):
        (left_out,) = re.findall(r"…\(\+(\d+) characters\)…", shown)
        assert 0 < int(left_out) < len(text)


def test_a_megabyte_is_cut_and_both_ends_are_kept() -> None:
    shown = escape("encoder." + "x" * 1_000_000 + ".weight")
    assert len(shown) <= 240
    assert shown.startswith("encoder.xx")
    assert shown.endswith("xx.weight")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("onet.py:12: no  such\n key", "onet.py:12: no such key"),
        (r"C:\net.pth \x1b", r"C:\net.pth \x1b"),
        ("\x1b[31m\u202e", r"\x1b[31m\u202e"),
        (" ::error::", r"\x3a:error::"),
        ("see ##[group]", r"see \x23#[group]"),
    ],
)
def test_text_of_our_own_is_made_printable_once_more(text: str, shown: str) -> None:
    assert printable(text) == shown
    assert printable(shown) == shown
