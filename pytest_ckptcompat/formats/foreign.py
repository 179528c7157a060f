"""Recognise formats of other frameworks, and say how to get a PyTorch checkpoint instead.

They are recognised by their content. Names are used only for protocol buffers, which do not say what they
are, and for the data files of TensorFlow.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_SAVE = "save the state_dict() of the PyTorch model with torch.save or safetensors"
_MADE_FOR_INFERENCE = (
    f"it is made for inference: open the PyTorch checkpoint it was converted from, or {_SAVE}"
)
_TF = f"load it by transformers' from_pretrained(..., from_tf=True), or convert its variables, and {_SAVE}"
_FLAX = f"load it by transformers' from_pretrained(..., from_flax=True), or convert its arrays, and {_SAVE}"
_ONNX = "open the PyTorch checkpoint it was exported from: an export renames and folds weights"
_ARRAYS = "torch.save({k: torch.from_numpy(v) for k, v in numpy.load(path).items()}, ...)"

FOREIGN: dict[str, str] = {
    "onnx": f"an ONNX model: {_ONNX}",
    "saved-model": f"a TensorFlow SavedModel: {_TF}",
    "tf-index": f"the index of a TensorFlow checkpoint: {_TF}",
    "tf-data": f"the values of a TensorFlow checkpoint: {_TF}",
    "tflite": f"a TensorFlow Lite model: {_MADE_FOR_INFERENCE}",
    "hdf5": f"an HDF5 file, as Keras and TensorFlow write: {_TF}",
    "keras": f"a Keras archive (.keras): {_TF}",
    "flax": f"a Flax checkpoint (msgpack): {_FLAX}",
    "orbax": f"an Orbax checkpoint of JAX: {_FLAX}",
    "coreml": f"a Core ML model: {_MADE_FOR_INFERENCE}",
    "openvino": f"an OpenVINO model (IR): {_MADE_FOR_INFERENCE}",
    "gguf": "a GGUF file (llama.cpp): check the PyTorch checkpoint it was converted from",
    "ggml": "a GGML file (llama.cpp, whisper.cpp): check the PyTorch checkpoint it was converted from",
    "npz": f"a NumPy archive (.npz): convert it, {_ARRAYS}",
    "npy": f"a NumPy array (.npy): convert it with torch.from_numpy, and {_SAVE}",
    "pt2": (
        "a program of torch.export (.pt2), not a checkpoint: save its weights alone, "
        "torch.save(torch.export.load(path).state_dict, ...)"
    ),
    "package": (
        "a program of torch.package, not a checkpoint: load its model with "
        "torch.package.PackageImporter(path).load_pickle(...), and save model.state_dict() with torch.save"
    ),
    "executorch": f"an ExecuTorch program (.pte): {_MADE_FOR_INFERENCE}",
    "tensorrt": f"a TensorRT engine: {_MADE_FOR_INFERENCE}",
    "mxnet": f"an MXNet parameter file: convert its arrays to tensors, and {_SAVE}",
    "caffe": f"a Caffe model: convert its blobs to tensors, and {_SAVE}",
    "protobuf": (
        "a protocol buffer, as ONNX, TensorFlow and Core ML write: open the PyTorch checkpoint it was "
        f"converted from, or {_SAVE}"
    ),
}
"""The name of each format and how to get a checkpoint: the end of a sentence, ``<path> is ...``."""

_MAGIC = tuple(
    (re.compile(pattern, re.DOTALL), kind)
    for pattern, kind in (
        (rb".{4}TFL3", "tflite"),
        (rb".{4}ET1", "executorch"),
        (rb"\x89HDF\r\n", "hdf5"),
        (rb"GGUF", "gguf"),
        (rb"(lm|tj|fm)gg", "ggml"),
        (rb"\x93NUMPY", "npy"),
        (rb"[pf]trt", "tensorrt"),
        (rb"\x12\x01\0{6}", "mxnet"),
        (rb"\s*(<\?xml[^>]*>)?\s*<net [^>]*version=", "openvino"),
    )
)
_TABLE_OF_LEVELDB = (0xDB4775248B80FB57).to_bytes(8, "little")
_OF_EXPORT = (b"/data/weights/", b"/archive_format", b"/models/", b"serialized_exported_program")
_MSGPACK = re.compile(rb"(?:[\x80-\x8f]|\xde..|\xdf....)(?:[\xa1-\xbf]|\xd9.)([\w/.]+)", re.DOTALL)
_OF_FLAX = (b"params", b"kernel", b"embedding", b"batch_stats", b"opt_state")
_OF_TENSORFLOW = (b"serve", b"tensorflow", b"VarHandleOp", b"VarIsInitializedOp")


def foreign(head: bytes, tail: bytes, name: str) -> str:
    """Describe the format of another framework that a file is in, or return ``""``.

    Args:
        head: its first bytes.
        tail: its last bytes, at least 8 of them.
        name: its name or path.
    """
    kind = next((kind for test in _TESTS if (kind := test(head, tail, name))), "")
    return FOREIGN.get(kind, "")


def foreign_folder(names: Iterable[str]) -> str:
    """Describe the format of another framework in a folder, given its names, or return ``""``."""
    for name in names:
        for pattern, kind in _IN_FOLDERS:
            if pattern.fullmatch(name):
                return FOREIGN[kind]
    return ""


_IN_FOLDERS = tuple(
    (re.compile(pattern), kind)
    for pattern, kind in (
        (r"saved_model\.pb", "saved-model"),
        (r"tf_model\.h5", "hdf5"),
        (r"flax_model\.msgpack|.*\.msgpack", "flax"),
        (r"_CHECKPOINT_METADATA|ocdbt\.process_\d+|manifest\.ocdbt|_sharding", "orbax"),
        (r".*\.mlmodel|Manifest\.json", "coreml"),
        (r"openvino_model\.xml", "openvino"),
        (r".*\.onnx", "onnx"),
        (r".*\.gguf", "gguf"),
        (r".*\.ckpt\.index|.*\.data-\d{5}-of-\d{5}", "tf-index"),
        (r".*\.tflite", "tflite"),
        (r".*\.npz", "npz"),
        (r".*\.keras", "keras"),
    )
)


def _by_magic(head: bytes, tail: bytes, name: str) -> str:
    if tail.endswith(_TABLE_OF_LEVELDB):
        return "tf-index"
    if re.search(r"\.data-\d{5}-of-\d{5}$", name):
        return "tf-data"
    return next((kind for pattern, kind in _MAGIC if pattern.match(head)), "")


def _by_archive(head: bytes, tail: bytes, name: str) -> str:
    """Recognise a zip archive, mostly by the name of its first member."""
    if not head.startswith(b"PK\x03\x04"):
        return ""
    first = head[30 : 30 + int.from_bytes(head[26:28], "little")]
    if first.endswith(b".npy"):
        return "npz"
    if b"model.weights.h5" in head + tail:
        return "keras"
    if b"/.data/" in first:
        return "package"
    return "pt2" if any(part in b"/" + first for part in _OF_EXPORT) else ""


def _by_msgpack(head: bytes, tail: bytes, name: str) -> str:
    match = _MSGPACK.match(head)
    return "flax" if match and any(each in head for each in _OF_FLAX) else ""


def _by_protobuf(head: bytes, tail: bytes, name: str) -> str:
    """Recognise ONNX, TensorFlow and Core ML, which begin with a small number, and Caffe, with a name."""
    fields = _fields(head)
    if fields[:1] == [(1, 2)] and b"\xa2\x06" in head:
        return "caffe"
    numbers = {number for number, _ in fields}
    if fields[:1] != [(1, 0)] or len(fields) < 2 or not 0 < head[1] < 64:
        return ""
    if name.endswith(".onnx") or (fields[1][0] in (2, 7) and numbers & {3, 7, 8} and not numbers - _IN_ONNX):
        return "onnx"
    if any(each in head for each in _OF_TENSORFLOW):
        return "saved-model"
    if name.endswith((".mlmodel", ".mlpackage")):
        return "coreml"
    return "protobuf" if len(fields) > 2 or name.endswith((".pb", ".pbtxt")) else ""


_IN_ONNX = {1, 2, 3, 4, 5, 6, 7, 8, 14, 20, 25}
_MOST_FIELDS = 16


def _fields(data: bytes) -> list[tuple[int, int]]:
    """Return number and wire type of the first fields of a protocol buffer, or nothing if it is not one."""
    found: list[tuple[int, int]] = []
    at = 0
    while at < len(data) and len(found) < _MOST_FIELDS:
        tag, at = _varint(data, at)
        number, wire = tag >> 3, tag & 7
        if not 0 < number < 1000 or wire not in (0, 2):
            return []
        value, at = _varint(data, at)
        found.append((number, wire))
        if wire == 2:
            at += value
    return found


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for place, byte in enumerate(data[at : at + 10]):
        value |= (byte & 127) << 7 * place
        if byte < 128:
            return value, at + place + 1
    return 0, len(data)


_TESTS: tuple[Callable[[bytes, bytes, str], str], ...] = (
    _by_magic,
    _by_archive,
    _by_msgpack,
    _by_protobuf,
)
