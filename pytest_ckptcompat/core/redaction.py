"""Remove secrets from paths and URLs. Every path that is shown or written goes through `public`.

A URL can hold a user, a password, and a query or fragment with a signature or token. Passwords are often
pasted unquoted, with ``@``, ``/`` and ``#`` in them. If a URL can be read in two ways, only what is not a
secret in either reading is kept.
"""

from __future__ import annotations

import os
import re
from urllib.parse import unquote

_SCHEME = r"[a-zA-Z][a-zA-Z0-9+.-]+"
_URL = re.compile(rf"{_SCHEME}(://|::)")
_NEXT_LINK = re.compile(rf"::(?=(?:{_SCHEME}::)*{_SCHEME}://|\.{{0,2}}/[^@?#]*$)")
_ADDRESS = r"([^/?#]*)((?:(?!;[^/;]*=|%3[Ff][^/%]*(?:=|%3[Dd]))[^?#])*)(.*)"
"""Host, path, and what is hidden: a query, also one that was quoted (``%3F``), a fragment, parameters."""
_LINK = re.compile(rf"(?!file:|local:)({_SCHEME}:/+){_ADDRESS}", re.DOTALL)
"""A URL, also with the single slash that pathlib leaves."""
_LINK_INSIDE = re.compile(
    r"((?:.*?(?<![\w.+-]))?(?:https?:/*|(?:s?ftp|s3a?|gc?s|hf|az|abfss?|webdavs?):/+))" + _ADDRESS,
    re.DOTALL | re.IGNORECASE,
)
"""A link behind something else: a folder it was joined to, a space, ``git:``."""
_HOST = re.compile(r"(\[[^\]@]*\]|[^:@\[\]]*)(:\d*)?")
_FULL_HOST = r"(localhost|\[[^/@]*\]|(\d+\.){3}\d+|[\w.-]+\.[a-zA-Z]{2,})"
_KNOWN_HOST = re.compile(rf"{_FULL_HOST}(:\d*)?")
_HOST_FOLLOWS = re.compile(rf"@({_FULL_HOST}(:\d+)?|[\w.-]+:\d+)/")
_USER_ENDS = re.compile(r"@(?=[\w.:\[\]-]+/)")
_IN_TEXT = re.compile(rf"({_SCHEME}:/+\S+?)([\])>}}'\",.:;]*(?:\s|$))")
_SECRET_NAME = re.compile(
    r"token|secret|passw|credential|(access|api|account|private|sas)_?key|connection_string", re.IGNORECASE
)
_SHORTEST_SECRET = 8
_TOKEN = re.compile(
    r"(\b(?:Bearer|Basic)\s+(?=\S*[\d=])|[?&][\w.%-]+=)[^&\s'\",;)]+"
    r"|\bhf_[A-Za-z0-9]{16,}|\bgh[pousr]_[A-Za-z0-9]{20,}|\bAKIA[A-Z0-9]{16}\b"
)
"""Of a header, of a query, or of a service that marks its own."""

_FILE_NAME = re.compile(r"[\w.-]{1,80}\.(pth|pt|ckpt|safetensors|bin|json)")


def is_url(path: str) -> bool:
    """Return whether a path is an fsspec URL (``s3://bucket/net.pth``) and not a local path."""
    return bool(_URL.match(path))


def is_meant_as_url(path: str) -> bool:
    """Return whether a path is a URL, or was one before pathlib changed it (``https:/user:…``)."""
    return is_url(path) or public(path) != path


def links(url: str) -> list[str]:
    """Return the parts of a chained URL: ``simplecache::https://…`` has two."""
    return _NEXT_LINK.split(url)


def public(path: str) -> str:
    """Return a URL without user, password, query and fragment. Local paths stay as they are. Not escaped."""
    return "::".join(map(_public_link, links(path)))


def redact(text: str) -> str:
    """Return a foreign text, such as an error's, without secrets.

    Every URL in it is replaced by what `public` gives. What has the form of a token, or is the value of an
    environment variable that is named like a secret, is left out.
    """
    text = _IN_TEXT.sub(lambda found: public(found[1]) + found[2], text)
    for name, value in os.environ.items():
        secret = value.strip()
        if _SECRET_NAME.search(name) and len(secret) >= _SHORTEST_SECRET and secret[0] != "/":
            text = text.replace(secret, "***")
    return _TOKEN.sub(lambda found: f"{found[1] or ''}***", text)


def _public_link(link: str) -> str:
    match = _LINK.fullmatch(link) or _LINK_INSIDE.fullmatch(link)
    if match is None:
        return link
    scheme, host, path, rest = match.groups()
    if "@" not in link:
        host = unquote(host)
    if not _may_have_user(host, path, rest):
        return scheme + host + path
    ends = _USER_ENDS.split(rest)
    if "@" in host + path:
        shown = (host + path).rpartition("@")[2] if len(ends) == 1 else _file_name_of(path, rest)
    elif len(ends) == 1:
        shown = host.partition(":")[0] + path
    elif len(ends) == 2 and not (path and _HOST.fullmatch(host)):
        shown = re.split(r"[?#]", ends[1])[0]
    else:
        shown = _file_name_of(path, rest)
    return scheme + shown


def _file_name_of(path: str, rest: str) -> str:
    """Return what is shown of an ambiguous URL: its file name if only one reading has one, else ``***``."""
    readings = path, re.split(r"[?#]", rest.rpartition("@")[2])[0]
    names = [reading.rpartition("/")[2] for reading in readings]
    found = [name for name in names if _FILE_NAME.fullmatch(name)]
    return f"***/{found[0]}" if len(found) == 1 else "***"


def _may_have_user(host: str, path: str, rest: str) -> bool:
    """Return whether something before the host is, or can be read as, a user or a password."""
    if "@" in host or not _HOST.fullmatch(host):
        return True
    if "@" not in path + rest:
        return False
    if not path or _HOST_FOLLOWS.search(path):
        return True
    return ":" in host and not _KNOWN_HOST.fullmatch(host)  # user:1/2@host
