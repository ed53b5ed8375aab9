"""A byte-level BPE kept as `vocab.json` and `merges.txt`: the tokenizer.json that transformers builds of them.

Sources: `RobertaTokenizer`, `GPT2Tokenizer` and `Qwen2Tokenizer` of transformers, and `_from_pretrained` of their base for the
tokens beside the vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from attrs import frozen

from apr_train.checkpoint.files import parse_json, read_text
from apr_train.checkpoint.header import SPECIAL_TOKENS
from apr_train.checkpoint.pre_tokenizers import TOKENIZER_CLASSES, VocabularyClass, tokenizer_class_of
from apr_train.checkpoint.tokenizer_json import bpe_model, is_id
from apr_train.errors import FormatError

VOCABULARY, MERGES = "vocab.json", "merges.txt"
MOST_DIGITS = 12
"""Of an id that is written as text: more of them are no id already."""
_FLAGS = ("single_word", "lstrip", "rstrip")
_NAMED = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
"""The roles in the order in which transformers adds their tokens."""
SENTENCEPIECE = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model")


@frozen(kw_only=True)
class Built:
    """What vocab.json and merges.txt come to."""

    content: Mapping[str, Any]
    """As in a tokenizer.json."""
    named: Mapping[str, Any]
    """`bos_token`, `eos_token`, … → the token or None, as said or as the class has it."""
    notes: tuple[str, ...]


def class_name(config: Mapping[str, Any], settings: Mapping[str, Any]) -> str | None:
    """The tokenizer's class: tokenizer_config.json's, config.json's, or the one of config.json's model type."""
    for table in (settings, config):
        stated = table.get("tokenizer_class")
        if isinstance(stated, str):
            return stated.removesuffix("Fast")
    return tokenizer_class_of(config.get("model_type"))


def read_vocabulary_files(folder: Path, kind: str, settings: Mapping[str, Any], legacy: Mapping[str, Any]) -> Built | None:
    """The tokenizer of a folder with vocab.json and merges.txt; None for a class that is not known here.

    `settings` is tokenizer_config.json, `legacy` special_tokens_map.json, which counts where the former lists no added tokens.

    Raises:
        FormatError: when one of the files is not what it should be.
    """
    known = TOKENIZER_CLASSES.get(kind)
    if known is None:
        return None
    vocabulary = _vocabulary(folder / VOCABULARY)
    listed = settings.get("added_tokens_decoder")
    stated = settings if isinstance(listed, Mapping) else {**settings, **legacy}
    named = {**{f"{role}_token": token for role, token in known.special_tokens.items()}, **_named(stated)}
    added = _Added(vocabulary, known)
    if isinstance(listed, Mapping):
        added.listed(listed, folder / "tokenizer_config.json")
    elif (folder / "added_tokens.json").is_file():
        added.older(parse_json(folder / "added_tokens.json"), [*named.values(), *_more(stated)])
    roles = {f"{role}_token": role for role in SPECIAL_TOKENS}
    for key in [f"{role}_token" for role in _NAMED] + sorted(set(named) - set(roles)):
        added.special(named.get(key), takes_space=roles.get(key) in known.takes_space)
    for token in _more(stated):
        added.special(token)
    content = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added.entries(),
        **_pipeline(known, stated, named, added),
        "model": bpe_model(vocabulary, _merges(folder / MERGES)),
    }
    return Built(content=content, named=named, notes=added.notes(known))


def _named(stated: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in stated.items() if key.endswith("_token") and isinstance(value, str | Mapping | None)}


def _more(stated: Mapping[str, Any]) -> list[Any]:
    """Special tokens without a role."""
    for key in ("extra_special_tokens", "additional_special_tokens"):
        value = stated.get(key)
        if value:
            return list(value.values()) if isinstance(value, Mapping) else list(value) if isinstance(value, list) else []
    return []


def content_of(token: Any) -> str | None:
    """The text of a token, which is given as it is or as a table with flags."""
    text = token.get("content") if isinstance(token, Mapping) else token
    return text if isinstance(text, str) and text else None


class _Added:
    """The tokens beside the vocabulary, with ids and flags, in the making."""

    def __init__(self, vocabulary: Mapping[str, int], known: VocabularyClass) -> None:
        self._vocabulary = vocabulary
        self._known = known
        self._entries: dict[str, dict[str, Any]] = {}
        self._assumed: list[str] = []
        self._next = max(vocabulary.values(), default=-1) + 1

    def id_of(self, token: Any) -> int | None:
        """The id of a token, if it has one."""
        text = content_of(token)
        if text is None:
            return None
        entry = self._entries.get(text)
        return self._vocabulary.get(text) if entry is None else int(entry["id"])

    def listed(self, tokens: Mapping[str, Any], path: Path) -> None:
        """Those of `added_tokens_decoder`: id → table."""
        for index, token in tokens.items():
            text = content_of(token)
            if text is None or not index.isdecimal() or not is_id(int(index[:MOST_DIGITS])):
                raise FormatError("not a token", path=path, field=f"added_tokens_decoder.{index}", found=repr(token)[:80])
            self._add(text, token if isinstance(token, Mapping) else {}, int(index))

    def older(self, tokens: Mapping[str, Any], special: Iterable[Any]) -> None:
        """Those of `added_tokens.json`: text → id."""
        known = {content_of(token) for token in special}
        for text, index in sorted(tokens.items(), key=lambda item: str(item[1]).zfill(20)):
            if is_id(index) and text:
                self._add(text, {"special": text in known, "normalized": text not in known}, index)

    def special(self, token: Any, *, takes_space: bool = False) -> None:
        """A special token that is named, unless it is there."""
        text = content_of(token)
        if text is None:
            return
        if text in self._entries:
            self._entries[text]["special"] = True
            return
        flags = token if isinstance(token, Mapping) else {"lstrip": takes_space}
        if takes_space and not isinstance(token, Mapping):
            self._assumed.append(text)
        self._add(text, {**flags, "special": True}, self._vocabulary.get(text))

    def _add(self, text: str, flags: Mapping[str, Any], index: int | None) -> None:
        index = self._next if index is None else index
        self._next = max(self._next, index + 1)
        special = bool(flags.get("special", False))
        self._entries[text] = {
            "id": index,
            "content": text,
            **{flag: bool(flags.get(flag, False)) for flag in _FLAGS},
            "normalized": bool(flags.get("normalized", not special)),
            "special": special,
        }

    def entries(self) -> list[dict[str, Any]]:
        """As in a tokenizer.json."""
        return sorted(self._entries.values(), key=lambda entry: int(entry["id"]))

    def notes(self, known: VocabularyClass) -> tuple[str, ...]:
        """What was concluded."""
        made = f"made of {VOCABULARY} and {MERGES}, as {known.name} has it"
        return (made, *(f"{text} takes the space before it, as in the published {known.name}" for text in self._assumed))


def _pipeline(known: VocabularyClass, stated: Mapping[str, Any], named: Mapping[str, Any], added: _Added) -> dict[str, Any]:
    prefix = stated.get("add_prefix_space") is True
    return {
        "normalizer": known.cut.normalizer,
        "pre_tokenizer": _with_prefix(known.cut.pre_tokenizer, prefix),
        "post_processor": _post_processor(known, stated, named, added, prefix),
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
    }


def _with_prefix(part: Mapping[str, Any], prefix: bool) -> dict[str, Any]:
    """A pre-tokenizer whose byte level puts a space in front of the text, or not."""
    if part.get("type") == "ByteLevel":
        return {**part, "add_prefix_space": prefix}
    inner = part.get("pretokenizers")
    return {**part, "pretokenizers": [_with_prefix(item, prefix) for item in inner]} if isinstance(inner, list) else dict(part)


def _post_processor(
    known: VocabularyClass, stated: Mapping[str, Any], named: Mapping[str, Any], added: _Added, prefix: bool
) -> dict[str, Any]:
    if known.pair is not None:
        sep, cls = ((content_of(token), added.id_of(token)) for token in (named.get("sep_token"), named.get("cls_token")))
        return {
            "type": known.pair,
            "sep": list(sep),
            "cls": list(cls),
            "trim_offsets": stated.get("trim_offsets", True) is True,
            "add_prefix_space": prefix,
        }
    around = {role: named.get(f"{role}_token") for role in ("bos", "eos") if stated.get(f"add_{role}_token") is True}
    first, last = (content_of(around.get(role)) for role in ("bos", "eos"))
    if first is None and last is None:
        return {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True}
    return _template(first, last, added)


def _template(first: str | None, last: str | None, added: _Added) -> dict[str, Any]:
    def around(*letters: str) -> list[dict[str, Any]]:
        parts = []
        for number, letter in enumerate(letters):
            front = [] if first is None else [{"SpecialToken": {"id": first, "type_id": number}}]
            back = [] if last is None else [{"SpecialToken": {"id": last, "type_id": number}}]
            parts += [*front, {"Sequence": {"id": letter, "type_id": number}}, *back]
        return parts

    tokens = [token for token in (first, last) if token is not None]
    special = {token: {"id": token, "ids": [added.id_of(token)], "tokens": [token]} for token in tokens}
    return {"type": "TemplateProcessing", "single": around("A"), "pair": around("A", "B"), "special_tokens": special}


def _vocabulary(path: Path) -> dict[str, int]:
    found = parse_json(path)
    for token, index in found.items():
        if not is_id(index):
            raise FormatError(
                "a token's id is none", path=path, field=token[:40], expected="0, 1, 2, …", found=f"{index!r:.40}"
            )
    return found


def _merges(path: Path) -> list[list[str]]:
    """The pairs of a merges.txt: one a line, best first, under an optional line with the version."""
    lines = read_text(path).split("\n")
    merges = []
    for number, line in enumerate(lines, start=1):
        if line.startswith("#version") or not line.strip("\r"):
            continue
        pair = line.removesuffix("\r").split(" ")
        if len(pair) != 2 or not all(pair):
            raise FormatError(
                "a merge is not a pair", path=path, field=f"line {number}", expected="'a b'", found=f"{line!r:.80}"
            )
        merges.append(pair)
    return merges
