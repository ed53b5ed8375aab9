"""The containers taken apart and put together again, checksums and all, so that a change reaches what lies behind them."""

from __future__ import annotations

import json
import random
import struct
import zlib
from typing import Any

from tests.fuzz.values import KEYS, NUMBERS, TEXTS, bytes_changed, changed, spelled, value


def apr_sealed(raw: bytes) -> bytes:
    """Both checksums of an `.apr` file recomputed."""
    if len(raw) >= 64:
        raw = raw[:40] + struct.pack("<I", zlib.crc32(raw[:40] + raw[44:64])) + raw[44:]
    return raw[:-4] + struct.pack("<I", zlib.crc32(raw[:-4])) if len(raw) >= 4 else raw


_HEAD = struct.Struct("<4sBBHIQIQQ")


def apr_changed(raw: bytes, pick: random.Random) -> bytes:
    """An `.apr` file with other metadata, another index entry, another header, or other bytes; sealed, most often."""
    fields = list(_HEAD.unpack_from(raw))
    metadata = raw[fields[5] : fields[5] + fields[6]]
    index, data = raw[fields[7] : fields[8]], raw[fields[8] : -4]
    how = pick.randrange(10)
    if how < 5:
        metadata = spelled(changed(json.loads(metadata), pick), pick)
    elif how < 8:
        index = _index_changed(index, pick)
    elif how == 8:
        at = pick.choice((1, 2, 3, 4, 5, 6, 7, 8))
        made = _apr(fields, metadata, index, data)
        packed = list(_HEAD.unpack_from(made))
        width = (0, 8, 8, 16, 32, 64, 32, 64, 64)[at]
        packed[at] = pick.choice((0, 1, 2, 64, packed[at] ^ (1 << pick.randrange(width)), (1 << width) - 1)) & (
            (1 << width) - 1
        )
        return apr_sealed(_HEAD.pack(*packed) + made[_HEAD.size :])
    else:
        changed_bytes = bytes_changed(raw, pick)
        return apr_sealed(changed_bytes) if pick.random() < 0.8 else changed_bytes
    return apr_sealed(_apr(fields, metadata, index, data))


def _apr(fields: list[Any], metadata: bytes, index: bytes, data: bytes) -> bytes:
    metadata_end = 64 + -(-len(metadata) // 64) * 64
    index += bytes(-len(index) % 64)
    head = (*fields[:5], 64, len(metadata), metadata_end, metadata_end + len(index))
    return _HEAD.pack(*head) + bytes(24) + metadata.ljust(metadata_end - 64, b"\0") + index + data + bytes(4)


def _index_changed(index: bytes, pick: random.Random) -> bytes:
    """One entry with another name, type, shape, offset or size."""
    entries, at = [], 0
    while at + 2 <= len(index) and (size := int.from_bytes(index[at : at + 2], "little")):
        dimensions = index[at + 2 + size + 1]
        end = at + 2 + size + 2 + 8 * dimensions + 16
        entries.append((index[at + 2 : at + 2 + size], index[at + 2 + size], index[at + 4 + size : end]))
        at = end
    number = pick.randrange(len(entries))
    name, dtype, rest = entries[number]
    numbers = list(struct.unpack(f"<{len(rest) // 8}Q", rest))
    how = pick.randrange(5)
    if how == 0:
        name = pick.choice(TEXTS).encode("utf-8", "replace")[:300] or b"\xff"
    elif how == 1:
        dtype = pick.choice((0, 1, 3, 7, 8, 9, 12, 14, 30, 128, 129, 99, 255))
    elif how == 2:
        numbers[:-2] = [pick.choice(NUMBERS) % 2**64 for _ in range(pick.choice((0, 1, 2, 3, 8, 9)))]
    elif how == 3:
        numbers = [0, *numbers] if pick.random() < 0.5 else [0, 2**62, *numbers[-2:]]
    else:
        numbers[pick.randrange(len(numbers))] = pick.choice(NUMBERS) % 2**64
    entries[number] = (name, dtype, struct.pack(f"<{len(numbers)}Q", *numbers))
    if pick.random() < 0.8:
        entries.sort()
    return b"".join(
        struct.pack("<H", len(name)) + name + bytes((dtype, len(rest) // 8 - 2)) + rest for name, dtype, rest in entries
    )


def safetensors_changed(raw: bytes, pick: random.Random) -> bytes:
    """A safetensors file with another header, whose length is right most often, or other bytes."""
    if pick.random() < 0.15:
        return bytes_changed(raw, pick)
    length = int.from_bytes(raw[:8], "little")
    entries = json.loads(raw[8 : 8 + length])
    header = spelled(changed(entries, pick) if pick.random() < 0.5 else _entry_changed(entries, pick), pick)
    said = len(header) if pick.random() < 0.9 else pick.choice(NUMBERS) % 2**64
    return said.to_bytes(8, "little") + header + raw[8 + length :]


def _entry_changed(entries: dict[str, Any], pick: random.Random) -> dict[str, Any]:
    """One tensor of another name, type or shape; or one more, of no bytes, in the right place."""
    name = pick.choice([key for key in entries if key != "__metadata__"])
    entry = entries[name]
    how = pick.randrange(4)
    if how == 0:
        return {(pick.choice(TEXTS) if key == name else key): item for key, item in entries.items()}
    if how == 1:
        kinds = ("F32", "F16", "BF16", "F64", "I8", "U8", "BOOL", "I64", "F4", "F6_E2M3", "F8_E4M3", "C64", "Q4_K", "")
        return {**entries, name: {**entry, "dtype": pick.choice(kinds)}}
    if how == 2:
        shape = [*entry["shape"], 1] if pick.random() < 0.5 else [pick.choice(NUMBERS) for _ in range(pick.randrange(4))]
        return {**entries, name: {**entry, "shape": shape}}
    end = max(item["data_offsets"][1] for key, item in entries.items() if key != "__metadata__")
    shape = [0, *(pick.choice(NUMBERS) for _ in range(pick.choice((0, 1, 2, 3, 63))))]
    return {**entries, pick.choice(TEXTS) or "none": {"dtype": "F32", "shape": shape, "data_offsets": [end, end]}}


Pair = tuple[str, int, Any]
"""Key, type, value; of an array the value is (element type, elements)."""
_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<B", 10: "<Q", 11: "<q", 12: "<d"}


def gguf(pairs: list[Pair], tensors: list[tuple[str, tuple[int, ...], int, int]], data: bytes, *, counts: Any = None) -> bytes:
    """A GGUF file; a tensor is (name, shape with the innermost size first, type, offset)."""
    said = counts or (len(tensors), len(pairs))
    head = b"GGUF" + struct.pack("<IQQ", 3, *said)
    head += b"".join(_string(key) + struct.pack("<I", kind) + _encoded(kind, item) for key, kind, item in pairs)
    for name, shape, kind, offset in tensors:
        head += _string(name) + struct.pack("<I", len(shape)) + b"".join(struct.pack("<Q", size) for size in shape)
        head += struct.pack("<IQ", kind, offset)
    return head + bytes(-len(head) % 32) + data


def _string(text: str) -> bytes:
    raw = text.encode("utf-8", "replace")
    return struct.pack("<Q", len(raw)) + raw


def _encoded(kind: int, item: Any) -> bytes:
    if kind == 8:
        return _string(item)
    if kind == 9:
        element, items = item
        return struct.pack("<IQ", element, len(items)) + b"".join(_encoded(element, part) for part in items)
    return struct.pack(_SCALARS[kind], item)


def gguf_changed(
    pairs: list[Pair], tensors: list[tuple[str, tuple[int, ...], int, int]], data: bytes, pick: random.Random
) -> bytes:
    """A GGUF with another key, value, type, tensor, count, or other bytes."""
    pairs, tensors, counts = list(pairs), list(tensors), None
    how = pick.randrange(10)
    if how < 5:
        number = pick.randrange(len(pairs))
        pairs[number] = _pair_changed(pairs[number], pick)
    elif how < 8:
        number = pick.randrange(len(tensors))
        name, shape, kind, offset = tensors[number]
        what = pick.randrange(4)
        if what == 0:
            name = pick.choice(TEXTS)
        elif what == 1:
            shape = tuple(pick.choice(NUMBERS) % 2**64 for _ in range(pick.randrange(6)))
            shape = (0, *shape[:3]) if pick.random() < 0.3 else shape
        elif what == 2:
            kind = pick.choice((*range(42), 255))
        else:
            offset = pick.choice(NUMBERS) % 2**64
        tensors[number] = (name, shape, kind, offset)
    elif how == 8:
        counts = tuple(pick.choice(NUMBERS) % 2**64 if pick.random() < 0.5 else size for size in (len(tensors), len(pairs)))
    else:
        return bytes_changed(gguf(pairs, tensors, data), pick)
    return gguf(pairs, tensors, data, counts=counts)


def _pair_changed(pair: Pair, pick: random.Random) -> Pair:
    key, kind, item = pair
    if pick.random() < 0.15:
        return pick.choice((*KEYS, *TEXTS)), kind, item
    if kind == 9 and pick.random() < 0.6:
        element, items = item
        items = list(items)
        if items and element == 8:
            items[pick.randrange(len(items))] = pick.choice((*TEXTS, *items))
        elif items:
            items = items[: pick.randrange(len(items))]
        return key, kind, (element, items)
    kind = pick.choice((0, 4, 5, 6, 7, 8, 9, 10, 11, 12))
    if kind == 8:
        return key, kind, pick.choice(TEXTS)
    if kind == 9:
        return key, kind, pick.choice(((8, list(TEXTS[:9])), (4, [0, 1, 2**32 - 1]), (6, [float("nan")]), (8, []), (7, [1, 0])))
    if kind in (6, 12):
        return key, kind, pick.choice((float("nan"), float("inf"), -0.0, 1e-38, 3e38, 1.0))
    limits = {0: 2**8, 4: 2**32, 5: 2**31, 7: 3, 10: 2**64, 11: 2**63}
    return key, kind, pick.choice(NUMBERS) % limits[kind]


def json_changed(raw: bytes, pick: random.Random) -> bytes:
    """A JSON file with other values."""
    return spelled(changed(json.loads(raw), pick), pick)


def lines_changed(raw: bytes, pick: random.Random) -> bytes:
    """JSON lines with one changed, doubled, left out, or moved; or other bytes."""
    if pick.random() < 0.2:
        return bytes_changed(raw, pick)
    lines = raw.split(b"\n")[:-1]
    number = pick.randrange(len(lines))
    how = pick.randrange(6)
    if how == 0:
        del lines[number]
    elif how == 1:
        lines.insert(pick.randrange(len(lines)), lines[number])
    elif how == 2:
        lines[number] = pick.choice((b"", b"{}", b"[]", b"null", b"1", b"\xff", b"{", b'{"step": NaN}'))
    else:
        lines[number] = json_changed(lines[number], pick)
    return b"\n".join(lines) + (b"\n" if pick.random() < 0.9 else b"")


def toml_changed(raw: bytes, pick: random.Random) -> bytes:
    """A settings file with another value, key or table; or other bytes."""
    if pick.random() < 0.2:
        return bytes_changed(raw, pick)
    lines = raw.decode().split("\n")
    number = pick.choice([at for at, line in enumerate(lines) if line] or [0])
    key, equals, _ = lines[number].partition(" = ")
    new = pick.choice(
        ("nan", "inf", "-1", "0", "1" * 5000, "9" * 300, '"\\u001b[2J"', "true", "[]", "{}", '""', '"/dev/zero"', "[" * 2000)
    )
    new = pick.choice((new, json.dumps(pick.choice(TEXTS)), str(pick.choice(NUMBERS)), str(value(pick))[:200]))
    lines[number] = (
        f"{key} = {new}"
        if equals and pick.random() < 0.8
        else pick.choice((f"[{key}]", f"x = {new}", "[" + "a." * 3000 + "b]", new))
    )
    return "\n".join(lines).encode("utf-8", "surrogatepass")
