"""Limits on how much of a file's header is read, as a protection against hostile files."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

from .errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Iterable


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits on what a header may hold. With the defaults, reading stays under 5 s and 512 MB.

    Attributes:
        pickle_bytes: bytes of one pickle.
        pickle_opcodes: operations of one pickle; torch writes 30 for a tensor, 40 for a parameter.
        pickle_memory: estimated bytes of the objects in one pickle.
        records: small objects in the index of a distributed checkpoint, three for each block of a tensor.
            The default allows up to 12 s and 1 GB.
        tensors: tensors of one checkpoint.
        zip_entries: entries of one zip archive.
        key_bytes: UTF-8 bytes of one key.
        global_bytes: UTF-8 bytes of a class or function name in a pickle.
        dims: dimensions of one tensor.
        nesting: depth of nested containers.
        safetensors_header: bytes of a safetensors header.
        json_tokens: commas, colons (twice), brackets and braces of one JSON text, and a 32nd of its bytes;
            20 for a tensor.
        index: bytes of the index of a sharded checkpoint, or of a lock file.
        files: shards of one checkpoint.
        synthetic_bytes: bytes of the synthetic values (float64) with which a model's outputs are compared.
    """

    pickle_bytes: int = 64 << 20
    pickle_opcodes: int = 6_000_000
    pickle_memory: int = 256 << 20
    records: int = 4_000_000
    tensors: int = 250_000
    zip_entries: int = 250_000
    key_bytes: int = 4096
    global_bytes: int = 512
    dims: int = 64
    nesting: int = 1000
    safetensors_header: int = 100_000_000
    json_tokens: int = 4_600_000
    index: int = 64 << 20
    files: int = 10_000
    synthetic_bytes: int = 4_000_000_000

    @classmethod
    def parse(cls, source: str, lines: Iterable[str]) -> Limits:
        """Return the defaults, changed by lines of ``name=value``.

        Raises:
            ValueError: a line has another form, an unknown name, or a value that is not a positive integer.
                The message starts with the source, such as ``--limit``.
        """
        changes: dict[str, int] = {}
        known = [field.name for field in fields(cls)]
        for line in lines:
            name, equals, value = (part.strip() for part in line.partition("="))
            if not equals or name not in known:
                near = difflib.get_close_matches(name, known, 1)
                hint = (
                    f"did you mean {near[0]}={value or 'VALUE'}?" if near else f"known are {', '.join(known)}"
                )
                raise ValueError(f"{source}: {line.strip()!r} is not a limit: use NAME=VALUE; {hint}")
            try:
                changes[name] = int(value.replace("_", ""))
            except ValueError:
                changes[name] = 0
            if changes[name] < 1:
                raise ValueError(f"{source}: limit {name}={value!r}: give a positive whole number")
        return replace(cls(), **changes)

    def check(self, name: str, value: int, what: str) -> None:
        """Check a value against the limit called `name`.

        Raises:
            CheckpointError: `value` is above the limit. `what` says in the message what is too large.
        """
        if value > getattr(self, name):
            raise exceeded(name, getattr(self, name), what)


def exceeded(name: str, limit: int, what: str) -> CheckpointError:
    """Return the error for a header that exceeds a limit."""
    return CheckpointError(
        f"limit exceeded: {what} (limit {name}={limit}). If you trust this file, raise it: a line "
        f"{name}=... under ckpt_limits in pytest's ini file, or ckptcompat --limit {name}=..."
    )


DEFAULT = Limits()
