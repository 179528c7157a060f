"""The file of optimizer state that trainers write beside the model's weights."""

from __future__ import annotations

from pathlib import Path

from pytest_ckptcompat.core.redaction import is_url

_NAMES = ("optimizer.bin", "optimizer.pt", "optimizer.pth", "optimizer.ckpt", "optimizer_0")
"""The names in accelerate, transformers' Trainer, and accelerate with FSDP, which writes a folder."""


def optimizer_beside(path: str) -> str | None:
    """Return the path of the optimizer state in a checkpoint's folder or the one above, or None."""
    if is_url(path):
        return None
    place = Path(path)
    folders = [place, place.parent] if place.is_dir() else [place.parent]
    found = (folder / name for folder in folders for name in _NAMES)
    return next((str(each) for each in found if each.is_file() or (each / ".metadata").is_file()), None)
