"""The header of a token file: 128 bytes, little-endian, in front of the ids and the document starts.

0    magic `APRTOKEN`
8    version, bytes per id (2 or 4)                  2 × u32
16   ids, documents, largest id, bytes of text       4 × u64
48   the key that the file was made for              32 bytes
80   CRC-32 of everything after the header, then of the 80 bytes above       u32
84   zeros
128  the ids, padded with zeros to a multiple of 8, then the documents' starts as u64
"""

from __future__ import annotations

import struct

from attrs import frozen
from isal import isal_zlib

MAGIC = b"APRTOKEN"
VERSION = 1
HEADER_SIZE = 128
_FIELDS = struct.Struct("<8sIIQQQQ32s")
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

    @property
    def starts_offset(self) -> int:
        """Byte offset of the document starts."""
        end = HEADER_SIZE + self.token_count * self.id_bytes
        return end + -end % 8

    @property
    def file_size(self) -> int:
        """Bytes of the whole file."""
        return self.starts_offset + 8 * self.document_count

    def pack(self, body_checksum: int) -> bytes:
        """The header's bytes; `body_checksum` is the CRC-32 of all that follows it."""
        fields = _FIELDS.pack(
            MAGIC, VERSION, self.id_bytes, self.token_count, self.document_count, self.max_token_id, self.text_bytes, self.key
        )
        return (fields + _CHECKSUM.pack(isal_zlib.crc32(fields, body_checksum))).ljust(HEADER_SIZE, b"\0")


def unpack_header(raw: bytes) -> TokenHeader:
    """Read a header.

    Raises:
        DamagedTokenFile: when it is short, or not one.
    """
    if len(raw) < HEADER_SIZE:
        raise DamagedTokenFile(f"{len(raw)} bytes are too few for a header")
    magic, version, id_bytes, tokens, documents, largest, text_bytes, key = _FIELDS.unpack_from(raw)
    if magic != MAGIC or version != VERSION or id_bytes not in (2, 4):
        raise DamagedTokenFile("not a token file of this version")
    return TokenHeader(
        id_bytes=id_bytes, token_count=tokens, document_count=documents, max_token_id=largest, text_bytes=text_bytes, key=key
    )


def checksum_matches(raw_header: bytes, body_checksum: int) -> bool:
    """Whether header and body are what was written."""
    fields = raw_header[: _FIELDS.size]
    (stored,) = _CHECKSUM.unpack_from(raw_header, _FIELDS.size)
    return bool(stored == isal_zlib.crc32(fields, body_checksum))
