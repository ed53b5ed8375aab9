"""The Llama family: the 370M baseline that is trained from scratch, and every Llama-shaped checkpoint (Llama 3, SmolLM2)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from apr_train.family import (
    DecoderConfig,
    FamilyInfo,
    Finding,
    Header,
    Layout,
    ModelConfig,
    NameMap,
    decoder_rules,
    hookimpl,
    read_config,
    rules,
    tensors_have,
)

PRESETS: Mapping[str, DecoderConfig] = {
    "370m": DecoderConfig(
        vocab_size=50_257,
        hidden_size=1024,
        num_hidden_layers=24,
        num_attention_heads=16,
        num_key_value_heads=4,
        intermediate_size=2816,
        max_position_embeddings=4096,
        rope_theta=10_000.0,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
    ),
    "tiny": DecoderConfig(
        vocab_size=1024,
        hidden_size=128,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=2,
        intermediate_size=352,
        max_position_embeddings=512,
        rope_theta=10_000.0,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
    ),
}
"""`370m` is the baseline; `tiny` keeps its proportions (GQA 4:1, MLP 2.75 times the width) and runs in seconds on a CPU."""

FAMILY = FamilyInfo(
    name="llama370m",
    api_version="1.0",
    kind="decoder",
    objectives=("causal-lm",),
    hf_classes=("LlamaForCausalLM", "LlamaModel"),
    model_type="llama",
    gguf_architectures=("llama",),
    presets=tuple(PRESETS),
    default_preset="370m",
    implied={"hidden_act": "silu"},
    parameter_counts={"370m": 322_045_952, "tiny": 836_736},
    absent_keys={"use_sliding_window": False},
)


@hookimpl
def build_config(preset: str | None, header: Header | None) -> ModelConfig:
    """Look the preset up, or read the file's own numbers."""
    return read_config(FAMILY, PRESETS, preset, header, **(_biases(header) if header else {}))


def _biases(header: Header) -> dict[str, Any]:
    """Hugging Face's `attention_bias` means q, k, v and o in a Llama; where the metadata is silent, the tensors say."""
    attention = header.config.get("attention_bias", tensors_have(header, "q_proj.bias", "attn_q.bias"))
    return {
        "attention_bias": attention,
        "attention_output_bias": header.config.get("attention_output_bias", attention),
        "mlp_bias": header.config.get("mlp_bias", tensors_have(header, "up_proj.bias", "ffn_up.bias")),
    }


@hookimpl
def map_tensor_names(config: DecoderConfig, layout: Layout) -> NameMap:
    """Give the standard decoder's names; llama.cpp's files have the rows of q and k permuted, and the layout says so."""
    return NameMap.for_config(config, decoder_rules(config, layout))


@hookimpl
def validate_family(header: Header, objective: str) -> list[Finding]:
    """Refuse RoPE factors that only the file's own table knows, and warn of a scaling that the container lost."""
    findings = []
    if "rope_freqs.weight" in header.tensors and not header.config.get("rope_scaling"):
        findings.append(_rope_table(header))
    if header.config.get("rope_theta") == 500_000.0 and _lost_scaling(header):
        findings.append(_silent_scaling(header))
    return findings


def _lost_scaling(header: Header) -> bool:
    """Llama 3.1's signature (131,072 positions) from a container that has no key for its scaling."""
    long = header.config.get("max_position_embeddings") == 131_072
    return long and header.format != "safetensors" and "rope_scaling" not in header.config


def _rope_table(header: Header) -> Finding:
    return Finding(
        rule=rules.PREFLIGHT_003,
        subject=header.path,
        field="rope_freqs.weight",
        problem="a table of RoPE factors whose numbers are not known",
        expected="no table, or that of Llama 3's published numbers, or an export of apr-train, which has them",
        found="rope_freqs.weight",
        hint="Import from the original safetensors, whose config.json has the numbers.",
    )


def _silent_scaling(header: Header) -> Finding:
    return Finding(
        rule=rules.PREFLIGHT_003,
        subject=header.path,
        field="rope_scaling",
        problem="this looks like a Llama 3.1 or later, and the file does not say how its RoPE is scaled",
        expected="rope_scaling",
        found="nothing",
        hint="Import from the original safetensors, or every position is rotated a little wrong.",
        severity="warning",
    )
