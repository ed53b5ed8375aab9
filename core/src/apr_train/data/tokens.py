"""Token ids of one side of a corpus, read through a memory map."""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import Any

import numpy as np
from attrs import field, frozen
from isal import isal_zlib

from apr_train.data.token_layout import (
    HEADER_SIZE,
    DamagedTokenFile,
    TokenHeader,
    checksum_matches,
    unpack_header,
)

_CHUNK = 1 << 22


@frozen(kw_only=True)
class TokenFile:
    """All documents of one side, one after the other, each ended by the end-of-text token."""

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
    path: Path | None = None
    """The file; None for tokens that live in memory."""

    def __len__(self) -> int:
        return int(self.ids.shape[0])

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
        with path.open("rb") as file:
            raw = file.read(HEADER_SIZE)
            header = unpack_header(raw)
            _check_header(header, path, key=key, size=size)
            view = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        if not checksum_matches(raw, _checksum(view[HEADER_SIZE:])):
            raise DamagedTokenFile("its checksum does not match")
        ids = np.frombuffer(view, dtype=f"<u{header.id_bytes}", count=header.token_count, offset=HEADER_SIZE)
        starts = np.frombuffer(view, dtype="<u8", count=header.document_count, offset=header.starts_offset)
        largest = header.max_token_id
        return cls(ids=ids, starts=starts, max_token_id=largest, text_bytes=header.text_bytes, key=key, path=path)


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
