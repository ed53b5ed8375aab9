"""What an attention backend is, and what it is asked about before it is chosen. Torch-free at import."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from attrs import field, frozen, validators

from apr_train.family.config import ModelConfig
from apr_train.family.decoder_config import DecoderConfig
from apr_train.family.validate import positive, positive_int

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from apr_train.model.attention.masks import Mask, MaskKind


@frozen(kw_only=True)
class Request:
    """The attention that a run will need."""

    device: str
    """Device type: `cpu` or `cuda`."""
    dtype: str
    """Dtype of q, k and v in the kernel, safetensors' spelling: F64, F32, BF16, F16."""
    query_heads: int = field(validator=positive_int)
    kv_heads: int = field(validator=positive_int)
    head_dim: int = field(validator=positive_int)
    mask: MaskKind
    dropout: float = 0.0
    """Probability of dropping an attention weight."""
    training: bool = True
    """Whether gradients are needed."""
    scale: float | None = field(default=None, validator=validators.optional(positive))
    """Factor on q·k; None: 1/√head_dim."""
    softcap: float | None = field(default=None, validator=validators.optional(positive))
    """c in c·tanh(scores/c), before the mask; None: scores as they are."""
    window: int | None = field(default=None, validator=validators.optional(positive_int))
    """The smallest window of a layer, in keys; None: no layer slides."""

    @classmethod
    def for_config(cls, config: ModelConfig, *, device: str, dtype: str, mask: MaskKind, training: bool = True) -> Request:
        """Ask for what a config's attention needs; dropout counts in training only."""
        dropout = getattr(config, "attention_probs_dropout_prob", 0.0) if training else 0.0
        scores = _scores_of(config) if isinstance(config, DecoderConfig) else {}
        return cls(
            device=device,
            dtype=dtype,
            query_heads=config.num_attention_heads,
            kv_heads=config.num_key_value_heads,
            head_dim=config.head_dim,
            mask=mask,
            dropout=dropout,
            training=training,
            **scores,
        )


def _scores_of(config: DecoderConfig) -> dict[str, Any]:
    """A decoder's scale, soft cap and smallest window."""
    windows = [config.window(layer) for layer in range(config.num_hidden_layers)]
    return {
        "scale": config.attention_scale,
        "softcap": config.attn_logit_softcapping,
        "window": min((window for window in windows if window is not None), default=None),
    }


@runtime_checkable
class AttentionBackend(Protocol):
    """Softmax attention; query head h reads kv head h // (query heads / kv heads)."""

    name: str

    def supports(self, request: Request) -> str | None:
        """None if it can run, else the reason why not, naming the value that it cannot serve.

        Who says that it can run a request in training runs it in the evaluations and samples of that training, too:
        without gradients, and for `Causal` with an offset.
        """
        ...

    def __call__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: Mask,
        *,
        dropout: float = 0.0,
        scale: float | None = None,
        softcap: float | None = None,
    ) -> Tensor:
        """Attend: q `[batch, query length, heads, head dim]`, k and v with kv heads and the key length; as q back.

        Args:
            dropout: probability of dropping an attention weight.
            scale: factor on q·k; 1/√head_dim when None.
            softcap: c in c·tanh(scores/c), after the scale and before the mask (Gemma Team 2024, Gemma 2).
        """
        ...


@runtime_checkable
class PreparingBackend(Protocol):
    """A backend that wants to convert a mask once per batch instead of once per layer. Optional."""

    def prepare(self, mask: Mask, query_length: int, key_length: int, device: torch.device) -> Mask:
        """The same mask in the form that `__call__` is fastest with."""
        ...


def prepare_mask(backend: AttentionBackend, mask: Mask, query_length: int, key_length: int, device: torch.device) -> Mask:
    """Let `backend` convert `mask`, if it wants to; models call this before their first block."""
    if isinstance(backend, PreparingBackend):
        return backend.prepare(mask, query_length, key_length, device)
    return mask
