"""Options, ini keys, the marker, and the start of a run."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

from pytest_ckptcompat.core.errors import CheckpointError
from pytest_ckptcompat.core.hooks import forget, use

from .collection import add_gate_of_rootdir
from .ini_keys import CKPT_VARIABLE, ini
from .session import MARKER, clash, probe, settings
from .summary import Summary

if TYPE_CHECKING:
    from collections.abc import Iterable


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options and their ini keys."""
    group = parser.getgroup("ckptcompat", "checkpoint compatibility")
    group.addoption(
        "--ckpt",
        action="append",
        metavar="PATH",
        help="a checkpoint: a file, glob, folder, *.index.json, URL, lock file or git:REF; repeatable",
    )
    group.addoption(
        "--ckpt-required",
        action="store_true",
        default=None,
        help="a marked test without any checkpoint fails instead of being skipped",
    )
    group.addoption(
        "--ckpt-device",
        metavar="D",
        help="where the forward pass runs: auto (the default), cpu, cuda, cuda:N, rehearse, none",
    )
    group.addoption(
        "--ckpt-require-cuda",
        action="store_true",
        default=None,
        help="fail where the forward pass did not really run on CUDA",
    )
    group.addoption(
        "--ckpt-report",
        action="append",
        default=[],
        metavar="FORMAT:PATH",
        help="write the reports of the run: json:PATH, markdown:PATH or html:PATH; repeatable",
    )
    group.addoption(
        "--ckpt-lock-update",
        action="store_true",
        help="rewrite the lock files that the run uses from the checkpoints or models they name",
    )
    parser.addini("ckpt", "checkpoints, as --ckpt, relative to this file", type="linelist")
    parser.addini("ckpt_required", "as --ckpt-required", type="bool")
    parser.addini("ckpt_device", "as --ckpt-device (auto)", type="string")
    parser.addini("ckpt_require_cuda", "as --ckpt-require-cuda", type="bool")
    parser.addini("ckpt_severity", "lines of rule=error, rule=warn or rule=off", type="linelist")
    parser.addini("ckpt_git_timeout", "seconds for the code of a commit (60)", type="string")
    parser.addini("ckpt_limits", "lines of name=value: caps of the readers", type="linelist")


def pytest_addhooks(pluginmanager: pytest.PytestPluginManager) -> None:
    """Add the hooks that others may implement."""
    from pytest_ckptcompat.core import hooks as hookspecs

    pluginmanager.add_hookspecs(hookspecs)


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker and validate the options."""
    config.addinivalue_line("markers", _marker(in_full=config.getoption("markers", False)))
    if _is_given(config, _KEYS):
        settings(config)  # refuses ill-formed options before tests are collected
    if (
        not hasattr(config, "workerinput")
        and _is_given(config, (*_KEYS, *_OTHER_KEYS))
        and (refusal := clash(config))
    ):
        raise pytest.UsageError(refusal)
    config.pluginmanager.register(Summary(config), "ckptcompat-summary")
    use(config.hook)
    add_gate_of_rootdir(config)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Forget the operators of this run's plugins."""
    forget(config.hook)


def _marker(*, in_full: bool) -> str:
    if not in_full:  # not every run imports the table of arguments
        return f"{MARKER}(*, model, ...): the checkpoint must load into the model"
    from pytest_ckptcompat.checks.arguments import marker_help

    return marker_help(MARKER)


def _is_given(config: pytest.Config, keys: Iterable[str]) -> bool:
    """Return whether one of our options or of these ini keys was given."""
    return any(map(config.getoption, _OPTIONS)) or any(ini(config, key) for key in keys)


_OPTIONS = ("ckpt", "ckpt_required", "ckpt_device", "ckpt_require_cuda", "ckpt_report", "ckpt_lock_update")

_KEYS = ("ckpt_device", "ckpt_severity", "ckpt_limits", "ckpt_git_timeout")

_OTHER_KEYS = ("ckpt", "ckpt_required", "ckpt_require_cuda")


def pytest_sessionstart(session: pytest.Session) -> None:
    """Open what ``--ckpt`` names: a path that is not a checkpoint ends the run before any test starts."""
    config = session.config
    if config.option.collectonly or hasattr(config, "workerinput"):
        return
    if not (config.getoption("ckpt") or CKPT_VARIABLE in os.environ or ini(config, "ckpt")):
        return
    for path in settings(config).paths:
        try:
            probe(config, path)
        except CheckpointError as error:
            from .settings import source_of_paths

            raise pytest.UsageError(f"{source_of_paths(config)}: {error}") from None


@pytest.hookimpl(optionalhook=True)  # a hook of pytest-xdist
def pytest_configure_node(node: Any) -> None:
    """Tell a worker of pytest-xdist the width of the terminal, since it has none."""
    node.workerinput["ckptcompat_width"] = settings(node.config).width
