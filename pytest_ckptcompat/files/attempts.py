"""Requests to other machines: retried after temporary failures, then one error that says why."""

from __future__ import annotations

import logging
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from pytest_ckptcompat.core.errors import CheckpointError
from pytest_ckptcompat.core.escape import escape
from pytest_ckptcompat.core.keys import nearest
from pytest_ckptcompat.core.redaction import links, public, redact

from . import web
from .paths import about, display
from .progress import notice

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_T = TypeVar("_T")

WAITS = (0.5, 1.0, 2.0, 4.0)
"""Seconds to wait before each further attempt."""

_PATIENCE = 60
"""Seconds after which no further attempt is made."""


def file_system(url: str) -> tuple[Any, str]:
    """Return fsspec's file system for a URL and the file's name in it."""

    def found() -> tuple[Any, str]:
        from fsspec.core import url_to_fs  # type: ignore[import-untyped]

        system, name = url_to_fs(url, **web.options(url))
        return system, name

    return asked(url, found)


def asked(url: str, ask: Callable[[], _T], *, patient: bool = True) -> _T:
    """Return the result of `ask`, which is called again after growing waits if it fails temporarily.

    Raises:
        CheckpointError: the last attempt failed, or the failure is not temporary. The message says why, and
            how often it was tried.
    """
    start = time.monotonic()
    for tries, wait in enumerate((*(WAITS if patient else ()), None), 1):
        try:
            with without_logs():
                return ask()
        except CheckpointError as error:
            raise about(url, error) from None
        except ImportError as error:
            raise CheckpointError(f"{display(url)}: reading it needs {_package(error)}") from None
        except Exception as error:
            cause = error.__cause__ if isinstance(error, FileNotFoundError) and error.__cause__ else error
            if wait is None or not _passing(url, cause) or time.monotonic() - start > _PATIENCE:
                reason = _reason(url, cause)
                if tries > 1:
                    told = f"{reason[:-1]}, " if reason.endswith(")") else f"{reason} ("
                    reason = f"{told}tried {tries} times)"
                raise CheckpointError(f"{display(url)}{reason}") from None
            wait = max(wait, web.asked_to_wait(cause))
            with notice(f"{display(url)}{_reason(url, cause)}: next attempt in {wait:g} s"):
                time.sleep(wait)
    raise AssertionError("the last attempt either returned or raised")


def _is_web(url: str) -> bool:
    """Return whether any part of a URL is served by a web server."""
    return any(link.lower().startswith(("http://", "https://")) for link in links(url))


def _passing(url: str, error: BaseException) -> bool:
    if _is_web(url):
        return web.passing(error)
    wanted = type(error).__name__ == "OfflineModeIsEnabled"  # HF_HUB_OFFLINE
    return not wanted and any(map(_of_network, _chain(error)))


def _reason(url: str, error: BaseException) -> str:
    """Return the end of a sentence about a URL that can't be read."""
    if _is_web(url):
        return f" {web.reason(url, error)}"
    if isinstance(error, FileNotFoundError):
        return " does not exist"
    if isinstance(error, PermissionError):
        return ": no permission to read it; are you logged in?"
    if type(error).__name__ == "NoCredentialsError":
        return ": no credentials were found; are you logged in?"
    network = next((each for each in _chain(error) if _of_network(each)), None)
    if network is not None:
        why = "" if public(url) != url else f" ({escape(redact(str(network)), 200)})"
        return f" can't be reached{why}: are you online, and is the address right?"
    told = "" if public(url) != url else f": {escape(redact(str(error)), 200)}"
    return _unknown_protocol(url) or f" can't be read: {type(error).__name__}{told}"


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and its causes."""
    seen: list[BaseException] = []
    while error is not None and error not in seen:
        seen.append(error)
        yield error
        error = error.__cause__ or error.__context__


def _of_network(error: BaseException) -> bool:
    """Return whether an error means that there is no network or no answer."""
    import socket

    return isinstance(error, (ConnectionError, TimeoutError, socket.gaierror))


def _package(error: ImportError) -> str:
    """Return which package has to be installed: the module from the error, or else fsspec's text."""
    missing = error.name or getattr(error.__cause__, "name", None)
    if missing is None:
        return escape(redact(str(error)))
    return f"a package that is not installed: pip install {escape(missing.partition('.')[0])}"


def _unknown_protocol(url: str) -> str:
    """Return the end of a sentence about a URL whose protocol fsspec does not know, or ``""``."""
    from fsspec import available_protocols  # type: ignore[import-untyped]

    known = available_protocols()
    for link in links(url):
        protocol = link.partition("://")[0]
        if "://" in link and protocol not in known:
            near = nearest(protocol, known, 1)
            hint = f"did you mean {near[0]}://?" if near else "install the package that brings it to fsspec"
            return f": the protocol {escape(protocol)}:// is not known: {hint}"
    return ""


@contextmanager
def without_logs() -> Iterator[None]:
    """Disable logging: other packages log whole URLs, and pytest shows the log of failed tests."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)
