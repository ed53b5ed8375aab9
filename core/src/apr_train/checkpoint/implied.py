"""What a file means by leaving a config key out, where its tensors agree."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from apr_train import rules
from apr_train.checkpoint.header import TensorInfo
from apr_train.errors import Finding

ORIGINAL_LENGTH = "original_max_position_embeddings"
LONGROPE = ("longrope", "su")
SCALED_FROM_LENGTH = ("yarn", *LONGROPE)
"""Kinds of RoPE scaling that start from a length, which is all of the model's where the file does not say."""
K_PROJECTIONS = ("self_attn.k_proj.weight", "attn_k.weight")


def implied_values(
    path: str, config: Mapping[str, Any], tensors: Mapping[str, TensorInfo]
) -> tuple[dict[str, Any], tuple[Finding, ...]]:
    """Values for keys that are not there, and a warning for each.

    Absent (or null) `num_key_value_heads` are as many as there are query heads: what checkpoints from before grouped-query
    attention mean by it. A k projection with other rows than that contradicts, and nothing is concluded. An absent
    `original_max_position_embeddings` of a scaling is `max_position_embeddings`: `standardize_rope_params` in transformers'
    modeling_rope_utils.
    """
    values, findings = _implied_heads(path, config, tensors)
    more, others = _implied_length(path, config)
    return {**values, **more}, (*findings, *others)


def _implied_length(path: str, config: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[Finding, ...]]:
    scaling, length = config.get("rope_scaling"), config.get("max_position_embeddings")
    if not isinstance(scaling, Mapping) or scaling.get(ORIGINAL_LENGTH) is not None or type(length) is not int:
        return {}, ()
    if scaling.get("rope_type", scaling.get("type")) not in SCALED_FROM_LENGTH:
        return {}, ()
    finding = Finding(
        rule=rules.ARCH_003,
        subject=path,
        field=f"rope_scaling.{ORIGINAL_LENGTH}",
        problem="the file does not say, which means max_position_embeddings",
        expected="the length that the model was trained on before the scaling",
        found=f"nothing, read as {length}",
        severity="warning",
    )
    return {"rope_scaling": {**scaling, ORIGINAL_LENGTH: length}}, (finding,)


def implied_attention(factor: float | None, original: int, length: int) -> float:
    """LongRoPE's factor on cos and sin where its scaling does not say it: √(1 + ln(factor) / ln(original)).

    Without a factor it is `length`, the model's max_position_embeddings, by the original length. Source:
    `_compute_longrope_parameters` in transformers' modeling_rope_utils.
    """
    share = length / original if factor is None else factor
    return 1.0 if share <= 1 else math.sqrt(1 + math.log(share) / math.log(original))


def _implied_heads(
    path: str, config: Mapping[str, Any], tensors: Mapping[str, TensorInfo]
) -> tuple[dict[str, Any], tuple[Finding, ...]]:
    heads = config.get("num_attention_heads")
    if "num_key_value_heads" in config or type(heads) is not int or heads < 1:
        return {}, ()
    rows = {info.shape[0] for name, info in tensors.items() if name.endswith(K_PROJECTIONS) and len(info.shape) == 2}
    if rows != {_query_rows(config, heads)}:
        return {}, ()
    return {"num_key_value_heads": heads}, (all_heads(path, heads),)


def all_heads(path: str, heads: int) -> Finding:
    """The warning that key-value heads which the file does not give are all heads."""
    return Finding(
        rule=rules.ARCH_003,
        subject=path,
        field="num_key_value_heads",
        problem="the file does not say, which means as many as num_attention_heads",
        expected="a value for num_key_value_heads",
        found=f"nothing, read as {heads}",
        severity="warning",
    )


def _query_rows(config: Mapping[str, Any], heads: int) -> int | None:
    width, hidden = config.get("head_dim"), config.get("hidden_size")
    if type(width) is int:
        return heads * width
    return hidden if type(hidden) is int and hidden % heads == 0 else None
