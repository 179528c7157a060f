from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pytest_ckptcompat.core.findings import Finding, finding
from pytest_ckptcompat.report.rows import rows


def test_findings_that_differ_in_indices_alone_are_one_row() -> None:
    found = [finding("missing-key", f"layers.{i}.w", "", "(4,) f32") for i in range(1000)]
    (row,) = rows(found)
    assert (row.pattern, len(row.keys), row.model) == ("layers.{0-999}.w", 1000, "(4,) f32")


def test_layers_of_another_shape_are_another_row() -> None:
    found = [
        finding("missing-key", f"layers.{i}.w", "", "(8,) f32" if i == 2 else "(4,) f32") for i in range(4)
    ]
    assert [(row.pattern, row.model) for row in rows(found)] == [
        ("layers.{0,1,3}.w", "(4,) f32"),
        ("layers.2.w", "(8,) f32"),
    ]


def test_rows_of_a_rule_stand_together() -> None:
    found = [
        finding("missing-key", "b"),
        finding("unexpected-key", "c"),
        finding("missing-key", "a", "", "x"),
    ]
    assert [(row.rule, row.pattern) for row in rows(found)] == [
        ("missing-key", "b"),
        ("missing-key", "a"),
        ("unexpected-key", "c"),
    ]


some = st.builds(
    Finding,
    st.sampled_from(["missing-key", "unexpected-key"]),
    st.sampled_from(["error", "warn", "off"]),
    st.sampled_from(["a.0", "a.1", "a.2", "b.0.c.1", "b.1.c.1", "", "{"]),
    st.sampled_from(["", "(1,)"]),
    st.sampled_from(["", "(2,)"]),
    st.sampled_from(["", "said"]),
)


@given(st.sets(some))
def test_the_rows_say_what_the_findings_said(found: set[Finding]) -> None:
    assert {
        Finding(row.rule, row.severity, key, row.checkpoint, row.model, row.message)
        for row in rows(found)
        for key in row.keys
    } == found
