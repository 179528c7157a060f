"""Write the files of a commit to a temporary folder, without touching the user's working tree or index."""

from __future__ import annotations

import os
import posixpath
import subprocess
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

from pytest_ckptcompat.core.errors import CheckpointError
from pytest_ckptcompat.core.escape import escape

from .reference import QUIET, Commit, environment, git

if TYPE_CHECKING:
    from collections.abc import Iterator

_PIECE = 1 << 20
_POINTER = b"version https://git-lfs.github.com/"


@dataclass(frozen=True, slots=True)
class Tree:
    """The files of a commit.

    Attributes:
        folder: the folder that contains them.
        submodules: paths of submodules, which are absent.
        pointers: paths of git LFS files, whose content is the pointer.
        refused: paths of links that lead out of the tree, which are absent.
    """

    folder: Path
    submodules: tuple[str, ...] = ()
    pointers: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()

    @property
    def lacks(self) -> str:
        """How the files differ from a checkout, in words; ``""`` if they don't."""
        told = [
            _told(self.submodules, "submodule is absent", "submodules are absent"),
            _told(self.pointers, "git LFS file is a pointer", "git LFS files are pointers"),
            _told(self.refused, "link leads outside and is absent", "links lead outside and are absent"),
        ]
        return ", ".join(filter(None, told))


@contextmanager
def exported(commit: Commit) -> Iterator[Tree]:
    """Write the files of a commit to a temporary folder, which is removed afterwards.

    The files have the content that git stores. No filters, hooks or attributes are applied.

    Raises:
        CheckpointError: git can't read the commit, or the folder can't be written.
    """
    with tempfile.TemporaryDirectory(prefix="ckptcompat-git-", ignore_cleanup_errors=True) as room:
        folder = Path(room).resolve() / "tree"
        folder.mkdir()
        try:
            _make_repository(commit, folder / ".git")
            yield _write(commit, folder)
        except OSError as error:
            raise CheckpointError(
                f"the files of {commit.short} can't be written: {error.strerror or error}"
            ) from None


def _make_repository(commit: Commit, folder: Path) -> None:
    """Make a repository that has the commit as its HEAD and borrows the objects.

    Code that looks for the root of its project, or asks git for the commit, finds this one; whatever it
    writes does not reach the user's.
    """
    found = git(commit.repository, "rev-parse", "--git-path", "objects").stdout
    (folder / "refs").mkdir(parents=True)
    (folder / "objects/info").mkdir(parents=True)
    (folder / "objects/info/alternates").write_bytes(os.path.join(os.fsencode(commit.repository), found))  # noqa: PTH118
    (folder / "HEAD").write_text(f"{commit.sha}\n", encoding="ascii")


def _write(commit: Commit, folder: Path) -> Tree:
    pointers: list[str] = []
    links: list[tuple[str, bytes]] = []
    entries = list(_entries(commit))
    blobs = [(path, mode, sha) for path, mode, sha in entries if mode != "160000"]
    submodules = [path for path, mode, _ in entries if mode == "160000"]
    with _contents(commit) as read:
        for path, mode, sha in blobs:
            target = folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            if mode == "120000":
                links.append((path, read(sha, None)))
                continue
            with target.open("xb") as file:
                head = read(sha, file)
            if head.startswith(_POINTER):
                pointers.append(path)
            if mode == "100755":
                target.chmod(0o755)
    refused = [path for path, to in links if not _linked(folder, path, os.fsdecode(to))]
    return Tree(folder, tuple(submodules), tuple(pointers), tuple(refused))


def _entries(commit: Commit) -> Iterator[tuple[str, str, str]]:
    """Yield path, mode and object of every file of a commit. Refuse paths that lead out of a folder."""
    listing = git(commit.repository, "ls-tree", "-r", "-z", "--full-tree", commit.sha).stdout
    for row in listing.split(b"\0")[:-1]:
        about, _, name = row.partition(b"\t")
        mode, _, sha = about.decode("ascii").split(" ")
        path = os.fsdecode(name)
        if path.startswith("/") or not {"", ".", "..", ".git"}.isdisjoint(path.lower().split("/")):
            raise CheckpointError(f"commit {commit.short} holds a file with the path {escape(path)!r}")
        yield path, mode, sha


class _Blobs:
    """A ``git cat-file --batch`` process from which objects are read."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._asked: IO[bytes] = process.stdin
        self._answers: IO[bytes] = process.stdout

    def __call__(self, sha: str, target: IO[bytes] | None) -> bytes:
        """Copy an object to a file and return its first bytes. Without a file, return all its bytes."""
        self._asked.write(f"{sha}\n".encode("ascii"))
        self._asked.flush()
        about = self._answers.readline().split()
        if len(about) != 3:
            lacking = f"git can't read object {sha}, which the clone lacks: git fetch --refetch"
            raise CheckpointError(lacking)
        left, head = int(about[2]), b""
        while left:
            piece = self._answers.read(min(left, _PIECE))
            if not piece:
                raise CheckpointError(f"git stopped while reading the object {sha}")
            left -= len(piece)
            if target is None:
                head += piece
            else:
                head = head or piece[:200]
                target.write(piece)
        self._answers.read(1)  # the newline after the object
        return head


@contextmanager
def _contents(commit: Commit) -> Iterator[_Blobs]:
    command = ["git", "cat-file", "--batch"]
    with subprocess.Popen(  # noqa: S603
        command,
        cwd=commit.repository,
        env=environment() | QUIET,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            yield _Blobs(process)
        except BrokenPipeError:
            raise CheckpointError(f"git stopped while reading commit {commit.short}") from None
        finally:
            process.kill()


def _linked(folder: Path, path: str, to: str) -> bool:
    """Make a symbolic link if its target is inside the tree. Return whether it was made."""
    inside = posixpath.normpath(posixpath.join(posixpath.dirname(path), to))
    if posixpath.isabs(to) or inside == ".." or inside.startswith("../"):
        return False
    link = folder / path
    link.symlink_to(to)
    # Through another link, a target that looks inside may be outside.
    if Path(os.path.realpath(link)).is_relative_to(folder):
        return True
    link.unlink()
    return False


def _told(paths: tuple[str, ...], one: str, several: str) -> str:
    if not paths:
        return ""
    named = ", ".join(escape(path, 60) for path in paths[:3]) + (", ..." if len(paths) > 3 else "")
    return f"{len(paths)} {one if len(paths) == 1 else several} ({named})"
