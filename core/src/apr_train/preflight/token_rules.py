"""Token ids against the embedding: the tokenizer's size, special ids, the mask token, an already tokenised corpus."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from apr_train import rules
from apr_train.checkpoint.header import Header, TokenizerSpec
from apr_train.checkpoint.tokenizer_json import HOW_TO_MAKE
from apr_train.data.objectives import OBJECTIVES
from apr_train.errors import Finding
from apr_train.family.config import ModelConfig
from apr_train.run.objective_names import TrainingObjective

MASK_SPELLINGS = ("<mask>", "[MASK]", "<|mask|>")
ID_KEYS = ("bos_token_id", "eos_token_id", "pad_token_id", "mask_token_id", "sep_token_id", "cls_token_id", "unk_token_id")
UNSET = -1
"""Older configs write -1 for a padding token that does not exist."""


def size_findings(tokenizer: TokenizerSpec, config: ModelConfig, *, from_scratch: bool) -> list[Finding]:
    """More strings than rows never; fewer only for a checkpoint, where the rest of the rows are reserved."""
    size, rows = tokenizer.size, config.vocab_size
    if size == rows or (size < rows and not from_scratch):
        return []
    larger = size > rows
    return [
        Finding(
            rule=rules.ARCH_006 if larger and from_scratch else rules.ARCH_010,
            subject=tokenizer.origin or "tokenizer",
            problem=_size_problem(size, rows, larger=larger, from_scratch=from_scratch),
            expected=f"{rows} tokens" if from_scratch else f"at most {rows} tokens",
            found=f"{size} tokens",
            hint=_size_hint(size, from_scratch),
        )
    ]


def _size_problem(size: int, rows: int, *, larger: bool, from_scratch: bool) -> str:
    target = "from-scratch target" if from_scratch else "checkpoint"
    if larger and from_scratch:
        return f"a tokenizer of {size} tokens does not fit the {target} of {rows} rows (also {rules.ARCH_010})"
    if larger:
        return f"a tokenizer of {size} tokens is out of the bounds of the {target}'s {rows} rows"
    return f"a tokenizer of {size} tokens leaves rows of the {target} of {rows} untrained"


def _size_hint(size: int, from_scratch: bool) -> str:
    if from_scratch:
        return f"Choose the target with --vocab-size {size}, or another tokenizer."
    return "Take the checkpoint's own tokenizer."


def kind_findings(tokenizer: TokenizerSpec) -> list[Finding]:
    """A kind that metadata cannot hold needs its tokenizer.json."""
    if tokenizer.json is not None or tokenizer.model == "bpe":
        return []
    return [
        Finding(
            rule=rules.PREFLIGHT_018,
            subject=tokenizer.origin or "tokenizer",
            problem="a tokenizer of this kind is not read without its tokenizer.json",
            expected="a tokenizer.json, or a byte-level BPE with vocabulary and merges",
            found=tokenizer.model,
            hint=f"Give the model's tokenizer.json with --tokenizer; {HOW_TO_MAKE}.",
        )
    ]


def special_id_findings(header: Header | None, tokenizer: TokenizerSpec | None, config: ModelConfig) -> list[Finding]:
    """Every special id that metadata or tokenizer name lies inside the vocabulary."""
    named: dict[str, Any] = {}
    if tokenizer is not None:
        named |= {f"{tokenizer.origin or 'tokenizer'} [{name}]": value for name, value in tokenizer.special_ids.items()}
    if header is not None:
        named |= {f"{header.path} [{key}]": value for key, value in _ids(header.config).items()}
    return [
        _special(where, value, config.vocab_size) for where, value in named.items() if not _inside(value, config.vocab_size)
    ]


def _ids(config: Mapping[str, Any]) -> dict[str, Any]:
    """The keys that are there, lists taken apart (a Llama 3 has three ends of text)."""
    ids: dict[str, Any] = {}
    for key in ID_KEYS:
        value = config.get(key)
        items = value if isinstance(value, list) else [value]
        ids |= {
            key if len(items) == 1 else f"{key}.{place}": item for place, item in enumerate(items) if item not in (None, UNSET)
        }
    return ids


def _inside(value: Any, rows: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < rows


def _special(where: str, value: Any, rows: int) -> Finding:
    return Finding(
        rule=rules.PREFLIGHT_010,
        subject=where,
        problem="a special token id outside the vocabulary",
        expected=f"0 to {rows - 1}",
        found=f"{value!r:.40}",
    )


def mask_findings(header: Header | None, tokenizer: TokenizerSpec | None, objective: TrainingObjective) -> list[Finding]:
    """Masked-language modelling needs a token to mask with."""
    if "mask" not in OBJECTIVES[objective].special_tokens or tokenizer is None or mask_id(header, tokenizer) is not None:
        return []
    return [
        Finding(
            rule=rules.PREFLIGHT_011,
            subject=tokenizer.origin or "tokenizer",
            problem=f"the {objective} objective needs a mask token and the tokenizer has none",
            expected=f"a special token such as {MASK_SPELLINGS[0]}",
            found="no mask token",
            hint="Take the tokenizer that the encoder was trained with.",
        )
    ]


def mask_id(header: Header | None, tokenizer: TokenizerSpec) -> int | None:
    """The id of the mask token: as the tokenizer or the metadata say, else by the usual spellings."""
    stated = tokenizer.special_ids.get("mask", header.config.get("mask_token_id") if header else None)
    if isinstance(stated, int):
        return stated
    added = (token.id for token in tokenizer.added_tokens if token.content in MASK_SPELLINGS)
    plain = (tokenizer.vocabulary.index(word) for word in MASK_SPELLINGS if word in tokenizer.vocabulary)
    return next(added, next(plain, None))


def corpus_findings(corpus_max_id: int, config: ModelConfig) -> list[Finding]:
    """No token of the corpus lies outside the embedding."""
    if 0 <= corpus_max_id < config.vocab_size:
        return []
    return [
        Finding(
            rule=rules.PREFLIGHT_012,
            subject="the tokenised corpus",
            problem="a token id outside the embedding",
            expected=f"0 to {config.vocab_size - 1}",
            found=f"{corpus_max_id} as the largest",
            hint="The corpus was tokenised for another model.",
        )
    ]


def end_findings(rows: int | None, *, steps: int, per_step: int, done: int = 0, read: int = 0) -> list[Finding]:
    """There are rows for all steps.

    Args:
        rows: that there are, if every source ends; else None.
        steps: of the run.
        per_step: rows of a step.
        done: steps of a run that goes on.
        read: rows of these, which may have been of another size.
    """
    wanted = read + (steps - done) * per_step
    if rows is None or rows >= wanted:
        return []
    enough = done + (rows - read) // per_step
    return [
        Finding(
            rule=rules.PREFLIGHT_041,
            subject="--data",
            field="max_epochs",
            problem="all sources end before the last step",
            expected=f"{wanted:,} rows for {steps:,} steps",
            found=f"{rows:,} rows, which are {enough:,} steps",
            hint=f"Take --steps {enough}, more text, or a source without max_epochs.",
        )
    ]


def no_tokenizer(*, needed: bool) -> Finding:
    """A checkpoint can be checked without one, not trained on text: new ids would mean nothing to its weights."""
    consequence = "the ids of its text are not known" if needed else "its size is not checked"
    return Finding(
        rule=rules.PREFLIGHT_017,
        subject="tokenizer",
        problem=f"the checkpoint carries no tokenizer and none was given: {consequence}",
        expected="a tokenizer in the file, beside it, or --tokenizer",
        found="nothing",
        hint="Give the tokenizer.json that it was trained with, with --tokenizer.",
        severity="error" if needed else "warning",
    )
