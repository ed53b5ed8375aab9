"""The post-norm encoder with a masked-LM head (BERT: Devlin et al. 2019; RoBERTa: Liu et al. 2019), assembled from a config."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from apr_train.errors import ConfigError
from apr_train.family.encoder_config import EncoderConfig
from apr_train.model.attention import AttentionBackend, Mask
from apr_train.model.attention.backend import prepare_mask
from apr_train.model.attention_layer import FullAttention
from apr_train.model.cache import KeyValueCache
from apr_train.model.head import head_logits
from apr_train.model.init import initialize
from apr_train.model.mlp import MLP


class Embeddings(nn.Module):
    """Words + positions + token types, normed. The padding's word is not learnt as an input, nor is its position, if any."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        hidden, pad = config.hidden_size, config.pad_token_id
        self.pad = pad
        self.positions_after_padding = config.positions_after_padding
        self.word_embeddings = nn.Embedding(config.vocab_size, hidden, padding_idx=pad)
        place = pad if config.positions_after_padding else None
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, hidden, padding_idx=place)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, hidden)
        self.norm = nn.LayerNorm(hidden, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, tokens: Tensor, positions: Tensor | None) -> Tensor:
        """Tokens `[batch, length]` → `[batch, length, hidden]`; every token is of type 0."""
        if positions is None:
            positions = self.default_positions(tokens)
        x = self.word_embeddings(tokens) + self.token_type_embeddings.weight[0] + self.position_embeddings(positions)
        out: Tensor = self.dropout(self.norm(x))
        return out

    def default_positions(self, tokens: Tensor) -> Tensor:
        """Rows of the position table for `[batch, length]`: `position_ids`, or 0, 1, … whatever the tokens are (BERT)."""
        if self.positions_after_padding:
            return position_ids(tokens, self.pad)
        return torch.arange(tokens.shape[1], device=tokens.device)[None]


def position_ids(tokens: Tensor, pad: int) -> Tensor:
    """Number the real tokens from `pad` + 1 on; padding has position `pad` (transformers' RoBERTa)."""
    real = (tokens != pad).long()
    return real.cumsum(dim=1) * real + pad


class EncoderBlock(nn.Module):
    """norm(x + attention(x)), then norm(x + mlp(x)), with dropout before each sum."""

    def __init__(self, config: EncoderConfig, backend: AttentionBackend) -> None:
        super().__init__()
        self.attention = FullAttention(config, backend)
        self.attention_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = MLP(config.hidden_size, config.intermediate_size, activation="gelu", gated=False, bias=True)
        self.mlp_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, x: Tensor, mask: Mask) -> Tensor:
        """`[batch, length, hidden]` in and out."""
        x = self.attention_norm(x + self.dropout(self.attention(x, mask)))
        out: Tensor = self.mlp_norm(x + self.dropout(self.mlp(x)))
        return out


class MaskedHead(nn.Module):
    """dense → exact GELU → norm, then the decoder matrix (the word embeddings when tied) and a bias."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))
        if not config.tie_word_embeddings:
            self.decoder = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        """`[..., hidden]` in and out: what the decoder matrix is applied to."""
        out: Tensor = self.norm(F.gelu(self.dense(hidden)))
        return out


class Encoder(nn.Module):
    """A masked language model; satisfies `apr_train.model.protocol.LanguageModel`."""

    head_scale: float = 1.0
    head_softcap: float | None = None

    def __init__(self, config: EncoderConfig, attention: AttentionBackend) -> None:
        super().__init__()
        self.config = config
        self.attention = attention
        self.embeddings = Embeddings(config)
        self.layers = nn.ModuleList(EncoderBlock(config, attention) for _ in range(config.num_hidden_layers))
        self.lm_head = MaskedHead(config)

    @property
    def blocks(self) -> nn.ModuleList:
        """The encoder blocks."""
        return self.layers

    @property
    def head_weight(self) -> Tensor:
        """`[vocab, hidden]`; the word embeddings themselves when tied."""
        return self.embeddings.word_embeddings.weight if self.config.tie_word_embeddings else self.lm_head.decoder.weight

    @property
    def head_bias(self) -> Tensor:
        """`[vocab]`."""
        return self.lm_head.bias

    def hidden_states(
        self,
        tokens: Tensor,
        *,
        mask: Mask,
        positions: Tensor | None = None,
        cache: KeyValueCache | None = None,
        losses: dict[str, Tensor] | None = None,
    ) -> Tensor:
        """Tokens `[batch, length]` → `[batch, length, hidden]`.

        Args:
            mask: `Bidirectional(keep)`; `keep` is usually `tokens != pad_token_id`.
            positions: `[batch or 1, length]` rows of the position table; `Embeddings.default_positions` when None.
            cache: must be None.
            losses: left as it is; an encoder has no loss of its own.

        Raises:
            ConfigError: for a cache, or for a sequence longer than the position table allows.
        """
        self._check(tokens, cache)
        mask = prepare_mask(self.attention, mask, tokens.shape[1], tokens.shape[1], tokens.device)
        x: Tensor = self.embeddings(tokens, positions)
        for block in self.layers:
            x = block(x, mask)
        return x

    def _check(self, tokens: Tensor, cache: KeyValueCache | None) -> None:
        if cache is not None:
            raise ConfigError("an encoder cannot use a key-value cache", where="generation")
        if tokens.shape[1] > self.config.usable_positions:
            limit = f"at most {self.config.usable_positions} tokens"
            raise ConfigError("sequence longer than the position table", where="tokens", expected=limit, found=tokens.shape[1])

    def head_input(self, hidden: Tensor) -> Tensor:
        """Dense, GELU and norm of the masked-LM head: `[..., hidden]` in and out."""
        out: Tensor = self.lm_head(hidden)
        return out

    logits = head_logits

    def forward(self, tokens: Tensor, *, mask: Mask, positions: Tensor | None = None) -> Tensor:
        """Tokens → logits `[batch, length, vocab]`."""
        return self.logits(self.hidden_states(tokens, mask=mask, positions=positions))

    def initialize(self, generator: torch.Generator, names: Collection[str] | None = None) -> None:
        """Draw fresh values for all parameters, or for the named ones; see `apr_train.model.init`."""
        initialize(self, self.config.initializer_range, generator, names)
