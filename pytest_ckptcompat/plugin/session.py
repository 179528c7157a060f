"""The state of a run: settings and opened checkpoints, and the function that runs one case.

Every pytest run on the machine imports this module, so other imports are deferred.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_ckptcompat.checkpoint.checkpoint import Checkpoint
    from pytest_ckptcompat.checks.arguments import CheckArguments
    from pytest_ckptcompat.checks.check import Check
    from pytest_ckptcompat.checks.past_checkpoint import Place
    from pytest_ckptcompat.report.report import Report

    from .checkpoints import CheckpointCache
    from .settings import Settings


MARKER = "ckpt_compat"


class Declared(NamedTuple):
    """A check of a test: its arguments, and the path of the checkpoint, if there is one."""

    case: CheckArguments
    path: str | None
    drift: bool = False
    """Whether to compare today's model with this lock of the last release."""


CHECKS = pytest.StashKey[list[Declared]]()
"""The stash key on a test for its declared checks."""

REPORTS = pytest.StashKey[list["Report"]]()
"""The stash key on a test for reports that were not sent yet."""


class Incompatible(Exception):  # noqa: N818  # a verdict on the checkpoint, not an error in the test
    """Raised to end a test whose checkpoints do not fit; it carries the reports."""

    def __init__(self, *reports: Report) -> None:
        super().__init__(*(report.verdict for report in reports))
        self.reports = reports


class CheckItem(pytest.Item):
    """A test without a function; the plugin makes its checks before the body runs.

    Args:
        line: where it is declared, counted from 1.
        checks: its checks.
        fault: what is wrong with the declaration. Such a test fails, so that the rest of the file still runs.
    """

    def __init__(self, *, line: int, checks: Sequence[Declared] = (), fault: str = "", **rest: Any) -> None:
        super().__init__(**rest)
        self.stash[CHECKS] = list(checks)
        self._line = line
        self._fault = fault

    def setup(self) -> None:
        """Fail if the declaration is wrong; else make modules beside the file importable."""
        if self._fault:
            pytest.fail(self._fault, pytrace=False)
        folder = str(self.path.parent)
        if folder not in sys.path:
            sys.path.insert(0, folder)

    def runtest(self) -> None:
        """Do nothing: the check is the whole test."""

    def reportinfo(self) -> tuple[Path, int, str]:
        """Return where the test is declared."""
        return self.path, self._line - 1, self.name


_SETTINGS = pytest.StashKey["Settings"]()
_SHELF = pytest.StashKey["CheckpointCache"]()


def settings(config: pytest.Config) -> Settings:
    """Return the settings of a run, which are made once.

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
    """Return the checkpoints opened in a run."""
    if _SHELF not in config.stash:
        from .checkpoints import CheckpointCache

        chosen = settings(config)
        config.stash[_SHELF] = CheckpointCache(chosen.limits, update_locks=chosen.update_locks)
    return config.stash[_SHELF]


def probe(config: pytest.Config, path: str) -> None:
    """Open what an option names, as far as possible without a test.

    Raises:
        CheckpointError: the path can't be read, or names no commit.
    """
    from pytest_ckptcompat.files.paths import is_reference

    if not is_reference(path):
        shelf(config).contents(path)
        return
    from pytest_ckptcompat.history.reference import Reference, resolve

    resolve(Reference.parse(path), config.rootpath)


def place(config: pytest.Config) -> Place:
    """Return where to look for the commits of ``git:`` and keep their answers."""
    from pytest_ckptcompat.checks.past_checkpoint import Place

    chosen = settings(config)
    cache = None
    if config.pluginmanager.hasplugin("cacheprovider"):
        cache = config.rootpath / Path(os.path.expandvars(config.getini("cache_dir"))).expanduser()
    return Place(
        config.rootpath, cache, keeps=cache is not None, timeout=chosen.git_timeout, limits=chosen.limits
    )


def clash(config: pytest.Config) -> str:
    """Return why the tests of this run would deadlock, or ``""``."""
    under_torchrun = "TORCHELASTIC_RUN_ID" in os.environ or {"RANK", "WORLD_SIZE"} <= os.environ.keys()
    workers = hasattr(config, "workerinput") or (
        bool(config.getoption("tx", None)) and config.getoption("dist", "no") != "no"
    )
    if not (under_torchrun and workers):
        return ""
    return (
        "pytest-xdist (-n) under torchrun: every worker would take the same rank, and wait for the others: "
        "leave out -n, since torchrun starts the processes"
    )


def named(case: CheckArguments, node: pytest.Item) -> list[str]:
    """Return the resolved paths of a case's checkpoints; every ``--ckpt`` if the case names none."""
    if not case.ckpt:
        return list(settings(node.config).paths)
    return list(dict.fromkeys(path for name in case.ckpt for path in resolved(name, node)))


def resolved(name: str, node: pytest.Item) -> list[str]:
    """Resolve a name in a test: relative to the rootdir, or else to the folder of the test's file.

    In ``ckptcompat.toml``, names are relative to that file. If nothing is found, opening the path reports
    where it was looked for.
    """
    from .checkpoints import expand, not_found

    folders = [node.path.parent]
    if node.path.name != "ckptcompat.toml" and node.path.parent != node.config.rootpath:
        folders.insert(0, node.config.rootpath)
    paths = expand(name, folders)
    if len(folders) > 1 and (text := not_found(name, paths, folders)):
        shelf(node.config).missing[paths[0]] = text
    return paths


def run(
    node: pytest.Item,
    case: CheckArguments,
    path: str,
    *,
    opened: Checkpoint | None = None,
    wants_model: bool = False,
    drift: bool = False,
) -> Check:
    """Check one case with the settings of this run; keep the report with the test and show it to hooks."""
    import warnings
    from dataclasses import replace

    with warnings.catch_warnings():  # on import, torch warns about numpy, which is not needed here
        warnings.filterwarnings("ignore", "Failed to initialize NumPy", UserWarning)
        from pytest_ckptcompat.checks.check import Check
    from pytest_ckptcompat.files.paths import display_from
    from pytest_ckptcompat.files.progress import shown_on

    from .terminal_line import Terminal

    chosen = settings(node.config)
    if isinstance(case.recipe, str):
        case = replace(case, recipe=resolved(case.recipe, node)[0])
    if case.device is None:
        case = replace(case, device=chosen.device)
    check = Check(
        case,
        path,
        opened.at if opened is not None else lambda key: shelf(node.config).checkpoint(path, key),
        severities=chosen.severities,
        require_cuda=chosen.require_cuda,
        wants_model=wants_model,
        drift=drift,
        place=place(node.config),
        shown=display_from(str(node.config.rootpath), path),
    )
    with shown_on(Terminal(node.config)):
        report = check.run()
    _keep(node, report)
    node.ihook.pytest_ckptcompat_report(report=report)
    return check


def without(node: pytest.Item) -> None:
    """End a test without a checkpoint: skip it, or fail it if one is required."""
    if not settings(node.config).required:
        raise skipped("give --ckpt PATH, the ini key ckpt, or ckpt= in the mark")
    from pytest_ckptcompat.core.findings import Stage, finding
    from pytest_ckptcompat.report.report import Report

    reason = "no checkpoint: give --ckpt PATH, the ini key ckpt, or ckpt= in the mark"
    found = finding("no-checkpoint", message=reason)
    report = Report("", node.name, findings=[found], stages=[Stage("open", "failed", "no-checkpoint")])
    _keep(node, report)
    raise Incompatible(report)


NO_CHECKPOINT = "no checkpoint: "


def skipped(remedy: str) -> BaseException:
    """Return the exception that skips a test without a checkpoint, with the test's own line."""
    return pytest.skip.Exception(NO_CHECKPOINT + remedy, _use_item_location=True)


def _keep(node: pytest.Item, report: Report) -> None:
    """Keep a report with its test, for the report files and as JUnit properties of one line each."""
    forward = [f"{each.status}: {each.detail}" for each in report.stages if each.name.startswith("forward")]
    node.stash.setdefault(REPORTS, []).append(report)
    node.user_properties.append(("ckpt_verdict", report.verdict))
    node.user_properties.append(("ckpt_forward", "; ".join(forward)))
