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
    from apr_train.model.attention.masks import Bidirectional, Causal, Documents, Mask, MaskKind, PreparedMask, windowed
    from apr_train.model.attention_layer import FullAttention, GroupedQueryAttention
    from apr_train.model.cache import KeyValueCache
    from apr_train.model.decoder import Decoder, DecoderBlock
    from apr_train.model.encoder import Embeddings, Encoder, EncoderBlock, MaskedHead, position_ids
    from apr_train.model.head import head_logits
    from apr_train.model.init import HasStartValues, initialize
    from apr_train.model.mlp import MLP
    from apr_train.model.moe import Experts, RouterStatistics, SparseMLP, load_balancing_loss
    from apr_train.model.norms import RMSNorm, make_norm
    from apr_train.model.protocol import LanguageModel
    from apr_train.model.rope import Rotary, inverse_frequencies, rotary_tables, rotate

__all__ = [
    "MLP",
    "AttentionBackend",
    "Bidirectional",
    "Causal",
    "Decoder",
    "DecoderBlock",
    "Documents",
    "Embeddings",
    "Encoder",
    "EncoderBlock",
    "Experts",
    "FullAttention",
    "GroupedQueryAttention",
    "HasStartValues",
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
    "RouterStatistics",
    "SparseMLP",
    "head_logits",
    "initialize",
    "inverse_frequencies",
    "load_balancing_loss",
    "make_norm",
    "position_ids",
    "prepare_mask",
    "rotary_tables",
    "rotate",
    "windowed",
]

_MODULES = {
    "MLP": "mlp",
    "AttentionBackend": "attention.backend",
    "Bidirectional": "attention.masks",
    "Causal": "attention.masks",
    "Decoder": "decoder",
    "DecoderBlock": "decoder",
    "Documents": "attention.masks",
    "Embeddings": "encoder",
    "Encoder": "encoder",
    "EncoderBlock": "encoder",
    "Experts": "moe",
    "FullAttention": "attention_layer",
    "GroupedQueryAttention": "attention_layer",
    "HasStartValues": "init",
    "KeyValueCache": "cache",
    "LanguageModel": "protocol",
    "Mask": "attention.masks",
    "MaskKind": "attention.masks",
    "MaskedHead": "encoder",
    "PreparedMask": "attention.masks",
    "PreparingBackend": "attention.backend",
    "RMSNorm": "norms",
    "Request": "attention.backend",
    "Rotary": "rope",
    "RouterStatistics": "moe",
    "SparseMLP": "moe",
    "head_logits": "head",
    "initialize": "init",
    "inverse_frequencies": "rope",
    "load_balancing_loss": "moe",
    "make_norm": "norms",
    "position_ids": "encoder",
    "prepare_mask": "attention.backend",
    "rotary_tables": "rope",
    "rotate": "rope",
    "windowed": "attention.masks",
}
"""Name → its module in this package."""


def __getattr__(name: str) -> Any:
    """Import the module of a name in `__all__` (PEP 562)."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
