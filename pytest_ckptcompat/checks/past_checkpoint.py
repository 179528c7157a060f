"""Open ``git:REF`` as a checkpoint: the keys and shapes that the model at that commit would have saved."""

from __future__ import annotations

import json
import os
import re
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_ckptcompat.checkpoint.checkpoint import Checkpoint, checkpoint
from pytest_ckptcompat.checkpoint.contents import Contents
from pytest_ckptcompat.core.errors import CheckpointError
from pytest_ckptcompat.core.imports import importable
from pytest_ckptcompat.core.limits import DEFAULT, Limits
from pytest_ckptcompat.core.redaction import is_url
from pytest_ckptcompat.files.files import Files
from pytest_ckptcompat.formats.lock import header_of
from pytest_ckptcompat.history import cache
from pytest_ckptcompat.history.child import TIMEOUT, ChildError, ask
from pytest_ckptcompat.history.reference import Commit, Reference, resolve, shown
from pytest_ckptcompat.history.tree import exported

if TYPE_CHECKING:
    from collections.abc import Mapping

FORMAT = "git"
_MISSING = re.compile(r"o module(?: named)? '([\w.]+)'|cannot import name '(\w+)' from '([\w.]+)'")
JOB = "pytest_ckptcompat.checks.past"
"""The module that answers in a child process."""


@dataclass(frozen=True)
class Place:
    """Where a check runs when it asks past commits.

    Attributes:
        folder: a folder in the repository that ``git:`` refers to.
        cache: pytest's cache, where answers are kept; None for the nearest one.
        keeps: whether answers are kept at all.
        timeout: the most seconds that a past version may take.
        limits: caps on what is read and drawn.
    """

    folder: Path = field(default_factory=Path.cwd)
    cache: Path | None = None
    keeps: bool = True
    timeout: float = TIMEOUT
    limits: Limits = DEFAULT


@dataclass(frozen=True)
class Question:
    """A question about a model: what it saves, and what it computes.

    Attributes:
        model: a callable, or ``package.module:name``; None if a reference to a commit names it.
        model_args: keyword arguments of the model.
        method: which method of the model is called.
        inputs: the inputs to record the outputs for, in the form of a lock: texts that `Inputs.parse` reads,
            or ``"auto"``. None to run nothing.
        batch: replaces `inputs`, in the form of `plain.packed`.
        most: the most characters of integers to record.
    """

    model: Any
    model_args: Mapping[str, Any] = field(default_factory=dict)
    method: str = "forward"
    inputs: list[str] | str | None = None
    batch: Any = None
    most: int = 64_000


def open_past(path: str, question: Question, place: Place) -> Checkpoint:
    """Open the checkpoint that ``git:REF`` stands for, with its outputs if the question has inputs.

    Raises:
        CheckpointError: there is no such commit, or the model can't be imported or built there.
    """
    header = replace(header_of(lock_at(path, question, place), place.limits), format=FORMAT)
    return checkpoint(Contents(path, header, Files(), place.limits))


def lock_of_commit(ref: str, question: Question, place: Place) -> dict[str, Any]:
    """Return the lock of a model as of a commit, which it names; errors as for `open_past`."""
    commit = resolve(Reference.parse(f"git:{ref}"), place.folder)
    found = lock_at(f"git:{commit.sha}#{question.model}", question, place)
    return found | {"source": found["source"] | {"at": ref, "commit": commit.sha}}


def lock_at(path: str, question: Question, place: Place) -> dict[str, Any]:
    """Return the lock of the model that ``git:REF`` stands for; errors as for `open_past`."""
    reference, commit = _resolved(path, place)
    asked = _request(reference, question, place)
    kept = {"commit": commit.sha, "folder": _inside(place.folder, commit), "asked": asked}
    folder = (place.cache or cache.nearest(place.folder, commit.repository)) if place.keeps else None
    found = cache.answer(folder, kept, lambda: _asked(reference, commit, asked, place), commit.repository)
    lock: dict[str, Any] = found["lock"]
    return lock


def behaviour_at(path: str, question: Question, ckpt: Checkpoint, place: Place) -> dict[str, Any]:
    """Run the model of a commit on a checkpoint's values; return the form of `Behaviour.to_json`.

    Raises:
        CheckpointError: as for `open_past`, or the past model does not load the checkpoint.
    """
    reference, commit = _resolved(path, place)
    values = {"path": reachable(ckpt.path), "state_dict_key": ckpt.state_dict_key or None}
    asked = _request(reference, question, place) | {"values": values}
    behaviour: dict[str, Any] = _asked(reference, commit, asked, place)["behaviour"]
    return behaviour


def reachable(path: str) -> str:
    """Return the path of a checkpoint for a process in another folder."""
    return path if is_url(path) else os.path.abspath(path)  # noqa: PTH100  # links stay


def _resolved(path: str, place: Place) -> tuple[Reference, Commit]:
    reference = Reference.parse(path)
    return reference, resolve(reference, place.folder)


def _request(reference: Reference, question: Question, place: Place) -> dict[str, Any]:
    """Return the arguments for `past.answer`."""
    today = importable(question.model)
    name = reference.model or today
    if not name:
        why = "name the model too:" if question.model is None else _NAMELESS
        raise CheckpointError(f"{shown(reference)}: {why} {shown(reference)}#package.module:name")
    model_args = dict(question.model_args) if name == today else {}
    try:
        json.dumps(model_args)
    except (TypeError, ValueError):
        why = "model_args= holds what another process can't be given: use numbers, texts, lists and dicts"
        raise CheckpointError(f"{shown(reference)}: {why}") from None
    asked = vars(question) | {"model": name, "model_args": model_args}
    return {"question": asked, "limits": asdict(place.limits)}


_NAMELESS = "the model has no name in another process (a lambda, a local function, a module): write"


def _asked(reference: Reference, commit: Commit, asked: dict[str, Any], place: Place) -> dict[str, Any]:
    with exported(commit) as tree:
        try:
            return ask(commit, tree, JOB, asked, place.timeout)
        except ChildError as error:
            lacks = f"; of this commit, {tree.lacks}" if tree.lacks else ""
            told = f"{error}{_absent(str(error), commit, reference)}{lacks}"
            name = asked["question"]["model"]
            raise CheckpointError(f"{shown(reference)}: {name} at commit {commit.short}: {told}") from None


def _absent(told: str, commit: Commit, reference: Reference) -> str:
    """Return what to do about a module or a name that the commit lacks, or ``""``."""
    if found := _MISSING.search(told):
        module, name, package = found.groups()
        with suppress(Exception):  # a parent package that does not import
            place = Path(getattr(find_spec(module or f"{package}.{name}"), "origin", None) or "")
            if place.is_relative_to(commit.repository):
                return f". Today's {place.relative_to(commit.repository)} is not in that commit"
    renamed = "there is no module" in told or "' has no '" in told
    return f". If it had another name there, write {shown(reference)}#package.module:name" if renamed else ""


def _inside(folder: Path, commit: Commit) -> str:
    here = folder.resolve()
    return str(here.relative_to(commit.repository)) if here.is_relative_to(commit.repository) else ""
