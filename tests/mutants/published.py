"""The numbers of published config.json files, in transformers' own terms: what the presets of that name must be.

Sources: the config.json of Qwen/Qwen2.5-Coder-*-Instruct, Qwen/Qwen3-0.6B, allenai/OLMo-2-0425-1B, google/gemma-2-2b,
mistralai/Mixtral-8x7B-v0.1, bigcode/starcoder2-3b, openai-community/gpt2, google-bert/bert-base-uncased,
microsoft/codebert-base, microsoft/phi-2, HuggingFaceTB/SmolLM3-3B.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def _rope(theta: float) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": "default", "rope_theta": theta}}


def _sizes(hidden: int, layers: int, heads: int, intermediate: int, vocabulary: int, positions: int) -> dict[str, int]:
    return {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": intermediate,
        "vocab_size": vocabulary,
        "max_position_embeddings": positions,
    }


def _coder(
    hidden: int, layers: int, heads: int, kv_heads: int, intermediate: int, vocabulary: int, *, tied: bool
) -> tuple[str, dict[str, Any]]:
    sizes = _sizes(hidden, layers, heads, intermediate, vocabulary, 32_768)
    others = {"num_key_value_heads": kv_heads, "rms_norm_eps": 1e-6, "tie_word_embeddings": tied}
    return "Qwen2Config", {**sizes, **others, **_rope(1_000_000.0)}


PUBLISHED: Mapping[str, Mapping[str, tuple[str, Mapping[str, Any]]]] = {
    "qwen2": {
        "0.5b": _coder(896, 24, 14, 2, 4864, 151_936, tied=True),
        "1.5b": _coder(1536, 28, 12, 2, 8960, 151_936, tied=True),
        "3b": _coder(2048, 36, 16, 2, 11_008, 151_936, tied=True),
        "7b": _coder(3584, 28, 28, 4, 18_944, 152_064, tied=False),
        "14b": _coder(5120, 48, 40, 8, 13_824, 152_064, tied=False),
        "32b": _coder(5120, 64, 40, 8, 27_648, 152_064, tied=False),
    },
    "qwen3": {
        "0.6b": (
            "Qwen3Config",
            {
                **_sizes(1024, 28, 16, 3072, 151_936, 40_960),
                **_rope(1_000_000.0),
                "num_key_value_heads": 8,
                "head_dim": 128,
                "rms_norm_eps": 1e-6,
                "tie_word_embeddings": True,
            },
        )
    },
    "olmo2": {
        "1b": (
            "Olmo2Config",
            {
                **_sizes(2048, 16, 16, 8192, 100_352, 4096),
                **_rope(500_000.0),
                "num_key_value_heads": 16,
                "rms_norm_eps": 1e-6,
                "tie_word_embeddings": False,
            },
        )
    },
    "gemma2": {
        "2b": (
            "Gemma2Config",
            {
                **_sizes(2304, 26, 8, 9216, 256_000, 8192),
                **_rope(10_000.0),
                "num_key_value_heads": 4,
                "head_dim": 256,
                "query_pre_attn_scalar": 256,
                "sliding_window": 4096,
                "attn_logit_softcapping": 50.0,
                "final_logit_softcapping": 30.0,
                "rms_norm_eps": 1e-6,
            },
        )
    },
    "mixtral": {
        "8x7b": (
            "MixtralConfig",
            {
                **_sizes(4096, 32, 32, 14_336, 32_000, 32_768),
                **_rope(1_000_000.0),
                "num_key_value_heads": 8,
                "num_local_experts": 8,
                "num_experts_per_tok": 2,
                "rms_norm_eps": 1e-5,
                "sliding_window": None,
                "router_aux_loss_coef": 0.02,
                "output_router_logits": True,  # false in the file, which is for inference: the loss counts where it is on
            },
        )
    },
    "starcoder2": {
        "3b": (
            "Starcoder2Config",
            {
                **_sizes(3072, 30, 24, 12_288, 49_152, 16_384),
                **_rope(999_999.4420358813),
                "num_key_value_heads": 2,
                "norm_epsilon": 1e-5,
                "sliding_window": 4096,
                "initializer_range": 0.02,
            },
        )
    },
    "gpt2": {
        "124m": (
            "GPT2Config",
            {
                "n_embd": 768,
                "n_layer": 12,
                "n_head": 12,
                "n_positions": 1024,
                "vocab_size": 50_257,
                "layer_norm_epsilon": 1e-5,
                "activation_function": "gelu_new",
            },
        )
    },
    "bert": {
        "base-uncased": (
            "BertConfig",
            {**_sizes(768, 12, 12, 3072, 30_522, 512), "type_vocab_size": 2, "layer_norm_eps": 1e-12, "pad_token_id": 0},
        )
    },
    "codebert": {
        "base": (
            "RobertaConfig",
            {**_sizes(768, 12, 12, 3072, 50_265, 514), "type_vocab_size": 1, "layer_norm_eps": 1e-5, "pad_token_id": 1},
        )
    },
    "phi": {
        "2": (
            "PhiConfig",
            {
                **_sizes(2560, 32, 32, 10_240, 51_200, 2048),
                "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 0.4},
                "hidden_act": "gelu_new",
                "layer_norm_eps": 1e-5,
            },
        )
    },
    "smollm3": {
        "3b": (
            "SmolLM3Config",
            {
                **_sizes(2048, 36, 16, 11_008, 128_256, 65_536),
                **_rope(5_000_000.0),
                "num_key_value_heads": 4,
                "rms_norm_eps": 1e-6,
                "tie_word_embeddings": True,
                "no_rope_layer_interval": 4,
            },
        )
    },
}
