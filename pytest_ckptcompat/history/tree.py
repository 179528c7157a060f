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
    from collections.abc import Callable, Iterator

_PIECE = 1 << 20
_POINTER = b"version https://git-lfs.github.com/"


@dataclass(frozen=True, slots=True)
class Tree:
    """The files of a commit.

    Attributes:
        folder: the folder that contains them.
        lacks: how they differ from a checkout, in words; ``""`` if they don't.
    """

    folder: Path
    lacks: str = ""


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
    submodules: list[str] = []
    pointers: list[str] = []
    links: list[tuple[str, bytes]] = []
    with _contents(commit) as read:
        for path, mode, sha in _entries(commit):
            if mode == "160000":
                submodules.append(path)
                continue
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
    lacks = [
        _told(submodules, "submodule is absent", "submodules are absent"),
        _told(pointers, "git LFS file is a pointer", "git LFS files are pointers"),
        _told(refused, "link leads outside and is absent", "links lead outside and are absent"),
    ]
    return Tree(folder, ", ".join(filter(None, lacks)))


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


@contextmanager
def _contents(commit: Commit) -> Iterator[Callable[[str, IO[bytes] | None], bytes]]:
    """Yield a function that copies an object to a file, and returns its first bytes; without a file, all."""
    with subprocess.Popen(
        ["git", "cat-file", "--batch"],  # noqa: S607
        cwd=commit.repository,
        env=environment() | QUIET,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as process:
        asked, answers = process.stdin, process.stdout
        assert asked is not None
        assert answers is not None

        def read(sha: str, target: IO[bytes] | None) -> bytes:
            asked.write(f"{sha}\n".encode("ascii"))
            asked.flush()
            about = answers.readline().split()
            if len(about) != 3:
                lacking = f"git can't read object {sha}, which the clone lacks: git fetch --refetch"
                raise CheckpointError(lacking)
            left, head = int(about[2]), b""
            while left:
                piece = answers.read(min(left, _PIECE))
                if not piece:
                    raise CheckpointError(f"git stopped while reading the object {sha}")
                left -= len(piece)
                if target is None:
                    head += piece
                else:
                    head = head or piece[:200]
                    target.write(piece)
            answers.read(1)  # the newline after the object
            return head

        try:
            yield read
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


def _told(paths: list[str], one: str, several: str) -> str:
    if not paths:
        return ""
    named = ", ".join(escape(path, 60) for path in paths[:3]) + (", ..." if len(paths) > 3 else "")
    return f"{len(paths)} {one if len(paths) == 1 else several} ({named})"
