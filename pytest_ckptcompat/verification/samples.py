"""Tensors of a model, indexed by a few of their elements to find given values fast."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_ckptcompat.tensors.difference import bits

from .same_values import How, conversions, converted, dense, held_values, plain, sample, views

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    import torch


class Samples:
    """The tensors to look for."""

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        self._tensors = tensors
        self._names: dict[object, list[str]] = {}
        self._kinds: dict[int, set[tuple[torch.dtype, tuple[int, ...]]]] = {}
        self._odd: dict[torch.Size, list[str]] = {}
        for name, tensor in tensors.items():
            if not plain(tensor):  # sparse or quantized
                self._odd.setdefault(tensor.shape, []).append(name)
                self._kinds.setdefault(tensor.numel(), set())
            else:
                self._names.setdefault(_sample(tensor, (tensor.dtype,)), []).append(name)
                self._kinds.setdefault(tensor.numel(), set()).add((tensor.dtype, tuple(tensor.shape)))

    @property
    def sizes(self) -> Collection[int]:
        """The numbers of elements of the tensors."""
        return self._kinds.keys()

    def alike(self, value: torch.Tensor) -> Iterator[tuple[str, How]]:
        """Yield the tensors that hold given values of the checkpoint, and how the values were changed."""
        value = dense(value)
        likely: set[str] = set(self._odd.get(value.shape, ()))
        for dtype, shape in self._kinds.get(value.numel(), ()):
            for conversion in conversions(value.dtype, dtype):
                for view, _ in views(value, shape):
                    likely.update(self._names.get(_sample(view, conversion), ()))
        for name in self._tensors if likely else ():
            if name in likely and (how := held_values(self._tensors[name], value)) is not None:
                yield name, how


def _sample(tensor: torch.Tensor, conversion: tuple[torch.dtype, ...]) -> object:
    few = bits(converted(sample(tensor), conversion))
    return conversion[-1], tuple(tensor.shape), tuple(few.reshape(-1).tolist())
