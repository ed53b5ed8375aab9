"""The config of a decoder: RMSNorm, rotary positions and their scaling, grouped-query attention, gated MLP."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, NoReturn

from attrs import field, frozen

from apr_train.errors import ConfigError
from apr_train.family.config import ModelConfig, boolean, build_strictly, positive, positive_int, require_activation


@frozen(kw_only=True)
class RopeScaling:
    """Llama 3's RoPE scaling, the one kind that is implemented; every other kind is refused by name.

    Source: `_compute_llama3_parameters` in transformers' modeling_rope_utils.
    """

    rope_type: str = "llama3"
    """Only `llama3`."""
    factor: float = field(validator=positive)
    """How many times the original context the frequencies are stretched to."""
    low_freq_factor: float = field(validator=positive)
    """Wavelengths above original / low_freq_factor are scaled fully."""
    high_freq_factor: float = field(validator=positive)
    """Wavelengths below original / high_freq_factor are left alone."""
    original_max_position_embeddings: int = field(validator=positive_int)
    """The context length before the stretch."""

    def __attrs_post_init__(self) -> None:
        if self.rope_type != "llama3":
            _refuse_rope_scaling(self.rope_type)
        if self.low_freq_factor >= self.high_freq_factor:
            raise ConfigError(
                "low_freq_factor is not below high_freq_factor",
                where="rope_scaling",
                expected=f"less than {self.high_freq_factor}",
                found=self.low_freq_factor,
            )


def _refuse_rope_scaling(kind: Any) -> NoReturn:
    raise ConfigError(
        "this RoPE scaling is not implemented",
        where="rope_scaling.rope_type",
        expected="llama3 or no scaling",
        found=kind,
    )


def is_neutral_rope(value: Any) -> bool:
    """Whether a config.json's rope_scaling leaves every frequency as it is: none, `default`, or linear by a factor of 1."""
    if not isinstance(value, Mapping):
        return value is None
    kind = value.get("rope_type", value.get("type"))
    if kind == "linear":
        return value.get("factor") == 1 and set(value) <= {"rope_type", "type", "factor", "rope_theta"}
    return kind == "default" or not set(value) - {"rope_theta"}


def rope_scaling_from(value: Any) -> RopeScaling | None:
    """Make a RopeScaling from a config.json's dict; `default`, null and a linear factor of 1 mean none.

    Raises:
        ConfigError: another kind of scaling, numbers without a kind, or unknown and missing keys.
    """
    if isinstance(value, RopeScaling):
        return value
    if is_neutral_rope(value):
        return None
    if not isinstance(value, Mapping):
        raise ConfigError("not a table", where="rope_scaling", expected="an object or null", found=repr(value))
    plain = {("rope_type" if key == "type" else key): item for key, item in value.items()}
    plain.pop("rope_theta", None)
    if "rope_type" not in plain:
        raise ConfigError("missing keys rope_type", where="rope_scaling", found=f"only {', '.join(sorted(plain))}")
    if plain["rope_type"] != "llama3":
        _refuse_rope_scaling(plain["rope_type"])
    return build_strictly(RopeScaling, plain, where="rope_scaling")


@frozen(kw_only=True)
class DecoderConfig(ModelConfig):
    """A pre-norm decoder: RMSNorm, rotary positions, grouped-query attention, gated MLP."""

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
    )

    num_key_value_heads: int = field(validator=positive_int)
    """Heads of k and v; each serves num_attention_heads / num_key_value_heads query heads."""
    head_dim: int = field(validator=positive_int)
    """Width of one head; hidden_size / num_attention_heads unless the file says otherwise."""
    rope_theta: float = field(validator=positive)
    """Base of the rotary wavelengths."""
    rope_scaling: RopeScaling | None = field(default=None, converter=rope_scaling_from)
    """Llama 3's frequency scaling, or none."""
    rms_norm_eps: float = field(validator=positive)
    """Added to the mean square before the root."""
    attention_bias: bool = field(default=False, validator=boolean)
    """Biases on the q, k and v projections."""
    attention_output_bias: bool = field(default=False, validator=boolean)
    """A bias on the output projection of attention."""
    mlp_bias: bool = field(default=False, validator=boolean)
    """Biases on gate, up and down."""

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

    def __attrs_post_init__(self) -> None:
        if self.num_attention_heads % self.num_key_value_heads:
            raise ConfigError(
                "num_key_value_heads does not divide num_attention_heads",
                where=type(self).__name__,
                expected=f"a divisor of {self.num_attention_heads}",
                found=self.num_key_value_heads,
            )
        if self.head_dim % 2:
            raise ConfigError(
                "head_dim is odd, RoPE rotates pairs", where=type(self).__name__, expected="even", found=self.head_dim
            )
        require_activation(self, "silu")
