"""Jinja2 as chat templates expect it: the sandbox, filters, functions and the `{% generation %}` tag of transformers.

A template is code of whoever wrote the file: this module runs in the child of `renderer`. It has the behaviour of
`transformers.utils.chat_template_utils` (5.x), which core/tests compares it with, in code of its own.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

Span = tuple[int, int]
"""The first character of a part of a text, and the one behind its last."""
_REASONING = ("reasoning_content", "thinking", "reasoning")
"""The keys under which a message's thoughts are kept; templates read the first, some the second."""


class TooMuchOutput(Exception):
    """A template that writes more than it may."""


class Marks(Extension):
    """The tag `{% generation %}…{% endgeneration %}`, with which a template says what the assistant wrote."""

    tags = {"generation"}  # noqa: RUF012  # Jinja's own attribute, no field of ours

    def __init__(self, environment: jinja2.Environment) -> None:
        super().__init__(environment)
        self._written: list[str] | None = None
        self._spans: list[Span] = []

    def parse(self, parser: Parser) -> nodes.Node:
        """The tag as a call of `_mark` with what stands inside it."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_mark"), [], [], body).set_lineno(line)

    def _mark(self, caller: Any) -> str:
        text = str(caller())
        if self._written is not None:
            begin = sum(map(len, self._written))
            self._spans.append((begin, begin + len(text)))
        return text

    @contextmanager
    def following(self, written: list[str]) -> Iterator[list[Span]]:
        """Note where marked parts lie, while a caller appends to `written` what the template writes."""
        self._written, self._spans = written, []
        try:
            yield self._spans
        finally:
            self._written = None


class _Dict:
    """`dict` for templates: its constructor and `fromkeys`, and no attribute of the class."""

    def __call__(self, *args: Any, **named: Any) -> dict[Any, Any]:
        return dict(*args, **named)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


class _Namespace(Namespace):
    """`namespace` for templates, without names that begin with an underscore: these reach Python's insides."""

    def __init__(*args: Any, **named: Any) -> None:  # no `self`: a template may give a value of that name
        values = dict(*args[1:], **named)
        for name in values:
            _require_plain(name)
        Namespace.__init__(args[0], values)

    def __setitem__(self, name: str, value: Any) -> None:
        _require_plain(name)
        super().__setitem__(name, value)


def _require_plain(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a template may not set {name!r} on a namespace")


def _raise(message: str) -> None:
    raise jinja2.exceptions.TemplateError(message)


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """Jinja's own filter escapes what HTML would take for markup."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


class Template:
    """A compiled chat template."""

    def __init__(self, source: str, variables: Mapping[str, Any], date: datetime.date) -> None:
        """`variables`: what each rendering gets beside the conversation; `date`: what a template takes for today.

        Raises:
            jinja2.exceptions.TemplateError: for what is no template.
        """
        now = datetime.datetime.combine(date, datetime.time())
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Marks, loopcontrols])
        environment.filters["tojson"] = _to_json
        environment.globals |= {
            "raise_exception": _raise,
            "strftime_now": now.strftime,
            "dict": _Dict(),
            "namespace": _Namespace,
        }
        self._template = environment.from_string(source)
        self._variables = dict(variables)
        marks = environment.extensions[Marks.identifier]
        self._marks: Marks = marks  # type: ignore[assignment]  # what is kept under its name
        self.marked = any(
            isinstance(call.node, nodes.ExtensionAttribute) and call.node.identifier == Marks.identifier
            for call in environment.parse(source).find_all(nodes.Call)
        )
        """Whether the template says itself what the assistant wrote."""

    def render(self, conversation: Mapping[str, Any], *, prompt: bool, most: int) -> tuple[str, list[Span]]:
        """The text of a conversation, and the parts of it that the template marks.

        Args:
            conversation: `messages`, and `tools` if there are any.
            prompt: whether the beginning of the assistant's next turn comes at the end.
            most: characters that the text may have.

        Raises:
            TooMuchOutput: when it has more.
            UnicodeEncodeError: for half of a surrogate pair, which no tokenizer takes.
            Exception: whatever the template makes happen.
        """
        written: list[str] = []
        size = 0
        with self._marks.following(written) as spans:
            for part in self._template.generate(
                messages=[_with_reasoning(message) for message in conversation["messages"]],
                tools=conversation.get("tools"),
                documents=None,
                add_generation_prompt=prompt,
                **self._variables,
            ):
                size += len(part)
                if size > most:
                    raise TooMuchOutput(f"more than {most} characters")
                written.append(part)
        text = "".join(written)
        text.encode("utf-8")
        return text, spans


def _with_reasoning(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message whose thoughts stand under each of the names that templates read."""
    thoughts = next((message[name] for name in _REASONING if message.get(name) is not None), None)
    return dict(message) if thoughts is None else {"thinking": thoughts, **message, "reasoning_content": thoughts}
