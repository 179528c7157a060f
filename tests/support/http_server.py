"""A web server for a folder that counts what it sends, and can be as bad as servers are."""

from __future__ import annotations

import socket
import struct
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote, urlsplit

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


FAULTS = (
    "silent",  # never answers
    "mute",  # answers, and sends nothing
    "cut",  # hangs up in the middle
    "short",  # tells more bytes than there are
    "shifted",  # sends another part than it was asked for
    "everything",  # says that it sends a part, and sends all
    "elsewhere",  # redirects to where the file is
    "circle",  # redirects to itself
    "reset",  # resets the connection
    "compressed",  # sends it compressed
    "chunked",  # sends it in chunks, whose size no header tells
    "shouting",  # spells the unit of a part in capitals
    "vague",  # tells the version in every second answer alone
)


@dataclass
class Served:
    """A folder that is served.

    Attributes:
        folder: that is served.
        url: of the folder, without a slash at its end.
        ranges: whether range requests are understood.
        size_told: whether the size is told.
        password: what a request must have as its ``Authorization``, if anything.
        token: what must be in the query of a request, if anything.
        token_for: ends the paths for which it is good; of other paths, every request is refused.
        pages: whether a folder is shown as a page of links.
        delay: seconds before each answer.
        retry_after: seconds that it tells those to wait who get a status instead.
        fails: how many of the next requests get `fault` instead of an answer; -1: all.
        fault: what is wrong with its answers, one of `FAULTS` or a status.
        other: of another server, to which ``elsewhere`` redirects.
        authorized: what requests had as their ``Authorization``.
        sent: bytes of files that were sent.
        requests: method and path of every request.
        over: set when the server is to stop.
    """

    folder: Path
    url: str = ""
    ranges: bool = True
    size_told: bool = True
    password: str = ""
    token: str = ""
    token_for: str = ""
    pages: bool = False
    delay: float = 0
    retry_after: str = ""
    fails: int = -1
    fault: str | int = ""
    other: str = ""
    authorized: list[str] = field(default_factory=list)
    sent: int = 0
    requests: list[str] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)


@contextmanager
def serve(folder: Path, **how: Any) -> Iterator[Served]:
    """Serve a folder on this machine."""
    served = Served(folder, **how)

    class Handler(_Handler):
        state = served

    server = _Server(("127.0.0.1", 0), Handler)
    served.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield served
    finally:
        served.over.set()
        server.shutdown()
        server.server_close()
        thread.join()


class _Server(ThreadingHTTPServer):
    def handle_error(self, *_: Any) -> None:
        """Clients may hang up."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    state: Served

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        self.state.requests.append(f"{self.command} {self.path}")
        self.state.authorized += filter(None, [self.headers.get("Authorization")])
        if self.state.delay:
            time.sleep(self.state.delay)
        fault = self.state.fault if self.state.fails else ""
        self.state.fails -= self.state.fails > 0
        path = self.state.folder / unquote(urlsplit(self.path).path).lstrip("/")
        if fault == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
            self.connection.close()
            return
        if fault == "silent":
            self.state.over.wait(60)
            return
        if self.state.password not in self.headers.get("Authorization", ""):
            self._without_body(401)
        elif self.state.token not in urlsplit(self.path).query or not str(path).endswith(
            self.state.token_for
        ):
            self._without_body(403)
        elif not fault and path.is_dir() and not urlsplit(self.path).path.endswith("/"):
            self._without_body(301, urlsplit(self.path).path + "/")
        elif not fault and path.is_dir() and self.state.pages:
            self._page(path)
        elif isinstance(fault, int) or not path.is_file():
            self._without_body(fault or 404)
        elif fault == "elsewhere" and self.state.other:
            self._without_body(302, self.state.other + urlsplit(self.path).path)
        elif fault == "circle" or (fault == "elsewhere" and "moved" not in self.path):
            self._without_body(302, self.path + ("" if fault == "circle" else "?moved"))
        else:
            self._file(path, fault, body=body)

    def _without_body(self, status: int | str, location: str = "") -> None:
        self.send_response(int(status))
        if location:
            self.send_header("Location", location)
        if self.state.retry_after:
            self.send_header("Retry-After", self.state.retry_after)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _page(self, folder: Path) -> None:
        """What Apache shows: its own links, no hidden files. One link is broken."""
        names = [
            each.name + "/" * each.is_dir() for each in folder.iterdir() if not each.name.startswith(".")
        ]
        links = ["?C=N;O=D", "/", "http://[", *map(quote, names)]
        page = "".join(f'<a href="{link}">{link}</a>' for link in links).encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/html;charset=UTF-8")
        self.send_header("Content-Length", str(len(page)))
        self.end_headers()
        self.wfile.write(page)

    def _file(self, path: Path, fault: int | str, *, body: bool) -> None:
        size = path.stat().st_size
        told = size + 1000 if fault == "short" else size
        start, end = 0, told
        wanted = self.headers.get("Range") if self.state.ranges else None
        if wanted:
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            start, end = int(first), min(int(last) + 1 if last else size, size)
            if fault == "shifted":
                start, end = (start - 1, end - 1) if start else (1, end + 1)
            if fault == "everything":
                start, end = 0, size
            if start >= size:
                self._without_body(416)
                return
            self.send_response(206)
            unit = "BYTES" if fault == "shouting" else "bytes"
            self.send_header("Content-Range", f"{unit} {start}-{end - 1}/{told}")
        else:
            self.send_response(200)
        if fault == "compressed":
            self.send_header("Content-Encoding", "gzip")
        if fault == "chunked":
            self.send_header("Transfer-Encoding", "chunked")
        elif self.state.size_told:
            self.send_header("Content-Length", str(end - start))
        else:
            self.send_header("Connection", "close")
            self.close_connection = True
        if fault != "vague" or len(self.state.requests) % 2:
            self.send_header("ETag", f'"{path.stat().st_mtime_ns}"')
        self.end_headers()
        if fault == "chunked":
            self.wfile.write(b"%x\r\n%b\r\n0\r\n\r\n" % (end - start, path.read_bytes()[start:end]))
            return
        if body and fault == "mute":
            self.state.over.wait(60)
        elif body:
            self._send(path, start, start + (end - start) // 2 if fault == "cut" else end)
        if fault in ("cut", "mute"):
            self.close_connection = True

    def _send(self, path: Path, start: int, end: int) -> None:
        with path.open("rb") as file:
            file.seek(start)
            while data := file.read(min(1 << 16, end - start)):
                self.state.sent += len(data)  # before the client has it, and looks
                try:
                    self.wfile.write(data)
                except OSError:  # the client has hung up
                    return
                start += len(data)

    def log_message(self, *_: Any) -> None:
        """Stay silent."""
