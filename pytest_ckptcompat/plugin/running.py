"""The check before the body of a test, and how a report becomes a failed test."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from .collection import declared
from .options import MARKER
from .session import CASE, PATHS, Incompatible, named, run, settings, without

if TYPE_CHECKING:
    from collections.abc import Generator

    from pytest_ckptcompat.checks.check import Check

    from .must_read import Unread

_CHECK = pytest.StashKey["Check"]()

GIVEN = pytest.StashKey[list["Unread"]]()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """A test without a checkpoint is skipped, or fails where one is required; it never passes."""
    marker = item.get_closest_marker(MARKER)
    if marker is not None:
        item.stash[CASE] = declared(marker, item)
    if CASE in item.stash and not _paths(item):
        without(item)


@pytest.hookimpl(wrapper=True, trylast=True)  # inside those that capture output and know of xfail
def pytest_runtest_call(item: pytest.Item) -> Generator[None, Any, Any]:
    """Check before the body runs, so that a body of ``...`` is enough; no failing report may go unread."""
    if CASE in item.stash:
        for path in _paths(item):
            checked(item, path)
    result = yield
    for report in item.stash.get(GIVEN, ()):
        if not report.read:
            raise Incompatible(report)
    return result


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None, Any, Any]:
    """The model and its memory go with the test."""
    try:
        return (yield)
    finally:
        if _forgotten(item):  # not after a header alone: collecting takes longer than such a check
            from pytest_ckptcompat.forward.devices import release

            release()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, Any]:
    """An incompatible checkpoint is a failed test with the report, not an error with a traceback."""
    report: pytest.TestReport = yield
    if call.excinfo is not None and isinstance(call.excinfo.value, Incompatible) and report.failed:
        from .failure import failure

        report.when = "call"  # raised while a fixture was set up, it would count as an error
        report.longrepr = failure(call.excinfo.value.report, item, settings(item.config))
    return report


def _forgotten(item: pytest.Item) -> bool:
    """Drop the test's check; whether it held a loaded model."""
    if _CHECK not in item.stash:
        return False
    loaded = item.stash[_CHECK].model is not None
    del item.stash[_CHECK]
    return loaded


def _paths(item: pytest.Item) -> list[str]:
    """The checkpoints of one test: its parameter, or all where it can't have any (unittest)."""
    if PATHS in item.stash:
        return item.stash[PATHS]
    callspec = getattr(item, "callspec", None)
    if callspec is not None and "ckpt_path" in callspec.params:
        return [callspec.params["ckpt_path"]]
    return named(item.stash.get(CASE, None), item)


def checked(item: pytest.Item, path: str) -> Check:
    """The check of this test, run once; raises `Incompatible` where it fails."""
    done = item.stash.get(_CHECK, None)
    if done is None or done.path != path:
        case = item.stash.get(CASE, None)
        if case is None:
            pytest.fail(f"ckpt_model and ckpt_report need @pytest.mark.{MARKER}(model=...)", pytrace=False)
        wants_model = "ckpt_model" in getattr(item, "fixturenames", ())
        done = item.stash[_CHECK] = run(item, case, path, wants_model=wants_model)
    assert done.report is not None
    if not done.report.ok:
        raise Incompatible(done.report)
    return done
