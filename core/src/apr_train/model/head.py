"""The one way from hidden states to logits, for training, evaluation, generation and every comparison."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from apr_train.model.protocol import LanguageModel


def head_logits(model: LanguageModel, hidden: Tensor) -> Tensor:
    """The model's logits: cap · tanh(scale · (W · head_input(hidden) + b) / cap).

    W, b, scale and cap are `head_weight`, `head_bias`, `head_scale` and `head_softcap`; without a cap the logits are the
    scaled ones. A model class has it as its method: `logits = head_logits`. `apr_train.model.loss` computes the same in
    pieces, which is why no model has another formula. Source of the cap: Gemma 2 (Riviere et al. 2024), 2.1.

    Args:
        model: gives the head.
        hidden: `[..., hidden]`, of `hidden_states`.

    Returns:
        `[..., vocab]`, in the dtype of the matrix product.
    """
    logits = F.linear(model.head_input(hidden), model.head_weight, model.head_bias)
    if model.head_scale != 1.0:
        logits = logits * model.head_scale
    if model.head_softcap is not None:
        logits = model.head_softcap * (logits / model.head_softcap).tanh()
    return logits
