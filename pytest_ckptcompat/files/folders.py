"""What is in a folder, and which name may have been meant."""

from __future__ import annotations

import difflib
import os
import stat
from itertools import islice
from pathlib import PurePath

from pytest_ckptcompat.core.errors import CheckpointError
from pytest_ckptcompat.core.keys import nearest
from pytest_ckptcompat.core.redaction import is_url
from pytest_ckptcompat.files.paths import beside, display, unreachable

_MOST_NAMES = 100_000
_MOST_COMPARED = 1000
_USUAL = (".pth", ".pt", ".ckpt", ".safetensors", ".bin")


def names_in(folder: str) -> list[str]:
    """Return the names in a folder, at most a hundred thousand."""
    if is_url(folder):
        from .remote_folder import names_behind

        return names_behind(folder)
    try:
        with os.scandir(folder) as found:
            return [entry.name for entry in islice(found, _MOST_NAMES)]
    except (OSError, ValueError) as error:
        raise unreachable(folder, error) from None


def kind_of(path: str) -> str:
    """Return ``"file"`` or ``"folder"`` without opening the path. A URL that ends with a slash is a folder.

    Raises:
        CheckpointError: the path does not exist, or is a pipe, a device or a socket.
    """
    if not path.strip():
        raise CheckpointError("a checkpoint's path is empty: name one (an unset variable?)")
    if is_url(path):
        from .remote_folder import kind_of_url

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


def meant_by(path: str) -> str:
    """Return the end of an error about a path that a user typed, with a similar name if there is one."""
    meant = "" if is_url(path) or os.path.lexists(path) else near(path)
    return f": did you mean {display(meant)}?" if meant else ""


def near(path: str) -> str:
    """Return the path in the same folder that looks most like a missing one, or ``""``."""
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
