"""The decode step, compiled: one token of one text, for which every weight is read once and memory sets the pace.

torch's own product of one row by a matrix reads the weights at half of what the memory gives (measured: docs/results.md).
The same product written as a sum of products, and compiled, reads them at the memory's speed, with norms, rotation and
activation in the same passes. Sums are added up in another order: logits move by float32's rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import fx, nn

from apr_train.family.rope_scaling import LongRopeScaling
from apr_train.model.acceleration import compiler_fault
from apr_train.model.decoder import Decoder
from apr_train.model.device import Precision

PAYS = 400e9
"""Bytes of weights to be read, by all tokens to come, from which on a compilation is made up for."""
FEWEST_KEYS = 256
"""Buffers of a compiled step are so long, or twice that, and so on: each length is compiled anew."""


def why_not_in_rows(model: nn.Module) -> str | None:
    """Why a model's texts cannot stand in the rows of a `FixedCache`; None: they can."""
    if not isinstance(model, Decoder):
        return f"{type(model).__name__} is not the core's decoder"
    if not getattr(model.attention, "serves_places", False):
        return f"the attention backend {model.attention.name} takes no text at a place of its own"
    if model.config.attn_logit_softcapping is not None:
        return "its attention has a soft cap"
    if isinstance(model.config.rope_scaling, LongRopeScaling):
        return "its rotary positions depend on how long the text is going to be"
    return None


def why_not_compiled(model: nn.Module, precision: Precision, device: torch.device) -> str | None:
    """Why the decode step of a model cannot be compiled; None: it can, which a compilation has shown."""
    if device.type != "cpu":
        return f"decoding is compiled on a CPU alone, and this is {device.type}"
    if precision.autocast is not None:
        return f"--precision {precision.name} converts all weights for every token"
    return why_not_in_rows(model) or compiler_fault(device)


def pays(model: nn.Module, tokens: int) -> bool:
    """Whether so many tokens of one text read so many weights that a compilation, of which nothing is stored yet, is worth it.

    Of float32 weights alone: sums in another order move bfloat16 logits by more than the next token can lie apart.
    """
    weights = {parameter.data_ptr(): parameter for parameter in model.parameters()}.values()
    float32 = all(parameter.dtype == torch.float32 for parameter in weights)
    return float32 and tokens * sum(parameter.nbytes for parameter in weights) >= PAYS


def compile_steps(model: Decoder) -> None:
    """Compile the blocks and the head for steps of one token; under `acceleration.uncompiled` they run as written.

    All blocks have one graph, so that the first one's compilation serves the others.
    """
    for block in model.blocks:
        block.forward = torch.compile(block.forward, backend=_reading_inductor, dynamic=False)
    head = torch.compile(model.logits, backend=_reading_inductor, dynamic=False)
    model.logits = head  # type: ignore[method-assign]  # of this one model, as its blocks' forward


def fixed_length(tokens: int) -> int:
    """How long the buffers of a compiled step are that shall hold so many tokens."""
    return max(FEWEST_KEYS, 1 << (tokens - 1).bit_length())


def _reading_inductor(graph: fx.GraphModule, inputs: Sequence[Any]) -> Any:
    """torch.compile's own backend, with the products of one row spelt as sums."""
    from torch._inductor.compile_fx import compile_fx

    _spell_all(graph.graph)
    graph.recompile()
    return compile_fx(graph, list(inputs))


def _spell_all(graph: fx.Graph) -> None:
    for node in graph.find_nodes(op="call_function", target=torch._C._nn.linear):
        _spell_out(graph, node)


def _spell_out(graph: fx.Graph, node: fx.Node) -> None:
    """x Wᵀ + b of one row x `[…, in]` as Σ x · W, over all rows of W; with more rows the library's product is the faster."""
    x, weight, bias = cast(tuple[fx.Node, fx.Node, fx.Node | None], (*node.args, None)[:3])
    row = x.meta["example_value"]
    if row.numel() != row.shape[-1]:
        return
    with graph.inserting_before(node):
        products = graph.call_function(torch.mul, (graph.call_function(torch.unsqueeze, (x, -2)), weight))
        out = graph.call_function(torch.sum, (products, -1))
        if bias is not None:
            out = graph.call_function(torch.add, (out, bias))
    out.meta = dict(node.meta)
    node.replace_all_uses_with(out)
    graph.erase_node(node)
