"""Run the forward pass for real: on the CPU or a CUDA device, seeded, in eval mode, and check all outputs."""

from __future__ import annotations

from contextlib import nullcontext, suppress
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from pytest_ckptcompat.core.findings import Finding, finding
from pytest_ckptcompat.core.memory import shown as size_shown
from pytest_ckptcompat.tensors.nested import mapped, moved
from pytest_ckptcompat.tensors.seeds import seeded

from .devices import Meter, asks_for_card, cuda_device
from .locate import Place, cause, failure, first_module
from .outcome import Outcome, evaluating
from .outputs import Gap, bad_values, gap, not_finite, shown, tolerance

if TYPE_CHECKING:
    from collections.abc import Callable

    from .inputs import Batch, Inputs


def forward(model: nn.Module, inputs: Inputs, device: str = "cpu", *, or_skip: bool = False) -> Outcome:
    """Run the model once and check its outputs.

    The pass runs in eval mode, without gradients and with seeded generators. Modes and generators are
    restored afterwards. Before a pass on CUDA, a model on the CPU runs there once. Then an index out of range
    is a plain error instead of a lost CUDA context, and the outputs of both must agree within the tolerances
    of their dtypes. The model stays on the device where it ran.

    Whatever the model raises, including ``sys.exit``, becomes a finding.

    Args:
        model: a loaded model.
        inputs: its inputs; batch 0 is used.
        device: ``cpu``, ``cuda`` (see `cuda_device`) or ``cuda:N``.
        or_skip: whether a model that itself uses a missing CUDA device (``.cuda()``) is skipped, not failed.
    """
    if device == "cpu":
        return _run(model, inputs, torch.device("cpu"), or_skip=or_skip)
    try:
        target = cuda_device(device)
    except ValueError as error:
        return Outcome("failed", str(error), [finding("forward-no-cuda", message=str(error))])
    expected = _run(model, inputs, torch.device("cpu")) if _places(model) <= {torch.device("cpu")} else None
    outcome = _run(model, inputs, target)
    return _compared(model, inputs, target, expected, outcome) if outcome.status == "passed" else outcome


def _run(model: nn.Module, inputs: Inputs, device: torch.device, *, or_skip: bool = False) -> Outcome:
    """Run one pass on one device, and check that the outputs are finite."""
    try:
        batch = inputs.batch(0)
    except ValueError as error:
        return _failed(device, finding("forward-error", message=str(error)))
    meter = Meter(device)
    try:
        outputs = _pass(model, inputs, batch, meter)
    except (Exception, SystemExit) as error:
        if or_skip and asks_for_card(error):
            return Outcome("skipped", f"the model needs a CUDA device, and there is none; {cause(error)}")
        return _failed(device, _raised(error, model, device))
    if found := not_finite(outputs):
        place = Place()
        with suppress(Exception, SystemExit):
            again = partial(_again, model, inputs, device)
            place = first_module(model, again, lambda tensor: bool(bad_values(tensor)))
        text = f"{found}; first {place}" if str(place) else found
        return _failed(device, finding("forward-non-finite", place.module, message=text))
    detail = f"on {meter.name}: {shown(outputs)}{meter.used}"
    on_cuda = device.type == "cuda"
    return Outcome("passed", detail, outputs=outputs, on_cuda=on_cuda, peak_bytes=meter.peak_bytes)


def _pass(model: nn.Module, inputs: Inputs, batch: Batch, meter: Meter, seed: int = 0) -> Any:
    """Return the model's outputs for a batch, with tensors moved to the CPU. Errors are not caught."""
    device = meter.device
    if device.type == "cuda":
        torch.cuda.init()  # type: ignore[no-untyped-call]  # so that its generators are seeded and restored
    place = torch.cuda.device(device) if device.type == "cuda" else nullcontext()
    with seeded(seed), evaluating(model), place, meter:
        places = _places(model)
        if len(places) == 1 and places != {device}:
            model.to(device)  # also from another CUDA device, on which its constructor put it
        args, kwargs = moved(batch, device)
        outputs = inputs.callee(model)(*args, **kwargs)
        meter.synchronise()  # so that errors of kernels are raised here and not in the next test
        return mapped(outputs, lambda tensor: tensor.detach().cpu())


def _again(model: nn.Module, inputs: Inputs, device: torch.device, seed: int = 0) -> Any:
    """Run another pass with a new batch, because the first pass may have changed its batch in place."""
    return _pass(model, inputs, inputs.batch(0), Meter(device), seed)


def _compared(
    model: nn.Module, inputs: Inputs, device: torch.device, expected: Outcome | None, actual: Outcome
) -> Outcome:
    """Compare the outcome on a CUDA device with the one on the CPU."""

    def told(text: str) -> Outcome:
        return replace(actual, detail=f"{actual.detail}; {text}")

    if expected is None:
        return told("not compared with the CPU: the weights are only on the CUDA device")
    if expected.status != "passed":
        return told(f"not compared with the CPU, where it failed: {expected.findings[0].message}")
    worst = gap(expected.outputs, actual.outputs, {parameter.dtype for parameter in model.parameters()})
    if worst is None:
        return told("not compared with the CPU: no floating-point outputs of the same shapes")
    autocast, again = "", partial(_again, model, inputs, device)
    if not worst.ok:
        if _is_random(actual.outputs, again):
            return told("not compared with the CPU: the outputs are random")
        worst, autocast = _under_autocast(model, again, worst), ", autocast"
    error = f"relative error {worst.error:.1e}, allowed {worst.tolerance:.0e}"
    if worst.ok:
        return told(f"agrees with the CPU ({error}{autocast})")
    text = f"output{worst.path} on {device} differs from the CPU's: {error}"
    found = finding("forward-disagree", message=text)
    return Outcome("failed", f"on {device}: {text}", [found], actual.outputs)


def _is_random(outputs: Any, again: Callable[[int], Any]) -> bool:
    """Return whether another seed changes the outputs, so that two devices can't agree either."""
    try:
        other = gap(outputs, again(1))
    except (Exception, SystemExit):
        return False
    return other is None or not other.ok


def _under_autocast(model: nn.Module, again: Callable[[], Any], worst: Gap) -> Gap:
    """Return the gap with the tolerance of the coarsest dtype that any module returns, due to autocast."""
    seen: set[torch.dtype] = set()
    with suppress(Exception, SystemExit):  # the second run may be out of memory
        first_module(model, again, lambda tensor: bool(seen.add(tensor.dtype)))  # type: ignore[func-returns-value]
    return worst._replace(tolerance=max(worst.tolerance, tolerance(seen)))


def _raised(error: BaseException, model: nn.Module, device: torch.device) -> Finding:
    note = ""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
        isinstance(error, RuntimeError) and "you tried to allocate" in str(error)
    ):
        note = f"out of memory on {_room(device)}: declare a smaller batch, or another device"
    elif device.type == "cuda" and "CUDA error" in str(error):
        note = "the CUDA context may be lost: later tests of this process can't use the card"
    return failure(error, model, note)


def _room(device: torch.device) -> str:
    if device.type != "cuda":
        return str(device)
    free, total = torch.cuda.mem_get_info(device)
    return f"{device} ({size_shown(free)} of {size_shown(total)} free)"


def _failed(device: torch.device, found: Finding) -> Outcome:
    return Outcome("failed", f"on {device}: {found.rule}", [found])


def _places(model: nn.Module) -> set[torch.device]:
    return {tensor.device for tensor in chain(model.parameters(), model.buffers())}
