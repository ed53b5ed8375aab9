"""Self-attention: projections around a backend; the backends themselves are in `apr_train.model.attention`."""

from __future__ import annotations

from torch import Tensor, nn

from apr_train.family.decoder_config import DecoderConfig
from apr_train.family.encoder_config import EncoderConfig
from apr_train.model.attention import AttentionBackend, Mask
from apr_train.model.cache import KeyValueCache
from apr_train.model.rope import Rotary, rotate


class GroupedQueryAttention(nn.Module):
    """Rotary attention whose k and v heads each serve several query heads (Ainslie et al. 2023)."""

    def __init__(self, config: DecoderConfig, backend: AttentionBackend, layer: int) -> None:
        super().__init__()
        hidden, dim = config.hidden_size, config.head_dim
        queries, pairs = config.num_attention_heads * dim, config.num_key_value_heads * dim
        self.head_dim, self.layer, self.backend = dim, layer, backend
        self.q_proj = nn.Linear(hidden, queries, bias=config.attention_bias)
        self.k_proj = nn.Linear(hidden, pairs, bias=config.attention_bias)
        self.v_proj = nn.Linear(hidden, pairs, bias=config.attention_bias)
        self.o_proj = nn.Linear(queries, hidden, bias=config.attention_output_bias)

    def forward(self, x: Tensor, rotary: Rotary, mask: Mask, cache: KeyValueCache | None = None) -> Tensor:
        """`[batch, length, hidden]` in and out; with a cache, keys and values of earlier tokens are added."""
        q = rotate(self.q_proj(x).unflatten(-1, (-1, self.head_dim)), rotary)
        k = rotate(self.k_proj(x).unflatten(-1, (-1, self.head_dim)), rotary)
        v = self.v_proj(x).unflatten(-1, (-1, self.head_dim))
        if cache is not None:
            k, v = cache.append(self.layer, k, v)
        out: Tensor = self.o_proj(self.backend(q, k, v, mask).flatten(2))
        return out


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
