"""What a new family is read from: a checkpoint's config and the names and shapes of its tensors, or a config.json alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
from attrs import frozen

from apr_train import rules
from apr_train.checkpoint.companions import CONFIG
from apr_train.checkpoint.files import parse_json
from apr_train.checkpoint.header import Header, Tie, kind_of
from apr_train.checkpoint.huggingface import header_from_hf
from apr_train.checkpoint.open import open_checkpoint
from apr_train.checkpoint.tie import resolve_tie
from apr_train.errors import ConfigError, Finding, FormatError
from apr_train.preflight.config_rules import bogus_values

SIZES = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")
"""Fields without which nothing can be written."""
KEY_NAMES: Mapping[str, tuple[str, ...]] = {
    "hidden_size": ("n_embd", "d_model"),
    "num_hidden_layers": ("n_layer", "n_layers", "num_layers"),
    "num_attention_heads": ("n_head", "n_heads", "num_heads"),
    "num_key_value_heads": ("num_kv_heads", "n_head_kv"),
    "intermediate_size": ("n_inner", "ffn_dim", "ffn_hidden_size", "d_ff"),
    "max_position_embeddings": ("n_positions", "max_seq_len", "max_sequence_length", "seq_length"),
    "hidden_act": ("hidden_activation", "activation_function", "activation"),
    "rope_theta": ("rotary_emb_base", "rope_base"),
    "layer_norm_eps": ("layer_norm_epsilon", "layernorm_epsilon", "norm_epsilon"),
    "partial_rotary_factor": ("rotary_pct", "rotary_emb_fraction"),
    "num_experts": ("num_local_experts", "n_routed_experts"),
}
"""Config field → keys that classes have for it; the field's own name comes first."""
EITHER_EPSILON = ("norm_eps", "norm_epsilon", "layernorm_epsilon")
"""Keys that are the epsilon of whichever norm a class has."""
MOST_LINES = 200_000
"""Layers times experts: a name map has a line for each."""
_MASKED = ("ForMaskedLM", "ForPreTraining")


@frozen(kw_only=True)
class Source:
    """A checkpoint as far as a family is made from it."""

    header: Header
    """Without tensors where only a config.json was given."""
    raw: Mapping[str, Any]
    """config.json as it stands; of a container without one, its config in Hugging Face's names."""

    @property
    def is_hf(self) -> bool:
        """Whether `raw` is a config.json."""
        return self.header.format == "safetensors"

    def key_of(self, name: str) -> str | None:
        """The file's own key of a config field; None where it has none with a value."""
        keys = (name, *KEY_NAMES.get(name, ()))
        return next((key for key in keys if self.raw.get(key) is not None), None)

    def value(self, name: str) -> Any:
        """A config field as the file has it, whatever its key; None where it says nothing."""
        if name in self.header.config:
            return self.header.config[name]
        key = self.key_of(name)
        return None if key is None else self.raw[key]


def open_source(path: Path) -> Source:
    """Read the config, and the index of the tensors; a tensor only where its bytes tell whether the head is tied.

    Raises:
        FormatError: what cannot be opened, or has no weights.
        ConfigError: what no decoder can be made from: an encoder, an encoder-decoder, absent or impossible sizes.
    """
    source = _config_alone(path) if path.suffix == ".json" and path.is_file() else _checkpoint(path)
    _refuse_other_kinds(source)
    _refuse_sizes(source)
    return source


def _config_alone(path: Path) -> Source:
    raw = parse_json(path)
    header = header_from_hf(str(path), raw, {})
    says = isinstance(raw.get("tie_word_embeddings"), bool)
    return Source(header=header if says else attrs.evolve(header, tie=Tie(None, "no tensors")), raw=raw)


def _checkpoint(path: Path) -> Source:
    config = (path if path.is_dir() else path.parent) / CONFIG
    try:
        with open_checkpoint(path, verify=False) as checkpoint:
            header = resolve_tie(checkpoint)
    except FormatError as error:
        if path.is_dir() and config.is_file():
            hint = f"{error.finding.hint} Pass {config} itself to go without tensor names.".strip()
            error.amend(hint=hint)
        raise
    is_hf = header.format == "safetensors" and config.is_file()
    return Source(header=header, raw=parse_json(config) if is_hf else dict(header.config))


def _refuse_other_kinds(source: Source) -> None:
    header, raw = source.header, source.raw
    names = header.tensors
    both = all(any(part in name.split(".") for name in names) for part in ("encoder", "decoder"))
    if raw.get("is_encoder_decoder") is True or both:
        _refuse(source, "an encoder-decoder: apr-train has decoders and encoders only", "Take a causal language model.")
    if isinstance(raw.get("text_config"), Mapping) and source.key_of("hidden_size") is None:
        hint = "Pass a config.json that holds the language model's part, or a checkpoint of that part."
        _refuse(source, "a model of several parts: its language model is under text_config", hint)
    if kind_of(header) == "encoder" or (header.hf_class or "").endswith(_MASKED):
        hint = "The bert example (docs/families/bert in the repository) is an encoder to start from."
        _refuse(source, "an encoder: new-family writes decoders", hint)


def _refuse(source: Source, problem: str, hint: str) -> None:
    raise ConfigError(problem, where=source.header.path, expected="a decoder (a causal language model)", hint=hint)


def _refuse_sizes(source: Source) -> None:
    header = source.header
    values = {name: value for name in SIZES if (value := source.value(name)) is not None}
    faults = bogus_values(attrs.evolve(header, config={**header.config, **values}))
    missing = [name for name in SIZES if name not in values]
    if missing and not faults:
        hint = "Put the model's config.json beside its weights, or write the value into it under this name."
        faults = [_absent(header.path, name, hint) for name in missing]
    if faults:
        raise ConfigError.of(faults)
    experts = source.value("num_experts")
    lines = values["num_hidden_layers"] * max(1, experts if isinstance(experts, int) else 1)
    if lines > MOST_LINES:
        expected, hint = f"{MOST_LINES} in all layers at most", "Re-import the file from its source."
        raise ConfigError("too many experts", where=header.path, expected=expected, found=lines, hint=hint)


def _absent(path: str, name: str, hint: str) -> Finding:
    return Finding(
        rule=rules.ARCH_003,
        subject=path,
        field=name,
        problem="the config does not say",
        expected=f"a value for {name}",
        found="nothing",
        hint=hint,
    )
