"""RoPE scaling as a config.json says it: one attrs class a kind, and what leaves every frequency as it is. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import field, frozen, validators

from apr_train.errors import ConfigError
from apr_train.family.validate import boolean, build_strictly, positive, positive_int, positives

optional = validators.optional


@frozen(kw_only=True)
class Llama3Scaling:
    """Llama 3.1's scaling: long wavelengths divided by `factor`, short ones kept, a ramp between.

    Source: `_compute_llama3_parameters` in transformers' modeling_rope_utils.
    """

    rope_type: str = "llama3"
    factor: float = field(validator=positive)
    """How many times the original context the frequencies are stretched to."""
    low_freq_factor: float = field(validator=positive)
    """Wavelengths above original / low_freq_factor are scaled fully."""
    high_freq_factor: float = field(validator=positive)
    """Wavelengths below original / high_freq_factor are left alone."""
    original_max_position_embeddings: int = field(validator=positive_int)
    """The context length before the stretch."""

    def __attrs_post_init__(self) -> None:
        if self.low_freq_factor >= self.high_freq_factor:
            raise ConfigError(
                "low_freq_factor is not below high_freq_factor",
                where="rope_scaling",
                expected=f"less than {self.high_freq_factor}",
                found=self.low_freq_factor,
            )


@frozen(kw_only=True)
class LinearScaling:
    """Position interpolation: every frequency divided by `factor` (Chen et al. 2023)."""

    rope_type: str = "linear"
    factor: float = field(validator=positive)


@frozen(kw_only=True)
class YarnScaling:
    """YaRN (Peng et al. 2023): interpolation by wavelength, and a factor on cos and sin.

    Source: `_compute_yarn_parameters` in transformers' modeling_rope_utils.
    """

    rope_type: str = "yarn"
    factor: float = field(validator=positive)
    original_max_position_embeddings: int = field(validator=positive_int)
    """The context length before the stretch."""
    attention_factor: float | None = field(default=None, validator=optional(positive))
    """Factor on cos and sin; 0.1 ln(factor) + 1 when not given, or made of the two `mscale`s."""
    beta_fast: float = field(default=32.0, validator=positive)
    beta_slow: float = field(default=1.0, validator=positive)
    mscale: float | None = field(default=None, validator=optional(positive))
    mscale_all_dim: float | None = field(default=None, validator=optional(positive))
    truncate: bool = field(default=True, validator=boolean)
    """Whether the borders of the ramp are rounded to whole dimensions."""


@frozen(kw_only=True)
class LongRopeScaling:
    """LongRoPE (Ding et al. 2024): a divisor for each frequency, one list up to the original context and one beyond it.

    Source: `_compute_longrope_parameters` in transformers' modeling_rope_utils.
    """

    rope_type: str = "longrope"
    short_factor: tuple[float, ...] = field(validator=positives)
    long_factor: tuple[float, ...] = field(validator=positives)
    original_max_position_embeddings: int = field(validator=positive_int)
    """The longest sequence that `short_factor` is for."""
    factor: float | None = field(default=None, validator=optional(positive))
    """max_position_embeddings / original_max_position_embeddings when not given; only `attention_factor` is made of it."""
    attention_factor: float | None = field(default=None, validator=optional(positive))
    """Factor on cos and sin; √(1 + ln(factor) / ln(original)) when not given."""


RopeScaling = Llama3Scaling | LinearScaling | YarnScaling | LongRopeScaling
"""Every scaling that is implemented; another kind is refused by name."""
KINDS: Mapping[str, type[Llama3Scaling | LinearScaling | YarnScaling | LongRopeScaling]] = {
    "llama3": Llama3Scaling,
    "linear": LinearScaling,
    "yarn": YarnScaling,
    "longrope": LongRopeScaling,
}
OLDER_NAMES = {"su": "longrope"}
"""What earlier versions of transformers called a kind."""


def is_neutral_rope(value: Any) -> bool:
    """Whether a config.json's rope_scaling leaves every frequency as it is: none, `default`, or linear by a factor of 1."""
    if not isinstance(value, Mapping):
        return value is None
    kind = value.get("rope_type", value.get("type"))
    if kind == "linear":
        return value.get("factor") == 1 and set(value) <= {"rope_type", "type", "factor", "rope_theta"}
    return kind == "default" or not set(value) - {"rope_theta"}


def rope_scaling_from(value: Any) -> RopeScaling | None:
    """Make a scaling from a config.json's dict; `default`, null and a linear factor of 1 mean none.

    Raises:
        ConfigError: a kind that is not implemented, numbers without a kind, or unknown and missing keys.
    """
    if isinstance(value, RopeScaling):
        return value
    if is_neutral_rope(value):
        return None
    if not isinstance(value, Mapping):
        raise ConfigError("not a table", where="rope_scaling", expected="an object or null", found=repr(value))
    kind = value.get("rope_type", value.get("type"))
    if kind is None:
        raise ConfigError("missing keys rope_type", where="rope_scaling", found=f"only {', '.join(sorted(map(str, value)))}")
    kind = OLDER_NAMES.get(kind, kind) if isinstance(kind, str) else kind
    if not isinstance(kind, str) or kind not in KINDS:
        raise ConfigError(
            "this RoPE scaling is not implemented",
            where="rope_scaling.rope_type",
            expected=f"{', '.join(KINDS)}, or no scaling",
            found=kind,
        )
    plain = {key: item for key, item in value.items() if key not in ("type", "rope_type", "rope_theta") and item is not None}
    plain = {key: tuple(item) if isinstance(item, list) else item for key, item in plain.items()}
    return build_strictly(KINDS[kind], {"rope_type": kind, **plain}, where="rope_scaling")
