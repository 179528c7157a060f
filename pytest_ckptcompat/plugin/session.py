"""What the tests of a run share: the settings, the opened checkpoints, and how one case is checked.

Every pytest run on the machine imports this; what a run without checkpoints does not need is imported on use.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pytest_ckptcompat.checkpoint.checkpoint import Checkpoint
    from pytest_ckptcompat.checks.arguments import CheckArguments
    from pytest_ckptcompat.checks.check import Check
    from pytest_ckptcompat.report.report import Report

    from .checkpoints import CheckpointCache
    from .settings import Settings

CASE = pytest.StashKey["CheckArguments"]()
"""On a test: what it declares."""

PATHS = pytest.StashKey[list[str]]()
"""On a test that has no parameters: its checkpoints."""

REPORTS = pytest.StashKey[list["Report"]]()
"""On a test: the reports of its checks that were not sent on yet."""


class Incompatible(Exception):  # noqa: N818  # a verdict on the checkpoint, not an error of the test
    """What ends a test whose checkpoint does not fit; it carries the report."""

    def __init__(self, report: Report) -> None:
        super().__init__(report.verdict)
        self.report = report


_SETTINGS = pytest.StashKey["Settings"]()
_SHELF = pytest.StashKey["CheckpointCache"]()


def settings(config: pytest.Config) -> Settings:
    """The settings of a run, made once.

    Raises:
        pytest.UsageError: an option is ill-formed.
    """
    if _SETTINGS not in config.stash:
        from .settings import Settings

        try:
            config.stash[_SETTINGS] = Settings.of(config)
        except ValueError as error:
            raise pytest.UsageError(str(error)) from None
    return config.stash[_SETTINGS]


def shelf(config: pytest.Config) -> CheckpointCache:
    """The checkpoints that were opened in a run."""
    if _SHELF not in config.stash:
        from .checkpoints import CheckpointCache

        chosen = settings(config)
        config.stash[_SHELF] = CheckpointCache(chosen.limits, config.hook, update_locks=chosen.update_locks)
    return config.stash[_SHELF]


def named(case: CheckArguments | None, node: pytest.Item) -> list[str]:
    """The paths of a case's checkpoints: looked for beside the test's file, then in the current folder.

    A case that names none is for every ``--ckpt``.
    """
    from .checkpoints import expand, unique

    if case is None or not case.ckpt:
        return list(settings(node.config).paths)
    return unique(path for name in case.ckpt for path in expand(name, _folders(node)))


def run(
    node: pytest.Item,
    case: CheckArguments,
    path: str,
    *,
    opened: Checkpoint | None = None,
    wants_model: bool = False,
) -> Check:
    """Check one case under the settings of this run; the report stays with the test and is shown to hooks."""
    import warnings
    from dataclasses import replace

    with warnings.catch_warnings():  # as it is imported, torch misses numpy, which nobody needs here
        warnings.filterwarnings("ignore", "Failed to initialize NumPy", UserWarning)
        from pytest_ckptcompat.checks.check import Check
    from pytest_ckptcompat.files.progress import shown_on

    from .checkpoints import expand
    from .terminal_line import Terminal

    chosen = settings(node.config)
    if isinstance(case.recipe, str):
        case = replace(case, recipe=expand(case.recipe, _folders(node))[0])
    if case.device is None:
        case = replace(case, device=chosen.device)
    check = Check(
        case,
        path,
        opened.at if opened else lambda key: shelf(node.config).checkpoint(path, key),
        severities=chosen.severities,
        require_cuda=chosen.require_cuda,
        wants_model=wants_model,
    )
    with shown_on(Terminal(node.config)):
        report = check.run()
    _keep(node, report)
    node.ihook.pytest_ckptcompat_report(report=report)
    return check


def without(node: pytest.Item) -> None:
    """End a test that was given no checkpoint: it is skipped, or fails where one is required."""
    reason = "no checkpoint: give --ckpt PATH, the ini key ckpt, or ckpt= in the marker"
    if not settings(node.config).required:
        pytest.skip(reason)
    from pytest_ckptcompat.core.findings import Stage, finding
    from pytest_ckptcompat.report.report import Report

    found = finding("no-checkpoint", message=reason)
    stages = [Stage("open", "failed", reason)]
    raise Incompatible(Report("", node.name, findings=[found], stages=stages))


def _keep(node: pytest.Item, report: Report) -> None:
    """Keep a report with its test: for the files of the run, and in one line each as properties for JUnit."""
    forward = [f"{each.status}: {each.detail}" for each in report.stages if each.name.startswith("forward")]
    node.stash.setdefault(REPORTS, []).append(report)
    node.user_properties.append(("ckpt_verdict", report.verdict))
    node.user_properties.append(("ckpt_forward", "; ".join(forward)))


def _folders(node: pytest.Item) -> list[Path]:
    return [node.path.parent, Path.cwd()]
