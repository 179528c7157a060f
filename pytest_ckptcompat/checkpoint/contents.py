"""A checkpoint's header and files, before a state dict is picked."""

from __future__ import annotations

import gc
import os
import re
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_ckptcompat.core.collection import paused
from pytest_ckptcompat.core.errors import CheckpointError
from pytest_ckptcompat.core.escape import escape
from pytest_ckptcompat.core.limits import DEFAULT, Limits
from pytest_ckptcompat.files.files import Files
from pytest_ckptcompat.files.folders import kind_of, meant_by
from pytest_ckptcompat.files.paths import display
from pytest_ckptcompat.formats.registry import recognised

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_ckptcompat.core.header import Header


@dataclass(frozen=True)
class Contents:
    """A checkpoint's header and files, before a state dict is picked.

    Attributes:
        path: the path as it was given.
        header: the header, which describes the whole outermost object.
        files: the files of the checkpoint.
        limits: the limits that applied to the header.
    """

    path: str
    header: Header
    files: Files
    limits: Limits = DEFAULT

    @property
    def valueless(self) -> str:
        """Why there are no values to read, or ``""``."""
        formats = {"lock": "a lock file has no values", "git": "a commit has no values"}
        return formats.get(self.header.format, "")


def read_contents(path: str | os.PathLike[str], *, limits: Limits = DEFAULT) -> Contents:
    """Read the header of a checkpoint. Arguments and errors are those of `open_checkpoint`."""
    path = re.sub(r"^(file|local)://", "", os.fsdecode(path))
    files = Files()
    try:
        kind = kind_of(path)
    except CheckpointError as error:
        raise CheckpointError(f"{error}{meant_by(path)}") from None
    with _collector_paused():
        if kind == "folder":
            return Contents(path, recognised(path, None, files, limits), files, limits)
        with files.open(path) as file:
            try:
                header = recognised(path, file, files, limits)
            except (OSError, EOFError, MemoryError) as error:
                reason = escape(str(error) or type(error).__name__)
                raise CheckpointError(f"{display(path)} can't be read: {reason}") from None
    return Contents(path, header, files, limits)


@contextmanager
def _collector_paused() -> Iterator[None]:
    """Pause the garbage collector inside the block, because a header makes very many small objects.

    With 100,000 keys, the collector would take a third of the time. Afterwards the objects count as old, or
    they would be searched at once.
    """
    with paused():
        try:
            yield
        finally:
            if not gc.get_freeze_count():
                gc.freeze()
                gc.unfreeze()
