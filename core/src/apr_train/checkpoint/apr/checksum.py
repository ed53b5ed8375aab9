"""CRC32 with hardware instructions, of a file whose parts are read or written in any order.

`isal` runs at the memory's speed where zlib's table loop is five times slower; `zlib_ng` is as fast but has no combine.
"""

from __future__ import annotations

from collections.abc import Iterator

from isal.isal_zlib import crc32, crc32_combine

__all__ = ["RegionChecksum", "crc32"]


class RegionChecksum:
    """The CRC32 of a whole file, put together from regions that arrive in any order."""

    def __init__(self) -> None:
        self._regions: dict[int, tuple[int, int]] = {}
        self._contradicted = False

    def add(self, start: int, length: int, crc: int) -> None:
        """Account for `length` bytes at `start`; a region that comes twice must be the same both times."""
        known = self._regions.setdefault(start, (length, crc))
        self._contradicted |= known != (length, crc)

    def missing(self, total: int) -> Iterator[tuple[int, int]]:
        """The (start, length) of every stretch of the first `total` bytes that no region covers, in order.

        Raises:
            ValueError: when regions overlap without being the same: the caller cut one stretch in two ways.
        """
        position = 0
        for start, (length, _) in sorted(self._regions.items()):
            if start < position:
                raise ValueError(f"the regions at {start} and before overlap")
            if start > position:
                yield position, start - position
            position = start + length
        if position < total:
            yield position, total - position

    def combined(self) -> int | None:
        """The CRC32 of all regions in order; None if a region read twice differed, for then no value is right."""
        crc = 0
        for _, (length, part) in sorted(self._regions.items()):
            crc = crc32_combine(crc, part, length)
        return None if self._contradicted else crc
