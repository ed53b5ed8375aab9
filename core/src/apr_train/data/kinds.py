"""What a file is, by its first bytes: text, columns, or what holds no text as it stands. Of a packed file, what is in it."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from attrs import frozen

from apr_train.data.formats.columns import ARROW_MAGIC, PARQUET_MAGIC
from apr_train.data.formats.packed import Packing, open_data, opened, packing_of, unpacked_name
from apr_train.errors import DataError

SNIFFED = 8192
"""Bytes that are looked at."""
_TAR_MAGIC = slice(257, 262)
_ARROW_STREAM = b"\xff\xff\xff\xff"
_TORCH_ENTRY = re.compile(rb"PK\x03\x04.{26}[^/]{1,255}/(?:data\.pkl|\.format_version)", re.DOTALL)
"""The first entry of a zip that torch.save wrote."""


@frozen
class Kind:
    """A kind of file that is no text as it stands."""

    name: str
    """What it is, as after `it is`."""
    unpack: str
    """A command that makes text of it; `{path}` is the file."""
    advice: str = ""
    """What to do where no command helps."""


XZ = Kind("xz-compressed", "xz -dk {path}")
BZIP2 = Kind("bzip2-compressed", "bzip2 -dk {path}")
ZIP = Kind("a zip archive", "unzip {path}")
TAR = Kind("a tar archive", "tar -xf {path}")
PDF = Kind("a PDF", "pdftotext {path}")
UTF_16 = Kind("UTF-16 text", "iconv -f UTF-16 -t UTF-8 {path} > {path}.txt")
UTF_32 = Kind("UTF-32 text", "iconv -f UTF-32 -t UTF-8 {path} > {path}.txt")
LFS_POINTER = Kind("a Git LFS pointer", "git lfs pull")
_NO_PICKLES = "Nothing is unpickled here, for that runs what is in it. Where you trust it, write its texts out as JSON lines."
PICKLE = Kind("a pickle", "", _NO_PICKLES)
TORCH = Kind("a PyTorch file, which holds a pickle", "", _NO_PICKLES)
PARQUET = Kind("a Parquet file", "")
ARROW = Kind("an Arrow file", "")
COLUMNS = (PARQUET, ARROW)
"""The kinds that are read: a document a row."""
PICKLE_SUFFIXES = frozenset({".pkl", ".pickle", ".pt", ".pth", ".ckpt", ".joblib"})
_COLUMN_SUFFIXES = {".parquet": PARQUET, ".arrow": ARROW}

_BEGINNINGS = (
    (b"\xfd7zXZ\0", XZ),
    (b"PK\x03\x04", ZIP),
    (b"PK\x05\x06", ZIP),
    (ARROW_MAGIC + b"\0\0", ARROW),
    (b"%PDF-", PDF),
    (b"\xff\xfe\0\0", UTF_32),
    (b"\0\0\xfe\xff", UTF_32),
    (b"\xff\xfe", UTF_16),
    (b"\xfe\xff", UTF_16),
    (b"version https://git-lfs.github.com/spec/", LFS_POINTER),
    *((bytes((0x80, protocol)), PICKLE) for protocol in range(2, 6)),
)


def kind_of(path: Path) -> tuple[Kind | None, bool]:
    """The kind of a file, or of what is packed in it, None for what may be text; and whether a NUL byte is near its start.

    A packed file that is damaged already there may be text: whoever reads it will say so.

    Raises:
        DataError: when it cannot be opened, or is no regular file.
        OSError: when it cannot be read.
    """
    with open_data(path) as file:
        head = file.read(SNIFFED)
        packing = packing_of(path, head)
        tail = file.read(len(PARQUET_MAGIC)) if head[:4] == PARQUET_MAGIC and file.seek(-4, 2) > 4 else b""
    if packing is not None:
        return _kind_inside(path, packing)
    by_name = _by_name(path)
    if by_name in COLUMNS:
        found = _by_beginning(head)
        return (by_name if found is None else found), True
    kind = PARQUET if tail == PARQUET_MAGIC else _by_beginning(head) or by_name
    return kind, b"\0" in head


def _kind_inside(path: Path, packing: Packing) -> tuple[Kind | None, bool]:
    try:
        with opened(path) as file:
            head = file.read(SNIFFED)
    except DataError:
        return None, False
    again = packing_of(path.with_suffix(""), head)
    kind = Kind(again.name, again.unpack) if again is not None else _by_beginning(head) or _by_name(unpacked_name(path))
    if kind is None:
        return None, b"\0" in head
    unpack = TAR.unpack if kind is TAR else packing.unpack
    return Kind(f"{kind.name}, {packing.name}", unpack, kind.advice), True


def _by_name(path: Path) -> Kind | None:
    suffix = path.suffix.lower()
    return PICKLE if suffix in PICKLE_SUFFIXES else _COLUMN_SUFFIXES.get(suffix)


def _by_beginning(head: bytes) -> Kind | None:
    if head[:3] == b"BZh" and head[4:10] in (b"1AY&SY", b"\x17rE8P\x90"):  # the digits of π, or of its root when empty
        return BZIP2
    if head[_TAR_MAGIC] == b"ustar":
        return TAR
    if head[:4] == _ARROW_STREAM and b"\0" in head[4:8]:
        return ARROW
    if _TORCH_ENTRY.match(head):
        return TORCH
    return next((kind for beginning, kind in _BEGINNINGS if head.startswith(beginning)), None)


def what_to_do(kind: Kind, path: Path) -> str:
    """How text comes out of a file of a kind that is not read."""
    packed_tar = path.suffix == ".tgz" or ".tar" in path.suffixes
    command = TAR.unpack if packed_tar and kind in (XZ, BZIP2) else kind.unpack
    return kind.advice or f"Make text of it: {command.replace('{path}', shlex.quote(str(path)))}"
