"""The Qwen2 family: Qwen2, Qwen2.5 and Qwen2.5-Coder, dense."""

from __future__ import annotations

from collections.abc import Mapping

from apr_train.family import (
    DecoderConfig,
    FamilyInfo,
    Header,
    Layout,
    ModelConfig,
    NameMap,
    decoder_rules,
    hookimpl,
    read_config,
)


def _published(
    hidden: int, layers: int, heads: int, kv_heads: int, intermediate: int, vocabulary: int = 152_064, *, tied: bool
) -> DecoderConfig:
    """One row of the table of published Qwen2.5-Coder-*-Instruct configs; what they share is here."""
    return DecoderConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        intermediate_size=intermediate,
        max_position_embeddings=32_768,
        rope_theta=1_000_000.0,
        rms_norm_eps=1e-6,
        tie_word_embeddings=tied,
        attention_bias=True,
    )


PRESETS: Mapping[str, DecoderConfig] = {
    "0.5b": _published(896, 24, 14, 2, 4864, 151_936, tied=True),
    "1.5b": _published(1536, 28, 12, 2, 8960, 151_936, tied=True),
    "3b": _published(2048, 36, 16, 2, 11_008, 151_936, tied=True),
    "7b": _published(3584, 28, 28, 4, 18_944, tied=False),
    "14b": _published(5120, 48, 40, 8, 13_824, tied=False),
    "32b": _published(5120, 64, 40, 8, 27_648, tied=False),
    "tiny": _published(112, 2, 14, 2, 608, 1024, tied=True),
}
"""`tiny` keeps the 0.5b's heads (GQA 7:1) and its MLP's proportion to the width."""

FAMILY = FamilyInfo(
    name="qwen2",
    api_version="1.0",
    kind="decoder",
    objectives=("causal-lm",),
    hf_classes=("Qwen2ForCausalLM", "Qwen2Model"),
    model_type="qwen2",
    gguf_architectures=("qwen2",),
    presets=tuple(PRESETS),
    default_preset="0.5b",
    parameter_counts={
        "0.5b": 494_032_768,
        "1.5b": 1_543_714_304,
        "3b": 3_085_938_688,
        "7b": 7_615_616_512,
        "14b": 14_770_033_664,
        "32b": 32_763_876_352,
        "tiny": 581_456,
    },
    absent_keys={"use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 28},
    fixed={"attention_bias": True, "attention_output_bias": False, "mlp_bias": False},
    never_permuted=True,
    fim_tokens={
        "prefix": "<|fim_prefix|>",
        "middle": "<|fim_middle|>",
        "suffix": "<|fim_suffix|>",
        "pad": "<|fim_pad|>",
    },
)


@hookimpl
def build_config(preset: str | None, header: Header | None) -> ModelConfig:
    """Look the preset up, or read the file's own numbers; the biases on q, k and v are the architecture's."""
    return read_config(FAMILY, PRESETS, preset, header)


@hookimpl
def map_tensor_names(config: DecoderConfig, layout: Layout) -> NameMap:
    """Give the standard decoder's names."""
    return NameMap.for_config(config, decoder_rules(config, layout))
