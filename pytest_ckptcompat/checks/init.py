"""Write a first ``ckptcompat.toml``. It names the lock of a checkpoint, or the default branch."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_ckptcompat.checkpoint.lock_writer import lock_of_checkpoint, with_more, write_lock, write_text
from pytest_ckptcompat.checkpoint.plain_metadata import metadata
from pytest_ckptcompat.core.errors import CheckpointError
from pytest_ckptcompat.forward.declared_inputs import known_inputs
from pytest_ckptcompat.history.reference import git, repository
from pytest_ckptcompat.recipes.arguments import toml

from .argument_types import AUTO
from .locks import behaviour_of_checkpoint, built
from .past_checkpoint import Question

if TYPE_CHECKING:
    from pytest_ckptcompat.checkpoint.checkpoint import Checkpoint

FILE = "ckptcompat.toml"
_BRANCHES = ("origin/main", "origin/master", "main", "master")


@dataclass(frozen=True)
class Written:
    """The result of `write`.

    Attributes:
        files: the files, in the order in which they were written.
        ckpt: the checkpoint that the check names: a lock, or ``git:REF...``.
        inputs: ``"auto"`` if the model provides its inputs, else None.
    """

    files: tuple[str, ...]
    ckpt: str
    inputs: str | None


def write(model: str, ckpt: Checkpoint | None) -> Written:
    """Write ``ckptcompat.toml`` into the current folder, with the lock of a checkpoint beside it.

    Without a checkpoint, the check compares with the default branch.

    Raises:
        CheckpointError: a file already exists or can't be written, the model can't be built or does not fit
            the checkpoint, or there is no branch to compare with.
    """
    _absent(FILE)
    made, schema = built(Question(model))
    inputs = None if known_inputs(schema, made.build) is None else AUTO
    if ckpt is None:
        named = f"git:{_default_branch()}..."
        write_text(FILE, _text(model, named, inputs))
        return Written((FILE,), named, inputs)
    lock = f"{re.sub(r'[^A-Za-z0-9._-]+', '-', ckpt.name.partition('.')[0]) or 'checkpoint'}.ckpt.json"
    _absent(lock)
    content = lock_of_checkpoint(ckpt, lock, plain=metadata(ckpt)[0])
    if inputs is not None:
        question = Question(model, inputs=inputs)
        content = with_more(content, behaviour=behaviour_of_checkpoint(ckpt, question))
    write_lock(lock, content)
    write_text(FILE, _text(model, lock, inputs))
    return Written((lock, FILE), lock, inputs)


def _default_branch() -> str:
    """Return the default branch, as this clone knows it."""
    root = repository(Path.cwd())
    head = git(root, "symbolic-ref", "--short", "-q", "refs/remotes/origin/HEAD", check=False)
    for branch in filter(None, (head.stdout.decode().strip(), *_BRANCHES)):
        if not git(root, "rev-parse", "-q", "--verify", f"{branch}^{{commit}}", check=False).returncode:
            return branch
    raise CheckpointError(
        f"there is no branch {', '.join(_BRANCHES[:-1])} or {_BRANCHES[-1]} to compare with: commit first, "
        "or name a checkpoint: ckptcompat init MODEL CKPT"
    )


def _text(model: str, ckpt: str, inputs: str | None) -> str:
    name = model.rpartition(":")[2].rpartition(".")[2].lower()
    named = {"name": name, "ckpt": ckpt, "model": model} | ({"inputs": inputs} if inputs else {})
    lines = ["[[check]]", *(f"{key} = {toml(value)}" for key, value in named.items())]
    if inputs is None:
        lines.append('# inputs = ["1x3x224x224"]  # with them, what the model computes is compared too')
    return "\n".join([*lines, ""])


def _absent(path: str) -> None:
    if os.path.lexists(path):
        raise CheckpointError(f"{path} is there already, and is not overwritten: edit it, or remove it first")
