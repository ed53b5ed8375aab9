"""Small files of the foreign containers, made by their own packages."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest

LLAMA_KEYS = {
    "block_count": 2,
    "context_length": 128,
    "embedding_length": 64,
    "feed_forward_length": 96,
}


class GgufMaker:
    """Writes GGUF files with llama.cpp's own writer."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, tensors=(), *, architecture="llama", name="m.gguf", more=lambda writer: None, heads=4, kv_heads=2):
        path = self.folder / name
        writer = gguf.GGUFWriter(path, architecture)
        for key, value in LLAMA_KEYS.items():
            writer.add_uint32(f"{architecture}.{key}", value)
        writer.add_head_count(heads)
        writer.add_head_count_kv(kv_heads)
        writer.add_layer_norm_rms_eps(1e-5)
        writer.add_rope_freq_base(10000.0)
        more(writer)
        for tensor, data, kind in tensors:
            writer.add_tensor(tensor, data, raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path


@pytest.fixture
def make_gguf(tmp_path):
    return GgufMaker(tmp_path)


def quantised(kind: gguf.GGMLQuantizationType, rows: int, columns: int, seed: int = 0) -> np.ndarray:
    """Random bytes of a block type with scales that are ordinary numbers wherever a half could be."""
    block, size = gguf.GGML_QUANT_SIZES[kind]
    return np.random.default_rng(seed).integers(0, 60, (rows, columns // block * size)).astype(np.uint8)


@pytest.fixture
def some_gguf(make_gguf):
    """A small valid file with floats, blocks and a tokenizer."""
    kinds = gguf.GGMLQuantizationType
    random = np.random.default_rng(1)

    def more(writer):
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("gpt-2")
        writer.add_token_list(["a", "b", "ab", "<|end|>"])
        writer.add_token_types([1, 1, 1, 3])
        writer.add_token_merges(["a b"])
        writer.add_eos_token_id(3)

    tensors = [
        ("token_embd.weight", random.standard_normal((4, 64)).astype(np.float32), None),
        ("output_norm.weight", random.standard_normal(64).astype(np.float16), None),
        ("blk.0.ffn_up.weight", quantised(kinds.Q4_1, 3, 64), kinds.Q4_1),
    ]
    return make_gguf(tensors, more=more)
