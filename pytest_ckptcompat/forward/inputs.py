"""The ``inputs=`` argument: shapes, or a callable that returns a batch. Parsing does not import torch."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pytest_ckptcompat.core.tensor_spec import ITEMSIZE

if TYPE_CHECKING:
    import torch

Batch = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional and keyword arguments of a model's ``forward``."""

_TEXT = re.compile(r"(?P<sizes>\d+(?:x\d+)*)(?::(?P<dtype>\w+)(?:<(?P<bound>\d+))?)?")
_UNNAMED = object()
_FORM = "write sizes and, if it is not float32, a dtype: '2x3x48x48', '2x16:int64<32000', '2x16:bool'"
_UNDRAWN = {"float4_e2m1fn_x2", "bcomplex32", "bits8", "bits16", "bits1x8", "bits2x4", "bits4x2"}
"""Dtypes that torch can't convert to, and so can't draw."""


@dataclass(frozen=True, slots=True)
class InputSpec:
    """One tensor of a batch.

    Attributes:
        shape: sizes, in elements.
        dtype: torch's name without ``torch.``.
        bound: integers are drawn from ``[0, bound)``.
    """

    shape: tuple[int, ...]
    dtype: str = "float32"
    bound: int = 2

    def tensor(self, generator: torch.Generator) -> torch.Tensor:
        """Draw standard normal values, integers in ``[0, bound)``, or fair booleans, on the CPU."""
        import torch

        dtype: torch.dtype = getattr(torch, self.dtype)
        if dtype.is_floating_point or dtype.is_complex:
            exact = (torch.float64, torch.complex64, torch.complex128)
            drawn = dtype if dtype in exact else torch.float32
            return torch.randn(self.shape, generator=generator, dtype=drawn, device="cpu").to(dtype)
        drawn = torch.uint8 if dtype == torch.bool else torch.int64
        return torch.randint(self.bound, self.shape, generator=generator, dtype=drawn, device="cpu").to(dtype)

    def synthetic(self, name: str) -> torch.Tensor:
        """Return a tensor that is the same on every machine: drawn integers or booleans, else zeros."""
        import torch

        from pytest_ckptcompat.tensors import synthetic

        dtype: torch.dtype = getattr(torch, self.dtype)
        if dtype.is_floating_point or dtype.is_complex:
            return torch.zeros(self.shape, dtype=dtype, device="cpu")
        return synthetic.integers(name, self.shape, self.bound).to(dtype)

    @property
    def text(self) -> str:
        """The form in a file or on the command line: ``2x16:int64<100``."""
        return "x".join(map(str, self.shape)) + self._kind(":")

    def __str__(self) -> str:
        return str(self.shape) + self._kind(" ")

    def _kind(self, separator: str) -> str:
        """Return the dtype and the bound of integers, after a separator; ``""`` for float32."""
        bound = f"<{self.bound}" if "int" in self.dtype else ""
        return "" if self.dtype == "float32" else f"{separator}{self.dtype}{bound}"


@dataclass(frozen=True, slots=True)
class Inputs:
    """The inputs of a forward pass: positional and keyword tensors, or a callable that returns a batch.

    Attributes:
        args: positional tensors.
        kwargs: keyword tensors.
        make: a callable that returns a batch, in place of `args` and `kwargs`.
        method: the method of the model that is called with the inputs.
    """

    args: tuple[InputSpec, ...] = ()
    kwargs: dict[str, InputSpec] = field(default_factory=dict)
    make: Callable[[], Any] | None = None
    method: str = "forward"

    def callee(self, model: Any) -> Any:
        """Return what to call: the model itself, so that its hooks run, or another method."""
        return model if self.method == "forward" else getattr(model, self.method)

    @classmethod
    def parse(cls, spec: Any) -> Inputs:
        """Parse the inputs of ``inputs=``, a TOML table or ``--inputs``.

        Args:
            spec: a tuple of ints (one float32 tensor of that shape), a string (``"2x3x48x48"``,
                ``"2x16:int64<32000"``, ``"2x16:bool"``; ``"mask=2x16:bool"`` is a keyword argument), a list
                of such shapes and strings (positional), a dict of them by name (keywords), or a callable.

        Raises:
            ValueError: `spec` is none of these. The message says which part is wrong and what to write.
        """
        if isinstance(spec, Inputs):
            return spec
        if callable(spec):
            return cls(make=spec)
        if isinstance(spec, list) and spec and all(map(_is_size, spec)):
            one = "x".join(map(str, spec))
            raise ValueError(f"inputs={spec!r}: a list is several inputs; one shape is {one!r}")
        if isinstance(spec, Mapping):
            parts = list(spec.items())
        else:
            parts = [_named(part) for part in (spec if isinstance(spec, list) else [spec])]
        args, kwargs = [], {}
        for name, part in parts:
            if name is _UNNAMED:
                args.append(_spec(part))
            elif not isinstance(name, str) or not name.isidentifier():
                raise ValueError(f"inputs={spec!r}: {name!r} is not the name of an argument")
            elif name in kwargs:
                raise ValueError(f"inputs={spec!r}: {name!r} is given twice")
            else:
                kwargs[name] = _spec(part)
        return cls(tuple(args), kwargs)

    def batch(self, seed: int = 0, device: str | torch.device = "cpu") -> Batch:
        """Return one batch, drawn on the CPU: the same seed gives the same values on every device.

        For a callable, the generators of Python, NumPy and torch are seeded.

        Raises:
            ValueError: the callable raised, or did not return a tensor, tuple or dict.
        """
        import torch

        from pytest_ckptcompat.tensors.nested import moved

        if self.make is not None:
            batch = _called(self.make, seed)
        else:
            generator = torch.Generator("cpu").manual_seed(seed)
            args = tuple(spec.tensor(generator) for spec in self.args)
            batch = args, {name: spec.tensor(generator) for name, spec in self.kwargs.items()}
        moved_batch: Batch = moved(batch, device)
        return moved_batch

    def plain(self) -> Any:
        """Return a batch that any process and machine can draw again, packed by `tensors.plain`.

        A callable is called once, and its integers and booleans are kept.

        Raises:
            ValueError: the callable fails as in `batch`, or the batch can't be given to another process.
        """
        from pytest_ckptcompat.tensors.plain import packed

        if self.make is not None:
            batch = _called(self.make, seed=0)
        else:
            args = tuple(spec.synthetic(f"input {place}") for place, spec in enumerate(self.args))
            batch = args, {name: spec.synthetic(f"input {name}") for name, spec in self.kwargs.items()}
        try:
            return packed(batch)
        except ValueError as error:
            raise ValueError(f"the inputs hold {error}, which can't be given to another process") from None

    @property
    def texts(self) -> list[str] | None:
        """The texts from which `parse` makes the same inputs, or None for a callable."""
        if self.make is not None:
            return None
        named = [f"{name}={spec.text}" for name, spec in self.kwargs.items()]
        return [spec.text for spec in self.args] + named

    def __str__(self) -> str:
        if self.make is not None:
            return f"{getattr(self.make, '__qualname__', type(self.make).__name__)}()"
        named = (f"{name}={spec}" for name, spec in self.kwargs.items())
        return ", ".join([*map(str, self.args), *named]) or "no arguments"


def _called(make: Callable[[], Any], seed: int) -> Batch:
    import torch

    from pytest_ckptcompat.core.errors import raised
    from pytest_ckptcompat.tensors.seeds import seeded

    try:
        with seeded(seed):
            batch = make()
    except (Exception, SystemExit) as error:
        raise ValueError(f"the inputs callable raised {raised(error)}") from error
    if isinstance(batch, torch.Tensor):
        return (batch,), {}
    if isinstance(batch, Mapping):
        return (), dict(batch)
    if type(batch) is tuple:
        return batch, {}
    raise ValueError(
        f"the inputs callable gave {type(batch).__name__}: give a tensor, a tuple (positional arguments) "
        "or a dict (keyword arguments); one argument of another kind is a tuple of one, (value,)"
    )


def _named(part: Any) -> tuple[object, Any]:
    """Split ``mask=2x16:bool`` into the name of the argument and its shape."""
    if not isinstance(part, str) or "=" not in part:
        return _UNNAMED, part
    name, _, text = part.partition("=")
    return name.strip(), text


def _spec(part: Any) -> InputSpec:
    if isinstance(part, InputSpec):
        return part
    if isinstance(part, str):
        return _of_text(part)
    if not isinstance(part, (tuple, list)):
        raise ValueError(f"inputs: {part!r} is not a valid shape; {_FORM}")
    for size in part:
        if not _is_size(size):
            wanted = "; several inputs are a list" if isinstance(size, (tuple, list, str)) else ""
            raise ValueError(f"inputs: {part!r} is not a valid shape: {size!r} is not a size{wanted}")
        if size < 0:
            raise ValueError(f"inputs: {part!r} is not a shape, a size can't be negative")
    return InputSpec(tuple(part))


def _of_text(text: str) -> InputSpec:
    match = _TEXT.fullmatch("".join(text.split()))
    if not match:
        raise ValueError(f"inputs: {text!r} is not a valid shape; {_FORM}")
    dtype = match["dtype"] or "float32"
    if dtype not in ITEMSIZE or dtype in _UNDRAWN:
        raise ValueError(
            f"inputs: {text!r}: no dtype {dtype!r}; torch's names are float32, bfloat16, int64, bool, ..."
        )
    shape = tuple(int(size) for size in match["sizes"].split("x"))
    if match["bound"] is None:
        return InputSpec(shape, dtype)
    if "int" not in dtype:
        raise ValueError(f"inputs: {text!r}: only integers take a bound, as in '2x16:int64<32000'")
    bits = 8 * ITEMSIZE[dtype] - (not dtype.startswith("u"))
    bound, most = int(match["bound"]), min(2**bits, 2**63 - 1)  # torch draws in int64
    if not 0 < bound <= most:
        raise ValueError(f"inputs: {text!r}: the bound of {dtype} lies between 1 and {most}")
    return InputSpec(shape, dtype, bound)


def _is_size(size: Any) -> bool:
    return isinstance(size, int) and not isinstance(size, bool)
