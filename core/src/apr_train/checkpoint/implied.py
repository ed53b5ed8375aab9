"""What a file means by leaving a config key out, where its tensors agree."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from apr_train import rules
from apr_train.checkpoint.header import TensorInfo
from apr_train.errors import Finding

K_PROJECTIONS = ("self_attn.k_proj.weight", "attn_k.weight")


def implied_values(
    path: str, config: Mapping[str, Any], tensors: Mapping[str, TensorInfo]
) -> tuple[dict[str, Any], tuple[Finding, ...]]:
    """Values for keys that are not there, and a warning for each.

    Absent (or null) `num_key_value_heads` are as many as there are query heads: what checkpoints from before grouped-query
    attention mean by it. A k projection with other rows than that contradicts, and nothing is concluded.
    """
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
