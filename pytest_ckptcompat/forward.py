"""The forward pass, for real: on the CPU or on a card, seeded, in eval mode, every output looked at."""

from __future__ import annotations

import gc
import os
import time
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Any, Literal, Self

import torch
from torch import nn

from .agreement import Gap, gap, tolerance
from .blame import Place, failure, first_module
from .nested import mapped, moved, tensors
from .rules import Finding, finding
from .seeds import seeded
from .tensors import shown

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .inputs import Inputs

_SHOWN = 6


@dataclass(frozen=True)
class Outcome:
    """How a forward pass went.

    Attributes:
        status: ``passed``, ``failed``, ``rehearsed`` or ``skipped``.
        detail: one line: where it ran and what came out (``on cpu: (2, 1), (2, 14)``), or why it did not.
        findings: what is wrong; empty unless it failed.
        outputs: what the model gave, with its tensors on the CPU; None where nothing was computed.
        seconds: wall time of the pass; on a card, of the first one there.
        peak_bytes: the most memory the pass held on the card, weights included; 0 on the CPU.
    """

    status: Literal["passed", "failed", "rehearsed", "skipped"]
    detail: str
    findings: list[Finding] = field(default_factory=list)
    outputs: Any = None
    seconds: float = 0.0
    peak_bytes: int = 0


def forward(model: nn.Module, inputs: Inputs, device: str = "cpu") -> Outcome:
    """Run the model once and judge what comes out.

    The pass runs in eval mode, without gradients, every generator seeded; modes and generators are then given
    back as they were. For a card, a model that lies on the CPU runs there first: an index out of range is
    then a plain error, not a lost CUDA context, and the outputs on both must agree within the tolerances of
    their dtypes. The model stays on the device it ran on.

    Args:
        model: a loaded model.
        inputs: what to call it with; batch 0.
        device: ``cpu``, ``cuda`` (see `cuda_device`) or ``cuda:N``.

    Returns:
        The outcome; whatever the model raises, ``sys.exit`` included, is a finding in it.
    """
    if device == "cpu":
        return _run(model, inputs, torch.device("cpu"))
    try:
        target = cuda_device(device)
    except ValueError as error:
        return Outcome("failed", str(error), [finding("forward-no-cuda", message=str(error))])
    expected = _run(model, inputs, torch.device("cpu")) if _devices(model) <= {"cpu"} else None
    outcome = _run(model, inputs, target)
    return _compared(model, inputs, target, expected, outcome) if outcome.status == "passed" else outcome


def cuda_device(name: str = "cuda") -> torch.device:
    """The card that ``cuda`` or ``cuda:N`` means.

    Plain ``cuda`` is the first card; the workers of pytest-xdist, and the ranks of torchrun, are dealt out
    over all that are visible.

    Raises:
        ValueError: there is no such card; the text says why.
    """
    index = torch.device(name).index
    if torch.version.cuda is None and torch.version.hip is None:
        raise ValueError(f"{name}: this torch ({torch.__version__}) is built for the CPU only")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not count:
        raise ValueError(
            f"{name}: torch {torch.__version__} sees no CUDA device; nvidia-smi tells whether the driver does"
        )
    if index is None:
        worker = os.environ.get("PYTEST_XDIST_WORKER", "").removeprefix("gw") or os.environ.get(
            "LOCAL_RANK", ""
        )
        index = int(worker) % count if worker.isdigit() else 0
    if index >= count:
        raise ValueError(f"{name}: there are only {count} CUDA devices, cuda:0 to cuda:{count - 1}")
    return torch.device("cuda", index)


def release() -> None:
    """Give back the memory of models and outputs that nothing refers to any more, on the card too."""
    gc.collect()
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.empty_cache()


def outputs_shown(outputs: Any) -> str:
    """``(2, 1), (2, 14) bf16``: the shape of every tensor in `outputs`, its dtype unless it is float32."""
    shapes = [
        shown(
            tuple(tensor.shape),
            "" if tensor.dtype == torch.float32 else str(tensor.dtype).removeprefix("torch."),
        )
        for _, tensor in tensors(outputs)
    ]
    if not shapes:
        return f"no tensors, {type(outputs).__name__}"
    more = f", and {len(shapes) - _SHOWN} more" if len(shapes) > _SHOWN else ""
    return ", ".join(shapes[:_SHOWN]) + more


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Run with the model in eval mode and no gradients; every module's mode is then set back as it was."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        with torch.no_grad():
            model.eval()
            yield
    finally:
        for module, training in modes:
            module.training = training


def _run(model: nn.Module, inputs: Inputs, device: torch.device) -> Outcome:
    """One pass on one device, its outputs finite."""
    try:
        args, kwargs = inputs.batch(0)
    except ValueError as error:
        return _failed(device, finding("forward-error", message=str(error)))
    meter = _Meter(device)
    try:
        outputs = _pass(model, args, kwargs, device, meter)
    except (Exception, SystemExit) as error:
        return _failed(device, _raised(error, model, device))
    found = _not_finite(outputs)
    if found:
        place = _first_not_finite(model, args, kwargs, device)
        text = f"{found}; first {place}" if str(place) else found
        return _failed(device, finding("forward-non-finite", place.module, message=text))
    detail = f"on {meter.name}: {outputs_shown(outputs)}{meter.used}"
    return Outcome("passed", detail, outputs=outputs, seconds=meter.seconds, peak_bytes=meter.peak_bytes)


def _pass(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    device: torch.device,
    meter: _Meter,
    seed: int = 0,
) -> Any:
    """What the model gives for a batch, tensors moved to the CPU; whatever it raises passes through."""
    if device.type == "cuda":
        torch.cuda.init()  # type: ignore[no-untyped-call]  # so that its generators are seeded, and given back
    place = torch.cuda.device(device) if device.type == "cuda" else nullcontext()
    with seeded(seed), evaluating(model), place, meter:
        if _devices(model) != {device.type} and len(_devices(model)) == 1:
            model.to(device)
        outputs = model(*moved(args, device), **moved(kwargs, device))
        meter.synchronise()  # what a kernel did wrong is raised here, not in the next test
        return mapped(outputs, lambda tensor: tensor.detach().cpu())


class _Meter:
    """Wall time and, on a card, peak memory of what runs inside ``with``."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds = 0.0
        self.peak_bytes = 0

    def __enter__(self) -> Self:
        self.synchronise()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        self._start = time.perf_counter()
        return self

    def __exit__(self, *raised: object) -> None:
        self.seconds = time.perf_counter() - self._start
        if self.device.type == "cuda" and raised[0] is None:
            self.peak_bytes = torch.cuda.max_memory_allocated(self.device)

    def synchronise(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    @property
    def name(self) -> str:
        card = f" ({torch.cuda.get_device_name(self.device)})" if self.device.type == "cuda" else ""
        return f"{self.device}{card}"

    @property
    def used(self) -> str:
        if self.device.type != "cuda":
            return ""
        return f"; {self.seconds:.2g} s, peak {_size(self.peak_bytes)}"


def _compared(
    model: nn.Module, inputs: Inputs, device: torch.device, expected: Outcome | None, actual: Outcome
) -> Outcome:
    """The outcome on a card, held against the one on the CPU."""

    def told(text: str) -> Outcome:
        return Outcome(
            "passed",
            f"{actual.detail}; {text}",
            outputs=actual.outputs,
            seconds=actual.seconds,
            peak_bytes=actual.peak_bytes,
        )

    if expected is None:
        return told("not compared with the CPU: the weights lie on the card only")
    if expected.status != "passed":
        return told(f"not compared with the CPU, where it failed: {expected.findings[0].message}")
    worst = gap(expected.outputs, actual.outputs, {parameter.dtype for parameter in model.parameters()})
    if worst is None:
        return told("not compared with the CPU: no floating-point outputs of the same shapes")
    if worst.ok:
        return told(f"agrees with the CPU (relative error {worst.error:.1e}, allowed {worst.tolerance:.0e})")
    if _is_random(model, inputs, device, actual):
        return told("not compared with the CPU: the outputs are random")
    worst = _under_autocast(model, inputs, device, worst)
    if worst.ok:
        return told(
            f"agrees with the CPU (relative error {worst.error:.1e}, allowed {worst.tolerance:.0e}, autocast)"
        )
    text = (
        f"output{worst.path} on {device} differs from the CPU's: relative error {worst.error:.1e}, "
        f"allowed {worst.tolerance:.0e}"
    )
    return Outcome(
        "failed", f"on {device}: {text}", [finding("forward-disagree", message=text)], actual.outputs
    )


def _is_random(model: nn.Module, inputs: Inputs, device: torch.device, first: Outcome) -> bool:
    """Whether another seed gives other outputs for the same batch: then two devices can't agree either."""
    args, kwargs = inputs.batch(0)
    again = _pass(model, args, kwargs, device, _Meter(device), seed=1)
    other = gap(first.outputs, again)
    return other is None or not other.ok


def _under_autocast(model: nn.Module, inputs: Inputs, device: torch.device, worst: Gap) -> Gap:
    """The same gap, allowed for the coarsest dtype any module computed in: autocast leaves no other trace."""
    args, kwargs = inputs.batch(0)
    seen: set[torch.dtype] = set()
    first_module(
        model,
        lambda: _pass(model, args, kwargs, device, _Meter(device)),
        lambda tensor: bool(seen.add(tensor.dtype)),  # type: ignore[func-returns-value]
    )
    return worst._replace(tolerance=max(worst.tolerance, tolerance(seen)))


def _not_finite(outputs: Any) -> str:
    """What is not finite among the outputs, in one sentence, or ``""``."""
    for path, tensor in tensors(outputs):
        bad = _bad_values(tensor)
        if bad:
            return f"output{path}: {bad} of {tensor.numel()} values are NaN or infinite"
    return ""


def _bad_values(tensor: torch.Tensor) -> int:
    if not (tensor.is_floating_point() or tensor.is_complex()) or tensor.is_meta:
        return 0
    if tensor.is_nested or tensor.layout != torch.strided:
        tensor = _stored(tensor)
    if tensor.itemsize == 1:  # float8 has no isfinite
        tensor = tensor.float()
    return int(tensor.numel() - torch.isfinite(tensor).sum())


def _stored(tensor: torch.Tensor) -> torch.Tensor:
    """The explicit values of a sparse or nested tensor."""
    if tensor.is_nested:
        return torch.cat([part.flatten() for part in tensor.unbind()])
    return tensor.coalesce().values() if tensor.layout == torch.sparse_coo else tensor.values()


def _first_not_finite(model: nn.Module, args: Any, kwargs: Any, device: torch.device) -> Place:
    """Where the first bad value appears, found by running again and looking at what every module gives."""
    run: Callable[[], Any] = lambda: _pass(model, args, kwargs, device, _Meter(device))  # noqa: E731
    try:
        return first_module(model, run, lambda tensor: bool(_bad_values(tensor)))
    except (Exception, SystemExit):
        return Place()


def _raised(error: BaseException, model: nn.Module, device: torch.device) -> Finding:
    if _out_of_memory(error):
        return failure(
            error, model, f"out of memory on {_room(device)}: declare a smaller batch, or another device"
        )
    if device.type == "cuda" and "CUDA error" in str(error):
        return failure(
            error, model, "the CUDA context may be lost: later tests of this process can't use the card"
        )
    return failure(error, model)


def _out_of_memory(error: BaseException) -> bool:
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and "you tried to allocate" in str(error)


def _room(device: torch.device) -> str:
    if device.type != "cuda":
        return str(device)
    free, total = torch.cuda.mem_get_info(device)
    return f"{device} ({_size(free)} of {_size(total)} free)"


def _failed(device: torch.device, found: Finding) -> Outcome:
    return Outcome("failed", f"on {device}: {found.message}", [found])


def _devices(model: nn.Module) -> set[str]:
    return {tensor.device.type for tensor in chain(model.parameters(), model.buffers())}


def _size(nbytes: int) -> str:
    return f"{nbytes / 1e9:.1f} GB" if nbytes >= 1e9 else f"{nbytes / 1e6:.0f} MB"
