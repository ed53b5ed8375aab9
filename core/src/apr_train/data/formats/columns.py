"""Columns: the rows of Parquet and Arrow files, of the wanted columns only, batch by batch.

pyarrow reads them; it is an extra, imported when the first such file is. What its footer or its messages claim is held
against the bounds before it is read, and what an Arrow file holds is validated in full, since offsets are trusted
otherwise.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from apr_train import rules
from apr_train.data.formats import bounds
from apr_train.data.formats.arrow_messages import largest_batch
from apr_train.data.formats.bounds import Allowance
from apr_train.data.formats.packed import open_data, unwatched
from apr_train.data.formats.records import Record
from apr_train.data.formats.utf8 import not_utf8
from apr_train.errors import DataError
from apr_train.suggest import closest

PARQUET_MAGIC = b"PAR1"
ARROW_MAGIC = b"ARROW1"
_READ = 1 << 20
_BATCH_BYTES = 1 << 23
_MOST_ROWS = 1024
_ROW_COST = 16
"""Bytes that a row counts for at least: rows without end may be nothing but nulls."""
_AS_IT_IS = (str, bytes, int, float, type(None))
_LISTED = 24
"""Columns that an error lists, at most."""
_SMALLER = "Write it again in smaller parts: pyarrow.parquet.write_table(table, path, row_group_size=10000)."


def read_parquet(path: Path, wanted: frozenset[str] | None, done: Callable[[int], None] = unwatched) -> Iterator[Record]:
    """The rows of a Parquet file as objects, a batch in memory at a time.

    Args:
        path: the file.
        wanted: the columns to read, those of them that there are; None for all.
        done: told of the bytes of the file, in equal parts by row group.

    Raises:
        DataError: naming the file, for one that is damaged, has none of the columns, a row group of more than
            `LARGEST_ROW_GROUP` bytes, or unpacks to too much; and when pyarrow is not installed.
    """
    pyarrow = _pyarrow(path)
    with _faults(path, "a Parquet file", pyarrow.ArrowException):
        options = {"buffer_size": _READ, "pre_buffer": False, "page_checksum_verification": True}
        with pyarrow.parquet.ParquetFile(path, **options) as file:
            sizes = _column_sizes(path, file)
            names = _chosen(path, file.schema_arrow, wanted, sizes)
            _allowance(path).spend(sum(sizes.get(name, 0) for name in names))
            yield from _rows(path, _parquet_batches(path, file, names, done))


def _parquet_batches(path: Path, file: Any, names: Sequence[str], done: Callable[[int], None]) -> Iterator[Any]:
    size, groups = path.stat().st_size, file.num_row_groups
    for number in range(groups):
        group = file.metadata.row_group(number)
        rows = _rows_at_once(path, number, group, names)
        yield from file.iter_batches(batch_size=rows, row_groups=[number], columns=list(names), use_threads=False)
        done((number + 1) * size // groups - number * size // groups)


def _column_sizes(path: Path, file: Any) -> dict[str, int]:
    """Bytes of each top-level column, unpacked; held against the size of the file on the way."""
    sizes = dict.fromkeys(file.schema_arrow.names, 0)
    packed, length = 0, path.stat().st_size
    for number in range(file.num_row_groups):
        for chunk in _chunks(file.metadata.row_group(number)):
            packed += chunk.total_compressed_size
            if chunk.total_compressed_size < 0 or chunk.total_uncompressed_size < 0 or packed > length:
                raise _damaged(path, "a Parquet file", "its footer claims more bytes than the file has")
            name = _top_level(chunk.path_in_schema, sizes)
            sizes[name] = sizes.get(name, 0) + chunk.total_uncompressed_size
    return sizes


def _chunks(group: Any) -> Iterator[Any]:
    yield from map(group.column, range(group.num_columns))


def _top_level(path_in_schema: str, names: Container[str]) -> str:
    """The column that a path with dots in it belongs to; a name may have dots, too."""
    return path_in_schema if path_in_schema in names else path_in_schema.partition(".")[0]


def _rows_at_once(path: Path, number: int, group: Any, names: Sequence[str]) -> int:
    """Rows to read in one batch: as many as `_BATCH_BYTES` hold.

    A value that a dictionary or its neighbour holds is a few bits in the file and any length in memory, so that of such
    columns every row counts as all of the column.
    """
    chunks = [chunk for chunk in _chunks(group) if _top_level(chunk.path_in_schema, names) in names]
    size = sum(chunk.total_uncompressed_size for chunk in chunks)
    if size > bounds.LARGEST_ROW_GROUP:
        raise DataError(
            "a row group that is too large",
            where=path,
            field=f"row group {number}",
            rule=rules.PREFLIGHT_025,
            expected=f"at most {bounds.LARGEST_ROW_GROUP:,} bytes of {', '.join(names)}",
            found=f"{size:,}",
            hint=_SMALLER,
        )
    plain = all(set(chunk.encodings) <= {"PLAIN", "RLE", "BIT_PACKED"} for chunk in chunks)
    row = max(1, size // max(1, group.num_rows) if plain else size)
    return int(max(1, min(_MOST_ROWS, _BATCH_BYTES // row)))


def read_arrow(path: Path, wanted: frozenset[str] | None, done: Callable[[int], None] = unwatched) -> Iterator[Record]:
    """The rows of an Arrow file, or of an Arrow stream in a file, as objects, a batch in memory at a time.

    Both are read as a stream, in the order of the messages, for that is what is held against the bounds.

    Raises:
        DataError: as `read_parquet`, a batch in the place of a row group.
    """
    pyarrow = _pyarrow(path)
    with _faults(path, "an Arrow file", pyarrow.ArrowException):
        begin = _stream_begin(path)
        _require_small_batches(path, begin)
        with pyarrow.OSFile(str(path)) as file:
            file.seek(begin)
            schema = pyarrow.ipc.read_schema(file)
            names = _chosen(path, schema, wanted, {})
            file.seek(begin)
            fields = [schema.get_field_index(name) for name in names]
            options = pyarrow.ipc.IpcReadOptions(included_fields=fields, use_threads=False)
            with pyarrow.ipc.open_stream(file, options=options) as stream:
                yield from _rows(path, _arrow_batches(path, file, stream, done))


def _arrow_batches(path: Path, file: Any, stream: Any, done: Callable[[int], None]) -> Iterator[Any]:
    before, size = 0, path.stat().st_size
    for batch in stream:
        batch.validate(full=True)
        yield batch
        place = file.tell()
        done(place - before)
        before = place
    done(size - before)


def _stream_begin(path: Path) -> int:
    """Where the messages begin: behind the magic of an Arrow file, which must have it at its end, too."""
    with open_data(path) as file:
        if file.read(len(ARROW_MAGIC)) != ARROW_MAGIC:
            return 0
        if file.seek(0, os.SEEK_END) < 2 * len(ARROW_MAGIC):
            raise _damaged(path, "an Arrow file", "it breaks off")
        file.seek(-len(ARROW_MAGIC), os.SEEK_END)
        if file.read() != ARROW_MAGIC:
            raise _damaged(path, "an Arrow file", "it breaks off: no magic at its end")
    return 8


def _require_small_batches(path: Path, begin: int) -> None:
    try:
        largest = largest_batch(path, begin)
    except ValueError as error:
        raise _damaged(path, "an Arrow file", str(error)) from error
    if largest > bounds.LARGEST_BATCH:
        raise DataError(
            "a batch that is too large",
            where=path,
            rule=rules.PREFLIGHT_025,
            expected=f"at most {bounds.LARGEST_BATCH:,} bytes",
            found=f"{largest:,}",
            hint="Write it again with fewer rows a batch: writer.write_table(table, max_chunksize=10000).",
        )
    _allowance(path).spend(largest)


def _allowance(path: Path) -> Allowance:
    return Allowance(path, path.stat().st_size, "If you trust it, write the texts out as JSON lines.")


def _rows(path: Path, batches: Iterator[Any]) -> Iterator[Record]:
    allowance = _allowance(path)
    number = 0
    for batch in batches:
        columns = dict(zip(batch.schema.names, batch.columns, strict=True))
        for row in range(batch.num_rows):
            where = f"{path}[{number}]"
            record = _record(columns, row, where)
            allowance.spend(_ROW_COST + sum(len(value) for value in record.values() if isinstance(value, str | bytes)))
            yield record, where
            number += 1


def _record(columns: dict[str, Any], row: int, where: str) -> dict[str, Any]:
    try:
        values = {name: column[row].as_py() for name, column in columns.items()}
        return {name: value if isinstance(value, _AS_IT_IS) else _as_json(value) for name, value in values.items()}
    except UnicodeDecodeError as error:
        raise not_utf8(where, f"byte 0x{error.object[error.start]:02x} at byte {error.start} of the text") from error


def _as_json(value: Any) -> Any:
    """A value with nothing in it that JSON lacks: dates and numbers of other kinds as their text."""
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, dict):
        return {str(key): _as_json(item) for key, item in value.items()}
    return [_as_json(item) for item in value] if isinstance(value, list | tuple) else str(value)


def _chosen(path: Path, schema: Any, wanted: frozenset[str] | None, sizes: dict[str, int]) -> list[str]:
    """The columns to read, in the order of the file.

    Raises:
        DataError: when there is none of them: lists those that there are, and which is probably meant.
    """
    names = list(schema.names)
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise _damaged(path, "a table whose columns have names of their own", f"{', '.join(twice)} several times")
    chosen = [name for name in names if wanted is None or name in wanted]
    if chosen or wanted is None:
        return chosen
    likely = _likely(schema, wanted, sizes)
    listed = ", ".join(f"{field.name} ({field.type})" for field in list(schema)[:_LISTED])
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    raise DataError(
        "no such column",
        where=path,
        rule=rules.PREFLIGHT_025,
        expected=" or ".join(sorted(wanted)),
        found=f"the columns {listed}{more}" if names else "no columns",
        hint=f"If {likely!r} is the text: --text-field {likely}" if likely else "None of them holds strings.",
    )


def _likely(schema: Any, wanted: frozenset[str], sizes: dict[str, int]) -> str | None:
    """The column that is probably meant: spelt nearly so, or the largest of strings."""
    strings = [field.name for field in schema if str(field.type) in ("string", "large_string", "string_view")]
    near = next((found for name in sorted(wanted) if (found := closest(name, strings))), None)
    return near or max(strings, key=lambda name: sizes.get(name, 0), default=None)


def _pyarrow(path: Path) -> Any:
    try:
        import pyarrow
        import pyarrow.ipc
        import pyarrow.parquet
    except ImportError as error:
        raise DataError(
            "pyarrow is not installed, which reads it",
            where=path,
            rule=rules.PREFLIGHT_025,
            hint="pip install 'apr-train[arrow]'",
        ) from error
    return pyarrow


@contextmanager
def _faults(path: Path, kind: str, arrow_exception: type[Exception]) -> Iterator[None]:
    """Make one error of all that pyarrow raises about what is in a file."""
    try:
        yield
    except (arrow_exception, OSError, ValueError, LookupError, TypeError, ArithmeticError, RuntimeError, MemoryError) as error:
        found = str(error).partition("\n")[0].rstrip(".") or type(error).__name__
        raise _damaged(path, kind, found) from error


def _damaged(path: Path, kind: str, found: str) -> DataError:
    return DataError(
        "cannot be read",
        where=path,
        rule=rules.PREFLIGHT_025,
        expected=f"{kind}, whole",
        found=found,
        hint="Make or download it again, or leave it out.",
    )
