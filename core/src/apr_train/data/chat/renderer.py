"""The child process that renders conversations, from the side of the run: started, asked, judged, and killed in time."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any, Literal, Self

from attrs import field, frozen

from apr_train import rules
from apr_train.data.chat.template import ChatTemplate
from apr_train.data.conversations import Conversation
from apr_train.errors import DataError

SECONDS = 10
"""How long a template may take for the probe, and for one list of conversations."""
MEMORY = 1 << 30
"""Bytes of address space that the child may have, where the system can bound it."""
_GRACE = 20
"""Seconds after which a child that nobody killed ends itself."""
_ANSWER_FACTOR, _ANSWER_MORE = 200, 1 << 22
"""Bytes of an answer: more than two texts of the size that a template may write come to in JSON."""
_ENVIRONMENT = {"PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "SYSTEMROOT"}
"""What Python may need to start; keys and passwords of the user are no business of a template."""
_START = """
import sys
memory, seconds, *sys.path = sys.argv[1:]
from apr_train.data.chat.worker import main
main(int(memory), int(seconds))
"""

FaultKind = Literal["syntax", "raises", "turns", "output", "memory", "time", "died"]
"""What can be wrong with a template."""


class TemplateFault(DataError):
    """A template that did not do what it should; `kind` says in which way."""

    kind: FaultKind = "raises"


@frozen(kw_only=True)
class Habits:
    """What the probe of a template showed."""

    marked: bool
    """Whether the template marks the assistant's turns itself, with `{% generation %}`."""
    opening: str
    """What it writes to let the assistant speak."""
    ending: str
    """What it writes behind the assistant's text."""
    control: bool
    """Whether a control token is in `ending`."""
    unclear: str = ""
    """Why turns cannot be told apart; empty where they can."""


@frozen(kw_only=True)
class Rendering:
    """A conversation as text."""

    text: str = field(repr=False)
    spans: tuple[tuple[int, int], ...] = ()
    """The parts that the assistant wrote, in their order: the first character, and the one behind the last."""
    unclear: str = ""
    """Why there are no spans, where the turns cannot be told apart."""
    spelt: int = 0
    """How many control tokens the messages spell."""
    apart: str | None = field(default=None, repr=False)
    """The text in which those have another first character; None where none is spelt, or they cannot be told apart."""


class Renderer:
    """A child process with one template; a context, which ends the child when it is left.

    Raises:
        TemplateFault: when the template cannot be compiled, or its probe fails.
    """

    habits: Habits

    def __init__(self, template: ChatTemplate, *, seconds: float = SECONDS, memory: int = MEMORY) -> None:
        """`seconds` and `memory`: for tests."""
        self._template, self._seconds, self._memory = template, seconds, memory

    def __enter__(self) -> Self:
        self._errors = tempfile.TemporaryFile()  # closed in _end
        paths = [path for path in sys.path if path]
        arguments = [str(self._memory), str(int(self._seconds) + _GRACE), *paths]
        self._child = subprocess.Popen(
            # -I: neither the user's environment nor the folder one is in decides what the child imports
            [sys.executable, "-I", "-c", _START, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env={name: value for name, value in os.environ.items() if name in _ENVIRONMENT},
        )
        try:
            self.habits = self._probe()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._end()

    def _end(self) -> None:
        self._child.kill()
        for stream in (self._child.stdin, self._child.stdout):
            if stream is not None:
                _close(stream)
        self._child.wait()
        self._errors.close()

    def render(self, conversations: Sequence[Conversation], *, where: Sequence[str] = ()) -> Iterator[Rendering]:
        """The text of each conversation, in their order.

        Args:
            conversations: rendered within `seconds` in all.
            where: what each is called in an error.

        Raises:
            TemplateFault: naming the conversation that the template raises for, or takes too long over.
        """
        asked = [_asked(conversation, prompt=False) for conversation in conversations]
        for number, answer in enumerate(self._answers(asked, len(asked))):
            yield _rendering(self._checked(answer, where[number] if where else ""), prompt=False)

    def require_turns(self) -> None:
        """Refuse a template that does not tell turns apart.

        Raises:
            TemplateFault: saying what was missed.
        """
        if self.habits.unclear:
            self._checked({"error": {"kind": "turns", "message": self.habits.unclear}}, "")

    def prompt(self, conversation: Conversation) -> Rendering:
        """The text of a conversation with the beginning of the assistant's next turn at its end.

        Raises:
            TemplateFault: when the template raises, or takes too long.
        """
        (answer,) = self._answers([_asked(conversation, prompt=True)], 1)
        return _rendering(self._checked(answer, ""), prompt=True)

    def _probe(self) -> Habits:
        template = self._template
        first = {
            "template": template.text,
            "variables": dict(template.special_tokens),
            "special": list(template.control),
            "date": template.date.isoformat(),
        }
        (answer,) = self._answers(first, 1)
        told = self._checked(answer, "")
        return Habits(**told)

    def _answers(self, line: Any, count: int) -> list[dict[str, Any]]:
        """What the child says to one line, all of it in time; what it had said when it was killed, and the fault."""
        late = threading.Event()
        timer = threading.Timer(self._seconds, self._kill, [late])
        timer.start()
        answers: list[dict[str, Any]] = []
        try:
            stdin, stdout = self._child.stdin, self._child.stdout
            if stdin is None or stdout is None:
                raise RuntimeError("the child was started with pipes")
            asked = json.dumps(line).encode("ascii") + b"\n"
            stdin.write(asked)
            stdin.flush()
            most = _ANSWER_FACTOR * len(asked) + _ANSWER_MORE
            while len(answers) < count and (told := stdout.readline(most)).endswith(b"\n"):
                answers.append(json.loads(told))
        except BrokenPipeError:
            pass  # the child is gone: what it said, and how it ended, is told below
        finally:
            timer.cancel()
        if len(answers) < count and not (answers and "error" in answers[-1]):
            answers.append({"error": self._end_of_child(late.is_set())})
        return answers

    def _kill(self, late: threading.Event) -> None:
        late.set()
        self._child.kill()

    def _end_of_child(self, late: bool) -> dict[str, Any]:
        self._child.kill()
        status = self._child.wait()
        if late:
            return {"kind": "time", "message": f"more than {self._seconds:g} seconds"}
        self._errors.seek(0)
        said = self._errors.read().decode("utf-8", "replace").strip().splitlines()
        return {"kind": "died", "message": f"the process ended with {status}{': ' + said[-1] if said else ''}"}

    def _checked(self, answer: dict[str, Any], where: str) -> dict[str, Any]:
        """An answer that is none of a fault.

        Raises:
            TemplateFault: for one that is.
        """
        if "error" not in answer:
            return answer
        error = answer["error"]
        line = f" (line {error['line']} of the template)" if error.get("line") else ""
        fault = TemplateFault(
            _PROBLEMS[error["kind"]],
            where=where or self._template.origin or "chat template",
            field="chat_template" if not where else None,
            rule=rules.CHAT_003 if error["kind"] == "turns" else rules.CHAT_002,
            expected=_EXPECTED.get(error["kind"]),
            found=f"{error['message']}{line}",
            hint=_HINT,
        )
        fault.kind = error["kind"]
        raise fault


_HINT = "Give another template with --chat-template FILE, or mend what it is given."
_PROBLEMS: dict[FaultKind, str] = {
    "syntax": "the chat template is no template",
    "raises": "the chat template raises",
    "turns": "the chat template does not tell turns apart",
    "output": "the chat template writes too much",
    "memory": "the chat template takes too much memory",
    "time": "the chat template takes too long",
    "died": "the process that renders the chat template ended",
}
_EXPECTED: dict[FaultKind, str] = {
    "output": "8 × the conversation's bytes and 64 kB",
    "memory": f"at most {MEMORY >> 20} MiB",
    "time": f"at most {SECONDS} s for a batch of conversations",
}


def _close(stream: Any) -> None:
    with contextlib.suppress(BrokenPipeError):  # what was not sent, the child does not need any more
        stream.close()


def _asked(conversation: Conversation, *, prompt: bool) -> dict[str, Any]:
    return {"messages": list(conversation.messages), "tools": conversation.tools, "prompt": prompt}


def _rendering(told: dict[str, Any], *, prompt: bool) -> Rendering:
    """An answer as a value; the child ran a stranger's code, so what it says is judged.

    Raises:
        TemplateFault: for spans that are not in the text, in their order.
    """
    text, apart = told["text"], told.get("apart")
    spans = [] if prompt else [tuple(span) for span in told.get("spans", ())]
    edges = [edge for span in spans for edge in span]
    if edges != sorted(edges) or (edges and not 0 <= edges[0] <= edges[-1] <= len(text)):
        raise TemplateFault("the chat template marks parts that overlap", rule=rules.CHAT_003, found=str(spans)[:80])
    return Rendering(text=text, spans=tuple(spans), unclear=told.get("unclear", ""), spelt=told["spelt"], apart=apart)
