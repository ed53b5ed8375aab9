"""The documents of a source read once, before any is encoded: their hash, their sizes and keys, and what was left out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any, overload

import attrs
from attrs import field, frozen

from apr_train import rules
from apr_train.data.cache import cache_folder
from apr_train.data.documents import (
    Document,
    Form,
    NoRecordsError,
    Take,
    TextRecords,
    file_form,
    is_json,
    read_documents,
    require_records,
)
from apr_train.data.formats.packed import unpacked_name
from apr_train.data.formats.utf8 import NotUtf8Error
from apr_train.data.gitignore import rules_above
from apr_train.data.id_documents import ShardIds, read_ids
from apr_train.data.sources import Found, counted, search_files
from apr_train.data.split import KeyScan, Texts, split_key
from apr_train.data.unchanged import Readout, Seen, Unchanged, now, states_of
from apr_train.errors import DataError
from apr_train.run.events import Say
from apr_train.run.settings import DataSettings


@frozen(kw_only=True)
class Wanted:
    """What is to be read together."""

    name: str | None
    paths: tuple[str, ...]
    """Files, folders and globs; none stand for the standard library."""
    take: Take
    shards: ShardIds | None = None
    """What the ids mean, where the files are shards of them; None where they are texts."""


@frozen(kw_only=True)
class Contents:
    """What one reading of all documents of a source tells, before it is known what other sources hold out."""

    name: str | None
    """The source's."""
    files: Sequence[Path] = field(repr=False)
    """The files that are read."""
    hash: str
    """Hex digest of the texts in their order."""
    text_bytes: int
    """UTF-8 bytes of all texts."""
    texts: Texts = field(repr=False, eq=False)
    take: Take
    """What is taken of each record."""
    shards: ShardIds | None = None
    """For files of token ids: what they mean."""
    notes: tuple[str, ...] = ()
    """What was left out, and what was taken for what."""
    documents: int
    """How many there are, copies counted."""
    recalled: Path | None = field(default=None, eq=False, repr=False)
    """The entry of the cache that this is from; None: the files were read."""


class Paths(Sequence[Path]):
    """Paths made when they are asked for: of a hundred thousand files nobody may ask."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names

    def __len__(self) -> int:
        return len(self._names)

    @overload
    def __getitem__(self, place: int) -> Path: ...
    @overload
    def __getitem__(self, place: slice) -> Paths: ...
    def __getitem__(self, place: int | slice) -> Path | Paths:
        return Paths(self._names[place]) if isinstance(place, slice) else Path(self._names[place])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment] # as that of a list


def known_or_found(
    wanted: Wanted, settings: DataSettings, unchanged: Unchanged | None, *, notice: Say, note: bool = True
) -> Contents | Found:
    """What a source holds, by an earlier reading of the same files; its files, when one has changed, or there was none.

    Args:
        wanted: the source.
        settings: how its files are searched for.
        unchanged: the earlier readings.
        notice: told of what the search left out.
        note: whether it is noted for later that files were searched for and found to be the same.

    Raises:
        DataError: as `find_files`.
    """
    place = None if unchanged is None else _place(wanted, unchanged)
    if unchanged is not None and place is not None:
        known = unchanged.recall_unsought(place, _search(wanted, settings))
        if known is not None:
            for text in known.left_out:
                notice(text)
            return _contents(wanted, known, place)
    began = now()
    found = search_files(wanted.paths, gitignore=settings.gitignore, shards=wanted.shards is not None)
    found = attrs.evolve(found, began=began)
    for text in found.left_out:
        notice(text)
    known = None if unchanged is None or place is None else unchanged.recall(place, found.files)
    if unchanged is None or place is None or known is None:
        return found
    if note and found.seen is not None:
        unchanged.keep(place, attrs.evolve(known, left_out=found.left_out), _seen(wanted, found, settings))
    return _contents(wanted, known, place)


def _search(wanted: Wanted, settings: DataSettings) -> dict[str, Any]:
    """What decides which files are found, beside what the search sees."""
    folders = [Path(path) for path in wanted.paths if settings.gitignore and Path(path).is_dir()]
    trees = [rules_above(folder)[1] for folder in folders]
    return {"gitignore": settings.gitignore, "work_trees": trees, "cache": str(cache_folder())}


def _contents(wanted: Wanted, known: Readout, place: Path) -> Contents:
    return Contents(
        name=wanted.name,
        files=Paths(known.kept),
        hash=known.hash,
        text_bytes=known.text_bytes,
        texts=known.texts,
        take=wanted.take,
        shards=wanted.shards,
        notes=known.notes,
        documents=len(known.keys),
        recalled=place,
    )


def is_known(wanted: Wanted, unchanged: Unchanged) -> bool:
    """Whether there was an earlier reading of a source, whatever became of its files."""
    return unchanged.holds(_place(wanted, unchanged))


def _place(wanted: Wanted, unchanged: Unchanged) -> Path:
    ids = {} if wanted.shards is None else {"size": wanted.shards.size, "end": wanted.shards.end}
    return unchanged.place(paths=wanted.paths, take=wanted.take.fingerprint, ids=ids)


def read_source(
    wanted: Wanted,
    found: Found,
    settings: DataSettings,
    unchanged: Unchanged | None = None,
    *,
    notice: Say,
    done: Callable[[int], None] = lambda _: None,
) -> Contents:
    """Read the files of a source, and note in `unchanged` what they told; `notice` is told of what was left out.

    Raises:
        DataError: when they cannot be read, or have no document.
    """
    seen = _seen(wanted, found, settings)
    reading = Reading(wanted)
    for path in found.files:
        reading.read(path, done)
    for text in reading.notices():
        notice(text)
    contents = reading.contents()
    if unchanged is not None:
        keys, sizes = reading.keys.numbers
        told = Readout(
            kept=[str(path) for path in contents.files],
            hash=contents.hash,
            text_bytes=contents.text_bytes,
            notes=contents.notes,
            keys=keys,
            sizes=sizes,
            left_out=found.left_out,
        )
        unchanged.keep(_place(wanted, unchanged), told, seen)
    return contents


def _seen(wanted: Wanted, found: Found, settings: DataSettings) -> Seen:
    """What a reading depends on, before it begins."""
    files = [str(path) for path in found.files]
    known = set(files)
    others = [path for path in dict.fromkeys(found.seen or ()) if path not in known]
    search = None if found.seen is None else _search(wanted, settings)
    return Seen(files=files, others=others, search=search, states=states_of([*files, *others]), began=found.began)


class Reading:
    """The documents of files as they are read: their hash and keys, and which of the files are taken how."""

    def __init__(self, wanted: Wanted) -> None:
        self._wanted = wanted
        self._take = wanted.take
        self._named = {Path(argument).resolve() for argument in wanted.paths}
        self.digest, self.keys = TextDigest(), KeyScan()
        self.kept: list[Path] = []
        self._not_utf8: list[Path] = []
        self._no_records: list[Path] = []
        self._json: dict[Form, int] = {}
        self._of_shards: list[str] = []
        self._notebooks = self._tables = self._of_records = 0

    def read(self, path: Path, done: Callable[[int], None] = lambda _: None) -> None:
        """Take all documents of a file.

        Raises:
            DataError: for what cannot be read, and for data and named files that are not what they should be.
        """
        shards = self._wanted.shards
        form = self.form(path) if shards is None else "array"
        try:
            for document in documents_of([path], self._take, shards, done, self._of_shards.append):
                self.keys.add(split_key(document), self.digest.add(document))
            self.kept.append(path)
        except NotUtf8Error:
            if form != "text" or path.resolve() in self._named:
                raise
            self._not_utf8.append(path)
        except NoRecordsError:
            if path.resolve() in self._named:
                raise
            self._no_records.append(path)

    def form(self, path: Path) -> Form:
        """How documents lie in a file, noted for `notices`.

        Raises:
            DataError: when it cannot be read, or is a named list of no texts.
        """
        form = file_form(path, self._take)
        if is_json(path):
            if form == "text" and path.resolve() in self._named:
                require_records(path, self._take)
            self._json[form] = self._json.get(form, 0) + 1
        self._notebooks += path.suffix.lower() == ".ipynb"
        self._tables += form == "text" and unpacked_name(path).suffix.lower() in (".csv", ".tsv")
        self._of_records += form != "text"
        return form

    def notices(self) -> Iterator[str]:
        """What was left out, and what was taken for what."""
        yield from self._of_shards
        if self._not_utf8:
            yield f"files left out because they are not UTF-8: {counted(self._not_utf8)}"
        if self._no_records:
            yield f"files left out because they hold no records: {counted(self._no_records)}"
        if self._json:
            taken = (f"{self._json[form]} {how}" for form, how in _TAKEN.items() if form in self._json)
            yield f".json files: {', '.join(taken)}"
        if self._notebooks:
            yield f".ipynb files: {self._notebooks} taken as the JSON that they are; nbconvert makes scripts of them"
        if self._tables:
            yield f".csv and .tsv files: {self._tables} taken as text as they stand, not by column"
        if self.kept and not self._of_records and isinstance(self._take, TextRecords) and self._take.field is not None:
            where = ", ".join(self._wanted.paths)
            yield f"{where}: the text field {self._take.field!r} means nothing here: all files are texts as they stand"

    def contents(self) -> Contents:
        """What was read.

        Raises:
            DataError: when there was no document.
        """
        if self._no_records and not self.kept:
            raise DataError(
                "none of the files holds records",
                where="--data",
                field=self._wanted.name or "",
                rule=rules.PREFLIGHT_025,
                expected="JSON lines, a JSON array of records, Parquet or Arrow",
                found=f"texts: {counted(self._no_records)}",
                hint='Plain texts are for --objective causal-lm or fim, or a source of kind = "text" beside one of records.',
            )
        try:
            texts = self.keys.texts()
        except DataError as error:
            found = f"none in {', '.join(self._wanted.paths) or 'the standard library'}"
            raise error.amend(field=self._wanted.name or "", found=found) from error
        return Contents(
            name=self._wanted.name,
            files=tuple(self.kept),
            hash=self.digest.hex(),
            text_bytes=self.digest.text_bytes,
            texts=texts,
            take=self._take,
            shards=self._wanted.shards,
            notes=tuple(self.notices()),
            documents=int(texts.copies.sum()) + len(texts.keys),
        )


_TAKEN: dict[Form, str] = {
    "array": "read as arrays, a document a record",
    "lines": "read as JSON lines, a document a line",
    "text": "taken as text as they stand",
}


def documents_of(
    files: Iterable[Path],
    take: Take,
    shards: ShardIds | None,
    done: Callable[[int], None] = lambda _: None,
    notice: Say | None = None,
) -> Iterator[Document]:
    """What files hold: texts, or token ids."""
    return read_documents(files, take, done=done) if shards is None else read_ids(files, shards, done=done, notice=notice)


class TextDigest:
    """A hash of texts in their order; the lengths keep two texts apart from their concatenation."""

    def __init__(self) -> None:
        self._hash = blake2b(digest_size=32)
        self.text_bytes = 0

    def add(self, document: Document) -> int:
        """Take one more text; returns its bytes."""
        raw = document.utf8
        self._hash.update(len(raw).to_bytes(8, "little"))
        self._hash.update(raw)
        self.text_bytes += len(raw)
        return len(raw)

    def hex(self) -> str:
        """The hash so far."""
        return self._hash.hexdigest()
