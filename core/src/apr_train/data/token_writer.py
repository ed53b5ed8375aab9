"""Writing a token file: beside its final name, then renamed, so that a reader sees all of it or nothing."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

import numpy as np
from isal import isal_zlib

from apr_train.data.cache import cached_file
from apr_train.data.token_layout import HEADER_SIZE, TokenHeader
from apr_train.errors import TokenizerError


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
        self._starts = [0]
        self._count = self._max = self._bytes = self._checksum = 0
        self._open: AbstractContextManager[BinaryIO] = cached_file(path)

    def __enter__(self) -> Self:
        self._file = self._open.__enter__()
        self._file.seek(HEADER_SIZE)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._open.__exit__(kind, error, traceback)

    def append(self, ids: Sequence[int], *, text_bytes: int) -> None:
        """Add tokens to the current document.

        Raises:
            TokenizerError: for an id outside the vocabulary.
        """
        self._bytes += text_bytes
        if len(ids):
            self._append_ids(np.asarray(ids, dtype=np.int64))

    def end_document(self, separator: int) -> None:
        """Close the current document with the end-of-text token."""
        self._append_ids(np.array([separator], dtype=np.int64))
        self._starts.append(self._count)

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
        """After the last `end_document`: write the document starts and the header."""
        header = TokenHeader(
            id_bytes=self._dtype.itemsize,
            token_count=self._count,
            document_count=len(self._starts) - 1,
            max_token_id=self._max,
            text_bytes=self._bytes,
            key=self._key,
        )
        self._write(bytes(header.starts_offset - self._file.tell()))
        self._write(np.array(self._starts[:-1], dtype="<u8").tobytes())
        self._file.seek(0)
        self._file.write(header.pack(self._checksum))
