"""What people give for a model that is none: a Hub id, one file of several, a config.json, a cache's folder; and what to do.

Nothing is downloaded and nothing is converted here: the errors say which command does it.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from apr_train import rules
from apr_train.checkpoint.files import open_regular, parse_json, read_text
from apr_train.checkpoint.folder import ADAPTER, INDEX, SHARD, SINGLE, file_names, is_shard, some_of
from apr_train.errors import FormatError
from apr_train.suggest import closest

KNOWN = ".apr, safetensors, GGUF, or a Hugging Face folder"
TOKENIZER = "a tokenizer.json, or vocab.json with merges.txt"
_VIEW = r"(?:blob|resolve|tree|raw)"
_HUB = re.compile(
    r"(?:hf:/{1,2}|(?:https?:/{1,2})?(?:www\.)?(?:huggingface\.co|hf\.co)/)(?!datasets/|spaces/|buckets/)"
    rf"(?P<model>[\w.-]+(?:/(?!{_VIEW}/)[\w.-]+)?)(?P<rest>.*)"
)
"""An address of the Hub; `Path` has made one slash of two."""
_HUB_PLACE = re.compile(rf"(?:@(?P<at>[^/]+))?(?:/{_VIEW}/(?P<revision>[^/?]+))?/?(?P<file>[^?]*).*")
_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(?:/[A-Za-z0-9][\w.-]{0,95})?")
_URL = re.compile(r"[a-z][a-z0-9+.]*:/{1,2}\S+")
_ENDINGS = (".apr", ".safetensors", ".gguf", ".json", ".bin", ".pt", ".pth", ".ckpt", ".txt")
_PICKLES = (".bin", ".pt", ".pth", ".ckpt")
_FOREIGN = {
    ".gguf": ("a GGUF, which is given as a file", "Give the file"),
    ".onnx": ("an ONNX model, which cannot be trained", "Fetch the model's safetensors"),
    ".h5": ("TensorFlow weights", "Fetch the model's safetensors, or convert: transformers 4 reads them with from_tf=True"),
    ".msgpack": ("Flax weights", "Fetch the model's safetensors, or convert: transformers 4 reads them with from_flax=True"),
    ".ot": ("weights for Rust (rust-bert)", "Fetch the model's safetensors"),
    ".tflite": ("a TensorFlow Lite model, which cannot be trained", "Fetch the model's safetensors"),
    ".npz": ("numpy's arrays", "Save them as safetensors"),
}
"""Ending → what it is, and what to do."""
_DEPTH, _ENTRIES = 3, 200
"""How deep, and in how many entries of a folder, a model is looked for below it."""


def is_address(text: str) -> bool:
    """Whether something that was given for a path is an address of the network, which no file here has."""
    return _URL.fullmatch(text) is not None or text.startswith(("huggingface.co/", "hf.co/"))


def absent(path: Path, expected: str = KNOWN) -> FormatError:
    """The error for a path at which there is nothing: a model's name on the Hub, or a name that is misspelt."""
    problem, hint = _missing(path)
    return FormatError(problem, rule=rules.INIT_003, path=path, expected=expected, hint=hint)


def _missing(path: Path) -> tuple[str, str | None]:
    """What is wrong with a path at which there is nothing, and what to do."""
    text = str(path)
    if hub := _HUB.fullmatch(text):
        return (
            "an address of the Hugging Face Hub, not a file",
            f"Nothing is fetched here: {_download(hub['model'], hub['rest'])}",
        )
    if _URL.fullmatch(text):
        return "an address, not a file", "Download it first: nothing is fetched here."
    if near := _near(path):
        return "no such file", f"Did you mean {near}?"
    if _may_be_id(path):
        return "no such file or folder", f"If it is a model's name on the Hugging Face Hub: {_download(text)}"
    return "no such file", None


def _near(path: Path) -> Path | None:
    try:
        near = closest(path.name, [item.name for item in path.parent.iterdir()])
    except OSError:
        return None
    return None if near is None else path.parent / near


def _may_be_id(path: Path) -> bool:
    """Whether it is spelt as a model's name, and its first part is no folder here."""
    text = str(path)
    spelt = _ID.fullmatch(text) and ".." not in text and "--" not in text
    return bool(spelt) and path.suffix not in _ENDINGS and (len(path.parts) == 1 or not path.parent.exists())


def _download(model: str, rest: str = "") -> str:
    """How a model of the Hub comes onto the disk; of an address to one file, that file."""
    place = _HUB_PLACE.fullmatch(rest)
    revision = (place["at"] or place["revision"] or "main") if place else "main"
    file = place["file"] if place else ""
    alone = file.endswith((".gguf", ".apr"))  # any other file is one of a folder
    folder = model.rpartition("/")[2]
    words = ["hf", "download", model, *([file] if alone else [])]
    words += [*(["--revision", revision] if revision != "main" else []), "--local-dir", folder]
    given = Path(folder, file) if alone else folder
    return f"download it first: {shlex.join(words)} (pip install huggingface_hub), then give {given}"


def not_weights(path: Path) -> FormatError | None:
    """The error for a file of a model's folder that holds no weights: an index, config.json, tokenizer.json.

    None for one that may be a manifest of `.apr` shards, which has keys of its own.
    """
    try:
        content = parse_json(path)
    except FormatError as error:
        return None if _is_ours(path) else error
    if {"shards", "shard_count"} & set(content):
        return None
    what = "an index of weights" if "weight_map" in content else "a JSON file, which holds no weights"
    return FormatError(what, rule=rules.INIT_004, path=path, expected=KNOWN, hint=folder_hint(path))


def _is_ours(path: Path) -> bool:
    """Whether a JSON file that does not parse begins as a manifest of shards."""
    with open_regular(path) as file:
        return b'"shard' in file.read(4096)


def folder_hint(path: Path) -> str | None:
    """`Give the folder`, of a file in whose folder a model lies."""
    folder = path.parent
    return f"Give the folder: {folder}" if _holds_model(folder) else None


def one_of_several(path: Path) -> FormatError | None:
    """The error for one file of a model in several; None for a file that is whole, or that finds its siblings itself."""
    name = path.name
    shard = SHARD.fullmatch(name)
    if shard is not None and is_shard(name) and shard[4] != "apr":
        return _part(path, f"file {int(shard[2])} of a model in {int(shard[3])}", _whole_of(path, shard))
    if name.endswith(".safetensors") and _named_among_others(path):
        return _part(path, f"one of the files that {INDEX} names", f"Give the folder: {path.parent}")
    return None


def split_gguf(path: Path, metadata: Mapping[str, Any]) -> FormatError | None:
    """The error for a part of a split GGUF whose name does not say so; None for a whole file."""
    count, number = metadata.get("split.count"), metadata.get("split.no")
    if not isinstance(count, int) or count < 2:
        return None
    which = f"file {number + 1}" if isinstance(number, int) else "a file"
    first = f"NAME-{1:05d}-of-{count:05d}.gguf"
    hint = f"Give the files their names back ({first}, …), and join them: llama-gguf-split --merge {first} NAME.gguf."
    return _part(path, f"{which} of a model in {count}", hint)


def _part(path: Path, problem: str, hint: str) -> FormatError:
    return FormatError(problem, rule=rules.INIT_004, path=path, expected="the whole model", hint=hint)


def _whole_of(path: Path, shard: re.Match[str]) -> str:
    if shard[4] == "safetensors":
        there = INDEX in file_names(path.parent)
        return f"Give the folder: {path.parent}" if there else f"Its index is missing: fetch {INDEX}, then give the folder."
    first = path.with_name(f"{shard[1]}-{1:0{len(shard[2])}d}-of-{shard[3]}.gguf")
    joined = path.with_name(f"{shard[1]}.gguf")
    return (
        f"Join them with llama.cpp: {shlex.join(['llama-gguf-split', '--merge', str(first), str(joined)])}, then give {joined}."
    )


def _named_among_others(path: Path) -> bool:
    index = path.parent / INDEX
    if path.name == SINGLE or not index.is_file():
        return False
    try:
        files = set(parse_json(index)["weight_map"].values())
    except (FormatError, KeyError, AttributeError, TypeError):
        return False  # an index that is none says nothing of this file
    return path.name in files and len(files) > 1


def no_weights(folder: Path) -> FormatError:
    """The error for a folder without weights that can be read: what lies there instead, and what to do.

    Raises:
        OSError: when the folder cannot be listed.
    """
    names = file_names(folder)
    found, hint = _instead(folder, names)
    adapters = _below(folder, lambda item: (item / ADAPTER).is_file())
    if not hint and adapters:
        hint = f"An adapter lies in {adapters[0]}. To make a model of it: apr-train merge {shlex.quote(adapters[0])} -o X.apr."
    return FormatError(
        "the folder holds no safetensors checkpoint",
        rule=rules.INIT_003,
        path=folder,
        expected=f"{SINGLE} or {INDEX}",
        found=found,
        hint=hint,
    )


def no_tokenizer(folder: Path) -> FormatError:
    """The error for a folder without a tokenizer: what lies there instead.

    Raises:
        OSError: when the folder cannot be listed.
    """
    below = _below(folder, lambda item: (item / "tokenizer.json").is_file())
    found = some_of(file_names(folder)) or "nothing"
    return FormatError(
        "the folder holds no tokenizer",
        rule=rules.PREFLIGHT_018,
        path=folder,
        expected=TOKENIZER,
        found=found,
        hint=f"Give {some_of(below)}." if below else None,
    )


def _instead(folder: Path, names: Sequence[str]) -> tuple[str, str | None]:
    """What lies in a folder without weights, and what to do."""
    shards = [name for name in names if name.endswith(".safetensors") and is_shard(name)]
    if shards:
        return some_of(shards), f"Their index is missing: fetch {INDEX}, too."
    several = [name for name in names if name.endswith(".safetensors")]
    if several:
        return some_of(several), f"Give the file that is meant, or call it {SINGLE}."
    pickled = [name for name in names if name.endswith(_PICKLES)]
    if pickled:
        return some_of(pickled), f"Pickle files are never read: convert them to safetensors. {how_to_convert(folder, pickled)}"
    for ending, (what, todo) in _FOREIGN.items():
        if foreign := [name for name in names if name.endswith(ending)]:
            place = f": {folder / foreign[0]}" if ending == ".gguf" else ""
            return f"{some_of(foreign)} ({what})", f"{todo}{place}."
    below = models_below(folder)
    if below:
        return "the model in a folder below" if len(below) == 1 else "models in folders below", f"Give {some_of(below)}."
    return some_of(names) or "nothing", None


def how_to_convert(folder: Path, pickled: Sequence[str]) -> str:
    """The command that makes safetensors of PyTorch's files."""
    weights = [name for name in pickled if name.startswith("pytorch_model")] or pickled
    if len(weights) > 1:
        code = f"import transformers as t; t.CLASS.from_pretrained({str(folder)!r}).save_pretrained('NEW_FOLDER')"
        return f"With the class that config.json names: python -c {shlex.quote(code)}"
    source, target = str(folder / weights[0]), str(folder / SINGLE)
    code = (
        "import torch, safetensors.torch as s; "
        f"w = torch.load({source!r}, map_location='cpu', weights_only=True); "
        f"s.save_file({{k: v.clone().contiguous() for k, v in w.items()}}, {target!r}, {{'format': 'pt'}})"
    )
    return f"python -c {shlex.quote(code)}"


def models_below(folder: Path) -> list[str]:
    """The folders below that hold a model, nearest first; of a Hub cache's snapshots the one of `main` first."""
    return _below(folder, _holds_model)


def _below(folder: Path, holds: Callable[[Path], bool]) -> list[str]:
    found = [below for below in _folders_below(folder, _DEPTH) if holds(below)]
    main = {_main_snapshot(below) for below in found}
    return [str(below) for below in sorted(found, key=lambda below: (below not in main, len(below.parts), below))]


def _folders_below(folder: Path, depth: int) -> Iterator[Path]:
    try:
        with os.scandir(folder) as entries:
            children = sorted(Path(entry.path) for entry, _ in zip(entries, range(_ENTRIES), strict=False) if entry.is_dir())
    except OSError:
        return  # what cannot be looked into holds nothing to name
    yield from children
    if depth > 1:
        for child in children:
            yield from _folders_below(child, depth - 1)


def _holds_model(folder: Path) -> bool:
    try:
        names = file_names(folder)
    except OSError:
        return False
    return bool({SINGLE, INDEX} & set(names)) or any(name.endswith((".apr", ".gguf")) for name in names)


def _main_snapshot(snapshot: Path) -> Path | None:
    """In a Hub cache, the snapshot that `refs/main` names."""
    try:
        commit = read_text(snapshot.parent.parent / "refs" / "main", most=1024).strip()
    except FormatError:
        return None
    return snapshot.parent / commit


def looks_like_json(start: bytes) -> bool:
    """Whether a file's first bytes are JSON's, and not those of a safetensors header of 123 bytes (or 379, …)."""
    is_header_length = int.from_bytes(start[:8], "little") < 1 << 32
    return start.lstrip()[:1] == b"{" and not (is_header_length and start[8:9] == b"{")
