"""The tensor names that Llama-shaped decoders share: Hugging Face's, headed and bare, and llama.cpp's. Torch-free.

A family whose files follow these names answers `map_tensor_names` with `NameMap.for_config(config, decoder_rules(config,
layout))`; one that differs in a few tensors changes the list before it builds the map.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from attrs import field, frozen

from apr_train.checkpoint.header import Header
from apr_train.family.card import Layout
from apr_train.family.decoder_config import DecoderConfig
from apr_train.family.name_map import Rule, Shape, ignored, rename, rope_rows, tie

FRESH_HEAD = "lm_head"
"""Fresh group of a head that a bare file (a base model without its head) does not have."""
HF_PREFIX = "model."


@frozen
class Line:
    """One module of the decoder in both spellings, with the weight's symbolic shape."""

    parameter: str
    """The parameter's name without `.weight`; Hugging Face's, too, behind the prefix."""
    gguf: str
    """llama.cpp's name without `.weight`."""
    shape: Shape
    """Of the weight, `[rows, columns]` or `[rows]`; a bias has the rows."""
    bias: str | None = None
    """Config field that says whether the module has a bias; None: the module never has one."""
    heads: str | None = field(default=None, kw_only=True)
    """For q and k: the config field that counts the heads whose rows RoPE rotates."""


_Q = "num_attention_heads*head_dim"
_KV = "num_key_value_heads*head_dim"
_H, _I = "hidden_size", "intermediate_size"

DECODER_LINES: tuple[Line, ...] = (
    Line("embed_tokens", "token_embd", ("vocab_size", _H)),
    Line("layers.{layer}.input_layernorm", "blk.{layer}.attn_norm", (_H,)),
    Line("layers.{layer}.self_attn.q_proj", "blk.{layer}.attn_q", (_Q, _H), "attention_bias", heads="num_attention_heads"),
    Line("layers.{layer}.self_attn.k_proj", "blk.{layer}.attn_k", (_KV, _H), "attention_bias", heads="num_key_value_heads"),
    Line("layers.{layer}.self_attn.v_proj", "blk.{layer}.attn_v", (_KV, _H), "attention_bias"),
    Line("layers.{layer}.self_attn.o_proj", "blk.{layer}.attn_output", (_H, _Q), "attention_output_bias"),
    Line("layers.{layer}.post_attention_layernorm", "blk.{layer}.ffn_norm", (_H,)),
    Line("layers.{layer}.mlp.gate_proj", "blk.{layer}.ffn_gate", (_I, _H), "mlp_bias"),
    Line("layers.{layer}.mlp.up_proj", "blk.{layer}.ffn_up", (_I, _H), "mlp_bias"),
    Line("layers.{layer}.mlp.down_proj", "blk.{layer}.ffn_down", (_H, _I), "mlp_bias"),
    Line("norm", "output_norm", (_H,)),
)
"""Every module of the decoder but the head."""


def decoder_rules(config: DecoderConfig, layout: Layout) -> list[Rule]:
    """Make the name map's rules for one config and one layout.

    With `layout.rope_rows == "adjacent"` the rows of q and k (weights and biases) are put into split-half order, as
    llama.cpp's conversion of a Llama wants undone; a family whose files are never permuted refuses that layout itself.
    """
    rules = [rule for line in DECODER_LINES for rule in _line_rules(line, config, layout)]
    rules.append(_head_rule(config, layout))
    if layout.names == "hf":
        buffer = f"{_prefix(layout)}layers.{{layer}}.self_attn.rotary_emb.inv_freq"
        rules.append(ignored(buffer, "a saved RoPE table: it is computed from rope_theta"))
    return rules


def tensors_have(header: Header, *stems: str) -> bool:
    """Whether the file holds a tensor whose name ends with one of `stems` (`q_proj.bias`, say).

    For what a container's metadata does not say (GGUF and `.apr` know no key for Llama's biases) and the tensors do.
    """
    return any(name.endswith(stems) for name in header.tensors)


def _line_rules(line: Line, config: DecoderConfig, layout: Layout) -> list[Rule]:
    stem = line.gguf if layout.names == "gguf" else _prefix(layout) + line.parameter
    make = _maker(line, layout)
    rules = [make(f"{stem}.weight", f"{line.parameter}.weight", line.shape)]
    if line.bias is not None and getattr(config, line.bias):
        rules.append(make(f"{stem}.bias", f"{line.parameter}.bias", line.shape[:1]))
    return rules


def _maker(line: Line, layout: Layout) -> Callable[[str, str, Iterable[str]], Rule]:
    heads = line.heads
    if heads is not None and layout.rope_rows == "adjacent":
        return lambda checkpoint, parameter, shape: rope_rows(checkpoint, parameter, *shape, heads=heads)
    return lambda checkpoint, parameter, shape: rename(checkpoint, parameter, *shape)


def _head_rule(config: DecoderConfig, layout: Layout) -> Rule:
    name = "output.weight" if layout.names == "gguf" else "lm_head.weight"
    if config.tie_word_embeddings:
        return tie(name, "embed_tokens.weight", "vocab_size", _H)
    return rename(name, "lm_head.weight", "vocab_size", _H, fresh_group=FRESH_HEAD if layout.bare else None)


def _prefix(layout: Layout) -> str:
    return "" if layout.bare else HF_PREFIX
