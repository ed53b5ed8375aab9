"""Write core/src/apr_train/api/setting_types.py: the settings of a run as the keywords of `apr_train.train`, with their types.

    python tools/setting_types.py > core/src/apr_train/api/setting_types.py

A type checker reads source, and the settings are declared with `option`, whose type is Any to it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from textwrap import wrap
from typing import Any

import attrs
from apr_train.run.option import PATH, TABLES
from apr_train.run.settings import GROUPS

WIDTH, INDENT = 128, "    "
HEAD = '''"""The settings of a run as keywords of `apr_train.train`; written by tools/setting_types.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any, Literal, TypedDict

Place = str | PathLike[str]
"""A path as text or as a `Path`."""


class TrainSettings(TypedDict, total=False):
    """Every setting by its name; None is the same as leaving it out. docs/training.md tells each with its default."""
'''


def type_of(item: attrs.Attribute[Any]) -> str:
    """The annotation of a setting."""
    metadata = item.metadata
    if TABLES in metadata:
        return "Sequence[Mapping[str, Any]]"
    choices = ", ".join(f'"{choice}"' for choice in metadata["choices"])
    one = f"Literal[{choices}]" if choices else "Place" if metadata[PATH] else metadata["kind"].__name__
    return f"{one} | Sequence[{one}]" if metadata["many"] else one


def page() -> str:
    """The whole module."""
    return "\n".join([HEAD, *lines()]) + "\n"


def lines() -> Iterator[str]:
    """A key and its help for each setting, in the order of the tables."""
    for group, cls in GROUPS.items():
        yield f"    # [{group}]"
        for item in attrs.fields(cls):
            line = f"    {item.name}: {type_of(item)} | None"
            yield line if len(line) <= WIDTH else f"    {item.name}: (\n        {type_of(item)} | None\n    )"
            text = item.metadata.get("text")
            if text:
                yield from wrap(f'"""{text}"""', WIDTH, initial_indent=INDENT, subsequent_indent=INDENT)


if __name__ == "__main__":
    sys.stdout.write(page())
