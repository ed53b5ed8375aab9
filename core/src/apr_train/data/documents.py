"""Documents: the texts in files. One a file, or one a record of data: a line of JSON, an item of an array, a row of columns.

A file is looked at as it is unpacked: what `x.jsonl.gz` holds is read as `x.jsonl`. How a file is read is decided by its
content (Parquet, Arrow, what a `.json` holds) and by its name (JSON lines); `formats/` reads it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, Protocol

from attrs import evolve, field, frozen

from apr_train import rules
from apr_train.data.conversations import AS_CONVERSATION, has_conversation
from apr_train.data.formats.columns import read_arrow, read_parquet
from apr_train.data.formats.packed import open_data, opened, packing_of, read_whole, unpacked_name, unreadable, unwatched
from apr_train.data.formats.records import JsonForm, Record, json_form, json_shape, read_array, read_lines, word_of
from apr_train.data.formats.utf8 import BOM, PIECE, decoded, not_utf8, require_utf8, require_utf8_start
from apr_train.data.kinds import ARROW, COLUMNS, PARQUET, kind_of
from apr_train.errors import DataError
from apr_train.suggest import closest

Form = Literal["text", "lines", "array", "parquet", "arrow"]
"""How documents lie in a file: one text, a JSON object a line, a JSON array of objects and strings, or columns."""
JSONL_SUFFIXES = frozenset({".jsonl", ".ndjson"})
JSON_SUFFIX = ".json"
TEXT_FIELDS = ("text", "content")


class NoRecordsError(DataError):
    """A file without records where only records are learnt: an error in what the user named."""


class _BrokenTextError(DataError):
    """A record that has a text, which is no Unicode."""


def _utf8(text: str | bytes | bytearray | memoryview) -> bytes | memoryview:
    if isinstance(text, bytearray):
        return memoryview(text)
    return text.encode("utf-8") if isinstance(text, str) else text


@frozen
class Document:
    """One text that belongs together, held as its bytes: as a `str` it may be four times as large."""

    source: str
    """Where it is: a path, `path:line` for JSONL, `path[record]` for arrays and columns, whose first record is 0."""
    utf8: bytes | memoryview = field(repr=False, converter=_utf8)
    """All of it, in UTF-8, newlines as in the file, without a byte-order mark. A `str` is taken, too."""

    @property
    def text(self) -> str:
        """All of it as one string: for what needs the whole at once, and has small documents."""
        return str(self.utf8, "utf-8")

    def pieces(self, size: int = PIECE) -> Iterator[str]:
        """Consecutive parts of the text, of at most `size` bytes each."""
        yield from (text for _, text in decoded(self.utf8, size))

    def part(self, begin: int, end: int | None = None) -> Document:
        """The text between two places, told in bytes, without a copy."""
        return evolve(self, utf8=memoryview(self.utf8)[begin:end])

    def is_blank(self) -> bool:
        """Whether there is nothing but white space."""
        return all(piece.isspace() for piece in self.pieces())


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

    @property
    def columns(self) -> frozenset[str] | None:
        """The fields that are looked at, so that nothing else is read of a file of columns; None for all."""
        ...

    def __call__(self, record: Any, where: str) -> str | bytes:
        """The document of a record.

        Args:
            record: a value of JSON, as a rule an object.
            where: the record's place, for a message.

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

    @property
    def columns(self) -> frozenset[str]:
        """The fields that may hold the text."""
        return frozenset(self._fields)

    @property
    def _fields(self) -> tuple[str, ...]:
        return TEXT_FIELDS if self.field is None else (self.field,)

    @property
    def _expected(self) -> str:
        return " or ".join(f'"{name}"' for name in self._fields) + " with a string"

    def __call__(self, record: Any, where: str) -> str | bytes:
        """The text of a record."""
        if isinstance(record, str) and self.field is None:
            return _without_surrogates(record, where)
        if not isinstance(record, dict):
            found, expected = word_of(record), f"an object with {self._expected}"
            raise DataError("not a JSON object", where=where, rule=rules.PREFLIGHT_025, expected=expected, found=found)
        for name in self._fields:
            if isinstance(record.get(name), str):
                return _without_surrogates(record[name], where)
            if isinstance(record.get(name), bytes):
                return _checked_bytes(record[name], where)
        raise self._no_text(record, where)

    def _no_text(self, record: dict[str, Any], where: str) -> DataError:
        """A record whose text is no string, or that has none: what it has, and which field may be meant."""
        present = next((name for name in self._fields if name in record), None)
        if present is not None:
            return _no_string(record[present], present, where)
        likely = self._likely(record)
        hint = f"If {likely!r} is the text: --text-field {likely}" if likely else "--text-field names another field."
        return DataError(
            "no text in this record",
            where=where,
            rule=rules.PREFLIGHT_025,
            expected=self._expected,
            found=f"the fields {', '.join(sorted(record)[:8])}" if record else "no fields",
            hint=AS_CONVERSATION if has_conversation(record) else hint,
        )

    def _likely(self, record: dict[str, Any]) -> str | None:
        """The field that is probably meant: spelt nearly so, or the longest string."""
        strings = {name: len(item) for name, item in record.items() if isinstance(item, str)}
        near = closest(self.field, list(strings)) if self.field else None
        longest = max(strings, key=lambda name: strings[name], default=None)
        return near or (longest if longest is not None and longest.isidentifier() else None)


TEXTS = TextRecords()
"""What is taken where the user names no field."""


def _no_string(value: Any, name: str, where: str) -> DataError:
    hint = f"Leave such records out, such as with jq -c 'select(.{name} != null)'." if value is None else None
    return DataError(
        "not a text",
        where=where,
        field=name,
        rule=rules.PREFLIGHT_025,
        expected="a string",
        found=word_of(value),
        hint=hint,
    )


def _without_surrogates(text: str, where: str) -> str:
    """JSON can escape half of a UTF-16 pair, which no encoding of text can hold."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        found = f"\\u{ord(text[error.start]):04x}"
        raise _BrokenTextError(
            "half of a surrogate pair", where=where, rule=rules.PREFLIGHT_025, expected="Unicode text", found=found
        ) from error
    return text


def _checked_bytes(raw: bytes, where: str) -> bytes:
    """Columns may hold text as bytes."""
    try:
        for _ in decoded(raw):
            pass
    except UnicodeDecodeError as error:
        raise not_utf8(where, f"byte 0x{error.object[error.start]:02x}") from error
    return raw


def read_documents(files: Iterable[Path], take: Take = TEXTS, *, done: Callable[[int], None] = unwatched) -> Iterator[Document]:
    """All documents that have more than white space in them; in memory is one text, one record, or one batch of columns.

    Args:
        files: texts, JSONL by their suffix, `.json`, Parquet and Arrow; texts and JSON also packed by gzip or zstd.
        take: what is taken of each record.
        done: told of the bytes read, as they lie in the file.

    Raises:
        NotUtf8Error: naming file and line; of a text before any of it was given.
        NoRecordsError: for a text where only records are taken.
        DataError: naming file and line or record, for what is not JSON, or has no text, and for a file that cannot be read.
    """
    for path in files:
        form = file_form(path, take)
        documents = _read_text(path, take, done) if form == "text" else _read_records(form, path, take, done)
        yield from (document for document in documents if not document.is_blank())


def _read_text(path: Path, take: Take, done: Callable[[int], None]) -> Iterator[Document]:
    if not take.whole_texts:
        raise NoRecordsError(
            "no records in it",
            where=path,
            rule=rules.PREFLIGHT_025,
            expected="JSON lines, a JSON array of records, Parquet or Arrow",
            found="a text",
        )
    with opened(path, done) as file:
        raw = read_whole(path, file)
    require_utf8(raw, path, first_line=1)
    yield Document(str(path), memoryview(raw)[len(BOM) :] if raw.startswith(BOM) else raw)


def _read_records(form: Form, path: Path, take: Take, done: Callable[[int], None]) -> Iterator[Document]:
    for record, where in _records(form, path, take, done):
        yield Document(where, take(record, where))


def _records(form: Form, path: Path, take: Take, done: Callable[[int], None]) -> Iterator[Record]:
    if form == "parquet":
        return read_parquet(path, take.columns, done)
    if form == "arrow":
        return read_arrow(path, take.columns, done)
    return read_lines(path, done) if form == "lines" else read_array(path, done)


def is_jsonl(path: Path) -> bool:
    """Whether a file has a document a line, by its name."""
    return unpacked_name(path).suffix.lower() in JSONL_SUFFIXES


def is_packed(path: Path) -> bool:
    """Whether a file holds more text than it has bytes, as a rule: packed, or columns.

    Raises:
        DataError: when it cannot be opened, or is no regular file.
        OSError: when it cannot be read.
    """
    with open_data(path) as file:
        head = file.read(4)
    return packing_of(path, head) is not None or kind_of(path)[0] in COLUMNS


def is_json(path: Path) -> bool:
    """Whether a file's content decides how its documents lie in it."""
    return unpacked_name(path).suffix.lower() == JSON_SUFFIX


def file_form(path: Path, take: Take = TEXTS) -> Form:
    """How documents lie in a file.

    Raises:
        DataError: when it cannot be read.
    """
    columns = _columns_of(path)
    if columns is not None:
        return columns
    if is_jsonl(path):
        return "lines"
    return json_form(path, _accepts(take)) if is_json(path) else "text"


def _columns_of(path: Path) -> Form | None:
    try:
        kind, _ = kind_of(path)
    except OSError as error:
        raise unreadable(error, path) from error
    forms: dict[Any, Form] = {PARQUET: "parquet", ARROW: "arrow"}
    return forms.get(kind)


def _accepts(take: Take) -> Callable[[Any], bool]:
    """Whether a record has what is taken, be it at fault or not."""

    def accepts(record: Any) -> bool:
        try:
            take(record, "")
        except _BrokenTextError:
            return True
        except DataError:
            return False
        return True

    return accepts


def require_records(path: Path, take: Take = TEXTS) -> None:
    """Refuse a `.json` that is a list of something, but of nothing that is taken: for one that the user named.

    Raises:
        DataError: naming the first record that has no text, and what it has.
    """
    form: JsonForm = json_shape(path, _accepts(take))
    if form != "text":
        for record, where in _records(form, path, take, unwatched):
            take(record, where)


def require_text_at_start(path: Path, size: int) -> int:
    """Refuse a text whose first `size` bytes are no UTF-8; returns how many there are of them.

    Raises:
        NotUtf8Error: naming file and line.
        DataError: when it cannot be read.
    """
    with opened(path) as file:
        raw = file.read(size)
    require_utf8_start(raw, path)
    return len(raw)
