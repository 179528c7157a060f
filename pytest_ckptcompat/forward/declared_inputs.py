"""``inputs="auto"``: the inputs that a Lightning, timm or transformers model declares itself."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from pytest_ckptcompat.tensors.nested import mapped, tensors

from .inputs import Inputs, InputSpec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import nn

LOOKED_FOR = (
    "example_input_array (Lightning), pretrained_cfg or default_cfg (timm), dummy_inputs and the sizes in "
    "config (transformers)"
)

_SECOND = 16_000  # samples of sound
_FRAMES = 3000  # of Whisper's spectrograms
_WORDS = 8


def known_inputs(model: nn.Module, build: Callable[[], nn.Module] | None = None) -> Inputs | None:
    """Return the inputs that a model declares, or None.

    Args:
        model: any module, on any device.
        build: builds the model on the CPU, which is needed if integer inputs are on the meta device.
    """
    for found in _candidates(model):
        if build is not None and any(_valueless(each) for each in _tensors(found)):
            return known_inputs(build())
        return found
    return None


def _candidates(model: nn.Module) -> Iterator[Inputs]:
    example = _attribute(model, "example_input_array")
    if example is not None:
        yield Inputs(make=lambda: mapped(example, _with_values))
    for name in ("pretrained_cfg", "default_cfg"):
        size = _item(_attribute(model, name), "input_size")
        if _are_sizes(size):
            yield Inputs((InputSpec((1, *_as_built(model, tuple(size)))),))
    config, main = _attribute(model, "config"), _attribute(model, "main_input_name")
    if config is None or not isinstance(main, str):
        return
    dummy = _attribute(model, "dummy_inputs")
    if isinstance(dummy, Mapping) and main in dummy:
        yield _with_pictures(model, config, Inputs(make=lambda: dict(dummy)), dict(dummy))
    elif sizes := _of_config(config, main):
        decoder = _item(config, "is_encoder_decoder") is True
        words = {"decoder_input_ids": InputSpec((1, _WORDS), "int64", 2)} if decoder else {}
        yield Inputs(kwargs={main: sizes, **words})


def _as_built(model: nn.Module, size: tuple[int, ...]) -> tuple[int, ...]:
    """Return the image size for which this model was built, which may differ from its config."""
    built = _attribute(_attribute(model, "patch_embed"), "img_size")
    if isinstance(built, int):
        built = (built, built)
    return (size[0], *built) if _are_sizes(built) and len(built) == 2 and len(size) == 3 else size


def _with_pictures(model: nn.Module, config: Any, inputs: Inputs, dummy: dict[str, Any]) -> Inputs:
    """Add images to the inputs of a model that takes text and images, such as CLIP."""
    pictures = _of_config(_item(config, "vision_config"), "pixel_values")
    if pictures is None or "pixel_values" in dummy:
        return inputs
    if "pixel_values" not in inspect.signature(model.forward).parameters:
        return inputs
    return Inputs(make=lambda: dummy | {"pixel_values": torch.zeros(pictures.shape)})


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
    return (
        isinstance(value, (tuple, list))
        and bool(value)
        and all(type(size) is int and size > 0 for size in value)
    )


def _tensors(inputs: Inputs) -> list[torch.Tensor]:
    return [] if inputs.make is None else [tensor for _, tensor in tensors(inputs.make())]


def _with_values(tensor: torch.Tensor) -> torch.Tensor:
    """Replace a floating meta tensor by standard normal values. Return other tensors unchanged."""
    if not tensor.is_meta or not tensor.is_floating_point():
        return tensor
    return torch.randn(tensor.shape, device="cpu").to(tensor.dtype)


def _valueless(tensor: torch.Tensor) -> bool:
    return tensor.is_meta and not tensor.is_floating_point()
