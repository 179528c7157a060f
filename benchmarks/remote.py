"""Reading a checkpoint from a web server that takes its time: as a whole, by ranges, tensor by tensor.

    python benchmarks/remote.py [--tensors 200] [--milliseconds 20] [--runs 3]

Serves a ``.pth`` and a ``.safetensors`` of many small tensors from this machine, every answer after a pause,
and prints the median of the runs: seconds, requests, and bytes as a multiple of the file. To reach: values of
200 tensors in 1 s and 20 requests.
"""

from __future__ import annotations

import io
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.request import urlopen

import torch
from measure import options
from safetensors.torch import save_file
from torch import nn

from pytest_ckptcompat import check, open_checkpoint

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))
from http_server import Served, serve

if TYPE_CHECKING:
    from collections.abc import Callable

WIDTH = 64


def net(tensors: int) -> nn.Module:
    return nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(tensors // 2)))


def downloaded(url: str, tensors: int) -> Any:
    """What people do without range requests."""
    with urlopen(url) as answer:
        data = io.BytesIO(answer.read())
    return torch.load(data) if url.endswith(".pth") else data


def header(url: str, tensors: int) -> Any:
    return open_checkpoint(url).meta()


def values(url: str, tensors: int) -> Any:
    return open_checkpoint(url).state_dict()


def one_by_one(url: str, tensors: int) -> Any:
    """Each tensor by itself, in the order of the file."""
    ckpt = open_checkpoint(url)
    return [ckpt.tensor(key) for key in ckpt]


def whole_check(url: str, tensors: int) -> Any:
    report = check(lambda: net(tensors), url, inputs=(2, WIDTH), device="cpu")
    assert report.ok, report.verdict
    return report


WAYS: dict[str, Callable[[str, int], Any]] = {
    "downloaded": downloaded,
    "header": header,
    "values": values,
    "values, one by one": one_by_one,
    "check with a forward pass": whole_check,
}


def main() -> None:
    given = options(__doc__, tensors=200, milliseconds=20.0, runs=3)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        state = net(given.tensors).state_dict()
        torch.save(state, folder / "net.pth")
        save_file(state, folder / "net.safetensors")
        with serve(folder, delay=given.milliseconds / 1000) as served:
            whole_check(f"{served.url}/net.pth", given.tensors)  # imports what is imported on first use
            for file in ("net.pth", "net.safetensors"):
                measure(served, file, given.tensors, given.runs)


def measure(served: Served, file: str, tensors: int, runs: int) -> None:
    size = (served.folder / file).stat().st_size
    print(f"\n{file}: {tensors} tensors, {size / 1e6:.1f} MB\n")
    print(f"{'':<28}{'time':>8}{'requests':>10}{'bytes':>8}")
    for way, read in WAYS.items():
        seconds = []
        for _ in range(runs):
            served.requests.clear()
            served.sent = 0
            start = time.perf_counter()
            read(f"{served.url}/{file}", tensors)
            seconds.append(time.perf_counter() - start)
        took = statistics.median(seconds)
        print(f"{way:<28}{took:7.2f}s{len(served.requests):>10}{served.sent / size:8.2f}")


if __name__ == "__main__":
    main()
