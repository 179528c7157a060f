"""The formats of checkpoints, each a plugin of the hook ``pytest_ckptcompat_open``.

Everything that a format of your own needs can be imported from here and is stable: ``Header``,
``TensorSpec``, ``Extent``, ``ITEMSIZE`` (by dtype), ``contiguous_stride``, ``CheckpointError`` and
``escape``; ``File``, ``Files`` and ``Limits``, which the hook receives; and ``hookimpl``, which marks the
hook in an installed package (a ``conftest.py`` needs no mark). ``examples/npz`` adds a format.
"""

from __future__ import annotations

from pytest_ckptcompat.core.errors import CheckpointError
from pytest_ckptcompat.core.escape import escape
from pytest_ckptcompat.core.header import Header
from pytest_ckptcompat.core.hooks import hookimpl
from pytest_ckptcompat.core.limits import Limits
from pytest_ckptcompat.core.tensor_spec import ITEMSIZE, Extent, TensorSpec, contiguous_stride
from pytest_ckptcompat.files.file import File
from pytest_ckptcompat.files.files import Files

__all__ = [
    "ITEMSIZE",
    "CheckpointError",
    "Extent",
    "File",
    "Files",
    "Header",
    "Limits",
    "TensorSpec",
    "contiguous_stride",
    "escape",
    "hookimpl",
]
