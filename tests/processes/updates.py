"""Updates of sharded parameters beside those of whole ones: `torchrun … updates.py`; a difference ends it with status 1.

They are the same bit for bit, but for float32 results of torch's fused AdamW: its vectors and what is left of them at the end
of a tensor round differently.
"""

import sys
from itertools import product

import torch
import torch.distributed as dist
from apr_train.model.sharding import make_mesh, over_all
from apr_train.run.settings import OptimizerSettings
from apr_train.training.optimizer import bfloat16
from apr_train.training.optimizer.make import MOMENTS, _part
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

SHAPES = ((7, 5), (1, 6), (12, 3))
"""Rows that the processes cannot divide evenly, and fewer rows than processes."""


def taken(kind, dtype, update, mesh):
    """Parameters and moments after three steps, whole; `mesh` None: never sharded."""
    draw = torch.Generator().manual_seed(0)

    def placed(tensor):
        if mesh is None:
            return tensor
        return distribute_tensor(tensor, mesh, [*[Replicate()] * (mesh.ndim - 1), Shard(0)])

    parameters = [torch.nn.Parameter(placed(torch.randn(shape, generator=draw).to(dtype))) for shape in SHAPES]
    names = {parameter: f"matrix {number}" for number, parameter in enumerate(parameters)}
    groups = [{"params": parameters, "lr": 1e-3, "weight_decay": 0.1}]
    optimizer = _part(kind, dtype, groups, OptimizerSettings(bf16_update=update), names, seed=5)
    for _ in range(3):
        for parameter, shape in zip(parameters, SHAPES, strict=True):
            parameter.grad = placed(torch.randn(shape, generator=draw).to(dtype))
        optimizer.step()
    moments = [optimizer.state[parameter][key] for parameter in parameters for key in MOMENTS[kind]]
    return [getattr(tensor.detach(), "full_tensor", tensor.detach)() for tensor in (*parameters, *moments)]


def same(one, other, *, exact):
    return torch.equal(one, other) if exact else torch.allclose(one.float(), other.float(), rtol=1e-5, atol=1e-6)


def balances():
    """Whether a loss of the sums of all processes has, in each, the gradient of its own part."""
    rank, size = dist.get_rank(), dist.get_world_size()
    own = torch.tensor([1.0 + rank, 2.0], requires_grad=True)
    sums = over_all(own)
    sums.square().sum().backward()
    expected = torch.tensor([size * (size + 1) / 2, 2.0 * size])
    return torch.equal(sums.detach(), expected) and torch.equal(own.grad, 2 * expected)


def main():
    bfloat16.PIECE = 8  # pieces that end inside of what a process has
    dist.init_process_group("gloo")
    size, wrong = dist.get_world_size(), []
    ways = [(torch.float32, "nearest"), *((torch.bfloat16, update) for update in ("nearest", "stochastic", "master"))]
    for replicas, kind, (dtype, update) in product((1, size), MOMENTS, ways):
        mesh = make_mesh("cpu", replicas=replicas, processes=size)
        one, several = (taken(kind, dtype, update, where) for where in (None, mesh))
        exact = kind == "Muon" or update == "stochastic"
        if not all(same(*pair, exact=exact) for pair in zip(one, several, strict=True)):
            wrong.append(f"{kind}, {dtype}, {update}, {replicas} times")
    if not balances():
        wrong.append("sums over all")
    dist.destroy_process_group()
    sys.exit("\n".join(wrong) or 0)


if __name__ == "__main__":
    main()
