"""The formulas that a config stands for, written a second time and as plainly as they read, for one row of tokens.

Nothing of `apr_train.model` is used: what a decoder or an encoder of the core gives is held against this, in float64. A family
with mathematics of its own is held against another implementation by `compare_models`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from apr_train.family.config import ModelConfig
from apr_train.family.decoder_config import DecoderConfig
from apr_train.family.encoder_config import EncoderConfig
from apr_train.testing.report import NotCheckedError

_TANH = math.sqrt(2 / math.pi)
ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "silu": lambda x: x / (1 + (-x).exp()),
    "gelu": lambda x: x * (1 + torch.special.erf(x / math.sqrt(2))) / 2,
    "gelu_new": lambda x: x * (1 + (_TANH * (x + 0.044715 * x**3)).tanh()) / 2,
    "gelu_pytorch_tanh": lambda x: x * (1 + (_TANH * (x + 0.044715 * x**3)).tanh()) / 2,
    "relu": lambda x: x.clamp(min=0),
    "relu2": lambda x: x.clamp(min=0) ** 2,
}
"""Hidden activations by their names in config.json."""


class _Weights:
    """Parameters by name, in float64, under a prefix."""

    def __init__(self, state: Mapping[str, Tensor], prefix: str = "") -> None:
        self._state, self._prefix = state, prefix

    def __getitem__(self, name: str) -> Tensor:
        return self._state[self._prefix + name].double()

    def under(self, prefix: str) -> _Weights:
        return _Weights(self._state, f"{self._prefix}{prefix}.")

    def linear(self, name: str, x: Tensor, *, bias: bool) -> Tensor:
        out = x @ self[f"{name}.weight"].T
        return out + self[f"{name}.bias"] if bias else out


Routed = list[tuple[Tensor, list[int]]]
"""For each token of each sparse layer: the experts' probabilities, and the chosen ones."""


def plain_logits(
    config: ModelConfig,
    state: Mapping[str, Tensor],
    tokens: Tensor,
    routed: Routed | None = None,
    positions: Tensor | None = None,
) -> Tensor:
    """Logits `[length, vocab]` of one row of tokens `[length]`, from the core's names of the parameters.

    Args:
        state: parameters by name; gradients go through them.
        routed: gets what the routers do.
        positions: `[length]`, of a decoder; 0, 1, … when not given.

    Raises:
        NotCheckedError: for a config whose formulas are not here.
    """
    if type(config) is DecoderConfig:
        places = torch.arange(len(tokens)) if positions is None else positions
        return _decoder(config, _Weights(state), tokens, [] if routed is None else routed, places)
    if type(config) is EncoderConfig:
        return _encoder(config, _Weights(state), tokens)
    raise NotCheckedError(f"the formulas of {type(config).__name__} are the family's own: compare_models holds them")


def plain_balancing_loss(routed: Routed) -> float:
    """experts · Σ (share of the tokens that an expert gets) · (its mean probability), over the tokens of all layers."""
    count, tokens = len(routed[0][0]), len(routed)
    total: float = 0.0
    for expert in range(count):
        share = sum(expert in chosen for _, chosen in routed) / tokens
        total += share * sum(float(probabilities[expert].detach()) for probabilities, _ in routed) / tokens
    return float(count * total)


def _decoder(config: DecoderConfig, weights: _Weights, tokens: Tensor, routed: Routed, positions: Tensor) -> Tensor:
    if config.rope_scaling is not None:
        raise NotCheckedError("its rotary positions are scaled: compare_models holds that")
    x = weights["embed_tokens.weight"][tokens] * config.embedding_multiplier
    if config.scale_embedding:
        x = x * math.sqrt(config.hidden_size)
    if config.learned_positions:
        x = x + weights["embed_positions.weight"][positions]
    for layer in range(config.num_hidden_layers):
        x = _block(config, weights.under(f"layers.{layer}"), layer, x, routed, positions)
    logits = _norm(config, weights, "norm", x)
    logits = logits @ weights["embed_tokens.weight" if config.tie_word_embeddings else "lm_head.weight"].T
    if config.lm_head_bias:
        logits = logits + weights["lm_head.bias"]
    logits = logits * config.logit_scale / config.logits_scaling
    cap = config.final_logit_softcapping
    return logits if cap is None else cap * (logits / cap).tanh()


def _block(config: DecoderConfig, weights: _Weights, layer: int, x: Tensor, routed: Routed, positions: Tensor) -> Tensor:
    def normed(name: str, value: Tensor) -> Tensor:
        return _norm(config, weights, name, value)

    share, position = config.residual_multiplier, config.norm_position
    if config.parallel_residual:
        inside = normed("input_layernorm", x)
        return x + share * (
            _attention(config, weights, layer, inside, positions) + _mlp(config, weights, layer, inside, routed)
        )
    attended = _attention(config, weights, layer, x if position == "post" else normed("input_layernorm", x), positions)
    x = x + share * (attended if position == "pre" else normed("post_attention_layernorm", attended))
    before = {"pre": "post_attention_layernorm", "both": "pre_feedforward_layernorm"}
    out = _mlp(config, weights, layer, x if position == "post" else normed(before[position], x), routed)
    return x + share * (out if position == "pre" else normed("post_feedforward_layernorm", out))


def _norm(config: DecoderConfig, weights: _Weights, name: str, x: Tensor) -> Tensor:
    if config.norm == "rms":
        return _rms(x, weights[f"{name}.weight"], config)
    bias = weights[f"{name}.bias"] if config.norm_bias else None
    return _layer_norm(x, weights[f"{name}.weight"], bias, config.layer_norm_eps or 0.0)


def _rms(x: Tensor, weight: Tensor, config: DecoderConfig) -> Tensor:
    return x / ((x**2).mean(-1, keepdim=True) + (config.rms_norm_eps or 0.0)).sqrt() * (weight + config.norm_offset)


def _layer_norm(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    out = centred / ((centred**2).mean(-1, keepdim=True) + eps).sqrt() * weight
    return out if bias is None else out + bias


def _attention(config: DecoderConfig, weights: _Weights, layer: int, x: Tensor, positions: Tensor) -> Tensor:
    inner, size, length = weights.under("self_attn"), config.head_dim, len(x)
    q, k, v = (inner.linear(f"{name}_proj", x, bias=config.attention_bias) for name in "qkv")
    if config.qk_norm == "projection":
        q, k = _rms(q, inner["q_norm.weight"], config), _rms(k, inner["k_norm.weight"], config)
    shared = config.num_attention_heads // config.num_key_value_heads
    visible = _visible(length, config.sliding_window if _slides(config, layer) else None)
    outputs = []
    for head in range(config.num_attention_heads):
        own, group = slice(head * size, (head + 1) * size), slice(head // shared * size, (head // shared + 1) * size)
        query, key, value = q[:, own], k[:, group], v[:, group]
        if config.qk_norm == "head":
            query, key = _rms(query, inner["q_norm.weight"], config), _rms(key, inner["k_norm.weight"], config)
        if not config.learned_positions and (config.no_rope_layers is None or config.no_rope_layers[layer]):
            query, key = _rotated(config, layer, query, positions), _rotated(config, layer, key, positions)
        scores = query @ key.T * _scale(config)
        if config.attn_logit_softcapping is not None:
            scores = config.attn_logit_softcapping * (scores / config.attn_logit_softcapping).tanh()
        outputs.append(_softmax(scores, visible) @ value)
    return inner.linear("o_proj", torch.cat(outputs, dim=1), bias=config.attention_output_bias)


def _scale(config: DecoderConfig) -> float:
    if config.attention_multiplier is not None:
        return config.attention_multiplier
    return 1 / math.sqrt(config.query_pre_attn_scalar or config.head_dim)


def _slides(config: DecoderConfig, layer: int) -> bool:
    return config.layer_types is not None and config.layer_types[layer] == "sliding_attention"


def _visible(length: int, window: int | None) -> Tensor:
    """`[query, key]`: not later than the query, and among the last `window`."""
    distance = torch.arange(length)[:, None] - torch.arange(length)[None]
    return (distance >= 0) & (distance < (length if window is None else window))


def _softmax(scores: Tensor, visible: Tensor) -> Tensor:
    weights = torch.where(visible, (scores - scores.amax(-1, keepdim=True)).exp(), 0.0)
    return weights / weights.sum(-1, keepdim=True)


def _rotated(config: DecoderConfig, layer: int, x: Tensor, positions: Tensor) -> Tensor:
    """`[length, head_dim]`, its first numbers rotated in pairs (i, i + half), the rest as they are."""
    base, size = config.rope_theta, int(config.head_dim * config.partial_rotary_factor)
    if config.rope_local_base_freq is not None and _slides(config, layer):
        base = config.rope_local_base_freq
    half = size // 2
    wavelengths = torch.tensor([(base or 0.0) ** (-2 * pair / size) for pair in range(half)], dtype=torch.float64)
    angles = positions.double()[:, None] * wavelengths
    first, second, rest = x[:, :half], x[:, half:size], x[:, size:]
    turned = first * angles.cos() - second * angles.sin(), second * angles.cos() + first * angles.sin()
    return torch.cat([*turned, rest], dim=1)


def _mlp(config: DecoderConfig, weights: _Weights, layer: int, x: Tensor, routed: Routed) -> Tensor:
    inner, act = weights.under("mlp"), ACTIVATIONS[config.hidden_act]
    if config.num_experts and (layer + 1) % config.decoder_sparse_step == 0 and layer not in config.mlp_only_layers:
        return _experts(config, inner, x, routed)
    up = inner.linear("up_proj", x, bias=config.mlp_bias)
    inside = act(inner.linear("gate_proj", x, bias=config.mlp_bias)) * up if config.gated_mlp else act(up)
    return inner.linear("down_proj", inside, bias=config.mlp_bias)


def _experts(config: DecoderConfig, weights: _Weights, x: Tensor, routed: Routed) -> Tensor:
    act, rows = ACTIVATIONS[config.hidden_act], []
    gate, up, down = (weights[f"experts.{name}_proj"] for name in ("gate", "up", "down"))
    for token in x:
        shares = (weights["gate.weight"] @ token).softmax(-1)
        best = shares.argsort(descending=True)[: config.num_experts_per_tok]
        routed.append((shares, best.tolist()))
        total = shares[best].sum() if config.norm_topk_prob else 1.0
        parts = [shares[one] / total * (down[one] @ (act(gate[one] @ token) * (up[one] @ token))) for one in best]
        rows.append(torch.stack(parts).sum(0))
    out = torch.stack(rows)
    if config.shared_expert_intermediate_size:
        own = weights.under("shared_expert")
        inside = act(own.linear("gate_proj", x, bias=False)) * own.linear("up_proj", x, bias=False)
        common = own.linear("down_proj", inside, bias=False)
        if config.shared_expert_gate:
            common = common / (1 + (-weights.linear("shared_expert_gate", x, bias=False)).exp())
        out = out + common
    return out


def _encoder(config: EncoderConfig, weights: _Weights, tokens: Tensor) -> Tensor:
    def norm(name: str, x: Tensor) -> Tensor:
        return _layer_norm(x, weights[f"{name}.weight"], weights[f"{name}.bias"], config.layer_norm_eps)

    first = config.pad_token_id + 1 if config.positions_after_padding else 0
    tables = weights.under("embeddings")
    x = tables["word_embeddings.weight"][tokens] + tables["token_type_embeddings.weight"][0]
    x = norm("embeddings.norm", x + tables["position_embeddings.weight"][first : first + len(tokens)])
    size, act = config.hidden_size // config.num_attention_heads, ACTIVATIONS[config.hidden_act]
    everything = torch.ones(len(tokens), len(tokens), dtype=torch.bool)
    for layer in range(config.num_hidden_layers):
        block = weights.under(f"layers.{layer}")
        q, k, v = (block.linear(f"attention.{name}_proj", x, bias=True) for name in "qkv")
        heads = [slice(head * size, (head + 1) * size) for head in range(config.num_attention_heads)]
        seen = [_softmax(q[:, head] @ k[:, head].T / math.sqrt(size), everything) @ v[:, head] for head in heads]
        attended = block.linear("attention.o_proj", torch.cat(seen, dim=1), bias=True)
        x = norm(f"layers.{layer}.attention_norm", x + attended)
        inside = act(block.linear("mlp.up_proj", x, bias=True))
        x = norm(f"layers.{layer}.mlp_norm", x + block.linear("mlp.down_proj", inside, bias=True))
    x = norm("lm_head.norm", act(weights.linear("lm_head.dense", x, bias=True)))
    tied = config.tie_word_embeddings
    head = weights["embeddings.word_embeddings.weight" if tied else "lm_head.decoder.weight"]
    return x @ head.T + weights["lm_head.bias"]
