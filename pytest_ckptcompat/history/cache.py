"""Answers of past commits, kept in pytest's cache by commit, question and installed versions."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from pytest_ckptcompat.core.escape import escape
from pytest_ckptcompat.files.atomic_write import whole_file

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

_MOST = 200
"""The number of answers that are kept. The least recently used are removed first."""

_SUPPORT = {
    ".gitignore": "# Created by pytest-ckptcompat.\n*\n",
    "CACHEDIR.TAG": "Signature: 8a477f597d28d172789f06886806bc55\n# A cache of pytest; safe to delete.\n",
}


def nearest(folder: Path, root: Path) -> Path:
    """Return the nearest pytest cache in a folder or above it up to `root`, or a new path in `root`."""
    for place in (folder, *folder.parents):
        if (place / ".pytest_cache").is_dir():
            return place / ".pytest_cache"
        if place == root:
            break
    return root / ".pytest_cache"


def answer(
    folder: Path | None,
    question: Mapping[str, Any],
    ask: Callable[[], dict[str, Any]],
    root: Path | None = None,
) -> dict[str, Any]:
    """Return the kept answer to a question, or ask for a new answer and keep it.

    Processes that ask the same question wait for the first, so that the workers of a run start one child. A
    cache that can't be written only leads to a warning.

    Args:
        folder: a pytest cache, which is made if it is missing. None: keep nothing.
        question: everything on which the answer depends, except the installed versions, as plain values.
        ask: returns a new answer. Its errors are not kept.
        root: the working tree of the question's commit, on whose files the answer does not depend.
    """
    if folder is None:
        return ask()
    text = json.dumps([question, _versions(root)], sort_keys=True)
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
    """Hold the lock of one key inside the block: one byte of a lock file."""
    try:
        if not folder.exists():
            folder.mkdir(parents=True, exist_ok=True)  # another process may do the same
            for name, text in _SUPPORT.items():
                (folder / name).write_text(text, encoding="utf-8")
        place.mkdir(parents=True, exist_ok=True)
        lock = (place / "lock").open("ab")
    except OSError as error:
        _warn(place, error)
        yield False
        return
    with lock:
        with contextlib.suppress(ImportError, OSError):  # without locks, the work may be done twice
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


def _versions(root: Path | None) -> list[str]:
    """List Python and the installed distributions, by folder names because reading metadata is slow.

    An editable one outside of `root` may change under the same name, so its last change is listed too.
    """
    found = [sys.version]
    for entry in sys.path:
        with contextlib.suppress(OSError):
            for place in os.scandir(entry or "."):
                if place.name.endswith((".dist-info", ".egg-info")):
                    found.append(place.name)
                    source = _edited(place.path)
                    if source is not None and (root is None or not source.is_relative_to(root)):
                        found.append(_last_change(source))
    return sorted(found)


def _edited(distribution: str) -> Path | None:
    """Return the folder of an editable distribution, or None for any other."""
    try:
        about = json.loads(Path(distribution, "direct_url.json").read_bytes())
        editable = about["dir_info"]["editable"] is True
        return Path(unquote(urlsplit(about["url"]).path)).resolve() if editable else None
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None


def _last_change(source: Path) -> str:
    times = []
    for place, folders, files in os.walk(source):
        folders[:] = [name for name in folders if not name.startswith(".")]
        modules = [name for name in files if name.endswith((".py", ".so"))]
        with contextlib.suppress(OSError):
            times += [Path(place, name).stat().st_mtime_ns for name in modules]
    return f"{source}: {len(times)} modules, {max(times, default=0)}"
