"""The models that are trained, and on how much a step."""

from __future__ import annotations

BATCH, LENGTH = 2, 512
SHAPES = {
    "smollm2": {
        "vocab_size": 49_152,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5,
        "rope_theta": 100_000.0,
        "tie_word_embeddings": True,
        "attention_bias": False,
    },
    "qwen2.5-0.5b": {
        "vocab_size": 151_936,
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "max_position_embeddings": 32_768,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1_000_000.0,
        "tie_word_embeddings": True,
        "attention_bias": True,
    },
}


def parameters(shape: str) -> int:
    """Numbers that a shape's model trains."""
    size = SHAPES[shape]
    hidden, inner = size["hidden_size"], size["intermediate_size"]
    kv = hidden // size["num_attention_heads"] * size["num_key_value_heads"]
    biases = hidden + 2 * kv if size["attention_bias"] else 0
    layer = 2 * hidden * hidden + 2 * hidden * kv + biases + 3 * hidden * inner + 2 * hidden
    return size["vocab_size"] * hidden + size["num_hidden_layers"] * layer + hidden


def state_bytes(shape: str, precision: str, *, bf16_update: str) -> int:
    """Weights, gradients, AdamW's two moments and, where there is one, the float32 master copy."""
    narrow, master = precision == "bf16-weights", precision == "bf16-weights" and bf16_update == "master"
    weight, moment = 2 if narrow else 4, 2 if narrow and not master else 4
    return parameters(shape) * (2 * weight + 2 * moment + (4 if master else 0))


PRECISIONS = ("fp32", "bf16", "bf16-weights")
