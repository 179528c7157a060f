"""Restore process-wide state that a repository's code may change."""

from __future__ import annotations

import os
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

_ONE_AT_A_TIME = threading.RLock()


@contextmanager
def undisturbed() -> Iterator[None]:
    """Keep the folder and torch's defaults (device, dtype, gradients), outside of inference mode.

    Whatever seeds the generators of the process, or simulates a card, must be alone: threads wait for each
    other.
    """
    dtype, gradients = torch.get_default_dtype(), torch.is_grad_enabled()
    with _ONE_AT_A_TIME, place_kept(), torch.inference_mode(False):
        torch.set_grad_enabled(gradients)
        try:
            yield
        finally:
            torch.set_default_dtype(dtype)
            torch.set_grad_enabled(gradients)


@contextmanager
def place_kept() -> Iterator[None]:
    """Restore the current folder and torch's default device afterwards."""
    folder, device = _folder(), _default_device()
    try:
        yield
    finally:
        if folder is not None and _folder() != folder:
            os.chdir(folder)
        if _default_device() != device:
            torch.set_default_device(None if device == torch.device("cpu") else device)


def _default_device() -> torch.device:
    try:
        return torch.get_default_device()
    except AttributeError:  # torch 2.6, once it was set to None
        return torch.device("cpu")


def _folder() -> str | None:
    try:
        return os.getcwd()  # noqa: PTH109  # as text, as chdir takes it
    except OSError:  # it was removed
        return None
