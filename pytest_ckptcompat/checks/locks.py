"""Make locks of models, record what a model computes, and update locks."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.parameter import is_lazy

from pytest_ckptcompat.checkpoint.checkpoint import open_checkpoint
from pytest_ckptcompat.checkpoint.lock_writer import (
    Content,
    content,
    lock_of_checkpoint,
    with_more,
    write_lock,
)
from pytest_ckptcompat.checkpoint.plain_metadata import metadata
from pytest_ckptcompat.core.errors import CheckpointError, ModelError
from pytest_ckptcompat.core.escape import escape
from pytest_ckptcompat.core.redaction import is_url
from pytest_ckptcompat.models.blueprint import blueprint
from pytest_ckptcompat.verification.comparison import compare

from .behaviours import recorded
from .past_checkpoint import Place, Question, lock_of_commit
from .subject import parsed

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

    from pytest_ckptcompat.checkpoint.checkpoint import Checkpoint
    from pytest_ckptcompat.core.limits import Limits
    from pytest_ckptcompat.models.blueprint import Blueprint


def lock_of_model(question: Question, limits: Limits) -> Content:
    """Make the lock of a model, which is built without memory, with its outputs if there are inputs.

    Raises:
        CheckpointError: the model can't be built or has no shapes yet, or the inputs can't be made.
    """
    made, schema = built(question)
    state = schema.state_dict(keep_vars=True)
    table = {key: value for key, value in state.items() if isinstance(value, torch.Tensor)}
    if lazy := [key for key, value in table.items() if is_lazy(value)]:
        raise CheckpointError(
            f"{question.model}: {escape(lazy[0])} belongs to a lazy module and has no shape yet: "
            "lock a checkpoint, or name a function that runs the model once"
        )
    tied: dict[int, list[str]] = {}
    for key, value in table.items():
        tied.setdefault(id(value), []).append(key)
    ties = [keys for keys in tied.values() if len(keys) > 1]
    rows = {key: [str(value.dtype).removeprefix("torch."), list(value.shape)] for key, value in table.items()}
    objects = [key for key in state if key not in table]
    arguments = {"model_args": dict(question.model_args)} if question.model_args else {}
    source: Content = {"model": question.model} | arguments
    found = content(source, rows, ties, objects, getattr(state, "_metadata", None))
    batch = _batch(question, made, schema)
    if batch is None:
        return found
    behaviour = recorded(made, table, ties, batch, question.method, limits=limits, most=question.most)
    inputs = {} if question.inputs is None else {"inputs": question.inputs}
    return with_more(found, behaviour=inputs | behaviour)


def behaviour_of_checkpoint(ckpt: Checkpoint, question: Question) -> Content:
    """Record what a checkpoint's model computes on synthetic values of the checkpoint's table.

    Raises:
        CheckpointError: the inputs can't be made, or the model does not load the table.
    """
    made, schema = built(question)
    if not compare(schema, ckpt.meta()).fits:
        raise CheckpointError(
            f"{ckpt.name} does not fit {made.name}, so that no outputs can be recorded: "
            "name the model that it was saved from"
        )
    about = {"model": question.model, "model_args": dict(question.model_args), "inputs": question.inputs}
    batch, limits = _batch(question, made, schema), ckpt.contents.limits
    return about | recorded(made, ckpt, ckpt.ties, batch, question.method, limits=limits, most=question.most)


def built(question: Question) -> tuple[Blueprint, nn.Module]:
    """Return how a model is built, and the model on meta; raise CheckpointError if that fails."""
    try:
        made = blueprint(question.model, question.model_args)
        return made, made.schema()
    except ModelError as error:
        raise CheckpointError(str(error)) from None


def _batch(question: Question, made: Blueprint, schema: nn.Module) -> Any:
    """Return the inputs in the form of `plain.packed`, or None if there are none."""
    if question.inputs is None:
        return question.batch
    try:
        return parsed(question.inputs, made, schema).plain()
    except ValueError as error:
        raise CheckpointError(str(error)) from None


def update(path: str, limits: Limits) -> None:
    """Update the lock file at `path` from the checkpoint, model or commit that it names.

    Outputs and metadata are recorded again if the lock holds them.

    Raises:
        CheckpointError: it names none of these, its source can't be read or built, or the file can't be
            written.
    """
    try:
        held = json.loads(Path(path).read_text(encoding="utf-8"))
        source = held["source"]
        known = isinstance(source, dict) and isinstance(source.get("model", source.get("checkpoint")), str)
    except (OSError, ValueError, LookupError, TypeError):
        known = False
    if not known:
        raise CheckpointError(f"{escape(path)} does not say what it was made of: lock it again")
    try:
        written = _made_anew(path, held, limits)
    except CheckpointError as error:
        raise CheckpointError(f"{escape(path)} can't be made again: {error}") from None
    write_lock(path, written)


def _made_anew(path: str, held: Mapping[str, Any], limits: Limits) -> Content:
    source: Mapping[str, Any] = held["source"]
    behaviour = held.get("behaviour")
    behaviour = behaviour if isinstance(behaviour, dict) else {}
    question = Question(
        source.get("model", behaviour.get("model")),
        source.get("model_args", behaviour.get("model_args", {})),
        behaviour.get("method", "forward"),
        behaviour.get("inputs"),
    )
    if "commit" in source:
        place = Place(folder=Path(path).resolve().parent, limits=limits)
        return lock_of_commit(source["commit"], question, place) | {"source": source}
    if "model" in source:
        return lock_of_model(question, limits)
    named = source["checkpoint"]
    if not is_url(named):
        named = os.path.join(os.path.dirname(path), named)  # noqa: PTH118, PTH120  # paths stay text
    ckpt = open_checkpoint(named, source.get("state_dict_key"), limits=limits)
    plain = metadata(ckpt)[0] if "metadata" in held else None
    found = lock_of_checkpoint(ckpt, path, sha256="sha256" in source, plain=plain)
    if question.inputs is None:
        return found
    return with_more(found, behaviour=behaviour_of_checkpoint(ckpt, question))
