"""Documents: the texts in files. One a file, or one a line in JSONL, or one a record of a JSON array.

A `.json` is told by its content: an array whose records are texts, or JSON lines under that name, is read as such; any
other, such as a config, is one text as it stands. Up to `JUDGED` bytes all of its records decide, beyond them the first,
however long it is.
"""

from __future__ import annotations

import codecs
import json
import re
import shlex
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any, BinaryIO, Literal, Protocol

from attrs import evolve, field, frozen

from apr_train import rules
from apr_train.errors import DataError

Form = Literal["text", "lines", "array"]
"""How documents lie in a file: one text, a JSON object a line, or a JSON array of objects and strings."""
JSONL_SUFFIXES = frozenset({".jsonl", ".ndjson"})
JSON_SUFFIX = ".json"
TEXT_FIELDS = ("text", "content")
JUDGED = 1 << 22
"""Bytes of a `.json` that are looked at to tell its form."""
LARGEST_RECORD = 1 << 28
"""Characters of one record of an array."""
_READ = 1 << 20
_BOM = b"\xef\xbb\xbf"
_NO_SPACE = re.compile(r"[^ \t\n\r]")
_WORDS = {dict: "an object", list: "an array", str: "a string", bool: "true or false", type(None): "null"}
_EXPECTED = " or ".join(f'"{name}"' for name in TEXT_FIELDS) + " with a string"
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
    """Where it is: a path, `path:line` for JSONL, `path[record]` for an array, whose first record is 0."""
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


class Take(Protocol):
    """What is taken of each record as a document."""

    @property
    def whole_texts(self) -> bool:
        """Whether a file that holds no records is a document as it stands."""
        ...

    @property
    def fingerprint(self) -> str:
        """What is taken, by name."""
        ...

    def __call__(self, record: Any, where: str, command: str) -> str | bytes:
        """The document of a record.

        Args:
            record: a value of JSON, as a rule an object.
            where: the record's place, for a message.
            command: how a record is written out with another field's text, NAME in place of the field.

        Raises:
            DataError: naming `where`, for a record that has none.
        """
        ...


@frozen
class TextRecords:
    """The text of a record: what it has in a field, or, in an array, the string that it is."""

    field: str | None = None
    """None: the first of `TEXT_FIELDS` that holds a string."""
    whole_texts: bool = True

    @property
    def fingerprint(self) -> str:
        """`text`, and the field."""
        return "text" if self.field is None else f"text:{self.field}"

    def __call__(self, record: Any, where: str, command: str) -> str:
        """The text of a record."""
        return _without_surrogates(record, where) if isinstance(record, str) else _text_of(record, where, command)


TEXTS = TextRecords()
"""What is taken where the user names no field."""


def read_documents(
    files: Iterable[Path], take: Take = TEXTS, *, done: Callable[[int], None] = _unwatched
) -> Iterator[Document]:
    """All documents that have more than white space in them, one file in memory at a time, of an array one record.

    Args:
        files: texts, JSONL by their suffix, or `.json`.
        done: told of the bytes read.

    Raises:
        NotUtf8Error: naming file and line; of a text before any of it was given.
        DataError: naming file and line or record, for what is not JSON, or has no text, and for a file that cannot be read.
    """
    for path in files:
        with _opened(path) as file:
            documents = _READERS[form_of(path, file)](path, file, done)
            yield from (document for document in documents if not document.is_blank())


def is_jsonl(path: Path) -> bool:
    """Whether a file has a document a line, by its name."""
    return path.suffix.lower() in JSONL_SUFFIXES


def is_json(path: Path) -> bool:
    """Whether a file's content decides how its documents lie in it."""
    return path.suffix.lower() == JSON_SUFFIX


def file_form(path: Path) -> Form:
    """How documents lie in a file.

    Raises:
        DataError: when it cannot be read.
    """
    with _opened(path) as file:
        return form_of(path, file)


def form_of(path: Path, file: BinaryIO) -> Form:
    """How documents lie in an open file, which is left at its start."""
    if is_jsonl(path):
        return "lines"
    if not is_json(path):
        return "text"
    head = _head(file)
    whole = not file.read(1)
    file.seek(0)
    form = _shape(head)
    return form if all(_is_record(value, form) for value in _records(form, head, whole=whole)) else "text"


def require_records(path: Path) -> None:
    """Refuse a `.json` that is a list of something, but of no texts: for one that the user named.

    Raises:
        DataError: naming the first record that has no text, and what it has.
    """
    with _opened(path) as file:
        form = _shape(_head(file))
        if form == "text":
            return
        file.seek(0)
        for _ in _READERS[form](path, file, _unwatched):
            pass


def require_text_at_start(path: Path, size: int) -> None:
    """Refuse a text whose first `size` bytes are no UTF-8.

    Raises:
        NotUtf8Error: naming file and line.
        DataError: when it cannot be read.
    """
    with _opened(path) as file:
        raw = file.read(size)
    try:
        codecs.utf_8_decode(raw, "strict", False)  # a character that the end cuts is no fault
    except UnicodeDecodeError:
        _require_utf8(raw, path, first_line=1)


def _head(file: BinaryIO) -> bytes:
    """The beginning of a `.json`: `JUDGED` bytes, and as many more as its first record needs, up to `LARGEST_RECORD`."""
    head = file.read(JUDGED)
    while len(head) < LARGEST_RECORD and _ends_in_first_record(head):
        more = file.read(min(len(head), LARGEST_RECORD - len(head)))
        if not more:
            break
        head += more
    return head


def _ends_in_first_record(head: bytes) -> bool:
    """Whether the form cannot be told yet: of an array the first record goes on, of lines there is no second one."""
    text = head.removeprefix(_BOM).lstrip()
    if text[:1] == b"{":
        return not text.partition(b"\n")[2].strip()
    if text[:1] != b"[" or text[1:].lstrip()[:1] not in (b"{", b'"', b""):
        return False
    try:
        _first_of_array(head)
    except RecursionError:
        return False
    except ValueError:
        return True
    return False


def _first_of_array(head: bytes) -> Any:
    """The first record of an array, by the beginning of its file.

    Raises:
        ValueError: when that is no JSON, or not all of the record.
    """
    text = head.removeprefix(_BOM).decode("utf-8", "ignore").lstrip()
    return json.JSONDecoder().raw_decode(text, 1 + len(text[1:]) - len(text[1:].lstrip()))[0]


def _shape(head: bytes) -> Form:
    """An array, more than one object a line, or something else, by the beginning of a file."""
    text = head.removeprefix(_BOM).lstrip()
    if text[:1] == b"[":
        return "array"
    first, _, rest = text.partition(b"\n")
    try:
        value = json.loads(first) if text[:1] == b"{" else None
    except (ValueError, RecursionError):
        return "text"
    several = rest.lstrip()[:1] == b"{" or (not rest.strip() and _is_record(value, "lines"))
    return "lines" if isinstance(value, dict) and several else "text"


def _records(form: Form, head: bytes, *, whole: bool) -> Iterator[Any]:
    """The records at the beginning of a file, all of them if it is whole; None, which is no record, where it is not JSON."""
    try:
        if form == "array" and whole:
            yield from _list_of(json.loads(head.removeprefix(_BOM)))
        elif form == "array":
            yield _first_of_array(head)
        elif form == "lines":
            lines = head.removeprefix(_BOM).split(b"\n")
            yield from (json.loads(line) for line in (lines if whole else lines[:-1]) if line.strip())
    except (ValueError, RecursionError):
        yield None


def _list_of(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [None]


def _is_record(value: Any, form: Form) -> bool:
    if isinstance(value, dict):
        return any(isinstance(value.get(name), str) for name in TEXT_FIELDS)
    return form == "array" and isinstance(value, str)


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    try:
        with path.open("rb") as file:
            yield file
    except OSError as error:
        raise DataError("cannot be read", where=path, rule=rules.PREFLIGHT_025, found=error.strerror) from error


def _read_text(path: Path, file: BinaryIO, done: Callable[[int], None]) -> Iterator[Document]:
    raw = file.read()
    done(len(raw))
    _require_utf8(raw, path, first_line=1)
    yield Document(str(path), memoryview(raw)[len(_BOM) :] if raw.startswith(_BOM) else raw)


def _read_lines(path: Path, file: BinaryIO, done: Callable[[int], None]) -> Iterator[Document]:
    for number, line in enumerate(file, start=1):
        done(len(line))
        _require_utf8(line, path, first_line=number)
        text = str(line.removeprefix(_BOM), "utf-8")
        if text.strip():
            where = f"{path}:{number}"
            yield Document(where, _text_of(_parse(text, where), where, f"jq -c '{{text: .NAME}}' {shlex.quote(str(path))}"))


def _read_array(path: Path, file: BinaryIO, done: Callable[[int], None]) -> Iterator[Document]:
    for number, value in enumerate(_array_items(path, file, done)):
        where = f"{path}[{number}]"
        command = f"jq -c '.[] | {{text: .NAME}}' {shlex.quote(str(path))}"
        text = _without_surrogates(value, where) if isinstance(value, str) else _text_of(value, where, command)
        yield Document(where, text)


_READERS = {"text": _read_text, "lines": _read_lines, "array": _read_array}


def _require_utf8(raw: bytes, path: Path, *, first_line: int) -> None:
    done = 0
    try:
        for begin, text in _decoded(raw):
            done = begin + len(text.encode("utf-8"))
    except UnicodeDecodeError as error:
        place = done + error.start
        line = first_line + raw.count(b"\n", 0, place)
        found = f"byte 0x{raw[place]:02x} at byte {place - raw.rfind(10, 0, place)} of the line"
        raise _not_utf8(f"{path}:{line}", found) from error


def _not_utf8(where: str, found: str) -> NotUtf8Error:
    return NotUtf8Error(
        "not UTF-8",
        where=where,
        rule=rules.PREFLIGHT_025,
        found=found,
        hint="Convert the file (iconv -f LATIN1 -t UTF-8), or leave it out with a glob such as 'folder/**/*.py'.",
    )


def _parse(line: str, where: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise _not_json(where, "one JSON object a line", error) from error


def _not_json(where: str, expected: str, error: object) -> DataError:
    return DataError("not JSON", where=where, rule=rules.PREFLIGHT_025, expected=expected, found=error)


class _Window:
    """The characters of a file that are in memory, and the place in them."""

    def __init__(self, path: Path, file: BinaryIO, done: Callable[[int], None]) -> None:
        self._path, self._file, self._done = path, file, done
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self._read = 0
        self.text, self.place = "", 0

    def more(self) -> bool:
        """Drop what lies before the place, and read on, as much again as is left; False at the end."""
        rest = self.text[self.place :]
        raw = self._file.read(max(_READ, len(rest)))
        try:
            self.text, self.place = rest + self._decoder.decode(raw, final=not raw), 0
        except UnicodeDecodeError as error:
            at = self._read - (len(error.object) - len(raw)) + error.start
            raise _not_utf8(str(self._path), f"byte 0x{error.object[error.start]:02x} at byte {at} of the file") from error
        self._read += len(raw)
        self._done(len(raw))
        return bool(raw)

    def next(self) -> str:
        """The next character that is no white space, where the place then is; empty at the end."""
        while True:
            found = _NO_SPACE.search(self.text, self.place)
            if found is not None:
                self.place = found.start()
                return found.group()
            self.place = len(self.text)
            if not self.more():
                return ""


def _array_items(path: Path, file: BinaryIO, done: Callable[[int], None]) -> Iterator[Any]:
    """The items of a JSON array, one in memory at a time.

    Raises:
        DataError: for what is no JSON array, and for an item of more than `LARGEST_RECORD` characters.
    """
    window = _Window(path, file, done)
    window.next()
    window.place += 1  # the bracket, which told the form
    between = "," if window.next() != "]" else "]"
    for number in count():
        if between == "]":
            break
        yield _item(window, f"{path}[{number}]")
        between = window.next()
        if between not in (",", "]"):
            raise _not_json(
                f"{path}[{number}]", "a comma or the end of the array behind it", repr(window.text[window.place :][:20])
            )
        window.place += between == ","
    window.place += 1
    if window.next():
        raise _not_json(str(path), "nothing behind the array", repr(window.text[window.place :][:20]))


def _item(window: _Window, where: str) -> Any:
    """The value at the window's place, which moves behind it; the window grows until it has all of it."""
    decoder = json.JSONDecoder()
    window.next()
    while True:
        try:
            value, window.place = decoder.raw_decode(window.text, window.place)
        except (ValueError, RecursionError) as error:
            too_long = len(window.text) - window.place > LARGEST_RECORD
            if too_long or isinstance(error, RecursionError) or not window.more():
                raise _not_json(where, "an object, or a string", error) from error
        else:
            return value


def _text_of(value: Any, where: str, command: str) -> str:
    if not isinstance(value, dict):
        expected = f"an object with {_EXPECTED}"
        raise DataError("not a JSON object", where=where, rule=rules.PREFLIGHT_025, expected=expected, found=_word(value))
    for name in TEXT_FIELDS:
        if isinstance(value.get(name), str):
            return _without_surrogates(value[name], where)
    raise _no_text(value, where, command)


def _no_text(value: dict[str, Any], where: str, command: str) -> DataError:
    """A record whose text is no string, or that has none: what it has, and how to give it one."""
    present = next((name for name in TEXT_FIELDS if name in value), None)
    if present is not None:
        word = _word(value[present])
        skip = f"Leave such records out: jq -c 'select(.{present} != null)'." if value[present] is None else None
        return DataError(
            "not a text", where=where, field=present, rule=rules.PREFLIGHT_025, expected="a string", found=word, hint=skip
        )
    strings = {name: len(item) for name, item in value.items() if isinstance(item, str)}
    longest = max(strings, key=lambda name: strings[name], default=None)
    hint = "Write each record out as one text, in a field of that name."
    if longest is not None and longest.isidentifier():
        hint = f"If {longest!r} is the text: {command.replace('NAME', longest)} > texts.jsonl"
    found = f"the fields {', '.join(sorted(value)[:8])}" if value else "no fields"
    return DataError(
        "no text in this record", where=where, rule=rules.PREFLIGHT_025, expected=_EXPECTED, found=found, hint=hint
    )


def _word(value: Any) -> str:
    """The JSON name of a value's type."""
    return _WORDS.get(type(value), "a number")


def _without_surrogates(text: str, where: str) -> str:
    """JSON can escape half of a UTF-16 pair, which no encoding of text can hold."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        found = f"\\u{ord(text[error.start]):04x}"
        raise DataError(
            "half of a surrogate pair", where=where, rule=rules.PREFLIGHT_025, expected="Unicode text", found=found
        ) from error
    return text
