"""A web server for a folder, with or without range requests, that counts what it sends."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@dataclass
class Served:
    """A folder that is served.

    Attributes:
        folder: that is served.
        url: of the folder, without a slash at its end.
        ranges: whether range requests are understood.
        size_told: whether the size is told.
        sent: bytes of files that were sent.
        requests: method and path of every request.
    """

    folder: Path
    url: str = ""
    ranges: bool = True
    size_told: bool = True
    sent: int = 0
    requests: list[str] = field(default_factory=list)


@contextmanager
def serve(folder: Path, **how: Any) -> Iterator[Served]:
    """Serve a folder on this machine."""
    served = Served(folder, **how)

    class Handler(_Handler):
        state = served

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    served.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield served
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    state: Served

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        self.state.requests.append(f"{self.command} {self.path}")
        path = self.state.folder / unquote(urlsplit(self.path).path).lstrip("/")
        if not path.is_file():
            self.send_response(404)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        size = path.stat().st_size
        start, end = 0, size
        wanted = self.headers.get("Range") if self.state.ranges else None
        if wanted:
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            start, end = int(first), int(last) + 1 if last else size
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{size}")
        else:
            self.send_response(200)
        if self.state.size_told:
            self.send_header("Content-Length", str(end - start))
        else:
            self.send_header("Connection", "close")
            self.close_connection = True
        self.send_header("ETag", f'"{path.stat().st_mtime_ns}"')
        self.end_headers()
        if body:
            self._send(path, start, end)

    def _send(self, path: Path, start: int, end: int) -> None:
        with path.open("rb") as file:
            file.seek(start)
            while start < end:
                data = file.read(min(1 << 16, end - start))
                try:
                    self.wfile.write(data)
                except OSError:  # the client has hung up
                    return
                self.state.sent += len(data)
                start += len(data)

    def log_message(self, *_: Any) -> None:
        """Stay silent."""
