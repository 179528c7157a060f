"""The names in a folder on a web server, from its page with links."""

from __future__ import annotations

from html.parser import HTMLParser
from typing import Any
from urllib.parse import unquote, urljoin, urlsplit

from pytest_ckptcompat.core.errors import CheckpointError

from .web import ask

_MOST_OF_A_PAGE = 4 << 20


def names_on_page(system: Any, url: str) -> list[str]:
    """Return the names in a folder to which its page links, or nothing if there is no such page."""

    async def take(answer: Any) -> tuple[str, str]:
        if answer.status in (401, 403, 404, 405, 410):
            return "", ""
        answer.raise_for_status()
        if not answer.headers.get("Content-Type", "text/html").startswith(("text/html", "application/xhtml")):
            return "", ""
        body = bytearray()
        async for piece in answer.content.iter_chunked(1 << 16):
            body += piece
            if len(body) > _MOST_OF_A_PAGE:
                return "", ""
        return str(answer.url), body.decode(errors="replace")

    address, page = ask(system, url, take, {})
    links = _Links()
    links.feed(page)
    names = (_name(urljoin(address, link), address) for link in links.found)
    return list(dict.fromkeys(name for name in names if name))


def exists(system: Any, url: str) -> bool:
    """Return whether a file exists, by requesting its first byte. A refusal counts as no."""

    async def take(answer: Any) -> bool:
        if answer.status in (401, 403, 404, 405, 410):
            return False
        answer.raise_for_status()
        return True

    try:
        return ask(system, url, take, {"Range": "bytes=0-0"})
    except CheckpointError:
        return False  # a folder of this name


def _name(link: str, folder: str) -> str:
    """Return the name of a link's target in the folder, or ``""`` if it is elsewhere."""
    one, other = urlsplit(link), urlsplit(folder)
    name = one.path.removeprefix(other.path).removesuffix("/")
    inside = one.netloc == other.netloc and one.path.startswith(other.path) and "/" not in name
    return unquote(name) if inside else ""


class _Links(HTMLParser):
    """The targets of the links on a page."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "a":
            self.found += [value for name, value in attrs if name == "href" and value]
