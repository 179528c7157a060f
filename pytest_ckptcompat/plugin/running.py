"""Run the check before the body of a test, and make a failed test of a failing report."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from .collection import declared
from .marks import is_marked, where
from .session import CHECKS, MARKER, Declared, Incompatible, clash, run, settings, without

if TYPE_CHECKING:
    from collections.abc import Generator

    from pytest_ckptcompat.checks.check import Check

    from .failure import Unread

_DONE = pytest.StashKey[tuple["Declared", "Check"]]()

GIVEN = pytest.StashKey[list["Unread"]]()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Fail a test with an invalid mark; skip a test without a checkpoint, or fail it if one is required."""
    if is_marked(item):
        if refusal := clash(item.config):
            raise pytest.fail.Exception(refusal, pytrace=False)
        try:
            item.stash[CHECKS] = declared(item)
        except ValueError as error:
            told = f"{where(item)}: @pytest.mark.{MARKER}: {error}"
            raise pytest.fail.Exception(told, pytrace=False) from None
    checks = item.stash.get(CHECKS, [])
    lacking = [check for check in checks if check.path is None]
    if lacking and (lacking == checks or settings(item.config).required):
        without(item)


@pytest.hookimpl(wrapper=True, trylast=True)  # inside the wrappers for captured output and xfail
def pytest_runtest_call(item: pytest.Item) -> Generator[None, Any, Any]:
    """Check before the body runs, so ``...`` is a sufficient body; then fail on unread failing reports."""
    reports = [_done(item, check).report for check in item.stash.get(CHECKS, []) if check.path is not None]
    if failing := [report for report in reports if report is not None and not report.ok]:
        raise Incompatible(*failing)
    result = yield
    if unread := [report for report in item.stash.get(GIVEN, ()) if not report.read]:
        raise Incompatible(*unread)
    return result


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None, Any, Any]:
    """Free the model and its memory with the test."""
    try:
        return (yield)
    finally:
        if _forgotten(item):  # not after reading only a header: collecting takes longer than such a check
            from pytest_ckptcompat.forward.devices import release

            release()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, Any]:
    """Report an incompatible checkpoint as a failed test with the report, not as a traceback."""
    if call.excinfo is None:
        return (yield)
    from .failure import add_reports, end_at_caller, failure

    end_at_caller(call.excinfo.value)
    report: pytest.TestReport = yield
    if not report.failed:
        return report

    if isinstance(call.excinfo.value, Incompatible):
        report.when = "call"  # otherwise an error, if raised in a fixture's setup
        report.longrepr = failure(call.excinfo.value.reports, item, settings(item.config))
    else:
        given: list[Unread] = item.stash.get(GIVEN, [])
        add_reports(report, call.excinfo, given, settings(item.config))
    return report


def _forgotten(item: pytest.Item) -> bool:
    """Drop the test's check; return whether it held a loaded model."""
    if _DONE not in item.stash:
        return False
    loaded = item.stash[_DONE][1].model is not None
    del item.stash[_DONE]
    return loaded


def checked(item: pytest.Item) -> Check:
    """Run the only check of this test once and return it; raise `Incompatible` if it fails."""
    if CHECKS not in item.stash:
        pytest.fail(f"ckpt_model and ckpt_report need @pytest.mark.{MARKER}(model=...)", pytrace=False)
    with_path = [check for check in item.stash[CHECKS] if check.path is not None]
    if len(with_path) != 1:
        told = f"ckpt_model and ckpt_report belong to one check, and this test has {len(with_path)}"
        pytest.fail(told, pytrace=False)
    done = _done(item, with_path[0])
    assert done.report is not None
    if not done.report.ok:
        raise Incompatible(done.report)
    return done


def _done(item: pytest.Item, check: Declared) -> Check:
    """Run a check of this test once and return it."""
    before, done = item.stash.get(_DONE, (None, None))
    if done is None or before is not check:
        assert check.path is not None
        wants_model = "ckpt_model" in getattr(item, "fixturenames", ())
        done = run(item, check.case, check.path, wants_model=wants_model, drift=check.drift)
        item.stash[_DONE] = check, done
    return done
