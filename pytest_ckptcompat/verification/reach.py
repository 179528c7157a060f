"""Find the parts of the outputs that depend on some tensors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from .regions import pairings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from torch import nn

    from .regions import Rows
    from .run_copies import Outputs

Elements = torch.Tensor | None
"""A mask of elements of a tensor; None for all of them."""

_TRIES = 2


@dataclass(frozen=True)
class Reach:
    """The elements of outputs that some tensors influence.

    Attributes:
        masks: mode -> for each batch, output path -> True for such elements. None means that all may be.
    """

    masks: Mapping[str, list[dict[str, torch.Tensor]]] | None

    def excused(
        self,
        mode: str,
        batch: int,
        output: torch.Tensor,
        path: str,
        moved: int | None,
        was: torch.Tensor,
        now: torch.Tensor,
        rows: Rows,
    ) -> torch.Tensor:
        """Return `now`, with elements in reach taken from `was`.

        Args:
            mode: the mode of the run.
            batch: the number of the batch.
            output: the whole old output.
            path: the path of the new output that contains it.
            moved: the dimension whose rows have moved, or None.
            was: the old side.
            now: the new side.
            rows: where rows went.
        """
        if self.masks is None:
            return was
        mask = self.masks[mode][batch][path]
        inside = next(there for dim, _, there in pairings(output, mask, rows) if dim == moved)
        return torch.where(inside, was, now)

    def anywhere(self) -> bool:
        """Return whether anything is in reach."""
        return self.masks is None or any(bool(mask.any()) for _, mask in _each(self.masks))


def reach_of(
    tensors: Mapping[str, Elements], model: nn.Module, run: Callable[[], Outputs], given: Outputs
) -> Reach:
    """Find what changes in a model's outputs if some of its tensors change.

    The tensors are disturbed and the model is run. An element with the same bits does not depend on them. A
    part of an output that is in reach for one sample is taken to be in reach for all samples.

    Args:
        tensors: key -> which of its elements to disturb.
        model: the model. Its values are restored.
        run: gives the outputs of a copy of the model on the batches.
        given: the undisturbed outputs.
    """
    held = model.state_dict(keep_vars=True)
    if any(key not in held or not held[key].is_floating_point() for key in tensors):
        return Reach(None)
    found = [_disturbed({held[key]: each for key, each in tensors.items()}, run, n) for n in range(_TRIES)]
    masks: dict[str, list[dict[str, torch.Tensor]]] = {}
    for mode, batches in given.modes.items():
        masks[mode] = [
            {
                path: torch.stack(
                    [_differs(tensor, each.modes[mode][batch].get(path)) for each in found]
                ).any(0)
                for path, tensor in outputs.items()
            }
            for batch, outputs in enumerate(batches)
        ]
    return Reach(_over_samples(masks))


def _disturbed(tensors: Mapping[torch.Tensor, Elements], run: Callable[[], Outputs], seed: int) -> Outputs:
    """Run with other values in some tensors, and restore them."""
    kept = {tensor: tensor.detach().clone() for tensor in tensors}
    generator = torch.Generator().manual_seed(seed)
    try:
        with torch.no_grad():
            for tensor, elements in tensors.items():
                other = other_values(kept[tensor], generator)
                tensor.copy_(other if elements is None else torch.where(elements, other, kept[tensor]))
        return run()
    finally:
        with torch.no_grad():
            for tensor, was in kept.items():
                tensor.copy_(was)


def other_values(tensor: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Return other values of the same magnitude; positive ones stay positive."""
    drawn = torch.rand(tensor.shape, generator=generator, dtype=torch.float64).to(tensor)
    size = tensor.float().square().mean().sqrt().to(tensor) if tensor.numel() else 0
    return tensor * (1.2 + drawn) + (0.1 + 0.3 * drawn.roll(1)) * (size or 1)


def _differs(one: torch.Tensor, other: torch.Tensor | None) -> torch.Tensor:
    if other is None or one.shape != other.shape:
        return torch.ones(one.shape, dtype=torch.bool)
    return (one != other) & ~(one.isnan() & other.isnan())


def _over_samples(
    masks: Mapping[str, list[dict[str, torch.Tensor]]],
) -> Mapping[str, list[dict[str, torch.Tensor]]]:
    """Extend the masks from one sample to all samples and batches: a unit may be silent for some."""
    shown: dict[tuple[str, torch.Size], torch.Tensor] = {}
    for path, mask in _each(masks):
        if mask.dim() > 1:
            key = path, mask.shape[1:]
            shown[key] = mask.any(0) | shown.get(key, torch.tensor(False))
    return {
        mode: [
            {
                path: shown[path, mask.shape[1:]].expand(mask.shape) if mask.dim() > 1 else mask
                for path, mask in outputs.items()
            }
            for outputs in batches
        ]
        for mode, batches in masks.items()
    }


def _each(masks: Mapping[str, list[dict[str, torch.Tensor]]]) -> Iterator[tuple[str, torch.Tensor]]:
    for batches in masks.values():
        for outputs in batches:
            yield from outputs.items()
