"""Make locks of models, record what a model computes, and update locks."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_ckptcompat.checkpoint.lock_writer import (
    Content,
    content,
    lock_of_checkpoint,
    with_more,
    write_lock,
)
from pytest_ckptcompat.core.errors import CheckpointError, ModelError
from pytest_ckptcompat.core.escape import escape
from pytest_ckptcompat.core.limits import DEFAULT, Limits
from pytest_ckptcompat.core.redaction import is_url

from .argument_types import AUTO

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

    from pytest_ckptcompat.checkpoint.checkpoint import Checkpoint
    from pytest_ckptcompat.models.blueprint import Blueprint

    from .past_checkpoint import Place

Declared = list[str] | str
"""Inputs as a lock records them: texts that `Inputs.parse` reads, or ``"auto"``."""


def lock_of_model(
    name: str,
    arguments: Mapping[str, Any] | None = None,
    *,
    inputs: Declared | None = None,
    batch: Any = None,
    method: str = "forward",
    limits: Limits = DEFAULT,
    most: int | None = None,
) -> Content:
    """Make the lock of the model ``package.module:name``, which is built without memory.

    Args:
        name: the name of the model.
        arguments: keyword arguments of the model.
        inputs: the inputs, recorded with the model's outputs for them. If None, nothing is recorded.
        batch: replaces `inputs`, in the form of `plain.packed`.
        method: which method is called.
        limits: caps on the record.
        most: the most characters of integers to record.

    Raises:
        CheckpointError: the model can't be imported or built, or the inputs can't be made.
    """
    import torch

    from pytest_ckptcompat.models.blueprint import blueprint

    from .behaviours import KEPT, recorded

    try:
        made = blueprint(name, arguments)
        schema = made.schema()
    except ModelError as error:
        raise CheckpointError(str(error)) from None
    state = schema.state_dict(keep_vars=True)
    table = {key: value for key, value in state.items() if isinstance(value, torch.Tensor)}
    tied: dict[int, list[str]] = {}
    for key, value in table.items():
        tied.setdefault(id(value), []).append(key)
    ties = [keys for keys in tied.values() if len(keys) > 1]
    rows = {key: [str(value.dtype).removeprefix("torch."), list(value.shape)] for key, value in table.items()}
    objects = [key for key in state if key not in table]
    source: Content = {"model": name} | ({"model_args": dict(arguments)} if arguments else {})
    found = content(source, rows, ties, objects, getattr(state, "_metadata", None))
    if inputs is not None:
        batch = _batch(inputs, made, schema)
    if batch is None:
        return found
    behaviour = recorded(made, table, ties, batch, method, limits=limits, most=KEPT if most is None else most)
    return with_more(found, behaviour=({"inputs": inputs} if inputs else {}) | behaviour)


def behaviour_of_checkpoint(
    ckpt: Checkpoint,
    name: str,
    arguments: Mapping[str, Any],
    inputs: Declared,
    method: str,
    limits: Limits = DEFAULT,
) -> Content:
    """Record what a checkpoint's model computes on synthetic values of the checkpoint's table.

    Args:
        ckpt: the checkpoint. Its values are not read.
        name: the name of the model, ``package.module:name``.
        arguments: keyword arguments of the model.
        inputs: the declared inputs.
        method: which method is called.
        limits: caps on the record.

    Raises:
        CheckpointError: the inputs can't be made, or the model does not load the table.
    """
    from pytest_ckptcompat.models.blueprint import blueprint
    from pytest_ckptcompat.verification.comparison import compare

    from .behaviours import recorded

    try:
        made = blueprint(name, arguments)
        schema = made.schema()
    except ModelError as error:
        raise CheckpointError(str(error)) from None
    if not compare(schema, ckpt.meta()).fits:
        raise CheckpointError(
            f"{ckpt.name} does not fit {made.name}, so that no outputs can be recorded: "
            "name the model that it was saved from"
        )
    about = {"model": name, "model_args": dict(arguments), "inputs": inputs}
    batch = _batch(inputs, made, schema)
    return about | recorded(made, ckpt, ckpt.ties, batch, method, limits=limits)


def lock_at(
    name: str,
    ref: str,
    arguments: Mapping[str, Any],
    inputs: Declared | None,
    method: str,
    place: Place,
) -> Content:
    """Make the lock of a model as of a commit; raises what `open_past` raises."""
    from pytest_ckptcompat.history.reference import Reference, resolve

    from . import past_checkpoint
    from .behaviours import KEPT

    commit = resolve(Reference.parse(f"git:{ref}"), place.folder)
    question = past_checkpoint.Question(name, arguments, None, method, inputs, KEPT)
    found = past_checkpoint.lock_at(f"git:{commit.sha}#{name}", question, place)
    return found | {"source": found["source"] | {"at": ref, "commit": commit.sha}}


def update(path: str, limits: Limits, place: Place | None = None) -> None:
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
        written = _made_anew(path, held, limits, place)
    except CheckpointError as error:
        raise CheckpointError(f"{escape(path)} can't be made again: {error}") from None
    write_lock(path, written)


def _made_anew(path: str, held: Mapping[str, Any], limits: Limits, place: Place | None) -> Content:
    source: Mapping[str, Any] = held["source"]
    behaviour: Mapping[str, Any] = held.get("behaviour") or {}
    inputs: Declared | None = behaviour.get("inputs")
    method: str = behaviour.get("method", "forward")
    arguments = source.get("model_args", behaviour.get("model_args", {}))
    if "commit" in source:
        from .past_checkpoint import Place

        here = place or Place(folder=Path(path).resolve().parent, limits=limits)
        anew = lock_at(source["model"], source["commit"], arguments, inputs, method, here)
        return anew | {"source": source}
    if "model" in source:
        return lock_of_model(source["model"], arguments, inputs=inputs, method=method, limits=limits)
    from pytest_ckptcompat.checkpoint.checkpoint import open_checkpoint
    from pytest_ckptcompat.checkpoint.plain_metadata import metadata

    named = source["checkpoint"]
    if not is_url(named):
        named = os.path.join(os.path.dirname(path), named)  # noqa: PTH118, PTH120  # paths stay text
    ckpt = open_checkpoint(named, source.get("state_dict_key"), limits=limits)
    plain = metadata(ckpt)[0] if "metadata" in held else None
    found = lock_of_checkpoint(ckpt, path, sha256="sha256" in source, plain=plain)
    if inputs is None:
        return found
    made = behaviour_of_checkpoint(ckpt, behaviour["model"], arguments, inputs, method, limits)
    return with_more(found, behaviour=made)


def _batch(inputs: Declared, made: Blueprint, schema: nn.Module) -> Any:
    """Return the inputs in the form of `plain.packed`.

    Raises:
        CheckpointError: the inputs can't be made, or the model provides none.
    """
    from pytest_ckptcompat.forward.declared_inputs import LOOKED_FOR, known_inputs
    from pytest_ckptcompat.forward.inputs import Inputs

    if inputs == AUTO:
        known = known_inputs(schema, made.build)
        if known is None:
            raise CheckpointError(f"{made.name} does not declare its inputs; looked for {LOOKED_FOR}")
        return known.plain()
    try:
        return Inputs.parse(inputs).plain()
    except ValueError as error:
        raise CheckpointError(str(error)) from None
