"""The grown checkpoint, written: tensors that stay as they are go from file to file, one at a time."""

from __future__ import annotations

import os
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from pytest_ckptcompat.checkpoint.safetensors_writer import write_safetensors
from pytest_ckptcompat.checkpoint.torch_zip_writer import write_torch_zip
from pytest_ckptcompat.checkpoint.wrappers import CHOOSING, state_dict_at
from pytest_ckptcompat.checkpoint.written_object import Content
from pytest_ckptcompat.checkpoint.written_tensor import Value
from pytest_ckptcompat.core import memory
from pytest_ckptcompat.core.escape import escape
from pytest_ckptcompat.files.atomic_write import whole_file
from pytest_ckptcompat.optimizer.growth import grown, regrouped, rewritten
from pytest_ckptcompat.optimizer.naming import naming, tied_names
from pytest_ckptcompat.optimizer.parameter_order import evidence
from pytest_ckptcompat.optimizer.state import Saved, misfits, saved_states
from pytest_ckptcompat.tensors.deferred import DeferredTensor
from pytest_ckptcompat.tensors.difference import memory as place
from pytest_ckptcompat.verification.comparison import compare

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator, Mapping

    from torch import nn

    from pytest_ckptcompat.checkpoint.checkpoint import Checkpoint
    from pytest_ckptcompat.core.tensor_spec import TensorSpec
    from pytest_ckptcompat.recipes.applied import Applied
    from pytest_ckptcompat.recipes.recipe import Recipe

_TORCH = (".pth", ".pt", ".ckpt", ".bin", ".tar")
_ROOT = "archive"  # torch takes any; one that does not depend on the file's name gives the same bytes


class MisfitError(ValueError):
    """The grown checkpoint does not fit the model, so it is not written."""


@dataclass(frozen=True)
class Written:
    """What was written.

    Attributes:
        path: where.
        tensors: how many tensors the state dict has.
        nbytes: the size of the file.
        notes: what became of the rest of the checkpoint, where that needs saying.
    """

    path: str
    tensors: int
    nbytes: int
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [f"{escape(self.path)}: {self.tensors} tensors, {memory.shown(self.nbytes)}", *self.notes]
        return "\n".join(lines)


def apply(
    checkpoint: Checkpoint, model: nn.Module, recipe: Recipe, out_path: str | os.PathLike[str]
) -> Written:
    """Write the checkpoint that a recipe makes of an old one.

    A ``.safetensors`` file holds the state dict alone, of tied tensors one name (its metadata says which).
    A torch file (``.pth``, ``.pt``, ``.ckpt``, ``.bin``) holds what the old one held: its outer object, ties,
    ``_metadata``, and the optimizer's state, grown as well; ``torch.load(weights_only=True)`` reads it.

    Memory holds what the recipe makes anew, and one further tensor at a time. The file appears whole or not
    at all.

    Args:
        checkpoint: the old one.
        model: the new model; one on meta will do.
        recipe: how the one becomes the other.
        out_path: where to write; an old file there is replaced.

    Raises:
        CheckpointError: the old checkpoint's values can't be read.
        RecipeError: the recipe does not apply.
        MisfitError: what it makes does not load into the model.
        ValueError: the file's name says no format, or the format can't hold the checkpoint.
        OSError: the file can't be written.
    """
    suffix = Path(out_path).suffix.lower()
    if suffix != ".safetensors" and suffix not in _TORCH:
        raise ValueError(f"{escape(os.fspath(out_path))}: write a .safetensors or a .pth file")
    target = model.state_dict()
    _hold_fit(recipe.apply(checkpoint.meta(), target), model)
    growth = recipe.run(checkpoint.stored(), target)
    tensors = sum(isinstance(value, torch.Tensor) for value in growth.state_dict.values())
    values = _values(growth.state_dict, model)
    if suffix == ".safetensors":
        notes = _write_safetensors(checkpoint, values, out_path)
    else:
        notes = _write_torch(checkpoint, values, growth, recipe, model, out_path)
    return Written(os.fspath(out_path), tensors, Path(out_path).stat().st_size, tuple(notes))


def _hold_fit(state_dict: Mapping[str, Any], model: nn.Module) -> None:
    comparison = compare(model, state_dict)
    if not comparison.fits:
        first = next(found for found in comparison.findings if found.severity == "error")
        sides = " → ".join(filter(None, (first.checkpoint, first.model))) or first.message
        raise MisfitError(
            f"the grown checkpoint does not fit the model: {len(comparison.mismatched)} "
            f"mismatched, {len(comparison.missing)} missing, {len(comparison.unexpected)} unexpected; "
            f"{first.rule} {escape(first.key)} {sides}".rstrip()
        )


def _values(state_dict: Mapping[str, Any], model: nn.Module) -> OrderedDict[str, Any]:
    """The grown state dict to be written, in the model's order: the order that its optimizer is numbered in.

    One memory stays one only under names that the model ties as well. A block that was copied is the same
    memory as the block it is a copy of, and a parameter of its own.
    """
    owners = {key: id(tensor) for key, tensor in model.state_dict(keep_vars=True).items()}
    ordered = {key: state_dict[key] for key in [*owners, *state_dict] if key in state_dict}
    return OrderedDict(
        (key, _value(value, owners.get(key, key)) if isinstance(value, torch.Tensor) else value)
        for key, value in ordered.items()
    )


def _value(tensor: torch.Tensor, owner: Hashable) -> Value:
    """A tensor of the grown state dict; one that is on disk is read when its turn comes."""
    read = tensor.read if isinstance(tensor, DeferredTensor) else lambda: tensor
    return Value(tuple(tensor.shape), tensor.dtype, read, (place(tensor), owner))


def _write_safetensors(
    checkpoint: Checkpoint, values: Mapping[str, Any], out_path: str | os.PathLike[str]
) -> list[str]:
    for key, value in values.items():
        if not isinstance(value, Value):
            raise ValueError(f"{escape(key)} is no tensor, and safetensors holds nothing else: write .pth")
    with whole_file(out_path) as file:
        write_safetensors(file, values, {"format": "pt"})
    return ["the state dict alone: safetensors holds nothing else"] if checkpoint.state_dict_key else []


def _write_torch(
    checkpoint: Checkpoint,
    values: Mapping[str, Any],
    growth: Applied,
    recipe: Recipe,
    model: nn.Module,
    out_path: str | os.PathLike[str],
) -> list[str]:
    content = Content(lambda spec: _stored(checkpoint, spec))
    state: OrderedDict[str, Any] = OrderedDict(
        (key, value if isinstance(value, Value) else content.of(value)) for key, value in values.items()
    )
    if (metadata := getattr(growth.state_dict, "_metadata", None)) is not None:
        state._metadata = OrderedDict(metadata)  # type: ignore[attr-defined]
    whole: Any = state
    notes: list[str] = []
    inner = state_dict_at(checkpoint.wrapper, checkpoint.state_dict_key)
    if inner is not checkpoint.wrapper and isinstance(checkpoint.wrapper, dict):
        content.instead(inner, state)
        notes += _write_optimizers(content, checkpoint, growth, recipe, model)
        notes += _siblings(checkpoint.wrapper, inner, growth)
        whole = content.of(checkpoint.wrapper)
    with whole_file(out_path) as file:
        write_torch_zip(file, whole, _ROOT)
    return [*notes, *(f"{path} is left out: an object of a class" for path in content.left_out)]


def _write_optimizers(
    content: Content, checkpoint: Checkpoint, growth: Applied, recipe: Recipe, model: nn.Module
) -> Iterator[str]:
    for saved in saved_states(checkpoint.wrapper):
        try:
            content.instead(saved.node, content.of(_regrown(saved, checkpoint, growth, recipe, model)))
            yield f"{saved.path} is grown too"
        except LookupError as reason:
            content.leave_out(saved.node)
            yield f"{saved.path} is left out: {reason}"


def _siblings(wrapper: dict[Any, Any], inner: Any, growth: Applied) -> Iterator[str]:
    """Further state dicts of the same model, such as an average of its weights."""
    changed = {old for key in growth.touched for old in growth.sources.get(key, (key,))}
    for name, part in wrapper.items():
        if part is not inner and isinstance(part, dict) and not changed.isdisjoint(part):
            yield f"{escape(str(name), 60)} is kept as it was: name it with {CHOOSING} to grow it"


def _regrown(
    saved: Saved, checkpoint: Checkpoint, growth: Applied, recipe: Recipe, model: nn.Module
) -> dict[Any, Any]:
    """The optimizer state dict of the new model; only what the recipe changes is read.

    Raises:
        LookupError: whose state it is, or where new parameters belong, can't be told.
        MisfitError: the state does not have the parameters' shapes.
    """
    old = checkpoint.meta()
    parameters = dict(model.named_parameters())
    shapes = {key: tuple(value.shape) for key, value in old.items() if isinstance(value, torch.Tensor)}
    told = evidence(lambda named: [list(named)], growth.origin, old, model)
    names = naming(saved, told.candidates, shapes, told.doubts)
    state = grown(recipe, saved.named(names), old, model.state_dict(), checkpoint.materialise)
    tied = tied_names(model)
    placed = {tied.get(name, name): slots for name, slots in state.items()}
    for name, slot in misfits(placed, {name: tuple(each.shape) for name, each in parameters.items()}):
        raise MisfitError(f"{saved.path}: {slot} of {escape(name)} does not have its parameter's shape")
    groups = regrouped(
        names, list(old), list(parameters), {name: growth.origin.get(name) for name in parameters}
    )
    return rewritten(saved, groups, placed)


def _stored(checkpoint: Checkpoint, spec: TensorSpec) -> Value:
    same = (spec.storage or id(spec), spec.offset, spec.shape, spec.stride)
    return Value(spec.shape, getattr(torch, spec.dtype), lambda: checkpoint.materialise(spec), same)
