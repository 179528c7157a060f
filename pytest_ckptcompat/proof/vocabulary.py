"""Token ids that both the old and the new model know, where a vocabulary grew or its words have moved."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from pytest_ckptcompat.forward.nested import mapped

if TYPE_CHECKING:
    from .regions import Rows
    from .twin import Batch


@dataclass(frozen=True)
class Ids:
    """How the ids of a batch are brought into what each model knows.

    Attributes:
        bound: the least vocabulary that grew, if any: there was no function to keep for ids beyond it.
        moved: the words that both have, in the old numbering and in the new, if their numbers have changed.
    """

    bound: int | None = None
    moved: tuple[list[int], list[int]] | None = None

    @classmethod
    def of(cls, before: nn.Module, model: nn.Module, rows: Rows) -> Ids:
        """The ids that the embeddings of two models have in common.

        Args:
            before: the old model.
            model: the new one; embeddings are paired by their names.
            rows: where rows of a weight have moved.
        """
        old, new = _sizes(before), _sizes(model)
        pairs = [(size, new[name]) for name, size in old.items() if name in new]
        grown = [was for was, now in pairs if was < now]
        grown += [
            size for name, size in old.items() if name not in new and size < max(new.values(), default=0)
        ]
        moved = next((rows[pair] for pair in pairs if pair in rows), None)
        return cls(min(grown, default=None), moved)

    def pair(self, batch: Batch) -> tuple[Batch, Batch]:
        """The same batch for the old model and for the new one."""
        if self.moved is not None:
            kept, now = self.moved
            return _changed(batch, _Table(kept)), _changed(batch, _Table(now))
        if self.bound is not None:
            batch = _changed(batch, _Bound(self.bound))
        return batch, batch


@dataclass(frozen=True)
class _Bound:
    size: int

    def __call__(self, ids: torch.Tensor) -> torch.Tensor:
        return torch.where(ids >= self.size, ids % self.size, ids)


@dataclass(frozen=True)
class _Table:
    words: list[int]

    def __call__(self, ids: torch.Tensor) -> torch.Tensor:
        table = torch.tensor(self.words, dtype=ids.dtype, device=ids.device)
        return torch.where(ids >= 0, table[ids.long() % len(self.words)], ids)


def _changed(batch: Batch, change: _Bound | _Table) -> Batch:
    def brought(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool:
            return tensor
        return change(tensor)

    return mapped(batch[0], brought), mapped(batch[1], brought)


def _sizes(model: nn.Module) -> dict[str, int]:
    kinds = (nn.Embedding, nn.EmbeddingBag)
    return {name: each.num_embeddings for name, each in model.named_modules() if isinstance(each, kinds)}
