"""Paths and URLs: display them without secrets, join them, keep them inside a folder."""

from __future__ import annotations

import errno
import os
import re
from urllib.parse import quote

from pytest_ckptcompat.core.errors import CheckpointError
from pytest_ckptcompat.core.escape import escape
from pytest_ckptcompat.core.redaction import is_url, links, public

GIT = "git:"

_WEB = ("http://", "https://")


def beside(path: str, name: str) -> str:
    """Return the path of a file in the same folder as `path`, or in `path` if it ends with a slash.

    On a web server, the query of `path` is kept, because it may authorise the user.
    """
    if not is_url(path):
        return os.path.join(os.path.dirname(path), name)  # noqa: PTH118, PTH120  # paths stay text
    before, after = split(path)
    return before[: before.rfind("/") + 1] + (quote(name) if is_web(before) else name) + after


def inside(folder: str, name: str) -> str:
    """Return the path of a file in a folder."""
    if not is_url(folder):
        return os.path.join(folder, name)  # noqa: PTH118  # paths stay text
    before, after = split(folder)
    return beside(before.rstrip("/") + "/" + after, name)


def check_inside(name: str, what: str) -> None:
    """Check that a file name from a checkpoint stays inside its folder. Symbolic links are not checked.

    Raises:
        CheckpointError: the name is absolute, contains ``..``, or is not a name.
    """
    parts = name.replace("\\", "/").split("/")
    if not name or "\0" in name or ".." in parts or parts[0] == "" or ":" in parts[0]:
        raise CheckpointError(f"{what} names a file outside the checkpoint's folder: {escape(name)!r}")


def split(url: str) -> tuple[str, str]:
    """Split a URL after its path. The rest is a web server's query and the other links of a chain."""
    chain = links(url)
    at = next((place for place, link in enumerate(chain) if "://" in link), 0)
    path, mark, query = re.split(r"([?#])", chain[at] + "?", maxsplit=1)
    query = query[:-1].partition("#")[0]
    after = f"?{query}" if mark == "?" and query and is_web(path) else ""
    return "::".join([*chain[:at], path]), "::".join([after, *chain[at + 1 :]])


def is_web(url: str) -> bool:
    """Return whether the first address in a URL (or chain of URLs) belongs to a web server."""
    return next((link for link in links(url) if "://" in link), "").startswith(_WEB)


def is_reference(path: str) -> bool:
    """Return whether a checkpoint is named by a commit, ``git:REF``: what the model there would save."""
    return path.startswith(GIT)


def display(path: str) -> str:
    """Return a path that is safe to print, without user, password, query and fragment."""
    return escape(public(path))


def name_of(path: str) -> str:
    """Return the last part of a path, or a whole ``git:REF``, safe to print."""
    shown = public(path)
    if is_reference(path):
        return escape(shown)
    return escape(shown.rstrip("/\\").rpartition("/")[2] or shown)


def display_from(folder: str, path: str) -> str:
    """Return `display` of a path, relative to `folder` if the path is inside."""
    if is_url(path) or is_reference(path):
        return display(path)
    absolute, folder = os.path.abspath(path), folder.rstrip(os.sep) + os.sep  # noqa: PTH100  # follows no links
    return display(absolute.removeprefix(folder) if absolute.startswith(folder) else path)


def about(path: str, error: CheckpointError) -> CheckpointError:
    """Return the error with the file's name in its message."""
    shown = display(path)
    text = str(error)
    named = re.search(rf"(?<![\w.]){re.escape(shown)}(?![\w.])", text)
    return error if named else type(error)(f"{shown}: {text}")


def unreachable(path: str, error: OSError | ValueError) -> CheckpointError:
    """Return the error for a path that can't be opened, given the system's error."""
    shown = display(path)
    reasons = {
        errno.ENOENT: f"{shown} does not exist",
        errno.ENOTDIR: f"{shown} does not exist: a part of the path is a file, not a folder",
        errno.EISDIR: f"{shown} is a folder",
        errno.EACCES: f"{shown}: no permission to read it",
        errno.EPERM: f"{shown}: no permission to read it",
        errno.ELOOP: f"{shown} is a symbolic link that leads back to itself",
        errno.ENAMETOOLONG: f"{shown} is too long for a path",
    }
    code = error.errno if isinstance(error, OSError) else None
    return CheckpointError(reasons.get(code or 0, f"{shown} can't be opened: {escape(str(error))}"))
