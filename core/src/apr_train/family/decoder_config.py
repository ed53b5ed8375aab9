"""The config of a decoder: what a Llama is, and every way in which other decoders differ from one. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from attrs import field, frozen, validators

from apr_train import rules
from apr_train.errors import ConfigError, Finding
from apr_train.family.config import ModelConfig, architecture
from apr_train.family.rope_scaling import LongRopeScaling, RopeScaling, rope_scaling_from
from apr_train.family.validate import boolean, count, one_of, positive, positive_int, share

optional = validators.optional

LayerType = Literal["full_attention", "sliding_attention"]
LAYER_TYPES: tuple[LayerType, ...] = ("full_attention", "sliding_attention")


def _tuple(value: Any) -> Any:
    """A list as JSON has it is a tuple here, so that configs can be compared."""
    return tuple(value) if isinstance(value, list) else value


@frozen(kw_only=True)
class DecoderConfig(ModelConfig):
    """A decoder; with the defaults a Llama: pre-norm, RMSNorm, rotary positions, grouped-query attention, SwiGLU.

    A combination that the core's decoder does not implement is a ConfigError with the rule CONFIG-001.
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
    no_rope_layers: tuple[int, ...] | None = architecture(None, converter=_tuple)
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
    norm_offset: float = architecture(0.0)
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
    layer_types: tuple[LayerType, ...] | None = architecture(None, converter=_tuple)
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
    num_experts: int = architecture(0, validator=count)
    """Experts of a sparse layer; 0: every MLP is dense."""
    num_experts_per_tok: int = architecture(0, validator=count)
    """Experts that each token goes to."""
    moe_intermediate_size: int | None = architecture(None, validator=optional(positive_int))
    """Width inside an expert; intermediate_size when None (Mixtral)."""
    norm_topk_prob: bool = architecture(True, validator=boolean)
    """Whether the chosen experts' weights are made to add up to one."""
    shared_expert_intermediate_size: int = architecture(0, validator=count)
    """Width inside the expert that sees every token; 0: there is none."""
    shared_expert_gate: bool = architecture(True, validator=boolean)
    """Whether the shared expert's output is multiplied by a sigmoid of its own (Qwen2-MoE)."""
    decoder_sparse_step: int = architecture(1, validator=positive_int)
    """Layer i is sparse when i + 1 is a multiple of this."""
    mlp_only_layers: tuple[int, ...] = architecture((), converter=_tuple)
    """Layers that are dense all the same."""
    router_aux_loss_coef: float = architecture(0.0)
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
                found=f"{self.hidden_size} / {self.num_attention_heads}",
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

    def __attrs_post_init__(self) -> None:
        if self.num_attention_heads % self.num_key_value_heads:
            raise ConfigError(
                "num_key_value_heads does not divide num_attention_heads",
                where=type(self).__name__,
                expected=f"a divisor of {self.num_attention_heads}",
                found=self.num_key_value_heads,
            )
        if self.rotary_dim % 2:
            raise ConfigError(
                "head_dim is odd, RoPE rotates pairs", where=type(self).__name__, expected="even", found=self.rotary_dim
            )
        faults = [self._fault(*contradiction) for contradiction in self._contradictions()]
        if faults:
            raise ConfigError.of(faults)

    def _fault(self, name: str, problem: str, expected: str, found: object) -> Finding:
        return Finding(
            rule=rules.CONFIG_001,
            subject=type(self).__name__,
            field=name,
            problem=problem,
            expected=expected,
            found=str(found),
            hint="A family with mathematics of its own answers build_model; see docs/hooks.md.",
        )

    def _contradictions(self) -> list[tuple[str, str, str, object]]:
        """(field, problem, expected, found) of every combination that nothing implements."""
        layers, rms, rotary = self.num_hidden_layers, self.norm == "rms", not self.learned_positions
        epsilon = "rms_norm_eps" if rms else "layer_norm_eps"
        scales = (self.attention_multiplier, self.query_pre_attn_scalar)
        window, sparse, chosen = self.sliding_window, self.num_experts > 0, self.num_experts_per_tok
        both = "pre" if self.parallel_residual else self.norm_position
        checks = (
            (self.hidden_act in self.ACTIVATIONS, "hidden_act", "activation not implemented",
             " or ".join(self.ACTIVATIONS), self.hidden_act),
            (self.norm_eps is not None, epsilon, f"{self.norm} norm without its epsilon", "a number > 0", None),
            (not rotary or self.rope_theta is not None, "rope_theta", "rotary positions without a base", "a number > 0", None),
            (self.norm_offset in ((0.0, 1.0) if rms else (0.0,)), "norm_offset", "not an offset of this norm",
             "0.0, or 1.0 of an RMSNorm", self.norm_offset),
            (rms or self.qk_norm == "none", "qk_norm", "q and k are normed by RMSNorm only", "none", self.qk_norm),
            (both == self.norm_position, "norm_position", "a parallel residual has one norm, before both", "pre",
             self.norm_position),
            (rotary or not self._rotary_fields(), "learned_positions", "learned and rotary positions at once",
             "none of the fields of rotary positions", ", ".join(self._rotary_fields())),
            (None in scales, "attention_multiplier", "two scales of the attention scores", "one of the two",
             f"attention_multiplier {scales[0]} and query_pre_attn_scalar {scales[1]}"),
            (not (self.lm_head_bias and self.tie_word_embeddings), "lm_head_bias", "a tied head has no bias", "false", True),
            (_one_a_layer(self.layer_types, layers, LAYER_TYPES), "layer_types", "not one known type a layer",
             f"{layers} of {' or '.join(LAYER_TYPES)}", self.layer_types),
            (window is not None or "sliding_attention" not in (self.layer_types or ()), "sliding_window",
             "sliding layers without a window", "an integer > 0", None),
            (window is None or "sliding_attention" in (self.layer_types or ()), "layer_types", "a window that no layer has",
             "sliding_attention somewhere, or no sliding_window", self.layer_types),
            (_one_a_layer(self.no_rope_layers, layers, (0, 1)), "no_rope_layers", "not one number a layer",
             f"{layers} of 1 (rotary) or 0 (none)", self.no_rope_layers),
            (not sparse or 1 <= chosen <= self.num_experts, "num_experts_per_tok", "not a number of experts",
             f"1 to {self.num_experts}", chosen),
            (not sparse or self.gated_mlp, "gated_mlp", "experts are gated", "true", False),
            (not sparse or not self.mlp_bias, "mlp_bias", "experts have no biases", "false", True),
            (all(type(layer) is int for layer in self.mlp_only_layers), "mlp_only_layers", "not numbers of layers",
             "integers", self.mlp_only_layers),
            (_is_factor(self.router_aux_loss_coef), "router_aux_loss_coef", "not a factor", "a number >= 0",
             self.router_aux_loss_coef),
            *self._longrope_lists(),
        )  # fmt: skip
        return [check[1:] for check in checks if not check[0]]

    def _rotary_fields(self) -> list[str]:
        """The fields of rotary positions that are set."""
        neutral = {"rope_theta": None, "rope_scaling": None, "partial_rotary_factor": 1.0, "rope_local_base_freq": None,
                   "no_rope_layers": None}  # fmt: skip
        return [name for name, value in neutral.items() if getattr(self, name) != value]

    def _longrope_lists(self) -> list[tuple[bool, str, str, str, object]]:
        scaling, wanted = self.rope_scaling, self.rotary_dim // 2
        if not isinstance(scaling, LongRopeScaling):
            return []
        lengths = {"short_factor": len(scaling.short_factor), "long_factor": len(scaling.long_factor)}
        return [
            (length == wanted, f"rope_scaling.{name}", "not one divisor a frequency", f"{wanted} numbers", length)
            for name, length in lengths.items()
        ]

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


def _is_factor(value: Any) -> bool:
    """Whether a value is a number that is not negative."""
    return isinstance(value, int | float) and not isinstance(value, bool) and value >= 0


def _one_a_layer(values: Any, layers: int, allowed: tuple[Any, ...]) -> bool:
    """Whether a list is absent, or has one of `allowed` for each layer."""
    return values is None or (isinstance(values, tuple) and len(values) == layers and all(item in allowed for item in values))
