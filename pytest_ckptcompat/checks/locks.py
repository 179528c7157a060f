"""Locks of models, and locks rewritten from what they name."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_ckptcompat.checkpoint.lock_writer import Content, _content, lock_of_checkpoint, write_lock
from pytest_ckptcompat.core.errors import CheckpointError
from pytest_ckptcompat.core.escape import escape

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pytest_ckptcompat.core.limits import Limits


def lock_of_model(name: str) -> Content:
    """The lock of ``package.module:name``, built without memory.

    Raises:
        CheckpointError: it can't be imported or built.
    """
    import torch

    from pytest_ckptcompat.core.errors import ModelError
    from pytest_ckptcompat.models.blueprint import blueprint

    try:
        state = blueprint(name).schema().state_dict(keep_vars=True)
    except ModelError as error:
        raise CheckpointError(str(error)) from None
    tied: dict[int, list[str]] = {}
    tensors: Content = {}
    for key, value in state.items():
        if isinstance(value, torch.Tensor):
            tied.setdefault(id(value), []).append(key)
            tensors[key] = [str(value.dtype).removeprefix("torch."), list(value.shape)]
    ties = [keys for keys in tied.values() if len(keys) > 1]
    objects = [key for key in state if key not in tensors]
    return _content({"model": name}, tensors, ties, objects, getattr(state, "_metadata", None))


def update(path: str, limits: Limits) -> None:
    """Rewrite the lock file at `path` from the checkpoint or model that it names.

    Raises:
        CheckpointError: it names none, that can't be read or built, or the file can't be written.
    """
    try:
        source = json.loads(Path(path).read_text(encoding="utf-8"))["source"]
        known = isinstance(source, dict) and isinstance(source.get("model", source.get("checkpoint")), str)
    except (OSError, ValueError, LookupError, TypeError):
        known = False
    if not known:
        raise CheckpointError(f"{escape(path)} does not say what it was made of: lock it anew")
    try:
        content = _made_anew(path, source, limits)
    except CheckpointError as error:
        raise CheckpointError(f"{escape(path)} can't be made anew: {error}") from None
    write_lock(path, content)


def _made_anew(path: str, source: Mapping[str, Any], limits: Limits) -> Content:
    if "model" in source:
        return lock_of_model(source["model"])
    from pytest_ckptcompat.checkpoint.checkpoint import open_checkpoint

    named = os.path.join(os.path.dirname(path), source["checkpoint"])  # noqa: PTH118, PTH120  # URLs too
    ckpt = open_checkpoint(named, source.get("state_dict_key"), limits=limits)
    return lock_of_checkpoint(ckpt, path, sha256="sha256" in source)
