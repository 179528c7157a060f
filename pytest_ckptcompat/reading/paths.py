"""Where the files of a checkpoint are: paths and URLs, what lies at them, and how they are shown."""

from __future__ import annotations

import difflib
import errno
import os
import re
import stat
from itertools import islice
from pathlib import PurePath

from pytest_ckptcompat.errors import CheckpointError
from pytest_ckptcompat.keys import escape, nearest

_MOST_NAMES = 100_000
_MOST_COMPARED = 1000
_USUAL = (".pth", ".pt", ".ckpt", ".safetensors", ".bin")
_SECRETS = re.compile(r"(://)[^/@]*@")
_URL = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]+(://|::)")


def beside(path: str, name: str) -> str:
    """The path of a file in the folder of another one; for a folder, `path` ends with a slash."""
    return path[: path.rfind("/") + 1] + name if is_url(path) else os.path.join(os.path.dirname(path), name)  # noqa: PTH118, PTH120  # paths stay text


def inside(folder: str, name: str) -> str:
    """The path of a file in a folder."""
    return beside(folder.rstrip("/") + "/", name)


def names_in(folder: str) -> list[str]:
    """The names of what is in a folder, at most a hundred thousand.

    Raises:
        CheckpointError: it can't be read.
    """
    if is_url(folder):
        from .remote import names_behind

        return names_behind(folder)
    try:
        with os.scandir(folder) as found:
            return [entry.name for entry in islice(found, _MOST_NAMES)]
    except (OSError, ValueError) as error:
        raise unreachable(folder, error) from None


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
    return error if shown in text else CheckpointError(f"{shown}: {text}")


def kind_of(path: str) -> str:
    """``"file"`` or ``"folder"``, looked at without opening it. A URL that ends with a slash is a folder.

    Raises:
        CheckpointError: there is nothing, or it is a pipe, a device or a socket.
    """
    if not path.strip():
        raise CheckpointError("a checkpoint's path is empty: name one (an unset variable?)")
    if is_url(path):
        from .remote import kind_of_url

        return kind_of_url(path)
    shown = display(path)
    try:
        mode = os.stat(path).st_mode  # noqa: PTH116  # a path may be anything, a lone surrogate included
    except (OSError, ValueError) as error:
        raise unreachable(path, error) from None
    if stat.S_ISDIR(mode):
        return "folder"
    if not stat.S_ISREG(mode):
        names = {stat.S_IFIFO: "a pipe (FIFO)", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}
        raise CheckpointError(f"{shown} is {names.get(stat.S_IFMT(mode), 'a socket')}, not a checkpoint file")
    return "file"


def kind_of_named(path: str) -> str:
    """`kind_of` a path that somebody typed: if there is nothing, the error names what may have been meant."""
    try:
        return kind_of(path)
    except CheckpointError as error:
        near = "" if is_url(path) or os.path.lexists(path) else _near(path)
        raise CheckpointError(f"{error}: did you mean {display(near)}?" if near else str(error)) from None


def only_file_in(folder: str) -> str:
    """The path of the one file in a folder that is named as checkpoints are; ``""`` for none or several."""
    found = [name for name in names_in(folder) if name.endswith(_USUAL)]
    return inside(folder, found[0]) if len(found) == 1 else ""


def _near(path: str) -> str:
    """The path beside this one, which does not exist, that looks most like it; ``""`` if none does."""
    folder, name = os.path.split(path)
    try:
        with os.scandir(folder or ".") as found:
            names = [PurePath(entry.name) for entry in islice(found, _MOST_COMPARED)]
    except (OSError, ValueError):
        return ""
    typed = PurePath(name)
    names = [each for each in names if each.suffix in (*_USUAL, ".json", "", typed.suffix)]
    stems = nearest(typed.stem, dict.fromkeys(each.stem for each in names), 1)
    alike = [each.name for each in names if each.stem in stems]
    return "".join(beside(path, each) for each in difflib.get_close_matches(name, alike, 1, 0))


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
