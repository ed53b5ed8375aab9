"""UTF-8: bytes that are text, piece by piece, and the error that names the first byte that is none."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from pathlib import Path

from apr_train import rules
from apr_train.errors import DataError

BOM = b"\xef\xbb\xbf"
PIECE = 1 << 16
"""Bytes of a piece of a text, at most."""


class NotUtf8Error(DataError):
    """Bytes that are no text: an error in what the user named, while what a folder happens to hold can be left out."""


def decoded(raw: bytes | bytearray | memoryview, size: int = PIECE) -> Iterator[tuple[int, str]]:
    """Pieces of UTF-8, each with the place where it begins; no character is cut.

    Raises:
        UnicodeDecodeError: for what is no UTF-8; its places count from that of the last piece's end.
    """
    view, begin = memoryview(raw), 0
    while begin < len(view):
        text, used = codecs.utf_8_decode(view[begin : begin + size], "strict", begin + size >= len(view))
        yield begin, text
        begin += used


def require_utf8(raw: bytes | bytearray, path: Path, *, first_line: int) -> None:
    """Refuse bytes that are no UTF-8.

    Raises:
        NotUtf8Error: naming file, line and byte.
    """
    done = 0
    try:
        for begin, text in decoded(raw):
            done = begin + len(text.encode("utf-8"))
    except UnicodeDecodeError as error:
        place = done + error.start
        line = first_line + raw.count(b"\n", 0, place)
        found = f"byte 0x{raw[place]:02x} at byte {place - raw.rfind(10, 0, place)} of the line"
        raise not_utf8(f"{path}:{line}", found) from error


def require_utf8_start(raw: bytes, path: Path) -> None:
    """Refuse the beginning of a text that is no UTF-8; a character that its end cuts is no fault.

    Raises:
        NotUtf8Error: naming file, line and byte.
    """
    try:
        codecs.utf_8_decode(raw, "strict", False)
    except UnicodeDecodeError:
        require_utf8(raw, path, first_line=1)


def not_utf8(where: str, found: str) -> NotUtf8Error:
    """The error about bytes that are no UTF-8."""
    return NotUtf8Error(
        "not UTF-8",
        where=where,
        rule=rules.PREFLIGHT_025,
        found=found,
        hint="Convert the file (iconv -f LATIN1 -t UTF-8), or leave it out with a glob such as 'folder/**/*.py'.",
    )
