from __future__ import annotations

import html
import re
import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from reports import ONET

from pytest_ckptcompat.core.escape import escape, printable
from pytest_ckptcompat.core.findings import Finding, Promise, Stage, finding
from pytest_ckptcompat.report.advice import RecipeText
from pytest_ckptcompat.report.markdown import render, summary
from pytest_ckptcompat.report.report import Report


def cells(line: str) -> list[str]:
    """A row of a table, taken apart as GitHub does: a pipe behind a backslash ends no cell."""
    assert line.startswith("| ")
    assert line.endswith(" |")
    parts = re.findall(r"((?:\\.|[^|\\])*)\|", line[1:])
    return [part.replace(r"\|", "|").strip(" ") for part in parts]


def shown(cell: str) -> str:
    """What a reader sees of a cell that is one code span, or plain text with entities."""
    if span := re.fullmatch(r"(`+)(.*?[^`]|[^`])\1(?!`)", cell, re.DOTALL):
        inner = span[2]
        return inner[1:-1] if inner[0] == inner[-1] == " " and inner.strip() else inner
    assert not re.search(r"[<`*\[]", cell.replace("<wbr>", "")), cell
    return html.unescape(cell.replace("<wbr>", ""))


def test_the_verdict_is_the_heading_and_the_table_follows() -> None:
    lines = render(ONET, "tests/test_onet.py::test_old_weights[net.pth]").split("\n")
    assert lines[0] == f"### ❌ {ONET.verdict}"
    assert "`tests/test_onet.py::test_old_weights[net.pth]`" in lines
    table = lines.index("| rule | key | checkpoint | model |")
    assert [shown(cell) for cell in cells(lines[table + 2])] == [
        "shape-mismatch",
        "out2.weight",
        "(4, 256) f32",
        "(14, 256) f32",
    ]
    assert lines[table - 1] == ""  # without it, GitHub shows no table


def test_the_suggestion_can_be_copied_in_both_forms() -> None:
    text = render(ONET)
    (python,) = re.findall(r"^```python\n(.*?)\n```$", text, re.MULTILINE | re.DOTALL)
    (toml,) = re.findall(r"^```toml\n(.*?)\n```$", text, re.MULTILINE | re.DOTALL)
    assert python == f"from pytest_ckptcompat import Recipe, tile\n\n{ONET.suggestion!r}"
    assert tomllib.loads(toml) == tomllib.loads(ONET.suggestion.to_toml())


def test_stages_and_promises_are_there_but_folded() -> None:
    text = render(ONET)
    assert "| open | passed | torch zip, 63 tensors |" in text
    assert "| function kept | unchecked | no source_model declared |" in text
    assert text.count("<details>") == text.count("</details>") == 3
    assert all(before == "\n\n" for before in re.findall(r"</summary>(\n*)", text))


def test_a_report_without_faults_is_short() -> None:
    text = render(Report("net.pth", "onet.Net", matched=63, total=63))
    assert text == "### ✅ net.pth fits onet.Net: 63 of 63 keys match\n"


def test_warnings_and_waivers_say_that_they_are() -> None:
    text = render(
        Report(
            "c",
            "m",
            findings=[
                Finding("unexpected-key", "off", "aux.w", "(1,) f32", "", "waived: dropped in v2"),
                finding("dtype-mismatch", "a.w", "(1,) f32", "(1,) f16"),
                finding("missing-key", "b.w", "", "(1,) f32"),
            ],
        )
    )
    rows = [cells(line) for line in text.split("\n") if "`" in line]
    assert [(row[0], row[4]) for row in rows] == [
        ("missing-key", ""),
        ("dtype-mismatch", "warning"),
        ("unexpected-key", "waived: dropped in v2"),
    ]


def test_many_rows_are_folded_and_the_rest_is_counted() -> None:
    found = [finding("missing-key", f"{'x' * 900}{i}a", "", f"({i},)") for i in range(3000)]
    text = render(Report("c", "m", findings=found))
    first, folded = text.split("<details>")
    assert first.count("| missing-key |") == 20
    count = folded.count("| missing-key |")
    assert 100 < count < 3000
    assert f"{count:,} of 3,000 findings" in folded
    assert len(text.encode()) < 1_000_000


def test_a_check_that_fits_tells_what_was_kept_and_what_was_not_checked() -> None:
    promises = [Promise("a", "kept"), Promise("b", "kept"), Promise("c", "unchecked", "needs values")]
    (line,) = [
        line
        for line in summary([("t", Report("n", "m", matched=1, total=1, promises=promises))], "").split("\n")
        if line.startswith("| `t`")
    ]
    assert cells(line)[1] == (
        "n fits m: 1 of 1 keys match; promises kept: 2; promises not checked (needs values): 1"
    )


def test_a_run_is_shown_within_what_github_takes() -> None:
    found = [finding("missing-key", f"{'x' * 900}{i}a", "", f"({i},)") for i in range(300)]
    checks = [(f"test_{i}", Report("c", "m", findings=found)) for i in range(20)]
    checks += [(f"fit|{i}", Report("net.pth", "onet.Net", matched=1, total=1)) for i in range(20_000)]
    text = summary(checks, "20000 of 20020 checks passed")
    assert text.startswith("## Checkpoints: 20000 of 20020 checks passed\n")
    assert len(text.encode()) < 1_000_000
    whole = text.count("### ❌")
    assert 0 < whole < 20
    assert f"{20 - whole} more checks failed" in text
    fit = [line for line in text.split("\n") if line.startswith("| `fit")]
    assert cells(fit[0]) == ["`fit|0`", "net.pth fits onet.Net: 1 of 1 keys match"]
    assert f"and {20_000 - len(fit)} more" in text


def test_a_suggestion_that_is_too_long_is_only_mentioned() -> None:
    long = RecipeText(f"Recipe({', '.join(f'drop({str(i)!r})' for i in range(30_000))})", "")
    text = render(Report("c", "m", suggestion=long))
    assert "it is too long to show here" in text
    assert len(text) < 10_000


HOSTILE = [
    "<script>alert(1)</script>",
    "</details>",
    "a|b",
    r"a\|b",
    "a\\",
    "`",
    "``x`",
    "a\n| forged | row |",
    "::error::boom",
    "\x1b[31m",
    "\u202e",
    "@everyone",
    "https://evil.example",
    "![x](y)",
    " ",
    "**bold** _it_ ~~no~~ $x$ <!--",
]


@pytest.mark.parametrize("key", HOSTILE)
def test_hostile_text_is_only_text(key: str) -> None:
    found = [finding("missing-key", key, key, key, key), finding("missing-key", "next", "", "(1,)")]
    text = render(Report("c", "m", findings=found, stages=[Stage(key, "failed", key)]), key)
    rows = [cells(line) for line in text.split("\n") if line.startswith("| missing-key")]
    assert len(rows) == 2
    assert [shown(cell) for cell in rows[0][1:4]] == [escape(key)] * 3
    assert shown(rows[0][4]) == printable(key)
    markup = re.sub(r"`[^`\n]*`", "", text)
    assert "<script" not in markup
    assert markup.count("</details>") == markup.count("<details>") == 1
    assert text.replace("\n", "").isprintable()
    assert not re.search(r"https://|@[a-z]", markup)


@given(st.text(max_size=40), st.text(alphabet="`|\\ a<*", max_size=12))
def test_any_key_is_shown_as_it_is(one: str, other: str) -> None:
    found = [finding("missing-key", one or "x", other, one, other)]
    (row,) = [
        cells(line) for line in render(Report("c", "m", findings=found)).split("\n") if "missing-key" in line
    ][-1:]
    plain = (one or "x").replace("{", "{{").replace("}", "}}")
    assert shown(row[1]) == escape(plain)
    assert shown(row[2]) == escape(other) if other else row[2] == ""
