"""Adds a format: arrays in numpy's ``.npz``, a zip archive with one ``.npy`` file for each."""

import struct
from zipfile import ZIP_STORED, BadZipFile, ZipFile, ZipInfo

import numpy as np

from pytest_ckptcompat.formats import (
    ITEMSIZE,
    CheckpointError,
    Extent,
    Header,
    TensorSpec,
    contiguous_stride,
    escape,
)


def pytest_ckptcompat_open(file, limits):
    if file is None or not file.read_at(0, min(file.size, 4)).startswith(b"PK\x03\x04"):
        return None
    try:
        with ZipFile(file) as archive:
            members = archive.infolist()
            if not all(member.filename.endswith(".npy") for member in members):
                return None
            limits.check("tensors", len(members), f"it holds {len(members)} arrays")
            table, places = {}, {}
            for member in members:
                key = member.filename.removesuffix(".npy")
                table[key], places[key] = read_header(archive, member, key, file)
    except CheckpointError:
        raise
    except (BadZipFile, ValueError) as error:
        raise CheckpointError(f"it is damaged: {escape(str(error))}") from None
    return Header("npz", table, places)


def read_header(archive: ZipFile, member: ZipInfo, key: str, file) -> tuple[TensorSpec, tuple[Extent, ...]]:
    """The table's row of an array, and where its bytes lie, from the header of its ``.npy``."""
    with archive.open(member) as npy:
        if np.lib.format.read_magic(npy) != (1, 0):
            raise CheckpointError(f"{escape(key)} is in a version of .npy that is not read")
        shape, columns_first, dtype = np.lib.format.read_array_header_1_0(npy)
        header = npy.tell()
    if dtype.byteorder == ">" or dtype.name not in ITEMSIZE:
        raise CheckpointError(f"{escape(key)} has dtype {escape(str(dtype))}, which torch does not have")
    stride = contiguous_stride(shape[::-1])[::-1] if columns_first else contiguous_stride(shape)
    if member.compress_type != ZIP_STORED:
        return TensorSpec(dtype.name, shape, stride, note="compressed"), ()
    # The archive's directory does not say where the bytes begin: behind a header, a name and an extra field.
    name, extra = struct.unpack("<2H", file.read_at(member.header_offset + 26, 4))
    begin = member.header_offset + 30 + name + extra + header
    values = Extent(file.path, begin, member.file_size - header)
    return TensorSpec(dtype.name, shape, stride, storage=key), (values,)
