"""JSON files that come from outside: bounded, strict, and FormatError when they are not what they should be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from apr_train.errors import FormatError

MAX_BYTES = 1 << 28
"""A tokenizer.json of a 250,000-token vocabulary has about 35 MB."""


def parse_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        FormatError: when the file is missing, too large, no UTF-8, no JSON, or no object.
    """
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise FormatError("too large for a JSON file", path=path, expected=f"at most {MAX_BYTES} bytes", found=size)
        return parse_json_bytes(path.read_bytes(), path)
    except OSError as error:
        raise FormatError(f"cannot be read: {error.strerror}", path=path) from error


def parse_json_bytes(raw: bytes, path: object, field: str | None = None) -> dict[str, Any]:
    """The JSON object in some bytes of a file.

    Raises:
        FormatError: as `parse_json`.
    """
    try:
        value = json.loads(raw.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise FormatError(f"not valid JSON: {error}", path=path, field=field) from error
    if not isinstance(value, dict):
        raise FormatError("not a JSON object", path=path, field=field, expected="{…}", found=type(value).__name__)
    return value
