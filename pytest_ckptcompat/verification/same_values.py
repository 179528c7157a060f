"""Find tensors that hold the values of another: unchanged, cast, reshaped, permuted or quantized."""

from __future__ import annotations

from itertools import permutations
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import nn

from pytest_ckptcompat.tensors.casts import loses
from pytest_ckptcompat.tensors.difference import bits

from .quantized import quantized_by_groups, quantized_by_torch

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    Conversion = tuple[torch.dtype, ...]
    """The dtypes that values go through, the last one being the model's."""

_PIECE = 1 << 22
_NARROW = (torch.float32, torch.float16, torch.bfloat16)
_SAMPLED = 16
_QUANTIZED = "quantized"


class How(NamedTuple):
    """How axes, shape and dtype were changed on the way into a model, in words; empty if they were not."""

    turned: str = ""
    reshaped: str = ""
    cast: str = ""

    def __str__(self) -> str:
        return ", ".join(filter(None, self))


def held_values(held: torch.Tensor, value: torch.Tensor) -> How | None:
    """Find how a model's tensor got the values of a checkpoint's, bit for bit; return None if it did not."""
    if held.numel() != value.numel() or held.is_meta:
        return None
    if held.is_quantized and not value.is_quantized:
        return How(cast=_QUANTIZED) if quantized_by_torch(held, value) else None
    held, value = _dense(held), _dense(value)
    wanted = bits(_few(held).cpu())
    for conversion in conversions(value.dtype, held.dtype):
        for view, how in _views(value, tuple(held.shape)):
            if torch.equal(bits(converted(_few(view), conversion)), wanted) and _same(held, view, conversion):
                return how._replace(cast=_told(conversion, value.dtype))
    return How(cast=_QUANTIZED) if quantized_by_groups(held, value) else None


def _dense(tensor: torch.Tensor) -> torch.Tensor:
    """Return a sparse or quantized tensor as a dense one, and any other as it is."""
    if tensor.is_quantized:
        return tensor.dequantize()
    return tensor if tensor.layout is torch.strided else tensor.to_dense()


def without_values(tensor: torch.Tensor) -> str:
    """Return why a tensor of a model has no values to trace, or ``""``."""
    if nn.parameter.is_lazy(tensor):
        return "without values or shape"
    return "on the meta device, without values" if tensor.is_meta else ""


def plain(tensor: torch.Tensor) -> bool:
    """Return whether a tensor's values are in ordinary memory, where they can be compared."""
    return tensor.layout is torch.strided and not (tensor.is_nested or tensor.is_quantized or tensor.is_meta)


def conversions(source: torch.dtype, target: torch.dtype) -> Iterator[Conversion]:
    """Yield the ways from one dtype to another: directly, then through a dtype that rounds."""
    yield (target,)
    if source.is_floating_point and target.is_floating_point:
        for narrow in _NARROW:
            if narrow not in (source, target) and narrow.itemsize < source.itemsize and loses(source, narrow):
                yield narrow, target


def converted(tensor: torch.Tensor, conversion: Conversion) -> torch.Tensor:
    """Return the values on the CPU, after all casts of the conversion."""
    tensor = tensor.detach().cpu()
    for dtype in conversion:
        tensor = tensor.to(dtype)
    return tensor


def _told(conversion: Conversion, source: torch.dtype) -> str:
    """Describe a conversion in words; ``""`` if it changes nothing."""
    *between, target = (str(dtype).removeprefix("torch.") for dtype in conversion)
    if between:
        return f"rounded to {between[0]}"
    return "" if conversion == (source,) else f"cast to {target}"


def _views(value: torch.Tensor, shape: tuple[int, ...]) -> Iterator[tuple[torch.Tensor, How]]:
    """Yield the ways to arrange the values in a shape with as many elements, simplest first."""
    same = tuple(value.shape) == shape
    yield value.reshape(shape), How(reshaped="" if same else f"reshaped from {tuple(value.shape)}")
    squeezed, wanted = value.squeeze(), tuple(size for size in shape if size != 1)
    for order in _orders(squeezed.dim()):
        if tuple(squeezed.shape[axis] for axis in order) == wanted:
            how = "transposed" if squeezed.dim() == 2 else f"permuted {order}"
            yield squeezed.permute(order).reshape(shape), How(how)  # without a copy


def _orders(dims: int) -> Iterator[tuple[int, ...]]:
    straight = tuple(range(dims))
    if dims <= 4:
        yield from (order for order in permutations(straight) if order != straight)
    else:
        yield straight[::-1]
        yield (*straight[:-2], dims - 1, dims - 2)
        yield (1, 0, *straight[2:])


def _few(tensor: torch.Tensor) -> torch.Tensor:
    """Return a few elements, spread over the tensor, in the order of its shape."""
    if tensor.numel() <= _SAMPLED:
        return tensor.detach().reshape(-1)
    index: list[list[int]] = []
    for number in range(_SAMPLED):
        place, at = number * (tensor.numel() - 1) // (_SAMPLED - 1), []
        for size in reversed(tensor.shape):  # like torch.unravel_index, which imports sympy
            place, rest = divmod(place, size)
            at.append(rest)
        index.append(at[::-1])
    places = tuple(torch.tensor(index, device=tensor.device).unbind(1))
    if tensor.is_floating_point() and tensor.itemsize == 1:  # torch 2.6 can't index float8
        return tensor.detach().view(torch.uint8)[places].view(tensor.dtype)
    return tensor.detach()[places]


def constant(tensor: torch.Tensor) -> str:
    """Name a constant that any constructor may give, such as ``"zeros"`` or ``"0, 1, 2, …"``, else ``""``."""
    if not tensor.numel() or not plain(tensor):
        return ""
    for found in (_few(tensor), tensor.detach()):  # a few elements are nearly always enough
        flat = found.reshape(-1).cpu()
        numbers = bits(flat).reshape(flat.numel(), -1)
        if not torch.equal(numbers[:1].expand_as(numbers), numbers):
            break
    else:
        first = flat[0].item()
        known = {0.0: "zeros", 1.0: "ones"}.get(float(first)) if not isinstance(first, complex) else None
        return known or (f"{first:.6g}" if flat.numel() == 1 else f"{first:.6g} everywhere")
    return "0, 1, 2, …" if _counts(tensor.detach()) else ""


def _counts(tensor: torch.Tensor) -> bool:
    """Return whether each row counts 0, 1, 2, …, as position ids do."""
    if tensor.dtype.is_complex or not tensor.dim() or tensor.shape[-1] < 2:
        return False
    rows = tensor.cpu().reshape(-1, tensor.shape[-1])
    numbers = torch.arange(tensor.shape[-1]).to(tensor.dtype)
    return bool(torch.equal(rows[0], numbers)) and torch.equal(rows, numbers.expand_as(rows))


def _same(held: torch.Tensor, view: torch.Tensor, conversion: Conversion) -> bool:
    for left, right in zip(
        torch.split(held.detach().reshape(-1), _PIECE), torch.split(view.reshape(-1), _PIECE), strict=True
    ):
        if not torch.equal(bits(left.cpu()), bits(converted(right, conversion))):
            return False
    return True


class Samples:
    """Tensors of a model, indexed by a few of their elements to find given values fast."""

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
        value = _dense(value)
        likely: set[str] = set(self._odd.get(value.shape, ()))
        for dtype, shape in self._kinds.get(value.numel(), ()):
            for conversion in conversions(value.dtype, dtype):
                for view, _ in _views(value, shape):
                    likely.update(self._names.get(_sample(view, conversion), ()))
        for name in self._tensors if likely else ():
            if name in likely and (how := held_values(self._tensors[name], value)) is not None:
                yield name, how


def _sample(tensor: torch.Tensor, conversion: Conversion) -> object:
    few = bits(converted(_few(tensor), conversion))
    return conversion[-1], tuple(tensor.shape), tuple(few.reshape(-1).tolist())
