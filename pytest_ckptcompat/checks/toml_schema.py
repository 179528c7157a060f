"""The JSON schema of ``ckptcompat.toml``, for editors, made from the table of arguments.

``python -m pytest_ckptcompat.checks.toml_schema > pytest_ckptcompat/ckptcompat.schema.json`` writes the file.
"""

from __future__ import annotations

import json
from typing import Any

from pytest_ckptcompat.core.rules import RULES
from pytest_ckptcompat.recipes.operators import OPERATORS

from .arguments import ARGUMENTS


def toml_schema() -> dict[str, Any]:
    """Return the schema as plain values."""
    properties = {
        name: {**argument.schema, **_INNER.get(name, dict)()} for name, argument in ARGUMENTS.items()
    }
    check = {
        "type": "object",
        "additionalProperties": False,
        "anyOf": [{"required": ["model"]}, {"required": ["loader"]}],
        "properties": {
            "name": {"type": "string", "description": "the test's id"},
            "releases": {"type": "string", "description": "path of a releases file: a test for each release"},
            **properties,
        },
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "ckptcompat.toml",
        "description": "The checks of a model repository, collected by pytest-ckptcompat.",
        "type": "object",
        "additionalProperties": False,
        "properties": {"check": {"type": "array", "items": check}},
    }


def _operators() -> dict[str, Any]:
    op = {
        "type": "string",
        "examples": sorted(OPERATORS),
        "description": "an operator; plugins may add others",
    }
    table = {"type": "object", "required": ["op"], "properties": {"op": op}}
    return {"oneOf": [{"type": "string"}, {"type": "array", "items": table}]}


def _waivers() -> dict[str, Any]:
    table = {
        "type": "object",
        "additionalProperties": False,
        "required": ["rule", "reason"],
        "properties": {
            "rule": {"enum": [rule.id for rule in RULES.values() if rule.stage != "waivers"]},
            "key": {"type": "string", "description": "an exact key or a glob; absent: all"},
            "reason": {"type": "string", "minLength": 1},
            "until": {"description": "a date: the last day on which it holds"},
        },
    }
    return {"type": "array", "items": table}


_INNER = {"recipe": _operators, "allow": _waivers}
"""The schemas of tables inside a ``[[check]]``."""

if __name__ == "__main__":
    print(json.dumps(toml_schema(), indent=2))
