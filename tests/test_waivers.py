from datetime import date, datetime

import pytest

from pytest_ckptcompat.rules import finding
from pytest_ckptcompat.waivers import allow, settle, severities_of

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
        ({"rule": "waiver-unused", "reason": "r"}, "no rule 'waiver-unused'"),
        ({"rule": "missing-key", "reason": "  "}, "say why"),
        ({"rule": "missing-key", "reason": "r", "until": "soon"}, "no date"),
        ({"rule": "missing-key", "reason": "r", "until": 2027}, "no date"),
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
