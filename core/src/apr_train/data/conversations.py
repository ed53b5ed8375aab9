"""Conversations in the shapes in which people keep them, each as one canonical form: `{"messages": […], "tools": […]}`.

The first shape that a record has decides:

- `messages`: objects with `role` and `content`, `tool_calls` and what else is there kept as it is;
- `conversations`: objects with `from` and `value` (ShareGPT), or with `role` and `content`;
- `prompt` and `completion`: two texts, or two lists of messages (TRL);
- `instruction`, `input`, `output` (Alpaca).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from attrs import field, frozen

from apr_train import rules
from apr_train.checkpoint.files import MAX_DEPTH, is_too_deep
from apr_train.errors import DataError
from apr_train.suggest import nearest

Message = Mapping[str, Any]
"""One message: `role`, most often `content`, and whatever else the template may read."""

ROLES = ("system", "developer", "user", "assistant", "tool", "function", "ipython")
"""What `role` may be: what published templates know."""
SPEAKERS = {
    **{"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "chatgpt": "assistant"},
    **{"system": "system", "tool": "tool", "observation": "tool", "function_response": "tool"},
}
"""ShareGPT's `from` → role."""
SHAPES = (
    '"messages" (role and content), "conversations" (from and value), "prompt" and "completion", or "instruction" and "output"'
)
AS_CONVERSATION = "It has the fields of a conversation: --objective sft learns these."
"""What to do about a record that is no text."""
_TYPES = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}
_LISTED = 8
"""Fields of a record that an error names."""


@frozen
class Conversation:
    """Messages in their order, and the tools that the assistant may call."""

    messages: Sequence[Message] = field(repr=False)
    tools: Sequence[Any] | None = field(default=None, repr=False)

    @classmethod
    def from_bytes(cls, utf8: bytes | memoryview) -> Conversation:
        """The conversation that `to_bytes` wrote."""
        content = json.loads(bytes(utf8))
        return cls(content["messages"], content.get("tools"))

    def to_bytes(self) -> bytes:
        """The canonical form, the order of keys kept: a template may write an object out as it finds it.

        Raises:
            UnicodeEncodeError: for half of a surrogate pair.
        """
        tools = {} if self.tools is None else {"tools": self.tools}
        return json.dumps({"messages": self.messages, **tools}, ensure_ascii=False, separators=(",", ":")).encode("utf-8")

    @property
    def turns(self) -> list[int]:
        """The places of the assistant's messages."""
        return [place for place, message in enumerate(self.messages) if message["role"] == "assistant"]

    def first(self, count: int) -> Conversation:
        """The conversation's first `count` messages."""
        return Conversation(self.messages[:count], self.tools)


class Conversations:
    """Takes a record as a conversation: what `read_documents` is given for sources of the kind `chat`."""

    whole_texts: ClassVar[bool] = False
    """A file that holds no records is no conversation."""
    fingerprint: ClassVar[str] = "chat"

    columns: ClassVar[frozenset[str]] = frozenset(
        {"messages", "conversations", "prompt", "completion", "instruction", "input", "output", "system", "tools"}
    )
    """The fields that are looked at."""

    def __call__(self, record: Any, where: str) -> bytes:
        """The canonical form of a record.

        Raises:
            DataError: naming `where`, when the record has none of the shapes, or breaks the one that it has.
        """
        conversation = conversation_of(record, where)
        try:
            return conversation.to_bytes()
        except UnicodeEncodeError as error:
            found = f"\\u{ord(error.object[error.start]):04x}"
            raise _Place(where).fault("half of a surrogate pair", expected="Unicode text", found=found) from error


def conversation_of(record: Any, where: str) -> Conversation:
    """A record of any of the shapes as a conversation.

    Raises:
        DataError: naming `where`, when it has none of the shapes, or breaks the one that it has.
    """
    place = _Place(where)
    if not isinstance(record, dict):
        raise place.fault("not a conversation", expected=f"an object with {SHAPES}", found=_type(record))
    take = _shape_of(record)
    if take is None:
        raise place.fault("no conversation in this record", expected=SHAPES, found=_fields(record), hint=_nearest(record))
    messages, tools = take(record, place), _tools(record, place.of("tools"))
    if is_too_deep([messages, tools]):
        raise place.fault("nested too deep", expected=f"at most {MAX_DEPTH} levels of lists and objects", found="more")
    return Conversation(messages, tools)


def has_conversation(record: Mapping[str, Any]) -> bool:
    """Whether a record has the fields of one of the shapes."""
    return _shape_of(record) is not None


@frozen
class _Place:
    """Where something stands, for errors: a record, and the field in it."""

    where: str
    field: str = ""

    def of(self, name: str) -> _Place:
        """A field of the record."""
        return _Place(self.where, name)

    def item(self, number: int) -> _Place:
        """An item of the field, which is a list."""
        return _Place(self.where, f"{self.field}[{number}]")

    def fault(self, problem: str, *, expected: str, found: object, hint: str | None = None) -> DataError:
        """The error for what stands here."""
        rule = rules.PREFLIGHT_025
        return DataError(problem, where=self.where, field=self.field, rule=rule, expected=expected, found=found, hint=hint)


def _of_messages(record: dict[str, Any], place: _Place) -> list[Message]:
    return _messages(record["messages"], place.of("messages"))


def _of_speakers(record: dict[str, Any], place: _Place) -> list[Message]:
    turns = place.of("conversations")
    return _with_system(record, [_spoken(item, turns.item(n)) for n, item in enumerate(_list(record["conversations"], turns))])


def _of_completion(record: dict[str, Any], place: _Place) -> list[Message]:
    prompt = _side(record["prompt"], "user", place.of("prompt"))
    return prompt + _side(record["completion"], "assistant", place.of("completion"))


def _of_instruction(record: dict[str, Any], place: _Place) -> list[Message]:
    instruction, output = (_text(record[name], place.of(name)) for name in ("instruction", "output"))
    more = "" if record.get("input") is None else _text(record["input"], place.of("input"))
    asked = f"{instruction}\n\n{more}" if more.strip() else instruction
    return _with_system(record, [{"role": "user", "content": asked}, {"role": "assistant", "content": output}])


_Shape = Callable[[dict[str, Any], _Place], list[Message]]
"""Takes the messages of a record."""
_SHAPES: tuple[tuple[tuple[str, ...], _Shape], ...] = (
    (("messages",), _of_messages),
    (("conversations",), _of_speakers),
    (("prompt", "completion"), _of_completion),
    (("instruction", "output"), _of_instruction),
)
"""The fields that make a shape → how its messages are taken."""


def _shape_of(record: Mapping[str, Any]) -> _Shape | None:
    """The first shape of which a record has the fields."""
    return next((take for needed, take in _SHAPES if all(record.get(name) is not None for name in needed)), None)


def _with_system(record: dict[str, Any], messages: list[Message]) -> list[Message]:
    """ShareGPT and Alpaca may keep the system's text beside the turns."""
    system = record.get("system")
    if not isinstance(system, str) or not system.strip() or (messages and messages[0]["role"] == "system"):
        return messages
    return [{"role": "system", "content": system}, *messages]


def _side(value: Any, role: str, place: _Place) -> list[Message]:
    """One side of prompt and completion: a text is one turn of `role`."""
    return [{"role": role, "content": value}] if isinstance(value, str) else _messages(value, place)


def _messages(value: Any, place: _Place) -> list[Message]:
    return [_message(item, place.item(number)) for number, item in enumerate(_list(value, place))]


def _message(item: Any, place: _Place) -> Message:
    """A message as it is, without its nulls, as transformers leaves them out; parts of text are joined."""
    if not isinstance(item, dict) or "role" not in item:
        raise place.fault("not a message", expected='an object with "role" and "content"', found=_fields(item))
    message = {name: value for name, value in item.items() if value is not None}
    _require_known(item["role"], ROLES, "role", place)
    if "content" in message:
        message["content"] = _text(message["content"], place)
    elif not message.get("tool_calls"):
        raise place.fault("a message without content", expected='a text in "content"', found=_fields(item))
    return message


def _spoken(item: Any, place: _Place) -> Message:
    """One turn of ShareGPT; an object with `role` and `content` is taken as a message."""
    if isinstance(item, dict) and "role" in item and "from" not in item:
        return _message(item, place)
    if not isinstance(item, dict) or "from" not in item or "value" not in item:
        raise place.fault("not a turn", expected='an object with "from" and "value"', found=_fields(item))
    _require_known(item["from"], tuple(SPEAKERS), "speaker", place)
    return {"role": SPEAKERS[item["from"]], "content": _text(item["value"], place)}


def _require_known(name: Any, known: tuple[str, ...], what: str, place: _Place) -> None:
    if name not in known:
        hint = nearest(name, known) if isinstance(name, str) else None
        raise place.fault(f"a {what} that is not known", expected=", ".join(known), found=repr(name)[:80], hint=hint)


def _text(value: Any, place: _Place) -> str:
    """A text, or a list of parts that are texts, joined."""
    if isinstance(value, str):
        return value
    expected = "a text, or a list of parts of the type text"
    if not isinstance(value, list):
        raise place.fault("content that is no text", expected=expected, found=_type(value))
    texts = []
    for part in value:
        text = part.get("text") if isinstance(part, dict) and part.get("type", "text") == "text" else part
        if not isinstance(text, str):
            found = (
                f"a part of the type {part.get('type')!r:.40}" if isinstance(part, dict) else f"a part that is {_type(part)}"
            )
            raise place.fault("content that is no text", expected=expected, found=found)
        texts.append(text)
    return "".join(texts)


def _tools(record: dict[str, Any], place: _Place) -> list[Any] | None:
    """The tools, which some data sets keep as JSON in a text."""
    tools = record.get("tools")
    if isinstance(tools, str) and tools.strip():
        try:
            tools = json.loads(tools)
        except (ValueError, RecursionError) as error:
            raise place.fault("tools that are no JSON", expected="a list of objects", found=error) from error
    return _list(tools, place) if tools else None


def _list(value: Any, place: _Place) -> list[Any]:
    if not isinstance(value, list):
        raise place.fault("not a list", expected="a list of objects", found=_type(value))
    return value


def _fields(value: Any) -> str:
    if not isinstance(value, dict):
        return _type(value)
    return f"the fields {', '.join(sorted(map(str, value))[:_LISTED])}" if value else "no fields"


def _type(value: Any) -> str:
    return _TYPES.get(type(value), "a number")


def _nearest(record: dict[str, Any]) -> str:
    """What to do about a record of another shape."""
    if isinstance(record.get("text"), str):
        return 'Plain texts are a source of kind = "text".'
    return "Write each record out in one of these shapes; docs/chat.md has an example of each."
