"""Folders behind URLs: what is in them, and which files a glob matches."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from functools import partial
from itertools import islice
from typing import Any

from pytest_ckptcompat.core.errors import CheckpointError
from pytest_ckptcompat.core.keys import natural

from .attempts import asked, file_system
from .paths import display, inside, is_web, split
from .web_page import exists, names_on_page

_GLOB = re.compile(r"(.*?://[^/]*/(?:[^*\[/]*/)*)([^/]*[*\[].*)", re.DOTALL)
_MOST_NAMES = 100_000
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
        listed = asked(url, lambda: names_on_page(system, fixed + after))
        return [
            inside(fixed + after, each) for each in sorted(listed, key=natural) if fnmatchcase(each, pattern)
        ]
    folder = str(name).removesuffix(pattern)
    paths: list[str] = asked(url, lambda: system.glob(name))
    return [fixed + path.removeprefix(folder) + after for path in sorted(paths, key=natural)]


def _names_on_web(system: Any, url: str) -> list[str]:
    names = asked(url, lambda: names_on_page(system, url))[:_MOST_NAMES]
    if not any(name == ".metadata" or name.endswith(".index.json") for name in names):
        there = (name for name in _USUAL if asked(url, partial(exists, system, inside(url, name))))
        names += list(islice(there, 1))  # this file leads to the others of the checkpoint
    if not names:
        raise CheckpointError(
            f"{display(url)} is a folder that its server does not list, and none of {', '.join(_USUAL)} is "
            "in it: name the file"
        )
    return names
