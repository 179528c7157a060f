"""Find the first commit at which a checkpoint no longer fits a model."""

from __future__ import annotations

import tempfile
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from pytest_ckptcompat.checkpoint.checkpoint import open_checkpoint
from pytest_ckptcompat.checkpoint.lock_writer import write_lock
from pytest_ckptcompat.core.errors import CheckpointError
from pytest_ckptcompat.core.escape import escape
from pytest_ckptcompat.files.paths import display, is_reference
from pytest_ckptcompat.history.bisect import Answer, Found, line_of, search
from pytest_ckptcompat.history.child import ChildError, ask
from pytest_ckptcompat.history.reference import Commit, Reference, git, resolve
from pytest_ckptcompat.history.tree import exported

from .past_checkpoint import JOB, Place, Question, lock_at, reachable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_ckptcompat.core.limits import Limits


@dataclass(frozen=True)
class Misfit:
    """The result of a search.

    Attributes:
        found: how the search ended.
        commits: one line for each commit that may be the first, newest first; empty if there is none.
        report: the report of the first commit that certainly differs, or of the last commit.
        why_skipped: why the last skipped commit was skipped.
    """

    found: Found
    commits: tuple[str, ...]
    report: str
    why_skipped: str


def first_misfit(
    ckpt: str, model: str, place: Place, *, good: str | None = None, bad: str = "HEAD", width: int = 80
) -> Misfit:
    """Search the first parents of `bad` for the first commit at which a checkpoint no longer fits.

    The checkpoint may be a commit too, ``git:REF``. Without `good`, a commit at which it fits is looked for
    1, 2, 4 ... commits back.

    Raises:
        CheckpointError: the checkpoint can't be read, or a commit does not exist.
    """
    last = resolve(Reference.parse(f"git:{bad}"), place.folder)
    line = line_of(last)
    place_of_good = None
    if good is not None:
        sha = resolve(Reference.parse(f"git:{good}"), place.folder).sha
        if sha not in line:
            raise CheckpointError(f"{escape(good)} is not among the first parents of {escape(bad)}")
        place_of_good = line.index(sha)
    reports: dict[int, str] = {}
    skipped: list[str] = []
    with _readable(ckpt, model, place) as path:

        def fits(index: int) -> Answer:
            asked = {
                "question": {"model": model},
                "limits": asdict(place.limits),
                "check": {"path": path, "name": display(ckpt), "width": width},
            }
            commit = Commit(last.repository, line[index])
            try:
                with exported(commit) as tree:
                    answer = ask(commit, tree, JOB, asked, place.timeout)
            except ChildError as error:
                skipped.append(f"{commit.short}: {error}")
                return "skipped"
            reports[index] = str(answer["report"])
            return "fits" if answer["ok"] else "differs"

        found = search(len(line), fits, place_of_good)
    firsts = () if found.first is None else (found.first, *found.between)
    commits = tuple(_described(Commit(last.repository, line[index])) for index in firsts)
    report = reports.get(found.first or 0, "")
    return Misfit(found, commits, report, skipped[-1] if skipped else "")


@contextmanager
def _readable(ckpt: str, model: str, place: Place) -> Iterator[str]:
    """Yield the checkpoint's path for a process in another folder; for a commit, the path of a lock."""
    if not is_reference(ckpt):
        open_checkpoint(ckpt, limits=place.limits)
        yield reachable(ckpt)
        return
    with tempfile.TemporaryDirectory(prefix="ckptcompat-lock-", ignore_cleanup_errors=True) as room:
        path = f"{room}/commit.ckpt.json"
        write_lock(path, lock_at(ckpt, Question(model), place))
        yield path


def _described(commit: Commit) -> str:
    """Return a line such as ``1a2b3c4d5e 2026-11-29 A. Uthor: subject``."""
    told = git(commit.repository, "show", "-s", "--format=%h %cs %an: %s", "--abbrev=10", commit.sha).stdout
    return escape(told.decode("utf-8", "replace").strip(), 200)


def answer_of(model: str, limits: Limits, *, path: str, name: str, width: int) -> dict[str, Any]:
    """Check the checkpoint against the model of this commit. Runs in the child process."""
    from pytest_ckptcompat.report.terminal import render

    from .arguments import CheckArguments
    from .check import Check

    declared = CheckArguments.of(model=model, device="none")
    report = Check(declared, path, lambda key: open_checkpoint(path, key, limits=limits), shown=name).run()
    lost = [found for found in report.errors if found.rule in ("model-error", "no-checkpoint")]
    if lost:
        return {"error": lost[0].message}
    return {"ok": report.ok, "report": render(report, width)}
