"""Encoder or decoder, decided by a file's tensor names: no list of class names can be complete."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Literal

from apr_train.checkpoint.header import Header

Kind = Literal["decoder", "encoder"]
"""decoder: causal attention, rotary positions; encoder: bidirectional."""

_ENCODER = re.compile(
    r"(^|\.)encoder\.layer\.\d+\."  # BERT and its descendants
    r"|(^|\.)(position|token_type)_embeddings\.weight$"
    r"|^token_types\.weight$"  # the same, in GGUF
    r"|^blk\.\d+\.attn_output_norm\.weight$"  # GGUF: a norm after attention
)
_DECODER = re.compile(r"^(model\.)?layers\.\d+\.self_attn\.|^blk\.\d+\.(attn|ffn)_norm\.weight$")


def encoder_marks(names: Iterable[str]) -> list[str]:
    """The tensor names that only an encoder has, for messages."""
    return [name for name in names if _ENCODER.search(name)]


def kind_of(header: Header) -> Kind | None:
    """What the tensors show: learnt position or token-type embeddings and `encoder.layer.` make an encoder.

    None when the names show neither, as in a file of no known structure.
    """
    return kind_of_tensors(header.tensors)


def kind_of_tensors(names: Iterable[str]) -> Kind | None:
    """`kind_of` for a header in the making: from the tensor names alone."""
    names = list(names)
    if encoder_marks(names):
        return "encoder"
    return "decoder" if any(_DECODER.search(name) for name in names) else None
