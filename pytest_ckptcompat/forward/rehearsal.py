"""Rehearse the CUDA forward pass: run the model's own ``forward`` on fake tensors."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn

from pytest_ckptcompat.core.findings import Finding, finding
from pytest_ckptcompat.core.memory import shown as size_shown
from pytest_ckptcompat.tensors.seeds import seeded

from .cuda_rules import MixedDevices
from .fake_cuda import Card, Unrehearsable
from .locate import blame, cause, failure
from .outcome import Outcome, evaluating
from .outputs import shown
from .peak_memory import PeakMemory
from .unrehearsable import limitation

if TYPE_CHECKING:
    from collections.abc import Callable

    from .inputs import Batch, Inputs


def rehearse(
    model: nn.Module, inputs: Inputs, device: str = "cuda:0", *, ran_on_cpu: bool = False
) -> Outcome:
    """Run the model's own forward on fake tensors of a simulated CUDA device.

    Every operation is checked with shapes, dtypes and devices, in eval mode and without gradients. No values
    are computed and no memory is used. `model` may be real or on meta, and is not changed.

    If the same forward passed on the CPU for real (`ran_on_cpu`), errors that fake CPU tensors raise too are
    known to be their fault and not the model's.

    Returns:
        ``rehearsed`` with the shapes of the outputs, ``failed`` with the module and line that raised or mixed
        devices or dtypes, or ``skipped`` with the reason if the result depends on values or the driver.
    """
    try:
        batch = inputs.batch(0)
    except ValueError as error:
        return _failed(device, finding("forward-error", message=str(error)))
    attempt = partial(_attempt, model, inputs, batch)
    card = Card(device)
    first = attempt(card)
    if first.error is None:
        return _rehearsed(card, first)
    found = failure(first.error, first.model)
    if isinstance(first.error, MixedDevices):
        return _built_elsewhere(model, card, attempt) or _failed(device, found)
    if reason := limitation(first.error):
        return _skipped(reason, first)
    if ran_on_cpu and (on_cpu := attempt(Card("cpu"))).error is not None:
        return _skipped(f"fake tensors fail where real ones pass, {cause(on_cpu.error)}", first)
    return _failed(device, found)


class _Attempt(NamedTuple):
    """The copy that was run (or the model itself if it could not be copied), and its outcome."""

    model: nn.Module
    outputs: Any = None
    error: BaseException | None = None
    peak: int = 0
    weights: int = 0


def _attempt(
    model: nn.Module,
    inputs: Inputs,
    batch: Batch,
    card: Card,
    adapt: Callable[[nn.Module], None] = lambda copied: None,
) -> _Attempt:
    copied = model
    try:
        copied = card.copy(model)
        with seeded(0), card, evaluating(copied):
            adapt(copied)
            args, kwargs = card.batch(*batch)
            memory = PeakMemory()
            weights = memory.hold(list(copied.parameters()), list(copied.buffers()))
            memory.hold(args, kwargs)
            with memory:
                outputs = inputs.callee(copied)(*args, **kwargs)
            return _Attempt(copied, outputs, None, memory.peak, weights)
    except (Exception, SystemExit) as error:
        return _Attempt(copied, error=error)


def _built_elsewhere(model: nn.Module, card: Card, attempt: Callable[..., _Attempt]) -> Outcome | None:
    """Return the outcome if a device that was chosen in the constructor explains the tensors on the CPU.

    ``self.device = "cuda" if torch.cuda.is_available() else "cpu"`` is correct code, also without CUDA.
    """
    kept = list(dict.fromkeys(name for name, _, _ in _kept_devices(model)))
    if not kept:
        return None
    named = ", ".join(kept)

    def rebuild(copied: nn.Module) -> None:
        for _, holder, key in _kept_devices(copied):
            holder[key] = card.device if isinstance(holder[key], torch.device) else str(card.device)

    def rebuild_all(copied: nn.Module) -> None:
        rebuild(copied)
        for module in copied.modules():
            for key, value in vars(module).items():
                if isinstance(value, torch.Tensor):
                    vars(module)[key] = value.to(card.device)

    rebuilt = attempt(card, rebuild)
    if rebuilt.error is None:
        return _rehearsed(card, rebuilt, f", with {named} = {card.device} instead of cpu")
    if reason := limitation(rebuilt.error):
        return _skipped(reason, rebuilt)
    rebuilt = attempt(card, rebuild_all)
    if rebuilt.error is None:
        built = f"{named} is cpu, since the model was built without a CUDA device"
        return _skipped(f"{built}, and so are tensors that it keeps", rebuilt)
    return None


def _kept_devices(model: nn.Module) -> list[tuple[str, dict[str, Any], str]]:
    """Find where the model stores ``cpu`` as its device: a name to print, the dict, and the key."""
    holders = []
    for path, module in model.named_modules():
        own = path or type(module).__name__
        holders.append((own, vars(module)))
        for key, value in vars(module).items():  # a config, a namespace of options
            inner = value if type(value) is dict else getattr(value, "__dict__", None)
            known = isinstance(value, (nn.Module, torch.Tensor, type))
            if isinstance(inner, dict) and key[0] != "_" and not known:
                holders.append((f"{own}.{key}", inner))
    return [
        (f"{name}.{key}", holder, key)
        for name, holder in holders
        for key, value in holder.items()
        if _is_kept(key, value)
    ]


def _is_kept(key: Any, value: Any) -> bool:
    if isinstance(value, torch.device):
        return value.type == "cpu"
    return isinstance(value, str) and value == "cpu" and isinstance(key, str) and "device" in key.lower()


def _rehearsed(card: Card, attempt: _Attempt, note: str = "") -> Outcome:
    peak = f"peak {size_shown(attempt.peak)} (weights {size_shown(attempt.weights)})"
    what = f"simulated {card.device} (fake tensors){note}: {shown(attempt.outputs)}; {peak}"
    return Outcome("rehearsed", what, peak_bytes=attempt.peak)


def _skipped(reason: str, attempt: _Attempt) -> Outcome:
    error = attempt.error
    place = "" if error is None or isinstance(error, Unrehearsable) else str(blame(error, attempt.model))
    return Outcome("skipped", f"can't be rehearsed here: {reason}" + (f"; {place}" if place else ""))


def _failed(device: str, found: Finding) -> Outcome:
    return Outcome("failed", f"{device}, rehearsed: {found.rule}", [found])
