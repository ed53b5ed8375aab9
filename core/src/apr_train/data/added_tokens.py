"""Tokens that a vocabulary gets beside those that it has: read from a file, judged, and given their ids. Torch-free."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from apr_train import rules
from apr_train.checkpoint import companions
from apr_train.checkpoint.files import read_bytes
from apr_train.checkpoint.header import AddedToken, TokenizerSpec
from apr_train.checkpoint.tokenizer_json import FLAGS
from apr_train.checkpoint.tokenizer_metadata import CONTROL, TYPES, USER_DEFINED
from apr_train.data.fim_tokens import SPELLINGS
from apr_train.data.tokenizer import Tokenizer, build_tokenizer
from apr_train.errors import Finding, FormatError, TokenizerError

FLAG = "--add-tokens"
MAX_BYTES = 1 << 24
"""Of a file of tokens: a vocabulary is not that large."""
_SHOWN = 20
"""Faults of one file that are told one by one."""
_CONTROL_MARKS = (("<|", "|>"), ("<｜", "｜>"))
_FIM = frozenset(text for names in SPELLINGS for text in names.values())
_DECODER = "added_tokens_decoder"
"""transformers' own list of the added tokens, in tokenizer_config.json."""


def is_control(token: str) -> bool:
    """Whether an added token is a control token, which no text means by itself: by how published models spell those.

    `<|…|>` is one, and the tokens around a hole (`<fim_prefix>`, …). Every other is a word, found wherever a text has it.
    """
    marked = any(token.startswith(first) and token.endswith(last) and len(token) > 4 for first, last in _CONTROL_MARKS)
    return marked or token in _FIM


def read_tokens(path: str) -> tuple[str, ...]:
    """The tokens of a file, one a line.

    Raises:
        TokenizerError: TOKENS-001, for a file that cannot be read, is too large, no UTF-8, or empty, and for every line that
            is empty, begins or ends with a space, or stands there twice.
    """
    text = _text(path)
    lines = text.removesuffix("\n").split("\n") if text else []
    tokens = [line.removesuffix("\r") for line in lines]
    if not tokens:
        raise _refused("no token is in the file", path, "one token a line", "nothing")
    if findings := list(_line_faults(tokens, path)):
        raise TokenizerError.of(_not_all(findings, path))
    return tuple(tokens)


def _text(path: str) -> str:
    try:
        content = read_bytes(Path(path), most=MAX_BYTES)
    except FormatError as error:
        raise TokenizerError.of([error.under(rules.TOKENS_001)]) from error
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        found = f"byte 0x{content[error.start]:02x} in line {line}"
        raise _refused("the file of tokens is not UTF-8", path, "UTF-8 text", found) from error


def _line_faults(tokens: Sequence[str], path: str) -> Iterator[Finding]:
    first: dict[str, int] = {}
    for number, token in enumerate(tokens, 1):
        if not token.strip():
            yield _line(path, number, "an empty line", "a token", repr(token), "Take it out.")
        elif token != token.strip():
            yield _line(path, number, "a token with a space at its end", repr(token.strip()), repr(token), "Take it away.")
        elif token in first:
            found = f"{token!r}, as in line {first[token]}"
            yield _line(path, number, "a token that stands there twice", "each token once", found, "Take one out.")
        first.setdefault(token, number)


def with_tokens(tokenizer: Tokenizer, tokens: Sequence[str], path: str) -> TokenizerSpec:
    """The tokenizer with more tokens, at the ids behind its last.

    Args:
        tokenizer: that they are added to.
        tokens: as `read_tokens` gives them.
        path: of their file, for a message.

    Raises:
        TokenizerError: TOKENS-001, for each token that the tokenizer has already, for more than it has itself, and when the
            library gives them other ids (a vocabulary with holes has no room behind its last).
    """
    if findings := [*_too_many(tokenizer, tokens, path), *_there_already(tokenizer, tokens, path)]:
        raise TokenizerError.of(_not_all(findings, path))
    added = [
        AddedToken(id=tokenizer.size + place, content=token, special=is_control(token), normalized=not is_control(token))
        for place, token in enumerate(tokens)
    ]
    spec = _extended(tokenizer.spec, added)
    try:
        made = build_tokenizer(spec)
    except TokenizerError as error:
        hint = "Its ids have holes, so that the library has no room behind them."
        raise error.amend(rule=rules.TOKENS_001, hint=hint) from error
    if lost := [token for token in added if made.encode(token.content) != [token.id]]:
        faults = (_not_found(path, token, made.encode(token.content)) for token in lost)
        raise TokenizerError.of(_not_all(list(faults), path))
    return spec


def _too_many(tokenizer: Tokenizer, tokens: Sequence[str], path: str) -> Iterator[Finding]:
    if len(tokens) > tokenizer.size:
        yield Finding(
            rule=rules.TOKENS_001,
            subject=path,
            problem="more new tokens than the tokenizer has: most of the model would be new",
            expected=f"at most {tokenizer.size:,}",
            found=f"{len(tokens):,}",
            hint="Add fewer, or train from scratch with a tokenizer of your own.",
        )


def _there_already(tokenizer: Tokenizer, tokens: Sequence[str], path: str) -> Iterator[Finding]:
    for number, token in enumerate(tokens, 1):
        known = tokenizer.id(token)
        if known is None:
            ids = tokenizer.encode(token)
            known = ids[0] if len(ids) == 1 and tokenizer.decode(ids) == token else None
        if known is not None:
            yield _line(
                path, number, "a token that the tokenizer has already", "a new one", f"{token!r}, id {known}", "Take it out."
            )


def _not_found(path: str, token: AddedToken, ids: Sequence[int]) -> Finding:
    """A token that its own text does not give: the tokenizer changes the text before it looks for tokens."""
    return Finding(
        rule=rules.TOKENS_001,
        subject=path,
        problem=f"the tokenizer does not find {token.content!r} in a text that is it",
        expected=str(token.id),
        found=", ".join(map(str, ids[:8])) or "nothing",
        hint="Spell it as the tokenizer's normalizer does, in lower case, say.",
    )


def _extended(spec: TokenizerSpec, added: Sequence[AddedToken]) -> TokenizerSpec:
    """The data of the tokenizer with the tokens in it, in whichever form it has them."""
    first, last = added[0].id, added[-1].id + 1
    changed: dict[str, Any] = {"added_tokens": (*spec.added_tokens, *added), "size": last}
    changed |= {"companions": _companions(spec.companions, added), "kept": _kept(spec.kept, added)}
    if spec.json is not None:
        there = list(spec.json.get("added_tokens") or ())
        changed["json"] = {**spec.json, "added_tokens": [*there, *map(_entry, added)]}
    else:  # names of rows without a token give way
        names = tuple(token.content for token in added)
        changed["vocabulary"] = (*spec.vocabulary[:first], *names, *spec.vocabulary[last:])
    return attrs.evolve(spec, **changed)


def _entry(token: AddedToken) -> dict[str, Any]:
    return {"id": token.id, "content": token.content, **{flag: getattr(token, flag) for flag in FLAGS}}


def _companions(held: Mapping[str, Any], added: Iterable[AddedToken]) -> dict[str, Any]:
    """tokenizer_config.json has a list of the added tokens of its own, where it has one."""
    config = held.get(companions.TOKENIZER_CONFIG)
    if not isinstance(config, Mapping) or not isinstance(config.get(_DECODER), Mapping):
        return dict(held)
    entries = {str(token.id): {key: value for key, value in _entry(token).items() if key != "id"} for token in added}
    return {**held, companions.TOKENIZER_CONFIG: {**config, _DECODER: {**config[_DECODER], **entries}}}


def _kept(held: Mapping[str, Any], added: Sequence[AddedToken]) -> dict[str, Any]:
    """The file's own type of each token, where it has them."""
    types = held.get(TYPES)
    if not isinstance(types, list):
        return dict(held)
    new = [CONTROL if token.special else USER_DEFINED for token in added]
    return {**held, TYPES: [*types[: added[0].id], *new, *types[added[-1].id + 1 :]]}


def _line(path: str, number: int, problem: str, expected: str, found: str, hint: str) -> Finding:
    field = f"line {number}"
    return Finding(
        rule=rules.TOKENS_001, subject=path, field=field, problem=problem, expected=expected, found=f"{found:.80}", hint=hint
    )


def _refused(problem: str, path: str, expected: str, found: str) -> TokenizerError:
    return TokenizerError(problem, where=path, rule=rules.TOKENS_001, expected=expected, found=found)


def _not_all(findings: Sequence[Finding], path: str) -> list[Finding]:
    """The first of many faults, and how many more there are."""
    if len(findings) <= _SHOWN:
        return list(findings)
    rest = f"{len(findings) - _SHOWN:,} more lines"
    more = Finding(rule=rules.TOKENS_001, subject=path, problem="and more of the kind", expected="none", found=rest)
    return [*findings[:_SHOWN], more]
