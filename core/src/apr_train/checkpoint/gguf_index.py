"""The front of a GGUF file: values, metadata and tensor index, checked before any tensor is touched.

Format: ggml's docs/gguf.md. Lengths are compared with the bytes that are left before anything is made from them.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from attrs import frozen

from apr_train import rules
from apr_train.checkpoint.dtypes import DType, addressable
from apr_train.checkpoint.header import TensorInfo
from apr_train.checkpoint.quantization import ggml_types
from apr_train.errors import FormatError

SCALARS = {
    0: struct.Struct("<B"),
    1: struct.Struct("<b"),
    2: struct.Struct("<H"),
    3: struct.Struct("<h"),
    4: struct.Struct("<I"),
    5: struct.Struct("<i"),
    6: struct.Struct("<f"),
    7: struct.Struct("<B"),
    10: struct.Struct("<Q"),
    11: struct.Struct("<q"),
    12: struct.Struct("<d"),
}
"""Value type id → its encoding; 7 is a boolean."""
BOOLEAN, STRING, ARRAY = 7, 8, 9
MAX_ARRAY = 1 << 21
"""Elements of one array; the largest vocabularies have 2**18, and twice as many merges."""
_U32, _U64 = SCALARS[4], SCALARS[10]


class Cursor:
    """A position in the bytes; every step forward is checked against the end."""

    def __init__(self, data: memoryview, path: object) -> None:
        self.data = data
        self.path = path
        self.at = 0
        self.field = "header"

    def fail(self, problem: str, *, rule: str = "", expected: object = None, found: object = None) -> NoReturn:
        """Raise a FormatError at the current field."""
        raise FormatError(problem, path=self.path, field=self.field, rule=rule, expected=expected, found=found)

    def take(self, count: int) -> memoryview:
        """The next bytes."""
        if count > len(self.data) - self.at:
            self.fail("the file ends in the middle", expected=f"{count} more bytes", found=len(self.data) - self.at)
        start, self.at = self.at, self.at + count
        return self.data[start : self.at]

    def u32(self) -> int:
        """An unsigned 32-bit number."""
        return int(_U32.unpack(self.take(4))[0])

    def u64(self) -> int:
        """An unsigned 64-bit number."""
        return int(_U64.unpack(self.take(8))[0])

    def string(self) -> str:
        """A length and that many bytes of UTF-8."""
        raw = bytes(self.take(self.u64()))
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            self.fail("a string is not UTF-8", found=raw[:40])

    def value(self, kind: int) -> Any:
        """A value of the given type: a number, a boolean, a string, or a list of one of these."""
        if kind == STRING:
            return self.string()
        if kind == ARRAY:
            return self._array()
        if kind not in SCALARS:
            self.fail("unknown value type", expected="0 to 12", found=kind)
        (value,) = SCALARS[kind].unpack(self.take(SCALARS[kind].size))
        return self._boolean(value) if kind == BOOLEAN else value

    def count(self, number: int, smallest: int, what: str) -> int:
        """A count of things of at least `smallest` bytes each, checked against what is left."""
        left = len(self.data) - self.at
        most = left // smallest
        if number > most:
            self.fail(f"more {what} than the file has room for", expected=f"at most {most}", found=number)
        if number > MAX_ARRAY:
            self.fail(f"more {what} than are read", expected=f"at most {MAX_ARRAY}", found=number)
        return number

    def _array(self) -> list[Any]:
        kind, length = self.u32(), self.u64()
        if kind not in SCALARS and kind != STRING:
            self.fail("arrays of this type are not supported", expected="numbers, booleans or strings", found=kind)
        if length > MAX_ARRAY:
            self.fail("an array too long for metadata", expected=f"at most {MAX_ARRAY}", found=length)
        if kind == STRING:
            return self._strings(self.count(length, 8, "strings"))
        scalar = SCALARS[kind]
        raw = self.take(self.count(length, scalar.size, "elements") * scalar.size)
        values = [item for (item,) in scalar.iter_unpack(raw)]
        return [self._boolean(item) for item in values] if kind == BOOLEAN else values

    def _strings(self, count: int) -> list[str]:
        """Written out: a vocabulary and its merges are 100,000 strings, and a call for each would cost more than the rest."""
        data, end, at, unpack = self.data, len(self.data), self.at, _U64.unpack_from
        found = []
        try:
            for _ in range(count):
                (length,) = unpack(data, at)
                at += 8
                if length > end - at:
                    self.at = at
                    self.fail("a string is longer than the file", expected=f"at most {end - at} bytes", found=length)
                found.append(str(data[at : at + length], "utf-8"))
                at += length
        except struct.error:
            self.fail("the file ends in the middle of an array of strings")
        except UnicodeDecodeError:
            self.fail("a string is not UTF-8", found=f"element {len(found)}")
        self.at = at
        return found

    def _boolean(self, value: int) -> bool:
        if value > 1:
            self.fail("not a boolean", expected="0 or 1", found=value)
        return bool(value)


MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_DIMENSIONS = 4
MAX_NAME = 1000
"""Characters of a tensor's name, or bytes of a key; GGML itself has room for 64 and 65,535."""
MAX_ALIGNMENT = 1 << 20
DEFAULT_ALIGNMENT = 32


@frozen
class Place:
    """Where a tensor's bytes lie in the file, and how they are encoded."""

    start: int
    end: int
    dtype: DType


@frozen(kw_only=True)
class GgufIndex:
    """A checked front: metadata by its GGUF keys, tensors (shapes outermost first) and their places."""

    metadata: Mapping[str, Any]
    tensors: Mapping[str, TensorInfo]
    places: Mapping[str, Place]


def read_gguf_index(data: memoryview, path: Path) -> GgufIndex:
    """Parse and check the front of a file of which `data` is the whole content.

    Raises:
        FormatError: for anything that is not as the format says, or that does not fit into the file.
    """
    cursor = Cursor(data, path)
    if bytes(cursor.take(4)) != MAGIC:
        cursor.fail("not a GGUF file", rule=rules.INIT_004, expected=MAGIC, found=bytes(data[:4]))
    _check_version(cursor)
    tensor_count, pair_count = cursor.u64(), cursor.u64()
    metadata = _metadata(cursor, cursor.count(pair_count, 13, "metadata entries"))
    alignment = _alignment(metadata, cursor)
    entries = [_entry(cursor) for _ in range(cursor.count(tensor_count, 24, "tensors"))]
    base = cursor.at + -cursor.at % alignment
    tensors: dict[str, TensorInfo] = {}
    places: dict[str, Place] = {}
    for name, shape, dtype, offset in entries:
        cursor.field = name
        if name in tensors:
            cursor.fail("the tensor is there twice")
        nbytes = math.prod(shape) // dtype.block * dtype.block_bytes
        if offset % alignment:
            cursor.fail("the offset is not aligned", expected=f"a multiple of {alignment}", found=offset)
        if base + offset + nbytes > len(data):
            cursor.fail("the tensor reaches beyond the file", expected=f"at most {len(data)}", found=base + offset + nbytes)
        tensors[name] = TensorInfo(name, dtype.name, shape, nbytes)
        places[name] = Place(base + offset, base + offset + nbytes, dtype)
    _check_overlaps(places, path)
    return GgufIndex(metadata=metadata, tensors=tensors, places=places)


def _check_version(cursor: Cursor) -> None:
    cursor.field = "version"
    version = cursor.u32()
    if version not in VERSIONS:
        swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
        big = "a big-endian file" if swapped in VERSIONS else version
        cursor.fail("this GGUF version is not supported", expected=f"version {' or '.join(map(str, VERSIONS))}", found=big)


def _metadata(cursor: Cursor, count: int) -> dict[str, Any]:
    metadata: dict[str, Any] = {}
    for _ in range(count):
        cursor.field = "metadata"
        key = cursor.string()
        cursor.field = key[:MAX_NAME]
        if len(key) > MAX_NAME:
            cursor.fail("not a usable key", expected=f"at most {MAX_NAME} characters", found=len(key))
        if key in metadata:
            cursor.fail("the key is there twice")
        metadata[key] = cursor.value(cursor.u32())
    cursor.field = "tensor index"
    return metadata


def _alignment(metadata: Mapping[str, Any], cursor: Cursor) -> int:
    value = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MAX_ALIGNMENT or value & (value - 1):
        cursor.fail("general.alignment is no power of two", expected=f"1 to {MAX_ALIGNMENT}", found=value)
    return value


def _entry(cursor: Cursor) -> tuple[str, tuple[int, ...], DType, int]:
    """One line of the tensor index; GGUF has the innermost dimension first, a header the outermost."""
    cursor.field = "tensor index"
    name = cursor.string()
    cursor.field = name
    if not name or "\0" in name or len(name) > MAX_NAME:
        cursor.fail("not a usable tensor name", expected=f"1 to {MAX_NAME} characters", found=repr(name))
    dimensions = cursor.u32()
    if dimensions > MAX_DIMENSIONS:
        cursor.fail("too many dimensions", expected=f"at most {MAX_DIMENSIONS}", found=dimensions)
    shape = tuple(reversed([cursor.u64() for _ in range(dimensions)]))
    if not addressable(shape):
        cursor.fail("impossible shape", found=list(shape))
    types, number = ggml_types(), cursor.u32()
    if number not in types:
        cursor.fail("unknown tensor type", expected="a GGML type id", found=number)
    dtype = types[number]
    if (shape[-1] if shape else 1) % dtype.block:
        cursor.fail(f"a row is no whole number of {dtype.name} blocks", expected=f"a multiple of {dtype.block}", found=shape)
    return name, shape, dtype, cursor.u64()


def _check_overlaps(places: Mapping[str, Place], path: Path) -> None:
    end = 0
    for name, place in sorted(places.items(), key=lambda item: (item[1].start, item[1].end)):
        if place.start < end:
            raise FormatError("the tensor overlaps another", path=path, field=name, expected=end, found=place.start)
        end = place.end
