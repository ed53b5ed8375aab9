"""What a family's package will say, as data: card, configs, names; and the trial of it against the file that it came from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import define, field

from apr_train.errors import Finding, NameMapError
from apr_train.family.card import API_VERSION, DEFAULT_OBJECTIVE, FamilyInfo, Layout
from apr_train.family.decoder_config import DecoderConfig
from apr_train.family.decoder_names import HF_PREFIX, decoder_rules
from apr_train.family.name_map import NameMap
from apr_train.family.name_rules import LAYER, Rule, split

TINY = "tiny"
Q, KV = "num_attention_heads*head_dim", "num_key_value_heads*head_dim"
ROWS: Mapping[str, str] = {
    "self_attn.q_proj": Q,
    "self_attn.k_proj": KV,
    "self_attn.v_proj": KV,
    "mlp.gate_proj": "intermediate_size",
    "mlp.up_proj": "intermediate_size",
}
"""Our module → rows of its matrix, for the parts of fused ones."""
LLAMA = DecoderConfig(
    vocab_size=1024,
    hidden_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    intermediate_size=192,
    max_position_embeddings=512,
    rope_theta=10_000.0,
    rms_norm_eps=1e-5,
    tie_word_embeddings=False,
)
"""The tiny preset of a family that is made of nothing, and what stands in for numbers that no file gave."""


@define(kw_only=True)
class Draft:
    """A family in the making; the fields up to `gguf_architectures` are the card's."""

    name: str
    hf_classes: tuple[str, str]
    model_type: str
    gguf_architectures: tuple[str, ...] = ()
    base_prefix: str = HF_PREFIX
    config_keys: list[str] = field(factory=list)
    config_names: dict[str, str] = field(factory=dict)
    fixed: dict[str, Any] = field(factory=dict)
    implied: dict[str, Any] = field(factory=dict)
    layer_pattern: tuple[str, ...] = ()
    never_permuted: bool = False
    names: dict[str, str] = field(factory=dict)
    """Our stem → Hugging Face's."""
    fused: dict[str, tuple[str, ...]] = field(factory=dict)
    """Hugging Face's stem of a fused module → our stems in it, in the order of its rows."""
    presets: dict[str, DecoderConfig] = field(factory=dict)
    """The first is the default."""
    reference: dict[str, Any] | None = None
    """Arguments of transformers' config class for a tiny model; None: a Llama's, whose class the family has under its name."""
    findings: list[Finding] = field(factory=list)
    """Errors are what is left to do, warnings what was concluded."""

    @property
    def is_llama(self) -> bool:
        """Whether nothing differs from a Llama; its open ends stay open."""
        scaled = any(config.rope_scaling for config in self.presets.values())
        return not (self.config_keys or self.fixed or self.names or self.fused or self.config_names or scaled)

    def info(self) -> FamilyInfo:
        """The card."""
        names = tuple(self.presets)
        return FamilyInfo(
            name=self.name,
            api_version=API_VERSION,
            kind="decoder",
            objectives=(DEFAULT_OBJECTIVE,),
            hf_classes=self.hf_classes,
            model_type=self.model_type,
            gguf_architectures=self.gguf_architectures,
            presets=names or (TINY,),
            default_preset=names[0] if names else TINY,
            base_prefix=self.base_prefix,
            config_keys=tuple(self.config_keys),
            config_names=self.config_names,
            fixed=self.fixed,
            implied=self.implied,
            layer_pattern=self.layer_pattern,
            never_permuted=self.never_permuted,
        )

    def name_map(self, config: DecoderConfig, layout: Layout) -> NameMap:
        """What the written `map_tensor_names` answers."""
        if layout.names == "gguf" and not self.gguf_architectures:
            raise NameMapError("no GGUF of this family has been looked at", where="layout")
        add = [rule for fused, stems in self.fused.items() for rule in self._parts(fused, stems, config, layout)]
        drop = [stem for stems in self.fused.values() for stem in stems]
        rules = decoder_rules(config, layout, prefix=self.base_prefix, names=self.names, add=add, drop=drop)
        return NameMap.for_config(config, rules)

    def _parts(self, fused: str, stems: tuple[str, ...], config: DecoderConfig, layout: Layout) -> list[Rule]:
        block = f"{'' if layout.bare else self.base_prefix}{self.names.get('layers', 'layers')}.{LAYER}."
        has_bias = config.attention_bias if stems[0].startswith("self_attn") else config.mlp_bias
        rules: list[Rule] = []
        for part, others in (("weight", ("hidden_size",)), *((("bias", ()),) if has_bias else ())):
            parts = [(f"layers.{LAYER}.{stem}.{part}", ROWS[stem]) for stem in stems]
            rules += split(f"{block}{fused}.{part}", parts, *others)
        return rules

    def todo(self, problem: str, *, field: str, expected: str = "", found: str = "", hint: str = "") -> None:
        """Add what the author has to do."""
        self.findings.append(Finding(problem=problem, field=field, expected=expected, found=found, hint=hint))

    def remark(self, problem: str, *, field: str = "", found: str = "") -> None:
        """Add what was concluded and may be wrong."""
        self.findings.append(Finding(problem=problem, field=field, found=found, severity="warning"))


def without_source(name: str) -> Draft:
    """A family that is a Llama so far, with a tiny preset."""
    stem = camel(name)
    return Draft(name=name, hf_classes=(f"{stem}ForCausalLM", f"{stem}Model"), model_type=name, presets={TINY: LLAMA})


def camel(name: str) -> str:
    """`my_family` → `MyFamily`."""
    return "".join(part[:1].upper() + part[1:] for part in name.split("_")) or name


def size_name(parameters: int) -> str:
    """A preset's name by its number of parameters: `1.1b`, `135m`, `91k`."""
    for unit, letter in ((1e9, "b"), (1e6, "m"), (1e3, "k")):
        if parameters >= unit:
            number = parameters / unit
            return f"{number:.1f}".removesuffix(".0") + letter if number < 10 else f"{number:.0f}{letter}"
    return f"{parameters}p"
