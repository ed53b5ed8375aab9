"""The child process in which templates run: JSON lines in, JSON lines out, everything bounded.

The first line is the template with its variables; each further line is a list of conversations. It is started by
`renderer`, which also kills it; what it can bound itself it does: memory, files, and its own life if nobody kills it.
"""

from __future__ import annotations

import datetime
import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, BinaryIO

import jinja2

from apr_train.data.chat.environment import Span, Template, TooMuchOutput
from apr_train.data.chat.turns import TurnStrings, UnclearTurns, assistant_spans, turn_strings

OUTPUT_FACTOR, OUTPUT_MORE = 8, 64_000
"""Characters that a template may write: so many times its input's bytes, and so many more."""
_PRIVATE = (0xE000, 0xF8FF)
"""Code points that mean nothing: one that the text does not have stands for the first character of a spelt control token."""
_MESSAGE = 400
"""Characters of an error's text that are passed on."""


class Renderings:
    """What one template makes of conversations."""

    def __init__(self, asked: Mapping[str, Any]) -> None:
        """`asked`: the first line: `template`, `variables`, `date`, and `special`, how control tokens are written."""
        self.template = Template(asked["template"], asked["variables"], datetime.date.fromisoformat(asked["date"]))
        self._special = tuple(token for token in asked["special"] if token)
        longest = sorted(self._special, key=len, reverse=True)
        self._spelt = re.compile("|".join(map(re.escape, longest)) or "(?!)")
        self.strings: TurnStrings | None = None

    def probe(self) -> dict[str, Any]:
        """Learn how the template opens and ends turns; the answer to the first line."""
        try:
            self.strings = turn_strings(partial(self._text, most=OUTPUT_MORE), self._special)
        except UnclearTurns as unclear:
            why = "" if self.template.marked else str(unclear)
            return {"marked": self.template.marked, "opening": "", "ending": "", "control": False, "unclear": why}
        learnt = self.strings
        told = {"opening": learnt.opening, "ending": learnt.ending, "control": learnt.control}
        return {"marked": self.template.marked, "unclear": "", **told}

    def answer(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """The text of a conversation, and where the assistant speaks in it; `prompt`: the beginning of its next turn instead.

        `apart` is the text in which each control token that a message spells has another first character, so that those
        left are the template's own; absent where none is spelt, and where the template makes something else of it.
        """
        conversation = {"messages": asked["messages"], "tools": asked.get("tools")}
        most = OUTPUT_FACTOR * len(json.dumps(conversation, ensure_ascii=False).encode("utf-8", "replace")) + OUTPUT_MORE
        text, spans = self.template.render(conversation, prompt=asked["prompt"], most=most)
        spelt, apart = self._apart(conversation, text, prompt=asked["prompt"], most=most)
        answer: dict[str, Any] = {"text": text, "spelt": spelt}
        if apart is not None:
            answer["apart"] = apart[1]
        if not asked["prompt"]:
            answer |= self._spans((conversation, text) if apart is None else apart, spans, most)
        return answer

    def _spans(self, judged: tuple[Mapping[str, Any], str], marked: list[Span], most: int) -> dict[str, Any]:
        if self.template.marked:
            return {"spans": marked}
        if self.strings is None:
            return {"unclear": "the template does not tell turns apart"}
        try:
            return {"spans": assistant_spans(*judged, partial(self._text, most=most), self.strings)}
        except UnclearTurns as unclear:
            return {"unclear": str(unclear)}

    def _apart(
        self, conversation: Mapping[str, Any], text: str, *, prompt: bool, most: int
    ) -> tuple[int, tuple[Mapping[str, Any], str] | None]:
        """How many control tokens the messages spell, and the conversation and its text with all of them changed."""
        spelt = [0]
        used = set(text)
        mark = next((chr(code) for code in range(*_PRIVATE) if chr(code) not in used), "")

        def changed(found: re.Match[str]) -> str:
            spelt[0] += 1
            return mark + found.group()[1:]

        plain = _mapped(conversation, lambda string: self._spelt.sub(changed, string))
        if not spelt[0] or not mark:
            return spelt[0], None
        other = self._text(plain, prompt, most=most)
        same = len(other) == len(text) and all(a in (b, mark) for a, b in zip(other, text, strict=True))
        return spelt[0], (plain, other) if same else None

    def _text(self, conversation: Mapping[str, Any], prompt: bool, *, most: int) -> str:
        return self.template.render(conversation, prompt=prompt, most=most)[0]


def _mapped(value: Any, change: Callable[[str], str]) -> Any:
    """A value with each text in it changed."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {_mapped(name, change): _mapped(item, change) for name, item in value.items()}
    return [_mapped(item, change) for item in value] if isinstance(value, list) else value


def fault(error: BaseException) -> dict[str, Any]:
    """What went wrong in a template, for the answer."""
    kinds = {TooMuchOutput: "output", MemoryError: "memory", jinja2.exceptions.TemplateSyntaxError: "syntax"}
    kind = next((name for cls, name in kinds.items() if isinstance(error, cls)), "raises")
    message = error.message if isinstance(error, jinja2.exceptions.TemplateError) else f"{type(error).__name__}: {error}"
    line = error.lineno if isinstance(error, jinja2.exceptions.TemplateSyntaxError) else None
    return {"error": {"kind": kind, "message": (message or "").strip()[:_MESSAGE], "line": line}}


def bound(memory: int) -> None:
    """Give up what a template has no use for: more memory than `memory` bytes, files, processes, a core dump."""
    try:
        import resource
    except ImportError:  # Windows
        return
    for name, most in (("AS", memory), ("FSIZE", 0), ("CORE", 0), ("NPROC", 0)):
        limit = getattr(resource, f"RLIMIT_{name}", None)
        if limit is not None:
            _, hard = resource.getrlimit(limit)
            wanted = most if hard == resource.RLIM_INFINITY else min(most, hard)
            resource.setrlimit(limit, (wanted, wanted))


def alarm(seconds: int) -> None:
    """End this process after so many seconds, should nobody be there any more to kill it; 0 calls that off."""
    import signal

    if hasattr(signal, "alarm"):
        signal.alarm(seconds)


def serve(lines: BinaryIO, answers: BinaryIO, seconds: int) -> None:
    """Answer each line with one, and each conversation of a list with one."""
    alarm(seconds)
    renderings = None
    for line in lines:
        alarm(seconds)
        asked = json.loads(line)
        try:
            if renderings is None:
                renderings = Renderings(asked)
                _say(answers, renderings.probe())
        except Exception as error:  # a template may raise what it likes
            _say(answers, fault(error))
            return
        if isinstance(asked, Sequence):
            for conversation in asked:
                _say(answers, _answer(renderings, conversation))
        alarm(0)


def _answer(renderings: Renderings, conversation: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return renderings.answer(conversation)
    except Exception as error:  # a template may raise what it likes
        return fault(error)


def _say(answers: BinaryIO, answer: Mapping[str, Any]) -> None:
    answers.write(json.dumps(answer).encode("ascii") + b"\n")
    answers.flush()


def main(memory: int, seconds: int) -> None:
    """Serve standard input, with so many bytes of memory, and so many seconds for one line."""
    bound(memory)
    serve(sys.stdin.buffer, sys.stdout.buffer, seconds)
