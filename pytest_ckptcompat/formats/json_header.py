"""Read JSON text from files that are not trusted: of limited size, with few parts, and no key twice."""

from __future__ import annotations

import json
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

from pytest_ckptcompat.core.errors import CheckpointError
from pytest_ckptcompat.core.escape import escape

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_ckptcompat.core.limits import Limits

Pairs = list[tuple[str, Any]]
"""The members of a JSON object."""

_BYTES_PER_TOKEN = 32

_LONGEST_INTEGER = 4300
_LONGEST_FLOAT = 100
"""Characters. Both conversions take far longer for each digit if there are very many."""


def unique(pairs: Pairs) -> dict[str, Any]:
    """Return the members of an object as a dict; raise ValueError if it has a key twice."""
    members = dict(pairs)
    if len(members) != len(pairs):  # they keep their order, so the first difference is the key that repeats
        twice = next(key for (key, _), kept in zip_longest(pairs, members) if key != kept)
        raise ValueError(f"it has the key {escape(twice, 60)} twice")
    return members


def loads(
    data: bytes,
    limits: Limits,
    damaged: Callable[[str], str],
    make: Callable[[Pairs], Any] = unique,
    *,
    finite: bool = True,
) -> Any:
    """Parse JSON text.

    Args:
        data: the text, UTF-8.
        limits: limits on its tokens, of which each becomes up to 90 bytes of objects.
        damaged: returns the message if the text is not JSON, given the reason.
        make: returns what stands for an object, given its members. It may raise ValueError.
        finite: refuse ``NaN`` and ``Infinity``, which JSON does not have, but Python writes.

    Raises:
        CheckpointError: the text is not JSON, or is too large.
    """
    narrow = data.isascii() and rb"\u" not in data  # else Python may hold it in 4 bytes per character
    marks = len(data) - len(data.translate(None, b",:[{")) + data.count(b":")  # a member is a key and a value
    tokens = marks + len(data) * (1 if narrow else 4) // _BYTES_PER_TOKEN
    limits.check("json_tokens", tokens, f"its JSON text has {tokens} parts")
    try:
        text = data.decode("utf-8-sig")  # editors may add the mark to a lock
        del data  # one copy of the text is enough
        return json.loads(
            text,
            object_pairs_hook=make,
            parse_int=_integer,
            parse_float=_float,
            parse_constant=_refuse if finite else None,
        )
    except CheckpointError:
        raise
    except RecursionError:
        reason = "too deeply nested"
    except ValueError as error:
        reason = str(error)
    raise CheckpointError(damaged(reason))


def _integer(text: str) -> int:
    if len(text) > _LONGEST_INTEGER:
        raise ValueError(f"a number has {len(text)} characters")
    return int(text)


def _float(text: str) -> float:
    if len(text) > _LONGEST_FLOAT:
        raise ValueError(f"a number has {len(text)} characters")
    return float(text)


def _refuse(constant: str) -> object:
    raise ValueError(f"{constant} is not a number of JSON")
