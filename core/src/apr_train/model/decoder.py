"""The pre-norm decoder (Touvron et al. 2023), assembled from a config; names are those of Hugging Face."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor, nn

from apr_train.family.decoder_config import DecoderConfig
from apr_train.model.attention import AttentionBackend, Mask
from apr_train.model.attention.backend import prepare_mask
from apr_train.model.cache import KeyValueCache
from apr_train.model.head import head_logits
from apr_train.model.layers import GroupedQueryAttention, RMSNorm, Rotary, SwiGLU, initialize, rotary_tables


class DecoderBlock(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: DecoderConfig, backend: AttentionBackend, layer: int) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = GroupedQueryAttention(config, backend, layer)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = SwiGLU(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)

    def forward(self, x: Tensor, rotary: Rotary, mask: Mask, cache: KeyValueCache | None = None) -> Tensor:
        """`[batch, length, hidden]` in and out."""
        x = x + self.self_attn(self.input_layernorm(x), rotary, mask, cache)
        out: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return out


class Decoder(nn.Module):
    """A causal language model; satisfies `apr_train.model.protocol.LanguageModel`."""

    def __init__(self, config: DecoderConfig, attention: AttentionBackend) -> None:
        super().__init__()
        self.config = config
        self.attention = attention
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DecoderBlock(config, attention, layer) for layer in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        if not config.tie_word_embeddings:
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    @property
    def blocks(self) -> nn.ModuleList:
        """The decoder blocks."""
        return self.layers

    @property
    def head_weight(self) -> Tensor:
        """`[vocab, hidden]`; the embedding matrix itself when tied, so that there is nothing to keep equal."""
        return self.embed_tokens.weight if self.config.tie_word_embeddings else self.lm_head.weight

    @property
    def head_bias(self) -> None:
        """Decoders' heads have none."""
        return None

    @property
    def head_scale(self) -> float:
        """The factor on the logits that the config says."""
        return self.config.logit_scale / self.config.logits_scaling

    @property
    def head_softcap(self) -> float | None:
        """The cap of the logits that the config says."""
        return self.config.final_logit_softcapping

    def hidden_states(
        self,
        tokens: Tensor,
        *,
        mask: Mask,
        positions: Tensor | None = None,
        cache: KeyValueCache | None = None,
        losses: dict[str, Tensor] | None = None,
    ) -> Tensor:
        """Tokens `[batch, length]` → `[batch, length, hidden]`, normed.

        Args:
            mask: `Causal(offset=cache.length)` with a cache, `Causal()` or `Documents` without.
            positions: `[batch or 1, length]`; counted from 0, or from the cache's length, when not given.
            cache: gets the new tokens' keys and values.
        """
        seen = 0 if cache is None else cache.length
        length = tokens.shape[1]
        if positions is None:
            positions = torch.arange(seen, seen + length, device=tokens.device)[None]
        x: Tensor = self.embed_tokens(tokens)
        rotary = rotary_tables(self.config, positions, x.dtype)
        mask = prepare_mask(self.attention, mask, length, seen + length, tokens.device)
        for block in self.layers:
            x = block(x, rotary, mask, cache)
        out: Tensor = self.norm(x)
        return out

    def head_input(self, hidden: Tensor) -> Tensor:
        """Hidden states go into the head as they are."""
        return hidden

    logits = head_logits

    def forward(
        self, tokens: Tensor, *, mask: Mask, positions: Tensor | None = None, cache: KeyValueCache | None = None
    ) -> Tensor:
        """Tokens → logits `[batch, length, vocab]`."""
        return self.logits(self.hidden_states(tokens, mask=mask, positions=positions, cache=cache))

    def initialize(self, generator: torch.Generator, names: Collection[str] | None = None) -> None:
        """Draw fresh values for all parameters, or for the named ones; see `apr_train.model.layers`."""
        initialize(self, self.config.initializer_range, generator, names)
