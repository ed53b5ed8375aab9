"""The config that every architecture has: validated fields, read from a header, a dict, or a preset's name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self, TypeVar

import attrs
from attrs import field, frozen

from apr_train import rules
from apr_train.checkpoint.header import DIMENSIONS, Header
from apr_train.errors import ConfigError, Finding, PluginError
from apr_train.family.card import FamilyInfo
from apr_train.family.reading import QUIET, values_of
from apr_train.family.validate import boolean, build_strictly, layer_count, positive, positive_int, text
from apr_train.suggest import did_you_mean

METADATA = "metadata"
"""The field of a finding that is about all of the config."""


def architecture(default: Any, **options: Any) -> Any:
    """An attrs field that says how a model is built: at its default, which is a Llama's, files do not mention it."""
    return field(default=default, metadata={QUIET: True}, **options)


@frozen(kw_only=True)
class ModelConfig:
    """The fields that every architecture has. Sizes are counts of elements; names are Hugging Face's."""

    REQUIRED: ClassVar[tuple[str, ...]] = ()
    """Fields that must come from the file when a config is read from a header: never defaulted."""

    vocab_size: int = field(validator=positive_int)
    """Rows of the embedding matrix, reserved ones included."""
    hidden_size: int = field(validator=positive_int)
    """Width of the residual stream."""
    num_hidden_layers: int = field(validator=layer_count)
    """Number of blocks."""
    num_attention_heads: int = field(validator=positive_int)
    """Query heads."""
    intermediate_size: int = field(validator=positive_int)
    """Width inside the MLP."""
    max_position_embeddings: int = field(validator=positive_int)
    """Positions that the model knows (rows of the position table, for an encoder)."""
    tie_word_embeddings: bool = field(validator=boolean)
    """Whether the head is the embedding matrix itself."""
    hidden_act: str = field(default="silu", validator=text)
    """Activation inside the MLP."""
    initializer_range: float = field(default=0.02, validator=positive)
    """Standard deviation of freshly initialised matrices."""

    @classmethod
    def required(cls, values: Mapping[str, Any]) -> tuple[str, ...]:
        """The fields that a file must give: `REQUIRED`, as far as `values` (what is known already) leave them a meaning."""
        return cls.REQUIRED

    @classmethod
    def meaningless(cls, values: Mapping[str, Any]) -> frozenset[str]:
        """The fields that do nothing beside `values`, which may be of any type.

        A file may name them, and reading leaves them out.
        """
        return frozenset()

    @property
    def head_dim(self) -> int:
        """Width of one head."""
        return self.hidden_size // self.num_attention_heads

    @property
    def num_key_value_heads(self) -> int:
        """Heads of k and v: one per query head, unless the config has fewer."""
        return self.num_attention_heads

    @property
    def usable_positions(self) -> int:
        """The longest sequence that the model can be trained on."""
        return self.max_position_embeddings

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain JSON-able data; `from_dict` reads it back to an equal config."""
        return attrs.asdict(self)

    def stated(self, name: str) -> Any:
        """The value of a field as a file can state it: where None stands for a number, that number."""
        return getattr(self, name)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Read what `to_dict` wrote.

        Raises:
            ConfigError: on unknown or missing keys, or on a value that a validator rejects.
        """
        return build_strictly(cls, values, where=cls.__name__)

    @classmethod
    def from_header(cls, header: Header, *, info: FamilyInfo | None = None, **fixed: Any) -> Self:
        """Read a config from a checkpoint's header; nothing in `required`, and of the card's `config_keys`, is defaulted.

        Of the fields made with `architecture` only those are read that the card's `config_keys` name. What the card's `fixed`
        holds, and after it `fixed` (Qwen2's biases, say), is decided by the architecture and wins over the file. What the file
        leaves out is as the card's `implied` says. Layers that slide are found as `apr_train.family.layer_patterns` says. A
        `router_aux_loss_coef` counts where `output_router_logits` is true, as in transformers, and is 0 elsewhere. What is
        `meaningless` beside the rest stays at its default, whoever says it.

        Raises:
            ConfigError: with one finding per required field that the file does not have.
            PluginError: the card names a field that this config does not have.
        """
        values, missing = values_of(cls, header, info, fixed, cls.required)
        idle = cls.meaningless(values)
        if asked := [name for name in missing if name not in idle]:
            raise ConfigError.of(_missing_findings(header, asked, info))
        return cls(**{name: value for name, value in values.items() if name not in idle})


def _missing_findings(header: Header, names: list[str], info: FamilyInfo | None) -> list[Finding]:
    """One finding for each field; one for all of them in an `.apr` that says nothing of its model's size."""
    own_keys = {} if info is None or header.names == "gguf" else info.config_names
    keys = {name: own_keys.get(name, name) for name in names}
    if header.format != "apr" or any(key in header.config for key in DIMENSIONS):
        return [_missing(header, name, key, info) for name, key in keys.items()]
    return [
        Finding(
            rule=rules.ARCH_003,
            subject=header.path,
            field=METADATA,
            problem="the checkpoint does not say how large its model is, and no config.json lies beside it",
            expected=f"values of {', '.join(keys.values())}",
            found="none of them",
            hint="Put the model's config.json, as Hugging Face has it, into the file's folder; no option stands in for it.",
        )
    ]


def _missing(header: Header, name: str, key: str, info: FamilyInfo | None) -> Finding:
    add = f'Add "{key}" to config.json, with the value of the model\'s own config.'
    part = "gguf_implied" if header.names == "gguf" else "implied"
    meant = f' If every such file means the same by it, the family says so: FAMILY.{part}["{name}"].'
    always = "" if info is None or key in DIMENSIONS else meant
    return Finding(
        rule=rules.ARCH_003,
        subject=header.path,
        field=key,
        problem="the checkpoint's metadata does not say",
        expected=f"a value for {key}",
        found="nothing",
        hint=(add if header.format == "safetensors" else "No value is guessed: re-import the file from its source.") + always,
    )


C = TypeVar("C", bound=ModelConfig)


def choose_preset(presets: Mapping[str, C], name: str | None, *, family: str) -> C:
    """Return the config of that name.

    Raises:
        ConfigError: naming the family, the unknown preset and the nearest one.
    """
    if name is None or name not in presets:
        found = "nothing" if name is None else name
        raise ConfigError("no such preset", where=f"{family} preset", found=found, hint=did_you_mean(str(name), presets))
    return presets[name]


def read_config(info: FamilyInfo, presets: Mapping[str, C], preset: str | None, header: Header | None, **fixed: Any) -> C:
    """The answer of a usual `build_config`: the preset of that name, or the file's numbers in a config of the presets' class.

    Raises:
        ConfigError: see `choose_preset` and `ModelConfig.from_header`.
        PluginError: a preset that contradicts the card's `fixed`.
    """
    if header is not None:
        return type(next(iter(presets.values()))).from_header(header, info=info, **fixed)
    config = choose_preset(presets, preset, family=info.name)
    idle = config.meaningless(config.to_dict())
    for name, value in info.fixed.items():
        if name not in idle and (found := getattr(config, name, None)) != value:
            raise PluginError(
                f"the preset {preset} contradicts FAMILY.fixed",
                where=info.name,
                expected=f"{name}={value!r}",
                found=repr(found),
            )
    return config
