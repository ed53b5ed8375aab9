"""The folder for what is made once and found again: tokens of corpora, trained tokenizers."""

from __future__ import annotations

import json
import os
import sys
from hashlib import blake2b
from pathlib import Path
from typing import Any

CACHE_VARIABLE = "APR_TRAIN_CACHE"
_NAME = "apr-train"


def cache_folder() -> Path:
    """`$APR_TRAIN_CACHE`, or the platform's place for a user's caches. It may not exist yet."""
    if chosen := os.environ.get(CACHE_VARIABLE):
        return Path(chosen).expanduser()
    home = Path.home()
    if sys.platform == "darwin":
        return home / "Library" / "Caches" / _NAME
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local") / _NAME / "Cache"
    return Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache") / _NAME


def cache_key(**parts: Any) -> str:
    """64 hex digits that stand for JSON-able parts."""
    return blake2b(json.dumps(parts, sort_keys=True).encode(), digest_size=32).hexdigest()
