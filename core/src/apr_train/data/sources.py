"""Which files a corpus is made of, always in the same order; never hidden, compiled or linked ones, nor what we wrote.

Links are not followed because two of them that lead to a folder above themselves make paths without end. A run's folder
is left out because its text grows while it trains: the next run on the same `--data`, and every resume, would see another
corpus; the cache holds trained tokenizers, which are text, too. What a checkout's `.gitignore` leaves out was made from
the rest, or by other people: builds, environments, packages.
"""

from __future__ import annotations

import glob
import os
import platform
import re
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from attrs import Factory, define, field, frozen

from apr_train import rules
from apr_train.checkpoint.given import is_address
from apr_train.data.cache import cache_folder
from apr_train.data.formats.packed import unreadable
from apr_train.data.gitignore import NAME as RULES
from apr_train.data.gitignore import GitIgnore, rules_above
from apr_train.data.hub import of_address, of_name
from apr_train.data.kinds import COLUMNS, kind_of, what_to_do
from apr_train.data.saved import data_files, is_description, is_held_out_name, other_splits
from apr_train.data.shards import SUFFIX as SHARD_SUFFIX
from apr_train.data.shards import is_shard
from apr_train.errors import DataError
from apr_train.run.events import Say
from apr_train.run.folder import CONFIG, IDENTITY, LOCK
from apr_train.suggest import closest

COMPILED = "__pycache__"
PACKAGES = "node_modules"
ENVIRONMENT = "pyvenv.cfg"
"""What lies in every virtual environment."""
_STDLIB_EXCLUDED = frozenset({"test", "tests", "idle_test", "site-packages", "dist-packages"})
_NAMED = 3
_MAGIC = re.compile(r"[*?\[]")
_ESCAPED = re.compile(r"\[([*?\[])\]")
"""A character of a glob that stands for itself, as `glob.escape` writes it."""


def is_own_output(folder: Path) -> bool:
    """Whether this is the folder of a run, or the cache.

    A run has its identity from its start, and its lock or its settings ever after, whatever ends it.
    """
    if (folder / IDENTITY).is_file() and any((folder / name).is_file() for name in (LOCK, CONFIG)):
        return True
    cache = cache_folder()
    return cache.exists() and folder.samefile(cache)


@define
class LeftOut:
    """What a search found and did not take."""

    own: set[Path] = Factory(set)
    """Folders that this program wrote."""
    installed: set[Path] = Factory(set)
    """Virtual environments and packages of Node."""
    ignored: set[Path] = Factory(set)
    """Files and folders that a `.gitignore` leaves out."""
    no_text: dict[str, list[Path]] = Factory(dict)
    """Files that hold no text as they stand, by what they are."""
    beside: set[Path] = Factory(set)
    """What lies beside the data of a data set and is none: cards, descriptions."""
    splits: set[Path] = Factory(set)
    """Splits of data sets that are not the one to train on."""
    shards: bool = False
    """Whether token shards are searched for, and no text."""
    seen: list[str] = field(factory=list, repr=False)
    """Every folder that was listed, with the files in it that count: while none of them changes, the search finds the same."""
    git: GitIgnore | None = field(default=None, repr=False)
    """The rules of the checkout; None: none are asked for."""

    def takes(self, folder: Path) -> bool:
        """Whether a folder below another is gone into; notes it if not."""
        if is_own_output(folder):
            self.own.add(folder)
        elif (folder / ENVIRONMENT).is_file() or folder.name == PACKAGES:
            self.installed.add(folder)
        elif self.git is not None and self.git.leaves_out(folder, is_folder=True):
            self.ignored.add(folder)
        else:
            return True
        return False

    def sees(self, root: str, folders: Sequence[str], names: Sequence[str]) -> None:
        """Note what a folder holds: its files, a list of rules, and links to folders, which may become links to files."""
        shown = (name for name in names if not name.startswith(".") or name == RULES)
        links = (name for name in folders if not name.startswith(".") and os.path.islink(os.path.join(root, name)))  # noqa: PTH114, PTH118  # a hundred thousand times
        self.seen += [os.path.join(root, name) for name in (*shown, *links)]  # noqa: PTH118  # the same

    def takes_file(self, path: Path) -> bool:
        """Whether git's rules leave a file in; notes it if not."""
        if self.git is None or not self.git.leaves_out(path, is_folder=False):
            return True
        self.ignored.add(path)
        return False

    def takes_text(self, path: Path) -> bool:
        """Whether a file may be text, or is a shard where these are searched for; notes it if not.

        Raises:
            OSError: when it cannot be read.
        """
        if self.shards:
            return self._takes_shard(path)
        if is_description(path):
            self.beside.add(path)
            return False
        kind, has_nul = kind_of(path)
        if kind in COLUMNS or (kind is None and not has_nul):
            return True
        self.no_text.setdefault("with NUL bytes" if kind is None else kind.name, []).append(path)
        return False

    def _takes_shard(self, path: Path) -> bool:
        if not is_shard(path):
            self.no_text.setdefault(f"no {SHARD_SUFFIX}", []).append(path)
        return is_shard(path)

    def data_of(self, folder: Path, folders: list[str], names: list[str]) -> list[str]:
        """The files of a folder that are data, in their order; drops the folders of splits that are not learnt, and notes both.

        Raises:
            DataError: for a damaged data set, and one without a split to train on.
        """
        for split in other_splits(folder, names, folders):
            if split in folders:
                folders.remove(split)
                self.splits.add(folder / split)
        taken, beside = data_files(folder, names)
        self.beside.update(folder / name for name in beside if not is_held_out_name(name))
        self.splits.update(folder / name for name in beside if is_held_out_name(name))
        return taken

    def __str__(self) -> str:
        """Kind by kind: how many, and the first ones."""
        parts = {"by .gitignore": sorted(self.ignored), **dict(sorted(self.no_text.items()))}
        parts |= {
            "what describes a data set": sorted(self.beside),
            "splits of a data set that are not train": sorted(self.splits),
        }
        parts |= {"environments and installed packages": sorted(self.installed), "output of apr-train itself": sorted(self.own)}
        return "; ".join(f"{kind}: {counted(paths)}" for kind, paths in parts.items() if paths)


def walk(top: Path, left_out: LeftOut, excluded: frozenset[str] = frozenset()) -> Iterator[tuple[Path, list[str]]]:
    """A folder and those below it, each with the names of its files; all names sorted, none hidden.

    Args:
        top: is gone into whatever it is, for it was named.
        left_out: decides about the folders below, and notes those that are not gone into.
        excluded: names of folders to leave out.

    Raises:
        OSError: when a folder cannot be listed.
        DataError: as `LeftOut.data_of`.
    """
    waiting = [top]  # no recursion, as os.walk has until Python 3.12: folders may be nested deeper than calls
    while waiting:
        folder = waiting.pop()
        left_out.seen.append(str(folder))
        if folder != top and not left_out.takes(folder):
            continue
        with os.scandir(folder) as entries:
            every = {entry.name: entry for entry in entries}
        below = {name: entry for name, entry in every.items() if _is_folder(entry)}
        files = [name for name in every if name not in below]
        left_out.sees(str(folder), list(below), files)
        folders = sorted(name for name in below if not name.startswith(".") and name not in excluded | {COMPILED})
        yield folder, left_out.data_of(folder, folders, sorted(name for name in files if not name.startswith(".")))
        waiting += [folder / name for name in reversed(folders) if not below[name].is_symlink()]


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link in a circle, or to where nobody may look
        return False


def matches(pattern: str, left_out: LeftOut) -> Iterator[Path]:
    """What a glob matches, in no order and perhaps twice; `**` goes where `walk` goes, and so has an end.

    Raises:
        OSError: when a folder cannot be listed.
    """
    parts = Path(pattern).parts
    if "**" not in parts:
        yield from map(Path, glob.glob(pattern))  # noqa: PTH207 - the pattern may be absolute
        return
    place = parts.index("**")
    rest = parts[place + 1 :]
    for top in map(Path, glob.glob(str(Path(*parts[:place])))):  # noqa: PTH207 - the same
        if not top.is_dir():
            continue
        if not rest:
            yield top
            continue
        for folder, _ in walk(top, left_out):
            found = matches(str(Path(glob.escape(str(folder)), *rest)), left_out)
            yield from (path for path in found if path.is_file() or not path.is_symlink())


def find_files(data: Iterable[str], *, notice: Say, gitignore: bool = True, shards: bool = False) -> list[Path]:
    """The files behind `--data`, or the standard library's own source when there is no `--data`.

    A folder stands for every text file below it: hidden names, `__pycache__` and linked folders are left out; with a
    notice also what is no text, what a checkout's `.gitignore` leaves out, environments, and what this program wrote
    itself. The same holds for what a glob matches, while a file or a folder that is named is taken. A file that several
    arguments reach is taken once. With `shards` only token shards are taken, by their name.

    Raises:
        DataError: when an argument matches nothing, is no text, or cannot be read.
    """
    found = search_files(data, gitignore=gitignore, shards=shards)
    for text in found.left_out:
        notice(text)
    return list(found.files)


@frozen(kw_only=True)
class Found:
    """What a search for the files of a source told."""

    files: Sequence[Path] = field(repr=False)
    left_out: tuple[str, ...] = ()
    """What was left out, in words, argument by argument."""
    seen: tuple[str, ...] | None = field(default=None, repr=False)
    """Paths: while none of these files and folders changes, the search finds the same; None: it depends on more."""
    began: int = 0
    """When the search began, in ns; 0 where nobody notes it."""


def search_files(data: Iterable[str], *, gitignore: bool = True, shards: bool = False) -> Found:
    """`find_files`, with what the search depended on.

    Raises:
        DataError: as `find_files`.
    """
    unique: dict[Path, Path] = {}
    sought = searches(data, gitignore=gitignore, shards=shards)
    for search in sought:
        for path in search.files():
            unique.setdefault(path.resolve(), path)
    seen = [search.seen for search in sought]
    return Found(
        files=list(unique.values()),
        left_out=tuple(search.left_out_text for search in sought if search.left_out_text),
        seen=None if None in seen else tuple(path for paths in seen for path in paths or ()),
    )


def searches(data: Iterable[str], *, gitignore: bool = True, shards: bool = False) -> list[Search]:
    """One search for every argument of `--data`, or one for the standard library."""
    return [Search(argument, gitignore=gitignore, shards=shards) for argument in data] or [Search(None)]


class Search:
    """The files behind one argument of `--data`; None stands for the standard library's own source."""

    def __init__(self, argument: str | None, *, gitignore: bool = True, shards: bool = False) -> None:
        self.argument = argument
        self._gitignore = gitignore
        self._left_out = LeftOut(shards=shards)

    @property
    def left_out_text(self) -> str:
        """What `files` has left out so far, in words; empty for nothing."""
        left_out = str(self._left_out)
        return f"{self.argument}: left out: {left_out}" if left_out else ""

    @property
    def seen(self) -> Sequence[str] | None:
        """The paths on whose state alone hangs what `files` finds; None where there are others: globs, data sets, shards."""
        if self.argument is None or self._left_out.shards or self._left_out.beside or self._left_out.splits:
            return None
        path = Path(self.argument)
        if path.is_dir():
            return [*self._left_out.seen, *rules_above(path)[0]]
        return [self.argument] if path.is_file() else None

    def files(self) -> Iterator[Path]:
        """The files, one after the other, each looked at when it is its turn.

        Raises:
            DataError: when there is none, a named one is no text, or something cannot be read.
        """
        with _reading():
            if self.argument is None:
                yield from _standard_library()
            elif Path(self.argument).is_file():
                yield _named(Path(self.argument), shards=self._left_out.shards)
            else:
                yield from self._texts(self.argument)

    def _texts(self, argument: str) -> Iterator[Path]:
        found = False
        for path in dict.fromkeys(_found(argument, self._left_out, gitignore=self._gitignore)):
            if self._left_out.takes_text(path):
                found = True
                yield path
        if not found:
            raise _no_text(argument, self._left_out)


def describe_sources(data: Iterable[str]) -> str:
    """Where a corpus comes from, in words for a model card."""
    return ", ".join(data) or f"the standard library of Python {platform.python_version()} (PSF-2.0)"


def counted(paths: Iterable[Path]) -> str:
    """How many paths, and which the first ones are, for a notice: `5 (a, b, c, …)`."""
    names = [str(path) for path in paths]
    shown = names[:_NAMED] + ["…"] * (len(names) > _NAMED)
    return f"{len(names)} ({', '.join(shown)})"


@contextmanager
def _reading() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise unreadable(error) from error


def _named(path: Path, *, shards: bool) -> Path:
    """A file that is named: taken, if it is not of a kind that holds no text as it stands. A shard says itself what it is."""
    if shards:
        return path
    kind, _ = kind_of(path)
    if kind is None or kind in COLUMNS:
        return path
    raise DataError(
        "not text as it stands",
        where=path,
        rule=rules.PREFLIGHT_025,
        expected="text or JSONL in UTF-8, Parquet or Arrow",
        found=kind.name,
        hint=what_to_do(kind, path),
    )


def _no_text(argument: str, left_out: LeftOut) -> DataError:
    return DataError(
        "no token shard in it" if left_out.shards else "no text file in it",
        where=argument,
        rule=rules.PREFLIGHT_025,
        expected=f"at least one {SHARD_SUFFIX}" if left_out.shards else "at least one file of text",
        found=f"left out {left_out}" if str(left_out) else "no file, apart from hidden ones",
        hint="A file that is named is taken; --no-gitignore takes what .gitignore leaves out." if left_out.ignored else None,
    )


def _found(argument: str, left_out: LeftOut, *, gitignore: bool) -> Iterator[Path]:
    """Every file below a folder, or that a glob leads to."""
    path = Path(argument)
    if path.exists():
        left_out.git = GitIgnore(path) if gitignore and path.is_dir() else None
        return _files_below(path, left_out)
    top = _fixed_part(argument)
    left_out.git = GitIgnore(top) if gitignore and top.is_dir() else None
    return _matched(argument, left_out)


def _is_pattern(text: str) -> bool:
    return _MAGIC.search(_ESCAPED.sub("", text)) is not None


def _fixed_part(pattern: str) -> Path:
    """The path that a glob begins with, before anything in it is a pattern."""
    parts = Path(pattern).parts
    patterns = (place for place, part in enumerate(parts) if _is_pattern(part))
    return Path(*(_ESCAPED.sub(r"\1", part) for part in parts[: next(patterns, len(parts))]))


def _matched(pattern: str, left_out: LeftOut) -> Iterator[Path]:
    found = sorted(set(matches(pattern, left_out)), key=str)
    if not found and not str(left_out):
        raise _nothing_there(pattern)
    for path in found:
        if left_out.git is not None and left_out.git.leaves_out_on_the_way(path):
            left_out.ignored.add(path)
        elif path.is_file():
            yield path
        elif path.is_dir() and path.name != COMPILED and left_out.takes(path):
            yield from _files_below(path, left_out)


def _of_weight(argument: str) -> str | None:
    """What to do where a path is there without what stands behind its last colon, which was meant as a weight."""
    path, colon, weight = argument.rpartition(":")
    if not colon or not os.path.exists(path):  # noqa: PTH110  # Path's raises for a name that is too long
        return None
    return f"{path} is there: if {weight!r} is a weight, it must be a number, and needs a name: --data NAME={path}:0.3."


def _nothing_there(argument: str) -> DataError:
    """A glob that matches nothing, or a path that is not there: how far it leads, and what it may have meant."""
    if is_address(argument):
        hint = of_address(argument) or "Download it first: nothing is fetched here."
        return DataError("an address, not a file or folder", where=argument, rule=rules.PREFLIGHT_019, hint=hint)
    fixed = _fixed_part(argument)
    is_glob = _is_pattern(argument)
    there = fixed if is_glob else fixed.parent
    while not os.path.isdir(there):  # noqa: PTH112  # Path's raises for a long name
        there = there.parent
    if is_glob:
        hint = f"The folder {there} is there. * stays in one folder; ** goes into those below it: '{there}/**/*.txt'."
        return DataError("nothing matches this glob", where=argument, rule=rules.PREFLIGHT_019, hint=hint)
    if (weight := _of_weight(argument)) is not None:
        return DataError("no such file or folder", where=argument, rule=rules.PREFLIGHT_019, hint=weight)
    missing = fixed.relative_to(there).parts[0]
    near = closest(missing, sorted(os.listdir(there)))  # noqa: PTH208  # names, not paths
    meant = f"did you mean {there / near}?" if near else f"Run in another folder? Relative paths begin at {Path.cwd()}."
    hint = f"The folder {there} is there, {missing!r} in it is not: {meant}" if near else meant
    hub = None if near else of_name(fixed)
    hint = f"{hub}. {hint}" if hub else hint
    return DataError("no such file or folder", where=argument, rule=rules.PREFLIGHT_019, hint=hint)


def _files_below(top: Path, left_out: LeftOut, excluded: frozenset[str] = frozenset()) -> Iterator[Path]:
    if not top.is_dir():
        raise DataError("neither a file nor a folder", where=top, rule=rules.PREFLIGHT_025, expected="text or JSONL")
    for folder, names in walk(top, left_out, excluded):
        yield from (path for path in (folder / name for name in names) if path.is_file() and left_out.takes_file(path))


def _standard_library() -> list[Path]:
    """The interpreter's own modules, without tests, installed packages and the tables of the machine that built it."""
    folder = Path(sysconfig.get_path("stdlib"))
    files = _files_below(folder, LeftOut(), _STDLIB_EXCLUDED) if folder.is_dir() else iter(())
    modules = [path for path in files if path.suffix == ".py" and not path.name.startswith("_sysconfigdata")]
    if not modules:
        hint = "Name a corpus with --data."
        raise DataError("this Python keeps no source of its standard library", where=folder, expected="*.py", hint=hint)
    return modules
