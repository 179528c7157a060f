"""Parse ``git:REF``, and ask git which commit it names."""

from __future__ import annotations

import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from pytest_ckptcompat.core.errors import CheckpointError
from pytest_ckptcompat.core.escape import escape
from pytest_ckptcompat.core.redaction import is_meant_as_url
from pytest_ckptcompat.files.paths import GIT, display

QUIET = {"GIT_OPTIONAL_LOCKS": "0", "GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"}
"""Environment of every git: nothing is locked or asked for, and messages are in English."""
_SHA = re.compile(r"[0-9a-f]{40,64}")
_MODEL = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")


@dataclass(frozen=True, slots=True)
class Reference:
    """The parts of ``git:REF#package.module:name``, or of ``git:REF...``, the merge base of REF and HEAD."""

    ref: str
    merge_base: bool = False
    model: str = ""

    @classmethod
    def parse(cls, text: str) -> Reference:
        """Parse ``git:REF`` or ``git:REF...``, both optionally with ``#package.module:name``.

        Raises:
            CheckpointError: there is no REF.
        """
        ref = text.removeprefix(GIT)
        before, mark, model = ref.rpartition("#")
        ref, model = (before, model) if mark and _MODEL.fullmatch(model) else (ref, "")
        merge_base = ref.endswith("...")
        ref = ref.removesuffix("...").strip()
        if not ref or "\0" in ref or "\n" in ref:
            raise CheckpointError(f"{escape(text)} names no commit: write git:REF, as in git:origin/main")
        if is_meant_as_url(ref):
            raise CheckpointError(
                f"{display(text)} is an address, and git: reads the repository of the current folder alone: "
                "write git:REF, as in git:origin/main"
            )
        return cls(ref, merge_base, model)


@dataclass(frozen=True, slots=True)
class Commit:
    """A commit, by its full hash, of the repository whose working tree has this root."""

    repository: Path
    sha: str

    @property
    def short(self) -> str:
        """The first ten digits of the hash."""
        return self.sha[:10]


def resolve(reference: Reference, folder: Path) -> Commit:
    """Return the commit that a reference names in the repository of `folder`.

    Raises:
        CheckpointError: git or the repository is missing, git refuses to read it, or there is no such commit.
            The message says what to do.
    """
    root = repository(folder)
    sha = _commit(root, reference.ref)
    if reference.merge_base:
        base = git(root, "merge-base", "--end-of-options", "HEAD", sha, check=False)
        if base.returncode:
            both = f"HEAD and {escape(reference.ref)}"
            raise CheckpointError(f"{shown(reference)}: {both} have no common commit here{_shallow(root)}")
        sha = base.stdout.decode("ascii").strip()
    return Commit(root, sha)


def shown(reference: Reference) -> str:
    """Return ``git:REF`` for reports, safe to print."""
    return escape(f"{GIT}{reference.ref}{'...' if reference.merge_base else ''}", 80)


def repository(folder: Path) -> Path:
    """Return the root of the working tree that contains a folder; errors as for `resolve`."""
    found = git(folder, "rev-parse", "--show-toplevel", check=False)
    if found.returncode:
        said = _last_line(found.stderr)
        if "dubious ownership" in found.stderr.decode("utf-8", "replace"):
            raise CheckpointError(
                f"git does not trust {escape(str(folder))}, which belongs to another user: "
                f"git config --global --add safe.directory {escape(str(folder))}"
            )
        if said.startswith("not a git repository: "):
            raise CheckpointError(
                f"the file .git above {escape(str(folder))} names a repository that is not there: "
                f"{said.partition(': ')[2]} (a worktree or a submodule without its main repository)"
            )
        if "not a git repository" in said:
            raise CheckpointError(f"{escape(str(folder))} is not in a git repository, and git: needs one")
        raise CheckpointError(f"git can't read the repository of {escape(str(folder))}: {said}")
    root = os.fsdecode(found.stdout.removesuffix(b"\n"))
    if not root:
        raise CheckpointError(f"{escape(str(folder))} is in a bare git repository, which has no working tree")
    return Path(root)


def git(folder: Path, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[bytes]:
    """Run git without hooks, prompts and optional locks.

    Raises:
        CheckpointError: git can't be run, or it failed and `check` is True.
    """
    command = ["git", "-c", "core.fsmonitor=false", "-c", "core.quotePath=false", *arguments]
    try:
        done = subprocess.run(  # noqa: S603  # arguments are a list, and REF comes after --end-of-options
            command, cwd=folder, env=environment() | QUIET, input=b"", capture_output=True, check=False
        )
    except FileNotFoundError:
        raise CheckpointError("git: needs the command git, which is not installed") from None
    except OSError as error:
        why = error.strerror or str(error)
        raise CheckpointError(f"git can't be run in {escape(str(folder))}: {why}") from None
    if check and done.returncode:
        raise CheckpointError(f"git {arguments[0]} failed: {_last_line(done.stderr)}")
    return done


def environment() -> dict[str, str]:
    """Return the environment without variables that select another repository, as in a git hook."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("GIT_") or name.startswith("GIT_CONFIG_")
    }


def _commit(root: Path, ref: str) -> str:
    if sha := _found(root, ref):
        return sha
    if not git(root, "for-each-ref", "--count=1", check=False).stdout and not _found(root, "HEAD"):
        raise CheckpointError(f"there is no commit yet in {escape(str(root))}: commit first")
    hint = _misspelt(root, ref) or _shallow(root) or _near(root, ref)
    raise CheckpointError(f"git finds no commit '{escape(ref)}' in {escape(str(root))}{hint}")


def _found(root: Path, ref: str) -> str:
    """Return the commit that git finds under a name, or ``""``. For a range, git prints several lines."""
    asked = "rev-parse", "--verify", "--quiet", "--end-of-options", f"{ref}^{{commit}}"
    found = git(root, *asked, check=False).stdout.decode("ascii", "replace").strip()
    return found if _SHA.fullmatch(found) else ""


def _misspelt(root: Path, ref: str) -> str:
    """Return what to write instead if a part of the text is a commit."""
    before, dots, after = ref.partition("..")
    if dots and _found(root, before) and _found(root, after.removeprefix(".") or "HEAD"):
        return (
            f": it is a range. One commit is meant: git:{escape(before)}, or git:{escape(before)}... for the "
            "commit where HEAD left it"
        )
    before, mark, _ = ref.rpartition("#")
    if mark and _found(root, before.removesuffix("...")):
        return f": name a model of it as git:{escape(before)}#package.module:name"
    before, mark, _ = ref.partition(":")
    if mark and before and _found(root, before):
        return f": it is a file. The commit is git:{escape(before)}"
    return ""


def _shallow(root: Path) -> str:
    answer = git(root, "rev-parse", "--is-shallow-repository", check=False).stdout.strip()
    if answer != b"true":
        return ""
    return (
        ": the clone is shallow. Fetch the history: fetch-depth: 0 for actions/checkout, GIT_DEPTH: 0 in "
        "GitLab, else git fetch --unshallow"
    )


def _near(root: Path, ref: str) -> str:
    """Return a hint: the branch of a remote that may have been meant, or how to fetch it."""
    remotes = git(root, "remote", check=False).stdout.decode("utf-8", "replace").split()
    for remote in remotes:
        if _found(root, f"{remote}/{ref}"):
            return f"; did you mean git:{escape(f'{remote}/{ref}')}?"
    remote, slash, branch = ref.partition("/")
    if slash and remote in remotes:
        return f"; fetch it: git fetch {escape(remote)} {escape(branch)}"
    return ""


def _last_line(stderr: bytes) -> str:
    lines = [line for line in stderr.decode("utf-8", "replace").splitlines() if line.strip()]
    return escape((lines or ["no message"])[-1].removeprefix("fatal: "), 200)
