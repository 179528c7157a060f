"""Folders behind URLs: what is in them, and which files a glob matches."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from functools import partial
from html.parser import HTMLParser
from itertools import islice
from typing import Any
from urllib.parse import unquote, urljoin, urlsplit

from pytest_ckptcompat.core.errors import CheckpointError
from pytest_ckptcompat.core.keys import natural

from .attempts import asked, file_system
from .paths import display, inside, is_web, split
from .web import ask

_GLOB = re.compile(r"(.*?://[^/]*/(?:[^*\[/]*/)*)([^/]*[*\[].*)", re.DOTALL)
_MOST_NAMES = 100_000
_MOST_OF_A_PAGE = 4 << 20
_USUAL = (
    ".metadata", "model.safetensors.index.json", "pytorch_model.bin.index.json", "model.safetensors",
    "pytorch_model.bin",
)  # fmt: skip
"""Names that are tried in a folder on a web server, whose page may be missing or omit hidden files."""


def kind_of_url(url: str) -> str:
    """Return ``"file"`` or ``"folder"``. A URL whose path ends with a slash is a folder."""
    if split(url)[0].endswith("/"):
        return "folder"
    if is_web(url):
        return "file"  # opening it shows if that is wrong
    system, name = file_system(url)
    info: dict[str, Any] = asked(url, lambda: system.info(name))
    return "folder" if info.get("type") == "directory" else "file"


def names_behind(url: str) -> list[str]:
    """Return the names in a folder behind a URL."""
    system, name = file_system(url)
    if type(system).__name__ == "HTTPFileSystem":
        return _names_on_web(system, url)
    listed: list[str] = asked(url, lambda: system.ls(name, detail=False))
    return [str(each).rstrip("/").rpartition("/")[2] for each in listed[:_MOST_NAMES]]


def is_glob(url: str) -> bool:
    """Return whether the path of a URL, after the host or bucket, is a glob."""
    return bool(_GLOB.match(split(url)[0]))


def matches(url: str) -> list[str]:
    """Return the URLs that a glob matches, in natural order. On a web server, only one folder is searched."""
    before, after = split(url)
    found = _GLOB.match(before)
    assert found is not None, "is_glob says whether it is one"
    fixed, pattern = found.groups()
    system, name = file_system(url)
    if type(system).__name__ == "HTTPFileSystem":
        listed = asked(url, lambda: _names_on_page(system, fixed + after))
        return [
            inside(fixed + after, each) for each in sorted(listed, key=natural) if fnmatchcase(each, pattern)
        ]
    folder = str(name).removesuffix(pattern)
    paths: list[str] = asked(url, lambda: system.glob(name))
    return [fixed + path.removeprefix(folder) + after for path in sorted(paths, key=natural)]


def _names_on_web(system: Any, url: str) -> list[str]:
    names = asked(url, lambda: _names_on_page(system, url))[:_MOST_NAMES]
    if not any(name == ".metadata" or name.endswith(".index.json") for name in names):
        there = (name for name in _USUAL if asked(url, partial(_exists, system, inside(url, name))))
        names += list(islice(there, 1))  # this file leads to the others of the checkpoint
    if not names:
        raise CheckpointError(
            f"{display(url)} is a folder that its server does not list, and none of {', '.join(_USUAL)} is "
            "in it: name the file"
        )
    return names


def _names_on_page(system: Any, url: str) -> list[str]:
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
    names = (_name(link, address) for link in links.found)
    return list(dict.fromkeys(name for name in names if name))


def _exists(system: Any, url: str) -> bool:
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
    try:
        one, other = urlsplit(urljoin(folder, link)), urlsplit(folder)
    except ValueError:
        return ""
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
