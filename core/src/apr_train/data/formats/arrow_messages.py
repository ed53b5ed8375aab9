"""Arrow messages: how large the batches of a stream are in memory, told by their headers, before any is read.

The frames and the flatbuffers in them are those of Arrow's Message.fbs and Schema.fbs; of them only what says how many
bytes a batch has, and how many it has once unpacked.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import BinaryIO

from apr_train.data.formats.packed import open_data

_CONTINUATION = 0xFFFFFFFF
_LARGEST_HEADER = 1 << 26
_DICTIONARY_BATCH, _RECORD_BATCH = 2, 3
"""What a message's header is, of those that have a body."""
_MESSAGE_TYPE, _MESSAGE_HEADER, _MESSAGE_BODY = 1, 2, 3
_BATCH_BUFFERS, _BATCH_COMPRESSION = 2, 3
_DICTIONARY_DATA = 1


def largest_batch(path: Path, begin: int) -> int:
    """Bytes of the largest batch of a stream that begins at a place of a file, unpacked.

    Raises:
        ValueError: when the messages are not what they should be, or break off.
    """
    largest = 0
    with open_data(path) as file:
        end = os.fstat(file.fileno()).st_size
        file.seek(begin)
        try:
            while (header := _header(file, end)) is not None:
                message = _Table.root(header)
                body, size = file.tell(), message.number(_MESSAGE_BODY, "<q")
                if size < 0 or body + size > end:
                    raise ValueError("it breaks off in a batch")
                largest = max(largest, _unpacked(file, message, body, size))
                file.seek(body + size)
        except struct.error as error:
            raise ValueError("a message that is no Arrow message") from error
    return largest


def _header(file: BinaryIO, end: int) -> bytes | None:
    """The header of the next message; None at the end of the stream, which is marked."""
    (size,) = struct.unpack("<I", _exactly(file, 4))
    if size == _CONTINUATION:
        (size,) = struct.unpack("<I", _exactly(file, 4))
    if size == 0:
        return None
    if size > min(_LARGEST_HEADER, end):
        raise ValueError(f"a message whose header claims {size:,} bytes")
    return _exactly(file, size)


def _exactly(file: BinaryIO, count: int) -> bytes:
    read = file.read(count)
    if len(read) < count:
        raise ValueError("it breaks off: no mark of the end")
    return read


def _unpacked(file: BinaryIO, message: _Table, body: int, size: int) -> int:
    kind, batch = message.number(_MESSAGE_TYPE, "<B"), message.table(_MESSAGE_HEADER)
    if batch is not None and kind == _DICTIONARY_BATCH:
        batch = batch.table(_DICTIONARY_DATA)
    if kind not in (_DICTIONARY_BATCH, _RECORD_BATCH) or batch is None or batch.table(_BATCH_COMPRESSION) is None:
        return size
    return sum(_buffer_size(file, body, size, begin, length) for begin, length in batch.pairs(_BATCH_BUFFERS))


def _buffer_size(file: BinaryIO, body: int, size: int, begin: int, length: int) -> int:
    """Bytes of a packed buffer: eight bytes say how many it unpacks to, or -1 for one that is not packed."""
    if begin < 0 or length < 0 or begin + length > size:
        raise ValueError("a buffer outside its batch")
    if length < 8:
        return length
    file.seek(body + begin)
    (unpacked,) = struct.unpack("<q", _exactly(file, 8))
    return length if unpacked < 0 else int(unpacked)


class _Table:
    """A table of a flatbuffer: fields by their numbers, each there or not.

    Raises:
        struct.error: from every method, for a place that is not in the bytes.
    """

    def __init__(self, raw: bytes, place: int) -> None:
        self._raw, self._place = raw, place
        self._fields = place - self._at("<i", place)
        self._size = self._at("<H", self._fields)

    @classmethod
    def root(cls, raw: bytes) -> _Table:
        """The table that the bytes hold."""
        return cls(raw, *struct.unpack_from("<I", raw))

    def _at(self, form: str, place: int) -> int:
        if place < 0:
            raise struct.error("before the beginning")
        return int(struct.unpack_from(form, self._raw, place)[0])

    def _where(self, number: int) -> int | None:
        entry = 4 + 2 * number
        offset = self._at("<H", self._fields + entry) if entry + 2 <= self._size else 0
        return self._place + offset if offset else None

    def number(self, number: int, form: str) -> int:
        """A number; 0 where it is not there."""
        place = self._where(number)
        return 0 if place is None else self._at(form, place)

    def table(self, number: int) -> _Table | None:
        """A table; None where it is not there."""
        place = self._where(number)
        return None if place is None else _Table(self._raw, place + self._at("<I", place))

    def pairs(self, number: int) -> list[tuple[int, int]]:
        """A vector of pairs of 64-bit numbers; empty where it is not there."""
        place = self._where(number)
        if place is None:
            return []
        begin = place + self._at("<I", place)
        count = self._at("<I", begin)
        if 16 * count > len(self._raw):
            raise struct.error("more pairs than bytes")
        return [(self._at("<q", begin + 4 + 16 * pair), self._at("<q", begin + 12 + 16 * pair)) for pair in range(count)]
