"""What a model starts from: `initialize` gives neutral norms, drawn matrices, the same numbers for the same seed."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from apr_train.family.config import ModelConfig
from apr_train.family.plugin import Family
from apr_train.model.init import HasStartValues
from apr_train.testing.behaviour import training_loss
from apr_train.testing.compare import fail_on
from apr_train.testing.models import meta_model
from apr_train.testing.subject import Subject

SPREAD = 5.0
"""Standard errors by which a measured mean or deviation of drawn numbers may be off."""
COARSE = 0.05
"""Relative error of a deviation that is no fault, however many numbers there are."""


def started(family: Family, config: ModelConfig, seed: int) -> Any:
    """The family's model with the values that a run without a checkpoint starts from."""
    model: Any = meta_model(family, config).to_empty(device="cpu")
    for parameter in model.parameters():
        parameter.data.fill_(float("nan"))
    model.initialize(torch.Generator().manual_seed(seed))
    return model


def check_start(subject: Subject) -> str:
    """Everything is filled; norms are neutral, matrices drawn from N(0, initializer_range²), biases zero.

    A module's own `initial_value` may say otherwise; a matrix that starts at zero by it must get a gradient all the same.
    """
    model = started(subject.family, subject.config, 0)
    faults = [f"{name} is left unfilled" for name, item in model.named_parameters() if not bool(item.isfinite().all())]
    fail_on(faults, where="")
    norms, matrices, declared = dict(_norms(model)), 0, []
    faults += [f"{name} is no neutral norm: its output has {size:.3g} times the usual size" for name, size in norms.items()
               if not 0.99 < size < 1.01]  # fmt: skip
    for name, parameter in model.named_parameters():
        owner, leaf = model.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2]
        constant = owner.initial_value(leaf) if isinstance(owner, HasStartValues) else None
        if parameter.dim() > 1 and constant == 0.0 and not bool(parameter.any()):
            declared.append(name)
        elif parameter.dim() > 1:
            matrices += 1
            padding = getattr(owner, "padding_idx", None)
            if padding is not None and bool(parameter[padding].any()):
                faults.append(f"{name}: the row of the padding, {padding}, does not start at zero")
            faults += _not_drawn(name, _learnt_rows(owner, parameter), subject.config.initializer_range)
        elif leaf == "bias" and not isinstance(owner, HasStartValues) and bool(parameter.any()):
            faults.append(f"{name} does not start at zero")
    faults += _dead(subject, model, declared)
    faults += _repeated(model)
    fail_on(faults, where="")
    zero = f", {len(declared)} declared to start at zero" if declared else ""
    return f"{len(norms)} norms neutral, {matrices} matrices drawn{zero}"


def _norms(model: nn.Module) -> Iterator[tuple[str, float]]:
    """Every module that norms its input, with the root mean square of what it makes of random numbers."""
    source = torch.Generator().manual_seed(0)
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if not isinstance(weight, Tensor) or weight.dim() != 1 or any(True for _ in module.children()):
            continue
        x = 3 * torch.randn(64, weight.shape[0], generator=source)
        try:
            with torch.no_grad():
                out, larger = module(x), module(7 * x)
        except (RuntimeError, TypeError):  # it is called in another way: no norm over the last dimension
            continue
        if isinstance(out, Tensor) and out.shape == x.shape and torch.allclose(out, larger, rtol=1e-2, atol=1e-3):
            yield name, float(out.pow(2).mean().sqrt())


def _learnt_rows(owner: nn.Module, parameter: Tensor) -> Tensor:
    """The parameter without the row of an embedding's padding, which starts at zero."""
    if not isinstance(owner, nn.Embedding) or owner.padding_idx is None:
        return parameter.detach()
    rows = [row for row in range(parameter.shape[0]) if row != owner.padding_idx]
    return parameter.detach()[rows]


def _not_drawn(name: str, matrix: Tensor, std: float) -> Iterator[str]:
    """What is wrong with numbers that should be drawn from N(0, std²)."""
    count = matrix.numel()
    if count < 2:
        return
    found, mean = float(matrix.std()), float(matrix.mean())
    if found == 0:
        yield f"{name} is constant ({mean:g}), and no initial_value says so"
        return
    if abs(found / std - 1) > max(COARSE, SPREAD / math.sqrt(2 * count)):
        yield f"{name} is drawn with a deviation of {found:.3g}, expected {std:.3g} (initializer_range)"
    if abs(mean) > SPREAD * max(found, std) / math.sqrt(count):
        yield f"{name} is drawn around {mean:.3g}, expected 0"
    rows = matrix.flatten(1) if matrix.shape[0] > 1 else matrix.reshape(1, -1)
    if rows.shape[1] > 3 and len(rows) > 1 and bool((rows[1:] == rows[:1]).all()):
        yield f"{name} has the same numbers in every row"


def _dead(subject: Subject, model: Any, names: list[str]) -> list[str]:
    """Of the matrices that start at zero, those that would stay there."""
    if not names:
        return []
    named = dict(model.double().named_parameters())
    wanted = [named[name] for name in names]
    loss = training_loss(model.eval(), subject.tokens(), subject.mask())
    found = torch.autograd.grad(loss, wanted, allow_unused=True)
    return [
        f"{name} starts at zero and has a gradient of zero: it never learns"
        for name, grad in zip(names, found, strict=True)
        if grad is None or not bool(grad.any())
    ]


def _repeated(model: nn.Module) -> Iterator[str]:
    """Matrices that hold another one's numbers."""
    seen: dict[bytes, str] = {}
    for name, parameter in model.named_parameters():
        if parameter.dim() < 2 or not bool(parameter.any()) or float(parameter.detach().std()) == 0:
            continue
        numbers = parameter.detach().flatten()[:64].numpy().tobytes()
        if numbers in seen:
            yield f"{name} starts with the numbers of {seen[numbers]}"
        seen.setdefault(numbers, name)


def check_seed(subject: Subject) -> str:
    """The same seed gives the same numbers, another one others; and a list of names fills those parameters alone."""
    first, again, other = (dict(started(subject.family, subject.config, seed).named_parameters()) for seed in (0, 0, 1))
    faults = [f"{name} differs for the same seed" for name in first if not torch.equal(first[name], again[name])]
    drawn = [name for name, value in first.items() if value.dim() > 1 and bool(value.any())]
    faults += [f"{name} is the same for another seed" for name in drawn if torch.equal(first[name], other[name])]
    model: Any = meta_model(subject.family, subject.config).to_empty(device="cpu")
    for parameter in model.parameters():
        parameter.data.fill_(7.0)
    chosen = drawn[-1:] or list(first)[-1:]
    model.initialize(torch.Generator().manual_seed(0), chosen)
    for name, parameter in model.named_parameters():
        if (name not in chosen) and not bool((parameter == 7.0).all()):
            faults.append(f"{name} is filled where {chosen[0]} alone was asked for")
        if name in chosen and bool((parameter == 7.0).all()):
            faults.append(f"{name} is left as it was where it was asked for")
    fail_on(faults, where="")
    return f"{len(drawn)} matrices"
