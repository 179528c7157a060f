"""The fixtures of the plugin."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from pytest_ckptcompat.core.errors import CheckpointError

from .collection import Chosen
from .running import GIVEN, checked
from .session import CHECKS, named, run, shelf, skipped

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_ckptcompat.checkpoint.checkpoint import Checkpoint
    from pytest_ckptcompat.report.report import Report


@pytest.fixture
def ckpt_path(request: pytest.FixtureRequest) -> str:
    """The path of the checkpoint that this test is run for, as it was given."""
    param = getattr(request, "param", None)
    paths = [check.path for check in request.node.stash.get(CHECKS, []) if check.path is not None]
    path = param.path if isinstance(param, Chosen) else param or (paths[0] if len(paths) == 1 else None)
    if path is None:
        raise skipped("give --ckpt PATH")
    from .checkpoints import CheckpointPath

    return CheckpointPath(path)


@pytest.fixture
def ckpt(ckpt_path: str, request: pytest.FixtureRequest) -> Checkpoint:
    """The opened checkpoint: keys, shapes and dtypes from the header; values only when they are asked for.

    Example::

        def test_head(ckpt):
            assert ckpt["out2.weight"].shape == (14, 256)
    """
    from pytest_ckptcompat.files.paths import is_reference

    checks = request.node.stash.get(CHECKS, [])
    if is_reference(ckpt_path) and checks:
        opened = checked(request.node).ckpt
        assert opened is not None
        return opened
    try:
        return shelf(request.config).checkpoint(ckpt_path, checks[0].case.state_dict_key if checks else None)
    except CheckpointError as error:
        raise pytest.fail.Exception(str(error), pytrace=False) from None


@pytest.fixture
def ckpt_report(ckpt_path: str, request: pytest.FixtureRequest) -> Report:
    """The report of this test's check; it is a passing one, since a failing one ends the test."""
    report = checked(request.node).report
    assert report is not None
    return report


@pytest.fixture
def ckpt_model(ckpt_path: str, request: pytest.FixtureRequest) -> Any:
    """The model, recipe applied and checkpoint loaded, on the forward pass's device, in eval mode.

    A lock file has no values, so its model is on the meta device.
    """
    return checked(request.node).shown_model


@pytest.fixture
def ckpt_check(request: pytest.FixtureRequest) -> Callable[..., Report]:
    """The same check as a callable, for tests without the marker.

    It returns the report; for several checkpoints, the first failed one. If a test does not look at a failed
    report, the test fails with it, so that no failure goes unnoticed.

    Example::

        def test_every_head(ckpt_check):
            for size in (4, 14):
                ckpt_check(lambda: Net(size), f"net{size}.pth", inputs=(2, 3, 48, 48))

        def test_the_old_head_is_refused(ckpt_check):
            assert not ckpt_check(Net, "net4.pth").ok
    """

    def check(model: Any = None, ckpt: Any = None, **arguments: Any) -> Report:
        from pytest_ckptcompat.checkpoint.checkpoint import Checkpoint
        from pytest_ckptcompat.checks.arguments import CheckArguments

        from .failure import Unread

        opened = ckpt if isinstance(ckpt, Checkpoint) else None
        try:
            case = CheckArguments.of(model=model, ckpt=ckpt if opened is None else opened.path, **arguments)
        except ValueError as error:
            raise pytest.fail.Exception(f"ckpt_check: {error}", pytrace=False) from None
        report = None
        for path in named(case, request.node):
            report = run(request.node, case, path, opened=opened).report
            if report is not None and not report.ok:
                unread = Unread.given(report)
                request.node.stash.setdefault(GIVEN, []).append(unread)
                return unread
        if report is None:
            pytest.fail("ckpt_check: no checkpoint: name one, or give --ckpt PATH", pytrace=False)
        return report

    return check
