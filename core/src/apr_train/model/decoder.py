"""The decoder, assembled from a config; names of parameters are those of Hugging Face."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from typing import ClassVar, cast

import torch
from torch import Tensor, nn

from apr_train.errors import ConfigError
from apr_train.family.decoder_config import DecoderConfig
from apr_train.family.rope_scaling import LongRopeScaling
from apr_train.model.attention import AttentionBackend, Mask
from apr_train.model.attention.backend import prepare_mask
from apr_train.model.attention.masks import Documents, document_sizes, windowed
from apr_train.model.attention_layer import GroupedQueryAttention
from apr_train.model.cache import FixedCache, KeyValueCache, LayerCache
from apr_train.model.head import head_logits
from apr_train.model.init import initialize
from apr_train.model.mlp import MLP
from apr_train.model.moe import RouterStatistics, SparseMLP, load_balancing_loss
from apr_train.model.norms import make_norm
from apr_train.model.rope import Rotary, rotary_tables

_NormNames = tuple[tuple[str | None, str | None], tuple[str | None, str | None]]
NORMS: dict[str, _NormNames] = {
    "pre": (("input_layernorm", None), ("post_attention_layernorm", None)),
    "post": ((None, "post_attention_layernorm"), (None, "post_feedforward_layernorm")),
    "both": (
        ("input_layernorm", "post_attention_layernorm"),
        ("pre_feedforward_layernorm", "post_feedforward_layernorm"),
    ),
}
"""norm_position → names of the norms before and after attention, and before and after the MLP."""


class DecoderBlock(nn.Module):
    """x + m·attention, then x + m·mlp, with norms before, after, or on both sides of each; or both at once, in parallel.

    What a subclass, or another module that `Decoder` is given as `block`, may rely on: it is made as
    `block(config, backend, layer)` and called as `forward(x, rotary, mask, cache)`.

    - x: `[batch, length, hidden]`, in the dtype of the embedding.
    - rotary: this layer's tables, `apr_train.model.rope.Rotary`, or None where the layer has no rotary positions.
    - mask: this layer's mask, its window already in it, for `backend` alone to read.
    - cache: None in training; else this layer's keys and values go through `cache.append(layer, k, v)`.

    It gives `[batch, length, hidden]`, or that and `RouterStatistics` if its MLP is sparse.
    """

    attention_class: ClassVar[Callable[[DecoderConfig, AttentionBackend, int], nn.Module]] = GroupedQueryAttention
    """Called with config, backend and layer; its module as `GroupedQueryAttention.forward`."""
    mlp_class: ClassVar[Callable[..., nn.Module]] = MLP
    """Of a dense layer; called as `MLP` is."""
    sparse_class: ClassVar[Callable[[DecoderConfig], nn.Module]] = SparseMLP
    """Of a sparse layer; called with the config; its module as `SparseMLP.forward`."""

    def __init__(self, config: DecoderConfig, backend: AttentionBackend, layer: int) -> None:
        super().__init__()
        self.parallel, self.sparse = config.parallel_residual, config.is_sparse(layer)
        self.residual_multiplier = config.residual_multiplier
        self.around_attention, self.around_mlp = NORMS[config.norm_position]
        if self.parallel:
            self.around_mlp = (None, None)
        self._add_norms(self.around_attention, config, 0)
        self.self_attn = type(self).attention_class(config, backend, layer)
        self._add_norms(self.around_attention, config, 1)
        self._add_norms(self.around_mlp, config, 0)
        self.mlp = self._make_mlp(config)
        self._add_norms(self.around_mlp, config, 1)

    def _add_norms(self, names: tuple[str | None, str | None], config: DecoderConfig, side: int) -> None:
        name = names[side]
        if name is not None:
            self.add_module(name, make_norm(config))

    def _make_mlp(self, config: DecoderConfig) -> nn.Module:
        if self.sparse:
            return type(self).sparse_class(config)
        return type(self).mlp_class(
            config.hidden_size,
            config.intermediate_size,
            activation=config.hidden_act,
            gated=config.gated_mlp,
            bias=config.mlp_bias,
        )

    def forward(
        self, x: Tensor, rotary: Rotary | None, mask: Mask, cache: LayerCache | None = None
    ) -> Tensor | tuple[Tensor, RouterStatistics]:
        """See the class."""
        before, after = self.around_attention
        normed = self._norm(before, x)
        attended = self._norm(after, self.self_attn(normed, rotary, mask, cache))
        x = self._add(x, attended)
        before, after = self.around_mlp
        out = self.mlp(normed if self.parallel else self._norm(before, x))
        if self.sparse:
            out, statistics = out
            return self._add(x, self._norm(after, out)), statistics
        return self._add(x, self._norm(after, out))

    def _norm(self, name: str | None, x: Tensor) -> Tensor:
        return x if name is None else cast(Tensor, getattr(self, name)(x))

    def _add(self, x: Tensor, added: Tensor) -> Tensor:
        return x + added if self.residual_multiplier == 1.0 else x + added * self.residual_multiplier


class Decoder(nn.Module):
    """A causal language model; satisfies `apr_train.model.protocol.LanguageModel`.

    Args:
        config: everything that `DecoderConfig` can say is implemented here.
        attention: the backend of every layer.
        block: makes each layer from config, backend and the layer's number; see `DecoderBlock` for what it may rely on.
    """

    logits = head_logits

    def __init__(
        self,
        config: DecoderConfig,
        attention: AttentionBackend,
        block: Callable[[DecoderConfig, AttentionBackend, int], nn.Module] = DecoderBlock,
    ) -> None:
        super().__init__()
        self.config = config
        self.attention = attention
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        if config.learned_positions:
            self.embed_positions = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.layers = nn.ModuleList(block(config, attention, layer) for layer in range(config.num_hidden_layers))
        self.norm = make_norm(config)
        if not config.tie_word_embeddings:
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=config.lm_head_bias)

    @property
    def blocks(self) -> nn.ModuleList:
        """The decoder blocks."""
        return self.layers

    @property
    def head_weight(self) -> Tensor:
        """`[vocab, hidden]`; the embedding matrix itself when tied, so that there is nothing to keep equal."""
        return self.embed_tokens.weight if self.config.tie_word_embeddings else self.lm_head.weight

    @property
    def head_bias(self) -> Tensor | None:
        """`[vocab]` where the config has `lm_head_bias`."""
        return self.lm_head.bias if self.config.lm_head_bias else None

    @property
    def head_scale(self) -> float:
        """Factor on the logits."""
        return self.config.logit_scale / self.config.logits_scaling

    @property
    def head_softcap(self) -> float | None:
        """Soft cap of the scaled logits, or none."""
        return self.config.final_logit_softcapping

    def hidden_states(
        self,
        tokens: Tensor,
        *,
        mask: Mask,
        positions: Tensor | None = None,
        cache: KeyValueCache | FixedCache | None = None,
        losses: dict[str, Tensor] | None = None,
    ) -> Tensor:
        """Tokens `[batch, length]` → `[batch, length, hidden]`, normed.

        Args:
            mask: `Causal(offset=cache.length)` with a cache, `CausalAt(cache.places)` with a `FixedCache`, `Causal()` or
                `Documents` without.
            positions: `[batch or 1, length]`; counted from 0, or from the cache's length, when not given.
            cache: gets the new tokens' keys and values. LongRoPE takes the frequencies for `cache.max_length` from the
                first token on, so that cached keys fit later queries; without a cache, those for the largest position, or,
                of documents with positions of their own, for each document's length.
            losses: gets `aux_loss`, the unweighted load-balancing loss of a model with sparse layers.

        Raises:
            ConfigError: for a position that a table of learned positions does not have.
        """
        longest = self._longest(mask, positions, cache)
        if positions is None:
            seen = 0 if cache is None else cache.length
            positions = torch.arange(seen, seen + tokens.shape[1], device=tokens.device)[None]
        keys = tokens.shape[1] if cache is None else cache.keys(tokens.shape[1])
        x = self._embed(tokens, positions)
        rotary = self._rotary(positions, x.dtype, longest)
        masks = self._masks(mask, tokens.shape[1], keys, tokens.device)
        statistics: list[RouterStatistics] = []
        for layer, block in enumerate(self.layers):
            known = None if cache is None else cache.of(layer)
            out = block(x, rotary[self._rope_kind(layer)], masks[self.config.window(layer)], known)
            if isinstance(out, tuple):
                statistics.append(out[1])
            x = out[0] if isinstance(out, tuple) else out
        if losses is not None and statistics:
            losses["aux_loss"] = load_balancing_loss(statistics, self.config.num_experts_per_tok, losses)
        normed: Tensor = self.norm(x)
        return normed

    def _embed(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """Tokens `[batch, length]` → `[batch, length, hidden]`, scaled, with learned positions added."""
        x: Tensor = self.embed_tokens(tokens)
        if self.config.scale_embedding:
            # transformers' Gemma rounds the factor to the matrix's dtype: 55.5 in bfloat16 for a width of 3072
            x = x * torch.tensor(math.sqrt(self.config.hidden_size), dtype=x.dtype, device=x.device)
        if self.config.embedding_multiplier != 1.0:
            x = x * self.config.embedding_multiplier
        if self.config.learned_positions:
            self._check(positions)
            x = x + self.embed_positions(positions)
        return x

    def _check(self, positions: Tensor) -> None:
        limit, found = self.config.max_position_embeddings, int(positions.max()) + 1
        if found > limit:
            expected = f"at most {limit} tokens"
            raise ConfigError("sequence longer than the position table", where="tokens", expected=expected, found=found)

    def _rope_kind(self, layer: int) -> str | None:
        """Which tables a layer's heads are rotated by: those of rope_theta, those of the local base, or none."""
        if not self.config.has_rope(layer):
            return None
        sliding = self.config.layer_type(layer) == "sliding_attention"
        return "local" if sliding and self.config.rope_local_base_freq is not None else "global"

    def _longest(self, mask: Mask, positions: Tensor | None, cache: KeyValueCache | FixedCache | None) -> int | Tensor | None:
        """How long the sequences are that tokens belong to, where LongRoPE asks and positions alone do not tell."""
        if not isinstance(self.config.rope_scaling, LongRopeScaling):
            return None
        if cache is not None:
            return cache.max_length
        return document_sizes(mask.ids) if positions is not None and isinstance(mask, Documents) else None

    def _rotary(self, positions: Tensor, dtype: torch.dtype, longest: int | Tensor | None) -> dict[str | None, Rotary | None]:
        """The tables of every kind that some layer wants, made once for all of them."""
        tables: dict[str | None, Rotary | None] = {None: None}
        for kind in {self._rope_kind(layer) for layer in range(len(self.layers))} - {None}:
            tables[kind] = rotary_tables(self.config, positions, dtype, local=kind == "local", longest=longest)
        return tables

    def _masks(self, mask: Mask, queries: int, keys: int, device: torch.device) -> dict[int | None, Mask]:
        """The mask of every window that some layer has, prepared once for all of them."""
        windows = {self.config.window(layer) for layer in range(len(self.layers))}
        return {window: prepare_mask(self.attention, windowed(mask, window), queries, keys, device) for window in windows}

    def head_input(self, hidden: Tensor) -> Tensor:
        """Hidden states go into the head as they are."""
        return hidden

    def forward(
        self, tokens: Tensor, *, mask: Mask, positions: Tensor | None = None, cache: KeyValueCache | None = None
    ) -> Tensor:
        """Tokens → logits `[batch, length, vocab]`."""
        return self.logits(self.hidden_states(tokens, mask=mask, positions=positions, cache=cache))

    def initialize(self, generator: torch.Generator, names: Collection[str] | None = None) -> None:
        """Draw fresh values for all parameters, or for the named ones; see `apr_train.model.init`."""
        initialize(self, self.config.initializer_range, generator, names)
