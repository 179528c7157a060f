"""``ckptcompat lock``."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from .options import add_reading, make_importable, opened
from .outcome import OK, Outcome

if TYPE_CHECKING:
    import argparse

SUMMARY = "write keys, shapes and dtypes to a small lock file"
EXITS = "0 written, 2 not written"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare its arguments."""
    parser.add_argument(
        "source", metavar="CKPT_OR_MODEL", help="a checkpoint, or package.module:name of what gives a model"
    )
    parser.add_argument("-o", "--output", required=True, metavar="net.ckpt.json", help="the lock file")
    parser.add_argument(
        "--sha256", action="store_true", help="with the hash of the file's bytes: reads all of it"
    )
    add_reading(parser)


def run(options: argparse.Namespace) -> Outcome:
    """The lock, written."""
    from pytest_ckptcompat.checkpoint.lock_writer import lock_of_checkpoint, write_lock
    from pytest_ckptcompat.core.redaction import public
    from pytest_ckptcompat.files.paths import display

    if _is_model(options.source):
        from pytest_ckptcompat.checks.locks import lock_of_model

        make_importable()
        content = lock_of_model(options.source)
    else:
        content = lock_of_checkpoint(opened(options.source, options), options.output, sha256=options.sha256)
    write_lock(options.output, content)
    count = len(content["tensors"])
    keys = f"{count:,} key{'' if count == 1 else 's'}"
    hidden = " (noted without its user and query)" if public(options.source) != options.source else ""
    return Outcome(OK, f"{display(options.output)}: {keys} of {display(options.source)}{hidden}")


def _is_model(source: str) -> bool:
    return ":" in source and "://" not in source and not os.path.lexists(source)
