"""``torch.autocast("cuda")`` for the meta tensors that simulate CUDA tensors, which torch does not cast.

Autocast is a dispatch key that meta tensors lack. The lists are those of torch's documentation ("Autocast Op
Reference"), as far as the operations are visible below composite ones.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import scaled_dot_product_attention

if TYPE_CHECKING:
    from collections.abc import Callable

_LOW = {
    "addbmm",
    "addmm",
    "addmv",
    "addr",
    "baddbmm",
    "bmm",
    "convolution",
    "dot",
    "mm",
    "mv",
    "_prelu_kernel",
}
_FULL = {
    *("acos", "asin", "cosh", "cumprod", "cumsum", "erfinv", "exp", "expm1", "log", "log10", "log1p", "log2"),
    *(
        "linalg_vector_norm",
        "norm",
        "pow",
        "prod",
        "reciprocal",
        "renorm",
        "rsqrt",
        "sinh",
        "softplus",
        "sum",
    ),
    *("_cdist_forward", "_log_softmax", "_softmax", "binary_cross_entropy", "dist", "mse_loss", "tan"),
    *("native_group_norm", "native_layer_norm", "nll_loss_forward", "nll_loss2d_forward", "smooth_l1_loss"),
}
_CHECKED = {
    *(
        scaled_dot_product_attention,
        torch.prelu,
        torch.Tensor.prelu,
        torch.conv1d,
        torch.conv2d,
        torch.conv3d,
    ),
    *(torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d),
}
"""Functions that check the dtypes of their arguments before any operation is dispatched."""

_HALVES = (torch.float16, torch.bfloat16)
_FLOATS = (torch.float32, *_HALVES)


class Autocast:
    """The casts of the current autocast region.

    Attributes:
        low: the region's dtype, or None outside of a region. A function mode has to update it with `listen`,
            because torch reports no region at the level of operations.
    """

    low: torch.dtype | None = None

    def listen(self) -> None:
        """Record the current autocast region."""
        self.low = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else None

    def of_call(self, function: Any) -> Callable[[Any], Any] | None:
        """Return the cast for every argument of a torch function, or None."""
        return _caster(_FLOATS, self.low) if self.low and function in _CHECKED else None

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
        if not isinstance(value, torch.Tensor) or value.device.type == "cpu":
            return value
        return value.to(target) if value.dtype in sources and value.dtype != target else value

    return cast
