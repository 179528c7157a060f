"""What CUDA does with an operation, but fake tensors don't: refuse it, or cast for it in autocast regions.

Fake tensors accept some mixed devices, mixed dtypes and integer products. Autocast is a dispatch key that the
meta tensors lack which simulate CUDA tensors. Its lists are those of torch's documentation ("Autocast Op
Reference"), as far as the operations are visible below composite ones.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from pytest_ckptcompat.core.tensor_spec import shown

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_EITHER_DEVICE = {
    "copy", "copy_", "_to_copy", "_foreach_copy", "_foreach_copy_", "set_", "device", "is_same_size",
    "_pack_padded_sequence", "_pad_packed_sequence", "lstm", "gru", "rnn_tanh", "rnn_relu", "_cudnn_rnn",
    "_ctc_loss", "ctc_loss", "resize_as_", "detach", "alias", "lift", "lift_fresh", "lift_fresh_copy",
}  # fmt: skip
"""Operations that move between devices, or that need one of their tensors on the CPU (lengths)."""

_CPU_INDICES = {"index", "_unsafe_index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index_put"}
"""Operations that accept indices on the CPU for a CUDA tensor."""

_PRODUCTS = {"mm", "addmm", "bmm", "baddbmm", "addbmm", "mv", "addmv", "dot", "convolution"}
"""Operations whose tensors must have the same dtype, and that CUDA lacks for integers and float8."""

_LOW = _PRODUCTS | {"addr", "_prelu_kernel"}
_FULL = {
    "acos", "asin", "cosh", "cumprod", "cumsum", "erfinv", "exp", "expm1", "log", "log10", "log1p", "log2",
    "linalg_vector_norm", "norm", "pow", "prod", "reciprocal", "renorm", "rsqrt", "sinh", "softplus", "sum",
    "_cdist_forward", "_log_softmax", "_softmax", "binary_cross_entropy", "dist", "mse_loss", "tan",
    "native_group_norm", "native_layer_norm", "nll_loss_forward", "nll_loss2d_forward", "smooth_l1_loss",
}  # fmt: skip
_CHECKED = {
    scaled_dot_product_attention, torch.prelu, torch.Tensor.prelu, torch.conv1d, torch.conv2d, torch.conv3d,
    torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d,
}  # fmt: skip
"""Functions that check the dtypes of their arguments before any operation is dispatched."""

_HALVES = (torch.float16, torch.bfloat16)
_FLOATS = (torch.float32, *_HALVES)


class Refusal(RuntimeError):  # noqa: N818  # reports print the name
    """Raised if CUDA would refuse an operation."""


class MixedDevices(Refusal):
    """Raised if an operation gets tensors on the CUDA device and on the CPU."""


def refuse(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], card: torch.device) -> None:
    """Raise an error if CUDA would raise one for an operation of ATen or prims that is about to run.

    Raises:
        MixedDevices: there are tensors on the CUDA device and on the CPU. 0-dim CPU tensors are accepted.
        Refusal: a product of tensors with several dtypes, or of integers or float8.
    """
    if func.namespace not in ("aten", "prims"):
        return
    name = func.overloadpacket.__name__
    if name in _CPU_INDICES and len(args) > 1:
        args = (args[0], [i for i in args[1] if i is not None and i.device.type != "cpu"], *args[2:])
    tensors = [*_tensors(args), *_tensors(kwargs.values())]
    if name not in _EITHER_DEVICE:
        _one_device(name, tensors, card)
    if name in _PRODUCTS:
        _one_dtype(name, tensors)


def _one_device(name: str, tensors: list[torch.Tensor], card: torch.device) -> None:
    there = next((tensor for tensor in tensors if tensor.device.type != "cpu"), None)
    left = next((tensor for tensor in tensors if tensor.device.type == "cpu" and tensor.dim()), None)
    if there is not None and left is not None:
        raise MixedDevices(
            f"{name}: expected all tensors to be on the same device, but found {card} {_shown(there)} "
            f"and cpu {_shown(left)}"
        )


def _one_dtype(name: str, tensors: list[torch.Tensor]) -> None:
    if not tensors or tensors[0].device.type == "cpu":
        return
    first = tensors[0]
    for tensor in tensors[1:]:
        if tensor.dtype != first.dtype:
            raise Refusal(f"{name}: expected one dtype, but found {_shown(first)} and {_shown(tensor)}")
    if not (first.is_floating_point() or first.is_complex()) or first.itemsize == 1:
        raise Refusal(f"{name}: not implemented for {str(first.dtype).removeprefix('torch.')} on CUDA")


def _tensors(values: Any) -> Iterator[torch.Tensor]:
    """Yield the tensors among the arguments of an operation, also those in lists."""
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)


def _shown(tensor: torch.Tensor) -> str:
    return shown(tuple(tensor.shape), str(tensor.dtype))


class Autocast(TorchFunctionMode):
    """A mode that follows autocast regions, and casts the arguments of functions that check their dtypes.

    It also turns a number given as ``device`` into the CUDA device that torch takes it for if there is one.

    Attributes:
        low: the dtype of the current region, or None outside of a region. Torch reports no region at the
            level of operations.
    """

    low: torch.dtype | None = None

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        self.low = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else None
        if self.low and func in _CHECKED:
            cast = _caster(_FLOATS, self.low)
            args = tuple(map(cast, args))
            kwargs = {key: cast(value) for key, value in kwargs.items()}
        if type(kwargs.get("device")) is int:
            kwargs = {**kwargs, "device": torch.device("cuda", kwargs["device"])}
        return func(*args, **kwargs)

    def of_operation(self, operation: Any) -> Callable[[Any], Any] | None:
        """Return the cast for every argument of an ATen operation, or None."""
        if self.low is None:
            return None
        name = operation.overloadpacket.__name__
        if name in _LOW:
            return _caster(_FLOATS, self.low)
        return _caster(_HALVES, torch.float32) if name in _FULL else None


def _caster(sources: tuple[torch.dtype, ...], target: torch.dtype) -> Callable[[Any], Any]:
    def cast(value: Any) -> Any:
        if isinstance(value, torch.Tensor) and value.device.type != "cpu" and value.dtype in sources:
            return value.to(target)
        return value

    return cast
