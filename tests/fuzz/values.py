"""Changes of JSON, of TOML and of bytes: values that a reader may not expect, in the places that it does."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any

RAW = "@@RAW:"
"""How a text begins that stands in the document as it is, without quotes: what json.dumps would not write."""
_DEEP: Any = []
for _ in range(90):
    _DEEP = [_DEEP]
SPELLED = ("NaN", "Infinity", "-Infinity", "1e999", "-1e999", "1" * 5000, "-" + "9" * 400, "[" * 3000 + "]" * 3000)
SPELLED += ("0.1" + "0" * 5000, "1E-400", '"\\ud800"', '"\\udce9"', "", "nul", "01", "'a'", "{a:1}", '{"a":1,"a":2}')
NUMBERS = (0, -1, 1, 2, 3, 7, 127, 128, 255, 256, 65_536, 2**31 - 1, 2**31, 2**32, 2**53 + 1, 2**62, 2**63 - 1, 2**63, 2**64)
NUMBERS += (-(2**31), -(2**63), 10**18, 10**300, 10**307 * 9)
FLOATS = (0.5, -0.0, 1e-320, 1e-30, 1e30, 1e308, -1e308, 1.5, 0.1)
TEXTS = (
    "",
    " ",
    "\0",
    "\n",
    "\x1b[31mred",
    "\x1b]0;title\x07",
    "\x9b2J",
    "\u202eabc",
    "a" * 300,
    "é" * 3000,
    "x" * 200_000,
    "\ufeff",
)
TEXTS += (
    "../../etc/passwd",
    "/dev/zero",
    "~",
    "~root",
    "a/b",
    "{layer}",
    "{",
    "%s",
    "[bold]",
    "<b>",
    "```",
    "|",
    "---",
    "#",
    "NaN",
)
TEXTS += (
    "1" * 5000,
    "٣",
    "\u0660",
    "None",
    "true",
    "model.layers.99999999999999999999.x",
    "llama",
    "qwen2",
    "BPE",
    "\U0001f600",
)
KEYS = (
    "",
    "a",
    "\x1b[2J",
    "__metadata__",
    "x" * 3000,
    "added_tokens",
    "vocab",
    "merges",
    "rope_scaling",
    "rope_parameters",
    "json",
)
KEYS += (
    "chat_template",
    "layer_types",
    "architectures",
    "quantization_config",
    "num_experts",
    "sharding",
    "tokenizer.apr_train",
)


def value(pick: random.Random) -> Any:
    """Any value: of another type than what stands there, most often."""
    kind = pick.randrange(9)
    if kind < 2:
        return pick.choice(NUMBERS)
    if kind == 2:
        return pick.choice(FLOATS)
    if kind < 5:
        return pick.choice(TEXTS)
    if kind == 5:
        return pick.choice((None, True, False))
    if kind == 6:
        return RAW + pick.choice(SPELLED)
    return _container(pick)


def _container(pick: random.Random) -> Any:
    some = [pick.choice((*NUMBERS, *TEXTS, *FLOATS, None)) for _ in range(pick.randrange(4))]
    return pick.choice(([], {}, [[]], [{}], [None], _DEEP, some, {str(item)[:40]: item for item in some}, list(range(3000))))


def changed(document: Any, pick: random.Random) -> Any:
    """A copy with one to three changes, each in some place of it."""
    document = json.loads(json.dumps(document))
    for _ in range(pick.choice((1, 1, 1, 2, 3))):
        places = [*_places(document)]
        if not places:
            return value(pick)
        holder, key = pick.choice(places[:60] if pick.random() < 0.5 else places)
        _change(holder, key, places, pick)
    return document


def _places(document: Any) -> Iterator[tuple[Any, Any]]:
    """Every (object or list, key or index); what stands near the top comes first."""
    level = [document]
    while level:
        inner = []
        for item in level:
            keys = list(item) if isinstance(item, dict) else range(len(item)) if isinstance(item, list) else ()
            yield from ((item, key) for key in keys)
            inner += [item[key] for key in keys if isinstance(item[key], dict | list)]
        level = inner


def _change(holder: Any, key: Any, places: list[tuple[Any, Any]], pick: random.Random) -> None:
    how = pick.randrange(10)
    if how == 0:
        del holder[key]
    elif how == 1 and isinstance(holder, dict):
        holder[pick.choice((*KEYS, *map(str, TEXTS)))] = holder.pop(key)
    elif how == 2 and isinstance(holder, dict):
        holder[pick.choice(KEYS)] = value(pick)
    elif how == 3:
        other, name = pick.choice(places)
        if name in other if isinstance(other, dict) else name < len(other):
            holder[key] = json.loads(json.dumps(other[name]))
    elif how == 4 and isinstance(holder[key], int | float):
        holder[key] = pick.choice(
            (holder[key] + 1, holder[key] - 1, -holder[key], holder[key] * 2, str(holder[key]), [holder[key]])
        )
    else:
        holder[key] = value(pick)


def spelled(document: Any, pick: random.Random) -> bytes:
    """The document as JSON, raw values as they are; now and then it is no UTF-8, cut off, or has a byte-order mark."""
    text = json.dumps(document, ensure_ascii=pick.random() < 0.5)
    while (at := text.find(f'"{RAW}')) >= 0:
        end = text.index('"', at + 1)
        while text[end - 1] == "\\":
            end = text.index('"', end + 1)
        text = text[:at] + json.loads(text[at : end + 1]).removeprefix(RAW) + text[end + 1 :]
    raw = text.encode("utf-8", "surrogatepass")
    return bytes_changed(raw, pick) if pick.random() < 0.06 else raw


def bytes_changed(raw: bytes, pick: random.Random) -> bytes:
    """Bytes flipped, taken out, put in, doubled, or cut off."""
    data = bytearray(raw)
    for _ in range(pick.choice((1, 1, 2, 8))):
        at, how = pick.randrange(len(data) + 1), pick.randrange(6)
        if how == 0:
            data = data[:at]
        elif how == 1:
            data[at : at + pick.choice((1, 4, 8))] = b""
        elif how == 2:
            data[at:at] = pick.choice((b"\0", b"\xff", b"\x1b[2J", b"\n", b"\xef\xbb\xbf", bytes(64), data[at : at + 64]))
        elif how == 3 and at < len(data):
            data[at] ^= 1 << pick.randrange(8)
        elif how == 4:
            size = pick.choice((1, 2, 4, 8))
            number = pick.choice((0, 1, 2**31 - 1, 2**31, 2**62, 2**63 - 1, 2**64 - 1))
            data[at : at + size] = (number & ((1 << 8 * size) - 1)).to_bytes(size, "little")
        else:
            data[at:at] = pick.choice((b"", b"{", b"[" * 5000, b"1" * 5000, b"\n" * 60_000, b"a." * 4000, b'"' * 100))
    return bytes(data)
