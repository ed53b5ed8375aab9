"""Self-attention around a backend: projections, norms of q and k, rotation, the key-value cache."""

from __future__ import annotations

from torch import Tensor, nn

from apr_train.errors import ConfigError
from apr_train.family.decoder_config import DecoderConfig
from apr_train.family.encoder_config import EncoderConfig
from apr_train.model.attention import AttentionBackend, Mask
from apr_train.model.cache import LayerCache
from apr_train.model.norms import RMSNorm
from apr_train.model.rope import Rotary, rotate


class GroupedQueryAttention(nn.Module):
    """Attention whose k and v heads each serve several query heads (Ainslie et al. 2023), with rotary positions or none.

    A subclass that changes q and k before the rotation overrides `prepare_heads`; it may add modules of its own in its
    constructor, and is made the attention of a block by `DecoderBlock.attention_class`.
    """

    def __init__(self, config: DecoderConfig, backend: AttentionBackend, layer: int) -> None:
        super().__init__()
        hidden, dim = config.hidden_size, config.head_dim
        queries, pairs = config.num_attention_heads * dim, config.num_key_value_heads * dim
        self.head_dim, self.layer, self.backend = dim, layer, backend
        self.options = _options(config)
        self.q_proj = nn.Linear(hidden, queries, bias=config.attention_bias)
        self.k_proj = nn.Linear(hidden, pairs, bias=config.attention_bias)
        self.v_proj = nn.Linear(hidden, pairs, bias=config.attention_bias)
        self.o_proj = nn.Linear(queries, hidden, bias=config.attention_output_bias)
        self.qk_norm = config.qk_norm
        if self.qk_norm != "none":
            self.q_norm, self.k_norm = (_heads_norm(config, dim if self.qk_norm == "head" else x) for x in (queries, pairs))

    def prepare_heads(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """What happens to q and k between projection and rotation: here, `qk_norm`.

        Both are `[batch, length, heads, head_dim]`, k with its own number of heads, and go back in the same shapes and
        dtypes. Keys are cached afterwards, so that each is prepared once.
        """
        if self.qk_norm == "head":
            return self.q_norm(q), self.k_norm(k)
        if self.qk_norm == "projection":
            q = self.q_norm(q.flatten(2)).view_as(q)
            k = self.k_norm(k.flatten(2)).view_as(k)
        return q, k

    def forward(self, x: Tensor, rotary: Rotary | None, mask: Mask, cache: LayerCache | None = None) -> Tensor:
        """`[batch, length, hidden]` in and out; with a cache, keys and values of earlier tokens are added.

        Args:
            rotary: this layer's tables, or None where it has no rotary positions.
            mask: this layer's mask.
        """
        q, k, v = (proj(x).unflatten(-1, (-1, self.head_dim)) for proj in (self.q_proj, self.k_proj, self.v_proj))
        q, k = self.prepare_heads(q, k)
        if rotary is not None:
            q, k = rotate(q, rotary), rotate(k, rotary)
        if cache is not None:
            k, v = cache.append(self.layer, k, v)
        out: Tensor = self.o_proj(self.backend(q, k, v, mask, **self.options).flatten(2))
        return out


def _options(config: DecoderConfig) -> dict[str, float]:
    """What a backend is told beyond q, k, v and the mask: nothing where it is what every backend does anyway."""
    options = {}
    if config.attention_scale != config.head_dim**-0.5:
        options["scale"] = config.attention_scale
    if config.attn_logit_softcapping is not None:
        options["softcap"] = config.attn_logit_softcapping
    return options


def _heads_norm(config: DecoderConfig, size: int) -> RMSNorm:
    if config.rms_norm_eps is None:
        raise ConfigError("a norm of q and k without its epsilon", where=f"{type(config).__name__} [rms_norm_eps]", found=None)
    return RMSNorm(size, config.rms_norm_eps, offset=config.norm_offset)


class FullAttention(nn.Module):
    """Attention without positions, with biases everywhere and dropout on its weights in training."""

    def __init__(self, config: EncoderConfig, backend: AttentionBackend) -> None:
        super().__init__()
        hidden = config.hidden_size
        self.head_dim, self.backend, self.dropout = config.head_dim, backend, config.attention_probs_dropout_prob
        self.q_proj = nn.Linear(hidden, hidden)
        self.k_proj = nn.Linear(hidden, hidden)
        self.v_proj = nn.Linear(hidden, hidden)
        self.o_proj = nn.Linear(hidden, hidden)

    def forward(self, x: Tensor, mask: Mask) -> Tensor:
        """`[batch, length, hidden]` in and out."""
        q, k, v = (proj(x).unflatten(-1, (-1, self.head_dim)) for proj in (self.q_proj, self.k_proj, self.v_proj))
        out: Tensor = self.o_proj(self.backend(q, k, v, mask, dropout=self.dropout if self.training else 0.0).flatten(2))
        return out
