"""What past commits answered, kept in pytest's cache by commit, question and installed versions."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
import warnings
from typing import TYPE_CHECKING, Any

from pytest_ckptcompat.core.escape import escape
from pytest_ckptcompat.files.atomic_write import whole_file

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

_MOST = 200
"""Answers that are kept; the oldest go first."""

_SUPPORT = {
    ".gitignore": "# Created by pytest-ckptcompat.\n*\n",
    "CACHEDIR.TAG": "Signature: 8a477f597d28d172789f06886806bc55\n# A cache of pytest; safe to delete.\n",
}


def nearest(folder: Path, root: Path) -> Path:
    """The pytest cache of a folder: in it, or in the nearest one above it that has one, else in `root`."""
    for place in (folder, *folder.parents):
        if (place / ".pytest_cache").is_dir():
            return place / ".pytest_cache"
        if place == root:
            break
    return root / ".pytest_cache"


def answer(
    folder: Path | None, question: Mapping[str, Any], ask: Callable[[], dict[str, Any]]
) -> dict[str, Any]:
    """The kept answer to a question, or a new one, which is then kept.

    Processes that ask the same at once wait for the first: workers of one run start one child.

    Args:
        folder: a pytest cache, made where it is missing; None: nothing is kept.
        question: plain values: all that the answer depends on, but for the installed versions.
        ask: gives the answer. What it raises is not kept.

    Returns:
        The answer. A cache that can't be read or written costs time, and a warning, alone.
    """
    if folder is None:
        return ask()
    text = json.dumps([question, _versions()], sort_keys=True)
    key = hashlib.sha256(text.encode()).hexdigest()
    file = folder / "d" / "ckptcompat-git" / f"{key[:32]}.json"
    with _alone(folder, file.parent, int(key[:12], 16)) as usable:
        if usable and (kept := _read(file)) is not None:
            return kept
        found = ask()
        if usable:
            _write(file, found)
        return found


@contextlib.contextmanager
def _alone(folder: Path, place: Path, number: int) -> Iterator[bool]:
    """Hold the lock of one key: a byte of a file that is locked while its answer is made."""
    try:
        if not folder.exists():
            folder.mkdir(parents=True, exist_ok=True)  # another process may be as far
            for name, text in _SUPPORT.items():
                (folder / name).write_text(text, encoding="utf-8")
        place.mkdir(parents=True, exist_ok=True)
        lock = (place / "lock").open("ab")
    except OSError as error:
        _warn(place, error)
        yield False
        return
    with lock:
        with contextlib.suppress(ImportError, OSError):  # no such locks here: the work is done twice at worst
            import fcntl

            fcntl.lockf(lock, fcntl.LOCK_EX, 1, number)
        yield True


def _read(file: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(file.read_bytes())
        os.utime(file)
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _write(file: Path, found: dict[str, Any]) -> None:
    try:
        with whole_file(str(file)) as target:
            target.write(json.dumps(found).encode())
        kept = sorted(file.parent.glob("*.json"), key=lambda each: each.stat().st_mtime)
        for old in kept[:-_MOST]:
            old.unlink(missing_ok=True)
    except OSError as error:
        _warn(file.parent, error)


def _warn(place: Path, error: OSError) -> None:
    text = f"{escape(str(place))} can't be written, and git: is slower without it: {error.strerror or error}"
    warnings.warn(text, stacklevel=2)


def _versions() -> list[str]:
    """Python and every installed distribution, by the names of their folders: reading metadata is slow."""
    found = [sys.version]
    for entry in sys.path:
        with contextlib.suppress(OSError):
            names = [place.name for place in os.scandir(entry or ".")]
            found += [name for name in names if name.endswith((".dist-info", ".egg-info"))]
    return sorted(found)
