"""Reading files that may be damaged or hostile: exact reads, maps, bounded JSON and YAML; every fault is a `FormatError`."""

from __future__ import annotations

import json
import mmap
import os
import re
import stat
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


class InputFile:
    """An open file: exact reads by `pread` (no page of it becomes resident), and a map for zero-copy views."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.fd = -1
        try:
            self.fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a FIFO must not block us
            status = os.fstat(self.fd)
        except (OSError, ValueError) as error:  # ValueError: a NUL in the path
            raise FormatError(f"the file cannot be opened ({error})", path=path, hint="Check the path.") from error
        if not stat.S_ISREG(status.st_mode):
            self.close()
            raise FormatError("not a regular file", path=path)
        self.size = status.st_size
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
    try:
        with path.open("rb") as file:
            if path.stat().st_size == 0:
                return memoryview(b"")
            refuse_pointer(file.read(LARGEST_POINTER), path)
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except OSError as error:
        raise FormatError(f"cannot be read: {error.strerror}", path=path) from error


MAX_BYTES = 1 << 28
"""Bound on a file of JSON or of merges: a tokenizer.json of a 250,000-token vocabulary has about 35 MB."""


def read_text(path: Path) -> str:
    """The text of a file of at most 256 MiB.

    Raises:
        FormatError: when the file is missing, too large, a Git LFS pointer, or no UTF-8.
    """
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise FormatError("too large for a text file", path=path, expected=f"at most {MAX_BYTES} bytes", found=size)
        raw = path.read_bytes()
    except OSError as error:
        raise FormatError(f"cannot be read: {error.strerror}", path=path) from error
    refuse_pointer(raw, path)
    try:
        return raw.decode("utf-8")
    except ValueError as error:
        raise FormatError(f"not UTF-8 text: {error}", path=path) from error


def parse_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        FormatError: when the file is missing, too large, a Git LFS pointer, no UTF-8, no JSON, or no object.
    """
    text = read_text(path)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"not valid JSON: {error}", path=path) from error
    if not isinstance(value, dict):
        raise FormatError("not a JSON object", path=path, expected="{…}", found=type(value).__name__)
    return value


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
