"""Which paths below a folder the `.gitignore` files of a git work tree leave out; git itself is not needed.

As in git, the file that is nearest decides, in it the last pattern that matches, and nothing comes back below a folder
that is left out. A folder with a `.git` of its own begins a work tree of its own. Only `.gitignore` files count: neither
`.git/info/exclude`, nor the user's own list, nor which files git tracks all the same.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from attrs import frozen
from pathspec.patterns.gitignore.spec import GitIgnoreSpecPattern

from apr_train import rules
from apr_train.data.formats.packed import open_data
from apr_train.errors import DataError

NAME = ".gitignore"
_LARGEST = 1 << 20
"""Bytes of such a file; those that people write have some thousand."""
_MOST_STARS = 4
"""Wildcards in a part of a pattern."""
_PASS_OVER = "--no-gitignore passes over such files."
_STARS = re.compile(r"\*+")
_TRAILING_SPACES = re.compile(r"(?<!\\) +$")
_BELOW = "ps_d"
"""pathspec's group for the slash behind what a pattern matches: set when that is a folder above the path."""


@frozen
class _Pattern:
    """A line of a `.gitignore`."""

    regex: re.Pattern[Any]
    leaves_out: bool
    """False: the line begins with `!`."""
    folders_only: bool
    """The line ends in a slash."""

    def matches(self, name: str, *, is_folder: bool) -> bool:
        """Whether the pattern is about that very path, and not about a folder above it."""
        if self.folders_only and not is_folder:
            return False
        found = self.regex.search(name)
        return found is not None and found.groupdict().get(_BELOW) is None


class GitIgnore:
    """The rules for what lies below one folder, each file of them read once."""

    def __init__(self, top: Path) -> None:
        """Take the rules from the root of the work tree on; only those below `top` if they would leave out `top` itself."""
        self._top, self._real = top, top.resolve()
        self._rules: dict[Path, list[tuple[Path, list[_Pattern]]]] = {}
        self._highest: Path | None = None
        if any(self._leaves_out(folder, is_folder=True) for folder in _up_to_root(self._real)):
            self._highest, self._rules = self._real, {}

    def leaves_out(self, path: Path, *, is_folder: bool) -> bool:
        """Whether a path below `top` is left out, given that no folder between them is.

        Raises:
            OSError: when a file of rules cannot be read.
        """
        return self._leaves_out(self._real / path.relative_to(self._top), is_folder=is_folder)

    def leaves_out_on_the_way(self, path: Path) -> bool:
        """Whether a path below `top`, or a folder between them, is left out.

        Raises:
            OSError: as `leaves_out`.
        """
        parts = path.relative_to(self._top).parts
        between = (self._top.joinpath(*parts[:count]) for count in range(1, len(parts)))
        return any(self.leaves_out(folder, is_folder=True) for folder in between) or (
            bool(parts) and self.leaves_out(path, is_folder=path.is_dir())
        )

    def _leaves_out(self, path: Path, *, is_folder: bool) -> bool:
        for folder, patterns in self._rules_in(path.parent):
            name = path.relative_to(folder).as_posix()
            said = next((pattern for pattern in patterns if pattern.matches(name, is_folder=is_folder)), None)
            if said is not None:
                return said.leaves_out
        return False

    def _rules_in(self, folder: Path) -> list[tuple[Path, list[_Pattern]]]:
        """The files of rules that count for what lies in a folder, the nearest first."""
        if folder not in self._rules:
            self._rules[folder] = self._find_rules(folder)
        return self._rules[folder]

    def _find_rules(self, folder: Path) -> list[tuple[Path, list[_Pattern]]]:
        is_root = (folder / ".git").exists()
        if not is_root and (folder == folder.parent or not self._in_work_tree(folder)):
            return []
        file = folder / NAME
        own = [(folder, _patterns(file))] if file.is_file() else []
        above = [] if is_root or folder == self._highest else self._rules_in(folder.parent)
        return own + above

    @staticmethod
    def _in_work_tree(folder: Path) -> bool:
        return any((parent / ".git").exists() for parent in folder.parents)


def rules_above(top: Path) -> tuple[list[str], list[str]]:
    """What decides from above what counts in a folder: paths of files of rules, there or not; and the roots of work trees."""
    folders = (top.resolve(), *top.resolve().parents)
    return [str(folder / NAME) for folder in folders], [str(folder) for folder in folders if (folder / ".git").exists()]


def _up_to_root(folder: Path) -> Iterator[Path]:
    """A folder and those above it, below the root of their work tree."""
    while folder != folder.parent and not (folder / ".git").exists():
        yield folder
        folder = folder.parent


def _patterns(file: Path) -> list[_Pattern]:
    """The patterns of a file in the order in which they decide, the last first.

    Raises:
        DataError: when it cannot be read, is larger than any that people write, or has a pattern with so many wildcards
            that matching it has no end.
    """
    with open_data(file) as opened:
        raw = opened.read(_LARGEST + 1)
    if len(raw) > _LARGEST:
        expected = f"at most {_LARGEST:,} bytes"
        raise DataError("too large for what it is", where=file, rule=rules.PREFLIGHT_025, expected=expected, hint=_PASS_OVER)
    lines = raw.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "surrogateescape").split("\n")
    for number, line in enumerate(lines, 1):
        if _has_no_end(line):
            raise DataError(
                "a pattern that takes too long to match",
                where=file,
                field=f"line {number}",
                rule=rules.PREFLIGHT_025,
                expected=f"at most {_MOST_STARS} wildcards between two slashes",
                found=line[:80],
                hint=_PASS_OVER,
            )
    found = (_pattern(line.removesuffix("\r")) for line in lines)
    return [pattern for pattern in reversed(list(found)) if pattern is not None]


def _has_no_end(line: str) -> bool:
    """Whether matching a pattern may take time without measure: with each wildcard it grows by the length of a name."""
    several = line.count("**") > _MOST_STARS or any(len(_STARS.findall(part)) > _MOST_STARS for part in line.split("/"))
    return several and not line.startswith("#")


def _pattern(line: str) -> _Pattern | None:
    """The pattern of a line; None for one that has none, or none that is possible: git passes over both."""
    line = _TRAILING_SPACES.sub("", line)
    try:
        pattern = GitIgnoreSpecPattern(line.removesuffix("/"))
    except ValueError:
        return None
    regex, include = pattern.regex, pattern.include
    return None if regex is None or include is None else _Pattern(regex, include, line.endswith("/"))
