"""A conversation with a decoder, turn by turn, written by the chat template that it was trained with."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import attrs

from apr_train.data.chat.encode import encode_prompt, ends_of_turn
from apr_train.data.chat.renderer import Renderer
from apr_train.data.chat.template import template_of
from apr_train.data.conversations import Conversation
from apr_train.errors import ConfigError, DataError
from apr_train.inference.generate import Continuation, Ends, Sampling, continue_ids, ends_of_text
from apr_train.inference.ready import Ready


class Chat:
    """A conversation under way; a context, in which a child process has the template.

    Raises:
        TemplateFault: CHAT-002, when the template does not work.
    """

    messages: list[dict[str, Any]]
    """All turns so far."""

    def __init__(self, ready: Ready, *, system: str | None = None, template: str | None = None) -> None:
        """`system`: what the model is told first; `template`: instead of the tokenizer's own.

        Raises:
            DataError: for a `system` with nothing in it, or one that is no Unicode text.
            TokenizerError: CHAT-001, when the tokenizer has no template.
        """
        if system is not None:
            require_text(system, "--system")
        self._ready = ready
        self._renderer = Renderer(template_of(ready.tokenizer, None, template))
        self.messages = [] if system is None else [{"role": "system", "content": system}]

    def __enter__(self) -> Self:
        self._renderer.__enter__()
        self._ends = ends_of_text(self._ready) | ends_of_turn(self._ready.tokenizer, self._renderer.habits)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._renderer.__exit__(kind, error, traceback)

    def answer(self, text: str, *, sampling: Sampling, ends: Ends, emit: Callable[[str], None] | None = None) -> Continuation:
        """Say something, and take the model's answer into the conversation; `emit` gets it piece by piece.

        It ends with the assistant's turn, or by `ends`.

        Raises:
            DataError: for a text with nothing in it, or one that is no Unicode text.
            TemplateFault: when the template raises.
            ConfigError: when the conversation does not fit the model's positions.
        """
        require_text(text)
        messages = [*self.messages, {"role": "user", "content": text}]
        ids = encode_prompt(self._renderer.prompt(Conversation(messages)), self._ready.tokenizer)
        ends = attrs.evolve(ends, tokens=ends.tokens | self._ends)
        try:
            made = continue_ids(self._ready, ids, sampling=sampling, ends=ends, emit=emit)
        except ConfigError as error:
            raise error.amend(hint="Begin a new conversation, or say less.") from error
        self.messages = [*messages, {"role": "assistant", "content": made.text}]
        return made


def require_text(text: str, where: str = "--prompt") -> None:
    """Refuse a turn that says nothing.

    Args:
        text: of the turn.
        where: the option that it is from.

    Raises:
        DataError: for a blank text, or one that is no Unicode text.
    """
    if not text.strip():
        raise DataError("nothing is said", where=where, expected="a text")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError("not UTF-8 text", where=where, found=repr(text[:40])) from error
