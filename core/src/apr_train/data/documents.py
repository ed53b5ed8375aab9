"""Documents from files, folders, globs, JSONL, or the standard library's own source."""

from __future__ import annotations

from attrs import field, frozen


@frozen
class Document:
    """One text that belongs together."""

    source: str
    """Where it is: a path, or `path:line` for JSONL."""
    text: str = field(repr=False)
    """All of it, newlines as in the file."""
