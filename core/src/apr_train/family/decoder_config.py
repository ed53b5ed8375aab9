"""The config of a decoder: RMSNorm, rotary positions, grouped-query attention, gated MLP."""

from __future__ import annotations

from typing import ClassVar

from attrs import field, frozen

from apr_train.errors import ConfigError
from apr_train.family.config import ModelConfig, require_activation
from apr_train.family.rope_scaling import RopeScaling, rope_scaling_from
from apr_train.family.validators import boolean, positive, positive_int


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

    @property
    def queries_per_kv_head(self) -> int:
        """The GQA ratio: 1 is full attention, num_attention_heads is multi-query."""
        return self.num_attention_heads // self.num_key_value_heads
