"""Marked tests, one for each checkpoint, and ``ckptcompat.toml`` as a file of tests."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from .options import MARKER
from .session import named

if TYPE_CHECKING:
    from pathlib import Path

    from pytest_ckptcompat.checks.arguments import CheckArguments

    from .toml_file import CheckFile


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test for each checkpoint, named after it."""
    marker = metafunc.definition.get_closest_marker(MARKER)
    case = None if marker is None else declared(marker, metafunc.definition)
    if case is None and "ckpt_path" not in metafunc.fixturenames:
        return
    paths = named(case, metafunc.definition)
    if paths:
        from .checkpoints import ids

        if "ckpt_path" not in metafunc.fixturenames:
            metafunc.fixturenames.append("ckpt_path")
        metafunc.parametrize("ckpt_path", paths, indirect=True, ids=ids(paths))


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> CheckFile | None:
    """``ckptcompat.toml`` is a file of tests."""
    if file_path.name != "ckptcompat.toml":
        return None
    from .toml_file import CheckFile

    return CheckFile.from_parent(parent, path=file_path)


def declared(marker: pytest.Mark, node: pytest.Item) -> CheckArguments:
    """The arguments of a marker, checked; what is wrong with them is an error at collection."""
    if marker.args:
        wrong = f"takes keywords only, not {marker.args[0]!r}: write model=..."
        raise pytest.Collector.CollectError(f"{node.nodeid}: @pytest.mark.{MARKER} {wrong}")
    from pytest_ckptcompat.checks.arguments import CheckArguments

    try:
        return CheckArguments.of(**marker.kwargs)
    except ValueError as error:
        raise pytest.Collector.CollectError(f"{node.nodeid}: @pytest.mark.{MARKER}: {error}") from None
