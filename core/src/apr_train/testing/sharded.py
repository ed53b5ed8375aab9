"""A family's model as several processes have it: sharded by torch's FSDP2, it must compute what it does whole.

One process with a gloo group of its own: what breaks a model that is sharded (a parameter used where it is not gathered, a
block that is called past its hooks) breaks it with one piece as with many. That many processes compute the same as one is the
core's matter, and tested there.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from apr_train.model.sharding import exchange_gradients, make_mesh, shard, whole
from apr_train.testing.behaviour import training_loss
from apr_train.testing.compare import fail_on, relative_errors
from apr_train.testing.report import NotCheckedError
from apr_train.testing.subject import Subject

SAME = {None: 1e-6, torch.bfloat16: 2e-2}
"""Dtype of matrix products under autocast → largest relative error of loss and gradients."""


def check_sharding(subject: Subject) -> str:
    """A sharded model has the loss and the gradients of the whole one, over two passes of a step, in float32 and bfloat16."""
    told, faults = [], []
    with _process_group():
        for products, most in SAME.items():
            ours, theirs = (_step(subject, products, sharded=sharded) for sharded in (True, False))
            lost = sorted(theirs.keys() - ours.keys())
            faults += [f"sharded, {name} has no gradient" for name in lost]
            errors = relative_errors({name: ours[name] for name in ours.keys() & theirs.keys()}, theirs)
            size = max(float(value.norm()) for value in theirs.values())
            small = {name for name, value in theirs.items() if float(value.norm()) < most * size}
            how = "sharded" if products is None else f"sharded, gathered in {str(products).removeprefix('torch.')}"
            faults += [
                f"{how}, {name if name == 'loss' else f'the gradient of {name}'} differs by {error:.2g}, more than {most:g}"
                for name, error in errors.items()
                if error > most and name not in small
            ]
            told.append(f"{max(error for name, error in errors.items() if name not in small):.1g}")
    fail_on(faults, where="")
    return f"loss and gradients {' and, in bfloat16, '.join(told)}"


def _step(subject: Subject, products: torch.dtype | None, *, sharded: bool) -> dict[str, Tensor]:
    """Loss and gradients by name, in training mode; the gradients of two passes are exchanged with the second one."""
    model = copy.deepcopy(subject.model).float().train()
    if sharded:
        shard(model, make_mesh("cpu", replicas=1, processes=1), products)
    total = torch.zeros(())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for last in (False, True):
            exchange_gradients(model, now=last)
            with torch.autocast("cpu", dtype=products, enabled=products is not None):
                loss = training_loss(model, subject.tokens(seed=int(last)), subject.mask(), lifted=False)
            loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            total += loss.detach()
    return {"loss": total, **_gradients(model)}


def _gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: whole(p.grad).detach() for name, p in model.named_parameters() if p.grad is not None}


@contextmanager
def _process_group() -> Iterator[None]:
    """A process group of this process alone.

    Raises:
        NotCheckedError: where torch has no gloo, gloo finds no network device, or a group is open already.
    """
    dist: Any = torch.distributed
    if not (dist.is_available() and dist.is_gloo_available()):
        raise NotCheckedError("this build of torch has no gloo, which processes on CPUs speak through")
    if dist.is_initialized():
        raise NotCheckedError("this process belongs to a process group already")
    try:
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    except RuntimeError as error:
        raise NotCheckedError(f"gloo does not start here: {str(error).partition(chr(10))[0]}") from error
    try:
        yield
    finally:
        dist.destroy_process_group()
