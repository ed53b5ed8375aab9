"""A model on several processes, sharded by torch's FSDP2: each has a piece of every parameter; a block is gathered to run.

Nothing here asks how many processes there are: a model that is not sharded, and its tensors, go through unchanged.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from apr_train.model.protocol import LanguageModel

REPLICATE, SHARD = "replicate", "shard"
"""Names of the mesh's dimensions."""


def make_mesh(device: str, *, replicas: int, processes: int) -> Any:
    """Processes in `replicas` groups that each have all parameters between them; a group's ranks follow on one another."""
    from torch.distributed.device_mesh import init_device_mesh

    if replicas == 1:
        return init_device_mesh(device, (processes,), mesh_dim_names=(SHARD,))
    return init_device_mesh(device, (replicas, processes // replicas), mesh_dim_names=(REPLICATE, SHARD))


def shard(model: nn.Module, mesh: Any, products: torch.dtype | None = None, *, offload: bool = False) -> None:
    """Keep of each parameter the rows that are this process's: a `DTensor` over the mesh, under the same name.

    Every block is one group of parameters, and all the others, the head among them, are one more. `hidden_states` gathers
    the latter as a `forward` would, and they stay so until the backward pass is over, or `release`: the head, which the
    loss computes behind `hidden_states`, finds its matrix. Gradients are summed over the processes, in float32 at least.

    Args:
        model: satisfies `LanguageModel`.
        mesh: `make_mesh`'s.
        products: the dtype that autocast gives matrix products, if it does. The matrices of blocks are then gathered in it,
            which is what autocast would make of them. It leaves norms and what is added to the residual stream in float32:
            so the model's vectors stay whole in every process, for `whole_gradients` to tell of, and embedding and head are
            gathered as they are.
        offload: keep pieces, with their gradients, in the machine's memory: a block is copied to the device to be gathered.
            The optimizer's state and work, being of the pieces, are there, too.
    """
    from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard
    from torch.distributed.fsdp import register_fsdp_forward_method as register

    widest = max((parameter.dtype for parameter in model.parameters()), key=lambda dtype: dtype.itemsize)
    reduced = torch.promote_types(widest, torch.float32)
    policy = MixedPrecisionPolicy(reduce_dtype=reduced, cast_forward_inputs=False)
    of_blocks = replace(policy, param_dtype=products)
    whole = set() if products is None else {parameter for parameter in model.parameters() if parameter.ndim < 2}
    pinned = mesh.device_type == "cuda"
    how: dict[str, Any] = {"mesh": mesh, "ignored_params": whole}
    how["offload_policy"] = CPUOffloadPolicy(pin_memory=pinned) if offload else OffloadPolicy()
    for block in cast(LanguageModel, model).blocks:
        fully_shard(block, mp_policy=of_blocks, **how)
    fully_shard(model, mp_policy=policy, reshard_after_forward=False, **how)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)  # a loss counts its targets over all processes already
            module.set_force_sum_reduction_for_comms(True)  # gloo has no other reduction that leaves a sum as it is
    register(model, "hidden_states")


def give_memory(model: nn.Module, device: torch.device, *, offload: bool = False) -> None:
    """Memory for a model that has none: on the device, or, of its pieces, off it. The values are whatever is there."""

    def made(tensor: Tensor) -> Tensor:
        return torch.empty_like(tensor, device="cpu" if offload and is_sharded(tensor) else device)

    model._apply(made)  # type: ignore[no-untyped-call]  # nn.Module.to_empty, with a device for each tensor


def computes_on(model: nn.Module) -> torch.device:
    """Where a model's forward pass runs, wherever its parameters lie between two passes."""
    first = next(model.parameters())
    if is_sharded(first) and cast(Any, first).device_mesh.device_type == "cuda":
        return torch.device("cuda", torch.cuda.current_device())
    return first.device


def exchange_gradients(model: nn.Module, now: bool) -> None:
    """Whether the next backward pass sums the gradients over the processes, or only adds to this one's."""
    if _is_sharded_model(model):
        model.set_requires_gradient_sync(now)  # type: ignore[operator]  # FSDPModule's


def over_all(sums: Tensor) -> Tensor:
    """Sums over all processes, from those over the rows here; the gradient is that of this process's part alone."""
    from torch import distributed

    own = sums.detach()
    together = own.clone()
    distributed.all_reduce(together)
    return sums + (together - own)


def whole_gradients(model: nn.Module) -> list[Tensor]:
    """The gradients of parameters that every process has whole beside pieces of others: nobody has summed them yet."""
    if not _is_sharded_model(model):
        return []
    return [p.grad for p in model.parameters() if p.grad is not None and not is_sharded(p)]


def release(model: nn.Module) -> None:
    """Let go of what a forward pass without a backward pass has gathered."""
    if _is_sharded_model(model):
        model.reshard()  # type: ignore[operator]  # FSDPModule's


def is_sharded(tensor: Tensor) -> bool:
    """Whether only a piece of the tensor is here."""
    distributed = sys.modules.get("torch.distributed.tensor")  # nothing is sharded before that is imported
    return distributed is not None and isinstance(tensor, distributed.DTensor)


def local(tensor: Tensor) -> Tensor:
    """The piece that is here: all of a tensor that is not sharded. Shares its memory."""
    return cast(Any, tensor).to_local() if is_sharded(tensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor, in memory of its own if it is sharded; every process of the mesh has to ask at the same time."""
    return cast(Any, tensor).full_tensor() if is_sharded(tensor) else tensor


def piece_of(tensor: Tensor, like: Tensor) -> Tensor:
    """The piece of a whole tensor that is here of `like`, which has the same shape; a view where it can be one."""
    if not is_sharded(like):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    parameter = cast(Any, like)
    placed = distribute_tensor(tensor, parameter.device_mesh, parameter.placements, src_data_rank=None)
    return placed.to_local()


def cut(rows: int, pieces: int) -> list[int]:
    """How many rows each piece of a tensor has: as torch.chunk cuts them, and FSDP2 does; the last ones may have none."""
    most = -(-rows // pieces)
    return [min(most, max(0, rows - place * most)) for place in range(pieces)]


def offset_of(tensor: Tensor) -> int:
    """Where, among all elements of a tensor in their order, the piece that is here begins; 0 of one that is not sharded."""
    if not is_sharded(tensor):
        return 0
    place, pieces = pieces_of(tensor)
    return sum(cut(tensor.shape[0], pieces)[:place]) * (tensor.numel() // max(1, tensor.shape[0]))


def keep_piece(tensor: Tensor, values: Tensor) -> None:
    """Give the piece that is here the values of a whole tensor."""
    local(tensor).copy_(piece_of(values, tensor))


def place(tensor: Tensor, like: Tensor) -> Tensor:
    """A whole tensor on the device of `like`, and sharded as it is."""
    if not is_sharded(like):
        return tensor.to(like.device)
    from torch.distributed.tensor import DTensor

    parameter, own = cast(Any, like), local(like)
    piece = torch.empty(own.shape, dtype=tensor.dtype, device=own.device).copy_(piece_of(tensor, like))
    shape: dict[str, Any] = {"shape": like.shape, "stride": like.stride()}
    return DTensor.from_local(piece, parameter.device_mesh, parameter.placements, run_check=False, **shape)


def pieces_of(tensor: Tensor) -> tuple[int, int]:
    """Which piece of a sharded tensor is here, counted from 0, and how many there are."""
    mesh = cast(Any, tensor).device_mesh
    return int(mesh.get_local_rank(SHARD)), int(mesh.size(mesh.mesh_dim_names.index(SHARD)))


def gather_to(place: int, tensors: Sequence[Tensor]) -> Sequence[Tensor] | None:
    """All of sharded tensors of one shape and dtype, on the process that has piece `place`; None on the others.

    All processes have to ask at the same time.
    """
    from torch import distributed

    own, pieces = pieces_of(tensors[0])
    sent = torch.stack([_padded(tensor) for tensor in tensors])
    parts = [torch.empty_like(sent) for _ in range(pieces)] if own == place else None
    distributed.gather(sent, parts, group=_group_of(tensors[0]), group_dst=place)
    return None if parts is None else torch.cat(parts, dim=1)[:, : tensors[0].shape[0]].unbind()


def scatter_from(place: int, values: Sequence[Tensor] | None, tensors: Sequence[Tensor]) -> None:
    """Give sharded tensors the values that the process with piece `place` has: the way back of `gather_to`."""
    from torch import distributed

    own, pieces = pieces_of(tensors[0])
    parts, got = None, torch.stack([_padded(tensor) for tensor in tensors])
    if own == place and values is not None:
        whole_rows = got.new_zeros((len(tensors), pieces * got.shape[1], *got.shape[2:]))
        whole_rows[:, : tensors[0].shape[0]] = torch.stack(tuple(values))
        parts = [part.contiguous() for part in whole_rows.chunk(pieces, dim=1)]
    distributed.scatter(got, parts, group=_group_of(tensors[0]), group_src=place)
    for tensor, rows in zip(tensors, got, strict=True):
        local(tensor).copy_(rows[: len(local(tensor))])


def _padded(tensor: Tensor) -> Tensor:
    """The piece that is here, with as many rows as the first one has."""
    piece = local(tensor).detach()
    rows = cut(tensor.shape[0], pieces_of(tensor)[1])[0]
    return torch.cat([piece, piece.new_zeros((rows - len(piece), *piece.shape[1:]))])


def _group_of(tensor: Tensor) -> Any:
    """The processes that have a tensor's pieces between them."""
    return cast(Any, tensor).device_mesh.get_group(SHARD)


def _is_sharded_model(model: nn.Module) -> bool:
    distributed = sys.modules.get("torch.distributed.fsdp")
    return distributed is not None and isinstance(model, distributed.FSDPModule)
