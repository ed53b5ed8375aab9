"""What a step of one process holds, activations included: taken in fake tensors where it may be more than there is.

Torch's fake tensors import its compiler, a second or two. So a step is taken only where a bound on the activations, which is
generous and costs nothing, does not rule out that the memory is too little; and of a few blocks, which tell of all.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from apr_train.data.batch import Batch
from apr_train.data.objectives import Objective
from apr_train.family.config import ModelConfig
from apr_train.family.name_map import NameMap
from apr_train.family.plugin import Family
from apr_train.model.attention.masks import MaskKind

if TYPE_CHECKING:
    from torch import nn

    from apr_train.model.footprint import Held, Ledger

_log = logging.getLogger(__name__)

_BYTES_A_NUMBER = 12
"""Of what goes into and comes out of each matrix: three float32 copies, nearly twice what the decoders here keep."""
_BYTES_A_SCORE = 32
"""Of two positions of a row, in each head of each block: eight float32 copies, masks and dropout's among them."""
_FUSED = ("sdpa", "xformers")
"""Attention backends that keep no scores."""


def most_activations(
    name_map: NameMap, config: ModelConfig, *, tokens: int, length: int, attention: str | None, mask: MaskKind
) -> int | None:
    """More bytes than activations and logits can have; None where that cannot be said.

    Args:
        name_map: of the model.
        config: of the model.
        tokens: of a pass.
        length: tokens of a row.
        attention: the backend, its name first.
        mask: its kind.
    """
    heads: int | None = getattr(config, "num_attention_heads", None)
    blocks: int | None = getattr(config, "num_hidden_layers", None)
    shapes = list(name_map.parameters.values())
    chosen = getattr(config, "num_experts_per_tok", None) if any(len(shape) > 2 for shape in shapes) else 1
    if attention is None or heads is None or blocks is None or chosen is None:
        return None
    dropout: float = getattr(config, "attention_probs_dropout_prob", 0.0)
    fused = attention.startswith(_FUSED) and mask != "documents" and dropout == 0
    scores = 0 if fused else _BYTES_A_SCORE * heads * blocks * tokens * length
    numbers = sum(_in_and_out(shape, config.vocab_size, chosen) for shape in shapes)
    whole = sum(map(math.prod, shapes))
    head = 3 * 4 * config.vocab_size * config.hidden_size  # its matrix in the type of the products, and gradients in float32
    return _BYTES_A_NUMBER * numbers * tokens + scores + 2 * whole + head


def _in_and_out(shape: Sequence[int], vocabulary: int, chosen: int) -> int:
    """Numbers that a token has before and behind a matrix; of stacked ones, of as many as it is sent through.

    The router's own are counted by the stack, of which it has a number for each.
    """
    if len(shape) > 2:
        return chosen * (sum(shape[1:]) + shape[0])
    return sum(shape) - (vocabulary if vocabulary in shape else 0)


def step_memory(
    family: Family,
    config: ModelConfig,
    objective: Objective,
    *,
    rows: int,
    length: int,
    precision: str,
    attention: str | None,
    mask: MaskKind,
    recompute: bool,
    keep_products: bool,
    chosen: float,
    frozen: frozenset[str] = frozenset(),
) -> dict[str, Held] | None:
    """Phase of a pass → bytes by kind; the optimizer's state is left out. None for a model whose step depends on values.

    Args:
        rows: of the pass.
        length: tokens of a row.
        precision: by name.
        attention: a backend that is forced.
        mask: the kind of the batches' masks.
        recompute: whether blocks are computed again on the way back.
        keep_products: whether that leaves their matrix products out.
        chosen: share of the positions that an objective which hides some predicts.
        frozen: parameters that are not trained.
    """
    from apr_train.model.build import recompute_activations
    from apr_train.model.footprint import MEASURED, equal_blocks, extrapolated

    def model() -> nn.Module:
        made = _model(family, config, precision=precision, attention=attention, mask=mask, frozen=frozen)
        if recompute:
            recompute_activations(made, keep_products=keep_products)  # type: ignore[arg-type]  # build_model has checked it
        return made

    def phases(blocks: int | None) -> dict[str, Held]:
        return _pass(model(), objective, rows=rows, length=length, precision=precision, mask=mask, chosen=chosen, blocks=blocks)

    try:
        whole: Any = model()
        if len(whole.blocks) <= MEASURED[1] or not equal_blocks(whole):
            return phases(None)
        few, more = (phases(count) for count in MEASURED)
        return extrapolated(few, more, len(whole.blocks))
    except RuntimeError as error:  # torch's refusals of what depends on values are of that type
        _log.debug("no step in fake tensors", exc_info=error)
        return None


def _model(
    family: Family,
    config: ModelConfig,
    *,
    precision: str,
    attention: str | None,
    mask: MaskKind,
    frozen: frozenset[str],
) -> nn.Module:
    from apr_train.model.attention import Request, choose_backend
    from apr_train.model.build import build_model
    from apr_train.model.device import PRECISIONS

    arithmetic = PRECISIONS[precision]
    request = Request.for_config(config, device="cpu", dtype=arithmetic.kernel_dtype, mask=mask)
    choice = choose_backend(family.attention_impl(config), request, attention)
    model = build_model(family.build_model, config, choice.backend).to(arithmetic.weights)
    for name in frozen:
        model.get_parameter(name).requires_grad_(False)
    model.train()
    return model


def _pass(
    model: Any,
    objective: Objective,
    *,
    rows: int,
    length: int,
    precision: str,
    mask: MaskKind,
    chosen: float,
    blocks: int | None,
) -> dict[str, Held]:
    """One pass forward and back, as `training.step` makes it."""
    from apr_train.model.device import PRECISIONS
    from apr_train.model.footprint import Ledger, at_the_head, watch_blocks, without_values
    from apr_train.model.loss import head_loss

    if blocks is not None:
        del model.blocks[blocks:]
    ledger = Ledger(chosen=chosen)
    watch_blocks(model, ledger)
    with without_values(model, ledger):
        ledger.enter("forward", "activations")
        batch = empty_batch(rows, length, mask)
        losses: dict[str, Any] = {}
        with PRECISIONS[precision].context(batch.tokens.device):
            hidden, wanted = objective.predicted(model, batch, losses)
            at_the_head(hidden, ledger)
            loss = head_loss(model, hidden, wanted)
        for auxiliary in losses.values():
            loss = loss + auxiliary
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        label_model(model, ledger)
    return ledger.peaks()


def label_model(model: nn.Module, ledger: Ledger) -> None:
    """Say which tensors are weights and gradients."""
    parameters = list(model.parameters())
    ledger.label([*parameters, *model.buffers()], "weights")
    ledger.label([parameter.grad for parameter in parameters if parameter.grad is not None], "gradients")


def empty_batch(rows: int, length: int, mask: MaskKind) -> Batch:
    """Rows without values, of one document each."""
    import torch

    tokens = torch.empty((rows, length), dtype=torch.int64)
    more: dict[str, Any] = {}
    if mask == "documents":
        more = {"document_ids": torch.empty((rows, length), dtype=torch.int32), "document_lengths": ((length,),) * rows}
    return Batch(tokens=tokens, targets=torch.empty_like(tokens), target_count=tokens.numel(), **more)
