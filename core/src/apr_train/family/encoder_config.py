"""The config of an encoder: learnt positions, LayerNorm, bidirectional attention, masked-LM head."""

from __future__ import annotations

from typing import ClassVar

from attrs import field, frozen

from apr_train.errors import ConfigError
from apr_train.family.combinations import ACTIVATION, combination_faults
from apr_train.family.config import ModelConfig, architecture
from apr_train.family.validate import boolean, fraction, natural, positive, positive_int, text


@frozen(kw_only=True)
class EncoderConfig(ModelConfig):
    """A post-norm encoder: learnt positions, LayerNorm, full bidirectional attention, GELU MLP, masked-LM head."""

    REQUIRED: ClassVar[tuple[str, ...]] = (
        "vocab_size",
        "hidden_size",
        "num_attention_heads",
        "intermediate_size",
        "num_hidden_layers",
        "max_position_embeddings",
        "type_vocab_size",
        "layer_norm_eps",
        "pad_token_id",
        "tie_word_embeddings",
        "hidden_act",
    )
    ACTIVATIONS: ClassVar[tuple[str, ...]] = ("gelu",)
    """What `hidden_act` may be, in the blocks and in the head; a family's own config may widen it, with a `build_model`
    that computes what it adds."""

    hidden_act: str = field(default="gelu", validator=text)
    """One of `ACTIVATIONS`; gelu is the exact (erf) one."""
    positions_after_padding: bool = architecture(True, validator=boolean)
    """Whether position ids start at pad_token_id + 1, padding at pad_token_id (RoBERTa), or at 0 everywhere (BERT)."""
    type_vocab_size: int = field(validator=positive_int)
    """Rows of the token-type table."""
    layer_norm_eps: float = field(validator=positive)
    """Added to the variance before the root."""
    pad_token_id: int = field(validator=natural)
    """Padding token."""
    hidden_dropout_prob: float = field(default=0.1, validator=fraction)
    """Dropout on embeddings and block outputs, in training."""
    attention_probs_dropout_prob: float = field(default=0.1, validator=fraction)
    """Dropout on attention probabilities, in training."""

    def __attrs_post_init__(self) -> None:
        if self.hidden_size % self.num_attention_heads:
            raise ConfigError(
                "hidden_size is not divisible by num_attention_heads",
                where=type(self).__name__,
                field="num_attention_heads",
                expected=f"a divisor of {self.hidden_size}",
                found=f"{self.hidden_size} / {self.num_attention_heads}",
            )
        if faults := combination_faults(self, (ACTIVATION,)):
            raise ConfigError.of(faults)
        if self.pad_token_id >= self.vocab_size:
            raise ConfigError(
                "pad_token_id outside the vocabulary",
                where=type(self).__name__,
                field="pad_token_id",
                expected=f"0 to {self.vocab_size - 1}",
                found=self.pad_token_id,
            )
        if self.usable_positions < 1:
            raise ConfigError(
                "no position is left for a token",
                where=type(self).__name__,
                field="max_position_embeddings",
                expected=f"max_position_embeddings > {self.pad_token_id + 1}",
                found=self.max_position_embeddings,
            )

    @property
    def usable_positions(self) -> int:
        """The rows of the position table that real tokens use: all, or those after the padding's."""
        return self.max_position_embeddings - (self.pad_token_id + 1 if self.positions_after_padding else 0)
