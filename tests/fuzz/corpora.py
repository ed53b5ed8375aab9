"""Changes of what a corpus is made of: packed files, columns, token shards, chat templates, settings, and the cache."""

from __future__ import annotations

import gzip
import json
import random
import struct
import zlib
from collections.abc import Callable
from hashlib import blake2b

import zstandard

from tests.fuzz.containers import lines_changed, toml_changed
from tests.fuzz.values import NUMBERS, TEXTS, bytes_changed, value

Change = Callable[[bytes, random.Random], bytes]


def gzip_changed(raw: bytes, pick: random.Random) -> bytes:
    """What is in a gzip changed, or the gzip itself."""
    if pick.random() < 0.4:
        return bytes_changed(raw, pick)
    packed = gzip.compress(lines_changed(gzip.decompress(raw), pick), mtime=0)
    return packed + pick.choice((b"", b"", packed, b"\0" * 9, b"x", gzip.compress(bytes(300_000), mtime=0)))


def zstd_changed(raw: bytes, pick: random.Random) -> bytes:
    """What is in a zstd frame changed, or the frame itself: its window, its checksum."""
    if pick.random() < 0.4:
        return bytes_changed(raw, pick)
    inside = bytes_changed(zstandard.decompress(raw), pick)
    packed = zstandard.ZstdCompressor(write_checksum=pick.random() < 0.5).compress(inside)
    if pick.random() < 0.2:
        packed = packed[:5] + bytes((pick.randrange(256),)) + packed[6:]
    return packed + pick.choice((b"", b"", packed, b"x"))


def columns_changed(raw: bytes, pick: random.Random) -> bytes:
    """A file of columns with other bytes: anywhere, or where it says what it holds, at its beginning and its end."""
    size = min(len(raw) // 2, 400)
    where = pick.randrange(3)
    if where == 0:
        return bytes_changed(raw, pick)
    if where == 1:
        return bytes_changed(raw[:size], pick) + raw[size:]
    return raw[:-size] + bytes_changed(raw[-size:], pick)


def id_shard_changed(raw: bytes, pick: random.Random) -> bytes:
    """A token shard of llm.c with another number in its header, other ids, or other bytes."""
    how = pick.randrange(4)
    if how == 0:
        return bytes_changed(raw, pick)
    if how == 1:
        return raw[1024:]
    numbers = list(struct.unpack("<256i", raw[:1024]))
    place = pick.randrange(3) if how == 2 else pick.randrange(256)
    numbers[place] = pick.choice((numbers[place] + 1, 20240520, 20240801, 20240522, 0, -1, 2**31 - 1, 1, 7))
    return struct.pack("<256i", *numbers) + raw[1024:]


TEMPLATES = (
    "{{ messages.__class__.__mro__ }}",
    "{% for i in range(10**9) %}x{% endfor %}",
    "{{ 'a' * 10**9 }}",
    "{{ 9 ** 9 ** 9 }}",
    "{{ raise_exception('\x1b[2J no') }}",
    "{{ cycler.__init__.__globals__ }}",
    "{% include '/etc/passwd' %}",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "{{ " + "(" * 300 + "1" + ")" * 300 + " }}",
    "{% set ns = namespace(x=[]) %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x }}",
    "{{ messages | tojson }}",
    "{% if %}",
    "{{",
    "\ud800".encode("utf-8", "surrogatepass").decode("latin-1"),
    "{{ '%1000000000d' % 1 }}",
    "{{ '{:>1000000000}'.format(1) }}",
    "{{ messages[99].content }}",
    "{% generation %}a{% endgeneration %}",
)


def template_changed(raw: bytes, pick: random.Random) -> bytes:
    """A chat template with something that templates should not do, or other bytes."""
    if pick.random() < 0.4:
        return bytes_changed(raw, pick)
    at = pick.randrange(len(raw)) if pick.random() < 0.5 else len(raw)
    return raw[:at] + pick.choice(TEMPLATES).encode() + raw[at:]


def mixture_changed(raw: bytes, pick: random.Random) -> bytes:
    """A file of settings with one more key in the last of its sources, or changed as all settings are."""
    if pick.random() < 0.5:
        return toml_changed(raw, pick)
    new = pick.choice(('"text"', "1.5", json.dumps(pick.choice(TEXTS)), str(pick.choice(NUMBERS)), str(value(pick))[:200]))
    return raw + f"{pick.choice(('kind', 'text_field', 'epochs', 'x'))} = {new}\n".encode("utf-8", "surrogatepass")


def token_file_changed(raw: bytes, pick: random.Random) -> bytes:
    """A token file of the cache with other bytes, its checksum right again, most often."""
    at = 128 if pick.random() < 0.5 else 16
    raw = raw[:at] + bytes_changed(raw[at:], pick)
    if pick.random() < 0.2 or len(raw) < 128:
        return raw
    return raw[:96] + struct.pack("<I", zlib.crc32(raw[:96], zlib.crc32(raw[128:]))) + raw[100:]


def reading_changed(raw: bytes, pick: random.Random) -> bytes:
    """A reading of the cache with another line of JSON, or other bytes, its hash right again."""
    _, _, body = raw.partition(b"\n")
    head, _, arrays = body.partition(b"\n")
    body = bytes_changed(body, pick) if pick.random() < 0.5 else lines_changed(head + b"\n", pick) + arrays
    return blake2b(body, digest_size=32).hexdigest().encode("ascii") + b"\n" + body
