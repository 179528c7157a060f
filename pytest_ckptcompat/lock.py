"""Lock files: a checkpoint's or model's table as a small text file, so that a gate needs no weights.

One key a line and in natural order, so that a pull request shows what changed.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import CheckpointError
from .keys import escape, natural
from .writing.whole import whole_file

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from .checkpoint import Checkpoint
    from .reading.caps import Limits

MARK = "ckptcompat_lock"
VERSION = 1

Content = dict[str, Any]


def lock_of_checkpoint(ckpt: Checkpoint, output: str, *, sha256: bool = False) -> Content:
    """The lock of a checkpoint, from its header.

    Args:
        ckpt: opened; no value of it is read.
        output: where the lock will lie: the checkpoint's path is noted relative to it.
        sha256: note the hash of the file's bytes too, for which all of it is read.

    Raises:
        CheckpointError: `ckpt` is a lock itself, or `sha256` is asked of what is no single file.
    """
    if ckpt.format == "lock":
        raise CheckpointError(f"{ckpt.name} is a lock file already")
    source: Content = {
        "checkpoint": _relative(ckpt.path, output),
        "format": ckpt.format,
        "nbytes": ckpt.nbytes,
    }
    if ckpt.state_dict_key:
        source["state_dict_key"] = ckpt.state_dict_key
    if sha256:
        source["sha256"] = _sha256(ckpt.path)
    tensors = {
        key: [spec.dtype, list(spec.shape), *([spec.note] if spec.note else [])] for key, spec in ckpt.items()
    }
    return _content(source, tensors, ckpt.ties, ckpt.objects, ckpt.metadata)


def lock_of_model(name: str) -> Content:
    """The lock of ``package.module:name``, built without memory.

    Raises:
        CheckpointError: it can't be imported or built.
    """
    import torch

    from .models import ModelError, blueprint

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


def write_lock(path: str, content: Content) -> None:
    """Write a lock file, whole or not at all.

    Raises:
        CheckpointError: it can't be written.
    """
    try:
        with whole_file(path) as file:
            file.write(_text(content).encode("ascii"))
    except OSError as error:
        raise CheckpointError(f"{escape(path)} can't be written: {error.strerror or error}") from None


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
    from .checkpoint import open_checkpoint

    named = os.path.join(os.path.dirname(path), source["checkpoint"])  # noqa: PTH118, PTH120  # URLs too
    ckpt = open_checkpoint(named, source.get("state_dict_key"), limits=limits)
    return lock_of_checkpoint(ckpt, path, sha256="sha256" in source)


def versions(metadata: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The versions in a state dict's ``_metadata`` that are not 1; None where there is no such."""
    if metadata is None:
        return None
    found = {
        module: about.get("version")
        for module, about in metadata.items()
        if isinstance(about, dict) and module
    }
    return {module: found[module] for module in sorted(found, key=natural) if found[module] not in (1, None)}


def metadata_of(found: Mapping[str, Any] | None, keys: Iterable[str]) -> OrderedDict[str, Any] | None:
    """The ``_metadata`` that `versions` was made of: modules have version 1, but those named."""
    if found is None:
        return None
    metadata: OrderedDict[str, Any] = OrderedDict({"": {"version": 1}})
    for key in keys:
        parts = key.split(".")[:-1]
        for depth in range(1, len(parts) + 1):
            metadata.setdefault(".".join(parts[:depth]), {"version": 1})
    for module, version in found.items():
        metadata[module] = {"version": version}
    return metadata


def _content(
    source: Content,
    tensors: Mapping[str, Any],
    ties: Iterable[Iterable[str]],
    objects: Iterable[str],
    metadata: Mapping[str, Any] | None,
) -> Content:
    return {
        MARK: VERSION,
        "source": source,
        "versions": versions(metadata),
        "ties": sorted((sorted(keys, key=natural) for keys in ties), key=lambda keys: natural(keys[0])),
        "objects": sorted(objects, key=natural),
        "tensors": {key: tensors[key] for key in sorted(tensors, key=natural)},
    }


def _text(content: Content) -> str:
    """JSON with one key a line."""
    return (
        "{\n"
        + ",\n".join(f"  {json.dumps(name)}: {_part(value)}" for name, value in content.items())
        + "\n}\n"
    )


def _part(value: Any) -> str:
    if not isinstance(value, (dict, list)) or not value:
        return json.dumps(value)
    if isinstance(value, dict):
        rows = [f"{json.dumps(key)}: {json.dumps(row)}" for key, row in value.items()]
        opening, closing = "{}"
    else:
        rows = [json.dumps(row) for row in value]
        opening, closing = "[]"
    return f"{opening}\n    " + ",\n    ".join(rows) + f"\n  {closing}"


def _relative(path: str, output: str) -> str:
    from .reading.paths import is_url

    if is_url(path):
        return path
    folder = os.path.dirname(os.path.abspath(output))  # noqa: PTH100, PTH120  # links stay what they are
    return os.path.relpath(path, folder).replace(os.sep, "/")


def _sha256(path: str) -> str:
    try:
        with Path(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise CheckpointError(f"--sha256: {escape(path)}: {error.strerror or error}") from None
