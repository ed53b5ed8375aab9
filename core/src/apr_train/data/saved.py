"""What the libraries of Hugging Face leave beside data: which files of such a folder are data, and which split is learnt.

`datasets.save_to_disk` leaves `data-*.arrow`, `state.json`, which names them, and `dataset_info.json`; of several splits,
`dataset_dict.json` and a folder each. A data set of the hub has a card and names its splits by file
(`data/SPLIT-00000-of-00001.parquet`, `SPLIT.jsonl`) or by folder (`SPLIT/0000.parquet`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from apr_train import rules
from apr_train.errors import DataError

STATE, INFO, SPLITS = "state.json", "dataset_info.json", "dataset_dict.json"
LEARNT = "train"
"""The split that is taken of several."""
_COLUMNS = (".parquet", ".arrow")
_DESCRIPTIONS = frozenset({"dataset_infos.json", INFO, STATE, SPLITS})
_CARD = "README.md"
_SHARD = re.compile(
    r"(?P<split>[A-Za-z][\w.]*?)(?:-\d{5}-of-\d{5}(?:-[0-9a-f]+)?)?\.(?:parquet|arrow|jsonl?(?:\.gz|\.zst)?)", re.IGNORECASE
)
_TRAINED = re.compile(r"train(?:ing)?(?:[\W\d_].*)?", re.IGNORECASE)
_HELD_OUT = re.compile(r"(?:test|testing|valid|validation|val|dev|eval|evaluation)(?:[\W\d_].*)?", re.IGNORECASE)
"""What `datasets` calls a split to test on, with whatever a sign, a digit or an underscore sets apart: values is none."""
_LARGEST = 1 << 24
"""Bytes of one of the files that describe data."""


def data_files(folder: Path, names: Sequence[str]) -> tuple[list[str], list[str]]:
    """The names in a folder that are data, and those that only describe it or are another split's.

    Raises:
        DataError: for a saved data set of which a file is not there, or whose rows are chosen by a list beside them.
    """
    if STATE in names and INFO in names:
        shards = _shards(folder, names)
        return shards, [name for name in names if name not in shards]
    left_out = _held_out(names)
    if not _has_columns(folder, names):
        return [name for name in names if name not in left_out], sorted(left_out)
    left_out |= {name for name in names if name in _DESCRIPTIONS or name == f"{folder.name}.py"}
    left_out |= {_CARD} if _CARD in names and _is_card(folder / _CARD) else set()
    return [name for name in names if name not in left_out], [name for name in names if name in left_out]


def is_description(path: Path) -> bool:
    """Whether a file that a glob found only describes the data beside it."""
    if path.name not in (STATE, INFO, SPLITS):
        return False
    return path.name == SPLITS or any(other.suffix in _COLUMNS for other in path.parent.iterdir())


def other_splits(folder: Path, names: Sequence[str], folders: Sequence[str]) -> list[str]:
    """The folders of splits that are not learnt, of a data set with a folder for each; none for another folder.

    Args:
        folder: where they lie.
        names: of its files.
        folders: names of the folders in it.

    Raises:
        DataError: naming the splits when none of them is `train`.
    """
    if SPLITS not in names:
        return _held_out_folders(folder, folders)
    splits = _read(folder / SPLITS).get("splits")
    if not isinstance(splits, list) or not all(isinstance(split, str) for split in splits):
        raise _damaged(folder / SPLITS, "a list of splits", "none")
    if LEARNT in splits:
        return [split for split in splits if split != LEARNT]
    raise DataError(
        "a data set without a split to train on",
        where=folder,
        rule=rules.PREFLIGHT_025,
        expected=f"one called {LEARNT}",
        found=", ".join(splits) or "no split",
        hint=f"Name one: {folder / splits[0]}" if splits else None,
    )


def is_held_out_name(name: str) -> bool:
    """Whether a file is a part of a split to test on, by its name."""
    match = _SHARD.fullmatch(name)
    return match is not None and _HELD_OUT.fullmatch(match["split"]) is not None


def _shards(folder: Path, names: Sequence[str]) -> list[str]:
    """The data files of a saved data set, in the order of their rows."""
    state = _read(folder / STATE)
    try:
        shards = [item["filename"] for item in state["_data_files"] if item["filename"].endswith(_COLUMNS)]
    except (KeyError, TypeError, AttributeError) as error:
        raise _damaged(folder / STATE, "the names of the data files", "none") from error
    if state.get("_indices_data_files"):
        hint = "Save it again after flatten_indices()."
        raise DataError("rows chosen by a list beside them", where=folder / STATE, rule=rules.PREFLIGHT_025, hint=hint)
    missing = [name for name in shards if name not in names]
    if missing:
        raise _damaged(folder, f"the data file {missing[0]!r}, which {STATE} names", "no such file")
    return shards


def _is_card(path: Path) -> bool:
    """Whether a README has the front matter of a card; that of a checkout is text."""
    with path.open("rb") as file:
        return file.read(4).rstrip() == b"---"


def _has_columns(folder: Path, names: Sequence[str]) -> bool:
    data = folder / "data"
    return any(name.endswith(_COLUMNS) for name in names) or (data.is_dir() and any(_columns_in(data)))


def _held_out(names: Sequence[str]) -> set[str]:
    """Files of splits to test on, where there are some to train on."""
    splits = [match["split"] for name in names if (match := _SHARD.fullmatch(name))]
    if not any(_TRAINED.fullmatch(split) for split in splits):
        return set()
    return {name for name in names if is_held_out_name(name)}


def _held_out_folders(folder: Path, folders: Sequence[str]) -> list[str]:
    """Folders of splits to test on, beside one to train on, each with columns: a folder of tests beside code is none."""
    with_columns = [name for name in folders if _is_split(name) and any(_columns_in(folder / name))]
    if not any(_TRAINED.fullmatch(name) for name in with_columns):
        return []
    return [name for name in with_columns if _HELD_OUT.fullmatch(name)]


def _is_split(name: str) -> bool:
    return any(split.fullmatch(name) for split in (_TRAINED, _HELD_OUT))


def _columns_in(folder: Path) -> Iterator[Path]:
    return (path for path in folder.iterdir() if path.suffix in _COLUMNS)


def _read(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        raw = file.read(_LARGEST)
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise _damaged(path, "JSON", str(error)) from error
    if not isinstance(value, dict):
        raise _damaged(path, "an object", "another value")
    return value


def _damaged(path: Path, expected: str, found: str) -> DataError:
    hint = "Save or download the data set again."
    return DataError("a damaged data set", where=path, rule=rules.PREFLIGHT_025, expected=expected, found=found, hint=hint)
