"""Options that several commands take, and what they make of them."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse

    from pytest_ckptcompat.checkpoint.checkpoint import Checkpoint

ABOUT_CHECKPOINT = "a file, folder, *.index.json, URL or lock file"


def add_reading(parser: argparse.ArgumentParser) -> None:
    """``--limit`` and ``--key``."""
    limit, key = (
        "raise a cap of the readers; repeatable",
        "dotted path to the state dict in a wrapped checkpoint",
    )
    parser.add_argument("--limit", action="append", default=[], metavar="NAME=VALUE", help=limit)
    parser.add_argument("--key", metavar="PATH", help=key)


def add_json(parser: argparse.ArgumentParser) -> None:
    """``--json``."""
    parser.add_argument("--json", action="store_true", help="print JSON")


def add_checkpoint_and_model(parser: argparse.ArgumentParser) -> None:
    """``CKPT`` and ``MODEL``."""
    parser.add_argument("ckpt", metavar="CKPT", help=f"the checkpoint: {ABOUT_CHECKPOINT}")
    model = "package.module:name of what gives the model; the current folder is importable"
    parser.add_argument("model", metavar="MODEL", help=model)


def opened(path: str, options: argparse.Namespace, key: str | None = None) -> Checkpoint:
    """The checkpoint at a path, under the limits of the command line.

    Raises:
        CheckpointError: it can't be read.
    """
    from pytest_ckptcompat.checkpoint.checkpoint import open_checkpoint
    from pytest_ckptcompat.core.limits import Limits

    return open_checkpoint(path, options.key if key is None else key, limits=Limits.parse(options.limit))


def make_importable() -> None:
    """The current folder is importable, as it is for ``python -m``."""
    if "" not in sys.path and os.getcwd() not in sys.path:  # noqa: PTH109  # sys.path holds texts
        sys.path.insert(0, "")
