"""A checkpoint with more rows in its embedding and its head than the file has: what a run with new tokens starts from.

To everything that follows it is a checkpoint like every other, whose header has the larger vocabulary and the tokenizer with
the new tokens; so that the loading, a resume, the model that is written and its exports need not know of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import attrs
import numpy as np
from attrs import field, frozen

from apr_train.checkpoint.checkpoint import Checkpoint, Stream, Streaming, TensorView
from apr_train.checkpoint.dtypes import DTYPES, FLOATS, Array, bytes_of, cast_pieces, plain_view, values_of
from apr_train.checkpoint.header import Header, TensorInfo, TokenizerSpec
from apr_train.checkpoint.reference import KEY as REFERENCE

_CHUNK = 4096
"""Rows whose sum is made at a time."""


@frozen(kw_only=True)
class Growth:
    """What is new in a grown vocabulary."""

    tokenizer: TokenizerSpec = field(repr=False)
    """The tokenizer with the new tokens."""
    tokens: Mapping[str, int] = field(repr=False)
    """New token → id; the ids follow each other."""
    known: int
    """Ids that had a token before: the rows [0, known) stay as they are."""
    before: int
    """Rows that the file has."""
    rows: int
    """Rows that there are then."""
    tensors: frozenset[str] = field(repr=False)
    """Names of the tensors that have a row for each id."""
    pieces: Mapping[int, tuple[int, ...]] = field(factory=dict, repr=False)
    """New id → the old ids whose rows' mean it begins with; all old ones' where it says nothing."""

    @property
    def ids(self) -> frozenset[int]:
        """The new ids."""
        return frozenset(self.tokens.values())

    def __str__(self) -> str:
        free = min(self.before - self.known, len(self.tokens))
        rows = [f"{free:,} in free rows"] if free else []
        rows += [f"{self.rows - self.before:,} in new ones"] if self.rows > self.before else []
        words = sum(1 for token in self.tokenizer.added_tokens if token.id in self.ids and not token.special)
        return f"{len(self.tokens):,} new tokens ({', '.join(rows)}), {words:,} of them words; {self.rows:,} rows"


def grow(checkpoint: Checkpoint, growth: Growth, header: Header) -> Grown:
    """The checkpoint with the growth; `header` is its own, its tie decided. Closing the one closes the other."""
    return (_StreamingGrown if isinstance(checkpoint, Streaming) else Grown)(checkpoint, growth, header)


class Grown:
    """A checkpoint, and the rows that it does not have; made by `grow`. Implements `checkpoint.Checkpoint`."""

    header: Header

    def __init__(self, base: Checkpoint, growth: Growth, header: Header) -> None:
        self.base, self.growth = base, growth
        self._means: dict[str, Array] = {}
        self.header = attrs.evolve(
            header,
            config={**header.config, "vocab_size": growth.rows},
            tensors={name: self._info(info) for name, info in header.tensors.items()},
            tokenizer=growth.tokenizer,
            # it is the loss of a model without the new tokens
            extra={key: value for key, value in header.extra.items() if key != REFERENCE},
        )

    def _info(self, info: TensorInfo) -> TensorInfo:
        if info.name not in self.growth.tensors:
            return info
        dtype = info.dtype if info.dtype in FLOATS else "F32"  # of blocks no single row can be written
        shape = (self.growth.rows, *info.shape[1:])
        return TensorInfo(info.name, dtype, shape, DTYPES[dtype].nbytes(math.prod(shape)))

    @property
    def files(self) -> tuple[Path, ...]:
        """The checkpoint's."""
        return self.base.files

    def read(self, name: str) -> TensorView:
        """The tensor with its new rows."""
        if name not in self.growth.tensors:
            return self.base.read(name)
        return self.grown(name, [self.base.read(name).data])

    def read_raw(self, name: str) -> memoryview:
        """The same as bytes."""
        return bytes_of(self.read(name).data) if name in self.growth.tensors else self.base.read_raw(name)

    def grown(self, name: str, pieces: Iterable[Array]) -> TensorView:
        """A tensor with its new rows, from its old elements in order."""
        info = self.header.tensors[name]
        held = np.empty(info.shape, DTYPES[info.dtype].numpy)
        flat, done = held.reshape(-1), 0
        for piece in pieces:
            flat[done : done + piece.size] = piece.reshape(-1)
            done += piece.size
        old = held[: self.growth.before]
        for index in self.growth.ids:
            held[index] = self._row(name, old[: self.growth.known], info.dtype, self.growth.pieces.get(index))
        return plain_view(info.dtype, info.shape, bytes_of(held))

    def _row(self, name: str, old: Array, dtype: str, of: tuple[int, ...] | None) -> Array:
        """The mean of some rows, or of all, in the tensor's type."""
        mean = values_of(old[list(of)], dtype).mean(axis=0, dtype=np.float64) if of else self._mean(name, old, dtype)
        wide = TensorView("F64", np.atleast_1d(mean))
        return np.concatenate(list(cast_pieces(wide, dtype, path=self.header.path, name=name))).reshape(old.shape[1:])

    def _mean(self, name: str, old: Array, dtype: str) -> Array:
        """`[width]` float64: the mean of all rows, made once for a tensor."""
        if name not in self._means:
            chunks = (old[start : start + _CHUNK] for start in range(0, len(old), _CHUNK))
            self._means[name] = sum(values_of(chunk, dtype).sum(axis=0, dtype=np.float64) for chunk in chunks) / len(old)
        return self._means[name]

    def content_hash(self) -> str:
        """Of the checkpoint as it lies there: a run is known by what it started from."""
        return self.base.content_hash()

    def close(self) -> None:
        """Let go of the checkpoint's file."""
        self.base.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class _StreamingGrown(Grown):
    """The same over a checkpoint that can be streamed, and checks its data as it goes."""

    @property
    def verify_data(self) -> bool:
        """Whether a stream checks the data unless told otherwise."""
        return self._streaming.verify_data

    @property
    def _streaming(self) -> Streaming:
        if not isinstance(self.base, Streaming):
            raise TypeError("grow() makes this of a checkpoint that can be streamed")
        return self.base

    def stream(self, *, verify: bool | None = None) -> Stream:
        """A pass over the checkpoint's file, in which the tensors that grow have their new rows."""
        return _GrownStream(self, self._streaming.stream(verify=verify))


class _GrownStream:
    """A pass over the file, with the new rows in it; every byte of the file goes through the checksum as without them."""

    def __init__(self, grown: Grown, stream: Stream) -> None:
        self._grown, self._stream = grown, stream

    def read_into(self, name: str, buffer: memoryview) -> None:
        """Fill a writable buffer of exactly the tensor's grown size."""
        if name in self._grown.growth.tensors:
            buffer[:] = bytes_of(self._whole(name).data)
        else:
            self._stream.read_into(name, buffer)

    def parts(self, name: str, buffer: memoryview) -> Iterator[Callable[[], int]]:
        """`read_into` in calls that threads may make; a tensor that grows is made here: two at once took twice the memory."""
        if name in self._grown.growth.tensors:
            self.read_into(name, buffer)
            yield lambda: buffer.nbytes
        else:
            yield from self._stream.parts(name, buffer)

    def chunks(self, name: str) -> Iterator[memoryview]:
        """The tensor's bytes in order."""
        if name in self._grown.growth.tensors:
            yield bytes_of(self._whole(name).data)
        else:
            yield from self._stream.chunks(name)

    def values(self, name: str) -> Iterator[TensorView]:
        """The tensor's elements in order, flat."""
        if name in self._grown.growth.tensors:
            view = self._whole(name)
            yield TensorView(view.dtype, view.data.reshape(-1))
        else:
            yield from self._stream.values(name)

    def _whole(self, name: str) -> TensorView:
        return self._grown.grown(name, (piece.data for piece in self._stream.values(name)))

    def __enter__(self) -> Self:
        self._stream.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stream.__exit__(kind, error, trace)
