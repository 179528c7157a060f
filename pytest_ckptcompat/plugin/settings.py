"""The validated options of the command line and the ini file."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_ckptcompat.checks.argument_types import device as device_name
from pytest_ckptcompat.checks.waivers import severities_of
from pytest_ckptcompat.core.limits import Limits
from pytest_ckptcompat.report.run_report import targets

from .checkpoints import expand
from .ini_keys import CKPT_VARIABLE, ini

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pytest

    from pytest_ckptcompat.core.rules import Severity


@dataclass(frozen=True)
class Settings:
    """The options of a run, named as on the command line.

    Attributes:
        paths: the checkpoints, with globs expanded.
        severities: rule -> severity, for the rules that ``ckpt_severity`` names.
        git_timeout: the most seconds that a past version of the code may take.
        reports: (format, path) of the files to write.
        width: the columns of the terminal.
    """

    paths: tuple[str, ...]
    required: bool
    device: str
    require_cuda: bool
    severities: Mapping[str, Severity]
    limits: Limits
    git_timeout: float
    reports: tuple[tuple[str, Path], ...]
    update_locks: bool
    width: int
    verbosity: int

    @classmethod
    def of(cls, config: pytest.Config) -> Settings:
        """Return the settings of this run.

        Raises:
            ValueError: an option is ill-formed. The message contains its name.
        """

        def either(key: str) -> object:
            given = config.getoption(key)
            return ini(config, key) if given is None else given

        return cls(
            paths=tuple(_paths(config)),
            required=bool(either("ckpt_required")),
            device=device_name(_source(config, "ckpt_device"), either("ckpt_device") or "auto"),
            require_cuda=bool(either("ckpt_require_cuda")),
            severities=severities_of(ini(config, "ckpt_severity")),
            limits=Limits.parse("the ini key ckpt_limits", ini(config, "ckpt_limits")),
            git_timeout=_seconds(ini(config, "ckpt_git_timeout")),
            reports=targets("--ckpt-report", config.getoption("ckpt_report")),
            update_locks=_update_locks(config),
            width=_width(config),
            verbosity=config.get_verbosity(),
        )


def source_of_paths(config: pytest.Config) -> str:
    """Return where the run's checkpoints are named: the option, else the variable, else the ini key."""
    if config.getoption("ckpt") is not None:
        return "--ckpt"
    return CKPT_VARIABLE if CKPT_VARIABLE in os.environ else "the ini key ckpt"


def _paths(config: pytest.Config) -> list[str]:
    source, folder = source_of_paths(config), Path.cwd()
    if source == "--ckpt":
        names = config.getoption("ckpt")
    elif source == CKPT_VARIABLE:
        names = [line.strip() for line in os.environ[CKPT_VARIABLE].splitlines() if line.strip()] or [""]
    else:
        names = ini(config, "ckpt")
        folder = config.inipath.parent if config.inipath else config.rootpath
    if not all(name.strip() for name in names):
        raise ValueError(f"{source} is empty: name a checkpoint, or leave it out (an unset variable?)")
    return list(dict.fromkeys(path for name in names for path in expand(name, [folder])))


def _source(config: pytest.Config, key: str) -> str:
    """Return how the user gave an option: ``--ckpt-device``, or the ini key."""
    return f"the ini key {key}" if config.getoption(key) is None else f"--{key.replace('_', '-')}"


def _seconds(text: str) -> float:
    try:
        seconds = float(text or 60)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 1e6:
        raise ValueError(f"the ini key ckpt_git_timeout={text!r}: write a number of seconds, for example 120")
    return seconds


def _update_locks(config: pytest.Config) -> bool:
    wanted = bool(config.getoption("ckpt_lock_update"))
    if wanted and config.getoption("numprocesses", None):
        raise ValueError("--ckpt-lock-update writes files that the tests share: run it without -n")
    return wanted


def _width(config: pytest.Config) -> int:
    worker = getattr(config, "workerinput", None)
    if worker is not None:
        return int(worker.get("ckptcompat_width", 80))
    return shutil.get_terminal_size().columns
