"""Say what a file that is not a checkpoint really is, and what to do about it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from pytest_ckptcompat.core.escape import escape
from pytest_ckptcompat.files.folders import names_in

from .foreign import foreign, foreign_folder

if TYPE_CHECKING:
    from pytest_ckptcompat.files.file import File

_HEAD = 4096
_TAIL = 64

_SAVE = "save model.state_dict() with torch.save or safetensors"

_BEGINNINGS = (
    (rb"version https://git-lfs\.github\.com/", "a Git LFS pointer, not the file itself: run 'git lfs pull'"),
    (rb"\x1f\x8b", "gzip-compressed: unpack it with gunzip first"),
    (rb"BZh[1-9]", "bzip2-compressed: unpack it with bunzip2 first"),
    (rb"\xfd7zXZ\x00", "xz-compressed: unpack it with unxz first"),
    (rb"\x28\xb5\x2f\xfd", "zstd-compressed: unpack it with unzstd first"),
    (rb"7z\xbc\xaf\x27\x1c", "a 7z archive: unpack it first"),
    (rb"Rar!\x1a\x07", "a RAR archive: unpack it first"),
    (rb"\x04\x22\x4d\x18", "lz4-compressed: unpack it with unlz4 first"),
    (rb"x[\x01\x5e\x9c\xda]", "compressed by zlib: unpack it first"),
    (rb"\x7fELF", "a program or a library, not a checkpoint"),
    (rb"PAR1", "a Parquet table, not a checkpoint"),
    (rb"\x89PNG|\xff\xd8\xff|GIF8", "an image, not a checkpoint"),
    (rb"%PDF-", "a PDF document, not a checkpoint"),
    (rb"SQLite format 3", "a SQLite database, not a checkpoint"),
    (rb"\xef\xbb\xbf", "a text file (it begins with a byte order mark)"),
)
_WEB_PAGE = re.compile(rb"\s*(<!doctype html|<html|<head|<body)", re.IGNORECASE)
_XML = re.compile(rb"\s*(<\?xml|<error)", re.IGNORECASE)
_PICKLE = re.compile(rb"\x80[\x02-\x05]")
_SHORT = 200
"""The size in bytes up to which a text is shown, such as "Entry not found" saved instead of a file."""

_CONFLICT = re.compile(rb"^<{7} ", re.MULTILINE)
_JSON = re.compile(rb"\s*(\{|\[(?!\[*\s*[A-Za-z_.-]+\s*\]))")  # and no heading of TOML or an ini file
_AGAIN = "write it again with 'ckptcompat lock'"

_TAR_NAMES = (b"sys_info", b"pickle", b"tensors", b"storages")


def what_it_is(file: File) -> str:
    """Return the end of a sentence about a file in an unknown format: ``<path> is ...``.

    Its content decides. Its name only shows what it should be.
    """
    size, name = file.size, file.path
    head = file.read_at(0, min(size, _HEAD))
    tail = file.read_at(max(0, size - _TAIL), min(_TAIL, size))
    if size == 0:
        return "empty (0 bytes): the download or the copy failed, or the disk was full; fetch it again"
    if _CONFLICT.search(head) and b"\0" not in head:
        return damaged_lock("", head) if name.endswith(".ckpt.json") else f"a text file that {_merged(head)}"
    if _WEB_PAGE.match(head):
        return "a web page (HTML), not a checkpoint: the download got an error or a login; fetch it again"
    if told := foreign(head, tail, name):
        return told
    if _XML.match(head):
        return _markup(head)
    for pattern, told in _BEGINNINGS:
        if re.match(pattern, head):
            return told
    if _JSON.match(head):
        return _json(name, head if size <= _SHORT else b"")
    if head[257:262] == b"ustar" or head.split(b"\0", 1)[0] in _TAR_NAMES:
        return _tar(head)
    if head.startswith(b"PK"):
        return _zip(head)
    if b"torch.distributed.checkpoint" in head:
        return "the .metadata of a distributed checkpoint: name the folder that holds it"
    if _PICKLE.match(head) or head[:1] in (b"(", b"c"):
        return _pickle(head)
    if not head.strip(b"\0"):
        return "all zeros where its header should be: it was never written, or not to its end; fetch it again"
    if not head.strip():
        return "blank, not a checkpoint: fetch the file again"
    if text := _text(head, short=size <= _SHORT):
        if size > _SHORT:
            return "a text file, not a checkpoint"
        return f'a text of {size} bytes, not a checkpoint: "{escape(text, 100)}". Fetch the file again'
    return "in no known format: neither PyTorch (.pth, .pt, .ckpt) nor safetensors nor a sharded checkpoint"


def what_lies_in(folder: str) -> str:
    """Return the end of a sentence about a folder without a checkpoint: ``<path> is a folder ...``."""
    names = sorted(names_in(folder))
    if told := foreign_folder(names):
        return f"that holds {told}"
    shown = ", ".join(escape(name, 60) for name in names[:8])
    listed = f"it has {shown}{', ...' if len(names) > 8 else ''}" if names else "it is empty"
    return f"that holds no checkpoint: {listed}. Name a file, or the folder that has the weights"


def _markup(head: bytes) -> str:
    """Describe an XML document, which is usually an error message of a storage service."""
    code = re.search(rb"<(?:Code|Message)>([^<]{1,100})<", head)
    told = f" that says {escape(code[1].decode(errors='replace'), 100)}" if code else ""
    return f"an XML document{told}, not a checkpoint: the download may have got an error; fetch it again"


def _text(head: bytes, *, short: bool) -> str:
    """Decode a text, or return ``""``. Other encodings than UTF-8 are tried only if it is short."""
    encodings = ["utf-8", *(["utf-16"] if head[:2] in (b"\xff\xfe", b"\xfe\xff") else []), "latin-1"]
    for encoding in encodings if short else encodings[:1]:
        try:
            text = head.decode(encoding).strip().strip("\0")
        except UnicodeDecodeError as error:
            if short or error.start < len(head) - 4:  # not cut within a character at the end
                continue
            text = head[: error.start].decode()
        foreign_letters = sum(not each.isascii() for each in text) if encoding == "latin-1" else 0
        if all(each.isprintable() or each in _IN_TEXTS for each in text) and 2 * foreign_letters <= len(text):
            return text
    return ""


_IN_TEXTS = "\t\n\r\x1b"
"""What texts hold beside what is printed; terminals are coloured by escape sequences."""


def _pickle(head: bytes) -> str:
    start = "a plain Python pickle, which torch.load does not read"
    if b"torch._utils" in head or b"torch.nn" in head:
        return f"{start}: its tensors are PyTorch's own; if you trust it, open it with pickle, and {_SAVE}"
    if b"multiarray" in head:
        return (
            f"{start}: if you trust it, convert its NumPy arrays, "
            "torch.save({key: torch.from_numpy(array) for key, array in pickle.load(file).items()}, ...)"
        )
    return f"{start}: {_SAVE}"


def damaged_lock(why: str, data: bytes) -> str:
    """Describe a lock file that can't be read: git's conflict markers in it, or else `why`."""
    if _CONFLICT.search(data):
        return f"a damaged lock file: it {_merged(data)}, or {_AGAIN}"
    return f"a damaged lock file: {why}; {_AGAIN}"


def _merged(data: bytes) -> str:
    found = _CONFLICT.search(data)
    assert found
    line = data.count(b"\n", 0, found.start()) + 1
    return f"has conflict markers of git at line {line}: resolve them"


def _json(name: str, text: bytes) -> str:
    if name.endswith(".ckpt.json"):
        return damaged_lock("it does not begin as lock files do", b"")
    if name.endswith(".index.json"):
        return "JSON text, but not the index of a sharded checkpoint: it has no 'weight_map'; copy it again"
    shown = f" (it is {escape(text.decode(errors='replace').strip(), 100)})" if text else ""
    return f"JSON text, not a checkpoint or a lock file: name the file that holds the weights{shown}"


def _tar(head: bytes) -> str:
    name = head.split(b"\0", 1)[0].rpartition(b"/")[2]
    if name in _TAR_NAMES:
        return (
            "in the tar layout of torch before 0.4, which is not read: load it with "
            "torch.load(path, weights_only=True) and save it again"
        )
    return "a tar archive: unpack it and name the checkpoint inside"


def _zip(head: bytes) -> str:
    if head.startswith((b"PK\x05\x06", b"PK\x03\x04")):
        return (
            "a zip archive, but not one of torch.save (it has no data.pkl): unpack it and name the checkpoint"
        )
    return "in no known format, though it begins like a zip archive"
