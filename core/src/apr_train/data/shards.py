"""Token shards of other programs: `.bin` files of nanoGPT and llm.c, read in place and checked id by id; written as llm.c's.

nanoGPT (data/*/prepare.py) writes ids of 16 bits and nothing else, an end of text behind every document. llm.c
(dev/data/data_common.py) writes 256 numbers of 32 bits, of which the first three are a magic, a version and how many ids
follow, and puts the end of text in front. Either way documents are what lies between two ends of text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from attrs import frozen

from apr_train import rules
from apr_train.atomic import replace_file
from apr_train.data.formats.packed import open_data, unreadable
from apr_train.errors import DataError
from apr_train.run.events import Say

Ids = np.ndarray[Any, np.dtype[Any]]
SUFFIX = ".bin"
HEADER_BYTES = 256 * 4
MOST_IDS = (1 << 31) - 1
"""Ids in a file of llm.c, whose header counts them in a signed number of 32 bits."""
_FORMS = {2: (20240520, 1), 4: (20240801, 7)}
"""Bytes of an id → magic and version of llm.c."""
_EVALUATION = 20240522
_CHUNK = 1 << 20
"""Ids that are checked at once."""
_NO_SHARDS = (
    (re.compile(rb"PK\x03\x04"), "a zip archive, as torch.save writes"),
    (re.compile(rb"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19\."), "a pickle, as torch.save wrote"),
    (re.compile(rb"\x80[\x04\x05]\x95.{6}\0\0", re.DOTALL), "a pickle"),
    (re.compile(rb"\x80[\x02\x03][\](}cX)K]"), "a pickle"),
    (re.compile(rb"GGUF[\1-\x09]\0\0\0"), "a GGUF"),
    (re.compile(rb".{6}\0\0\{\"", re.DOTALL), "safetensors"),
)


@frozen
class _Layout:
    """Where the ids lie in a shard."""

    offset: int
    """Bytes before the first."""
    id_bytes: int


def is_shard(path: Path) -> bool:
    """Whether a file is a token shard, by its name."""
    return path.suffix.lower() == SUFFIX


def shard_documents(path: Path, *, size: int, end: int, notice: Say | None = None) -> Iterator[Ids]:
    """The documents of a shard, without their ends of text; views of the file, which is mapped and not copied.

    Args:
        path: a `.bin` of nanoGPT or llm.c.
        size: ids of the tokenizer: all in the file must be less.
        end: the tokenizer's end of text.
        notice: told when the end of text never occurs, so that the shard is one document.

    Raises:
        DataError: for a file that is no shard, is not whole, or has an id that the tokenizer does not: its place is named.
    """
    ids = open_shard(path, size=size)
    begin = ends = 0
    for first in range(0, len(ids), _CHUNK):
        chunk = ids[first : first + _CHUNK]
        _require_known(path, chunk, first, size)
        for place in (first + np.flatnonzero(chunk == end)).tolist():
            if place > begin:
                yield ids[begin:place]
            begin, ends = place + 1, ends + 1
    if not ends and notice is not None:
        notice(f"{path}: the end of text (id {end}) is nowhere in it: it is learnt as one document of {len(ids):,} tokens")
    if begin < len(ids):
        yield ids[begin:]


def open_shard(path: Path, *, size: int) -> Ids:
    """The ids of a shard, mapped; that they are the tokenizer's is not checked.

    Raises:
        DataError: for a file that is no shard, or is not whole.
    """
    try:
        layout = _layout(path, path.stat().st_size, size)
        mapped = np.memmap(path, dtype=f"<u{layout.id_bytes}", mode="r", offset=layout.offset)
    except OSError as error:
        raise unreadable(error, path) from error
    return mapped.view(np.ndarray)


def write_shard(path: Path, ids_iter: Iterable[Ids], *, id_bytes: int) -> int:
    """Write ids in the form of llm.c, part by part; the file appears when it is whole. Returns how many ids it has.

    Args:
        path: the file to write.
        ids_iter: the ids in their order, an end of text in front of each document, as llm.c has it.
        id_bytes: 2 or 4.

    Raises:
        DataError: for an id that does not fit, and for more than `MOST_IDS` of them.
        OutputError: when it cannot be written.
    """
    if id_bytes not in _FORMS:
        raise DataError("no such shard", where=path, field="id_bytes", expected=" or ".join(map(str, _FORMS)), found=id_bytes)
    count, magic_version = 0, _FORMS[id_bytes]
    with replace_file(path) as file:
        file.seek(HEADER_BYTES)
        for ids in ids_iter:
            wide = np.asarray(ids)
            _require_known(path, wide, count, 1 << (8 * id_bytes))
            count += len(wide)
            if count > MOST_IDS:
                raise DataError("too many ids for one shard", where=path, expected=f"at most {MOST_IDS:,}", found="more")
            file.write(wide.astype(f"<u{id_bytes}").tobytes())
        header = np.zeros(256, "<i4")
        header[:3] = (*magic_version, count)
        file.seek(0)
        file.write(header.tobytes())
    return count


def _layout(path: Path, length: int, size: int) -> _Layout:
    with open_data(path) as file:
        head = file.read(64)
    _require_a_shard(path, head)
    numbers = np.frombuffer(head[:12], "<i4").tolist() if len(head) >= 12 else []
    form = next((id_bytes for id_bytes, form in _FORMS.items() if numbers[:1] == [form[0]]), None)
    if form is not None:
        return _of_llm_c(path, length, form, version=numbers[1], count=numbers[2])
    if numbers[:1] == [_EVALUATION]:
        raise _no_shard(path, "questions of llm.c to evaluate on")
    return _of_nano_gpt(path, length, size)


def _require_a_shard(path: Path, head: bytes) -> None:
    found = next((name for pattern, name in _NO_SHARDS if pattern.match(head)), None)
    if found is not None:
        raise _no_shard(path, found)


def _no_shard(path: Path, found: str) -> DataError:
    return DataError(
        "no token shard",
        where=path,
        rule=rules.PREFLIGHT_025,
        expected="ids as nanoGPT or llm.c write them",
        found=found,
        hint="Nothing is unpickled here; weights are given with --init." if "pickle" in found or "zip" in found else None,
    )


def _of_llm_c(path: Path, length: int, id_bytes: int, *, version: int, count: int) -> _Layout:
    if version != _FORMS[id_bytes][1]:
        raise _damaged(path, "version", f"{_FORMS[id_bytes][1]}", f"{version}")
    there = (length - HEADER_BYTES) / id_bytes
    if length < HEADER_BYTES or count != there:
        found = f"{max(0, there):,g} in {length:,} bytes"
        raise _damaged(path, "count", f"{count:,} ids of {id_bytes} bytes behind the header, as it says", found)
    if not count:
        raise _damaged(path, "count", "at least one id", "none")
    return _Layout(HEADER_BYTES, id_bytes)


def _of_nano_gpt(path: Path, length: int, size: int) -> _Layout:
    if not length or length % 2:
        raise _damaged(path, "size", "ids of 2 bytes each, at least one", f"{length:,} bytes")
    if size > 1 << 16:
        raise DataError(
            "ids of 16 bits for a tokenizer that has more",
            where=path,
            rule=rules.PREFLIGHT_025,
            expected=f"a header of llm.c (magic {_FORMS[4][0]}) before ids of 32 bits, for a tokenizer of {size:,} ids",
            found="no header, as nanoGPT writes",
            hint="Was it made with this tokenizer? apr-train tokenize makes shards of text.",
        )
    return _Layout(0, 2)


def _damaged(path: Path, field: str, expected: str, found: str) -> DataError:
    return DataError(
        "a damaged token shard",
        where=path,
        field=field,
        rule=rules.PREFLIGHT_025,
        expected=expected,
        found=found,
        hint="Make or copy it again.",
    )


def _require_known(path: Path, ids: Ids, first: int, size: int) -> None:
    """Refuse ids outside 0 to size - 1; `first` is the place of the first one in the shard."""
    if not len(ids) or (int(ids.max()) < size and int(ids.min()) >= 0):
        return
    place = int(np.flatnonzero((ids >= size) | (ids < 0))[0])
    raise DataError(
        "an id that the tokenizer does not have",
        where=path,
        field=f"id {first + place:,}",
        rule=rules.PREFLIGHT_025,
        expected=f"0 to {size - 1:,}",
        found=int(ids[place]),
        hint="Was the shard made with another tokenizer?",
    )
