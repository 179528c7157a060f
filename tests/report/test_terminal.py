from __future__ import annotations

import random
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pace import within

from pytest_ckptcompat.core.findings import Finding, Promise, Stage, finding
from pytest_ckptcompat.core.rules import RULES
from pytest_ckptcompat.report.report import Report
from pytest_ckptcompat.report.terminal import render

TIMES = "\N{MULTIPLICATION SIGN}"


def report(*findings: Finding, **fields: object) -> Report:
    return Report("net.pth", "onet.Net", findings=list(findings), **fields)  # type: ignore[arg-type]


def body(text: str) -> list[str]:
    """Everything but the verdict, which alone may be wider than the terminal."""
    return text.split("\n")[1:]


def test_rows_start_with_the_rule_and_show_checkpoint_before_model() -> None:
    text = render(report(finding("shape-mismatch", "out2.weight", "(4, 256) f32", "(14, 256) f32")))
    (row,) = re.findall(r"^shape-mismatch .*$", text, re.MULTILINE)
    assert re.split(r" {2,}", row) == ["shape-mismatch", "out2.weight", "(4, 256) f32", "(14, 256) f32"]


def test_a_group_says_how_many_keys_it_has() -> None:
    found = [finding("missing-key", f"layers.{i}.w", "", "(4,) f32") for i in range(32) if i != 17]
    assert re.search(
        rf"^missing-key +layers\.{{0-16,18-31}}\.w {TIMES}31 +\(4,\) f32$",
        render(report(*found)),
        re.MULTILINE,
    )


def test_a_message_stands_below_its_row_once_for_rows_that_say_the_same() -> None:
    said = "recipe new rows are 16 times larger than the old ones"
    text = render(
        report(finding("recipe-scale", "a.w", message=said), finding("recipe-scale", "b.w", message=said))
    )
    below = body(text)[body(text).index("warnings:") :]
    assert [line.strip() for line in below[3:6]] == ["recipe-scale  a.w", "recipe-scale  b.w", said]


def test_a_finding_without_a_key_is_a_sentence() -> None:
    error = finding("forward-error", message="out2 (Linear): shapes differ (onet.py:44)")
    warning = finding("unsafe-pickle", message="it names os.system")
    text = render(report(error, warning))
    assert "unsafe-pickle: it names os.system" in body(text)
    assert "checkpoint  " not in text


def test_what_the_verdict_tells_whole_is_not_told_again() -> None:
    first = finding("forward-error", message="out2 (Linear): shapes differ (onet.py:44)")
    second = finding("forward-non-finite", message="the forward pass gave NaN")
    text = render(report(first, second))
    assert text.count("shapes differ") == 1
    assert "forward-non-finite: the forward pass gave NaN" in body(text)


def test_a_prefix_alone_is_one_row() -> None:
    keys = [f"layers.{place}.{name}.weight" for place in range(20) for name in "qkv"]
    found = [finding("unexpected-key", f"module.{key}", f"({len(key)},) f32") for key in keys]
    found += [finding("missing-key", key, "", f"({len(key)},) f32") for key in keys]
    found += [finding("missing-key", "head.weight", "", "(4,) f32")]
    rows = [line for line in body(render(report(*found))) if re.match("|".join(RULES), line)]
    assert [re.split(r" {2,}", row) for row in rows] == [
        ["unexpected-key", f"module.* {TIMES}60", "prefix module.", "no such prefix"],
        ["missing-key", "head.weight", "(4,) f32"],
    ]
    turned = [
        finding(
            "missing-key" if each.rule == "unexpected-key" else "unexpected-key",
            each.key,
            each.model,
            each.checkpoint,
        )
        for each in found
    ]
    rows = [line for line in body(render(report(*turned))) if re.match("|".join(RULES), line)]
    assert re.split(r" {2,}", rows[0]) == [
        "missing-key", f"module.* {TIMES}60", "no such prefix", "prefix module."
    ]  # fmt: skip


def test_keys_of_other_shapes_differ_in_more_than_a_prefix() -> None:
    found = [finding("unexpected-key", f"module.{name}", "(3,) f32") for name in "abc"]
    found += [finding("missing-key", name, "", "(4,) f32") for name in "abc"]
    assert "prefix" not in render(report(*found))


def test_stages_that_were_skipped_for_one_reason_are_one_line() -> None:
    stages = [
        Stage("open", "passed", "torch-zip"),
        Stage("recipe", "skipped", "none declared"),
        Stage("compare", "failed", "2 of 4 keys match"),
        Stage("load", "skipped", "the checkpoint does not fit as it is"),
        Stage("forward", "skipped", "the checkpoint does not fit as it is"),
        Stage("optimizer", "skipped", "none declared"),
    ]
    told = [re.split(r" {2,}", line) for line in body(render(report(stages=stages)))]
    assert told[-4:] == [
        ["open", "passed", "torch-zip"],
        ["compare", "failed", "2 of 4 keys match"],
        ["recipe, optimizer", "skipped", "none declared"],
        ["load, forward", "skipped", "the checkpoint does not fit as it is"],
    ]


@pytest.mark.parametrize("width", [60, 80, 200])
def test_a_shortened_key_stands_whole_below_its_row_where_nobody_looks_at_a_terminal(width: int) -> None:
    keys = [
        f"{'transformer_blocks.attention' * 8}.{letter}.{letter}{place}"
        for place, letter in enumerate("abcdefgh")
    ]
    text = render(report(*(finding("missing-key", key, "", "(4,) f32") for key in keys)), width, whole=True)
    lines = body(text)
    assert all(f"    {key}" in lines for key in keys)
    assert all(len(line) <= width for line in lines if line.strip() not in keys)


def test_quiet_is_no_longer_than_the_default() -> None:
    found = [finding("missing-key", f"{place}{'x' * 70}{place}a", "", f"({place},)") for place in range(2000)]
    lengths = [len(body(render(report(*found), verbosity=verbosity))) for verbosity in (-2, -1, 0)]
    assert lengths[0] <= lengths[1] <= lengths[2] < 60


def test_waived_findings_are_listed_apart_with_the_reason() -> None:
    waived = Finding("unexpected-key", "off", "aux.w", "(1,) f32", "", "waived: dropped in v2")
    lines = body(render(report(waived)))
    assert lines[lines.index("waived:") + 3].split() == ["unexpected-key", "aux.w", "(1,)", "f32"]
    assert lines[lines.index("waived:") + 4] == "    dropped in v2"


def test_promises_and_stages_are_listed_with_the_reason() -> None:
    text = render(
        report(
            promises=[Promise("function kept", "unchecked", "no source_model declared")],
            stages=[Stage("open", "passed", "torch zip"), Stage("forward-cuda", "rehearsed", "no GPU here")],
        )
    )
    assert re.search(r"^function kept +unchecked +no source_model declared$", text, re.MULTILINE)
    assert re.search(r"^forward-cuda +rehearsed +no GPU here$", text, re.MULTILINE)


@pytest.mark.parametrize("width", [20, 60, 80, 120])
def test_a_long_name_of_a_promise_leaves_room_for_its_detail(width: int) -> None:
    name = (
        'insert_block("layers.0", at=1, zero=["self_attn.o_proj.weight", "mlp.down_proj.weight"]): the copy'
    )
    detail = "layers.1.mlp.down_proj.weight: max |Δ| 0.61"
    text = render(report(promises=[Promise(name, "broken", detail)]), width)
    assert all(len(line) <= max(width, 61) for line in body(text))
    assert sum(" broken " in line for line in text.splitlines()) == 1
    written = re.sub(r"\s", "", text)
    assert "insert_block(" in written
    assert "0.61" in written


def test_a_long_detail_is_wrapped_under_itself() -> None:
    text = render(report(stages=[Stage("open", "failed", "word " * 40)]), verbosity=1)
    start = text.index("word")
    column = start - text.rindex("\n", 0, start) - 1
    lines = [line for line in body(text) if "word" in line]
    assert len(lines) > 2
    assert all(line.index("word") == column and len(line) <= 80 for line in lines)


# -- long reports -------------------------------------------------------------------------------------------

rng = random.Random(0)
HUGE = {
    "layers": [
        finding("missing-key", f"layers.{i}.experts.{j}.w.weight", "", "(1,) f32")
        for i in range(100)
        for j in range(1000)
    ],
    "every shape another": [
        finding(
            "shape-mismatch", f"k{rng.randrange(10**9)}.{'x' * (i % 90)}", f"({i},) f32", f"({i + 1},) f32"
        )
        for i in range(100_000)
    ],
    "messages": [finding("recipe-scale", f"k{i}.w", "", "", f"{i} " * 99) for i in range(20_000)],
    "sentences": [finding("load-error", message=f"{i} " * 99) for i in range(20_000)],
    "everything": [
        Finding(rule, severity, f"a{i}b.{rule}", f"({i},)", "", f"waived: {i}" if severity == "off" else "")
        for i in range(500)
        for rule in RULES
        for severity in ("error", "warn", "off")
    ],
}
STAGES = [Stage(f"stage{i}", "skipped", "the checkpoint does not fit") for i in range(8)]
PROMISES = [Promise(f"promise {i}", "kept", "61 keys are bit-equal") for i in range(8)]


@pytest.mark.parametrize("found", HUGE.values(), ids=list(HUGE))
def test_a_huge_report_is_short_says_what_it_cut_and_is_made_at_once(found: list[Finding]) -> None:
    whole = report(*found, stages=STAGES, promises=PROMISES)
    with within(2):
        lines = body(render(whole))
    assert len(lines) + 1 < 60
    assert all(len(line) <= 80 for line in lines)
    shown = sum(
        int(re.search(rf"{TIMES}([\d,]+)", line)[1].replace(",", "")) if TIMES in line else 1  # type: ignore[index]
        for line in lines
        if re.match("|".join(RULES), line)
    )
    cut = sum(
        int(count.replace(",", ""))
        for count in re.findall(r"^\.\.\. ([\d,]+) more findings", "\n".join(lines), re.MULTILINE)
    )
    assert shown + cut == len(whole.untold)
    assert not cut or "--ckpt-report json:PATH" in "\n".join(lines)


def test_everything_is_shown_at_the_highest_verbosity() -> None:
    found = [finding("missing-key", f"{'abc'[i % 3] * 90}{i}.{i}.{i}end", "", f"({i},)") for i in range(400)]
    text = render(report(*found), verbosity=2)
    joined = text.replace("\n    ", "")
    assert all(each.key in joined for each in found)
    assert "more findings" not in text
    assert all(len(line) <= 80 for line in body(text))


def test_errors_get_the_room_that_warnings_leave() -> None:
    errors = [finding("missing-key", f"{chr(97 + i)}.w", "", f"({i},)") for i in range(20)]
    lines = body(
        render(report(*errors, finding("dtype-mismatch", "z", "(1,) f32", "(1,) f16"), stages=STAGES))
    )
    assert sum(line.startswith("missing-key") for line in lines) == 20
    assert "more findings" not in "\n".join(lines)


def test_warnings_keep_some_room_beside_many_errors() -> None:
    errors = [finding("missing-key", f"{i}a.w", "", f"({i},)") for i in range(500)]
    warnings = [finding("dtype-mismatch", f"{i}a.w", "(1,) f32", f"({i},) f16") for i in range(500)]
    lines = body(render(report(*errors, *warnings, stages=STAGES)))
    assert sum(line.startswith("missing-key") for line in lines) >= 16
    assert sum(line.startswith("dtype-mismatch") for line in lines) >= 2


# -- hostile text -------------------------------------------------------------------------------------------

HOSTILE = [
    "\x1b[2J\x1b[31mred",
    "a\nmissing-key  forged",
    "\r::error::boom",
    "::error::boom",
    "##[error]boom",
    "##vso[task.complete]",
    "\u202egnp.exe",
    "日本語.weight",
    "e\u0301\u0301\u0301",
    " lead and trail ",
    f"a…b {TIMES}31",
    "x" * 100_000,
    "\ud800",
    "{0-3}",
]


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("verbosity", [0, 1, 2])
def test_hostile_keys_stay_in_their_row(width: int, verbosity: int) -> None:
    found = [finding("missing-key", key, "", "(1,)") for key in HOSTILE]
    text = render(report(*found, stages=STAGES), width, verbosity)
    lines = text.split("\n")
    assert text.replace("\n", "").isprintable()
    assert len([line for line in lines if line.startswith("missing-key")]) == len(HOSTILE)
    assert not [line for line in lines if line.lstrip().startswith("::") or "##" in line]
    assert all(len(line) <= width for line in lines[1:])
    # every row ends in the model's side at one column: nothing was wider than it was taken for
    (column,) = {line.index("(1,)") for line in lines if line.startswith("missing-key")}
    assert all(ord(character) < 0x300 or character == "…" for line in lines for character in line[:column])


@given(st.text(alphabet="a: #", min_size=1, max_size=400), st.sampled_from([0, 1, 2]))
def test_no_line_is_taken_for_a_command_wherever_it_is_wrapped(text: str, verbosity: int) -> None:
    found = [finding("forward-error", message=text), finding("missing-key", f"{text}b", text, text, text)]
    whole = report(*found, stages=[Stage("open", "failed", text)], promises=[Promise(text, "kept", text)])
    lines = body(render(whole, 60, verbosity))
    assert not [line for line in lines if line.lstrip().startswith("::") or "##" in line]
    assert all(len(line) <= 60 for line in lines)


def test_text_that_nobody_escaped_breaks_nothing_either() -> None:
    nasty = "one\n::error::two\x1b[31m\u202e"
    text = render(report(finding("forward-error", message=nasty), stages=[Stage("open", "failed", nasty)]))
    assert text.replace("\n", "").isprintable()
    assert not [line for line in text.split("\n") if line.lstrip().startswith("::")]


def test_a_message_in_wide_characters_fits_too() -> None:
    lines = body(render(report(finding("forward-error", message="形状が一致しません" * 30)), verbosity=1))
    assert all(len(line) * 2 <= 80 for line in lines if "形" in line)


texts = st.one_of(
    st.text(max_size=90),
    st.sampled_from([text[:300] for text in HOSTILE]),
    st.from_regex(r"([a-c]\.[0-3]\.){0,9}w", fullmatch=True),
)
findings = st.builds(
    Finding, st.sampled_from(list(RULES)), st.sampled_from(["error", "warn", "off"]), texts, texts, texts
)


@given(st.lists(findings, max_size=40), st.integers(60, 200), st.sampled_from([0, 1, 2]))
def test_no_line_is_wider_than_the_terminal_and_no_two_rows_look_the_same(
    found: list[Finding], width: int, verbosity: int
) -> None:
    lines = body(render(report(*found), width, verbosity))
    assert all(len(line) <= width for line in lines)
    for section in re.split(r"\n(?:warnings|waived):\n", "\n".join(lines)):
        rows = [line for line in section.split("\n") if re.match("|".join(RULES), line) and ": " not in line]
        assert len(set(rows)) == len(rows)


# -- colours ------------------------------------------------------------------------------------------------


def test_colours_change_nothing_else() -> None:
    found = [
        finding("missing-key", "\x1b[31m", "", "(1,)"),
        finding("dtype-mismatch", "failed", "(1,)", "(1,)"),
    ]
    whole = report(*found, stages=STAGES, promises=PROMISES)
    painted = render(whole, color=True)
    assert re.sub(r"\x1b\[[\d;]*m", "", painted) == render(whole)
    assert "\x1b[31mmissing-key\x1b[0m" in painted
    assert "\x1b[33mdtype-mismatch\x1b[0m" in painted
    assert "\x1b[33mskipped\x1b[0m" in painted
    assert "\x1b[32mkept\x1b[0m" in painted
    assert painted.startswith("\x1b[1;31m")
    assert render(report(), color=True).startswith("\x1b[1;32m")
