"""Locks of models, locks that record what a model computes, and locks rewritten from what they name."""

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

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pytest_ckptcompat.checkpoint.checkpoint import Checkpoint
    from pytest_ckptcompat.forward.inputs import Inputs
    from pytest_ckptcompat.models.blueprint import Blueprint


def lock_of_model(
    name: str,
    arguments: Mapping[str, Any] | None = None,
    *,
    batch: Any = None,
    method: str = "forward",
    limits: Limits = DEFAULT,
    most: int | None = None,
) -> Content:
    """The lock of ``package.module:name``, built without memory.

    Args:
        name: of the model.
        arguments: keyword arguments that it gets.
        batch: as `plain.packed` gives it: what the model gives for it is recorded; None: nothing is.
        method: which method is called.
        limits: caps on what is recorded.
        most: characters of the integers that are recorded.

    Raises:
        CheckpointError: the model can't be imported or built.
    """
    import torch

    from pytest_ckptcompat.models.blueprint import blueprint

    from .behaviours import KEPT, recorded

    try:
        made = blueprint(name, arguments)
        state = made.schema().state_dict(keep_vars=True)
    except ModelError as error:
        raise CheckpointError(str(error)) from None
    table = {key: value for key, value in state.items() if isinstance(value, torch.Tensor)}
    tied: dict[int, list[str]] = {}
    for key, value in table.items():
        tied.setdefault(id(value), []).append(key)
    ties = [keys for keys in tied.values() if len(keys) > 1]
    rows = {key: [str(value.dtype).removeprefix("torch."), list(value.shape)] for key, value in table.items()}
    objects = [key for key in state if key not in table]
    source: Content = {"model": name} | ({"model_args": dict(arguments)} if arguments else {})
    found = content(source, rows, ties, objects, getattr(state, "_metadata", None))
    if batch is None:
        return found
    behaviour = recorded(made, table, ties, batch, method, limits=limits, most=KEPT if most is None else most)
    return with_more(found, behaviour=behaviour)


def behaviour_of_checkpoint(
    ckpt: Checkpoint, made: Blueprint, inputs: Inputs, method: str, limits: Limits = DEFAULT
) -> Content:
    """What the model of a checkpoint gives on synthetic values of the checkpoint's table.

    Raises:
        CheckpointError: the inputs can't be made, or the model does not load the table.
    """
    from pytest_ckptcompat.verification.comparison import compare

    from .behaviours import recorded

    try:
        fitting = compare(made.schema(), ckpt.meta())
        batch = inputs.plain()
    except (ModelError, ValueError) as error:
        raise CheckpointError(str(error)) from None
    if not fitting.fits:
        raise CheckpointError(
            f"{ckpt.name} does not fit {made.name}, so that its outputs can't be recorded: "
            "name the model that it was saved from"
        )
    return recorded(made, ckpt, ckpt.ties, batch, method, limits=limits)


def update(path: str, limits: Limits) -> None:
    """Rewrite the lock file at `path` from the checkpoint or model that it names.

    Raises:
        CheckpointError: it names none, that can't be read or built, or the file can't be written.
    """
    try:
        held = json.loads(Path(path).read_text(encoding="utf-8"))
        source = held["source"]
        known = isinstance(source, dict) and isinstance(source.get("model", source.get("checkpoint")), str)
    except (OSError, ValueError, LookupError, TypeError):
        known = False
    if not known:
        raise CheckpointError(f"{escape(path)} does not say what it was made of: lock it anew")
    try:
        written = _made_anew(path, held, limits)
    except CheckpointError as error:
        raise CheckpointError(f"{escape(path)} can't be made anew: {error}") from None
    write_lock(path, written)


def _made_anew(path: str, held: Mapping[str, Any], limits: Limits) -> Content:
    source = held["source"]
    if "model" in source:
        return lock_of_model(source["model"])
    from pytest_ckptcompat.checkpoint.checkpoint import open_checkpoint

    named = source["checkpoint"]
    if not is_url(named):
        named = os.path.join(os.path.dirname(path), named)  # noqa: PTH118, PTH120  # paths stay text
    ckpt = open_checkpoint(named, source.get("state_dict_key"), limits=limits)
    return lock_of_checkpoint(ckpt, path, sha256="sha256" in source)
