"""Which weights of a Hugging Face folder are the model's: the ones that transformers takes; and what else lies there.

The order is that of `from_pretrained` for a local folder: `transformers_weights` of config.json, model.safetensors, the
index, then PyTorch's own files, which are not read here. Beyond it, a single safetensors file of another name is taken.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from attrs import frozen

from apr_train import rules
from apr_train.checkpoint.files import parse_json
from apr_train.errors import Finding, FormatError

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
ADAPTER = "adapter_model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_PICKLED = "adapter_model.bin"
ADAPTER_PREFIX = "base_model.model."
"""How PEFT begins the names of all that it saves, a whole model's too; the name in the base follows."""
PICKLED = ("pytorch_model.bin", "pytorch_model.bin.index.json")
EXPLICIT = "transformers_weights"
"""The key of config.json that names a folder's weights."""
SHARD = re.compile(r"(.+)-(\d+)-of-(\d+)\.(safetensors|apr|gguf)")
"""The name of one file of several: stem, number, count, ending."""
_INDEX_ENDING = ".safetensors.index.json"
_BESIDE_WEIGHTS = frozenset({ADAPTER, "optimizer.safetensors", "averaging.safetensors"})
"""Files of tensors that are no model: an adapter is judged by itself, the others lie beside a checkpoint's `model.apr`."""
_SHOWN = 4


@frozen(kw_only=True)
class WeightFiles:
    """The files that a folder's tensors are read from."""

    files: Mapping[str, frozenset[str] | None]
    """Name → the tensors that the index promises in it; None: there is no index."""
    others: tuple[str, ...] = ()
    """Names of other weights that lie there and are not read."""

    def findings(self, folder: Path) -> tuple[Finding, ...]:
        """A warning when other weights lie there."""
        if not self.others:
            return ()
        return (
            Finding(
                rule=rules.PREFLIGHT_021,
                subject=str(folder),
                problem="more than one set of weights lies in the folder, and one is read",
                expected="one",
                found=f"{some_of(tuple(self.files))} (read); {some_of(self.others)} (not read)",
                hint="Take away what is not meant, or give the file that is.",
                severity="warning",
            ),
        )


def some_of(names: Sequence[str]) -> str:
    """The first few names, and how many more there are."""
    shown = ", ".join(names[:_SHOWN])
    return shown if len(names) <= _SHOWN else f"{shown} and {len(names) - _SHOWN} more"


def is_shard(name: str) -> bool:
    """Whether a file is one of several by its name; one of one is whole."""
    match = SHARD.fullmatch(name)
    return match is not None and int(match[3]) > 1


def file_names(folder: Path) -> list[str]:
    """What lies in a folder and is no folder itself, by name; a link that leads nowhere is there.

    Raises:
        OSError: when the folder cannot be listed.
    """
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if not entry.is_dir())


def find_weights(folder: Path, config: Mapping[str, Any]) -> WeightFiles | None:
    """The weights that transformers takes; None when the folder holds nothing that it takes and that can be read here.

    Raises:
        FormatError: for an index that is none or names files that are not there, and where transformers would take what
            is never read here.
        OSError: when the folder cannot be listed.
    """
    names = file_names(folder)
    named = config.get(EXPLICIT)
    if named is not None:
        return _explicit(folder, named, names)
    if SINGLE in names:
        return WeightFiles(files={SINGLE: None}, others=_others(folder, names, {SINGLE}))
    if INDEX in names:
        return _of_index(folder, INDEX, names)
    return _only_file(folder, names)


def _explicit(folder: Path, named: Any, names: Sequence[str]) -> WeightFiles:
    if not _is_plain(named) or not named.endswith((".safetensors", _INDEX_ENDING)):
        expected = "a .safetensors file of this folder, or an index of such files"
        raise FormatError(
            "names no weights that are read here",
            rule=rules.INIT_005,
            path=folder / "config.json",
            field=EXPLICIT,
            expected=expected,
            found=f"{named!r:.80}",
        )
    if named not in names:
        raise FormatError(
            "config.json names weights that are not there",
            rule=rules.INIT_003,
            path=folder,
            field=EXPLICIT,
            expected=named,
            found=some_of(_weights(names)) or "no weights",
            hint="Fetch that file, or take the key out of config.json.",
        )
    if named.endswith(_INDEX_ENDING):
        return _of_index(folder, named, names)
    return WeightFiles(files={named: None}, others=_others(folder, names, {named}))


def _only_file(folder: Path, names: Sequence[str]) -> WeightFiles | None:
    """The one safetensors file of another name, which transformers does not know of; not where it would take another."""
    found = [name for name in _weights(names) if name.endswith(".safetensors") and not is_shard(name)]
    if len(found) != 1:
        return None
    if apr := [name for name in names if name.endswith(".apr")]:
        raise _several(folder, [*found, *apr])
    pickled = [name for name in names if name in PICKLED]
    if pickled:
        raise FormatError(
            "transformers would take weights that are never read here, not the ones that could be",
            rule=rules.PREFLIGHT_021,
            path=folder,
            expected=f"{SINGLE} or {INDEX}",
            found=some_of([*pickled, *found]),
            hint=f"If {found[0]} is the model, give that file, or call it {SINGLE}.",
        )
    return WeightFiles(files={found[0]: None}, others=_others(folder, names, set(found)))


def only_apr(folder: Path, names: Sequence[str]) -> Path | None:
    """The one `.apr` of a folder that holds no safetensors, or the first of its shards; None when there is no `.apr`.

    Raises:
        FormatError: for more than one model.
    """
    weights = _weights(names)
    if not weights or any(name.endswith(".safetensors") for name in weights):
        return None
    models: dict[tuple[str, str], str] = {}
    for name in weights:
        shard = SHARD.fullmatch(name)
        models.setdefault((shard[1], shard[3]) if shard else (name, ""), name)
    if len(models) > 1:
        raise _several(folder, list(models.values()))
    return folder / weights[0]


def _several(folder: Path, names: Sequence[str]) -> FormatError:
    return FormatError(
        "more than one model lies in the folder, and nothing says which is meant",
        rule=rules.PREFLIGHT_021,
        path=folder,
        expected=f"one, or {SINGLE}",
        found=some_of(names),
        hint=f"Give the file that is meant: {folder / names[0]}, for one.",
    )


def _of_index(folder: Path, index: str, names: Sequence[str]) -> WeightFiles:
    promised = read_weight_map(folder / index)
    absent = sorted(set(promised) - set(names))
    if absent:
        others = sorted(set(_weights(names)) - set(promised))
        raise FormatError(
            f"{len(absent)} of the {len(promised)} files that the index names are not there",
            rule=rules.INIT_003,
            path=folder / index,
            field="weight_map",
            expected=some_of(absent),
            found=f"other weights: {some_of(others)}" if others else "no other weights",
            hint="Fetch the rest (a download that ended early goes on where it stopped), or take the index away if it is an "
            "older model's.",
        )
    return WeightFiles(files=promised, others=_others(folder, names, set(promised)))


def read_weight_map(index: Path) -> dict[str, frozenset[str]]:
    """The files that an index names, each with the tensors in it.

    Raises:
        FormatError: when it has no weight_map, or one whose files lie elsewhere.
    """
    weight_map = parse_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise FormatError("no weight_map", path=index, field="weight_map", expected="tensor name → file name")
    found: dict[str, set[str]] = {}
    for tensor, name in weight_map.items():
        if not _is_plain(name):
            raise FormatError("a shard is not a file name in this folder", path=index, field=tensor, found=repr(name))
        found.setdefault(name, set()).add(tensor)
    return {name: frozenset(tensors) for name, tensors in found.items()}


def _is_plain(name: Any) -> bool:
    """Whether it is the name of a file in the folder itself."""
    return isinstance(name, str) and name not in ("", ".", "..") and not set(name) & {"/", "\\", "\0"}


def _weights(names: Sequence[str]) -> list[str]:
    return [name for name in names if name.endswith((".safetensors", ".apr")) and name not in _BESIDE_WEIGHTS]


def _others(folder: Path, names: Sequence[str], chosen: set[str]) -> tuple[str, ...]:
    """The weights that are not read, an index of none of the chosen files among them."""
    others = [name for name in _weights(names) if name not in chosen]
    if INDEX in names and SINGLE in chosen and _is_of_others(folder / INDEX, chosen):
        others.append(INDEX)
    return tuple(others)


def _is_of_others(index: Path, chosen: set[str]) -> bool:
    """Whether an index that is not followed speaks of other files; a damaged one does."""
    try:
        return not set(read_weight_map(index)) <= chosen
    except FormatError:
        return True
