"""Paths and URLs: shown without secrets, joined, held inside a folder."""

from __future__ import annotations

import errno
import os
import re

from pytest_ckptcompat.core.errors import CheckpointError
from pytest_ckptcompat.core.escape import escape

_SECRETS = re.compile(r"(://)[^/@]*@")

_URL = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]+(://|::)")


def beside(path: str, name: str) -> str:
    """The path of a file in the folder of another one; for a folder, `path` ends with a slash."""
    return path[: path.rfind("/") + 1] + name if is_url(path) else os.path.join(os.path.dirname(path), name)  # noqa: PTH118, PTH120  # paths stay text


def inside(folder: str, name: str) -> str:
    """The path of a file in a folder."""
    return beside(folder.rstrip("/") + "/", name)


def is_url(path: str) -> bool:
    """Whether a path is an fsspec URL (``s3://bucket/net.pth``), not a local one."""
    return bool(_URL.match(path))


def local(path: str) -> str:
    """The path that a ``file://`` URL means; any other path as it is."""
    return re.sub(r"^(file|local)://", "", path)


def display(path: str) -> str:
    """A path as it is shown: safe to print, and a URL without its password and its signature."""
    if is_url(path):
        path = _SECRETS.sub(r"\1", path).partition("?")[0]
    return escape(path)


def about(path: str, error: CheckpointError) -> CheckpointError:
    """The error, saying of which file it is."""
    shown = display(path)
    text = str(error)
    return error if shown in text else type(error)(f"{shown}: {text}")


def unreachable(path: str, error: OSError | ValueError) -> CheckpointError:
    """The error for a path at which nothing can be read, from what the system said."""
    shown = display(path)
    reasons = {
        errno.ENOENT: f"{shown} does not exist",
        errno.ENOTDIR: f"{shown} does not exist: a part of the path is a file, not a folder",
        errno.EACCES: f"{shown}: no permission to read it",
        errno.EPERM: f"{shown}: no permission to read it",
        errno.ELOOP: f"{shown} is a symbolic link that leads back to itself",
        errno.ENAMETOOLONG: f"{shown} is too long for a path",
    }
    code = error.errno if isinstance(error, OSError) else None
    return CheckpointError(reasons.get(code or 0, f"{shown} can't be opened: {escape(str(error))}"))
