"""The mathematics of models, and the one import of a plugin's `build_model`: layers, blocks, attention and its masks.

    @hookimpl
    def build_model(config, attention):
        from apr_train.model import Decoder

        return Decoder(config, attention)

A name's module is imported when the name is first asked for: importing `apr_train.model` itself loads no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from apr_train.model.attention.backend import AttentionBackend, PreparingBackend, Request, prepare_mask
    from apr_train.model.attention.masks import Bidirectional, Causal, Documents, Mask, MaskKind, PreparedMask
    from apr_train.model.cache import KeyValueCache
    from apr_train.model.decoder import Decoder, DecoderBlock
    from apr_train.model.encoder import Embeddings, Encoder, EncoderBlock, MaskedHead, position_ids
    from apr_train.model.head import head_logits
    from apr_train.model.layers import (
        FullAttention,
        GeluMLP,
        GroupedQueryAttention,
        RMSNorm,
        Rotary,
        SwiGLU,
        initialize,
        inverse_frequencies,
        rotary_tables,
        rotate,
    )
    from apr_train.model.protocol import LanguageModel

__all__ = [
    "AttentionBackend",
    "Bidirectional",
    "Causal",
    "Decoder",
    "DecoderBlock",
    "Documents",
    "Embeddings",
    "Encoder",
    "EncoderBlock",
    "FullAttention",
    "GeluMLP",
    "GroupedQueryAttention",
    "KeyValueCache",
    "LanguageModel",
    "Mask",
    "MaskKind",
    "MaskedHead",
    "PreparedMask",
    "PreparingBackend",
    "RMSNorm",
    "Request",
    "Rotary",
    "SwiGLU",
    "head_logits",
    "initialize",
    "inverse_frequencies",
    "position_ids",
    "prepare_mask",
    "rotary_tables",
    "rotate",
]

_MODULES = {
    "AttentionBackend": "attention.backend",
    "Bidirectional": "attention.masks",
    "Causal": "attention.masks",
    "Decoder": "decoder",
    "DecoderBlock": "decoder",
    "Documents": "attention.masks",
    "Embeddings": "encoder",
    "Encoder": "encoder",
    "EncoderBlock": "encoder",
    "FullAttention": "layers",
    "GeluMLP": "layers",
    "GroupedQueryAttention": "layers",
    "KeyValueCache": "cache",
    "LanguageModel": "protocol",
    "Mask": "attention.masks",
    "MaskKind": "attention.masks",
    "MaskedHead": "encoder",
    "PreparedMask": "attention.masks",
    "PreparingBackend": "attention.backend",
    "RMSNorm": "layers",
    "Request": "attention.backend",
    "Rotary": "layers",
    "SwiGLU": "layers",
    "head_logits": "head",
    "initialize": "layers",
    "inverse_frequencies": "layers",
    "position_ids": "encoder",
    "prepare_mask": "attention.backend",
    "rotary_tables": "layers",
    "rotate": "layers",
}
"""Name → its module in this package."""


def __getattr__(name: str) -> Any:
    """Import the module of a name in `__all__` (PEP 562)."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
