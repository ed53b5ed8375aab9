"""Llama 3's RoPE scaling as data, and the refusal of every other kind."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn, cast

from attrs import field, frozen

from apr_train.errors import ConfigError
from apr_train.family.from_dict import build_strictly
from apr_train.family.validators import positive, positive_int


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


def rope_scaling_from(value: Any) -> RopeScaling | None:
    """Make a RopeScaling from a config.json's dict; `default` and null mean none.

    Raises:
        ConfigError: another kind of scaling, numbers without a kind, or unknown and missing keys.
    """
    if value is None or isinstance(value, RopeScaling):
        return value
    if not isinstance(value, Mapping):
        raise ConfigError("not a table", where="rope_scaling", expected="an object or null", found=repr(value))
    plain = {("rope_type" if key == "type" else key): item for key, item in value.items()}
    plain.pop("rope_theta", None)
    if not plain or plain.get("rope_type") == "default":
        return None
    if "rope_type" not in plain:
        raise ConfigError("missing keys rope_type", where="rope_scaling", found=f"only {', '.join(sorted(plain))}")
    if plain["rope_type"] != "llama3":
        _refuse_rope_scaling(plain["rope_type"])
    return cast(RopeScaling, build_strictly(RopeScaling, plain, where="rope_scaling"))
