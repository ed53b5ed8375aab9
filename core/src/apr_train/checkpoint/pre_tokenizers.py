"""Pre-tokenizers: how text is cut into words before BPE, by GGUF's `tokenizer.ggml.pre`, as parts of a `tokenizer.json`.

Sources: the published tokenizer.json files of the models that the types are named after, and `llm_tokenizer_bpe` in
llama.cpp's llama-vocab.cpp, which has the same expressions. Differences between the two are settled for the former.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import Factory, frozen

Part = Mapping[str, Any]

_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
ONE_DIGIT = _WORDS + r"\p{N}" + _REST
"""Qwen2's expression: numbers digit by digit."""
THREE_DIGITS = _WORDS + r"\p{N}{1,3}" + _REST
"""Llama 3's expression: numbers in groups of up to three digits."""
GPT2_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
"""GPT-2's expression as llama.cpp has it; what it leaves between matches is a word too."""


def _byte_level(*, use_regex: bool) -> Part:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": use_regex, "use_regex": use_regex}


def _split(expression: str) -> Part:
    return {"type": "Split", "pattern": {"Regex": expression}, "behavior": "Isolated", "invert": False}


def _sequence(*parts: Part) -> Part:
    return {"type": "Sequence", "pretokenizers": list(parts)}


@frozen(kw_only=True)
class PreTokenizer:
    """One way of cutting text, as the entries of a `tokenizer.json`."""

    pre_tokenizer: Part
    normalizer: Part | None = None
    ignore_merges: bool = False
    """A word that is in the vocabulary is one token, whatever the merges would make of it."""
    aliases: tuple[str, ...] = Factory(tuple)


PRE_TOKENIZERS: Mapping[str, PreTokenizer] = {
    "gpt-2": PreTokenizer(
        pre_tokenizer=_byte_level(use_regex=True), aliases=("gpt2", "phi-2", "mpt", "olmo", "roberta-bpe", "jais")
    ),
    "qwen2": PreTokenizer(
        pre_tokenizer=_sequence(_split(ONE_DIGIT), _byte_level(use_regex=False)),
        normalizer={"type": "NFC"},
        aliases=("deepseek-r1-qwen", "megrez"),
    ),
    "smollm": PreTokenizer(
        pre_tokenizer=_sequence({"type": "Digits", "individual_digits": True}, _byte_level(use_regex=True)),
        aliases=("starcoder", "refact", "codeshell", "command-r"),
    ),
    "llama-bpe": PreTokenizer(
        pre_tokenizer=_sequence(_split(THREE_DIGITS), _byte_level(use_regex=False)),
        ignore_merges=True,
        aliases=("llama3", "llama-v3"),
    ),
    "default": PreTokenizer(
        pre_tokenizer=_sequence(
            _split(r"[\p{P}\$\+<=>\^~\|]+"),
            _split(GPT2_WORDS),
            _split(r"\p{N}+"),
            _split(r"[0-9][0-9][0-9]"),
            _byte_level(use_regex=False),
        ),
    ),
}  # fmt: skip
"""llama.cpp's names; `default` is what it does when a file names no type."""


def canonical_pre_type(name: str) -> str | None:
    """The table's name for a type or an alias of it; None for a type that is not known here."""
    if name in PRE_TOKENIZERS:
        return name
    return next((known for known, item in PRE_TOKENIZERS.items() if name in item.aliases), None)


def pre_type_of(tokenizer_json: Mapping[str, Any]) -> str | None:
    """The type that cuts text exactly as this `tokenizer.json` does; None when no type does."""
    model = tokenizer_json.get("model") or {}
    for name, item in PRE_TOKENIZERS.items():
        same_cut = _bare(tokenizer_json.get("pre_tokenizer")) == _bare(item.pre_tokenizer)
        same_text = _bare(tokenizer_json.get("normalizer")) == _bare(item.normalizer)
        if same_cut and same_text and bool(model.get("ignore_merges")) == item.ignore_merges:
            return name
    return None


def _bare(part: Any) -> Any:
    """A part for comparison: without the trimming of offsets, which cuts no text, and with defaults that files leave out."""
    if isinstance(part, Mapping):
        defaults = {"add_prefix_space": False, "invert": False}
        if part.get("type") == "ByteLevel":
            defaults = {"add_prefix_space": True, "use_regex": True}
        filled = {**defaults, **part} if part.get("type") in ("ByteLevel", "Split") else part
        return {key: _bare(value) for key, value in filled.items() if key != "trim_offsets"}
    return [_bare(item) for item in part] if isinstance(part, list) else part


@frozen(kw_only=True)
class VocabularyClass:
    """A tokenizer class of transformers that is kept as vocab.json and merges.txt."""

    name: str
    """As messages call it."""
    cut: PreTokenizer
    special_tokens: Mapping[str, str]
    """Role → the token that it has where the files name none."""
    takes_space: tuple[str, ...] = ()
    """Roles whose token takes the space before it, where the files give no flags: so the published tokenizer.json has it."""
    pair: str | None = None
    """A post-processor that puts cls and sep around a text."""
    model_types: tuple[str, ...] = ()
    """`model_type`s of config.json whose tokenizer it is, where no class is named."""


_END_OF_TEXT = "<|endoftext|>"
_ROBERTA = {"bos": "<s>", "eos": "</s>", "unk": "<unk>", "sep": "</s>", "pad": "<pad>", "cls": "<s>", "mask": "<mask>"}
TOKENIZER_CLASSES: Mapping[str, VocabularyClass] = {
    "RobertaTokenizer": VocabularyClass(
        name="RoBERTa",
        cut=PRE_TOKENIZERS["gpt-2"],
        special_tokens=_ROBERTA,
        takes_space=("mask",),
        pair="RobertaProcessing",
        model_types=("roberta", "roberta-prelayernorm", "longformer", "ibert"),
    ),
    "GPT2Tokenizer": VocabularyClass(
        name="GPT-2",
        cut=PRE_TOKENIZERS["gpt-2"],
        special_tokens={"bos": _END_OF_TEXT, "eos": _END_OF_TEXT, "unk": _END_OF_TEXT},
        model_types=("gpt2", "gpt_neo", "gptj", "starcoder2", "codegen"),
    ),
    "Qwen2Tokenizer": VocabularyClass(
        name="Qwen2",
        cut=PRE_TOKENIZERS["qwen2"],
        special_tokens={"eos": _END_OF_TEXT, "unk": _END_OF_TEXT, "pad": _END_OF_TEXT},
        model_types=("qwen2", "qwen2_moe", "qwen3", "qwen3_moe"),
    ),
}
"""The classes whose vocab.json and merges.txt can be read here."""


def tokenizer_class_of(model_type: Any) -> str | None:
    """The class of a model type's tokenizer, where it is one of those in `TOKENIZER_CLASSES`."""
    return next((name for name, known in TOKENIZER_CLASSES.items() if model_type in known.model_types), None)
