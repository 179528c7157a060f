"""Paths and URLs: shown without secrets, joined, held inside a folder."""

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
    """The path of a file in the folder of another one; for a folder, `path` ends with a slash.

    A web server gets the query that came with `path` for it too: it may be what lets the user in.
    """
    if not is_url(path):
        return os.path.join(os.path.dirname(path), name)  # noqa: PTH118, PTH120  # paths stay text
    before, after = split(path)
    return before[: before.rfind("/") + 1] + (quote(name) if is_web(before) else name) + after


def inside(folder: str, name: str) -> str:
    """The path of a file in a folder."""
    if not is_url(folder):
        return os.path.join(folder, name)  # noqa: PTH118  # paths stay text
    before, after = split(folder)
    return beside(before.rstrip("/") + "/" + after, name)


def check_inside(name: str, what: str) -> None:
    """See that a file's name leads nowhere but into the folder; a link in its place is the folder's matter.

    Raises:
        CheckpointError: it is absolute, climbs out, or is not a name.
    """
    parts = name.replace("\\", "/").split("/")
    if not name or "\0" in name or ".." in parts or parts[0] == "" or ":" in parts[0]:
        raise CheckpointError(f"{what} names a file outside the checkpoint's folder: {escape(name)!r}")


def split(url: str) -> tuple[str, str]:
    """A URL up to the end of its path, and what follows: a web server's query, the other links of a chain."""
    chain = links(url)
    at = next((place for place, link in enumerate(chain) if "://" in link), 0)
    path, mark, query = re.split(r"([?#])", chain[at] + "?", maxsplit=1)
    query = query[:-1].partition("#")[0]
    after = f"?{query}" if mark == "?" and query and is_web(path) else ""
    return "::".join([*chain[:at], path]), "::".join([after, *chain[at + 1 :]])


def is_web(url: str) -> bool:
    """Whether the first address in a URL, which may be a chain, is one of a web server."""
    return next((link for link in links(url) if "://" in link), "").startswith(_WEB)


def is_reference(path: str) -> bool:
    """Whether a checkpoint is named by a commit, ``git:REF``: what the model would have saved there."""
    return path.startswith(GIT)


def local(path: str) -> str:
    """The path that a ``file://`` URL means; any other path as it is."""
    return re.sub(r"^(file|local)://", "", path)


def display(path: str) -> str:
    """A path as it is shown: safe to print, without user, password, query and fragment."""
    return escape(public(path))


def name_of(path: str) -> str:
    """The last part of a path, safe to print; a reference to a commit whole."""
    shown = public(path)
    if is_reference(path):
        return escape(shown)
    return escape(shown.rstrip("/\\").rpartition("/")[2] or shown)


def display_from(folder: str, path: str) -> str:
    """A path as it is shown, from a folder where it lies inside."""
    if is_url(path) or is_reference(path):
        return display(path)
    absolute, folder = os.path.abspath(path), folder.rstrip(os.sep) + os.sep  # noqa: PTH100  # follows no links
    return display(absolute.removeprefix(folder) if absolute.startswith(folder) else path)


def about(path: str, error: CheckpointError) -> CheckpointError:
    """The error, saying of which file it is."""
    shown = display(path)
    text = str(error)
    named = re.search(rf"(?<![\w.]){re.escape(shown)}(?![\w.])", text)
    return error if named else type(error)(f"{shown}: {text}")


def unreachable(path: str, error: OSError | ValueError) -> CheckpointError:
    """The error for a path at which nothing can be read, from what the system said."""
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
