"""Write a Hugging Face folder: config, weights in shards, tokenizer, and the files that came with them. Torch-free.

What came in under a file's name goes out under it as it was; only what the weights or their licence say is made anew.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from apr_train.artifact.convert import Conversion, Dtype, Move, Pieces, keeps_values
from apr_train.artifact.metadata import hf_config
from apr_train.artifact.provenance import OTHER
from apr_train.artifact.targets import check_folder, check_own, mark
from apr_train.atomic import replace_folder
from apr_train.checkpoint import companions
from apr_train.checkpoint.checkpoint import Progress
from apr_train.checkpoint.header import Header, TokenizerSpec
from apr_train.checkpoint.reference import KEY as REFERENCE
from apr_train.checkpoint.reference import ReferenceLoss, reference_of
from apr_train.checkpoint.safetensors import write_sharded
from apr_train.data.tokenizer import Tokenizer, build_tokenizer
from apr_train.errors import FormatError
from apr_train.run.folder import name_of

SHARD_SIZE = 5_000_000_000
"""Bytes of weights per file; what transformers uses."""
COMMAND = "export"


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
        OutputError: when the folder holds the source, or is no earlier export, or cannot be written.
        FormatError: when a value does not fit the type, or the source's reference loss cannot be read.
        TokenizerError: when the tokenizer cannot be rebuilt.
    """
    check_folder(target, conversion.checkpoint.files, COMMAND)
    reference = reference_of(conversion.header.extra, conversion.header.path)
    with replace_folder(target) as folder:
        moves = fill_folder(conversion, folder, dtype=dtype, shard_size=shard_size, progress=progress)
        _write_card(folder / companions.README, conversion.header, reference if keeps_values(moves) else None)
        mark(folder, COMMAND)
        if target.is_dir():
            check_own(target, COMMAND)  # again: writing takes its time, and somebody may have put a file there
    return moves


def fill_folder(
    conversion: Conversion,
    folder: Path,
    *,
    dtype: Dtype | None = None,
    shard_size: int = SHARD_SIZE,
    progress: Progress | None = None,
) -> list[Move]:
    """Write config, weights, tokenizer and their companions into a folder that is there already. Returns what was written.

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
            progress(by_name[name].nbytes)

    _write_json(folder / companions.CONFIG, config)
    if generation := conversion.header.companions.get(companions.GENERATION):
        _write_json(folder / companions.GENERATION, generation)
    if conversion.header.tokenizer is not None:
        write_tokenizer(folder, conversion.header.tokenizer)
    write_sharded(folder, [move.written for move in moves], pieces, limit=shard_size)
    return moves


def write_tokenizer(folder: Path, spec: TokenizerSpec) -> None:
    """Write `tokenizer.json` and what belongs to it: as it came in, or a tokenizer_config.json that names the special tokens.

    Raises:
        TokenizerError: when the tokenizer cannot be rebuilt.
    """
    tokenizer = build_tokenizer(spec)
    tokenizer.save(folder / companions.TOKENIZER)
    settings = spec.companions.get(companions.TOKENIZER_CONFIG)
    _write_json(folder / companions.TOKENIZER_CONFIG, _settings(tokenizer) if settings is None else settings)
    if companions.TOKENS_MAP in spec.companions:
        _write_json(folder / companions.TOKENS_MAP, spec.companions[companions.TOKENS_MAP])
    if spec.chat_template is not None and spec.chat_template != companions.template_in(settings or {}):
        (folder / companions.TEMPLATE).write_text(spec.chat_template, encoding="utf-8")
    for name, template in spec.companions.get(companions.TEMPLATES, {}).items():
        _write_template(folder / companions.TEMPLATES, name, template)


def _settings(tokenizer: Tokenizer) -> dict[str, Any]:
    """The tokenizer_config.json of a tokenizer that came without one."""
    settings: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    for name, index in tokenizer.special_ids.items():
        token = tokenizer.token(index)
        if token is not None:
            settings[f"{name}_token"] = token
    return settings


def _write_template(folder: Path, name: str, template: Any) -> None:
    """Write one of several chat templates; the name comes from a file's metadata and may not lead out of the folder."""
    path = folder / f"{name}.jinja"
    if path.parent != folder or path.name in (".jinja", "..jinja") or "\0" in name or not isinstance(template, str):
        raise FormatError(
            "not a chat template",
            path=companions.KEY,
            field=companions.TEMPLATES,
            expected="file name → text",
            found=repr(name),
        )
    folder.mkdir(exist_ok=True)
    path.write_text(template, encoding="utf-8")


def _write_card(path: Path, header: Header, reference: ReferenceLoss | None) -> None:
    """Write a README.md with licence, author and reference loss in its front matter, as far as they are known; else none."""
    facts: dict[str, Any] = {name: header.provenance.get(name) for name in ("license", "author")}
    if facts["license"] == OTHER:  # the rest belongs to this one, not to a licence that was stamped in later
        facts |= header.companions.get(companions.README, {})
    front = {name: value for name, value in facts.items() if value}
    front |= {REFERENCE: reference.to_metadata()} if reference is not None else {}
    if front:
        text = yaml.safe_dump(front, sort_keys=False, allow_unicode=True)
        path.write_text(f"---\n{text}---\n\n# {header.provenance.get('name') or name_of(header.path)}\n", encoding="utf-8")


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
