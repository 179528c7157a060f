"""torch's format before 1.6: five pickles in a row, then the bytes of every storage."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pytest_ckptcompat.core.errors import CheckpointError
from pytest_ckptcompat.core.escape import escape
from pytest_ckptcompat.core.header import Header
from pytest_ckptcompat.core.hooks import hookimpl
from pytest_ckptcompat.core.tensor_spec import Extent

from .pickle_machine import Machine
from .pickle_stack import Truncated
from .safe_names import refused
from .torch_names import Tensors

if TYPE_CHECKING:
    from pytest_ckptcompat.core.limits import Limits
    from pytest_ckptcompat.files.file import File

_MAGIC = 0x1950A86A20F9469CFC6C
_MAGIC_TEXTS = (
    _MAGIC.to_bytes(10, "little"),
    str(_MAGIC).encode(),
)  # pickle protocol 2 and later, and before
_PROTOCOL = 1001
_FIRST_READ = 256 << 10


@hookimpl(tryfirst=True)
def pytest_ckptcompat_open(file: File | None, limits: Limits) -> Header | None:
    """Read a file that torch.save wrote before 1.6, or later in the legacy format."""
    head = b"" if file is None else file.read_at(0, min(32, file.size))
    if file is None or not any(magic in head for magic in _MAGIC_TEXTS):
        return None
    pickles = _Pickles(file, limits)
    magic, protocol = pickles.load(), pickles.load()
    if magic != _MAGIC or protocol != _PROTOCOL:
        raise CheckpointError("it begins as torch.save began files before 1.6, and goes on differently")
    pickles.load()  # about the machine it was written on; values are little-endian in any case
    tree = pickles.load()
    tensors = pickles.tensors
    keys = pickles.load()
    if not isinstance(keys, list) or any(type(key) is not str for key in keys):
        raise CheckpointError("its list of storages is damaged")
    return Header(
        "torch-legacy", tree, _extents(file, keys, tensors, pickles.position), refused(*pickles.machines)
    )


class _Pickles:
    """The pickles at the start of a file. The length of each is known only after it was run.

    Attributes:
        position: the offset of the next pickle.
        machines: the machines that ran, one for each pickle.
        tensors: the tensors of the last pickle.
    """

    def __init__(self, file: File, limits: Limits) -> None:
        self.position = 0
        self.machines: list[Machine] = []
        self._file = file
        self._limits = limits
        self._data = file.read_at(0, min(file.size, _FIRST_READ))

    def load(self) -> Any:
        """Return the object of the next pickle. More of the file is read as needed."""
        self.tensors = tensors = Tensors(self._limits, legacy=True)
        machine = Machine(
            self._data,
            names=tensors.names,
            persistent=tensors.storage,
            limits=self._limits,
            start=self.position,
        )
        while True:
            try:
                loaded = machine.load()
            except Truncated:
                self._read_more()
                machine.extend(self._data)
                continue
            self._limits.check("pickle_bytes", machine.position, "its pickles are too long")
            self.position = machine.position
            self.machines.append(machine)
            return loaded

    def _read_more(self) -> None:
        have, most = len(self._data), self._limits.pickle_bytes
        if have >= self._file.size:
            raise CheckpointError("it is truncated within its header; copy or download it again") from None
        if have >= most:
            self._limits.check("pickle_bytes", have + 1, "its pickles are too long")
        self._data = self._file.read_at(0, min(self._file.size, 4 * have, most))


def _extents(file: File, keys: list[str], tensors: Tensors, position: int) -> dict[str, tuple[Extent, ...]]:
    """Return where the bytes of every storage are: in the order of the keys, each after an element count."""
    if len(set(keys)) != len(keys) or set(keys) != set(tensors.storages):
        raise CheckpointError("its list of storages does not name those that its tensors use, each once")
    extents: dict[str, tuple[Extent, ...]] = {}
    for key in keys:
        storage = tensors.storages[key]
        nbytes = storage.numel * storage.itemsize
        if position + 8 + nbytes > file.size:
            raise CheckpointError(
                f"it is truncated: storage {escape(key)} would end at byte {position + 8 + nbytes}"
            )
        if not file.remote and int.from_bytes(file.read_at(position, 8), "little") != storage.numel:
            raise CheckpointError(
                f"storage {escape(key)} does not have the size that its tensors say: it is damaged"
            )
        extents[key] = (Extent(file.path, position + 8, nbytes),)
        position += 8 + nbytes
    return extents
