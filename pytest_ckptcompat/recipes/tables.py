"""Tables of keys and shapes from locks: recognise a state dict, and compare it with a table."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.parameter import is_lazy

from pytest_ckptcompat.core.errors import CheckpointError, RecipeError
from pytest_ckptcompat.core.escape import escape, listed
from pytest_ckptcompat.core.key_groups import group
from pytest_ckptcompat.core.limits import DEFAULT
from pytest_ckptcompat.core.tensor_spec import TensorSpec
from pytest_ckptcompat.files.files import Files
from pytest_ckptcompat.files.paths import display
from pytest_ckptcompat.formats.lock import pytest_ckptcompat_open as read_lock

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    Shape = tuple[int, ...]

_GROUPS = 3  # how many groups of keys a message lists


@dataclass(frozen=True)
class Differences:
    """The differences between a state dict and a table.

    Attributes:
        missing: keys that only the table has.
        unexpected: keys that only the state dict has.
        mismatched: key -> shape in the state dict, shape in the table.
    """

    missing: list[str]
    unexpected: list[str]
    mismatched: dict[str, tuple[Shape, Shape]]

    def __len__(self) -> int:
        return len(self.missing) + len(self.unexpected) + len(self.mismatched)

    def __str__(self) -> str:
        return "; ".join(self._kinds())

    def _kinds(self) -> Iterator[str]:
        for name in ("missing", "unexpected"):
            if keys := getattr(self, name):
                yield f"{len(keys)} {name} ({_listed(keys)})"
        if self.mismatched:
            yield f"{len(self.mismatched)} mismatched ({listed(_alike(self.mismatched), _GROUPS)})"


@dataclass(frozen=True)
class Table:
    """The keys, shapes and dtypes of a lock file."""

    specs: Mapping[str, TensorSpec]

    @staticmethod
    def read(path: str) -> Table:
        """Read the table of a lock file.

        Raises:
            RecipeError: the file can't be read, or is not a lock file.
        """
        try:
            with Files().open(path) as file:
                header = read_lock(file, DEFAULT)
        except CheckpointError as error:
            place = "" if display(path) in str(error) else f"{display(path)}: "
            raise RecipeError(f"{place}{error}") from None
        if header is None or not isinstance(header.tree, dict):
            raise RecipeError(f"{display(path)} is not a lock file: write one with ckptcompat lock")
        return Table({key: spec for key, spec in header.tree.items() if isinstance(spec, TensorSpec)})

    @cached_property
    def header(self) -> frozenset[tuple[str, Shape]]:
        """The keys and shapes, by which a checkpoint is recognised."""
        return frozenset((key, spec.shape) for key, spec in self.specs.items())

    @cached_property
    def state(self) -> dict[str, torch.Tensor]:
        """The table as a state dict on the meta device; tied keys share a tensor."""
        made: dict[object, torch.Tensor] = {}
        for spec in self.specs.values():
            dtype = getattr(torch, spec.dtype, torch.float32)
            made.setdefault((spec.storage, spec.shape), torch.empty(spec.shape, dtype=dtype, device="meta"))
        return {key: made[spec.storage, spec.shape] for key, spec in self.specs.items()}

    def differences(self, state: Mapping[str, Any]) -> Differences:
        """Return the differences between a state dict and this table; lazy parameters take any shape."""
        new = {key: spec.shape for key, spec in self.specs.items()}
        old = shapes_of(state) | {key: new.get(key, ()) for key, value in state.items() if is_lazy(value)}
        return Differences(
            [key for key in new if key not in old],
            [key for key in old if key not in new],
            {key: (old[key], new[key]) for key in new if key in old and old[key] != new[key]},
        )

    def other_dtypes(self, state: Mapping[str, Any]) -> str:
        """Say which keys have another dtype in a state dict; ``""`` if none has."""
        found = ((key, state.get(key), spec.dtype) for key, spec in self.specs.items())
        dtypes = {key: (_dtype(each), old) for key, each, old in found if isinstance(each, torch.Tensor)}
        return ", ".join(_alike({key: (new, old) for key, (new, old) in dtypes.items() if new != old}))


def shapes_of(state: Mapping[str, Any]) -> dict[str, Shape]:
    """Return key -> shape for the tensors of a state dict that have one; those of lazy modules don't."""
    known = {key: value for key, value in state.items() if not is_lazy(value)}
    return {key: tuple(value.shape) for key, value in known.items() if hasattr(value, "shape")}


def _dtype(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _alike(changed: Mapping[str, tuple[object, object]]) -> list[str]:
    """Return a text for each kind of difference, with its keys."""
    kinds: dict[tuple[object, object], list[str]] = {}
    for key, kind in changed.items():
        kinds.setdefault(kind, []).append(key)
    return [f"{_listed(keys)} {found}, not {wanted}" for (found, wanted), keys in kinds.items()]


def _listed(keys: list[str]) -> str:
    return listed([escape(each.pattern, 80) for each in group(keys)], _GROUPS)
