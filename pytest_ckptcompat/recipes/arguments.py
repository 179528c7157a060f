"""Arguments of an operator: check them against annotations, and write them as Python and TOML."""

from __future__ import annotations

import types
from collections.abc import Callable
from dataclasses import MISSING, Field, fields
from functools import cache
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from pytest_ckptcompat.core.errors import RecipeError

MAY_BE_EMPTY = {"may_be_empty": True}
"""The metadata of a field whose list may be empty."""


def checked(operator: str, name: str, value: Any, hint: Any) -> Any:
    """Convert an argument: lists become tuples, and whole numbers floats if a float is wanted.

    Raises:
        RecipeError: the value has a wrong type.
    """
    for kind in _choices(hint):
        fitted = _fitted(value, kind)
        if fitted is not MISSING:
            return fitted
    if value in ((), []) and any(get_origin(kind) is tuple for kind in _choices(hint)):
        raise RecipeError(f"{operator}: {name} is an empty list; at least one entry is needed")
    raise RecipeError(f"{operator}: {name} wants {_wanted(hint)}, not {value!r:.80}")


hints: Callable[[Any], dict[str, Any]] = cache(get_type_hints)
"""Return field -> evaluated annotation, for the operator's own and inherited fields."""


def _choices(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _fitted(value: Any, kind: Any) -> Any:
    """Return the value, or MISSING if it has another type."""
    if get_origin(kind) is Literal:
        return value if isinstance(value, str) and value in get_args(kind) else MISSING
    if get_origin(kind) is tuple:
        return _tuple(value, kind)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind is Callable or get_origin(kind) is Callable or kind is get_origin(Callable[..., Any]):
        return value if callable(value) else MISSING
    if kind is int and isinstance(value, bool):
        return MISSING
    return value if isinstance(value, kind) else MISSING


def _tuple(value: Any, kind: Any) -> Any:
    if not isinstance(value, (list, tuple)):
        return MISSING
    (item, *_) = get_args(kind)
    fitted = tuple(_fitted(each, item) for each in value)
    return MISSING if MISSING in fitted or not fitted else fitted


def _wanted(hint: Any) -> str:
    return " or ".join(dict.fromkeys(map(_name, _choices(hint))))


def _name(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return ", ".join(map(repr, get_args(kind)))
    if get_origin(kind) is tuple:
        return f"a list of {_PLURAL.get(get_args(kind)[0], 'values')}"
    return _NAMES.get(kind, "a callable")


_NAMES = {
    str: "a text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    type(None): "nothing",
}
_PLURAL = {str: "texts", int: "whole numbers", float: "numbers"}


def given(operator: Any) -> dict[str, Any]:
    """Return the arguments that differ from the defaults, in the order of the fields."""
    return {
        field.name: getattr(operator, field.name)
        for field in fields(operator)
        if field.default is MISSING or getattr(operator, field.name) != field.default
    }


def positional(field: Field[Any], hint: Any) -> bool:
    """Return whether the argument is positional in Python: required texts and callables."""
    return field.default is MISSING and hint not in (int, float, tuple[int, ...])


def python(value: Any) -> str:
    """Return a value as Python source in printable characters; see `recipe.Recipe.__repr__`."""
    if isinstance(value, str):
        return quoted(value)
    if isinstance(value, tuple):
        return f"[{', '.join(map(python, value))}]"
    if callable(value):
        return str(getattr(value, "__name__", repr(value)))
    return repr(value)


def brief(value: Any) -> str:
    """Return a value for messages; a list of more than six entries is cut."""
    if isinstance(value, tuple) and len(value) > 6:
        return f"[{', '.join(map(python, value[:4]))}, … {len(value) - 4} more]"
    return python(value)


def quoted(text: str) -> str:
    """Return a string literal in double quotes. ``#`` is escaped: CI services run ``##[`` as a command."""
    source = repr(text)
    inside = source[1:-1]
    if source[0] == "'":
        inside = inside.replace(r"\'", "'").replace('"', r"\"")
    return '"' + inside.replace("#", r"\x23") + '"'


def toml(value: Any) -> str:
    """Return a value as TOML.

    Raises:
        RecipeError: TOML has no such value.
    """
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, str):
        return f'"{"".join(map(_toml_character, value))}"'
    if isinstance(value, (tuple, list)):
        return f"[{', '.join(map(toml, value))}]"
    raise RecipeError(f"{python(value)} can't be written as TOML")


def _toml_character(character: str) -> str:
    if character in '"\\':
        return f"\\{character}"
    if character.isprintable():
        return character
    code = ord(character)
    if 0xD800 <= code < 0xE000:
        raise RecipeError(f"{quoted(character)} can't be written as TOML: it is half of a surrogate pair")
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
