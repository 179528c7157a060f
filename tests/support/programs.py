"""Modules run as programs, each in a process forked from one that has imported torch, which takes seconds."""

from __future__ import annotations

import json
import os
import runpy
import socket
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

CLIENT = """#!{python} -SE
import json, os, socket, sys
with socket.socket(socket.AF_UNIX) as server:
    server.connect({address!r})
    socket.send_fds(server, [b"."], [0, 1, 2])
    server.sendall(json.dumps(["{module}", sys.argv, os.getcwd(), dict(os.environ)]).encode())
    server.shutdown(socket.SHUT_WR)
    sys.exit(int(server.recv(8) or 1))
"""


@contextmanager
def programs(folder: Path, modules: dict[str, str]) -> Iterator[None]:
    """Put programs of these names into a folder; they work as long as the context does."""
    address = str(folder / "socket")
    with subprocess.Popen([sys.executable, __file__, address]) as server:
        while not Path(address).exists():
            assert server.poll() is None
            time.sleep(0.05)
        for name, module in modules.items():
            (folder / name).write_text(CLIENT.format(python=sys.executable, address=address, module=module))
            (folder / name).chmod(0o755)
        yield
        server.terminate()


def _serve(address: str) -> None:
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        torch.ones(2) + 1  # imports what the first rehearsal needs
    sys.dont_write_bytecode, sys.pycache_prefix = False, f"{address}.pycache"
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(address)
    listening.listen()
    while True:
        connection, _ = listening.accept()
        if not os.fork():
            listening.close()
            code = _run(connection)
            connection.send(str(code).encode())
            os._exit(code)
        connection.close()
        with suppress(ChildProcessError):
            os.waitpid(-1, os.WNOHANG)


def _run(connection: socket.socket) -> int:
    """Run one program with the client's files, folder and environment; return its exit code."""
    _, files, *_ = socket.recv_fds(connection, 1, 3)
    for number, file in enumerate(files):
        os.dup2(file, number)
    sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w")  # noqa: SIM115
    module, sys.argv, folder, environment = json.loads(connection.makefile().read())
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.path[:1] = [folder, *environment.get("PYTHONPATH", "").split(os.pathsep)]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as ended:
        return int(ended.code or 0)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return 0


if __name__ == "__main__":
    _serve(sys.argv[1])
