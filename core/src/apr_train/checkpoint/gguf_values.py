"""Reading GGUF's little-endian values out of bytes that nobody has checked yet.

Format: ggml's docs/gguf.md. Lengths are compared with the bytes that are left before anything is made from them.
"""

from __future__ import annotations

import struct
from typing import Any, NoReturn

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
MAX_ARRAY = 1 << 24
"""Elements of one array; the largest vocabularies have 2**18."""
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
        if number * smallest > left:
            self.fail(f"more {what} than the file has room for", expected=f"at most {left // smallest}", found=number)
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
