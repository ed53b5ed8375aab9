"""Write a Hugging Face folder: config.json, weights in shards, tokenizer; what transformers loads. Torch-free."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

from apr_train.artifact.convert import Conversion, Dtype, Move, Pieces
from apr_train.artifact.metadata import hf_config
from apr_train.atomic import replace_folder
from apr_train.checkpoint.checkpoint import Progress
from apr_train.checkpoint.header import TokenizerSpec
from apr_train.checkpoint.safetensors import write_sharded
from apr_train.data.tokenizer import build_tokenizer
from apr_train.errors import OutputError

SHARD_SIZE = 5_000_000_000
"""Bytes of weights per file; what transformers uses."""
WRITTEN = ("config.json", "tokenizer.json", "tokenizer_config.json")
"""What an export writes beside the weights."""
_WEIGHTS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors|model\.safetensors\.index\.json")


def export_to_folder(
    conversion: Conversion,
    target: Path,
    *,
    dtype: Dtype | None = None,
    shard_size: int = SHARD_SIZE,
    progress: Progress | None = None,
) -> list[Move]:
    """Write the folder, as a whole or not at all. Returns what was written.

    Raises:
        OutputError: when the folder holds the source or other files, or cannot be written.
        FormatError: when a value does not fit the type.
        TokenizerError: when the tokenizer cannot be rebuilt.
    """
    _check_target(target, Path(conversion.header.path))
    with replace_folder(target) as folder:
        return fill_folder(conversion, folder, dtype=dtype, shard_size=shard_size, progress=progress)


def fill_folder(
    conversion: Conversion,
    folder: Path,
    *,
    dtype: Dtype | None = None,
    shard_size: int = SHARD_SIZE,
    progress: Progress | None = None,
) -> list[Move]:
    """Write config, weights and tokenizer into a folder that is there already. Returns what was written.

    Raises:
        FormatError: when a value does not fit the type.
        TokenizerError: when the tokenizer cannot be rebuilt.
    """
    moves = conversion.moves(dtype)
    by_name = {move.target: move for move in moves}
    main = Counter(move.dtype for move in moves).most_common(1)[0][0]
    config = hf_config(
        conversion.config, conversion.family.info, header=conversion.header, hf_class=conversion.hf_class, dtype=main
    )

    def pieces(name: str) -> Pieces:
        yield from conversion.data(by_name[name])
        if progress is not None:
            progress(by_name[name].source.nbytes)

    _write_json(folder / "config.json", config)
    if conversion.header.tokenizer is not None:
        write_tokenizer(folder, conversion.header.tokenizer)
    write_sharded(folder, [move.written for move in moves], pieces, limit=shard_size)
    return moves


def _check_target(target: Path, source: Path) -> None:
    """An earlier export may be replaced; the source, or a folder with anything else in it, may not."""
    if not target.is_dir():
        return
    if target.resolve() in (source.resolve(), *source.resolve().parents):
        raise OutputError(
            "the folder holds the source, and an export replaces all of it",
            where=target,
            found=source,
            hint="Give a folder that does not exist yet.",
        )
    other = [item.name for item in target.iterdir() if not is_written(item)]
    if other:
        raise OutputError(
            "the folder holds files that an export does not write",
            where=target,
            found=", ".join(sorted(other)[:4]),
            hint="Give a folder that does not exist yet, or an earlier export.",
        )


def is_written(item: Path) -> bool:
    """Whether a file of a folder has a name that an export writes."""
    return item.is_file() and (item.name in WRITTEN or _WEIGHTS.fullmatch(item.name) is not None)


def write_tokenizer(folder: Path, spec: TokenizerSpec) -> None:
    """Write `tokenizer.json` and the `tokenizer_config.json` that names its special tokens.

    Raises:
        TokenizerError: when the tokenizer cannot be rebuilt.
    """
    tokenizer = build_tokenizer(spec)
    tokenizer.save(folder / "tokenizer.json")
    settings: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    for name, index in spec.special_ids.items():
        token = tokenizer.token(index)
        if token is not None:
            settings[f"{name}_token"] = token
    if spec.chat_template is not None:
        settings["chat_template"] = spec.chat_template
    _write_json(folder / "tokenizer_config.json", settings)


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
