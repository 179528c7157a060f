"""Write the grown checkpoint. Unchanged tensors are copied from file to file, one at a time."""

from __future__ import annotations

import os
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from pytest_ckptcompat.checkpoint.entries import beside
from pytest_ckptcompat.checkpoint.optimizer_file import optimizer_beside
from pytest_ckptcompat.checkpoint.wrappers import Selection, state_dict_at
from pytest_ckptcompat.checkpoint.written_object import Content
from pytest_ckptcompat.checkpoint.written_tensor import Value
from pytest_ckptcompat.core import memory
from pytest_ckptcompat.core.errors import CheckpointError, MisfitError
from pytest_ckptcompat.core.escape import escape
from pytest_ckptcompat.files.paths import display
from pytest_ckptcompat.optimizer.state import saved_states
from pytest_ckptcompat.recipes.recipe import Recipe
from pytest_ckptcompat.tensors.deferred import DeferredTensor
from pytest_ckptcompat.tensors.difference import memory as place

from . import protection
from .averages import grown_averages
from .completion import completed
from .header_stages import compared, open_stage, source_stage
from .log import Log, Stopped
from .output import (
    StateOfItsOwn,
    check_replaceable,
    keep_source,
    kind_of_output,
    stored,
    write,
    write_state_dict,
)
from .resuming import Resuming
from .value_stages import optimizer_holder
from .waivers import Waiver, settle

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Mapping, Sequence

    from torch import nn

    from pytest_ckptcompat.checkpoint.checkpoint import Checkpoint
    from pytest_ckptcompat.recipes.applied import Applied
    from pytest_ckptcompat.verification.comparison import Comparison

    from .arguments import CheckArguments

__all__ = ["MisfitError", "Written", "apply", "apply_declared"]


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
    """Write the checkpoint that a recipe makes of an old one.

    A ``.safetensors`` file holds only the state dict, and tied tensors under one name (the metadata lists the
    others).
    A torch file (``.pth``, ``.pt``, ``.ckpt``, ``.bin``) holds the same as the old file: the outer object,
    ties, ``_metadata``, and the optimizer states and averages of the weights, which are grown too.
    ``torch.load(weights_only=True)`` reads it. A folder (a path without a suffix, or with a slash at its end)
    is a distributed checkpoint with the same content.

    Only what the recipe computes is held in memory, plus one tensor at a time. The output is written
    completely or not at all.

    Args:
        checkpoint: the old checkpoint.
        model: the new model. It may be on the meta device, unless the recipe takes values from it.
        recipe: how the old checkpoint becomes the new one.
        out_path: where to write. An existing file is replaced.
        source_model: the model that the checkpoint was made for. It shows which optimizer state belongs to
            which parameter.
        optimizer: makes the new optimizer, as in `check`. Its parameter groups are written.
        optimizer_state: the optimizer's state, if it has its own file. It is written beside `out_path`.
        allow: waivers. The keys that they cover may be missing or unexpected.
        force: replace the checkpoint itself, or a folder.

    Raises:
        CheckpointError: the old checkpoint's values can't be read.
        RecipeError: the recipe does not apply.
        MisfitError: the result does not load into the model, or the optimizer's state can't be matched.
        ValueError: the file's suffix is not a known format, the format can't hold the checkpoint, or
            `out_path` is the
            checkpoint itself.
        OSError: the file can't be written.
    """
    out = os.fspath(out_path)
    kind = kind_of_output(out)
    if not force:
        keep_source(checkpoint, out)
        if kind == "folder":
            check_replaceable(out)
    source = None if source_model is None else (lambda: source_model)
    recipe = completed(recipe, checkpoint, model, source)
    target = model.state_dict()
    _hold_fit(compared(checkpoint, model, recipe, recipe.run(checkpoint.meta(), target)), allow)
    applied = recipe.run(checkpoint.stored(), target)
    tensors = sum(isinstance(value, torch.Tensor) for value in applied.state_dict.values())
    values = _values(applied.state_dict, model)
    resuming = Resuming(checkpoint, recipe, applied, model, source_model, optimizer, allow)
    if kind == "safetensors":
        beside_it = StateOfItsOwn.of(out, optimizer_state, resuming)
        nbytes, told = write_state_dict(checkpoint, values, out)
        return Written(out, tensors, nbytes, (*told, *beside_it.write()))
    content = Content(lambda spec: stored(checkpoint, spec))
    notes: list[str] = []
    whole: Any = _state(values, applied, content)
    inner = state_dict_at(checkpoint.wrapper, checkpoint.state_dict_key)
    others = beside(checkpoint.wrapper, checkpoint.state_dict_key)
    if isinstance(inner, Selection):
        notes.append(f"what is not below {escape(checkpoint.state_dict_key, 60)!r} is left out")
    elif isinstance(checkpoint.wrapper, dict) and (others or inner is not checkpoint.wrapper):
        content.instead(inner, whole)
        notes += resuming.rewrite(content, by_name=kind == "folder")
        notes += grown_averages(content, checkpoint, inner, recipe, applied, model)
        whole = {**whole, **content.of(others)} if others else content.of(checkpoint.wrapper)
    beside_it = StateOfItsOwn.of(out, optimizer_state, resuming)
    path = optimizer_beside(checkpoint.path)
    if path is not None and optimizer_state is None and not saved_states(checkpoint.wrapper):
        notes.append(f"{escape(Path(path).name)} beside it is not grown: name it with --optimizer-state")
    nbytes = write(out, whole)
    notes += beside_it.write()
    notes += [f"{path} is left out: an object of a class" for path in content.left_out]
    return Written(out, tensors, nbytes, tuple(notes))


def apply_declared(
    arguments: CheckArguments,
    opener: Callable[[str | None], Checkpoint],
    out_path: str,
    *,
    force: bool = False,
) -> Written:
    """Write the checkpoint that a check declares, after the stages of the check itself.

    Args:
        arguments: the arguments of the check, including the recipe.
        opener: opens the checkpoint; gets the state dict key, or None.
        out_path: where to write.
        force: see `apply`.

    Raises:
        CheckpointError: the checkpoint can't be read, or the model can't be built.
        MisfitError: the check would fail.
        RecipeError: the recipe can't be read, or does not apply.
        ValueError: see `apply`.
        OSError: see `apply`.
    """
    log = Log(arguments.allow)
    try:
        checkpoint, built, model = open_stage(opener, arguments, log)
    except Stopped:
        raise CheckpointError(log.findings[-1].message) from None
    source = source_stage(arguments.source_model, checkpoint, log)
    recipe = (
        Recipe.load(arguments.recipe) if isinstance(arguments.recipe, str) else arguments.recipe or Recipe()
    )
    recipe = completed(recipe, checkpoint, model, None if source is None else source.schema)
    applied = recipe.run(checkpoint.meta(), model.state_dict())
    log.add(*protection.broken(arguments.protect, applied))
    if log.failed:
        first = next(found for found in log.settled() if found.severity == "error")
        raise MisfitError(f"{first.rule} {escape(first.key)} {first.message}".replace("  ", " "))
    holder = checkpoint
    if arguments.optimizer is not None or arguments.optimizer_state is not None:
        holder = optimizer_holder(checkpoint, arguments.optimizer_state)
    with checkpoint.progress():
        return apply(
            checkpoint,
            built.build() if recipe.needs_model else model,
            recipe,
            out_path,
            source_model=None if source is None else source.schema(),
            optimizer=arguments.optimizer,
            optimizer_state=None if holder is checkpoint else holder,
            allow=arguments.allow,
            force=force,
        )


def _hold_fit(comparison: Comparison, allow: Sequence[Waiver]) -> None:
    wrong = [
        found
        for found in settle(comparison.findings, allow, judged=lambda _: False)
        if found.severity == "error"
    ]
    if wrong:
        first = wrong[0]
        sides = " → ".join(filter(None, (first.checkpoint, first.model))) or first.message
        raise MisfitError(
            f"the grown checkpoint does not fit the model: {len(comparison.mismatched)} "
            f"mismatched, {len(comparison.missing)} missing, {len(comparison.unexpected)} unexpected; "
            f"{first.rule} {escape(first.key)} {sides}".rstrip()
        )


def _values(state_dict: Mapping[str, Any], model: nn.Module) -> OrderedDict[str, Any]:
    """Return the grown state dict in the order of the model, which is how its optimizer numbers parameters.

    Keys share memory in the output only if the model ties them as well. A copied block shares memory with its
    original here, but is a parameter of its own.
    """
    owners = {key: id(tensor) for key, tensor in model.state_dict(keep_vars=True).items()}
    ordered = {key: state_dict[key] for key in [*owners, *state_dict] if key in state_dict}
    return OrderedDict(
        (key, _value(value, owners.get(key, key)) if isinstance(value, torch.Tensor) else value)
        for key, value in ordered.items()
    )


def _value(tensor: torch.Tensor, owner: Hashable) -> Value:
    """Wrap a tensor for writing. A tensor that is still on disk is read when it is written."""
    read = tensor.read if isinstance(tensor, DeferredTensor) else lambda: tensor
    return Value(tuple(tensor.shape), tensor.dtype, read, (place(tensor), owner))


def _state(values: Mapping[str, Any], applied: Applied, content: Content) -> OrderedDict[str, Any]:
    state: OrderedDict[str, Any] = OrderedDict(
        (key, value if isinstance(value, Value) else content.of(value)) for key, value in values.items()
    )
    if (metadata := getattr(applied.state_dict, "_metadata", None)) is not None:
        state._metadata = OrderedDict(metadata)  # type: ignore[attr-defined]
    return state
