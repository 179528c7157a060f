"""What is asked of web servers: an answer in time, and the very part of a file that was asked for."""

from __future__ import annotations

from typing import Any

from pytest_ckptcompat.core.errors import CheckpointError
from pytest_ckptcompat.core.escape import escape

SILENCE = 30
"""Seconds without a byte after which a server is given up."""

_REQUEST = 300
_ANSWERS = {
    401: "can't be read: the server wants you to log in",
    403: "can't be read: the server refuses it; are you logged in, has the link expired?",
    404: "does not exist: the server has no such file; is the address right?",
    410: "does not exist any more: the server has no such file",
    429: "can't be read now: the server gets too many requests; try again later",
}
_FAILS = "can't be read: the server fails; try again later"


def is_web(url: str) -> bool:
    """Whether a web server is behind an fsspec URL, which may be a chain (``simplecache::https://…``)."""
    return any(link.startswith(("http://", "https://")) for link in url.split("::"))


def options(url: str) -> dict[str, dict[str, Any]]:
    """What fsspec is to give its HTTP client, by protocol; what the user has set in fsspec's own config wins.

    Raises:
        ImportError: the client is not installed.
    """
    found = {}
    for link in url.split("::"):
        protocol = link.partition(":")[0]
        if protocol in ("http", "https"):
            from aiohttp import ClientTimeout
            from fsspec.config import conf  # type: ignore[import-untyped]

            found[protocol] = {
                "client_kwargs": {
                    "timeout": ClientTimeout(total=_REQUEST, sock_connect=SILENCE, sock_read=SILENCE),
                    "headers": {"Accept-Encoding": "identity"},
                    "raise_for_status": _check_part,
                    **conf.get(protocol, {}).get("client_kwargs", {}),
                }
            }
    return found


async def _check_part(response: Any) -> None:
    """Refuse an answer that is not what a range request asked for, before anything of it is fetched."""
    asked = response.request_info.headers.get("Range", "").removeprefix("bytes=")
    if not asked or response.status >= 400:
        return
    first, last = map(int, asked.split("-"))
    size = last - first + 1
    length = response.headers.get("Content-Length", "")
    all_is_wanted = first == 0 and length == str(size)
    if response.status != 206 and not all_is_wanted:
        fault = (
            "the server does not send parts of a file (range requests), and all of it is not downloaded for "
            "its header: download it first"
        )
    elif response.status == 206 and (
        length != str(size) or not response.headers.get("Content-Range", "").startswith(f"bytes {asked}/")
    ):
        fault = "the server sends another part of the file than it was asked for: download it first"
    else:
        return
    response.close()
    raise CheckpointError(fault)


def reason(error: BaseException) -> str:
    """The end of a sentence about a URL that can't be read, from what the client raised: ``<url> ...``."""
    import aiohttp
    from aiohttp.http_exceptions import HttpProcessingError

    match error:
        case TimeoutError():
            return f"does not answer (waited {SILENCE} s): try again, or download it first"
        case aiohttp.TooManyRedirects():
            return "can't be read: the server redirects in a circle"
        case aiohttp.ClientResponseError(status=status):
            return f"{_ANSWERS.get(status, _FAILS)} (HTTP {status})"
        case aiohttp.ClientConnectorError(strerror=why):
            return f"can't be reached ({escape(str(why), 200)}): is the address right, and are you online?"
        case aiohttp.ClientConnectionError() | aiohttp.ClientPayloadError() | HttpProcessingError():
            return "can't be read: the connection broke off; try again"
    return f"can't be read: {type(error).__name__}: {escape(str(error), 200)}"
