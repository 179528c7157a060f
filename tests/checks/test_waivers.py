from datetime import date, datetime

import pytest

from pytest_ckptcompat.checks.waivers import allow, settle, severities_of
from pytest_ckptcompat.core.findings import finding

TODAY = date(2026, 11, 24)
AUX = finding("unexpected-key", "aux.weight", "(3,) f32")
HEAD = finding("missing-key", "head.weight", "", "(3,) f32")


def test_a_waived_finding_stays_without_weight_and_with_its_reason():
    settled = settle([AUX, HEAD], [allow("unexpected-key", "aux.*", reason="dropped in v2")], today=TODAY)
    assert [(f.key, f.severity, f.message) for f in settled] == [
        ("aux.weight", "off", "waived: dropped in v2"),
        ("head.weight", "error", ""),
    ]


def test_a_waiver_speaks_of_its_rule_and_keys_alone():
    waiver = allow("unexpected-key", "aux.*", reason="r")
    assert not waiver.covers(HEAD)
    assert not waiver.covers(finding("unexpected-key", "auxiliary.weight"))
    assert waiver.covers(AUX)


def test_an_unused_waiver_fails():
    (found,) = settle([], [allow("unexpected-key", "aux.*", reason="r")], today=TODAY)
    assert (found.rule, found.severity, found.key) == ("waiver-unused", "error", "aux.*")


EXTRA = [finding("missing-key", key) for key in ("extra.weight", "extra.bias", "head.1.weight", "scale")]


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("extr.*", "did you mean 'extra.*'?"),
        ("haed.1.*", "did you mean 'head.1.*'?"),
        ("head.2.*", "did you mean 'head.1.*'?"),
        ("extra.wieght", "did you mean 'extra.weight'?"),
        ("scale.*", "did you mean 'scale'?"),
        ("zzz", "the first is on 'extra.weight'"),
    ],
)
def test_a_mistyped_waiver_is_told_what_was_meant_and_not_to_be_removed(key, hint):
    *_, found = settle(EXTRA, [allow("missing-key", key, reason="r")], today=TODAY)
    assert found.rule == "waiver-unused"
    assert (
        found.message == f"allow('missing-key', {key!r}) matches none of the 4 missing-key findings: {hint}"
    )


def test_only_a_waiver_without_findings_left_is_to_be_removed():
    stale = allow("missing-key", "aux.*", reason="r")
    *_, found = settle([AUX], [stale], today=TODAY)
    assert found.message == "allow('missing-key', 'aux.*') waives nothing: remove it"
    *_, found = settle([HEAD], [allow("missing-key", "head.*", reason="r"), stale], today=TODAY)
    assert found.message.endswith("waives nothing, other waivers cover the 1 missing-key finding: remove it")


def test_the_hint_of_a_mistyped_waiver_is_safe_to_print():
    hostile = finding("unexpected-key", "aux\x1b[31m.weight\n::error::" + "x" * 9000)
    *_, found = settle([hostile], [allow("unexpected-key", "axu*", reason="r")], today=TODAY)
    assert found.message.isprintable()
    assert len(found.message) < 250
    *_, found = settle([finding("load-error")], [allow("load-error", "aux", reason="r")], today=TODAY)
    assert found.message.endswith("1 load-error finding: they have no key: leave it out")


def test_a_waiver_of_a_rule_that_was_not_judged_is_not_unused():
    waiver = allow("non-finite-value", "*", reason="r")
    assert settle([], [waiver], today=TODAY, judged=lambda rule: rule != "non-finite-value") == []


@pytest.mark.parametrize("until", ["2026-11-24", date(2026, 11, 24), datetime(2026, 11, 24, 9)])
def test_the_last_day_still_counts(until):
    waiver = allow("unexpected-key", "aux.*", reason="r", until=until)
    assert [f.severity for f in settle([AUX], [waiver], today=TODAY)] == ["off"]


def test_an_expired_waiver_fails_beside_what_it_no_longer_waives():
    waiver = allow("unexpected-key", "aux.*", reason="r", until="2026-11-23")
    settled = settle([AUX], [waiver], today=TODAY)
    assert [(f.rule, f.severity) for f in settled] == [
        ("unexpected-key", "error"),
        ("waiver-expired", "error"),
    ]
    assert "2026-11-23" in settled[1].message


def test_severities_change_findings_and_off_drops_them():
    assert [f.severity for f in settle([AUX], severities={"unexpected-key": "warn"})] == ["warn"]
    assert settle([AUX], severities={"unexpected-key": "off"}) == []


def test_a_waiver_of_a_rule_that_is_off_is_still_used():
    settled = settle([AUX], [allow("unexpected-key", reason="r")], {"unexpected-key": "off"})
    assert [f.rule for f in settled] == ["unexpected-key"]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"rule": "unexpected-keys", "reason": "r"}, "no rule 'unexpected-keys'"),
        ({"rule": "waiver-unused", "reason": "r"}, "can't be waived"),
        ({"rule": "missing-key", "reason": "  "}, "say why"),
        ({"rule": "missing-key", "reason": "r", "until": "soon"}, "not a date"),
        ({"rule": "missing-key", "reason": "r", "until": 2027}, "not a date"),
    ],
)
def test_bad_waivers(arguments, text):
    with pytest.raises(ValueError, match=text):
        allow(**arguments)


def test_severity_lines():
    lines = ["dtype-mismatch=error", " unsafe-pickle = off "]
    assert severities_of(lines) == {"dtype-mismatch": "error", "unsafe-pickle": "off"}
    with pytest.raises(ValueError, match="no rule 'dtype'"):
        severities_of(["dtype=error"])
    with pytest.raises(ValueError, match="error, warn or off"):
        severities_of(["dtype-mismatch=fatal"])
