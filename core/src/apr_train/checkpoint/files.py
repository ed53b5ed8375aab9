"""Reading files that may be damaged or hostile: maps, bounded JSON, TOML and YAML; every fault a `FormatError`."""

from __future__ import annotations

import io
import json
import mmap
import os
import re
import stat
import tomllib
from pathlib import Path
from typing import Any

import yaml

from apr_train.errors import FormatError

POINTER = b"version https://git-lfs.github.com/spec/"
"""How the text begins that Git LFS leaves in the place of a file that was not fetched."""
LARGEST_POINTER = 1024
"""Bytes of a pointer at most, as the format says."""
_POINTER_FIELDS = re.compile(rb"oid (\S{1,100})\s+size (\d{1,20})")


def refuse_pointer(start: bytes, path: object) -> None:
    """Refuse what a clone without Git LFS has in the place of the file itself; `start` is the file's first bytes.

    Raises:
        FormatError: when they are a pointer's.
    """
    if not start.startswith(POINTER):
        return
    fields = _POINTER_FIELDS.search(start)
    raise FormatError(
        "a Git LFS pointer lies in the place of the file",
        path=path,
        expected=f"a file of {int(fields[2]):,} bytes" if fields else "the file itself",
        found=f"its pointer ({fields[1].decode(errors='replace')})" if fields else "its pointer",
        hint="Fetch the file: git lfs pull, in that clone (git lfs install comes first, once), or download it again.",
    )


_KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a disk",
    stat.S_IFSOCK: "a socket",
    stat.S_IFDIR: "a folder",
}


def open_regular(path: str | os.PathLike[str]) -> io.BufferedReader:
    """Open a file for reading that is a file: what never ends, blocks, or does something when it is opened is refused unopened.

    Raises:
        FormatError: when it cannot be opened, or is of another kind.
    """
    try:
        _require_regular(os.stat(path), path)  # noqa: PTH116  # a path may be text here
        # NONBLOCK: a pipe that took the file's place in between must not block us
        file = os.fdopen(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb")
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise FormatError(f"cannot be read: {_reason(error)}", path=path, hint="Check the path.") from error
    try:
        _require_regular(os.fstat(file.fileno()), path)
    except FormatError:
        file.close()
        raise
    return file


def _reason(error: OSError | ValueError) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def _require_regular(status: os.stat_result, path: object) -> None:
    if not stat.S_ISREG(status.st_mode):
        found = _KINDS.get(stat.S_IFMT(status.st_mode), "something else")
        raise FormatError("not a regular file", path=path, expected="a file", found=found)


class InputFile:
    """An open file: exact reads by `pread` (no page of it becomes resident), and a map for zero-copy views."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        with open_regular(path) as file:
            self.fd = os.dup(file.fileno())
        self.size = os.fstat(self.fd).st_size
        self._map: mmap.mmap | None = None
        self._refuse_pointer()

    def _refuse_pointer(self) -> None:
        try:
            refuse_pointer(self.read(0, min(LARGEST_POINTER, self.size)), self.path)
        except FormatError:
            self.close()
            raise

    @property
    def identity(self) -> tuple[int, ...]:
        """Device, inode, size and time of the last change: another file in the same place has another one."""
        status = os.fstat(self.fd)
        return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill a writable byte buffer from `offset`.

        Raises:
            FormatError: the file ends before that, or cannot be read.
        """
        done = 0
        while done < len(buffer):
            try:
                count = os.preadv(self.fd, [buffer[done:]], offset + done)
            except OSError as error:
                raise self._failure(f"the file cannot be read ({error})", offset + done) from error
            if count == 0:
                raise self._failure("the file became shorter while it was read", offset + done)
            done += count

    def _failure(self, problem: str, offset: int) -> FormatError:
        return FormatError(problem, path=self.path, field=f"byte {offset}")

    def read(self, offset: int, count: int) -> bytes:
        """Exactly `count` bytes; the caller has checked that the file holds them."""
        buffer = bytearray(count)
        self.read_into(offset, memoryview(buffer))
        return bytes(buffer)

    def view(self, offset: int, count: int) -> memoryview:
        """A read-only view of the memory map, which is made on first use."""
        if self._map is None:
            try:
                self._map = mmap.mmap(self.fd, self.size, access=mmap.ACCESS_READ)
            except (OSError, ValueError) as error:
                raise FormatError(f"the file cannot be mapped ({error})", path=self.path) from error
        return memoryview(self._map)[offset : offset + count]

    def close(self) -> None:
        """Close the file; a map that views still refer to is let go when the last of them is."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
        self._map = None


def map_file(path: Path) -> memoryview:
    """A whole file, read-only, memory-mapped; closed with the last view of it.

    Raises:
        FormatError: when the file cannot be opened.
    """
    with open_regular(path) as file:
        if os.fstat(file.fileno()).st_size == 0:
            return memoryview(b"")
        refuse_pointer(file.read(LARGEST_POINTER), path)
        try:
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        except (OSError, ValueError) as error:
            raise FormatError(f"cannot be mapped: {error}", path=path) from error


MAX_BYTES = 1 << 26
"""Bound on a file of text that is read whole: a tokenizer.json of a 262,144-token vocabulary has 33 MB."""


def read_bytes(path: Path, *, most: int = MAX_BYTES) -> bytes:
    """The bytes of a file of at most `most`.

    Raises:
        FormatError: when the file is missing, no regular file, or too large.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        refuse_larger(size, path, most=most)
        try:
            return file.read(size)  # what is appended meanwhile is left for the next reader
        except OSError as error:
            raise FormatError(f"cannot be read: {error.strerror}", path=path) from error


def refuse_larger(size: int, path: object, *, most: int) -> None:
    """Refuse a file that is larger than whatever is read whole.

    Raises:
        FormatError: `size` is more than `most`.
    """
    if size > most:
        raise FormatError("too large a file to be read whole", path=path, expected=f"at most {most:,} bytes", found=f"{size:,}")


def read_text(path: Path, *, most: int = MAX_BYTES, encoding: str = "utf-8") -> str:
    """The text of a file of at most `most` bytes; `encoding` is a kind of UTF-8.

    Raises:
        FormatError: when the file is missing, no regular file, too large, a Git LFS pointer, or no UTF-8.
    """
    raw = read_bytes(path, most=most)
    refuse_pointer(raw, path)
    try:
        return raw.decode(encoding)
    except ValueError as error:
        raise FormatError(f"not UTF-8 text: {error}", path=path, hint="Save it as UTF-8.") from error


MOST_VALUES = 1 << 22
"""Bound on the values of one document, counted by what stands between them: a tokenizer.json of 33 MB has two million."""
MAX_DEPTH = 127
"""Bound on objects and lists inside one another: serde_json's, which reads these files elsewhere."""
MAX_DIGITS = 308
"""Bound on the digits of an integer: one of more has no 64-bit float, and Python prints none of more than 4,300."""
_LONE_SURROGATE = re.compile(r"[\ud800-\udfff]")
_ESCAPED_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def json_value(text: str, path: object, *, field: str | None = None, unique: bool = False, half_pairs: bool = False) -> Any:
    """The value of a JSON document of somebody else's; of a key that is there twice the last counts, unless `unique`.

    Raises:
        FormatError: no JSON; NaN, infinity, or a number beyond 64-bit floats; nested too deep, too many values; half of a
            surrogate pair, which nothing can write, without `half_pairs` (a file's name has them, where it is not UTF-8); a
            key twice, with `unique`. It names `path` and `field`.
    """
    _check_count(text, path, field)
    hook = _unique if unique else None
    try:
        value = json.loads(
            text, parse_constant=_refuse_constant, parse_float=_finite, parse_int=_integer, object_pairs_hook=hook
        )
    except RecursionError as error:
        raise _too_deep(path, field) from error
    except ValueError as error:
        raise FormatError(f"not valid JSON: {error}", path=path, field=field) from error
    _check_depth(value, path, field)
    if not half_pairs and _ESCAPED_SURROGATE.search(text) and _LONE_SURROGATE.search(json.dumps(value, ensure_ascii=False)):
        raise FormatError("the JSON holds half a surrogate pair", path=path, field=field, expected="valid Unicode")
    return value


def _check_count(text: str, path: object, field: str | None) -> None:
    count = sum(map(text.count, ",[{"))
    if count > MOST_VALUES:
        expected = f"at most {MOST_VALUES:,}"
        raise FormatError("more values than are read", path=path, field=field, expected=expected, found=f"{count:,}")


def is_too_deep(value: Any) -> bool:
    """Whether objects and lists lie inside one another more than `MAX_DEPTH` times."""
    level = [value]
    for _ in range(MAX_DEPTH):
        inner = (item.values() if isinstance(item, dict) else item for item in level if isinstance(item, dict | list))
        level = [item for items in inner for item in items if isinstance(item, dict | list)]
        if not level:
            return False
    return True


def _check_depth(value: Any, path: object, field: str | None) -> None:
    if is_too_deep(value):
        raise _too_deep(path, field)


def _too_deep(path: object, field: str | None) -> FormatError:
    return FormatError("lists and objects nested too deep", path=path, field=field, expected=f"at most {MAX_DEPTH} levels")


def _refuse_constant(text: str) -> float:
    raise ValueError(f"{text} is not a JSON number")


def _finite(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise ValueError(f"{text[:40]} is out of range")
    return value


def _integer(text: str) -> int:
    if (digits := len(text.lstrip("-"))) > MAX_DIGITS:
        raise ValueError(f"an integer of {digits:,} digits is out of range")
    return int(text)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("a key is there twice")
    return table


def parse_json(path: Path, *, most: int = MAX_BYTES, half_pairs: bool = False) -> dict[str, Any]:
    """The JSON object in a file of at most `most` bytes.

    Raises:
        FormatError: as `read_text` and `json_value`, or when it is no object.
    """
    value = json_value(read_text(path, most=most), path, half_pairs=half_pairs)
    if not isinstance(value, dict):
        raise FormatError("not a JSON object", path=path, expected="{…}", found=type(value).__name__)
    return value


MAX_TOML_BYTES = 1 << 19
"""Bound on a file of settings: one has a few hundred bytes, with thousands of paths some hundred thousand."""
MAX_DOTS = 250
"""Bound on the dots of a line outside of its strings: tomllib's time grows with the square of the parts of a key."""
_STRINGS = re.compile(r"""  "(?:[^"\\]|\\.)*+"? | '[^']*+'?  """, re.VERBOSE)


def parse_toml(path: Path) -> dict[str, Any]:
    """The tables in a TOML file of at most 512 KiB; a byte-order mark, with which editors on Windows begin a file, is no fault.

    Raises:
        FormatError: as `read_text`, or no TOML; nested too deep, or an integer beyond TOML's own 64 bits.
    """
    text = read_text(path, most=MAX_TOML_BYTES, encoding="utf-8-sig")
    for number, line in enumerate(text.splitlines(), 1):
        if line.count(".") > MAX_DOTS and _STRINGS.sub("", line).count(".") > MAX_DOTS:
            raise FormatError("not a TOML file that is read: a key of hundreds of parts", path=path, field=f"line {number}")
    try:
        tables = tomllib.loads(text)
    except RecursionError as error:
        raise _too_deep(path, None) from error
    except ValueError as error:
        raise FormatError(f"not a TOML file: {error}", path=path) from error
    _check_depth(tables, path, None)
    return tables


MAX_YAML_BYTES = 1 << 16
"""Bound on a YAML document; front matter of the Hub's cards has a few hundred bytes, with many metrics a few thousand."""
MAX_YAML_DEPTH = 16
"""Bound on its nesting; the Hub's `model-index` has seven levels."""


class _BoundedLoader(yaml.SafeLoader):
    """PyYAML's safe loader without what makes a small document large: anchors and aliases, explicit tags, deep nesting."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call] # types-PyYAML leaves it out
        if getattr(event, "anchor", None) is not None or getattr(event, "tag", None) is not None:
            raise yaml.MarkedYAMLError(problem="anchors, aliases and tags are not read", problem_mark=event.start_mark)
        if self._depth == MAX_YAML_DEPTH:
            raise yaml.MarkedYAMLError(problem=f"more than {MAX_YAML_DEPTH} levels", problem_mark=event.start_mark)
        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node


def parse_yaml(text: str, path: object = None) -> Any:
    """The value of one YAML document of at most 64 KiB and 16 levels: text, numbers, dates, lists, tables, None.

    Raises:
        FormatError: too long, too deep, no YAML, several documents, or with an anchor, an alias or a tag.
    """
    if len(text) > MAX_YAML_BYTES or len(text.encode(errors="replace")) > MAX_YAML_BYTES:
        raise FormatError("too long for YAML", path=path, expected=f"at most {MAX_YAML_BYTES} bytes")
    try:
        return _BoundedLoader(text).get_single_data()
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # the last two: a date or a number that cannot be
        raise FormatError(f"not valid YAML: {error}", path=path) from error
