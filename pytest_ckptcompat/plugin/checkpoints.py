"""The checkpoints of a run: the paths of ``--ckpt``, the ids of their tests, and a cache of headers."""

from __future__ import annotations

import glob
import os
from collections import Counter
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from pytest_ckptcompat.core.errors import CheckpointError
from pytest_ckptcompat.core.redaction import is_url, public
from pytest_ckptcompat.files.paths import is_reference

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_ckptcompat.checkpoint.checkpoint import Checkpoint
    from pytest_ckptcompat.checkpoint.contents import Contents
    from pytest_ckptcompat.core.limits import Limits


def expand(path: str, folders: Sequence[Path]) -> list[str]:
    """Expand one path to checkpoints: itself, or the matches of a glob in natural order.

    Args:
        path: a file, a folder, a glob, a URL, or ``git:REF``.
        folders: the folders to look in for a relative path; the first one that has it wins.

    Returns:
        At least one path. A path that does not exist is taken as in the first folder.
    """
    return list(map(CheckpointPath, _expanded(path, folders)))


def _expanded(path: str, folders: Sequence[Path]) -> list[str]:
    if is_reference(path):
        return [path]
    if is_url(path):
        return _expand_url(path)
    path = os.path.expanduser(path)  # noqa: PTH111  # keeps "~" inside a URL or a glob alone
    for folder in folders:
        candidate = str(folder / path)
        if os.path.lexists(candidate):
            return [_shortest(candidate)]
        if glob.has_magic(path) and (found := glob.glob(candidate, recursive=True)):  # noqa: PTH207  # absolute patterns too
            from pytest_ckptcompat.core.keys import natural

            return [_shortest(name) for name in sorted(found, key=natural)]
    return [_shortest(str(folders[0] / path))]


def not_found(name: str, paths: Sequence[str], folders: Sequence[Path]) -> str:
    """Return an error message if none of the folders has the name, else ``""``."""
    if (
        is_url(paths[0])
        or is_reference(paths[0])
        or Path(name).expanduser().is_absolute()
        or os.path.lexists(paths[0])
    ):
        return ""
    from pytest_ckptcompat.core.escape import escape
    from pytest_ckptcompat.files.folders import near
    from pytest_ckptcompat.files.paths import display

    what = "matches no file" if glob.has_magic(name) else "does not exist"
    looked = f"{escape(str(folders[0]), None)} or in {escape(_shortest(str(folders[-1])), None)}"
    meant = next(filter(None, (near(str(folder / name)) for folder in folders)), "")
    hint = f"; did you mean {escape(_shortest(meant), None)}?" if meant else ""
    return f"{display(name)} {what} in {looked}{hint}"


def _expand_url(url: str) -> list[str]:
    from pytest_ckptcompat.files.remote_folder import is_glob, matches

    if not is_glob(url):
        return [url]
    try:
        return matches(url) or [url]
    except CheckpointError:
        return [url]  # opening it reports why


class CheckpointPath(str):
    """A path as given. In tracebacks and with ``--setup-show``, pytest shows it without secrets."""

    __slots__ = ()

    def __repr__(self) -> str:
        return repr(public(self))


def ids(paths: Sequence[str]) -> list[str]:
    """Return a short, stable and unique name for each path: ``net.pth``, ``v2/net.pth``."""
    paths = [public(path) for path in paths]
    times = Counter(paths)
    parts = [
        (path,) if is_reference(path) else PurePosixPath(path.replace(os.sep, "/")).parts for path in paths
    ]
    for depth in range(1, max(map(len, parts), default=1) + 1):
        names = ["/".join(part[-depth:]) for part in parts]
        taken = Counter(names)
        if all(taken[name] == times[path] for name, path in zip(names, paths, strict=True)):
            break
    return [name.encode("ascii", "backslashreplace").decode() for name in names] if paths else []


class CheckpointCache:
    """The checkpoints opened in this run, so that no header is read twice.

    Attributes:
        rewritten: the lock files that ``--ckpt-lock-update`` changed.
        missing: path -> error message, for paths that were not found in several folders.
        kept: the locks of releases, which are never rewritten.
    """

    def __init__(self, limits: Limits, *, update_locks: bool = False) -> None:
        self._limits = limits
        self._update_locks = update_locks
        self._opened: dict[str, Contents | CheckpointError] = {}
        self.rewritten: list[str] = []
        self.missing: dict[str, str] = {}
        self.kept: set[str] = set()

    def contents(self, path: str) -> Contents:
        """Return the content of a file; its header is read only once.

        Raises:
            CheckpointError: the file can't be read. The same path always raises the same error.
        """
        if path in self.missing and not os.path.lexists(path):
            raise CheckpointError(self.missing[path])
        if path not in self._opened:
            try:
                self._opened[path] = self._read(path)
            except CheckpointError as error:
                self._opened[path] = error
        opened = self._opened[path]
        if isinstance(opened, CheckpointError):
            raise opened
        return opened

    def checkpoint(self, path: str, state_dict_key: str | None = None) -> Checkpoint:
        """Return the state dict in a file; arguments and errors as in `open_checkpoint`."""
        from pytest_ckptcompat.checkpoint.checkpoint import checkpoint

        return checkpoint(self.contents(path), state_dict_key)

    def _read(self, path: str) -> Contents:
        from pytest_ckptcompat.checkpoint.contents import read_contents
        from pytest_ckptcompat.files.paths import display

        if is_reference(path):
            raise CheckpointError(
                f"{display(path)} is a commit: name the model too, {display(path)}#module:name"
            )
        if glob.has_magic(path) and not is_url(path) and not os.path.lexists(path):
            raise CheckpointError(f"{display(path)} matches no file")
        contents = read_contents(path, limits=self._limits)
        if self._update_locks and path not in self.kept and contents.header.format == "lock":
            from pytest_ckptcompat.checks.locks import update

            before, text = contents.header, Path(path).read_bytes()
            update(path, self._limits)
            contents = read_contents(path, limits=self._limits)
            if Path(path).read_bytes() != text:
                same = contents.header.tree == before.tree and contents.header.sha256 != before.sha256
                self.rewritten.append(f"{path} (values changed under equal keys)" if same else path)
        return contents


def _shortest(path: str) -> str:
    """Return a path as a person would type it: relative if it is inside the current folder."""
    absolute = os.path.abspath(path)  # noqa: PTH100  # resolve() would follow links and hide the given name
    relative = os.path.relpath(absolute)
    return absolute if relative.startswith("..") else relative
