"""Token files: the ids of one side of a corpus, written once, read through a memory map.

A header of 128 bytes, little-endian, stands in front of the ids and the document starts:

0    magic `APRTOKEN`
8    version, bytes per id (2 or 4)                  2 × u32
16   ids, documents, largest id, bytes of text       4 × u64
48   the key that the file was made for              32 bytes
80   whether ids are marked as learnt or not (1 or 0), bytes of the counts    2 × u64
96   CRC-32 of everything after the header, then of the 96 bytes above       u32
100  zeros
128  the ids, padded with zeros to a multiple of 8; the documents' starts as u64; where ids are marked, a byte for each,
     1 for a target; then the counts: a JSON object of what happened to documents on the way, name to number
"""

from __future__ import annotations

import json
import mmap
import struct
from array import array
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import numpy as np
from attrs import field, frozen
from isal import isal_zlib

from apr_train.checkpoint.dtypes import Array
from apr_train.checkpoint.files import json_value, open_regular
from apr_train.data.cache import cached_file
from apr_train.errors import FormatError, TokenizerError

MAGIC = b"APRTOKEN"
VERSION = 3
HEADER_SIZE = 128
_FIELDS = struct.Struct("<8sIIQQQQ32sQQ")
_CHECKSUM = struct.Struct("<I")


class DamagedTokenFile(Exception):
    """A cached file that is not what it should be; the cache answers by making it again, so no user sees this."""


@frozen(kw_only=True)
class TokenHeader:
    """The numbers in front of a token file."""

    id_bytes: int
    token_count: int
    document_count: int
    max_token_id: int
    text_bytes: int
    key: bytes
    marked: bool
    counts_bytes: int

    @property
    def starts_offset(self) -> int:
        """Byte offset of the document starts."""
        end = HEADER_SIZE + self.token_count * self.id_bytes
        return end + -end % 8

    @property
    def learn_offset(self) -> int:
        """Byte offset of the marks, or of what follows them."""
        return self.starts_offset + 8 * self.document_count

    @property
    def counts_offset(self) -> int:
        """Byte offset of the counts."""
        return self.learn_offset + self.token_count * self.marked

    @property
    def file_size(self) -> int:
        """Bytes of the whole file."""
        return self.counts_offset + self.counts_bytes

    def pack(self, body_checksum: int) -> bytes:
        """The header's bytes; `body_checksum` is the CRC-32 of all that follows it."""
        counts = (self.token_count, self.document_count, self.max_token_id, self.text_bytes)
        fields = _FIELDS.pack(MAGIC, VERSION, self.id_bytes, *counts, self.key, self.marked, self.counts_bytes)
        return (fields + _CHECKSUM.pack(isal_zlib.crc32(fields, body_checksum))).ljust(HEADER_SIZE, b"\0")


def unpack_header(raw: bytes) -> TokenHeader:
    """Read a header.

    Raises:
        DamagedTokenFile: when it is short, or not one.
    """
    if len(raw) < HEADER_SIZE:
        raise DamagedTokenFile(f"{len(raw)} bytes are too few for a header")
    magic, version, id_bytes, tokens, documents, largest, text_bytes, key, marked, counts_bytes = _FIELDS.unpack_from(raw)
    if magic != MAGIC or version != VERSION or id_bytes not in (2, 4):
        raise DamagedTokenFile("not a token file of this version")
    return TokenHeader(
        id_bytes=id_bytes,
        token_count=tokens,
        document_count=documents,
        max_token_id=largest,
        text_bytes=text_bytes,
        key=key,
        marked=bool(marked),
        counts_bytes=counts_bytes,
    )


def checksum_matches(raw_header: bytes, body_checksum: int) -> bool:
    """Whether header and body are what was written."""
    fields = raw_header[: _FIELDS.size]
    (stored,) = _CHECKSUM.unpack_from(raw_header, _FIELDS.size)
    return bool(stored == isal_zlib.crc32(fields, body_checksum))


_CHUNK = 1 << 22


@frozen(kw_only=True)
class TokenFile:
    """All documents of one side, one after the other, each between its `DocumentEnds`."""

    ids: np.ndarray[Any, np.dtype[Any]] = field(repr=False, eq=False)
    """`[tokens]` uint16 or uint32, a view of the file."""
    starts: np.ndarray[Any, np.dtype[np.uint64]] = field(repr=False, eq=False)
    """`[documents]`: where each document begins in `ids`; the first is 0."""
    max_token_id: int
    """The largest id in `ids`."""
    text_bytes: int
    """UTF-8 bytes of the text behind `ids`."""
    key: str
    """Hex digest of what decided the content: text, split, tokenizer."""
    learn: np.ndarray[Any, np.dtype[np.bool_]] | None = field(default=None, repr=False, eq=False)
    """`[tokens]`: whether a token is a target, to be predicted from those before it; None: every one is."""
    counts: Mapping[str, int] = field(factory=dict)
    """What happened to documents on the way, by names that the encoder knows: cut, left out, …"""
    path: Path | None = None
    """The file; None for tokens that live in memory."""

    def __len__(self) -> int:
        return int(self.ids.shape[0])

    @property
    def stops(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        """`[documents]`: where each document ends in `ids`; the next one begins there."""
        return np.append(self.starts[1:].astype(np.int64), len(self))

    @property
    def bytes_per_token(self) -> float:
        """Bytes of text per token, separators counted as tokens: nats per token / ln 2 / this = bits per byte."""
        return self.text_bytes / max(1, len(self))

    @classmethod
    def from_documents(cls, documents: list[list[int]], *, key: str = "", text_bytes: int = 0) -> TokenFile:
        """Tokens in memory, from documents that already end with the end-of-text token."""
        lengths = np.array([0, *(len(document) for document in documents)], dtype=np.uint64)
        ids = np.array([token for document in documents for token in document], dtype=np.uint32)
        return cls(
            ids=ids,
            starts=np.cumsum(lengths)[:-1].astype(np.uint64),
            max_token_id=int(ids.max(initial=0)),
            text_bytes=text_bytes,
            key=key,
        )

    @classmethod
    def open(cls, path: Path, *, key: str, size: int) -> TokenFile:
        """Map a file that was made for `key` and a vocabulary of `size`, checking every byte of it.

        Raises:
            DamagedTokenFile: naming what is wrong.
            FileNotFoundError: when there is none.
        """
        with _opened(path) as file:
            raw = file.read(HEADER_SIZE)
            header = unpack_header(raw)
            _check_header(header, path, key=key, size=size)
            view = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        if not checksum_matches(raw, _checksum(view[HEADER_SIZE:])):
            raise DamagedTokenFile("its checksum does not match")
        ids = np.frombuffer(view, dtype=f"<u{header.id_bytes}", count=header.token_count, offset=HEADER_SIZE)
        starts = np.frombuffer(view, dtype="<u8", count=header.document_count, offset=header.starts_offset)
        if starts[0] or starts[-1] >= header.token_count or (starts[1:] <= starts[:-1]).any():
            raise DamagedTokenFile("its documents do not follow one another")
        marks = np.frombuffer(view, dtype=np.bool_, count=header.token_count * header.marked, offset=header.learn_offset)
        return cls(
            ids=ids,
            starts=starts,
            max_token_id=header.max_token_id,
            text_bytes=header.text_bytes,
            key=key,
            learn=marks if header.marked else None,
            counts=_counts(bytes(view[header.counts_offset :]), path),
            path=path,
        )


def _opened(path: Path) -> BinaryIO:
    try:
        return open_regular(path)
    except FormatError as error:
        if isinstance(error.__cause__, OSError):
            raise error.__cause__ from None
        raise DamagedTokenFile(error.finding.problem) from error


def _counts(raw: bytes, path: Path) -> dict[str, int]:
    try:
        counts = json_value(raw.decode(), path)
    except (UnicodeDecodeError, FormatError) as error:
        raise DamagedTokenFile("its counts are no JSON") from error
    if not isinstance(counts, dict) or not all(isinstance(count, int) for count in counts.values()):
        raise DamagedTokenFile("its counts are no numbers")
    return counts


def _check_header(header: TokenHeader, path: Path, *, key: str, size: int) -> None:
    found = path.stat().st_size
    if found != header.file_size:
        raise DamagedTokenFile(f"{found} bytes where its header says {header.file_size}")
    if header.key.hex() != key:
        raise DamagedTokenFile("it was made for another corpus or tokenizer")
    if header.max_token_id >= size:
        raise DamagedTokenFile(f"token id {header.max_token_id} in a vocabulary of {size}")
    if header.token_count == 0 or header.document_count == 0:
        raise DamagedTokenFile("it is empty")


def _checksum(view: memoryview) -> int:
    checksum = 0
    for begin in range(0, len(view), _CHUNK):
        checksum = isal_zlib.crc32(view[begin : begin + _CHUNK], checksum)
    return checksum


class TokenWriter:
    """A context that writes a new token file; `finish` is its last call, and what an error ends is never seen.

    Raises:
        DataError: when the cache cannot be written.
    """

    def __init__(self, path: Path, *, key: str, size: int) -> None:
        """`size` is the vocabulary's: it decides between 2 and 4 bytes per id, and bounds the ids."""
        self._key = bytes.fromhex(key)
        self._size = size
        self._dtype = np.dtype("<u2" if size <= 1 << 16 else "<u4")
        self._starts = array("Q", [0])
        self._count = self._max = self._bytes = self._checksum = 0
        self._learn: bytearray | None = None  # made at the first token that is no target
        self._counts: dict[str, int] = {}
        self._open: AbstractContextManager[BinaryIO] = cached_file(path)

    def __enter__(self) -> Self:
        self._file = self._open.__enter__()
        self._file.seek(HEADER_SIZE)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._open.__exit__(kind, error, traceback)

    def append(self, ids: Sequence[int] | Array, *, learn: bool | Sequence[bool] = True, text_bytes: int = 0) -> None:
        """Add tokens to the current document.

        Args:
            ids: of the vocabulary.
            learn: whether they are targets; one for all, or one each.
            text_bytes: UTF-8 bytes of the text that they stand for.

        Raises:
            TokenizerError: for an id outside the vocabulary.
        """
        self._bytes += text_bytes
        if len(ids):
            self._mark(len(ids), learn)
            self._append_ids(np.asarray(ids, dtype=np.int64))

    def end_document(self, separator: int | None = None) -> None:
        """Close the current document, with an end-of-text token, which is a target, unless it has its end already."""
        if separator is not None:
            self.append([separator])
        self._starts.append(self._count)

    def count(self, name: str, number: int = 1) -> None:
        """Note that something happened to documents so many times; kept with the tokens."""
        self._counts[name] = self._counts.get(name, 0) + number

    def _mark(self, number: int, learn: bool | Sequence[bool]) -> None:
        every = learn is True or (not isinstance(learn, bool) and all(learn))
        if self._learn is None and every:
            return
        if self._learn is None:
            self._learn = bytearray(b"\1" * self._count)
        self._learn += bytes([learn]) * number if isinstance(learn, bool) else bytes(map(bool, learn))

    def _append_ids(self, ids: np.ndarray[tuple[int, ...], np.dtype[np.int64]]) -> None:
        smallest, largest = int(ids.min()), int(ids.max())
        if smallest < 0 or largest >= self._size:
            problem = "the tokenizer gives an id outside its own vocabulary"
            found = smallest if smallest < 0 else largest
            raise TokenizerError(problem, expected=f"0 to {self._size - 1}", found=found)
        self._max = max(self._max, largest)
        self._count += len(ids)
        self._write(ids.astype(self._dtype).tobytes())

    def _write(self, data: bytes) -> None:
        self._checksum = isal_zlib.crc32(data, self._checksum)
        self._file.write(data)

    def finish(self) -> None:
        """After the last `end_document`: write the document starts, the marks, the counts and the header."""
        counts = json.dumps({name: number for name, number in sorted(self._counts.items()) if number}).encode()
        header = TokenHeader(
            id_bytes=self._dtype.itemsize,
            token_count=self._count,
            document_count=len(self._starts) - 1,
            max_token_id=self._max,
            text_bytes=self._bytes,
            key=self._key,
            marked=self._learn is not None,
            counts_bytes=len(counts),
        )
        self._write(bytes(header.starts_offset - self._file.tell()))
        self._write(np.array(self._starts, dtype="<u8")[:-1].tobytes())
        self._write(bytes(self._learn or b""))
        self._write(counts)
        self._file.seek(0)
        self._file.write(header.pack(self._checksum))
