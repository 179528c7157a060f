from __future__ import annotations

import pytest

from pytest_ckptcompat import Recipe
from pytest_ckptcompat.cli import main
from pytest_ckptcompat.cli.operators import example_of
from pytest_ckptcompat.recipes.operators import OPERATORS


def test_all_are_listed_with_a_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["operators"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[2:] if line[0] != " "] == sorted(OPERATORS)
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize("name", sorted(OPERATORS))
def test_one_is_explained_with_an_example_that_can_be_copied(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["operators", name]) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.partition("In a recipe file:")[0].splitlines())) <= 80
    assert out.startswith(f"{name}(")
    assert "    Attributes:" in out
    assert "``" not in out
    toml = out[out.index("    [[recipe]]") :]
    assert Recipe.from_toml(toml) == Recipe(example_of(OPERATORS[name]))  # type: ignore[arg-type]


@pytest.mark.parametrize(("name", "text"), [("tyle", "did you mean tile?"), ("\x1b[1m", "lists them")])
def test_an_unknown_one_is_an_error(name: str, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["operators", name]) == 2
    error = capsys.readouterr().err
    assert "is not an operator" in error
    assert text in error
    assert "\x1b" not in error
