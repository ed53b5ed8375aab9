"""Model configs: frozen, validated, with Hugging Face's field names; families subclass them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, NoReturn, Self, cast

import attrs
from attrs import field, frozen

from apr_train.errors import ConfigError
from apr_train.finding import Finding
from apr_train.header import Header
from apr_train.suggest import did_you_mean
from apr_train.validators import boolean, fraction, positive, positive_int

MISSING_FIELD = "FALSIFY-APR-PRETRAIN-ARCH-003"


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


def _refuse_rope_scaling(kind: Any) -> NoReturn:
    raise ConfigError(
        "this RoPE scaling is not implemented",
        where="rope_scaling.rope_type",
        expected="llama3 or no scaling",
        found=kind,
    )


def _rope_scaling(value: Any) -> RopeScaling | None:
    """Make a RopeScaling from a config.json's dict; `default` and null mean none."""
    if value is None or isinstance(value, RopeScaling):
        return value
    if not isinstance(value, Mapping):
        raise ConfigError("not a table", where="rope_scaling", expected="an object or null", found=repr(value))
    plain = {("rope_type" if key == "type" else key): item for key, item in value.items()}
    if plain.get("rope_type", "default") == "default":
        return None
    if plain["rope_type"] != "llama3":
        RopeScaling(
            rope_type=plain["rope_type"], factor=1, low_freq_factor=1, high_freq_factor=1, original_max_position_embeddings=1
        )
    plain.pop("rope_theta", None)
    return cast(RopeScaling, build_strictly(RopeScaling, plain, where="rope_scaling"))


def build_strictly(cls: type[Any], values: Mapping[str, Any], *, where: str) -> Any:
    """Make an attrs object from a dict; unknown and missing keys are errors that name them.

    Raises:
        ConfigError: naming all unknown keys (with the closest known one) or all missing ones.
    """
    known = {item.name for item in attrs.fields(cls)}
    unknown = sorted(set(values) - known)
    if unknown:
        hint = "; ".join(f"{key}: {did_you_mean(key, known)}" for key in unknown)
        raise ConfigError(f"unknown keys {', '.join(unknown)}", where=where, hint=hint)
    missing = [item.name for item in attrs.fields(cls) if item.default is attrs.NOTHING and item.name not in values]
    if missing:
        raise ConfigError(f"missing keys {', '.join(missing)}", where=where)
    return cls(**values)


@frozen(kw_only=True)
class ModelConfig:
    """What every architecture has. Sizes are counts of elements; names are Hugging Face's."""

    REQUIRED: ClassVar[tuple[str, ...]] = ()
    """Fields that must come from the file when a config is read from a header: never defaulted."""

    vocab_size: int = field(validator=positive_int)
    """Rows of the embedding matrix, reserved ones included."""
    hidden_size: int = field(validator=positive_int)
    """Width of the residual stream."""
    num_hidden_layers: int = field(validator=positive_int)
    """Number of blocks."""
    num_attention_heads: int = field(validator=positive_int)
    """Query heads."""
    intermediate_size: int = field(validator=positive_int)
    """Width inside the MLP."""
    max_position_embeddings: int = field(validator=positive_int)
    """Positions that the model knows (rows of the position table, for an encoder)."""
    tie_word_embeddings: bool = field(validator=boolean)
    """Whether the head is the embedding matrix itself."""
    hidden_act: str = "silu"
    """Activation inside the MLP."""
    initializer_range: float = field(default=0.02, validator=positive)
    """Standard deviation of freshly initialised matrices."""

    @property
    def usable_positions(self) -> int:
        """The longest sequence that the model can be trained on."""
        return self.max_position_embeddings

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain JSON-able data; `from_dict` reads it back to an equal config."""
        return attrs.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Read what `to_dict` wrote.

        Raises:
            ConfigError: on unknown or missing keys, or on a value that a validator rejects.
        """
        return cast(Self, build_strictly(cls, values, where=cls.__name__))

    @classmethod
    def from_header(cls, header: Header, **fixed: Any) -> Self:
        """Read a config from a checkpoint's header; nothing in `REQUIRED` is defaulted.

        `fixed` holds what the architecture itself decides (Qwen2's biases, say) and wins over the file.

        Raises:
            ConfigError: with one finding per required field that the file does not have.
        """
        names = {item.name for item in attrs.fields(cls)}
        values = {key: value for key, value in header.config.items() if key in names}
        if header.tie.value is not None:
            values["tie_word_embeddings"] = header.tie.value
        values.update(fixed)
        missing = [name for name in cls.REQUIRED if name not in values]
        if missing:
            raise ConfigError(
                f"the metadata lacks {', '.join(missing)}",
                where=header.path,
                hint="No value is guessed: re-import the file from its source, or add the keys.",
                findings=[_missing(header.path, name) for name in missing],
            )
        return cls(**values)


def _require_activation(config: ModelConfig, name: str) -> None:
    if config.hidden_act != name:
        where = f"{type(config).__name__}.hidden_act"
        raise ConfigError("activation not implemented", where=where, expected=name, found=config.hidden_act)


def _missing(path: str, name: str) -> Finding:
    return Finding(
        id=MISSING_FIELD,
        where=f"{path} [{name}]",
        problem="the checkpoint's metadata does not say",
        expected=f"a value for {name}",
        found="nothing",
        hint="No value is guessed: re-import the file from its source.",
    )


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
    rope_scaling: RopeScaling | None = field(default=None, converter=_rope_scaling)
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
        _require_activation(self, "silu")

    @property
    def queries_per_kv_head(self) -> int:
        """The GQA ratio: 1 is full attention, num_attention_heads is multi-query."""
        return self.num_attention_heads // self.num_key_value_heads


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
    )

    hidden_act: str = "gelu"
    """Only the exact (erf) GELU."""
    type_vocab_size: int = field(validator=positive_int)
    """Rows of the token-type table."""
    layer_norm_eps: float = field(validator=positive)
    """Added to the variance before the root."""
    pad_token_id: int = field()
    """Padding token; RoBERTa's position ids start at this + 1."""
    hidden_dropout_prob: float = field(default=0.1, validator=fraction)
    """Dropout on embeddings and block outputs, in training."""
    attention_probs_dropout_prob: float = field(default=0.1, validator=fraction)
    """Dropout on attention probabilities, in training."""

    def __attrs_post_init__(self) -> None:
        if self.hidden_size % self.num_attention_heads:
            raise ConfigError(
                "hidden_size is not divisible by num_attention_heads",
                where=type(self).__name__,
                found=f"{self.hidden_size} / {self.num_attention_heads}",
            )
        _require_activation(self, "gelu")
        if not 0 <= self.pad_token_id < self.vocab_size:
            raise ConfigError(
                "pad_token_id outside the vocabulary",
                where=type(self).__name__,
                expected=f"0 to {self.vocab_size - 1}",
                found=self.pad_token_id,
            )

    @property
    def head_dim(self) -> int:
        """Width of one head."""
        return self.hidden_size // self.num_attention_heads

    @property
    def num_key_value_heads(self) -> int:
        """Full attention: one k and v per query head."""
        return self.num_attention_heads

    @property
    def usable_positions(self) -> int:
        """Position ids start at pad_token_id + 1, so that many rows are never used by a real token."""
        return self.max_position_embeddings - self.pad_token_id - 1
