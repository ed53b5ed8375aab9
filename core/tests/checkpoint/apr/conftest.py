"""Small files, and the two checksums recomputed by zlib, so that what lies behind them is reached."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from apr_train.checkpoint.apr import AprWriter, TensorSpec


@pytest.fixture
def reseal() -> Callable[[bytes], bytes]:
    """Both checksums recomputed, whatever the bytes are now."""

    def seal(raw: bytes) -> bytes:
        if len(raw) >= 64:
            raw = raw[:40] + struct.pack("<I", zlib.crc32(raw[:40] + raw[44:64])) + raw[44:]
        return raw[:-4] + struct.pack("<I", zlib.crc32(raw[:-4])) if len(raw) >= 4 else raw

    return seal


@pytest.fixture
def small_tensors() -> dict[str, tuple[TensorSpec, np.ndarray]]:
    random = np.random.default_rng(0)
    return {
        "model.embed_tokens.weight": (
            TensorSpec("model.embed_tokens.weight", "F32", (5, 4)),
            random.standard_normal((5, 4)).astype(np.float32),
        ),
        "model.norm.weight": (
            TensorSpec("model.norm.weight", "BF16", (4,)),
            random.integers(0x3F00, 0x4000, 4).astype(np.uint16),
        ),
        "x.q4": (TensorSpec("x.q4", "APR_Q4", (33,)), random.integers(0, 120, 36).astype(np.uint8)),
        "x.q8": (TensorSpec("x.q8", "APR_Q8", (3,)), np.frombuffer(struct.pack("<f3b", 0.5, 1, -2, 3), np.uint8)),
    }


@pytest.fixture
def small_file(tmp_path: Path, small_tensors) -> Path:
    path = tmp_path / "small.apr"
    metadata = {"model_type": "llama", "hidden_size": 4, "rms_norm_eps": 1e-5, "original_format": "safetensors", "x": [1, "é"]}
    with AprWriter(path, metadata, [spec for spec, _ in small_tensors.values()]) as writer:
        for name, (_, data) in small_tensors.items():
            writer.write(name, data)
    return path
