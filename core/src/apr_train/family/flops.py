"""Floating-point operations of a training step, from a config: what the mathematics needs, whatever computes it. Torch-free.

Counted as PaLM does (Chowdhery et al. 2022, appendix B: 6 N + 12 L H Q T a token), with N split into what its parts are good
for:

- Matrix products only; a product and a sum are two operations. Norms, activations, biases and the optimizer are left out, and
  so is the embedding, which is looked up (Hoffmann et al. 2022, appendix F, count it as a product).
- The backward pass costs twice the forward pass: a product for the gradient of the input, one for that of the weight.
- Attention is counted over all keys that its kernel has before it, the row or the window, without a discount for the causal
  half or for documents that do not see each other.
- The head is counted for the positions that are predicted, and not for the others.
- Of experts, those that a token goes to. Of frozen weights under adapters, no gradient of the weight.
- What is computed again to save memory counts once: this is what a model needs, which is what an MFU measures.
"""

from __future__ import annotations

from attrs import frozen

from apr_train.family.config import ModelConfig
from apr_train.family.decoder_config import DecoderConfig
from apr_train.family.encoder_config import EncoderConfig

_FORWARD, _INPUT_GRADIENT, _WEIGHT_GRADIENT = 2, 2, 2
"""Operations for each number of a matrix that a token is multiplied with."""
_SCORES = 12
"""Operations for each number of a query and each key: two products, q·k and weights·v, forward and twice backward."""


@frozen(kw_only=True)
class TrainingFlops:
    """Operations of a forward and a backward pass."""

    per_token: int
    """In the blocks, for each token that is read."""
    per_target: int
    """In the head, for each token that is predicted."""

    def of_step(self, tokens: int, targets: int) -> int:
        """Those of a step that reads so many tokens and predicts so many of them."""
        return self.per_token * tokens + self.per_target * targets


def training_flops(config: ModelConfig, *, length: int, adapter_parameters: int | None = None) -> TrainingFlops | None:
    """The operations of a training, by the config of its model; None for a config that is neither decoder nor encoder.

    Args:
        config: a family's own module is counted as its config says, whatever it computes.
        length: tokens of a row.
        adapter_parameters: numbers in the adapters of a run that trains these alone; None: all weights are trained. The
            gradients that the first block's input would have are counted, though nobody asks for them.
    """
    counted = _weights(config)
    if counted is None:
        return None
    blocks, head, attention = *counted, _attention(config, length)
    frozen_weights = adapter_parameters is not None
    each = _FORWARD + _INPUT_GRADIENT + (0 if frozen_weights else _WEIGHT_GRADIENT)
    adapters = (_FORWARD + _INPUT_GRADIENT + _WEIGHT_GRADIENT) * (adapter_parameters or 0)
    return TrainingFlops(per_token=each * blocks + adapters + attention, per_target=each * head)


def _weights(config: ModelConfig) -> tuple[int, int] | None:
    """Numbers in the matrices that one token is multiplied with: in the blocks, and in the head."""
    layers = range(config.num_hidden_layers)
    if isinstance(config, DecoderConfig):
        return sum(_decoder_block(config, layer) for layer in layers), config.hidden_size * config.vocab_size
    if isinstance(config, EncoderConfig):
        hidden = config.hidden_size
        block = 4 * hidden * hidden + 2 * hidden * config.intermediate_size
        return len(layers) * block, hidden * (hidden + config.vocab_size)
    return None


def _decoder_block(config: DecoderConfig, layer: int) -> int:
    """q, k, v and o, and the MLP, or the router, the chosen experts and the shared one."""
    hidden = config.hidden_size
    heads = 2 * (config.num_attention_heads + config.num_key_value_heads)  # q and o, k and v
    projections = hidden * config.head_dim * heads
    if not config.is_sparse(layer):
        return projections + (3 if config.gated_mlp else 2) * hidden * config.intermediate_size
    shared = config.shared_expert_intermediate_size
    gate = 1 if shared and config.shared_expert_gate else 0
    experts = config.num_experts_per_tok * config.expert_size + shared
    return projections + hidden * (config.num_experts + gate + 3 * experts)


def _attention(config: ModelConfig, length: int) -> int:
    """The scores and what they weigh, of every layer, for one query."""
    windows = (config.window(layer) if isinstance(config, DecoderConfig) else None for layer in range(config.num_hidden_layers))
    keys = sum(length if window is None else min(window, length) for window in windows)
    return _SCORES * config.num_attention_heads * config.head_dim * keys
