"""What a file is, by its first bytes, where that is no text: compressed, an archive, columns, another encoding, a pointer."""

from __future__ import annotations

import shlex
from pathlib import Path

from attrs import frozen

SNIFFED = 8192
"""Bytes that are looked at."""
_TAR_MAGIC = slice(257, 262)
_ARROW_STREAM = b"\xff\xff\xff\xff"
_COLUMNS = """python -c "import {module}; {read}({path!r}).to_json({target!r}{how})\""""


@frozen
class Kind:
    """A kind of file that holds no text as it stands."""

    name: str
    """What it is, as after `it is`."""
    unpack: str
    """A command that makes text of it; `{path}` is the file."""


GZIP = Kind("gzip-compressed", "gzip -dk {path}")
ZSTANDARD = Kind("zstd-compressed", "zstd -dk {path}")
XZ = Kind("xz-compressed", "xz -dk {path}")
BZIP2 = Kind("bzip2-compressed", "bzip2 -dk {path}")
ZIP = Kind("a zip archive", "unzip {path}")
TAR = Kind("a tar archive", "tar -xf {path}")
PARQUET = Kind("a Parquet file", "pandas")
ARROW = Kind("an Arrow file", "datasets")
PDF = Kind("a PDF", "pdftotext {path}")
UTF_16 = Kind("UTF-16 text", "iconv -f UTF-16 -t UTF-8 {path} > {path}.txt")
UTF_32 = Kind("UTF-32 text", "iconv -f UTF-32 -t UTF-8 {path} > {path}.txt")
LFS_POINTER = Kind("a Git LFS pointer", "git lfs pull")

_BEGINNINGS = (
    (b"\x1f\x8b", GZIP),
    (b"\x28\xb5\x2f\xfd", ZSTANDARD),
    (b"\xfd7zXZ\0", XZ),
    (b"PK\x03\x04", ZIP),
    (b"PK\x05\x06", ZIP),
    (b"ARROW1\0\0", ARROW),
    (b"%PDF-", PDF),
    (b"\xff\xfe\0\0", UTF_32),
    (b"\0\0\xfe\xff", UTF_32),
    (b"\xff\xfe", UTF_16),
    (b"\xfe\xff", UTF_16),
    (b"version https://git-lfs.github.com/spec/", LFS_POINTER),
)


def kind_of(path: Path) -> tuple[Kind | None, bool]:
    """The kind of a file, None for what may be text; and whether there is a NUL byte near its start.

    Raises:
        OSError: when it cannot be read.
    """
    with path.open("rb") as file:
        head = file.read(SNIFFED)
        parquet = head[:4] == b"PAR1" and file.seek(-4, 2) > 4 and file.read(4) == b"PAR1"
    return PARQUET if parquet else _by_beginning(head), b"\0" in head


def _by_beginning(head: bytes) -> Kind | None:
    if head[:3] == b"BZh" and head[4:10] in (b"1AY&SY", b"\x17rE8P\x90"):  # the digits of π, or of its root when empty
        return BZIP2
    if head[_TAR_MAGIC] == b"ustar":
        return TAR
    if head[:4] == _ARROW_STREAM and b"\0" in head[4:8]:
        return ARROW
    return next((kind for beginning, kind in _BEGINNINGS if head.startswith(beginning)), None)


def how_to_unpack(kind: Kind, path: Path) -> str:
    """A command that makes text of a file."""
    target = str(path.with_suffix(".jsonl"))
    if kind is PARQUET:
        how = ", orient='records', lines=True"
        return _COLUMNS.format(module="pandas", read="pandas.read_parquet", path=str(path), target=target, how=how)
    if kind is ARROW:
        return _COLUMNS.format(module="datasets", read="datasets.Dataset.from_file", path=str(path), target=target, how="")
    packed_tar = path.suffix == ".tgz" or ".tar" in path.suffixes
    command = TAR.unpack if packed_tar and kind in (GZIP, ZSTANDARD, XZ, BZIP2) else kind.unpack
    return command.replace("{path}", shlex.quote(str(path)))
