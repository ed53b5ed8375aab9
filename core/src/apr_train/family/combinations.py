"""Combinations of a config's fields that nothing implements, and fields that the others leave without a meaning. Torch-free.

Both are tables. A combination is refused wherever it stands. A field without a meaning is refused in a config that is made in
Python, where somebody expects it to do something; files carry such keys (`num_experts_per_tok` of a dense Qwen2-MoE), and
reading leaves them out.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import attrs
from attrs import frozen

from apr_train import rules
from apr_train.errors import Finding
from apr_train.family.layer_patterns import LAYER_TYPES
from apr_train.family.rope_scaling import LongRopeScaling

if TYPE_CHECKING:
    from apr_train.family.config import ModelConfig

NEUTRAL_ROTARY: Mapping[str, Any] = {
    "rope_theta": None,
    "rope_scaling": None,
    "partial_rotary_factor": 1.0,
    "rope_local_base_freq": None,
    "no_rope_layers": None,
}
"""The fields of rotary positions, at the values that they have where nothing is rotated."""


@frozen(kw_only=True)
class Combination:
    """Fields that ask together for what nothing implements: how a config that does so is known, and what is told of it.

    In `expected`, `found` and `hint` the config stands as `{config}`.
    """

    field: str
    """The field that the finding names."""
    asked_by: Callable[[Any], bool]
    """Whether a config, whose fields have passed their validators each by itself, is such a one."""
    problem: str
    expected: str | Callable[[Any], str]
    found: str | Callable[[Any], str] = ""
    """What the config has; empty: the value of `field`."""
    hint: str

    def finding(self, config: ModelConfig) -> Finding:
        """What is told of a config that asks for this."""

        def text(part: str | Callable[[Any], str]) -> str:
            return part.format(config=config) if isinstance(part, str) else part(config)

        return Finding(
            rule=rules.CONFIG_001,
            subject=type(config).__name__,
            field=self.field,
            problem=self.problem,
            expected=text(self.expected),
            found=text(self.found or f"{{config.{self.field}}}"),
            hint=text(self.hint),
        )


@frozen(kw_only=True)
class Dependents:
    """Fields that mean something only where other fields have certain values."""

    fields: tuple[str, ...]
    meant_by: Callable[[Mapping[str, Any]], bool]
    """Whether the values of fields, as far as they are known, leave these a meaning; the values may be of any type."""
    problem: str
    hint: str
    """What to do; the field that is set stands as `{field}`."""


def combination_faults(config: ModelConfig, combinations: Iterable[Combination]) -> list[Finding]:
    """One finding for each of the combinations that the config asks for."""
    return [row.finding(config) for row in combinations if row.asked_by(config)]


def meaningless_fields(values: Mapping[str, Any]) -> frozenset[str]:
    """The dependent fields to which the values of the others leave no meaning."""
    return frozenset(name for row in DEPENDENTS if not row.meant_by(values) for name in row.fields)


def meaningless_faults(config: ModelConfig, names: Iterable[str]) -> Iterator[Finding]:
    """One finding for each of the fields `names` that is set all the same."""
    fields, meaningless = attrs.fields_dict(type(config)), set(names)
    values = {name: getattr(config, name) for name in fields}
    for row in DEPENDENTS:
        for name in row.fields if not row.meant_by(values) else ():
            if name in meaningless and values[name] != fields[name].default:
                yield Finding(
                    rule=rules.CONFIG_001,
                    subject=type(config).__name__,
                    field=name,
                    problem=row.problem,
                    expected=str(fields[name].default),
                    found=str(values[name]),
                    hint=row.hint.format(field=name),
                )


def _slides(values: Mapping[str, Any]) -> bool:
    types = values.get("layer_types")
    return isinstance(types, list | tuple) and "sliding_attention" in types


def _is_layer_norm(values: Mapping[str, Any]) -> bool:
    return bool(values.get("norm") == "layer")


_ONE_EPSILON = 'Keep the epsilon of the norm that there is: rms_norm_eps with norm="rms", layer_norm_eps with norm="layer".'

DEPENDENTS = (
    Dependents(
        fields=("num_experts_per_tok", "moe_intermediate_size", "norm_topk_prob", "shared_expert_intermediate_size",
                "shared_expert_gate", "decoder_sparse_step", "mlp_only_layers", "router_aux_loss_coef"),
        meant_by=lambda values: bool(values.get("num_experts")),
        problem="a field of a mixture of experts, and there are no experts",
        hint="Set num_experts, or leave {field} out of this config.",
    ),
    Dependents(
        fields=("shared_expert_gate",),
        meant_by=lambda values: bool(values.get("shared_expert_intermediate_size")) or not values.get("num_experts"),
        problem="a choice about the shared expert, and there is none",
        hint="Set shared_expert_intermediate_size, or leave {field} out of this config.",
    ),
    Dependents(
        fields=("rope_local_base_freq",),
        meant_by=_slides,
        problem="a rotary base of sliding layers, and no layer slides",
        hint="Name the sliding layers in layer_types, with their sliding_window, or leave {field} out of this config.",
    ),
    Dependents(
        fields=("norm_bias",),
        meant_by=_is_layer_norm,
        problem="an RMSNorm has no bias that could be left out",
        hint="Leave {field} out of this config; it is about norm=layer only.",
    ),
    Dependents(
        fields=("layer_norm_eps",),
        meant_by=_is_layer_norm,
        problem="the epsilon of a LayerNorm, and the model has RMSNorms",
        hint=_ONE_EPSILON,
    ),
    Dependents(
        fields=("rms_norm_eps",),
        meant_by=lambda values: not _is_layer_norm(values),
        problem="the epsilon of an RMSNorm, and the model has LayerNorms",
        hint=_ONE_EPSILON,
    ),
)  # fmt: skip
"""Fields that do nothing unless others have certain values."""

OWN_MATHEMATICS = "see docs/hooks.md, build_model"
ACTIVATION = Combination(
    field="hidden_act",
    asked_by=lambda config: config.hidden_act not in config.ACTIVATIONS,
    problem="activation not implemented",
    expected=lambda config: " or ".join(config.ACTIVATIONS),
    hint=f"A family's own config may widen ACTIVATIONS, with a model of its own that computes the new one: {OWN_MATHEMATICS}.",
)
"""An activation that nobody wrote; of every kind of model."""


def _rotates(config: Any) -> bool:
    return not config.learned_positions


def _set_rotary_fields(config: Any) -> str:
    return ", ".join(name for name, value in NEUTRAL_ROTARY.items() if getattr(config, name) != value)


def _epsilon(kind: str) -> Combination:
    """A norm of that kind without the number that is its own."""
    return Combination(
        field=f"{kind}_norm_eps",
        asked_by=lambda config: config.norm == kind and config.norm_eps is None,
        problem=f"{kind} norm without its epsilon",
        expected="a number > 0",
        hint=f'Add "{kind}_norm_eps" to the config, or say in FAMILY.implied what the class takes where it is absent.',
    )


def _longrope(name: str) -> Combination:
    """A list of LongRoPE's divisors that is longer or shorter than the frequencies are many."""

    def is_of_another_length(config: Any) -> bool:
        scaling = config.rope_scaling
        return isinstance(scaling, LongRopeScaling) and len(getattr(scaling, name)) != config.rotary_dim // 2

    return Combination(
        field=f"rope_scaling.{name}",
        asked_by=is_of_another_length,
        problem="not one divisor a frequency",
        expected="half as many numbers as the {config.rotary_dim} rotated dimensions of a head",
        found=lambda config: str(len(getattr(config.rope_scaling, name))),
        hint="Take the list, head_dim and partial_rotary_factor from one and the same config.",
    )


NORMS = (
    _epsilon("rms"),
    _epsilon("layer"),
    Combination(
        field="norm_offset",
        asked_by=lambda config: config.norm == "rms" and config.norm_offset not in (0.0, 1.0),
        problem="not an offset of this norm",
        expected="0.0, or 1.0 where files hold the weight's difference from one",
        hint=f"Another offset is a norm of the family's own: {OWN_MATHEMATICS}.",
    ),
    Combination(
        field="norm_offset",
        asked_by=lambda config: config.norm == "layer" and config.norm_offset != 0.0,
        problem="a LayerNorm has no offset",
        expected="0.0",
        hint="Leave norm_offset out, or convert the weights with add_offset in the name map.",
    ),
    Combination(
        field="qk_norm",
        asked_by=lambda config: config.norm == "layer" and config.qk_norm != "none",
        problem="q and k are normed by RMSNorm only",
        expected="none",
        hint=f"LayerNorms of q and k belong into prepare_heads of the family's own attention: {OWN_MATHEMATICS}.",
    ),
    Combination(
        field="norm_position",
        asked_by=lambda config: config.parallel_residual and config.norm_position != "pre",
        problem="a parallel residual has one norm, before both",
        expected="pre",
        hint='Set norm_position="pre" or parallel_residual=False; anything else is a block of the family\'s own.',
    ),
)

POSITIONS = (
    Combination(
        field="rope_theta",
        asked_by=lambda config: _rotates(config) and config.rope_theta is None,
        problem="rotary positions without a base",
        expected="a number > 0",
        hint='Add "rope_theta" to the config, or say in FAMILY.implied what the class takes where it is absent.',
    ),
    Combination(
        field="learned_positions",
        asked_by=lambda config: config.learned_positions and bool(_set_rotary_fields(config)),
        problem="learned and rotary positions at once",
        expected="none of the fields of rotary positions",
        found=_set_rotary_fields,
        hint="Leave the fields found out of this config, or learned_positions at False.",
    ),
    Combination(
        field="head_dim",
        asked_by=lambda config: _rotates(config) and config.partial_rotary_factor == 1 and config.rotary_dim % 2 == 1,
        problem="head_dim is odd, RoPE rotates pairs",
        expected="an even number",
        hint="Check hidden_size, num_attention_heads and head_dim against the model's own config.",
    ),
    Combination(
        field="partial_rotary_factor",
        asked_by=lambda config: _rotates(config) and config.partial_rotary_factor != 1 and config.rotary_dim % 2 == 1,
        problem="the rotated share of a head is odd, RoPE rotates pairs",
        expected="an even number of the {config.head_dim} dimensions",
        found="{config.partial_rotary_factor}, which is {config.rotary_dim}",
        hint="Divide the number of rotated dimensions by head_dim, and set that.",
    ),
    Combination(
        field="partial_rotary_factor",
        asked_by=lambda config: _rotates(config) and config.rotary_dim == 0,
        problem="a share of each head so small that nothing is rotated",
        expected="at least 2 of the {config.head_dim} dimensions",
        hint="Divide the number of rotated dimensions by head_dim, and set that; 1.0 rotates all of them.",
    ),
    Combination(
        field="no_rope_layers",
        asked_by=lambda config: (
            not _is_one_a_layer(config.no_rope_layers, config) or bool(set(config.no_rope_layers or ()) - {0, 1})
        ),
        problem="not one number a layer",
        expected="{config.num_hidden_layers} of 1 (rotary) or 0 (none)",
        hint="Give one number for each of the {config.num_hidden_layers} layers, or leave no_rope_layers out: all rotate.",
    ),
    _longrope("short_factor"),
    _longrope("long_factor"),
)

ATTENTION = (
    Combination(
        field="attention_multiplier",
        asked_by=lambda config: config.attention_multiplier is not None and config.query_pre_attn_scalar is not None,
        problem="two scales of the attention scores",
        expected="one of the two",
        found="attention_multiplier {config.attention_multiplier} and query_pre_attn_scalar {config.query_pre_attn_scalar}",
        hint="Keep one: attention_multiplier is the factor itself, query_pre_attn_scalar the number whose 1/√ it is.",
    ),
    Combination(
        field="layer_types",
        asked_by=lambda config: not _is_one_a_layer(config.layer_types, config),
        problem="not one type a layer",
        expected="{config.num_hidden_layers} types",
        hint="Give one type for each of the {config.num_hidden_layers} layers, or leave layer_types out: every layer is full.",
    ),
    Combination(
        field="layer_types",
        asked_by=lambda config: bool(set(config.layer_types or ()) - set(LAYER_TYPES)),
        problem="a kind of attention that is not implemented",
        expected=" or ".join(LAYER_TYPES),
        hint=f"Layers of another kind are attention of the family's own: {OWN_MATHEMATICS}.",
    ),
    Combination(
        field="sliding_window",
        asked_by=lambda config: config.sliding_window is None and "sliding_attention" in (config.layer_types or ()),
        problem="sliding layers without a window",
        expected="an integer > 0",
        hint='Add "sliding_window" to the config, or make every entry of layer_types full_attention.',
    ),
    Combination(
        field="layer_types",
        asked_by=lambda config: config.sliding_window is not None and "sliding_attention" not in (config.layer_types or ()),
        problem="a window that no layer has",
        expected="sliding_attention somewhere, or no sliding_window",
        hint="Name the sliding layers in layer_types, or leave sliding_window out; of files, FAMILY.layer_pattern names them.",
    ),
)

HEAD = (
    Combination(
        field="lm_head_bias",
        asked_by=lambda config: config.lm_head_bias and config.tie_word_embeddings,
        problem="a tied head has no bias",
        expected="false",
        hint="Set tie_word_embeddings=False, or leave lm_head_bias out.",
    ),
)

EXPERTS = (
    Combination(
        field="num_experts_per_tok",
        asked_by=lambda config: config.num_experts > 0 and not 1 <= config.num_experts_per_tok <= config.num_experts,
        problem="not a number of experts",
        expected="1 to {config.num_experts}",
        hint="Set num_experts_per_tok to the number of experts that each token goes to.",
    ),
    Combination(
        field="gated_mlp",
        asked_by=lambda config: config.num_experts > 0 and not config.gated_mlp,
        problem="experts are gated",
        expected="true",
        hint=f"Plain experts are a block of the family's own, with a field of its own config: {OWN_MATHEMATICS}.",
    ),
    Combination(
        field="mlp_bias",
        asked_by=lambda config: config.num_experts > 0 and config.mlp_bias,
        problem="experts have no biases",
        expected="false",
        hint=f"Experts with biases are a block of the family's own, with a field of its own config: {OWN_MATHEMATICS}.",
    ),
    Combination(
        field="decoder_sparse_step",
        asked_by=lambda config: config.num_experts > 0 and config.decoder_sparse_step > config.num_hidden_layers,
        problem="experts that no layer has",
        expected="1 to {config.num_hidden_layers}, the number of layers",
        hint="Layer i is sparse when i + 1 is a multiple of decoder_sparse_step; set num_experts=0 for a dense model.",
    ),
    Combination(
        field="mlp_only_layers",
        asked_by=lambda config: config.num_experts > 0 and max(config.mlp_only_layers, default=0) >= config.num_hidden_layers,
        problem="a layer that the model does not have",
        expected="numbers below {config.num_hidden_layers}; the first layer is 0",
        hint="Leave out the numbers that are too large.",
    ),
    Combination(
        field="mlp_only_layers",
        asked_by=lambda config: _leaves_no_sparse_layer(config),
        problem="every layer that would be sparse is listed as dense, and there are experts",
        expected="at least one sparse layer",
        hint="Leave one of the sparse layers out of the list, or set num_experts=0 for a dense model.",
    ),
)

DECODER_COMBINATIONS = (ACTIVATION, *NORMS, *POSITIONS, *ATTENTION, *HEAD, *EXPERTS)
"""Every combination of a DecoderConfig's fields that nothing implements."""


def _is_one_a_layer(values: Collection[Any] | None, config: Any) -> bool:
    return values is None or len(values) == config.num_hidden_layers


def _leaves_no_sparse_layer(config: Any) -> bool:
    step, dense = config.decoder_sparse_step, config.mlp_only_layers
    on_step = range(step - 1, config.num_hidden_layers, step)
    return config.num_experts > 0 and len(on_step) > 0 and all(layer in dense for layer in on_step)
