"""The config of a decoder: what a Llama is, and every way in which other decoders differ from one. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import attrs
from attrs import field, frozen, validators

from apr_train.errors import ConfigError
from apr_train.family.combinations import DECODER_COMBINATIONS, combination_faults, meaningless_faults, meaningless_fields
from apr_train.family.config import ModelConfig, architecture
from apr_train.family.layer_patterns import LayerType
from apr_train.family.rope_scaling import RopeScaling, rope_scaling_from
from apr_train.family.validate import (
    boolean,
    natural,
    naturals,
    not_negative,
    number,
    one_of,
    positive,
    positive_int,
    share,
    texts,
)

optional = validators.optional


def _tuple(value: Any) -> Any:
    """A list as JSON has it is a tuple here, so that configs can be compared."""
    return tuple(value) if isinstance(value, list) else value


@frozen(kw_only=True)
class DecoderConfig(ModelConfig):
    """A decoder; with the defaults a Llama: pre-norm, RMSNorm, rotary positions, grouped-query attention, SwiGLU.

    A combination that the core's decoder does not implement, or a field that the others leave without a meaning, is a
    ConfigError with the rule CONFIG-001; see `apr_train.family.combinations`.
    """

    REQUIRED: ClassVar[tuple[str, ...]] = (
        "vocab_size",
        "hidden_size",
        "num_attention_heads",
        "num_key_value_heads",
        "intermediate_size",
        "num_hidden_layers",
        "max_position_embeddings",
        "rope_theta",
        "rms_norm_eps",
        "tie_word_embeddings",
        "hidden_act",
    )
    """Of a decoder with RMSNorm and rotary positions; see `required`."""
    ACTIVATIONS: ClassVar[tuple[str, ...]] = ("silu", "gelu", "gelu_new", "gelu_pytorch_tanh", "relu2", "relu")
    """What `hidden_act` may be, by transformers' names; gelu_new and gelu_pytorch_tanh are one function.

    A family's own config may widen it, with a `build_model` that computes what it adds.
    """

    # sizes
    num_key_value_heads: int = field(validator=positive_int)
    """Heads of k and v; each serves num_attention_heads / num_key_value_heads query heads."""
    head_dim: int = field(validator=positive_int)
    """Width of one head; hidden_size / num_attention_heads unless the file says otherwise."""

    # positions
    rope_theta: float | None = field(default=None, validator=optional(positive))
    """Base of the rotary wavelengths; None only with learned positions."""
    rope_scaling: RopeScaling | None = field(default=None, converter=rope_scaling_from)
    """A stretch of the rotary wavelengths, or none."""
    partial_rotary_factor: float = architecture(1.0, validator=share)
    """Share of each head that is rotated; the rest has no position (GPT-NeoX, Phi)."""
    rope_local_base_freq: float | None = architecture(None, validator=optional(positive))
    """Base of the rotary wavelengths in sliding layers, unscaled; None: as in the others (Gemma 3)."""
    no_rope_layers: tuple[int, ...] | None = architecture(None, converter=_tuple, validator=optional(naturals))
    """One number a layer, 1 where it has rotary positions and 0 where it has none; None: all have (SmolLM3)."""
    learned_positions: bool = architecture(False, validator=boolean)
    """A table of max_position_embeddings rows is added to the embeddings, and nothing is rotated (GPT-2)."""

    # norms
    rms_norm_eps: float | None = field(default=None, validator=optional(positive))
    """Added to the mean square before the root; None only with LayerNorm."""
    layer_norm_eps: float | None = architecture(None, validator=optional(positive))
    """Added to the variance before the root, with LayerNorm."""
    norm: str = architecture("rms", validator=one_of("rms", "layer"))
    """`rms` (Zhang & Sennrich 2019) or `layer` (Ba et al. 2016)."""
    norm_bias: bool = architecture(True, validator=boolean)
    """Whether a LayerNorm has a bias; an RMSNorm has none."""
    norm_offset: float = architecture(0.0, validator=number)
    """Added to an RMSNorm's weight: 1 where files hold the difference from one (Gemma)."""
    norm_position: str = architecture("pre", validator=one_of("pre", "post", "both"))
    """Before attention and MLP, after them (OLMo 2: x + norm(mlp(x))), or both (Gemma 2)."""
    qk_norm: str = architecture("none", validator=one_of("none", "head", "projection"))
    """RMSNorm of q and k before the rotation: none, over each head (Qwen3), or over all heads at once (OLMo 2)."""

    # attention
    attention_bias: bool = field(default=False, validator=boolean)
    """Biases on the q, k and v projections."""
    attention_output_bias: bool = field(default=False, validator=boolean)
    """A bias on the output projection of attention."""
    attention_multiplier: float | None = architecture(None, validator=optional(positive))
    """Factor on q·k; 1/√head_dim when None (Granite)."""
    query_pre_attn_scalar: float | None = architecture(None, validator=optional(positive))
    """The same, as 1/√ of this (Gemma 2)."""
    attn_logit_softcapping: float | None = architecture(None, validator=optional(positive))
    """c in c·tanh(scores/c), before the mask and the softmax (Gemma 2)."""
    sliding_window: int | None = architecture(None, validator=optional(positive_int))
    """Keys that a query of a sliding layer sees, its own included."""
    layer_types: tuple[LayerType, ...] | None = architecture(None, converter=_tuple, validator=optional(texts))
    """One a layer, full_attention or sliding_attention; None: every layer is full."""

    # MLP
    mlp_bias: bool = field(default=False, validator=boolean)
    """Biases in the MLP."""
    gated_mlp: bool = architecture(True, validator=boolean)
    """down(act(gate(x)) · up(x)), or down(act(up(x)))."""

    # residual stream and head
    parallel_residual: bool = architecture(False, validator=boolean)
    """x + attention(norm(x)) + mlp(norm(x)), with one norm for both (Phi, Cohere)."""
    scale_embedding: bool = architecture(False, validator=boolean)
    """Embeddings times √hidden_size, rounded to the embedding's dtype (Gemma)."""
    embedding_multiplier: float = architecture(1.0, validator=positive)
    """Factor on the embeddings (Granite)."""
    residual_multiplier: float = architecture(1.0, validator=positive)
    """Factor on what attention and MLP add to the residual stream (Granite)."""
    logits_scaling: float = architecture(1.0, validator=positive)
    """Divisor of the logits (Granite)."""
    logit_scale: float = architecture(1.0, validator=positive)
    """Factor on the logits (Cohere)."""
    final_logit_softcapping: float | None = architecture(None, validator=optional(positive))
    """c in c·tanh(logits/c), after the scale (Gemma 2)."""
    lm_head_bias: bool = architecture(False, validator=boolean)
    """A bias on an untied head (Phi)."""

    # mixture of experts
    num_experts: int = architecture(0, validator=natural)
    """Experts of a sparse layer; 0: every MLP is dense."""
    num_experts_per_tok: int = architecture(0, validator=natural)
    """Experts that each token goes to."""
    moe_intermediate_size: int | None = architecture(None, validator=optional(positive_int))
    """Width inside an expert; intermediate_size when None (Mixtral)."""
    norm_topk_prob: bool = architecture(True, validator=boolean)
    """Whether the chosen experts' weights are made to add up to one."""
    shared_expert_intermediate_size: int = architecture(0, validator=natural)
    """Width inside the expert that sees every token; 0: there is none."""
    shared_expert_gate: bool = architecture(True, validator=boolean)
    """Whether the shared expert's output is multiplied by a sigmoid of its own (Qwen2-MoE)."""
    decoder_sparse_step: int = architecture(1, validator=positive_int)
    """Layer i is sparse when i + 1 is a multiple of this."""
    mlp_only_layers: tuple[int, ...] = architecture((), converter=_tuple, validator=naturals)
    """Layers that are dense all the same."""
    router_aux_loss_coef: float = architecture(0.0, validator=not_negative)
    """Factor on the load-balancing loss of the router in training (Fedus et al. 2021); 0: it is only measured."""

    @head_dim.default
    def _head_dim_from_width(self) -> int:
        widths = (self.hidden_size, self.num_attention_heads)
        if not all(type(width) is int and width > 0 for width in widths):
            return 1  # defaults are made before validators run, and these two are about to be refused by name
        if self.hidden_size % self.num_attention_heads:
            raise ConfigError(
                "hidden_size is not divisible by num_attention_heads and head_dim is not given",
                where=type(self).__name__,
                field="head_dim",
                found=f"{self.hidden_size} / {self.num_attention_heads}",
                hint="Give head_dim, or a hidden_size that the heads divide.",
            )
        return self.hidden_size // self.num_attention_heads

    @classmethod
    def required(cls, values: Mapping[str, Any]) -> tuple[str, ...]:
        """`REQUIRED`, with LayerNorm's epsilon for RMSNorm's, without the rotary base where positions are learnt, and with
        `norm_topk_prob` where there are experts: classes differ in what they take for it."""
        names = cls.REQUIRED
        if values.get("norm") == "layer":
            names = tuple("layer_norm_eps" if name == "rms_norm_eps" else name for name in names)
        names = tuple(name for name in names if name != "rope_theta" or not values.get("learned_positions"))
        return (*names, "norm_topk_prob") if values.get("num_experts") else names

    @classmethod
    def meaningless(cls, values: Mapping[str, Any]) -> frozenset[str]:
        """What is about experts, a shared expert, sliding layers or a kind of norm, where there is no such thing."""
        return meaningless_fields(values)

    def __attrs_post_init__(self) -> None:
        if self.num_attention_heads % self.num_key_value_heads:
            raise ConfigError(
                "num_key_value_heads does not divide num_attention_heads",
                where=type(self).__name__,
                field="num_key_value_heads",
                expected=f"a divisor of {self.num_attention_heads}",
                found=self.num_key_value_heads,
            )
        values = {item.name: getattr(self, item.name) for item in attrs.fields(type(self))}
        faults = combination_faults(self, DECODER_COMBINATIONS)
        faults += meaningless_faults(self, self.meaningless(values))
        if faults:
            raise ConfigError.of(faults)

    @property
    def norm_eps(self) -> float | None:
        """The epsilon of this config's norms; never None in a config that was made."""
        return self.rms_norm_eps if self.norm == "rms" else self.layer_norm_eps

    @property
    def rotary_dim(self) -> int:
        """How many of each head's dimensions are rotated."""
        return int(self.head_dim * self.partial_rotary_factor)

    @property
    def attention_scale(self) -> float:
        """Factor on q·k."""
        if self.attention_multiplier is not None:
            return self.attention_multiplier
        return float((self.query_pre_attn_scalar or self.head_dim) ** -0.5)

    def layer_type(self, layer: int) -> LayerType:
        """Whether a layer's queries see all earlier keys or the last `sliding_window`."""
        return "full_attention" if self.layer_types is None else self.layer_types[layer]

    def window(self, layer: int) -> int | None:
        """Keys that a query of this layer sees, its own included; None: all that came before."""
        return self.sliding_window if self.layer_type(layer) == "sliding_attention" else None

    def has_rope(self, layer: int) -> bool:
        """Whether this layer's q and k are rotated."""
        return not self.learned_positions and (self.no_rope_layers is None or self.no_rope_layers[layer] == 1)

    def is_sparse(self, layer: int) -> bool:
        """Whether this layer's MLP is a mixture of experts."""
        on_step = (layer + 1) % self.decoder_sparse_step == 0
        return self.num_experts > 0 and on_step and layer not in self.mlp_only_layers

    def stated(self, name: str) -> Any:
        """The value of a field as a file can state it: where None stands for a number, or for one a layer, that."""
        value, layers = getattr(self, name), self.num_hidden_layers
        meant = {
            "layer_types": ("full_attention",) * layers,
            "no_rope_layers": (1,) * layers,
            "query_pre_attn_scalar": self.head_dim,
            "attention_multiplier": self.head_dim**-0.5,
            "moe_intermediate_size": self.intermediate_size,
        }
        return meant.get(name) if value is None else value

    @property
    def expert_size(self) -> int:
        """Width inside an expert; for symbolic shapes."""
        return self.moe_intermediate_size or self.intermediate_size
