"""The config that a run will use, from the file or from a preset: values that cannot be, fields that are absent."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs

from apr_train import rules
from apr_train.checkpoint.header import Header
from apr_train.errors import AprTrainError, ConfigError, Finding
from apr_train.family.config import METADATA, ModelConfig
from apr_train.family.plugin import Family
from apr_train.family.validate import LARGEST, MOST_LAYERS

COUNTS = (
    "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim",
    "intermediate_size", "max_position_embeddings", "type_vocab_size", "moe_intermediate_size", "decoder_sparse_step",
)  # fmt: skip
NATURALS = ("num_experts", "num_experts_per_tok", "shared_expert_intermediate_size", "sliding_window")
"""Sizes that are 0 where there is no such thing."""
POSITIVE = (
    "rope_theta", "rms_norm_eps", "layer_norm_eps", "initializer_range", "rope_local_base_freq", "attention_multiplier",
    "query_pre_attn_scalar", "embedding_multiplier", "residual_multiplier", "logits_scaling", "logit_scale",
)  # fmt: skip
NOT_NEGATIVE = ("attn_logit_softcapping", "final_logit_softcapping", "router_aux_loss_coef")
FLAGS = (
    "tie_word_embeddings", "attention_bias", "attention_output_bias", "mlp_bias", "norm_topk_prob", "use_sliding_window",
    "output_router_logits",
)  # fmt: skip
TEXTS = ("hidden_act", "hidden_activation", "activation_function", "activation")
LAYER_NAMES = ("layer_types",)
LAYER_NUMBERS = ("no_rope_layers", "mlp_only_layers")


def bogus_values(header: Header) -> list[Finding]:
    """Every field whose value cannot be; none stops the next from being read."""
    rules: list[tuple[tuple[str, ...], Callable[[Any], bool], str]] = [
        (COUNTS, _is_count, "an integer > 0"),
        (NATURALS, lambda value: value == 0 or _is_count(value), "an integer >= 0"),
        (POSITIVE, _is_positive, "a number > 0"),
        (NOT_NEGATIVE, lambda value: value == 0 or _is_positive(value), "a number >= 0"),
        (("partial_rotary_factor",), lambda value: _is_positive(value) and value <= 1, "a number in (0, 1]"),
        (FLAGS, _is_flag, "true or false"),
        (TEXTS, lambda value: isinstance(value, str), "a name"),
        (LAYER_NAMES, _is_list_of(lambda item: isinstance(item, str)), "a list of names"),
        (LAYER_NUMBERS, _is_list_of(lambda item: type(item) is int and item >= 0), "a list of integers >= 0"),
    ]
    return (
        [
            _finding(header, key, expected)
            for keys, fits, expected in rules
            for key in keys
            if header.config.get(key) is not None and not fits(header.config[key])
        ]
        + _layers(header)
        + _heads(header)
    )


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < LARGEST


def _is_positive(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < float("inf")


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool)


def _is_list_of(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list | tuple) and all(fits(item) for item in value)


def _finding(header: Header, key: str, expected: str) -> Finding:
    return Finding(
        rule=rules.INIT_005,
        subject=header.path,
        field=key,
        problem="the metadata has a value that cannot be",
        expected=expected,
        found=f"{header.config[key]!r:.80}",
        hint="Re-import the file from its source.",
    )


def _layers(header: Header) -> list[Finding]:
    layers: Any = header.config.get("num_hidden_layers")
    too_many = _is_count(layers) and layers > MOST_LAYERS
    return [_finding(header, "num_hidden_layers", f"at most {MOST_LAYERS}")] if too_many else []


def _heads(header: Header) -> list[Finding]:
    """Query heads share kv heads in equal groups (GQA), and rotary positions turn pairs."""
    heads: Any = header.config.get("num_attention_heads")
    kv_heads: Any = header.config.get("num_key_value_heads")
    if not (_is_count(heads) and _is_count(kv_heads) and heads % kv_heads):
        return []
    return [
        Finding(
            rule=rules.PREFLIGHT_005,
            subject=header.path,
            field="num_key_value_heads",
            problem="num_key_value_heads does not divide num_attention_heads",
            expected=f"a divisor of {heads}",
            found=str(kv_heads),
        )
    ]


_SCALING = "rope_scaling"
"""A field whose refused value is mathematics that nobody wrote, not a number that cannot be."""


def config_from_file(family: Family, header: Header) -> tuple[ModelConfig | None, list[Finding]]:
    """The config as the file says it; nothing is defaulted, and every absent field is a finding.

    A key that is only not implemented is left out after its finding, so that tensors and tokenizer are judged all the same.
    """
    findings: list[Finding] = []
    while True:
        try:
            return family.build_config(header=header), findings
        except ConfigError as error:
            new = [_of_file(finding, header.path) for finding in error.findings]
            findings += [
                finding for finding in new if finding.field not in {known.field for known in findings} or not finding.field
            ]
            names = _droppable(error, family)
        except AprTrainError as error:
            findings.append(_refused(error, header.path))
            names = set()
        if not names & header.config.keys():
            return None, findings
        header = attrs.evolve(header, config={key: value for key, value in header.config.items() if key not in names})


def _droppable(error: ConfigError, family: Family) -> set[str]:
    """The keys that a config without its refused values does not need: what is only not implemented, or contradicts others."""
    fields = {_place(finding).partition(".")[0] for finding in error.findings if finding.rule == rules.CONFIG_001}
    fields |= {_SCALING} if _place(error.finding).startswith(_SCALING) else set()
    names = family.info.config_names
    return fields | {names[name] for name in fields if name in names}


def _of_file(finding: Finding, path: str) -> Finding:
    """A config's fault as the file's; what no rule is about, and an activation that nobody wrote, get the preflight's rule."""
    if finding.rule not in ("", rules.CONFIG_001):
        return finding
    place = _place(finding)
    if finding.rule and place != "hidden_act":
        return attrs.evolve(finding, subject=path)
    field = _SCALING if place.startswith(_SCALING) else place
    rule = rules.PREFLIGHT_003 if finding.rule or field == _SCALING else rules.PREFLIGHT_005
    return attrs.evolve(finding, rule=rule, subject=path, field="" if field == path else field)


def _place(finding: Finding) -> str:
    return finding.field or finding.subject


def config_from_preset(
    family: Family, preset: str | None, vocab_size: int | None = None
) -> tuple[ModelConfig | None, list[Finding]]:
    """The preset's config, with another vocabulary if one is asked for."""
    try:
        config = family.build_config(preset=preset or family.info.default_preset)
        return (config if vocab_size is None else attrs.evolve(config, vocab_size=vocab_size)), []
    except AprTrainError as error:
        return None, [_refused(error, "--preset")]


def _refused(error: AprTrainError, where: str) -> Finding:
    return _of_file(error.finding, where)


def absent_findings(header: Header, findings: list[Finding]) -> list[Finding]:
    """One line over several missing fields: metadata that is absent is a fault of its own; a single field is told already."""
    missing = [finding for finding in findings if finding.rule == rules.ARCH_003 and finding.severity == "error"]
    names = [finding.field for finding in missing if finding.field != METADATA]
    if len(names) < 2:
        return []
    return [
        Finding(
            rule=rules.INIT_005,
            subject=header.path,
            field=METADATA,
            problem="the metadata is absent or incomplete" if header.config else "the metadata is absent",
            expected=f"values of {', '.join(names)}",
            found="none of them",
            hint="Complete config.json." if header.format == "safetensors" else "Re-import the file from its source.",
        )
    ]
