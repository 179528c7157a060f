"""Write keys, shapes and dtypes of a checkpoint to a lock file."""

from __future__ import annotations

import hashlib
import json
import os
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_ckptcompat.core.errors import CheckpointError
from pytest_ckptcompat.core.keys import natural
from pytest_ckptcompat.core.redaction import is_url, public
from pytest_ckptcompat.files.atomic_write import whole_file
from pytest_ckptcompat.files.paths import display, inside, split
from pytest_ckptcompat.formats.lock import MARK, VERSION, versions

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from .checkpoint import Checkpoint

_PIECE = 8 << 20

Content = dict[str, Any]


def lock_of_checkpoint(
    ckpt: Checkpoint, output: str, *, sha256: bool = False, plain: Mapping[str, Any] | None = None
) -> Content:
    """Make the content of a lock from a checkpoint's header.

    Args:
        ckpt: the checkpoint. None of its values are read.
        output: the path of the lock. The checkpoint's path is stored relative to it, or as a URL without
            secrets.
        sha256: store the hash of the files too, for which they are read completely.
        plain: the checkpoint's metadata to store, as `plain_metadata.metadata` returns it.

    Raises:
        CheckpointError: `ckpt` is a lock itself, or one of its files can't be read.
    """
    if ckpt.format == "lock":
        raise CheckpointError(f"{ckpt.name} is a lock file already")
    if is_url(ckpt.path):
        path = public(ckpt.path)
    else:
        folder = os.path.dirname(os.path.abspath(output))  # noqa: PTH100, PTH120  # does not resolve links
        path = os.path.relpath(ckpt.path, folder).replace(os.sep, "/")
    source: Content = {"checkpoint": path, "format": ckpt.format, "nbytes": ckpt.nbytes}
    if ckpt.state_dict_key:
        source["state_dict_key"] = ckpt.state_dict_key
    if sha256:
        source["sha256"] = sha256_of(ckpt)
    tensors = {
        key: [spec.dtype, list(spec.shape), *([spec.note] if spec.note else [])] for key, spec in ckpt.items()
    }
    found = content(source, tensors, ckpt.ties, ckpt.objects, ckpt.metadata)
    return with_more(found, metadata=plain or None)


def with_more(found: Content, **parts: Mapping[str, Any] | None) -> Content:
    """Add parts (``metadata``, ``behaviour``) to the content of a lock, which then has a newer version."""
    more = {name: part for name, part in parts.items() if part is not None}
    return found | {MARK: VERSION} | more if more else found


def write_lock(path: str, content: Content) -> None:
    """Write a lock file, completely or not at all.

    Raises:
        CheckpointError: the file can't be written, or would replace a file that is not a lock.
    """
    try:
        replaceable = _replaceable(Path(path))
    except OSError as error:
        raise _unwritten(path, error) from None
    if not replaceable:
        raise CheckpointError(f"{display(path)} is not a lock file and would be lost: name another file")
    write_text(path, lock_text(content))


def write_text(path: str, text: str) -> None:
    """Write a text file, completely or not at all.

    Raises:
        CheckpointError: the file can't be written.
    """
    try:
        with whole_file(path) as file:
            file.write(text.encode())
    except OSError as error:
        raise _unwritten(path, error) from None


def _unwritten(path: str, error: OSError) -> CheckpointError:
    return CheckpointError(f"{display(path)} can't be written: {error.strerror or error}")


def _replaceable(path: Path) -> bool:
    """Return whether a path may be overwritten: nothing is there, or a lock or empty file."""
    if not path.is_file():
        return True
    with path.open("rb") as file:
        head = file.read(1000)
    return not head or f'"{MARK}"'.encode() in head


def content(
    source: Content,
    tensors: Mapping[str, Any],
    ties: Iterable[Iterable[str]],
    objects: Iterable[str],
    metadata: Mapping[str, Any] | None,
) -> Content:
    """Return the content of a lock file. `metadata` is torch's ``_metadata`` of the state dict."""
    return {
        MARK: 1,
        "source": source,
        "versions": versions(metadata),
        "ties": sorted((sorted(keys, key=natural) for keys in ties), key=lambda keys: natural(keys[0])),
        "objects": sorted(objects, key=natural),
        "tensors": {key: tensors[key] for key in sorted(tensors, key=natural)},
    }


def lock_text(content: Content) -> str:
    """Return JSON with one key in each line."""
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


def sha256_of(ckpt: Checkpoint) -> str:
    """Return the hash of a checkpoint's file. For several files, hash the sorted output of ``sha256sum``.

    For a lock, return the hash that it stores, or ``""``.
    """
    if ckpt.format == "lock":
        return ckpt.contents.header.sha256
    paths = {extent.file for extents in ckpt.contents.header.storages.values() for extent in extents}
    if ckpt.format == "dcp":
        paths.add(inside(ckpt.path, ".metadata"))
    try:
        with ckpt.progress():
            if len(paths) < 2:
                return _hash(ckpt, next(iter(paths), ckpt.path))
            plain = {path: split(path)[0] if is_url(path) else path for path in sorted(paths)}
            parts = {path: name.split("/") for path, name in plain.items()}
            levels = zip(*(each[:-1] for each in parts.values()), strict=False)
            shared = len(list(takewhile(lambda names: len(set(names)) == 1, levels)))
            lines = [f"{_hash(ckpt, path)}  {'/'.join(each[shared:])}\n" for path, each in parts.items()]
    except CheckpointError as error:
        raise CheckpointError(f"--sha256: {error}") from None
    return hashlib.sha256("".join(lines).encode("utf-8", "surrogatepass")).hexdigest()


def _hash(ckpt: Checkpoint, path: str) -> str:
    digest = hashlib.sha256()
    with ckpt.contents.files.open(path) as file:
        for start in range(0, file.size, _PIECE):
            digest.update(file.read_at(start, min(_PIECE, file.size - start)))
    return digest.hexdigest()
