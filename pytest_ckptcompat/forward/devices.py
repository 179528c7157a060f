"""CUDA devices: find the one that a name means, measure time and memory, release memory."""

from __future__ import annotations

import gc
import os
import time
from contextlib import suppress
from typing import Self

import torch

from pytest_ckptcompat.core.memory import shown as size_shown

NO_DRIVER = (
    "Found no NVIDIA driver", "CUDA driver version", "CUDA error", "No CUDA GPUs", "no CUDA-capable device",
    "0 active drivers", "Cannot access accelerator device",
    # from a CPU-only build
    "compiled with CUDA", "compiled without CUDA", "not linked with support for", "without ATen_cuda",
    "requires CUDA support",
)  # fmt: skip
"""Texts of the errors that torch raises if code uses CUDA and there is no CUDA device."""


def asks_for_card(error: BaseException) -> bool:
    """Return whether an error was raised because code uses CUDA and there is no CUDA device."""
    return not torch.cuda.is_available() and any(text in str(error) for text in NO_DRIVER)


def cuda_device(name: str = "cuda") -> torch.device:
    """Return the CUDA device that ``cuda`` or ``cuda:N`` means.

    Plain ``cuda`` is the first device. Workers of pytest-xdist and ranks of torchrun are distributed over all
    visible devices.

    Raises:
        ValueError: there is no such device. The message says why.
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
        worker = os.environ.get("PYTEST_XDIST_WORKER", "").removeprefix("gw")
        number = worker or os.environ.get("LOCAL_RANK", "")
        index = int(number) % count if number.isdigit() else 0
    if index >= count:
        raise ValueError(f"{name}: there are only {count} CUDA devices, cuda:0 to cuda:{count - 1}")
    return torch.device("cuda", index)


def release() -> None:
    """Release the memory of unreferenced models and outputs, on CUDA devices too."""
    gc.collect()
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        with suppress(RuntimeError):  # a failed kernel, already reported, may have destroyed the context
            torch.cuda.empty_cache()


class Meter:
    """A meter of wall time and, on CUDA, of peak memory inside ``with``."""

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
        """Wait for the device. Errors of kernels are raised here."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    @property
    def name(self) -> str:
        """The device's name: ``cpu``, or ``cuda:0 (NVIDIA H100)``."""
        card = f" ({torch.cuda.get_device_name(self.device)})" if self.device.type == "cuda" else ""
        return f"{self.device}{card}"

    @property
    def used(self) -> str:
        """Time and memory on a CUDA device, as the end of a sentence; ``""`` on the CPU."""
        if self.device.type != "cuda":
            return ""
        return f"; {self.seconds:.2g} s, peak {size_shown(self.peak_bytes)}"
