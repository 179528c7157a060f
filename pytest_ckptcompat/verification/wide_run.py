"""Run a model on synthetic values in float64, so that only its function matters."""

from __future__ import annotations

import warnings
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pytest_ckptcompat.core.errors import raised
from pytest_ckptcompat.models.skeleton import skeleton
from pytest_ckptcompat.tensors.nested import mapped, tensors
from pytest_ckptcompat.tensors.seeds import seeded

from .signal import Signal, echo, heard

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from torch import nn

Batch = tuple[tuple[Any, ...], dict[str, Any]]

_ATEN = torch.ops.aten
_GROUPED: Any = getattr(getattr(_ATEN, "_grouped_mm", None), "default", None)
_BITS = 20
_NOTHING = nullcontext()


class RunError(Exception):
    """Raised if the model can't be built, loaded or run in any arithmetic; the text says why."""


@dataclass(frozen=True)
class Trial:
    """A model, the values in it, and a call.

    Attributes:
        build: seed -> a new model.
        load: writes the values into the model; they may have any floating dtype.
        batch: arguments of the call; floating tensors of it are widened.
        method: the method to call.
        large: whether drawing the random numbers that loading overwrites takes noticeable time.
    """

    build: Callable[[int], nn.Module]
    load: Callable[[nn.Module], object]
    batch: Batch
    method: str = "forward"
    large: bool = False


@dataclass(frozen=True)
class Run:
    """The outputs of a model.

    Attributes:
        outputs: path (``""``, ``[0]``, ``['logits']``) -> tensor, in float64 or complex128.
        precision: the dtype in which the model ran.
        note: why it did not run in float64, or ``""``.
        signal: how the batch goes through it, where another batch was given to compare with.
    """

    outputs: dict[str, torch.Tensor]
    precision: torch.dtype
    note: str = ""
    signal: Signal = field(default_factory=Signal)


def run(trial: Trial, seed: int = 0, *, construction: int = 0, other: Batch | None = None) -> Run:
    """Build a model, load it and call it once: in eval mode, on the CPU, in float64, else in float32.

    The constructor and the forward pass run with float64 as the default dtype, and casts to narrower floats
    are widened. Buffers that are not in the state dict are rounded to 20 bits, since their last bits may
    depend on the machine that computed them.

    Args:
        trial: the model and the call.
        seed: the seed of random numbers that the call draws.
        construction: the seed with which the model is built.
        other: the model is called with this batch too, and its signal is heard.

    Raises:
        RunError: the model also raised in float32.
    """
    failed: list[str] = []
    for dtype in (torch.float64, torch.float32):
        try:
            outputs, signal = _attempt(trial, seed, construction, dtype, other)
        except (Exception, SystemExit) as error:
            failed.append(raised(error))
        else:
            note = f"in float64 it raised {failed[0]}" if failed else ""
            return Run(outputs, dtype, note, signal)
    raise RunError(failed[-1])


def _attempt(
    trial: Trial, seed: int, construction: int, dtype: torch.dtype, other: Batch | None
) -> tuple[dict[str, torch.Tensor], Signal]:
    def built() -> nn.Module:
        with seeded(0), widened(dtype):
            model = trial.build(construction)
            model = model.double() if dtype == torch.float64 else model.float()
        _round_buffers(model)
        return model

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = skeleton(built, trial.load) if trial.large else None
        if model is None:
            model = built()
            trial.load(model)
        model.eval()

        def called(batch: Batch) -> dict[str, torch.Tensor]:
            found = call(model, batch, trial.method, dtype=dtype, seed=seed)
            return {
                path: each.to(torch.complex128 if each.is_complex() else torch.float64)
                for path, each in found.items()
            }

        signal = Signal()
        if other is None:
            return called(trial.batch), signal
        with heard(signal):
            outputs = called(trial.batch)
        with suppress(Exception, SystemExit):
            signal.echo = echo(outputs, called(other))
        return outputs, signal


def call(
    model: nn.Module,
    batch: Batch,
    method: str = "forward",
    *,
    dtype: torch.dtype | None = None,
    seed: int = 0,
    inside: AbstractContextManager[Any] = _NOTHING,
) -> dict[str, torch.Tensor]:
    """Call a model once on a copy of a batch, into which it may write.

    Floats of the batch, and those that the model makes or casts, are widened to `dtype`. The call is made
    `inside` a context.

    Returns:
        Path (``""``, ``[0]``, ``['logits']``) -> a copy of the tensor on the CPU, unless it is sparse or
        quantized.
    """
    args, kwargs = mapped(batch, lambda tensor: tensor.to(wider(tensor.dtype, dtype), copy=True))
    with seeded(seed), torch.no_grad(), widened(dtype), inside:
        found = (model if method == "forward" else getattr(model, method))(*args, **kwargs)
    return {
        path: tensor.detach().to("cpu", copy=True)
        for path, tensor in tensors(found)
        if tensor.layout == torch.strided and not tensor.is_quantized
    }


class _Widened(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's __init_subclass__
    """A mode in which casts, factories and autocast to a narrower floating dtype give `dtype`."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # True would make torch import its compiler

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._dtype = dtype

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if isinstance(asked := kwargs.get("dtype"), torch.dtype):
            kwargs["dtype"] = _wide(asked, self._dtype)
        if func is _GROUPED and self._dtype == torch.float64:
            return _grouped(*args, **kwargs)
        found = func(*args, **kwargs)
        if func is _ATEN.lift_fresh.default:  # torch.tensor([0.5], dtype=torch.float32)
            found = found.to(_wide(found.dtype, self._dtype))
        return found


def _grouped(
    one: torch.Tensor, other: torch.Tensor, offs: torch.Tensor | None = None, *more: Any, **options: Any
) -> Any:
    """Multiply groups of rows, each with its own matrix (experts): torch has no such operation in float64.

    Other forms of it are left to torch.
    """
    if offs is None or one.dim() != 2 or other.dim() != 3 or any(each is not None for each in more):
        return _GROUPED(one, other, offs, *more, **options)
    ends = offs.tolist()
    parts = [one[start:end] @ matrix for start, end, matrix in zip([0, *ends], ends, other, strict=False)]
    return torch.cat([*parts, one.new_zeros(len(one) - ends[-1], other.shape[2])])


def _wide(dtype: torch.dtype, to: torch.dtype) -> torch.dtype:
    """Return the wide dtype that replaces a floating or complex one, unless that is wider already."""
    if not (dtype.is_floating_point or dtype.is_complex):
        return dtype
    return wider(dtype, to) if torch.finfo(dtype).eps > torch.finfo(to).eps else dtype


def wider(dtype: torch.dtype, to: torch.dtype | None) -> torch.dtype:
    """Return the dtype that replaces a floating or complex one. Others stay, as all do if `to` is None."""
    if dtype.is_complex and to:
        return torch.complex128 if to == torch.float64 else torch.complex64
    return to if to and dtype.is_floating_point else dtype


@contextmanager
def widened(dtype: torch.dtype | None) -> Iterator[None]:
    """Inside, tensors made or cast without a dtype, or to a narrower one, have this one, if it is given."""
    if dtype is None:
        yield
        return
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with _Widened(dtype):
            yield
    finally:
        torch.set_default_dtype(before)


def _round_buffers(model: nn.Module) -> None:
    for module in model.modules():
        for name in module._non_persistent_buffers_set:
            buffer = module._buffers.get(name)
            if buffer is not None and buffer.is_floating_point():
                mantissa, exponent = torch.frexp(buffer)
                rounded = mantissa.mul(1 << _BITS).round().div(1 << _BITS)
                module._buffers[name] = torch.where(buffer.isfinite(), torch.ldexp(rounded, exponent), buffer)
