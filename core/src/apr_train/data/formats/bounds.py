"""Bounds: what one record and one file may unpack to, so that a few hostile kilobytes fill neither memory nor a day."""

from __future__ import annotations

from pathlib import Path

from apr_train import rules
from apr_train.errors import DataError

LARGEST_RECORD = 1 << 28
"""Bytes of one line, characters of one record of an array."""
LARGEST_PACKED_TEXT = 1 << 32
"""Bytes of a packed text, which is one document and therefore in memory as a whole."""
LARGEST_UNPACKED = 1 << 40
"""Bytes out of one file, however large it is."""
LARGEST_RATIO = 256
"""Bytes out for each byte of the file; gzip can reach 1032, zstd tens of thousands, text that is worth learning does not."""
ALWAYS_ALLOWED = 1 << 26
"""Bytes out of any file, however small it is."""
LARGEST_ROW_GROUP = 1 << 32
"""Bytes of the wanted columns in one row group of a Parquet file, as its footer says, unpacked."""
LARGEST_BATCH = 1 << 31
"""Bytes of one batch of an Arrow file, unpacked: it is in memory as a whole."""


class Allowance:
    """What may still come out of one file.

    Args:
        path: the file, for the error.
        size: its bytes.
        unpack: what to do instead, as a sentence.
    """

    def __init__(self, path: Path, size: int, unpack: str) -> None:
        self._path, self._size, self._unpack = path, size, unpack
        self.most = min(LARGEST_UNPACKED, max(ALWAYS_ALLOWED, LARGEST_RATIO * size))
        self._spent = 0

    def spend(self, count: int) -> None:
        """Take note of `count` bytes that came out.

        Raises:
            DataError: when that is more than the file may hold.
        """
        self._spent += count
        if self._spent > self.most:
            raise DataError(
                "unpacks to more than a text does",
                where=self._path,
                rule=rules.PREFLIGHT_025,
                expected=f"at most {self.most:,} bytes out of {self._size:,} ({LARGEST_RATIO} times as many)",
                found="more",
                hint=self._unpack,
            )


def too_long(where: str, what: str) -> DataError:
    """The error about one line or record that is larger than `LARGEST_RECORD`."""
    return DataError(
        f"{what} is too long",
        where=where,
        rule=rules.PREFLIGHT_025,
        expected=f"at most {LARGEST_RECORD:,} bytes",
        found="more",
        hint="Is it JSON lines at all? Give a text of that size as a file of its own.",
    )
