"""JSON records: one a line, or the items of one array, each read when it is its turn; and which of the two a `.json` is.

A `.json` is told by its content: an array whose records are taken, or JSON lines under that name, is read as such; any
other, such as a config, is one text as it stands. Up to `JUDGED` bytes all of its records decide, beyond them the first,
however long it is.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any, BinaryIO, Literal

from apr_train import rules
from apr_train.data.formats import bounds
from apr_train.data.formats.packed import opened, unwatched
from apr_train.data.formats.utf8 import BOM, not_utf8, require_utf8
from apr_train.errors import DataError

JsonForm = Literal["text", "lines", "array"]
"""How documents lie in a `.json`: one text, a JSON object a line, or a JSON array of objects and strings."""
Record = tuple[Any, str]
"""One record, and where it is: `path:line`, or `path[record]`, whose first is 0."""
JUDGED = 1 << 22
"""Bytes of a `.json` that are looked at to tell its form."""
_READ = 1 << 20
_NO_SPACE = re.compile(r"[^ \t\n\r]")
_WORDS = {dict: "an object", list: "an array", str: "a string", bool: "true or false", type(None): "null"}


def word_of(value: Any) -> str:
    """The JSON name of a value's type."""
    return _WORDS.get(type(value), "a number")


def json_form(path: Path, accepts: Callable[[Any], bool]) -> JsonForm:
    """How documents lie in a `.json`.

    Args:
        path: the file.
        accepts: whether a record has what is learnt.

    Raises:
        DataError: when it cannot be read.
    """
    with opened(path) as file:
        head = _head(file)
        whole = not file.read(1)
    form = _shape(head, accepts)
    taken = all(isinstance(value, _TYPES[form]) and accepts(value) for value in _records(form, head, whole=whole))
    return form if taken else "text"


def json_shape(path: Path, accepts: Callable[[Any], bool]) -> JsonForm:
    """How the beginning of a `.json` looks, whatever its records have.

    Raises:
        DataError: when it cannot be read.
    """
    with opened(path) as file:
        return _shape(_head(file), accepts)


_TYPES: dict[JsonForm, tuple[type, ...]] = {"text": (), "lines": (dict,), "array": (dict, str)}


def _head(file: BinaryIO) -> bytes:
    """The beginning of a `.json`: `JUDGED` bytes, and as many more as its first record needs, up to `LARGEST_RECORD`."""
    head = file.read(JUDGED)
    while len(head) < bounds.LARGEST_RECORD and _ends_in_first_record(head):
        more = file.read(min(len(head), bounds.LARGEST_RECORD - len(head)))
        if not more:
            break
        head += more
    return head


def _ends_in_first_record(head: bytes) -> bool:
    """Whether the form cannot be told yet: of an array the first record goes on, of lines there is no second one."""
    text = head.removeprefix(BOM).lstrip()
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
    text = head.removeprefix(BOM).decode("utf-8", "ignore").lstrip()
    return json.JSONDecoder().raw_decode(text, 1 + len(text[1:]) - len(text[1:].lstrip()))[0]


def _shape(head: bytes, accepts: Callable[[Any], bool]) -> JsonForm:
    """An array, more than one object a line, or something else, by the beginning of a file."""
    text = head.removeprefix(BOM).lstrip()
    if text[:1] == b"[":
        return "array"
    first, _, rest = text.partition(b"\n")
    try:
        value = json.loads(first) if text[:1] == b"{" else None
    except (ValueError, RecursionError):
        return "text"
    if not isinstance(value, dict):
        return "text"
    return "lines" if rest.lstrip()[:1] == b"{" or (not rest.strip() and accepts(value)) else "text"


def _records(form: JsonForm, head: bytes, *, whole: bool) -> Iterator[Any]:
    """The records at the beginning of a file, all of them if it is whole; None, which is no record, where it is not JSON."""
    try:
        if form == "array" and whole:
            yield from _list_of(json.loads(head.removeprefix(BOM)))
        elif form == "array":
            yield _first_of_array(head)
        elif form == "lines":
            lines = head.removeprefix(BOM).split(b"\n")
            yield from (json.loads(line) for line in (lines if whole else lines[:-1]) if line.strip())
    except (ValueError, RecursionError):
        yield None


def _list_of(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [None]


def read_lines(path: Path, done: Callable[[int], None] = unwatched) -> Iterator[Record]:
    """The objects of JSON lines; blank lines are none.

    Raises:
        NotUtf8Error: naming file, line and byte.
        DataError: naming file and line, for what is no JSON object, and for a line of more than `LARGEST_RECORD` bytes.
    """
    with opened(path, done) as file:
        for number in count(1):
            line = file.readline(bounds.LARGEST_RECORD + 1)
            if not line:
                return
            where = f"{path}:{number}"
            if len(line) > bounds.LARGEST_RECORD:
                raise bounds.too_long(where, "a line")
            require_utf8(line, path, first_line=number)
            text = str(line.removeprefix(BOM), "utf-8")
            if text.strip():
                yield _object(text, where), where


def _object(line: str, where: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise _not_json(where, "one JSON object a line", error) from error
    if isinstance(value, dict):
        return value
    found = word_of(value)
    raise DataError("not a JSON object", where=where, rule=rules.PREFLIGHT_025, expected="an object a line", found=found)


def _not_json(where: str, expected: str, error: object) -> DataError:
    return DataError("not JSON", where=where, rule=rules.PREFLIGHT_025, expected=expected, found=error)


def read_array(path: Path, done: Callable[[int], None] = unwatched) -> Iterator[Record]:
    """The items of a JSON array, one in memory at a time.

    Raises:
        NotUtf8Error: naming the byte of the file.
        DataError: for what is no JSON array, and for an item of more than `LARGEST_RECORD` characters.
    """
    with opened(path, done) as file:
        window = _Window(path, file)
        window.next()
        window.place += 1  # the bracket, which told the form
        between = "," if window.next() != "]" else "]"
        for number in count():
            if between == "]":
                break
            where = f"{path}[{number}]"
            yield _item(window, where), where
            between = _between(window, where)
        window.place += 1
        if window.next():
            raise _not_json(str(path), "nothing behind the array", window.shown)


class _Window:
    """The characters of a file that are in memory, and the place in them."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self._path, self._file = path, file
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self._read = 0
        self.text, self.place = "", 0

    @property
    def shown(self) -> str:
        """The next characters, for an error."""
        return repr(self.text[self.place :][:20])

    def more(self) -> bool:
        """Drop what lies before the place, and read on, as much again as is left; False at the end."""
        rest = self.text[self.place :]
        raw = self._file.read(max(_READ, len(rest)))
        try:
            self.text, self.place = rest + self._decoder.decode(raw, final=not raw), 0
        except UnicodeDecodeError as error:
            at = self._read - (len(error.object) - len(raw)) + error.start
            raise not_utf8(str(self._path), f"byte 0x{error.object[error.start]:02x} at byte {at} of the file") from error
        self._read += len(raw)
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


def _between(window: _Window, where: str) -> str:
    """What stands behind an item: a comma, which is passed, or the end of the array."""
    between = window.next()
    if between not in (",", "]"):
        raise _not_json(where, "a comma or the end of the array behind it", window.shown)
    window.place += between == ","
    return between


def _item(window: _Window, where: str) -> Any:
    """The value at the window's place, which moves behind it; the window grows until it has all of it."""
    decoder = json.JSONDecoder()
    window.next()
    while True:
        try:
            value, window.place = decoder.raw_decode(window.text, window.place)
        except (ValueError, RecursionError) as error:
            if len(window.text) - window.place > bounds.LARGEST_RECORD:
                raise bounds.too_long(where, "a record") from error
            if isinstance(error, RecursionError) or not window.more():
                raise _not_json(where, "an object, or a string", error) from error
        else:
            return value
