"""The name by which a user calls a checkpoint: of the path as it was given, never of what a link leads to."""

from __future__ import annotations

import os
from pathlib import Path

from apr_train.checkpoint.folder import SINGLE

SUFFIXES = frozenset({".apr", ".gguf", ".safetensors"})
_CACHED = "models--"


def given_name(path: str | os.PathLike[str]) -> str:
    """The last part of the path; of a snapshot in the Hub's cache the name of the model; of model.safetensors its folder's.

    A cached file is a link to `blobs/HASH`, and a cached folder is `models--ORGANISATION--NAME/snapshots/HASH`: a hash says
    nothing to anybody, and neither does the name that the weights have in every folder.
    """
    plain = Path(os.path.abspath(path))  # noqa: PTH100  # takes `..` out and, unlike Path.resolve, follows no link
    if plain.name == SINGLE and plain.parent.name:
        plain = plain.parent
    cached = plain.parent.parent.name
    if plain.parent.name == "snapshots" and cached.startswith(_CACHED):
        return cached.removeprefix(_CACHED).partition("--")[2] or cached.removeprefix(_CACHED)
    return plain.name


def hub_name(path: str | os.PathLike[str]) -> str | None:
    """`Org/Name` of a snapshot in the Hub's cache, or of a file in it; None for any other path."""
    plain = Path(os.path.abspath(path))  # noqa: PTH100  # a link leads to a hash
    snapshot = next((folder for folder in (plain, plain.parent) if folder.parent.name == "snapshots"), None)
    cached = "" if snapshot is None else snapshot.parent.parent.name
    owner, _, name = cached.removeprefix(_CACHED).partition("--")
    return f"{owner}/{name}" if cached.startswith(_CACHED) and name else None


def given_stem(path: str | os.PathLike[str]) -> str:
    """`given_name` without a checkpoint's suffix; a folder has none: `Qwen2.5-Coder-0.5B` is a whole name."""
    name = Path(given_name(path))
    is_file_s = name.name == Path(path).name and not Path(path).is_dir()
    return name.stem if is_file_s and name.suffix.lower() in SUFFIXES else name.name
