"""The kinds of inputs: which file of a seed is changed how, and which commands are tried on it."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import NamedTuple

from tests.fuzz.containers import (
    apr_changed,
    gguf_changed,
    json_changed,
    lines_changed,
    safetensors_changed,
    toml_changed,
)
from tests.fuzz.corpora import (
    columns_changed,
    gzip_changed,
    id_shard_changed,
    mixture_changed,
    reading_changed,
    template_changed,
    token_file_changed,
    zstd_changed,
)
from tests.fuzz.seeds import CACHED, gguf_parts
from tests.fuzz.values import bytes_changed

Change = Callable[[bytes, random.Random], bytes]
Command = tuple[str, ...]
"""Words of a command; `{}` is the path that it is given, `{folder}` the folder of the input, `{seed}` the unchanged path,
`{seeds}` all that is unchanged, `{file}` the file that was changed."""


class Kind(NamedTuple):
    """One kind of input."""

    title: str
    seed: str
    """The folder of the seeds that it is a copy of."""
    given: str
    """What a command is given: a file in it, or the folder itself."""
    files: dict[str, Change]
    """Which files are changed, by their name or a pattern, and how; one of an input, sometimes two."""
    commands: tuple[Command, ...]


LOOK: tuple[Command, ...] = (
    ("inspect", "{}", "--tensors"),
    ("inspect", "{}", "--json"),
    ("check", "{}"),
    ("check", "{}", "--json"),
    ("import", "{}", "-o", "{folder}/made.apr"),
    ("diff", "{}", "{seed}"),
    ("diff", "{}", "{seed}", "--json"),
    ("validate", "{}", "--data"),
)
APR: tuple[Command, ...] = (
    ("export", "{}", "-o", "{folder}/made"),
    ("export", "{}", "-o", "{folder}/made.gguf", "--format", "gguf", "--no-verify"),
    ("stamp", "{}", "--license", "MIT"),
    ("publish", "{}", "-o", "{folder}/published", "--language", "en"),
)
RUN: tuple[Command, ...] = (
    ("report", "{}", "-o", "{folder}/report.html"),
    ("report", "{}", "-o", "{folder}/report.html"),
    ("--resume", "{}", "--steps", "3"),
    ("--resume", "{}", "--steps", "3"),
    ("--resume", "{}"),
    ("eval", "{}", "--batches", "1", "--json"),
    ("publish", "{}/model.apr", "-o", "{folder}/published"),
)
RUN_FILES: dict[str, Change] = {
    "config.toml": toml_changed,
    "identity.json": json_changed,
    "preflight.json": json_changed,
    "metrics.jsonl": lines_changed,
    "samples.jsonl": lines_changed,
    "changes.jsonl": lines_changed,
    "machine.json": json_changed,
    "step-000002/state.json": json_changed,
    "step-000002/optimizer.safetensors": safetensors_changed,
    "MODEL_CARD.md": bytes_changed,
}
"""What every run writes, beside its weights; changes.jsonl one that was resumed with other settings."""
WHOLE_MODEL: dict[str, Change] = {"step-000002/model.apr": apr_changed, "model.apr": apr_changed}
WATCHED: dict[str, Change] = {"step-000002/averaging.safetensors": safetensors_changed, "profile/items.json": json_changed}
"""What `--ema` and `--profile` leave and somebody reads."""
ADAPTER: dict[str, Change] = {"adapter_config.json": json_changed, "adapter_model.safetensors": safetensors_changed}
TOKENIZE = ("tokenize", "--init", "{seeds}/hf", "--sequence-length", "64", "--device", "cpu", "--objective")
CHAT = (*TOKENIZE, "sft", "--data")
SHARDS = (*TOKENIZE, "causal-lm", "--tokenizer", "{}/tokenizer.json", "--data", "{}/text/train/00000.bin")


def _front_matter(raw: bytes, pick: random.Random) -> bytes:
    ends = (
        b"\n" * 60_000,
        b"--- " * 9000,
        b"\n---" * 9000,
        b"a: " * 4000,
        b"[" * 5000,
        b"&a [*a]",
        b"license: " + b"(" * 20_000,
    )
    if pick.random() < 0.5:
        return raw[: pick.randrange(len(raw))] + pick.choice(ends) + raw[pick.randrange(len(raw)) :]
    return bytes_changed(raw, pick)


@cache
def _parts(folder: str):
    return gguf_parts(Path(folder))


KINDS = {
    "apr": Kind(".apr", "apr", "model.apr", {"model.apr": apr_changed}, (*LOOK, *APR)),
    "shards": Kind(
        ".apr in shards",
        "shards",
        "model.apr.json",
        {"model.apr.json": json_changed, "model-00001-of-00002.apr": apr_changed, "model-00002-of-00002.apr": apr_changed},
        (*LOOK, APR[0]),
    ),
    "safetensors": Kind(
        "safetensors", "safetensors", "", {"model.safetensors": safetensors_changed, "config.json": json_changed}, LOOK
    ),
    "gguf": Kind("GGUF", "gguf", "model.gguf", {"model.gguf": bytes_changed}, LOOK),
    "hf": Kind(
        "Hugging Face folders",
        "hf",
        "",
        {
            "config.json": json_changed,
            "generation_config.json": json_changed,
            "tokenizer.json": json_changed,
            "tokenizer_config.json": json_changed,
            "special_tokens_map.json": json_changed,
            "vocab.json": json_changed,
            "added_tokens.json": json_changed,
            "merges.txt": bytes_changed,
            "README.md": _front_matter,
            "chat_template.jinja": bytes_changed,
        },
        (
            *LOOK,
            ("check", "{seeds}/apr/model.apr", "--tokenizer", "{}"),
            ("tokenize", "--init", "{}", "--data", "{seeds}/data/d", "--sequence-length", "16", "--device", "cpu"),
            (
                "tokenize",
                "--init",
                "{}",
                "--data",
                "{seeds}/data/d",
                "--sequence-length",
                "16",
                "--device",
                "cpu",
                "--show",
                "1",
            ),
        ),
    ),
    "adapter": Kind(
        "adapters",
        "adapter",
        "",
        ADAPTER,
        (
            ("merge", "{}", "--base", "{seeds}/hf", "-o", "{folder}/made.apr"),
            ("merge", "{}", "--base", "{seeds}/apr/model.apr", "-o", "{folder}/made.apr"),
            ("inspect", "{}"),
            ("check", "{}", "--json"),
        ),
    ),
    "data": Kind(
        "corpora",
        "data",
        "",
        {
            "d/3.txt": bytes_changed,
            "lines.jsonl": lines_changed,
            "array.json": json_changed,
            "packed.jsonl.gz": gzip_changed,
            "packed.txt.zst": zstd_changed,
            "x.parquet": columns_changed,
            "x.arrow": columns_changed,
            "ids.bin": id_shard_changed,
        },
        ((*TOKENIZE, "causal-lm", "--data", "{file}"), (*TOKENIZE, "causal-lm", "--data", "{file}", "--json")),
    ),
    "saved": Kind(
        "saved data sets",
        "saved",
        "",
        {"state.json": json_changed, "dataset_info.json": json_changed, "*.arrow": columns_changed},
        ((*TOKENIZE, "causal-lm", "--data", "{}"),),
    ),
    "tokens": Kind(
        "token shards",
        "tokens",
        "",
        {
            "text/train/00000.bin": id_shard_changed,
            **dict.fromkeys(("tokenizer.json", "apr-train.json"), json_changed),
        },
        (SHARDS, (*SHARDS, "--json"), (*SHARDS, "-o", "{}")),
    ),
    "chat": Kind(
        "conversations",
        "data",
        "",
        {"chat.jsonl": lines_changed, "turns.jinja": template_changed},
        (
            (*CHAT, "{}/chat.jsonl", "--chat-template", "{}/turns.jinja"),
            (*CHAT, "{}/chat.jsonl", "--chat-template", "{}/turns.jinja", "--show", "1"),
        ),
    ),
    "settings": Kind(
        "settings",
        "settings",
        "run.toml",
        {"run.toml": mixture_changed},
        (("tokenize", "--config", "{}"), ("tokenize", "--config", "{}", "--json", "--show", "1")),
    ),
    "cache": Kind(
        "the cache",
        "cache",
        "",
        {"tokens/*": token_file_changed, "readings/*": reading_changed},
        (CACHED,),
    ),
    "run": Kind("files of a run", "run", "", {**RUN_FILES, **WHOLE_MODEL}, RUN),
    "lora": Kind(
        "files of a run that trains adapters",
        "lora",
        "",
        {
            **RUN_FILES,
            **{f"{place}/{name}": how for place in ("adapter", "step-000002") for name, how in ADAPTER.items()},
            **dict.fromkeys(("adapter/tokenizer*.json", "adapter/special_tokens_map.json"), json_changed),
        },
        (*RUN[:-1], ("merge", "{}", "-o", "{folder}/made.apr")),
    ),
    "fim": Kind("files of a run that fills holes", "fim", "", {**RUN_FILES, **WHOLE_MODEL, **WATCHED}, RUN),
    "masked": Kind("files of an encoder's run", "masked", "", {**RUN_FILES, **WHOLE_MODEL}, RUN),
}


class Input(NamedTuple):
    """One input, on the disk."""

    command: list[str]
    changed: str
    """The names of the changed files."""


def make_input(seeds: Path, kind: str, number: int, seed: int, folder: Path) -> Input:
    """Write the input of that number into `folder`; the same numbers give the same bytes."""
    pick = random.Random(f"{seed}:{kind}:{number}")  # no secret hangs on it
    what = KINDS[kind]
    source, target = seeds / what.seed, folder / what.seed
    _copy(source, target)
    changes = {path.relative_to(source).as_posix(): how for name, how in what.files.items() for path in source.glob(name)}
    names = pick.sample(sorted(changes), k=2 if len(changes) > 1 and pick.random() < 0.15 else 1)
    for name in names:
        raw = (source / name).read_bytes()
        new = gguf_changed(*_parts(str(seeds / "hf")), pick) if kind == "gguf" else changes[name](raw, pick)
        (target / name).unlink()
        (target / name).write_bytes(new)
    if kind == "hf" and pick.random() < 0.3:
        (target / "tokenizer.json").unlink()
    words = pick.choice(what.commands)
    places = {"folder": folder, "seed": source / what.given, "seeds": seeds, "file": target / names[0]}
    return Input([word.format(target / what.given, **places) for word in words], ", ".join(names))


def _copy(source: Path, target: Path) -> None:
    """A copy, the larger files by hard link: no command writes into a file that is there."""
    for parent, _, names in os.walk(source):
        there = target / Path(parent).relative_to(source)
        there.mkdir(parents=True, exist_ok=True)
        for name in names:
            own = Path(parent, name)
            (os.link if own.stat().st_size > 1 << 16 else shutil.copyfile)(own, there / name)
