"""The folder for what is made once and found again: tokens of corpora, trained tokenizers."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2b
from io import BufferedWriter, RawIOBase
from pathlib import Path
from typing import Any, BinaryIO, cast

from apr_train.atomic import clear_litter, replace_file
from apr_train.errors import DataError, OutputError
from apr_train.run.paths import user_path

CACHE_VARIABLE = "APR_TRAIN_CACHE"
_NAME = "apr-train"


def cache_folder() -> Path:
    """`$APR_TRAIN_CACHE`, or the platform's place for a user's caches. It may not exist yet.

    Raises:
        DataError: when there is no home folder to have one, as in a container that runs under a number without a name.
        ConfigError: when the variable means a home folder by `~`, and there is none.
    """
    if chosen := os.environ.get(CACHE_VARIABLE):
        return Path(user_path(chosen))
    if sys.platform != "darwin" and (caches := os.environ.get("XDG_CACHE_HOME")):
        return Path(caches) / _NAME
    try:
        home = Path.home()
    except RuntimeError as error:
        hint = f"Set {CACHE_VARIABLE} to a folder that can be written."
        raise DataError(
            "there is no home folder to keep the cache in", where=CACHE_VARIABLE, found="unset", hint=hint
        ) from error
    return (home / "Library" / "Caches" if sys.platform == "darwin" else home / ".cache") / _NAME


def cache_key(**parts: Any) -> str:
    """64 hex digits that stand for JSON-able parts."""
    return blake2b(json.dumps(parts, sort_keys=True).encode(), digest_size=32).hexdigest()


@contextmanager
def cached_file(path: Path) -> Iterator[BinaryIO]:
    """Yield a file that takes its place in the cache, whole, when the context is left without an error.

    What killed writers left beside it is removed, whichever entry they were writing.

    Raises:
        DataError: when the cache cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _clear_all_litter(path.parent)
        with replace_file(path) as raw:
            file = BufferedWriter(cast(RawIOBase, raw), 1 << 20)
            yield file
            file.flush()
    except (OSError, OutputError) as error:
        found = error.finding.problem if isinstance(error, OutputError) else error
        hint = f"Make room, or set {CACHE_VARIABLE} to another folder."
        raise DataError("the cache cannot be written", where=path.parent, found=found, hint=hint) from error


def _clear_all_litter(folder: Path) -> None:
    for part in folder.glob(".*.part"):
        clear_litter(folder / part.name[1:].removesuffix(".part").rpartition(".")[0])
