"""Checkpoints as text and JSON: the content of one, and the differences of two."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from typing import TYPE_CHECKING, Any

from pytest_ckptcompat.core.escape import escape
from pytest_ckptcompat.core.key_groups import grouped
from pytest_ckptcompat.core.keys import natural
from pytest_ckptcompat.core.memory import shown as size_shown
from pytest_ckptcompat.core.redaction import public
from pytest_ckptcompat.core.tensor_spec import shown

from .facts import SCHEMA_VERSION
from .fit_text import cell, columns_of, elide, shortened, tabulated

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_ckptcompat.checkpoint.checkpoint import Checkpoint
    from pytest_ckptcompat.core.tensor_spec import TensorSpec

Change = tuple[str, str, str, str]
"""(kind of difference, key, old side, new side)."""


def listed(ckpt: Checkpoint) -> str:
    """Return all tensors as a table, similar keys in one row, with totals, ties and remarks."""
    order = {key: place for place, key in enumerate(ckpt)}
    found = sorted(
        grouped((_shown(spec), key) for key, spec in ckpt.items()),
        key=lambda each: order[each[1].keys[0]],
    )
    rest = [
        (_times(each.keys), what, size_shown(sum(ckpt[key].nbytes for key in each.keys)))
        for what, each in found
    ]
    headers = ("key", "", "shape", "bytes")
    names = _cut([each.pattern for _, each in found], rest, headers[1:])
    table = [(name, *cells) for name, cells in zip(names, rest, strict=True)]
    lines = [_title(ckpt), "", *tabulated(headers, table, ("left", "right", "left", "right"))]
    if ckpt.ties:
        lines += ["", "tied:", *(f"  {' = '.join(map(escape, tied))}" for tied in ckpt.ties)]
    return "\n".join(lines)


def listed_json(ckpt: Checkpoint) -> str:
    """Return the documented JSON of ``ckptcompat show --json``."""
    tied_to = {key: tied[0] for tied in ckpt.ties for key in tied[1:]}
    tensors = [
        {
            "key": key,
            "dtype": spec.dtype,
            "shape": list(spec.shape),
            "nbytes": spec.nbytes,
            "tied_to": tied_to.get(key),
            **({"note": spec.note} if spec.note else {}),
        }
        for key, spec in ckpt.items()
    ]
    content = {
        "schema_version": SCHEMA_VERSION,
        "path": public(ckpt.path),
        "format": ckpt.format,
        "tensors": tensors,
    }
    return json.dumps(content, indent=2)


def changes(old: Checkpoint, new: Checkpoint) -> list[Change]:
    """Return the differences in keys, shapes, dtypes and ties, and in values if a lock has a hash.

    Raises:
        CheckpointError: the bytes of one can't be compared with the hash in the other.
    """
    found: list[Change] = []
    for key in sorted({*old, *new}, key=natural):
        one, two = old.get(key), new.get(key)
        if one is None or two is None:
            kind = "added" if one is None else "removed"
        elif one.shape != two.shape:
            kind = "shape"
        elif one.dtype != two.dtype or one.note != two.note:
            kind = "dtype"
        else:
            continue
        found.append((kind, key, _shown(one), _shown(two)))
    were, are = ({tuple(sorted(tied)) for tied in ckpt.ties} for ckpt in (old, new))
    for tied in sorted(were ^ are):
        side = ("tied", "") if tied in were else ("", "tied")
        found.append(("ties", " = ".join(tied), *side))
    before, after = _digests(old, new)
    if before != after:
        found.append(("values", "", f"sha256 {before[:12]}", f"sha256 {after[:12]}"))
    return found


def _digests(old: Checkpoint, new: Checkpoint) -> tuple[str, str]:
    """Return both hashes if one is a lock with a hash; else empty texts."""
    from pytest_ckptcompat.checkpoint.lock_writer import sha256_of

    if not any(ckpt.format == "lock" and sha256_of(ckpt) for ckpt in (old, new)):
        return "", ""
    one, two = sha256_of(old), sha256_of(new)
    return (one, two) if one and two else ("", "")


def contrasted(old: Checkpoint, new: Checkpoint, found: Sequence[Change]) -> str:
    """Return the differences as a table, old before new, similar keys in one row."""
    if not found:
        values = " and values (sha256)" if _digests(old, new)[0] else ", shapes and dtypes"
        return f"{new.name} is the same as {old.name}: {len(new)} keys{values}"
    counts = Counter(kind for kind, *_ in found)
    told = ", ".join(
        _KINDS[kind] if kind == "values" else f"{count} {_KINDS[kind]}" for kind, count in counts.items()
    )
    differing = list(grouped(((kind, one, two), key) for kind, key, one, two in found))
    sides = [shortened(cell(ckpt.name), 40) for ckpt in (old, new)]
    rest = [(_KINDS[kind], _times(each.keys), one, two) for (kind, one, two), each in differing]
    names = _cut([each.pattern for _, each in differing], rest, ("change", "", *sides))
    rows = [(change, name, *cells) for name, (change, *cells) in zip(names, rest, strict=True)]
    table = tabulated(("change", "key", "", *sides), rows)
    return "\n".join([f"{new.name} differs from {old.name}: {told}", "", *table])


def _times(keys: Sequence[str]) -> str:
    return f"×{len(keys)}" if len(keys) > 1 else ""


def _cut(names: Sequence[str], rest: Sequence[Sequence[str]], headers: Sequence[str]) -> list[str]:
    """Cut keys so that the table fits the terminal; different keys stay different."""
    room = shutil.get_terminal_size().columns - columns_of(headers, rest)
    return elide(list(map(cell, names)), max(room, 20))


def contrasted_json(found: Sequence[Change]) -> str:
    """Return the differences as JSON."""
    listed = [
        {"change": kind, "key": key, "old": one or None, "new": two or None} for kind, key, one, two in found
    ]
    content: dict[str, Any] = {"schema_version": SCHEMA_VERSION, "same": not found, "changes": listed}
    return json.dumps(content, indent=2)


_KINDS = {
    "added": "added",
    "removed": "removed",
    "shape": "reshaped",
    "dtype": "retyped",
    "ties": "ties changed",
    "values": "values changed",
}


def _title(ckpt: Checkpoint) -> str:
    where = [f"under {escape(ckpt.state_dict_key)!r}"] if ckpt.state_dict_key else []
    counts = [f"{len(ckpt):,} tensors", size_shown(ckpt.nbytes)]
    return ", ".join([f"{ckpt.name}: {ckpt.format}", *counts, *where, *ckpt.contents.header.remarks])


def _shown(spec: TensorSpec | None) -> str:
    if spec is None:
        return ""
    return shown(spec.shape, spec.dtype) + (f" {spec.note}" if spec.note else "")
