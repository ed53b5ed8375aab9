"""Mixture of experts (Shazeer et al. 2017): the router, experts as stacked matrices, a shared expert, the balancing loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from apr_train.family.decoder_config import DecoderConfig
from apr_train.model.acceleration import never_compiled
from apr_train.model.mlp import ACTIVATION_FUNCTIONS, MLP

KERNEL_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
"""The dtypes that torch's grouped matrix product takes."""
KERNEL_ALIGNMENT = 16
"""Bytes that a row of either operand must be a multiple of, for the same."""


class RouterStatistics(NamedTuple):
    """What one sparse layer contributes to the load-balancing loss."""

    counts: Tensor
    """How many tokens chose each expert: `[experts]`, in the dtype of `probabilities`, without gradient."""
    probabilities: Tensor
    """Sum over the tokens of the router's probabilities, before the choice: `[experts]`, float32 at least."""


class Losses(dict[str, Tensor]):
    """What `hidden_states` writes its losses into where several processes have rows of a batch each.

    Args:
        over_all: sums over the rows here → sums over the rows of all processes, with the gradient of this one's part.
    """

    def __init__(self, over_all: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self._over_all = over_all
        self.is_of_all = False
        """Whether a loss has been computed from the sums of all processes."""

    def over_all(self, sums: Tensor) -> Tensor:
        """What a loss that is no mean over rows counts; each process asks equally often."""
        self.is_of_all = True
        return self._over_all(sums)


def load_balancing_loss(
    statistics: Sequence[RouterStatistics], chosen: int, losses: Mapping[str, Tensor] | None = None
) -> Tensor:
    """experts · Σ_e (tokens of e / tokens) · (mean probability of e), over the tokens of all layers together: a scalar.

    It is `chosen` when every expert gets equally much, and more otherwise; the gradient goes through the probabilities.
    Fedus et al. 2021, equations 4 to 6, summed over layers as in transformers' `load_balancing_loss_func`.

    Args:
        statistics: of each sparse layer.
        chosen: experts that each token goes to.
        losses: what `hidden_states` was given; `Losses` make it the loss of the tokens of all processes, the same on each.
    """
    counts = torch.stack([layer.counts for layer in statistics]).sum(0)
    probabilities = torch.stack([layer.probabilities for layer in statistics]).sum(0)
    if isinstance(losses, Losses):
        counts, probabilities = losses.over_all(torch.stack([counts, probabilities])).unbind()
    tokens = counts.sum() / chosen
    return counts.numel() * (counts / tokens * (probabilities / tokens)).sum()


class Experts(nn.Module):
    """Gated MLPs that differ in their weights alone, each a slice of three stacked parameters.

    gate_proj and up_proj are `[experts, intermediate, hidden]`, down_proj is `[experts, hidden, intermediate]`.
    """

    def __init__(self, experts: int, hidden: int, intermediate: int, *, activation: str) -> None:
        super().__init__()
        self.activation = ACTIVATION_FUNCTIONS[activation]
        self.gate_proj = nn.Parameter(torch.empty(experts, intermediate, hidden))
        self.up_proj = nn.Parameter(torch.empty(experts, intermediate, hidden))
        self.down_proj = nn.Parameter(torch.empty(experts, hidden, intermediate))

    def forward(self, x: Tensor, counts: Tensor) -> Tensor:
        """Rows `[rows, hidden]` sorted by expert, the first `counts[0]` of them the first expert's; as x back."""
        inner = self.activation(grouped_linear(x, self.gate_proj, counts)) * grouped_linear(x, self.up_proj, counts)
        return grouped_linear(inner, self.down_proj, counts)

    def initial_value(self, leaf: str) -> None:
        """All three are drawn; see `apr_train.model.init`."""
        return

    def extra_repr(self) -> str:
        """Experts and sizes."""
        experts, intermediate, hidden = self.gate_proj.shape
        return f"{experts} experts, hidden={hidden}, intermediate={intermediate}"


class SparseMLP(nn.Module):
    """The weighted sum of each token's chosen experts, and of a shared expert where there is one.

    The router's softmax is over all experts, in float32 at least; the chosen weights are made to add up to one where the
    config says `norm_topk_prob` (Mixtral), or left as they are (Qwen2-MoE).
    """

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        hidden, activation = config.hidden_size, config.hidden_act
        self.chosen, self.normalized = config.num_experts_per_tok, config.norm_topk_prob
        self.gate = nn.Linear(hidden, config.num_experts, bias=False)
        self.experts = Experts(config.num_experts, hidden, config.expert_size, activation=activation)
        self.shared, self.shared_gated = config.shared_expert_intermediate_size > 0, config.shared_expert_gate
        if self.shared:
            self.shared_expert = MLP(hidden, config.shared_expert_intermediate_size, activation=activation)
            if self.shared_gated:
                self.shared_expert_gate = nn.Linear(hidden, 1, bias=False)

    def route(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Choose experts for `[tokens, hidden]`.

        Returns:
            The chosen experts' weights `[tokens, chosen]` in x's dtype (autocast's under autocast), their numbers of the
            same shape, and the probabilities of all `[tokens, experts]` in float32 at least.
        """
        logits: Tensor = self.gate(x)
        probabilities = logits.to(torch.promote_types(logits.dtype, torch.float32)).softmax(-1)
        weights, experts = probabilities.topk(self.chosen, dim=-1)
        if self.normalized:
            weights = weights / weights.sum(-1, keepdim=True)
        return weights.to(logits.dtype), experts, probabilities

    def forward(self, x: Tensor) -> tuple[Tensor, RouterStatistics]:
        """`[batch, length, hidden]` in and out, with what the balancing loss needs."""
        tokens = x.flatten(0, -2)
        weights, experts, probabilities = self.route(tokens)
        order = experts.flatten().argsort(stable=True)
        counts = F.one_hot(experts.flatten(), self.gate.out_features).sum(0)
        rows = self.experts(tokens[order // self.chosen], counts)
        back = torch.empty_like(order).scatter_(0, order, torch.arange(order.numel(), device=order.device))
        out = (rows[back].unflatten(0, weights.shape) * weights[..., None]).sum(1)
        if self.shared:
            out = out + self._share(tokens)
        return out.view_as(x), RouterStatistics(counts.to(probabilities.dtype), probabilities.sum(0))

    def _share(self, tokens: Tensor) -> Tensor:
        """What the shared expert adds: `[tokens, hidden]`."""
        shared: Tensor = self.shared_expert(tokens)
        return torch.sigmoid(self.shared_expert_gate(tokens)) * shared if self.shared_gated else shared


def grouped_linear(x: Tensor, weight: Tensor, counts: Tensor) -> Tensor:
    """x · weight[e]ᵀ for each row of x, e being the group that the row lies in, in the autocast dtype if there is one.

    Args:
        x: `[rows, in]`, the first `counts[0]` rows the first group's, and so on.
        weight: `[groups, out, in]`.
        counts: `[groups]` int64, adding up to the rows.

    Returns:
        `[rows, out]`, by torch's grouped matrix product where `has_kernel` says so, else group by group. That product wants
        a gradient that is dense in memory, which everything but an expanded one (of a bare `.sum()`) is.
    """
    if torch.is_autocast_enabled(x.device.type):  # torch's product does not know of autocast
        dtype = torch.get_autocast_dtype(x.device.type)
        x, weight = x.to(dtype), weight.to(dtype)
    if has_kernel(x, weight):
        return F.grouped_mm(x, weight.transpose(1, 2), offs=counts.cumsum(0).to(torch.int32))
    return grouped_loop(x, weight, counts)


def has_kernel(x: Tensor, weight: Tensor) -> bool:
    """Whether torch's grouped product takes these: the dtype, aligned rows, and on CUDA a device from Ampere on.

    On CUDA torch documents it for bfloat16 alone, and a compiler traces it for bfloat16 alone (torch 2.13). On a CPU it
    takes 0.73 of the loop's time in bfloat16 and as long as that in float32 (16 experts, 4096 rows, 512 to 256, one thread).
    """
    if not hasattr(F, "grouped_mm") or x.dtype not in KERNEL_DTYPES or x.dtype != weight.dtype:
        return False
    if x.dtype != torch.bfloat16 and (x.device.type == "cuda" or torch.compiler.is_compiling()):
        return False
    if x.device.type == "cuda" and torch.cuda.get_device_capability(x.device) < (8, 0):
        return False
    return all(size * x.element_size() % KERNEL_ALIGNMENT == 0 for size in weight.shape[1:])


@never_compiled  # the sizes of the pieces are data
def grouped_loop(x: Tensor, weight: Tensor, counts: Tensor) -> Tensor:
    """The same as `grouped_linear`, one product a group, for any dtype; copies `counts` from the device."""
    pieces = torch.split(x, counts.tolist())
    return torch.cat([F.linear(piece, matrix) for piece, matrix in zip(pieces, weight.unbind(0), strict=True)])
