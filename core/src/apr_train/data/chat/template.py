"""A chat template as a value: its text, what it is given beside a conversation, and the file that may replace it."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from pathlib import Path

from attrs import field, frozen

from apr_train import rules
from apr_train.checkpoint.companions import template_in
from apr_train.checkpoint.files import parse_json, read_text
from apr_train.data.tokenizer import Tokenizer
from apr_train.errors import ConfigError, FormatError, TokenizerError


@frozen(kw_only=True)
class ChatTemplate:
    """A template and all that decides what it writes beside the conversation."""

    text: str = field(repr=False)
    special_tokens: Mapping[str, str]
    """`bos_token`, `eos_token`, … → how it is written: a template may ask for each by that name."""
    control: tuple[str, ...] = field(repr=False)
    """How the tokenizer's control tokens are written."""
    date: datetime.date
    """What the template takes for today."""
    origin: str = ""
    """Where it comes from, for messages."""


def template_of(tokenizer: Tokenizer, date: str | None, text: str | None = None) -> ChatTemplate:
    """The tokenizer's own chat template, or another one for it.

    Args:
        tokenizer: gives the template what it may ask for of special tokens.
        date: what the template takes for today, `YYYY-MM-DD`; None: today.
        text: of the other one.

    Raises:
        TokenizerError: CHAT-001, when the tokenizer has none.
        ConfigError: for a date that is none.
    """
    spec = tokenizer.spec
    text = spec.chat_template if text is None else text
    if text is None:
        raise TokenizerError(
            "the tokenizer has no chat template",
            where=spec.origin or "tokenizer",
            rule=rules.CHAT_001,
            expected="chat_template.jinja, or chat_template in tokenizer_config.json",
            found="neither",
            hint="Give one with --chat-template FILE; the model's own, unless it has none and learns a new one.",
        )
    named = {f"{role}_token": tokenizer.token(index) for role, index in spec.special_ids.items()}
    return ChatTemplate(
        text=text,
        special_tokens={name: token for name, token in named.items() if token is not None},
        control=tuple(tokenizer.special_tokens),
        date=_date(date),
        origin=spec.origin,
    )


def _date(text: str | None) -> datetime.date:
    try:
        return datetime.date.today() if text is None else datetime.date.fromisoformat(text)
    except ValueError as error:
        raise ConfigError("not a date", where="--chat-date", expected="YYYY-MM-DD", found=text) from error


def read_template(path: str) -> str:
    """The template in a `.jinja`, or in a `tokenizer_config.json`.

    Raises:
        FormatError: when the file cannot be read.
        ConfigError: when there is no template in it.
    """
    file = Path(path)
    if not file.is_file():
        problem = "no such file" if not file.exists() else "not a file"
        raise FormatError(problem, path=path, expected="a .jinja, or a tokenizer_config.json", field="chat_template")
    template = template_in(parse_json(file)) if file.suffix.lower() == ".json" else read_text(file)
    if template is None or not template.strip():
        expected = 'a template under "chat_template"' if file.suffix.lower() == ".json" else "a Jinja template"
        raise ConfigError("no chat template in this file", where=path, expected=expected, found="none")
    return template
