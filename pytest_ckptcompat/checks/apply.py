"""Write the grown checkpoint. Unchanged tensors are copied from file to file, one at a time."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_ckptcompat.checkpoint.entries import beside
from pytest_ckptcompat.checkpoint.wrappers import Selection, state_dict_at
from pytest_ckptcompat.checkpoint.written import Content, Value
from pytest_ckptcompat.core import memory
from pytest_ckptcompat.core.errors import CheckpointError, MisfitError, ModelError
from pytest_ckptcompat.core.escape import escape
from pytest_ckptcompat.core.imports import imported
from pytest_ckptcompat.files.layouts import optimizer_beside
from pytest_ckptcompat.files.paths import display
from pytest_ckptcompat.optimizer.state import saved_states
from pytest_ckptcompat.recipes.recipe import Recipe

from . import protection
from .averages import grown_averages
from .fitting import compared, completed
from .growth import Growth
from .header_stages import open_stage, read_stage, source_stage
from .lightning_hook import with_hook
from .log import Log, Stopped
from .output import grown_state, kind_of_output, refuse_replacing, write
from .value_stages import optimizer_holder
from .waivers import Waiver, unwaived

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import torch
    from torch import nn

    from pytest_ckptcompat.checkpoint.checkpoint import Checkpoint
    from pytest_ckptcompat.verification.comparison import Comparison

    from .arguments import CheckArguments
    from .output import Kind

__all__ = ["MisfitError", "Written", "apply", "apply_declared"]

_STATE_ALONE = "the state dict alone: safetensors holds nothing else"


@dataclass(frozen=True)
class Written:
    """The written file or folder.

    Attributes:
        path: the file or folder.
        tensors: how many tensors the state dict has.
        nbytes: the size of the file, or of the files of a folder.
        notes: what happened to the rest of the checkpoint, where that needs saying.
    """

    path: str
    tensors: int
    nbytes: int
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [f"{display(self.path)}: {self.tensors} tensors, {memory.shown(self.nbytes)}", *self.notes]
        return "\n".join(lines)


def apply(
    checkpoint: Checkpoint,
    model: nn.Module,
    recipe: Recipe,
    out_path: str | os.PathLike[str],
    *,
    source_model: nn.Module | None = None,
    optimizer: Callable[[Any], torch.optim.Optimizer] | None = None,
    optimizer_state: Checkpoint | None = None,
    allow: Sequence[Waiver] = (),
    force: bool = False,
) -> Written:
    """Write the checkpoint that a recipe makes of an old one, completely or not at all.

    A ``.safetensors`` file holds only the state dict, and tied tensors under one name (the metadata lists the
    others). A torch file holds the same as the old file: the outer object, ties, ``_metadata``, and the
    optimizer states and averages of the weights, which are grown too; ``torch.load(weights_only=True)`` reads
    it. A folder is a distributed checkpoint with the same content. Only what the recipe computes is held in
    memory, plus one tensor at a time.

    Args:
        checkpoint: the old checkpoint.
        model: the new model. It may be on the meta device, unless the recipe takes values from it.
        recipe: how the old checkpoint becomes the new one.
        out_path: where to write. An existing file is replaced.
        source_model: the model that the checkpoint was made for. It shows whose optimizer state is which.
        optimizer: makes the new optimizer, as in `check`. Its parameter groups are written.
        optimizer_state: the optimizer's state, if it has its own file. It is written beside `out_path`.
        allow: waivers. The keys that they cover may be missing or unexpected.
        force: replace the checkpoint itself, or a folder.

    Raises:
        CheckpointError: the old checkpoint's values can't be read.
        RecipeError: the recipe does not apply.
        MisfitError: the result does not load into the model, or the optimizer's state can't be matched.
        ValueError: the output can't hold the checkpoint, or must not be replaced.
        OSError: it can't be written.
    """
    out = os.fspath(out_path)
    kind = kind_of_output(out)
    if not force:
        refuse_replacing(checkpoint, out)
    recipe = completed(recipe, checkpoint, model, None if source_model is None else (lambda: source_model))
    target = model.state_dict()
    _hold_fit(compared(checkpoint, model, recipe, recipe.run(checkpoint.meta(), target)), allow)
    applied = recipe.run(checkpoint.stored(), target)
    growth = Growth(checkpoint, recipe, applied, model, source_model, optimizer, allow)
    content, notes = Content(checkpoint.materialise), list[str]()
    state = grown_state(applied.state_dict, model, content)
    whole: Any = state
    inner = state_dict_at(checkpoint.wrapper, checkpoint.state_dict_key)
    others = beside(checkpoint.wrapper, checkpoint.state_dict_key)
    if kind == "safetensors":
        notes += [_STATE_ALONE] if checkpoint.state_dict_key else []
    elif isinstance(inner, Selection):
        notes.append(f"what is not below {escape(checkpoint.state_dict_key, 60)!r} is left out")
    elif isinstance(checkpoint.wrapper, dict) and (others or inner is not checkpoint.wrapper):
        content.instead(inner, state)
        notes += growth.rewrite(content, by_name=kind == "folder")
        notes += grown_averages(content, inner, growth)
        whole = {**state, **content.of(others)} if others else content.of(checkpoint.wrapper)
    path = optimizer_beside(checkpoint.path)
    unnamed = path is not None and optimizer_state is None and not saved_states(checkpoint.wrapper)
    if path is not None and unnamed and kind != "safetensors":
        notes.append(f"{escape(Path(path).name)} beside it is not grown: name it with --optimizer-state")
    second = None if optimizer_state is None else _second_output(out, kind, optimizer_state, growth)
    nbytes = write(out, kind, whole)
    if second is not None:
        state_path, state_kind, state_content, told = second
        if isinstance(state_content, dict):  # otherwise all of it is left out
            write(state_path, state_kind, state_content)
            notes.append(f"{escape(state_path)} is written beside it")
        notes += told
    notes += content.left_out
    tensors = sum(isinstance(value, Value) for value in state.values())
    return Written(out, tensors, nbytes, tuple(notes))


def apply_declared(
    arguments: CheckArguments,
    opener: Callable[[str | None], Checkpoint],
    out_path: str,
    *,
    force: bool = False,
) -> Written:
    """Write the checkpoint that a check declares, after the stages of the check itself.

    Raises:
        CheckpointError: the checkpoint can't be read, or the model can't be built.
        MisfitError: the check would fail.
        RecipeError: the recipe can't be read, or does not apply.
        ValueError: see `apply`.
        OSError: see `apply`.
    """
    log, recipe = Log(arguments.allow), arguments.recipe or Recipe()
    if isinstance(recipe, str):
        recipe = Recipe.load(recipe)
        arguments = replace(arguments, recipe=recipe)  # the state dict is chosen with it
    try:
        opened = read_stage(opener, arguments.state_dict_key, log)
        checkpoint, built, model = open_stage(opened, arguments, log)
        built, model, _ = with_hook(checkpoint, built, model)
        optimizer = arguments.optimizer
        optimizer = imported(optimizer) if isinstance(optimizer, str) else optimizer
    except Stopped:
        raise CheckpointError(log.findings[-1].message) from None
    except ModelError as error:
        raise CheckpointError(f"optimizer: {error}") from None
    source = source_stage(arguments.source_model, checkpoint, log)
    recipe = completed(recipe, checkpoint, model, None if source is None else source.schema)
    applied = recipe.run(checkpoint.meta(), model.state_dict())
    log.add(*protection.broken(arguments.protect, applied))
    if log.failed:
        first = next(found for found in log.settled() if found.severity == "error")
        raise MisfitError(f"{first.rule} {escape(first.key)} {first.message}".replace("  ", " "))
    holder = checkpoint
    if optimizer is not None or arguments.optimizer_state is not None:
        holder = optimizer_holder(checkpoint, arguments.optimizer_state)
    with checkpoint.progress():
        return apply(
            checkpoint,
            built.build() if recipe.needs_model else model,
            recipe,
            out_path,
            source_model=None if source is None else source.schema(),
            optimizer=optimizer,
            optimizer_state=None if holder is checkpoint else holder,
            allow=arguments.allow,
            force=force,
        )


def _hold_fit(comparison: Comparison, allow: Sequence[Waiver]) -> None:
    if wrong := unwaived(comparison.findings, allow):
        first = wrong[0]
        sides = " → ".join(filter(None, (first.checkpoint, first.model))) or first.message
        raise MisfitError(
            f"the grown checkpoint does not fit the model: {len(comparison.mismatched)} "
            f"mismatched, {len(comparison.missing)} missing, {len(comparison.unexpected)} unexpected; "
            f"{first.rule} {escape(first.key)} {sides}".rstrip()
        )


def _second_output(
    out: str, kind: Kind, state: Checkpoint, growth: Growth
) -> tuple[str, Kind, Any, list[str]]:
    """Return the path, kind and content of the file for an optimizer's state of its own, and notes."""
    content = Content(state.materialise)
    notes = list(growth.rewrite(content, state, by_name=kind == "folder"))
    made = content.of(state.wrapper)
    notes += [f"{escape(state.name)}: {note}" for note in content.left_out]
    stem = out.rstrip("/") if kind == "folder" else str(Path(out).with_suffix(""))
    suffix = {"folder": "", "safetensors": ".pt"}.get(kind, Path(out).suffix)
    written: Kind = "folder" if kind == "folder" else "torch"
    return f"{stem}.optimizer{suffix}", written, made, notes
