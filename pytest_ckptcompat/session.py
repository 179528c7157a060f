"""What the tests of a run share: the settings, the opened checkpoints, and how one case is checked."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from .outcomes import attach
from .settings import Settings
from .sources import Shelf, expand, unique

if TYPE_CHECKING:
    from .case import Case
    from .check import Check

SETTINGS = pytest.StashKey[Settings]()
SHELF = pytest.StashKey[Shelf]()


def named(case: Case | None, node: pytest.Item) -> list[str]:
    """The paths of a case's checkpoints: looked for beside the test's file, then in the current folder.

    A case that names none is for every ``--ckpt``.
    """
    if case is None or not case.ckpt:
        return list(node.config.stash[SETTINGS].paths)
    return unique(path for name in case.ckpt for path in expand(name, _folders(node)))


def run(node: pytest.Item, case: Case, path: str, *, wants_model: bool = False) -> Check:
    """Check one case under the settings of this run; the report stays with the test and is shown to hooks."""
    from .check import Check

    settings, shelf = node.config.stash[SETTINGS], node.config.stash[SHELF]
    if isinstance(case.recipe, str):
        case = replace(case, recipe=expand(case.recipe, _folders(node))[0])
    if case.device is None:
        case = replace(case, device=settings.device)
    check = Check(
        case,
        path,
        lambda key: shelf.contents(path).checkpoint(key),
        severities=settings.severities,
        require_cuda=settings.require_cuda,
        wants_model=wants_model,
    )
    report = check.run()
    attach(node, report)
    node.ihook.pytest_ckptcompat_report(report=report)
    return check


def _folders(node: pytest.Item) -> list[Path]:
    return [node.path.parent, Path.cwd()]
