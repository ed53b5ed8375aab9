"""Conversations before a run: that there is a chat template, that it works and tells turns apart, and what is left to learn."""

from __future__ import annotations

from itertools import chain, islice
from typing import Any

import attrs
from attrs import frozen

from apr_train import rules
from apr_train.checkpoint.header import TokenizerSpec
from apr_train.data.chat.renderer import Renderer, TemplateFault
from apr_train.data.chat.template import ChatTemplate, read_template, template_of
from apr_train.data.encoding import EncodeOptions
from apr_train.data.look import Look
from apr_train.data.objectives.sft import ChatEncoder, left_out, require_some
from apr_train.data.tokenizer import Tokenizer, build_tokenizer
from apr_train.errors import AprTrainError, ConfigError, Finding, TokenizerError
from apr_train.run.settings import DataSettings

TRIED = 1000
"""Conversations that are encoded before a run: what is wrong with one of them is known at once."""


@frozen(kw_only=True)
class ChatReport:
    """What is to be said of a run's conversations."""

    findings: tuple[Finding, ...] = ()
    facts: dict[str, Any] = attrs.field(factory=dict)


def with_template(tokenizer: TokenizerSpec | None, path: str | None) -> tuple[TokenizerSpec | None, tuple[Finding, ...]]:
    """The tokenizer with the template of `--chat-template` instead of its own, and what is wrong with that file."""
    if path is None or tokenizer is None:
        return tokenizer, ()
    try:
        return attrs.evolve(tokenizer, chat_template=read_template(path)), ()
    except AprTrainError as error:
        return tokenizer, (attrs.evolve(error.under(rules.CHAT_002), rule=rules.CHAT_002),)


def chat_report(tokenizer: TokenizerSpec | None, look: Look, data: DataSettings, *, length: int) -> ChatReport:
    """Judge template and conversations.

    Args:
        tokenizer: the run's, with its template; None: there is none yet.
        look: at the text of `--data`; its first conversations are encoded where all of it was looked at.
        data: how they are encoded.
        length: tokens in a row.
    """
    if tokenizer is None:
        return ChatReport(findings=(_no_tokenizer(),))
    try:
        built = build_tokenizer(tokenizer)
        template = template_of(built, data.chat_date)
        with Renderer(template) as renderer:
            habits = renderer.habits
            if data.train_on != "all":
                renderer.require_turns()
    except (TemplateFault, ConfigError) as error:
        return ChatReport(findings=(error.under(rules.CHAT_002),))
    except TokenizerError as error:  # of one that cannot be built PREFLIGHT-018 tells
        return ChatReport(findings=(error.finding,) if error.finding.rule == rules.CHAT_001 else ())
    tried = _tried(built, look, data, length)
    warnings = () if habits.control or habits.unclear else (_no_end(template),)
    return attrs.evolve(tried, findings=(*tried.findings, *warnings))


def _tried(tokenizer: Tokenizer, look: Look, data: DataSettings, length: int) -> ChatReport:
    """What the first conversations come to; nothing where not all of the text was looked at."""
    chats = [scan for scan in look.learnt if not scan.take.whole_texts]
    if not chats:
        return ChatReport()
    options = EncodeOptions(tokenizer=tokenizer, settings=data, sequence_length=length, seed=0, side="train")
    documents = chain.from_iterable(scan.train() for scan in chats)
    try:
        counts = ChatEncoder.of(options).counts(islice(documents, TRIED))
        more = next(documents, None) is not None
        if not more:
            require_some(counts)
    except AprTrainError as error:
        return ChatReport(findings=(error.under(rules.CHAT_005, "--data"),))
    return ChatReport(facts={"chat": {**left_out(counts), "complete": not more}})


def _no_tokenizer() -> Finding:
    return Finding(
        rule=rules.CHAT_001,
        subject="tokenizer",
        problem="conversations are written by a tokenizer's chat template, and there is no tokenizer",
        expected="--tokenizer with a tokenizer.json, a template beside it or in --chat-template",
        found="nothing",
        hint="Take the tokenizer of a model that was made for conversations.",
    )


def _no_end(template: ChatTemplate) -> Finding:
    return Finding(
        rule=rules.CHAT_004,
        subject=template.origin,
        field="chat_template",
        problem="no control token ends the assistant's turns: the end of text is learnt behind the last one",
        expected="a special token of the tokenizer behind each turn",
        found="text or white space only",
        hint="Is it the tokenizer that the template was made for?",
        severity="warning",
    )
