"""Run code of a past commit in a new process, with a time limit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_ckptcompat.core.errors import CheckpointError
from pytest_ckptcompat.core.escape import escape

from .reference import environment

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from .reference import Commit
    from .tree import Tree

TIMEOUT = 60.0
"""The default time limit for importing and running a past version, in seconds."""

_CLEARED = ("PYTEST_", "PYTHONWARNINGS", "PYTHONPATH", "COVERAGE_")
_TOOL = Path(__file__).resolve().parent.parent


class ChildError(CheckpointError):
    """Raised if the past version can't be imported, built or run. The message says why."""


def ask(
    commit: Commit, tree: Tree, job: str, arguments: dict[str, Any], timeout: float = TIMEOUT
) -> dict[str, Any]:
    """Return the answer of a module of this package that runs with the modules of a past commit.

    Args:
        commit: the commit, whose repository has today's modules.
        tree: the files of the commit.
        job: a module with a function ``answer(arguments) -> dict``, imported in the child.
        arguments: plain values.
        timeout: seconds after which the child and its process group are killed.

    Raises:
        ChildError: the child returned no answer in time, or the answer is ``{"error": text}``.
    """
    with tempfile.TemporaryDirectory(prefix="ckptcompat-child-", ignore_cleanup_errors=True) as room:
        answer, told = Path(room, "answer.json"), Path(room, "output")
        request = {
            "path": list(search_path(commit.repository, tree.folder, sys.path)),
            "root": str(commit.repository),
            "tree": str(tree.folder),
            "tool": str(_TOOL),
            "installed": _installed(),
            "job": job,
            "arguments": arguments,
            "answer": str(answer),
        }
        Path(room, "request.json").write_text(json.dumps(request), encoding="utf-8")
        bootstrap = str(Path(__file__).with_name("bootstrap.py"))
        command = [sys.executable, "-P", bootstrap, f"{room}/request.json"]
        with told.open("wb") as output:
            code = _run(command, commit.repository, tree.folder, output, timeout)
        if code is None:
            raise ChildError(
                f"it did not finish within {timeout:g} s: raise the ini key ckpt_git_timeout{_said(told)}"
            )
        try:
            found: dict[str, Any] = json.loads(answer.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            raise ChildError(f"its process {_ended(code)}{_said(told)}") from None
    if "error" in found:
        raise ChildError(str(found["error"]))
    return found


def search_path(root: Path, tree: Path, entries: Iterable[str]) -> Iterator[str]:
    """Yield the module search path with folders of today's working tree replaced by those of the commit.

    Folders of installed packages stay. Folders that the commit lacks are left out.
    """
    installed = [Path(each) for each in _installed()]
    for entry in entries:
        path = Path(entry or ".").resolve()
        if not path.is_relative_to(root) or any(path.is_relative_to(each) for each in installed):
            yield entry or str(path)
        elif (there := tree / path.relative_to(root)).exists():
            yield str(there)


def _installed() -> list[str]:
    """Return folders of installed packages and of a virtual environment, which may be in a working tree."""
    packages = [entry for entry in sys.path if Path(entry).name in ("site-packages", "dist-packages")]
    prefixes = [each for each in (sys.prefix, sys.exec_prefix) if each != sys.base_prefix]
    return list(dict.fromkeys(str(Path(each).resolve()) for each in (*packages, *prefixes)))


def _run(command: list[str], root: Path, tree: Path, output: Any, timeout: float) -> int | None:
    """Run a command in its own process group. Return its exit code, or None after a timeout."""
    here = Path.cwd()
    there = tree / here.relative_to(root) if here.is_relative_to(root) else tree
    process = subprocess.Popen(  # noqa: S603
        command,
        cwd=there if there.is_dir() else tree,
        env=_environment(root, tree),
        stdin=subprocess.PIPE,  # open as long as this process lives
        stdout=output,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        return process.wait(timeout)
    except subprocess.TimeoutExpired:
        return None
    finally:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)  # and whatever it started
        process.communicate()


def _environment(root: Path, tree: Path) -> dict[str, str]:
    """Return the environment with paths into today's working tree changed to paths into the commit's."""
    installed = list(map(Path, _installed()))

    def moved(value: str) -> str:
        path = Path(value)
        if not path.is_absolute() or not path.is_relative_to(root):
            return value
        there = tree / path.relative_to(root)
        return str(there) if there.exists() and not any(map(path.is_relative_to, installed)) else value

    kept = {name: value for name, value in environment().items() if not name.startswith(_CLEARED)}
    return {name: moved(value) for name, value in kept.items()} | {"CUDA_VISIBLE_DEVICES": ""}


def _ended(code: int) -> str:
    if code < 0:
        with suppress(ValueError):
            return f"was ended by {signal.Signals(-code).name}"
    return f"ended with exit code {code} and gave no answer"


def _said(output: Path) -> str:
    """Return the last line that the child printed, as the end of a message, or ``""``."""
    with suppress(OSError):
        lines = output.read_bytes()[-4096:].decode("utf-8", "replace").splitlines()
        for line in reversed(lines):
            if line.strip():
                return f"; its last line: {escape(line.strip(), 200)}"
    return ""
