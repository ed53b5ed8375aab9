"""The order of the rows of q and k in a file: facts about the containers, keyed by GGUF architecture names.

Source: `LlamaModel.permute` and the model classes that call it in llama.cpp's convert_hf_to_gguf.py; `llama_model_rope_type`
in llama.cpp's llama-model.cpp (NORM rotates adjacent pairs, NEOX split halves).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from apr_train.checkpoint.header import RopeRows

PERMUTED_IN_GGUF = frozenset(
    {"llama", "smollm3", "granite", "deci", "minicpm", "internlm2", "olmo", "xverse", "baichuan", "arcee"}
)
"""GGUF architectures whose converter permutes q and k rows into adjacent pairs."""
NOT_PERMUTED_IN_GGUF = frozenset(
    {"qwen2", "qwen3", "gemma", "gemma2", "gemma3", "phi2", "phi3", "stablelm", "starcoder2", "olmo2"}
)
"""GGUF architectures whose rows stay as Hugging Face has them."""
SPLIT_HALF_TYPE = 2
"""`.apr`'s rope_type for split halves (GGML's NEOX); 0, the other value, says nothing about the rows."""

TRAINER_FORMAT = "entrenar-checkpoint"
"""An `.apr`'s `format` when one of aprender's trainers wrote it."""


def gguf_rope_rows(architecture: str | None) -> RopeRows | None:
    """The row order of a GGUF file; None for an architecture that is not in the tables."""
    if architecture in PERMUTED_IN_GGUF:
        return "adjacent"
    return "split-half" if architecture in NOT_PERMUTED_IN_GGUF else None


def apr_rope_rows(metadata: Mapping[str, Any], architecture: str | None) -> RopeRows | None:
    """The row order of an `.apr` file; None when its metadata does not say and `--rope-layout` must.

    aprender fills `rope_type` 0 from the architecture's name, so only 2 is evidence; then the architecture, then that
    aprender's own trainers rotate split halves, then `original_format`.
    """
    trained = metadata.get("format") == TRAINER_FORMAT
    if metadata.get("rope_type") == SPLIT_HALF_TYPE or architecture in NOT_PERMUTED_IN_GGUF or trained:
        return "split-half"
    return {"gguf": "adjacent", "safetensors": "split-half"}.get(str(metadata.get("original_format")).lower())  # type: ignore[return-value]
