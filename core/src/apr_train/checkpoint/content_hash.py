"""What identifies a model, whatever its path: metadata, names, dtypes, shapes and bytes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any

from apr_train.checkpoint.header import TensorInfo


def content_hash(metadata: Mapping[str, Any], tensors: Mapping[str, TensorInfo], read_raw: Callable[[str], memoryview]) -> str:
    """SHA-256 over canonical JSON of the metadata, then each tensor in name order; lower-case hex."""
    digest = hashlib.sha256(json.dumps(metadata, sort_keys=True, ensure_ascii=False, default=repr).encode(errors="replace"))
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(json.dumps([name, tensor.dtype, list(tensor.shape), tensor.nbytes]).encode())
        digest.update(read_raw(name))
    return digest.hexdigest()
