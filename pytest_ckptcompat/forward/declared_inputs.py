"""``inputs="auto"``: the inputs that a Lightning, timm or transformers model declares itself."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from pytest_ckptcompat.tensors.nested import mapped, tensors

from .inputs import Inputs, InputSpec

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

LOOKED_FOR = (
    "example_input_array (Lightning), pretrained_cfg or default_cfg (timm), dummy_inputs and the sizes in "
    "config (transformers)"
)

_SECOND = 16_000  # samples of sound
_FRAMES = 3000  # of Whisper's spectrograms
_WORDS = 8


def known_inputs(model: nn.Module, build: Callable[[], nn.Module] | None = None) -> Inputs | None:
    """Return the inputs that a model on any device declares, or None.

    If integer inputs are on the meta device, `build` makes a model on the CPU, which has their values.
    """
    found = _declared(model)
    if found is None or found.make is None or build is None:
        return found
    valueless = (each.is_meta and not each.is_floating_point() for _, each in tensors(found.make()))
    return _declared(build()) if any(valueless) else found


def _declared(model: nn.Module) -> Inputs | None:
    example = _attribute(model, "example_input_array")
    if example is not None:
        batch = _as_lightning_calls(example)
        return Inputs(make=lambda: mapped(batch, _with_values))
    for name in ("pretrained_cfg", "default_cfg"):
        size = _item(_attribute(model, name), "input_size")
        if _are_sizes(size):
            return Inputs((InputSpec((1, *_as_built(model, tuple(size)))),))
    config, main = _attribute(model, "config"), _attribute(model, "main_input_name")
    if config is None or not isinstance(main, str):
        return None
    dummy = _attribute(model, "dummy_inputs")
    if isinstance(dummy, Mapping) and main in dummy:
        more = _pictures(model, config) if "pixel_values" not in dummy else {}
        return Inputs(make=lambda: {**dummy, **more})
    sizes = _of_config(config, main)
    if sizes is None:
        return None
    decoder = _item(config, "is_encoder_decoder") is True
    words = {"decoder_input_ids": InputSpec((1, _WORDS), "int64", 2)} if decoder else {}
    return Inputs(kwargs={main: sizes, **words})


def _as_lightning_calls(example: Any) -> Any:
    """Return the batch with which Lightning calls the model: a list is positional arguments, too."""
    if isinstance(example, (list, tuple)):
        return tuple(example)
    return example if isinstance(example, (torch.Tensor, dict)) else (example,)


def _as_built(model: nn.Module, size: tuple[int, ...]) -> tuple[int, ...]:
    """Return the image size for which this model was built, which may differ from its config."""
    built = _attribute(_attribute(model, "patch_embed"), "img_size")
    if isinstance(built, int):
        built = (built, built)
    return (size[0], *built) if _are_sizes(built) and len(built) == 2 and len(size) == 3 else size


def _pictures(model: nn.Module, config: Any) -> dict[str, torch.Tensor]:
    """Return the images that a model of text and images, such as CLIP, takes beside its dummy inputs."""
    pictures = _of_config(_item(config, "vision_config"), "pixel_values")
    if pictures is None or "pixel_values" not in inspect.signature(model.forward).parameters:
        return {}
    return {"pixel_values": torch.zeros(pictures.shape)}


def _of_config(config: Any, main: str) -> InputSpec | None:
    """Return the main input with the sizes in a transformers config, or None."""
    if main == "pixel_values":
        side, channels = _item(config, "image_size"), _item(config, "num_channels")
        sides = (side, side) if isinstance(side, int) else side
        if _are_sizes(sides) and len(sides) == 2:
            return InputSpec((1, channels if isinstance(channels, int) else 3, *sides))
    if main == "input_values" and config is not None:
        return InputSpec((1, _SECOND))
    if main == "input_features" and isinstance(bins := _item(config, "num_mel_bins"), int):
        positions = _item(config, "max_source_positions")
        return InputSpec((1, bins, 2 * positions if isinstance(positions, int) else _FRAMES))
    if main == "input_ids" and isinstance(words := _item(config, "vocab_size"), int):
        return InputSpec((1, _WORDS), "int64", words)
    return None


def _attribute(owner: Any, name: str) -> Any:
    """Return an attribute, or None if it is missing or a property that raises."""
    try:
        return getattr(owner, name, None)
    except Exception:
        return None


def _item(config: Any, name: str) -> Any:
    return config.get(name) if isinstance(config, Mapping) else _attribute(config, name)


def _are_sizes(value: Any) -> bool:
    sizes = value if isinstance(value, (tuple, list)) else ()
    return bool(sizes) and all(type(size) is int and size > 0 for size in sizes)


def _with_values(tensor: torch.Tensor) -> torch.Tensor:
    """Replace a floating meta tensor by standard normal values. Return other tensors unchanged."""
    if not tensor.is_meta or not tensor.is_floating_point():
        return tensor
    return torch.randn(tensor.shape, device="cpu").to(tensor.dtype)
