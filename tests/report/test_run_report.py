"""What the summary says of a check that passed."""

from __future__ import annotations

from pytest_ckptcompat.core.findings import Finding, finding
from pytest_ckptcompat.report.report import Report
from pytest_ckptcompat.report.run_report import told


def summed_up(*found: Finding, width: int = 80) -> list[str]:
    report = Report("net.pth", "onet.Net", matched=4, total=6, findings=list(found))
    return told(report, width, in_full=True)


def test_what_was_waived_is_listed_with_its_reason() -> None:
    found = [
        Finding("missing-key", "off", f"extra.{place}.weight", "", "(4, 4) f32", "waived: new in v3")
        for place in range(2)
    ]
    assert summed_up(*found) == [
        "net.pth fits onet.Net (2 findings waived): 4 of 6 keys match",
        "missing-key: extra.{0,1}.weight \N{MULTIPLICATION SIGN}2, (4, 4) f32, waived: new in v3",
    ]


def test_warnings_of_many_keys_take_a_few_lines() -> None:
    found = [
        finding("dtype-mismatch", f"layers.{layer}.{name}.weight", "(4, 4) f32", "(4, 4) bf16")
        for layer in range(12)
        for name in "qkvo"
    ]
    lines = summed_up(*found)[1:]
    assert lines[0] == (
        "warning: dtype-mismatch: layers.{0-11}.q.weight \N{MULTIPLICATION SIGN}12, (4, 4) f32 -> (4, 4)"
    )
    assert lines[-1] == "warning: dtype-mismatch: 12 more, which --ckpt-report lists"
    assert len(lines) == 7
    assert max(map(len, lines)) <= 76


def test_keys_from_a_file_are_harmless() -> None:
    [_, line] = summed_up(finding("dtype-mismatch", "\x1b[31m\n::error::", "(1,) f64", "(1,) f32"))
    assert "\x1b" not in line
    assert line.startswith("warning: dtype-mismatch: \\x1b")
