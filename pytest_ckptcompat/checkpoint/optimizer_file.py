"""The file of an optimizer's state beside that of a model's weights, as trainers write it."""

from __future__ import annotations

from pathlib import Path

from pytest_ckptcompat.core.redaction import is_url

_NAMES = ("optimizer.bin", "optimizer.pt", "optimizer.pth", "optimizer.ckpt", "optimizer_0")
"""Of accelerate, of transformers' Trainer, and of accelerate with FSDP, where it is a folder."""


def optimizer_beside(path: str) -> str | None:
    """The path of the optimizer's state in the folder of a checkpoint or around it; None if there is none."""
    if is_url(path):
        return None
    place = Path(path)
    folders = [place, place.parent] if place.is_dir() else [place.parent]
    found = (folder / name for folder in folders for name in _NAMES)
    return next((str(each) for each in found if each.is_file() or (each / ".metadata").is_file()), None)
