"""``torch.autocast("cuda")`` for the meta tensors that simulate CUDA tensors, which torch does not cast.

Autocast is a dispatch key that meta tensors lack. The lists are those of torch's documentation ("Autocast Op
Reference"), as far as the operations are visible below composite ones.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from .cuda_rules import PRODUCTS

if TYPE_CHECKING:
    from collections.abc import Callable

_LOW = PRODUCTS | {"addr", "_prelu_kernel"}
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
