"""Range requests to web servers. A response must arrive in time and be exactly the requested part."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, TypeVar

from pytest_ckptcompat.core.errors import CheckpointError
from pytest_ckptcompat.core.escape import escape
from pytest_ckptcompat.core.redaction import links

from .file import changed
from .paths import split

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

SILENCE = 30
"""Seconds without a byte after which a request fails."""

_T = TypeVar("_T")
_REQUEST = 300
_MOST_WAITED = 30
_ANSWERS = {
    401: "can't be read: the server wants you to log in",
    403: "can't be read: the server refuses it; are you logged in, has the link expired?",
    404: "does not exist: the server has no such file; is the address right?",
    407: "can't be read: the proxy of the environment wants you to log in",
    410: "does not exist any more: the server has no such file",
    429: "can't be read now: the server gets too many requests; try again later",
}
_SIGNED = "can't be read: the server refuses it; has the link expired, or was it signed for one file alone?"
_FAILS = "can't be read: the server fails; try again later"
_REFUSES = "can't be read: the server refuses the request"
_LASTING = {501, 505}
_PASSING = {408, 425, 429, *range(500, 600)} - _LASTING
_NO_SIZE = "the server does not say how large it is: download it first"
_NO_RANGES = (
    "the server does not send parts of a file (range requests), and the whole file is not downloaded for "
    "its header alone: download it first"
)
_ENCODED = "the server sends it compressed, so parts of it can't be read: download it first"
_PART = re.compile(r"bytes[ =]+(\d+)-(\d+)/(\d+)", re.IGNORECASE)
_OTHER_PART = "the server sends another part of the file than the one requested: download it first"


def options(url: str) -> dict[str, dict[str, Any]]:
    """Return options for fsspec's HTTP client, by protocol. The user's fsspec config takes precedence."""
    found = {}
    for link in links(url):
        protocol = link.partition(":")[0].lower()
        if protocol in ("http", "https"):
            from aiohttp import ClientTimeout
            from fsspec.config import conf  # type: ignore[import-untyped]

            found[protocol] = {
                "client_kwargs": {
                    "timeout": ClientTimeout(total=_REQUEST, sock_connect=SILENCE, sock_read=SILENCE),
                    "headers": {"Accept-Encoding": "identity"},
                    "trust_env": True,  # the proxies of the environment
                    **conf.get(protocol, {}).get("client_kwargs", {}),
                }
            }
    return found


def ask(system: Any, url: str, take: Callable[[Any], Awaitable[_T]], headers: Mapping[str, str]) -> _T:
    """Send a GET request, and return what `take` makes of the response before its body is fetched."""
    from fsspec.asyn import sync  # type: ignore[import-untyped]

    async def asked() -> _T:
        session = await system.set_session()
        async with session.get(system.encode_url(url), headers=headers) as answer:
            if answer.history and answer.url.path.endswith("/") and not split(url)[0].endswith("/"):
                raise CheckpointError("it is a folder: end its address with a slash, or name a file in it")
            return await take(answer)

    made: _T = sync(system.loop, asked)
    return made


class WebRanges:
    """Ranges of one file on a web server. Every response is compared with the first to notice changes.

    Attributes:
        size: the size of the file in bytes, from the first response; -1 before it.
    """

    def __init__(self, system: Any, url: str) -> None:
        self._system = system
        self._url = url
        self._version: list[str] = []  # ETag and time of the last change, if the server sends them
        self._answered = False
        self._unasked = self._trust = 0
        self.size = -1

    def fetch(self, offset: int, size: int) -> bytes:
        """Return the bytes of one range. They are fewer if the file ends inside."""

        async def take(answer: Any) -> bytes:
            if answer.status == 416 and offset == 0 and self.size <= 0:
                self.size = 0  # an empty file has no first byte
                return b""
            self._check_version(answer)
            self._check_part(answer, offset, size)
            data: bytes = await answer.read()
            return data

        return ask(self._system, self._url, take, {"Range": f"bytes={offset}-{offset + size - 1}"})

    def check_unchanged(self) -> None:
        """Request one byte, unless another response has shown the version since; errors as for `fetch`.

        While nothing is fetched from the file, it asks less and less often.
        """

        async def take(answer: Any) -> None:
            self._check_version(answer)
            if answer.status == 206:
                await answer.read()  # one byte, so that the connection is kept

        self._unasked = 0 if self._answered else self._unasked + 1
        if self.size and self._unasked > self._trust:
            ask(self._system, self._url, take, {"Range": "bytes=0-0"})
            self._unasked, self._trust = 0, 2 * self._trust + 1
        self._answered = False

    def close(self) -> None:
        """Do nothing: the connections are shared."""

    def _check_version(self, answer: Any) -> None:
        """Compare the version with that of the first response, or remember it from the first."""
        if answer.status == 416:
            raise changed(self._url)  # it is shorter now
        answer.raise_for_status()
        if answer.status not in (200, 206):
            raise CheckpointError(f"the server answers HTTP {answer.status} instead of the file")
        if answer.headers.get("Content-Encoding", "identity") != "identity":
            raise CheckpointError(_ENCODED)
        part = _PART.fullmatch(answer.headers.get("Content-Range", ""))
        size = answer.headers.get("Content-Length", "") if answer.status == 200 else part and part[3]
        if not size or not size.isdecimal():
            raise CheckpointError(_NO_SIZE)
        version = [answer.headers.get(name, "") for name in ("ETag", "Last-Modified")]
        if self.size < 0:
            self.size, self._version = int(size), version
        versions = zip(self._version, version, strict=True)
        differs = next((old != new for old, new in versions if old and new), False)
        if int(size) != self.size or differs:
            raise changed(self._url)
        self._answered = True

    def _check_part(self, answer: Any, offset: int, size: int) -> None:
        """Refuse a response that is not the requested range, before its body is fetched."""
        if answer.status != 206 and (offset > 0 or self.size > size):
            raise CheckpointError(_NO_RANGES)
        end = min(offset + size, self.size)
        part = _PART.fullmatch(answer.headers.get("Content-Range", ""))
        length = answer.headers.get("Content-Length", str(end - offset))
        if part and (int(part[1]), int(part[2]), length) != (offset, end - 1, str(end - offset)):
            raise CheckpointError(_OTHER_PART)


def passing(error: BaseException) -> bool:
    """Return whether the client's error may be temporary."""
    import aiohttp

    match error:
        case aiohttp.ClientResponseError(status=status):
            return status in _PASSING
        case aiohttp.ClientSSLError() | aiohttp.InvalidURL():
            return False
    return isinstance(error, (TimeoutError, aiohttp.ClientConnectionError, aiohttp.ClientPayloadError))


def asked_to_wait(error: BaseException) -> float:
    """Return how many seconds the server asks to wait before a retry, at most 30, or 0."""
    headers = getattr(error, "headers", None) or {}
    seconds = headers.get("Retry-After", "")
    return min(int(seconds), _MOST_WAITED) if seconds.isdecimal() else 0


def reason(url: str, error: BaseException) -> str:
    """Return the end of a sentence about an unreadable URL, given the client's error: ``<url> ...``."""
    import aiohttp
    from aiohttp.http_exceptions import HttpProcessingError

    match error:
        case TimeoutError():
            return f"does not answer (waited {SILENCE} s): try again, or download it first"
        case aiohttp.TooManyRedirects():
            return "can't be read: the server redirects in a circle"
        case _ if type(error).__name__.endswith("RedirectClientError"):
            return "can't be read: the server redirects to an address that is not on the web"
        case aiohttp.ClientResponseError(status=403) if split(url)[1]:
            return f"{_SIGNED} (HTTP 403)"
        case aiohttp.ClientResponseError(status=status):
            return f"{_ANSWERS.get(status, _REFUSES if status < 500 else _FAILS)} (HTTP {status})"
        case aiohttp.ClientProxyConnectionError(strerror=why):
            return f"can't be reached: the proxy of the environment does not answer ({escape(str(why), 200)})"
        case aiohttp.ClientConnectorError(strerror=why):
            return f"can't be reached ({escape(str(why), 200)}): is the address right, and are you online?"
        case aiohttp.ClientConnectionError() | aiohttp.ClientPayloadError() | HttpProcessingError():
            return "can't be read: the connection broke off; try again"
        case aiohttp.InvalidURL() | ValueError():
            return "can't be read: its address is not valid; in a user or password, write @ as %40, / as %2F"
    return f"can't be read: {type(error).__name__}"
