from __future__ import annotations

import ast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_ckptcompat.report.advice_text import pasted


def test_what_fits_stays_on_one_line() -> None:
    assert pasted('Recipe(tile("out2.*", dim=0))', 76) == ['Recipe(tile("out2.*", dim=0))']


def test_calls_are_broken_after_their_commas() -> None:
    source = 'Recipe(strip_prefix("module."), append("head.*", dim=0, init="normal", std=-0.5))'
    assert pasted(source, 60) == [
        "Recipe(",
        '    strip_prefix("module."),',
        '    append("head.*", dim=0, init="normal", std=-0.5),',
        ")",
    ]


def test_arguments_and_strings_are_broken_where_they_must() -> None:
    assert pasted('Recipe(rename("a.bb.ccc.dddd.eeeee", to=["x", ("y",)]))', 24) == [
        "Recipe(",
        "    rename(",
        '        "a.bb.ccc.dddd"',
        '        ".eeeee",',
        "        to=[",
        '            "x",',
        '            ("y",),',
        "        ],",
        "    ),",
        ")",
    ]


def test_numbers_fill_their_lines() -> None:
    lines = pasted(f'Recipe(select("head.*", dim=0, index={list(range(40))}))', 60)
    assert lines[5] == "            0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13,"
    assert len(lines) == 12


def test_a_number_is_never_broken() -> None:
    for width in range(10, 60):
        lines = pasted("Recipe(op('', to=[[[0, 1.0000000000000002e+16, 1e-05]]]))", width)
        assert "1.0000000000000002e+16," in " ".join(lines).split()
        assert "1e-05" in "".join(lines)


def test_a_source_of_several_lines_is_laid_out_anew() -> None:
    assert pasted("Recipe(\n  scale('a',\n    -\n    2),\n)", 60) == ['Recipe(scale("a", -2))']


@pytest.mark.parametrize("source", ["custom(<function f at 0x7f>)", "((", "\x00"])
def test_what_is_no_python_comes_back(source: str) -> None:
    assert pasted(source, 10) == [source]


keys = st.one_of(st.text(max_size=80), st.text(alphabet="ab.*", max_size=200))
values = st.recursive(
    st.one_of(
        keys, st.integers(), st.booleans(), st.none(), st.floats(allow_nan=False, allow_infinity=False)
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.lists(inner, max_size=4).map(tuple)),
    max_leaves=6,
)


@given(st.lists(st.tuples(keys, values), min_size=1, max_size=4), st.integers(40, 120))
def test_the_lines_mean_the_same_and_fit(operators: list[tuple[str, object]], width: int) -> None:
    source = f"Recipe({', '.join(f'op({key!r}, to={value!r})' for key, value in operators)})"
    lines = pasted(source, width)
    assert ast.dump(ast.parse("\n".join(lines), mode="eval")) == ast.dump(ast.parse(source, mode="eval"))
    assert all(line.isprintable() for line in lines)
    assert "##" not in "\n".join(lines)


@given(st.lists(keys, min_size=1, max_size=4), st.integers(40, 120))
def test_lines_of_strings_fit_the_width(texts: list[str], width: int) -> None:
    source = f"Recipe({', '.join(f'rename({text!r}, to={text!r})' for text in texts)})"
    assert all(len(line) <= width for line in pasted(source, width))
