"""Documents: the texts in files, one a file, or one a line in JSONL."""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from attrs import evolve, field, frozen

from apr_train.errors import DataError

JSONL_SUFFIXES = frozenset({".jsonl", ".ndjson"})
TEXT_FIELDS = ("text", "content")
_BOM = b"\xef\xbb\xbf"
PIECE = 1 << 16
"""Bytes of a piece of a text, at most."""


class NotUtf8Error(DataError):
    """Bytes that are no text: an error in what the user named, while what a folder happens to hold can be left out."""


def _unwatched(count: int) -> None:
    """Nobody asked how much has been read."""


def _utf8(text: str | bytes | memoryview) -> bytes | memoryview:
    return text.encode("utf-8") if isinstance(text, str) else text


@frozen
class Document:
    """One text that belongs together, held as its bytes: as a `str` it may be four times as large."""

    source: str
    """Where it is: a path, or `path:line` for JSONL."""
    utf8: bytes | memoryview = field(repr=False, converter=_utf8)
    """All of it, in UTF-8, newlines as in the file, without a byte-order mark. A `str` is taken, too."""

    @property
    def text(self) -> str:
        """All of it as one string: for what needs the whole at once, and has small documents."""
        return str(self.utf8, "utf-8")

    def pieces(self, size: int = PIECE) -> Iterator[str]:
        """Consecutive parts of the text, of at most `size` bytes each."""
        yield from (text for _, text in _decoded(self.utf8, size))

    def part(self, begin: int, end: int | None = None) -> Document:
        """The text between two places, told in bytes, without a copy."""
        return evolve(self, utf8=memoryview(self.utf8)[begin:end])

    def is_blank(self) -> bool:
        """Whether there is nothing but white space."""
        return all(piece.isspace() for piece in self.pieces())


def _decoded(raw: bytes | memoryview, size: int = PIECE) -> Iterator[tuple[int, str]]:
    """Pieces of UTF-8, each with the place where it begins; no character is cut.

    Raises:
        UnicodeDecodeError: for what is no UTF-8; its places count from that of the last piece's end.
    """
    view, begin = memoryview(raw), 0
    while begin < len(view):
        text, used = codecs.utf_8_decode(view[begin : begin + size], "strict", begin + size >= len(view))
        yield begin, text
        begin += used


def read_documents(files: Iterable[Path], *, done: Callable[[int], None] = _unwatched) -> Iterator[Document]:
    """All documents that have more than white space in them, one file in memory at a time.

    Args:
        files: texts, or JSONL by their suffix.
        done: told of the bytes read.

    Raises:
        NotUtf8Error: naming file and line; of a text before any of it was given.
        DataError: naming file and line, for what is not JSON, or has no text field, and for a file that cannot be read.
    """
    for path in files:
        try:
            with path.open("rb") as file:
                documents = _read_jsonl(path, file, done) if is_jsonl(path) else _read_text(path, file, done)
                yield from (document for document in documents if not document.is_blank())
        except OSError as error:
            raise DataError("cannot be read", where=path, found=error.strerror) from error


def is_jsonl(path: Path) -> bool:
    """Whether a file has a document a line."""
    return path.suffix.lower() in JSONL_SUFFIXES


def _read_text(path: Path, file: BinaryIO, done: Callable[[int], None]) -> Iterator[Document]:
    raw = file.read()
    done(len(raw))
    _require_utf8(raw, path, first_line=1)
    yield Document(str(path), memoryview(raw)[len(_BOM) :] if raw.startswith(_BOM) else raw)


def _read_jsonl(path: Path, file: BinaryIO, done: Callable[[int], None]) -> Iterator[Document]:
    for number, line in enumerate(file, start=1):
        done(len(line))
        _require_utf8(line, path, first_line=number)
        text = str(line.removeprefix(_BOM), "utf-8")
        if text.strip():
            where = f"{path}:{number}"
            yield Document(where, _text_of(_parse(text, where), where))


def _require_utf8(raw: bytes, path: Path, *, first_line: int) -> None:
    done = 0
    try:
        for begin, text in _decoded(raw):
            done = begin + len(text.encode("utf-8"))
    except UnicodeDecodeError as error:
        place = done + error.start
        line = first_line + raw.count(b"\n", 0, place)
        column = place - raw.rfind(b"\n", 0, place)
        raise NotUtf8Error(
            "not UTF-8",
            where=f"{path}:{line}",
            found=f"byte 0x{raw[place]:02x} at byte {column} of the line",
            hint="Convert the file, or leave it out with a glob such as 'folder/**/*.py'.",
        ) from error


def _parse(line: str, where: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError("not JSON", where=where, expected="one JSON object a line", found=error) from error


def _text_of(value: Any, where: str) -> str:
    expected = " or ".join(f'"{name}"' for name in TEXT_FIELDS) + " with a string"
    if not isinstance(value, dict):
        raise DataError("not a JSON object", where=where, expected=f"an object with {expected}", found=type(value).__name__)
    for name in TEXT_FIELDS:
        if isinstance(value.get(name), str):
            return _without_surrogates(value[name], where)
    found = ", ".join(sorted(value)[:8]) or "no fields"
    raise DataError("no text in this line", where=where, expected=expected, found=found)


def _without_surrogates(text: str, where: str) -> str:
    """JSON can escape half of a UTF-16 pair, which no encoding of text can hold."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        found = f"\\u{ord(text[error.start]):04x}"
        raise DataError("half of a surrogate pair", where=where, expected="Unicode text", found=found) from error
    return text
