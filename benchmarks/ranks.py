"""The index of a distributed checkpoint of many ranks, opened in a process of its own, default limits.

    python benchmarks/ranks.py [--ranks 64 256] [--runs 3] [--folder /tmp]

Writes what FSDP leaves of the 723 parameters of a 70 B Llama with AdamW: of each tensor a block from each
rank, in files without values. Prints the best of the runs: seconds, those of the processor, and the peak of
memory above a bare interpreter. To reach: 64 ranks in 5 s and 350 MB, 256 ranks in 12 s and 1 GB.
"""

from __future__ import annotations

import argparse
import pickle
import subprocess
import sys
import tempfile
from pathlib import Path

PARTS = (
    *(f"attention.{name}" for name in ("wq", "wk", "wv", "wo")),
    *(f"feed_forward.w{number}" for number in (1, 2, 3)),
    *("attention_norm", "ffn_norm"),
)
NAMES = (
    *("tok_embeddings.weight", "norm.weight", "output.weight"),
    *(f"layers.{layer}.{part}.weight" for layer in range(80) for part in PARTS),
)

OPEN = """
import sys, time

def peak():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))

before, start = peak(), time.perf_counter()
from pytest_ckptcompat import open_checkpoint
checkpoint = open_checkpoint(sys.argv[1])
took = time.perf_counter() - start
assert len(checkpoint) == int(sys.argv[2])
print(took, time.process_time(), peak() - before)
"""


def write(folder: Path, ranks: int) -> None:
    """An index as torch pickles it, and files as long as it says."""
    import torch
    from torch.distributed.checkpoint import metadata as md
    from torch.distributed.checkpoint.filesystem import _StorageInfo

    tensors, where, paths, used = {}, {}, {}, [0] * ranks
    for name in NAMES:
        for path in (
            ("model", name),
            ("optim", "state", name, "exp_avg"),
            ("optim", "state", name, "exp_avg_sq"),
        ):
            key, chunks = ".".join(path), []
            for rank in range(ranks):
                begin = torch.Size([rank * 128, 0])
                chunks.append(md.ChunkStorageMetadata(begin, torch.Size([128, 8192])))
                where[md.MetadataIndex(key, begin, rank)] = _StorageInfo(
                    f"__{rank}_0.distcp", used[rank], 1500
                )
                used[rank] += 1500
            size = torch.Size([128 * ranks, 8192])
            tensors[key] = md.TensorStorageMetadata(md.TensorProperties(torch.bfloat16), size, chunks)
            paths[key] = path
    folder.mkdir()
    for rank in range(ranks):
        with (folder / f"__{rank}_0.distcp").open("wb") as file:
            file.truncate(used[rank])
    (folder / ".metadata").write_bytes(pickle.dumps(md.Metadata(tensors, paths, where)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--ranks", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--folder", default=None)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as scratch:
        for ranks in options.ranks:
            folder = Path(scratch) / f"ranks-{ranks}"
            write(folder, ranks)
            command = [sys.executable, "-c", OPEN, folder, str(len(NAMES))]
            runs = [
                subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
                for _ in range(options.runs)
            ]
            seconds, busy, peak = (min(map(float, column)) for column in zip(*runs, strict=True))
            index = (folder / ".metadata").stat().st_size / 1e6
            took = f"{seconds:5.2f} s ({busy:.2f}), {peak / 1024:.0f} MB"
            print(f"{ranks:4} ranks: .metadata {index:5.1f} MB, opened in {took}")


if __name__ == "__main__":
    main()
