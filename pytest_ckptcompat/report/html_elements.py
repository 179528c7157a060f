"""HTML elements of the page, and the text in them."""

from __future__ import annotations

from html import escape as quoted

from pytest_ckptcompat.core.escape import escape, printable

_EMPTY_TAGS = {"input"}


def tag(name: str, *inside: str, **attributes: str | bool) -> str:
    """Return an element. `inside` is HTML, attributes are any text (``data_key=`` becomes data-key)."""
    written = "".join(
        f" {attribute.rstrip('_').replace('_', '-')}" + ("" if value is True else f'="{safe(value)}"')
        for attribute, value in attributes.items()
        if value is not False
    )
    return f"<{name}{written}>" if name in _EMPTY_TAGS else f"<{name}{written}>{''.join(inside)}</{name}>"


def safe(text: str | bool) -> str:
    """Escape text from a file."""
    return quoted(escape(str(text), 1000))


def said(text: str) -> str:
    """Escape text of our own."""
    return quoted(printable(text))
