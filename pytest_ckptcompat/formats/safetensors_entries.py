"""Regular expressions for the usual entries of a safetensors header."""

from __future__ import annotations

import re
from itertools import permutations

NATURAL = rb"(?:0|[1-9][0-9]{0,18}+)"

_FIELDS = (
    (b'"dtype"', b":", rb'"(?P<dtype>\w++)"'),
    (b'"shape"', b":", rb"\[(?P<shape>[0-9, \t\n\r]*+)\]"),
    (
        b'"data_offsets"',
        b":",
        rb"\[",
        b"(?P<begin>" + NATURAL + b")",
        b",",
        b"(?P<end>" + NATURAL + b")",
        rb"\]",
    ),
)


def _pattern(fields: tuple[tuple[bytes, ...], ...]) -> re.Pattern[bytes]:
    """Return the pattern of an entry with its fields in this order."""
    first, second, third = fields
    tokens = (rb'"(?P<key>[^"\\\x00-\x1f]*+)"', b":", rb"\{", *first, b",", *second, b",", *third, rb"\}")
    return re.compile(rb"[ \t\n\r]*+".join((b"", *tokens, b"(?P<closing>[,}])")))


ENTRIES = tuple(_pattern(order) for order in permutations(_FIELDS))
"""One pattern for each order of fields, the usual one first. Other entries are read token by token."""
