"""A family's model against another implementation with the same weights: logits, gradients, the cache, documents, files."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal

import attrs
import torch
from attrs import evolve, frozen
from torch import Tensor, nn
from torch.nn import functional as F

from apr_train.checkpoint.companions import CONFIG, config_rest
from apr_train.checkpoint.header import Header, TensorInfo
from apr_train.checkpoint.huggingface import header_from_hf
from apr_train.family.card import Layout
from apr_train.family.config import ModelConfig
from apr_train.family.name_map import NameMap, to_parameters
from apr_train.family.plugin import Family
from apr_train.family.rope_scaling import LongRopeScaling
from apr_train.model.attention import Documents, Mask
from apr_train.testing.compare import (
    FLOAT32,
    FLOAT64,
    ConformanceError,
    check_agreement,
    fail_on,
    relative_errors,
    tolerance_of,
)
from apr_train.testing.files import check_files
from apr_train.testing.float64 import compute_in_float64, everything_in_float64, is_lifted
from apr_train.testing.models import cached_logits, model_from_tensors, our_logits

Precision = Literal["float64", "weights"]
DECODED = 8
"""Tokens at the end of a row that are decoded one by one."""
ROUNDING = 3.0
"""How much further than the reference ours may be from float64, both computed in bfloat16 or float16."""


@frozen
class Agreement:
    """The largest relative error of each comparison, all within the tolerance; None: not compared."""

    logits: float
    gradients: float
    prefill: float | None = None
    """Our cache, filled in pieces, against the reference's whole row."""
    decode: float | None = None
    """Our cache, the last tokens one by one, against the reference's whole row."""
    documents: float | None = None
    """Documents packed into a row here, against the reference run on each alone."""
    files: float | None = None
    """Our model from the reference's own files, and from ours made of them, against the reference."""
    rounding: float | None = None
    """How far the reference itself is from float64, where both are held against that: ours may be three times as far."""
    precision: Precision = "float64"
    tolerance: float = FLOAT64

    def __str__(self) -> str:
        seen = {name: value for name, value in attrs.asdict(self).items() if name not in ("precision", "tolerance")}
        parts = [f"{name} {'not compared' if value is None else f'{value:.1g}'}" for name, value in seen.items()]
        return f"{', '.join(parts)} (in {self.precision}, at most {self.tolerance:g})"


def compare_models(
    family: Family,
    config: ModelConfig | None,
    reference: nn.Module,
    tokens: Tensor,
    *,
    keep: Tensor | None = None,
    layout: Layout | None = None,
    precision: Precision = "float64",
    tolerance: float | None = None,
    attention: str = "eager",
    vanishing: tuple[str, ...] = (),
    files: bool = False,
    rounding: bool | None = None,
) -> Agreement:
    """Give the family's model the reference's weights, run both, and compare.

    Logits and the gradient of every parameter always; in float64 also a decoder's cache, filled in pieces and token by token,
    and documents packed into a row. float32 hides an epsilon of 1e-5 for 1e-6, float64 does not.

    Args:
        config: None: read from the reference's config, as it would be from its config.json.
        reference: in evaluation mode; called as `reference(input_ids=…, attention_mask=…).logits`, its state dict in
            `layout`'s names. Any attention of its own will do.
        tokens: `[batch, length]` int64.
        keep: `[batch, length]` bool, True = real token; logits elsewhere are not compared, and neither are cache and documents.
        precision: `float64` computes all of both sides in it (see `compute_in_float64`); `weights` leaves the reference as it
            is, and ours in the dtype of its weights.
        tolerance: largest `‖ours − theirs‖ / ‖theirs‖` of one tensor; by default `tolerance_of` the weights. In bfloat16 and
            float16 rounding depends on the model, so that without a tolerance both are held against the reference in float64:
            ours may be off by `tolerance_of`, or by three times what the reference itself is.
        rounding: whether both are held against the reference in float64, as said under `tolerance`; None: in bfloat16 and
            float16 only.
        attention: our backend.
        vanishing: endings of parameter names whose gradient is zero by mathematics, so that only rounding is left of it;
            it must be as small on both sides as rounding is.
        files: save the reference, and compare what its files give here, too: config, names and expert stacks; see
            `check_files`.

    Raises:
        ConformanceError: naming every tensor that differs more, or that one side does not have; a reference with other
            weights than the family's; one that gives no logits.
        AprTrainError: what a user would be told about the files.
    """
    config = config or reference_config(family, reference)
    layout = layout or layout_of(reference)
    there = _in_float64(reference) if precision == "float64" else reference
    state = {name: tensor for name, tensor in there.state_dict().items() if tensor.is_floating_point()}
    where = f"{family.name} against {type(reference).__name__}"
    ours = _filled(family, config, state, layout, attention, where)
    limit = tolerance_of(ours.parameters()) if tolerance is None else tolerance
    own = _our_results(family, ours, tokens, keep, precision)
    name_map = family.map_tensor_names(config, layout)
    theirs = _their_results(there, name_map, tokens, keep)
    judged_by_rounding = tolerance is None and limit > FLOAT32 if rounding is None else rounding
    truth = _their_results(_in_float64(reference), name_map, tokens, keep) if judged_by_rounding else None
    found: dict[str, float] = _judge(own, theirs, truth, limit, vanishing, where)
    if precision == "float64" and keep is None and family.info.kind == "decoder":
        found |= _decoder(ours, there, tokens, theirs.logits, limit, where)
    if files:
        with tempfile.TemporaryDirectory() as folder:
            found["files"] = check_files(family, reference, tokens, Path(folder))
    return Agreement(precision=precision, tolerance=limit, **found)


@frozen(eq=False)
class _Results:
    """What one model gives for the tokens."""

    logits: Tensor
    gradients: dict[str, Tensor]
    """By our names of the parameters."""


def _our_results(family: Family, model: nn.Module, tokens: Tensor, keep: Tensor | None, precision: Precision) -> _Results:
    with everything_in_float64() if precision == "float64" else nullcontext():
        logits = our_logits(family, model, tokens, keep)
    return _Results(_real(logits, keep), _gradients(model, logits, tokens, keep))


def _their_results(reference: nn.Module, name_map: NameMap, tokens: Tensor, keep: Tensor | None) -> _Results:
    """What the reference gives; `name_map` is for the names of its state dict."""
    logits = _their_logits(reference, tokens, keep)
    return _Results(_real(logits, keep), to_parameters(name_map, _gradients(reference, logits, tokens, keep)))


def _judge(
    ours: _Results, theirs: _Results, truth: _Results | None, limit: float, vanishing: tuple[str, ...], where: str
) -> dict[str, float]:
    """The errors of logits and gradients, both within the limit.

    Args:
        truth: the reference's results in float64: then ours may be as far from them as the reference's own are, three times.
    """
    more = f"{where}, gradients"
    noise = {name for name in ours.gradients if name.endswith(vanishing)} if vanishing else set()
    _check_vanishing(noise, ours.gradients, theirs.gradients, limit, more)
    results = (ours, theirs) if truth is None else (ours, theirs, truth)
    found = {}
    for what, place in (("logits", where), ("gradients", more)):
        sides = [{"logits": item.logits} if what == "logits" else _without(item.gradients, noise) for item in results]
        if truth is None:
            found[what] = check_agreement(sides[0], sides[1], tolerance=limit, where=place)
        else:
            found[what] = _no_worse(*sides, floor=limit, where=place)
            found["rounding"] = max(found.get("rounding", 0.0), *relative_errors(sides[1], sides[2]).values())
    return found


def _without(side: dict[str, Tensor], names: set[str]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in side.items() if name not in names}


def _no_worse(
    ours: dict[str, Tensor], theirs: dict[str, Tensor], exact: dict[str, Tensor], *, floor: float, where: str
) -> float:
    """The largest error of ours, each at most `floor` or three times the reference's own rounding."""
    errors, rounding = relative_errors(ours, exact), relative_errors(theirs, exact)
    limits = {name: max(floor, ROUNDING * rounding.get(name, 0.0)) for name in errors}
    fail_on(
        (
            f"{name} differs by {error:.3g} from float64, more than {limits[name]:.3g} ({ROUNDING:g} times the reference's own)"
            for name, error in errors.items()
            if error > limits[name]
        ),
        where=where,
    )
    return max(errors.values(), default=0.0)


def _in_float64(reference: nn.Module) -> nn.Module:
    """The reference, computed in float64."""
    return reference if is_lifted(reference) else compute_in_float64(reference)


def layout_of(reference: nn.Module) -> Layout:
    """The layout of a transformers model's state dict: headed, its experts stacked or one by one."""
    stacked = any(name.endswith("experts.gate_up_proj") for name in reference.state_dict())
    return Layout(experts="stacked" if stacked else "separate")


def _filled(
    family: Family, config: ModelConfig, state: dict[str, Tensor], layout: Layout, attention: str, where: str
) -> nn.Module:
    """Our model with the reference's weights."""
    try:
        return model_from_tensors(family, config, state, layout=layout, attention=attention)
    except ConformanceError as error:
        subject = f"{where}: the reference has other weights than the family"
        raise ConformanceError.of(attrs.evolve(finding, subject=subject) for finding in error.findings) from error


def _their_logits(reference: nn.Module, tokens: Tensor, keep: Tensor | None = None) -> Tensor:
    """Logits `[batch, length, vocab]` of the reference.

    Raises:
        ConformanceError: when its forward gives none.
    """
    where = type(reference).__name__
    try:
        out = reference(input_ids=tokens, attention_mask=None if keep is None else keep.long())
    except TypeError as error:
        raise ConformanceError(
            f"the reference cannot be called: {error}",
            where=where,
            expected="reference(input_ids=…, attention_mask=…)",
        ) from error
    logits = getattr(out, "logits", None)
    if not isinstance(logits, Tensor):
        raise ConformanceError(
            "the reference's forward gives no logits",
            where=where,
            expected="an answer with .logits, of a class with its head (…ForCausalLM, …ForMaskedLM)",
            found=type(out).__name__,
        )
    return logits


def _decoder(
    ours: nn.Module, reference: nn.Module, tokens: Tensor, whole: Tensor, limit: float, where: str
) -> dict[str, float]:
    """What a decoder does beyond whole rows: prefill in pieces, decoding, documents."""
    length = tokens.shape[1]
    ends = min(DECODED, length - 1)
    logits = _cached(ours, tokens, [*_pieces(length - ends), *[1] * ends])
    parts = {"prefill": slice(0, length - ends), "decode": slice(length - ends, length)}
    found = {
        name: check_agreement(
            {"logits": logits[:, part]}, {"logits": whole[:, part]}, tolerance=limit, where=f"{where}, {name}"
        )
        for name, part in parts.items()
    }
    if length >= 6 and not _depends_on_length(ours, length):
        found["documents"] = _documents(ours, reference, tokens, limit, f"{where}, documents")
    return found


def _pieces(length: int) -> Iterator[int]:
    """Sizes, large and small, that add up to `length`."""
    left, sizes = length, (max(1, length // 2), 1, 3, max(1, length // 5))
    number = 0
    while left:
        size = min(left, sizes[number % len(sizes)])
        yield size
        left, number = left - size, number + 1


def _run(model: Any, tokens: Tensor, mask: Mask, **more: Any) -> Tensor:
    with torch.no_grad(), everything_in_float64():
        logits: Tensor = model.logits(model.hidden_states(tokens, mask=mask, **more))
    return logits


def _cached(model: Any, tokens: Tensor, sizes: list[int]) -> Tensor:
    with everything_in_float64():
        return cached_logits(model, tokens, sizes)


def _depends_on_length(model: Any, length: int) -> bool:
    """Whether a token's frequencies depend on how long its row is: then a document alone is another thing (LongRoPE)."""
    scaling = getattr(model.config, "rope_scaling", None)
    return isinstance(scaling, LongRopeScaling) and length > scaling.original_max_position_embeddings


def _documents(ours: nn.Module, reference: nn.Module, tokens: Tensor, limit: float, where: str) -> float:
    """Three documents a row, packed here, each counted from its own first token; alone there."""
    length = tokens.shape[1]
    sizes = (length // 3, length - length // 3 - 2, 2)
    ids = torch.repeat_interleave(torch.arange(3, dtype=torch.int32), torch.tensor(sizes)).expand(len(tokens), -1)
    positions = torch.cat([torch.arange(size) for size in sizes])[None]
    mask = Documents(ids.contiguous(), (sizes,) * len(tokens))
    packed = torch.split(_run(ours, tokens, mask, positions=positions), list(sizes), dim=1)
    with torch.no_grad():
        alone = [_their_logits(reference, part) for part in torch.split(tokens, list(sizes), dim=1)]
    names = [f"logits of document {number}" for number in range(len(sizes))]
    pairs = (dict(zip(names, side, strict=True)) for side in (packed, alone))
    return check_agreement(next(pairs), next(pairs), tolerance=limit, where=where)


def _check_vanishing(names: set[str], ours: dict[str, Tensor], theirs: dict[str, Tensor], tolerance: float, where: str) -> None:
    largest = tolerance * max(float(grad.norm()) for grad in theirs.values())
    sides = [(name, float(side[name].norm())) for side in (ours, theirs) for name in sorted(names)]
    fail_on((f"{name} should have no gradient" for name, size in sides if size > largest), where=where)


def reference_config(family: Family, reference: Any) -> ModelConfig:
    """The family's config of a transformers model, read as it would be from that model's config.json.

    Raises:
        ConformanceError: for a model without a config.
        ConfigError: what a user would be told about that config.json.
    """
    fail_on([] if hasattr(reference, "config") else ["no config to read the family's from"], where=type(reference).__name__)
    return family.build_config(header=header_of_reference(reference, reference.config.to_dict()))


def header_of_reference(reference: nn.Module, config: dict[str, Any]) -> Header:
    """The header of a folder that holds a transformers model with this config.json."""
    infos = {
        name: TensorInfo(name, "F32", tuple(tensor.shape), 4 * tensor.numel())
        for name, tensor in reference.state_dict().items()
    }
    header = header_from_hf(type(reference).__name__, config, infos)
    return evolve(header, companions={CONFIG: config_rest(config)})


def _real(logits: Tensor, keep: Tensor | None) -> Tensor:
    return logits if keep is None else logits[keep]


def _gradients(model: nn.Module, logits: Tensor, tokens: Tensor, keep: Tensor | None) -> dict[str, Tensor]:
    """Gradient of the mean cross-entropy of predicting the token after next, by parameter name.

    Any target that is not the input itself would do; both sides get the same.
    """
    targets = tokens.roll(-2, dims=1)
    loss = F.cross_entropy(_real(logits, keep).flatten(0, -2), _real(targets, keep).flatten())
    named = dict(model.named_parameters())
    grads = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    return {name: grad for name, grad in zip(named, grads, strict=True) if grad is not None}
