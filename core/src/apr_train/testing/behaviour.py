"""What a model must do whatever it computes: causality, its cache, documents, padding, its loss, gradients, recompute.

All of it is measured on one model with random weights, in float64, so that what differs is a fault and no rounding.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import attrs
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from apr_train.family.config import ModelConfig
from apr_train.model.attention import (
    BACKEND_NAMES,
    AttentionBackend,
    Causal,
    Documents,
    Mask,
    MaskKind,
    Request,
    load_backend,
)
from apr_train.model.build import recompute_activations
from apr_train.model.cache import KeyValueCache
from apr_train.model.decoder import Decoder, DecoderBlock
from apr_train.model.encoder import Encoder, EncoderBlock
from apr_train.model.loss import IGNORE, head_loss
from apr_train.testing.compare import FLOAT64, fail_on, relative_error, relative_errors
from apr_train.testing.float64 import everything_in_float64
from apr_train.testing.models import cached_logits, real_model
from apr_train.testing.plain import Routed, plain_balancing_loss, plain_logits
from apr_train.testing.report import NotCheckedError
from apr_train.testing.subject import Subject

CHANGED = 1e-6
"""Smallest relative error that counts as another result."""
DROPOUT = ("hidden_dropout_prob", "attention_probs_dropout_prob")
"""Fields of a config that say a probability of dropout."""
CHUNKED_ROWS = 520
"""Rows of the loss: more than one chunk of `apr_train.model.loss`."""


def _per_position(ours: Tensor, theirs: Tensor) -> list[float]:
    """The relative error at each position of `[batch, length, …]`."""
    return [relative_error(ours[:, place], theirs[:, place]) for place in range(ours.shape[1])]


def _exactly(error: float) -> str:
    return f"differs by {error:.2g}, more than {FLOAT64:g}"


def check_forward(subject: Subject) -> str:
    """Tokens become hidden states and logits of the config's sizes, all of them numbers."""
    tokens = subject.tokens()
    hidden, logits = subject.hidden(tokens), subject.logits(tokens)
    faults = [
        f"{name} are {list(found.shape)}, expected {[*tokens.shape, size]}"
        for name, found, size in (
            ("hidden states", hidden, subject.config.hidden_size),
            ("logits", logits, subject.config.vocab_size),
        )
        if tuple(found.shape) != (*tokens.shape, size)
    ]
    faults += [] if bool(logits.isfinite().all()) else ["the logits are not finite"]
    fail_on(faults, where="")
    return f"{subject.length} tokens"


def check_mathematics(subject: Subject) -> str:
    """A model that the core assembles computes what its config says: the formulas, written a second time."""
    if type(subject.model) not in (Decoder, Encoder) or {type(block) for block in subject.model.blocks} - {
        DecoderBlock,
        EncoderBlock,
    }:
        raise NotCheckedError("the model is the family's own: compare_models holds it against another implementation")
    tokens, routed = subject.tokens(1), Routed()
    losses: dict[str, Tensor] = {}
    named = dict(subject.model.named_parameters())
    expected = plain_logits(subject.config, named, tokens[0], routed)
    with everything_in_float64():
        ours = subject.model.logits(subject.model.hidden_states(tokens, mask=subject.mask(), losses=losses))[0]
    errors = {"the logits": relative_error(ours, expected)}
    if routed:
        own_loss = losses.get("aux_loss", torch.tensor(float("nan")))
        errors["aux_loss"] = relative_error(own_loss, plain_balancing_loss(routed))
    targets = tokens[0].roll(-2)
    own, plain = (_gradients(F.cross_entropy(side, targets), named) for side in (ours, expected))
    errors |= {f"the gradient of {name}": error for name, error in _beyond_rounding(own, plain).items()}
    if subject.decodes:
        places = torch.arange(subject.length) + _gap(subject) * (torch.arange(subject.length) >= subject.length // 2)
        expected = plain_logits(subject.config, named, tokens[0], positions=places)
        errors["the logits of other positions"] = relative_error(subject.logits(tokens, positions=places[None])[0], expected)
    faults = [f"{name}: {_exactly(error)} from the config's formulas" for name, error in errors.items() if error > FLOAT64]
    fail_on(faults, where="")
    return f"logits against plain formulas {errors['the logits']:.1g}, with gradients {max(errors.values()):.1g}"


def _gap(subject: Subject) -> int:
    """Positions that may be left out in the middle of a row."""
    return min(3, subject.config.usable_positions - subject.length)


def _beyond_rounding(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> dict[str, float]:
    """The relative errors of gradients, but for those that are nothing but rounding on both sides."""
    least = FLOAT64 * max(float(grad.norm()) for grad in theirs.values())
    small = {name for name in theirs if name in ours and max(float(side[name].norm()) for side in (ours, theirs)) < least}
    return {name: error for name, error in relative_errors(ours, theirs).items() if name not in small}


def check_causality(subject: Subject) -> str:
    """A decoder's token changes nothing before it, and something from itself on; an encoder's, everything."""
    tokens = subject.tokens()
    whole, largest = subject.logits(tokens), 0.0
    middle, last = subject.length // 2, subject.length - 1
    faults: list[str] = []
    for place in {middle, last}:
        errors = _per_position(subject.logits(subject.other(tokens, place)), whole)
        if subject.decodes:
            worst = max(errors[:place], default=0.0)
            largest = max(largest, worst)
            faults += [f"token {place} changes what comes before it, by {worst:.2g}"] if worst > FLOAT64 else []
        else:
            least = min(errors[:place], default=1.0)
            faults += [f"token {place} changes nothing at some place before it"] if least < CHANGED else []
        faults += [f"token {place} does not change what stands at its own place"] if errors[place] < CHANGED else []
    after = _per_position(subject.logits(subject.other(tokens, 0)), whole)[1:]
    if (after[0] if subject.decodes else min(after)) < CHANGED:
        faults.append("the first token does not change what comes after it")
    fail_on(faults, where="")
    return f"before a changed token {largest:.1g}" if subject.decodes else "every token sees every other"


def check_cache(subject: Subject) -> str:
    """Token by token after a prefill, a cached decoder gives what it gives for the whole row."""
    length = subject.length
    return _cached(subject, [length // 2, *[1] * (length - length // 2)], "token by token")


def check_prefill(subject: Subject) -> str:
    """Whatever the pieces in which a row goes into the cache, the result is the whole row's."""
    sizes = [5, 1, 7, 2, 11]
    pieces: list[int] = []
    while sum(pieces) < subject.length:
        pieces.append(min(sizes[len(pieces) % len(sizes)], subject.length - sum(pieces)))
    return _cached(subject, pieces, f"in pieces of {', '.join(map(str, pieces))}")


def _cached(subject: Subject, pieces: Sequence[int], how: str) -> str:
    if not subject.decodes:
        raise NotCheckedError("an encoder has no cache")
    tokens = subject.tokens()
    whole = subject.logits(tokens)
    cache = KeyValueCache(subject.config.num_hidden_layers, max_length=subject.length)
    parts, faults = [], []
    for piece in torch.split(tokens, list(pieces), dim=1):
        seen = cache.length
        parts.append(subject.logits(piece, Causal(offset=seen), cache=cache))
        if cache.length != seen + piece.shape[1]:
            faults.append(f"after {seen + piece.shape[1]} tokens the cache holds {cache.length}")
            break
    if not faults:
        errors = _per_position(torch.cat(parts, dim=1), whole)
        wrong = [place for place, error in enumerate(errors) if error > FLOAT64]
        faults += [f"{how}, position {wrong[0]} {_exactly(errors[wrong[0]])} from the whole row"] if wrong else []
    fail_on(faults, where="")
    return f"{how} against the whole row {max(errors):.1g}{_window_note(subject)}"


def _window_note(subject: Subject) -> str:
    wide = sorted({window for window in subject.windows if window >= subject.length})
    return f", but a window of {', '.join(map(str, wide))} was not reached" if wide else ""


def check_documents(subject: Subject) -> str:
    """A document packed with others gives what it gives alone, its positions going on in the row or its own."""
    if not subject.decodes:
        raise NotCheckedError("an encoder's rows are not packed")
    length = subject.length
    if length < 6:
        raise NotCheckedError(f"a row of {length} tokens is too short for documents")
    lengths = ((3, length - 5, 2), (length - 4, 1, 3))
    ids = torch.stack([torch.repeat_interleave(torch.arange(3, dtype=torch.int32), torch.tensor(row)) for row in lengths])
    faults, largest = [], 0.0
    for mask, own in ((Documents(ids, lengths), False), (Documents(ids), False), (Documents(ids, lengths), True)):
        told = ", its positions counted from 0" if own else ""
        for (row, number), error in _packed_errors(subject, mask, lengths, own=own).items():
            largest = max(largest, error)
            if error > FLOAT64:
                faults.append(f"document {number} of row {row}, packed{told}, {_exactly(error)} from itself alone")
    fail_on(dict.fromkeys(faults), where="")
    return f"packed against alone {largest:.1g}"


def _packed_errors(
    subject: Subject, mask: Documents, lengths: tuple[tuple[int, ...], ...], *, own: bool
) -> dict[tuple[int, int], float]:
    """How far each document in packed rows is from itself alone: (row, document) → relative error of the logits.

    Args:
        subject: the model and its tokens.
        mask: of the rows.
        lengths: of the documents in each row.
        own: whether each document's positions are counted from 0, and not from the row's beginning.
    """
    tokens = subject.tokens()
    positions = torch.stack([torch.cat([torch.arange(size) for size in row]) for row in lengths])
    packed = subject.logits(tokens, mask, positions=positions if own else None)
    errors = {}
    for row, sizes in enumerate(lengths):
        start = 0
        for number, size in enumerate(sizes):
            inside = slice(start, start + size)
            there = None if own else torch.arange(start, start + size)[None]
            expected = subject.logits(tokens[row : row + 1, inside], positions=there)
            errors[row, number] = relative_error(packed[row : row + 1, inside], expected)
            start += size
    return errors


def check_padding(subject: Subject) -> str:
    """Padding behind a row, and another row beside it, change nothing for its tokens."""
    tokens, size = subject.tokens(), max(1, 2 * subject.length // 3)
    alone = subject.logits(tokens[:1, :size])
    keep = torch.ones_like(tokens, dtype=torch.bool)
    keep[0, size:] = False
    padded = tokens.masked_fill(~keep, max(subject.pad, 0))
    error = relative_error(subject.logits(padded, subject.mask(keep))[:1, :size], alone)
    fail_on([f"a padded row {_exactly(error)} from the row alone"] if error > FLOAT64 else [], where="")
    return f"padded against alone {error:.1g}"


def check_backends(subject: Subject) -> str:
    """The attention backends that can run here give what eager attention gives, masks of documents included."""
    tokens, length = subject.tokens(), subject.length
    masks: dict[str, Mask] = {"whole rows": subject.mask()}
    if subject.decodes and length > 3:
        masks["documents"] = Documents(torch.tensor([[0] * 3 + [1] * (length - 3)] * 2, dtype=torch.int32))
    if not subject.decodes:
        masks["padded rows"] = subject.mask(torch.arange(length) < torch.tensor([[length], [length // 2]]))
    expected = {name: subject.logits(tokens, mask) for name, mask in masks.items()}
    faults, seen, largest = [], [], 0.0
    for name, backend in _backends(subject):
        model = subject.make(backend)
        seen.append(name)
        for what, mask in masks.items():
            with everything_in_float64():
                ours = model.logits(model.hidden_states(tokens, mask=mask)).detach()
            real = slice(None) if what != "padded rows" else masks[what].keep  # type: ignore[union-attr] # Bidirectional
            error = relative_error(ours[real], expected[what][real])
            largest = max(largest, error)
            faults += [f"{name} {_exactly(error)} from eager on {what}"] if error > FLOAT64 else []
        if subject.decodes:
            with everything_in_float64():
                error = relative_error(_in_pieces(model, tokens), expected["whole rows"])
            largest = max(largest, error)
            faults += [f"{name} with a cache {_exactly(error)} from eager on whole rows"] if error > FLOAT64 else []
    if not seen:
        raise NotCheckedError("no other backend can run this here")
    fail_on(faults, where="")
    return f"{', '.join(seen)} against eager {largest:.1g}"


def _in_pieces(model: Any, tokens: Tensor) -> Tensor:
    """Logits of rows that go through a cache: half of them at once, the rest in two pieces, the last one by one."""
    length = tokens.shape[1]
    half, ends = length // 2, min(4, length // 4)
    return cached_logits(model, tokens, [half, length - half - ends, *[1] * ends])


def _backends(subject: Subject) -> Iterator[tuple[str, str | AttentionBackend]]:
    """The core's backends and the family's own, other than eager, that can run this config on a CPU."""
    own = [item for item in subject.family.attention_impl(subject.config) if not isinstance(item, str)]
    mask: MaskKind = "causal" if subject.decodes else "bidirectional"
    request = Request.for_config(subject.config, device="cpu", dtype="F64", mask=mask, training=False)
    for backend in (*(load_backend(name) for name in BACKEND_NAMES if name != "eager"), *own):
        if backend.supports(request) is None:
            yield backend.name, backend


def check_loss(subject: Subject) -> str:
    """The loss of training, which never holds all logits, is the cross entropy of `logits()`; so are its gradients."""
    tokens = subject.tokens()
    hidden = subject.hidden(tokens).flatten(0, 1)
    hidden = hidden.repeat(-(-CHUNKED_ROWS // len(hidden)), 1)[:CHUNKED_ROWS].requires_grad_()
    targets = tokens.flatten().repeat(-(-CHUNKED_ROWS // tokens.numel()))[:CHUNKED_ROWS].roll(-1).clone()
    targets[::5] = IGNORE
    scale = 1 / int((targets != IGNORE).sum())
    with everything_in_float64():
        chunked = head_loss(subject.model, hidden, targets, scale=scale)
        plain = F.cross_entropy(subject.model.logits(hidden), targets, ignore_index=IGNORE)
    results = {"hidden states": hidden, **dict(subject.model.named_parameters())}
    ours, theirs = (_gradients(loss, results) for loss in (chunked, plain))
    errors = {"loss": relative_error(chunked, plain), **relative_errors(ours, theirs)}
    fail_on(
        (
            f"{name if name == 'loss' else f'gradient of {name}'} {_exactly(error)} from the cross entropy of logits()"
            for name, error in errors.items()
            if error > FLOAT64
        ),
        where="",
    )
    return f"loss {errors.pop('loss'):.1g}, gradients {max(errors.values()):.1g}"


def _gradients(loss: Tensor, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    with everything_in_float64():
        found = torch.autograd.grad(loss, list(tensors.values()), allow_unused=True)
    return {name: grad for name, grad in zip(tensors, found, strict=True) if grad is not None}


def training_loss(model: Any, tokens: Tensor, mask: Mask, *, lifted: bool = True) -> Tensor:
    """The loss of a step of training on `[batch, length]` tokens, the model's own loss beside the cross entropy included.

    Args:
        lifted: compute in float64 what the model casts to float32; False where that would be compiled, too.
    """
    losses: dict[str, Tensor] = {}
    with everything_in_float64() if lifted else nullcontext():
        hidden = model.hidden_states(tokens, mask=mask, losses=losses)
        targets = tokens.roll(-2, dims=1).flatten()
        loss = head_loss(model, hidden.flatten(0, 1), targets, scale=1 / targets.numel())
        return loss + sum((value for value in losses.values()), torch.zeros(()))


def check_gradients(subject: Subject) -> str:
    """Every parameter has a gradient that is not zero."""
    model = copy.deepcopy(subject.model)
    named = dict(model.named_parameters())
    found = _gradients(training_loss(model, subject.tokens(), subject.mask()), named)
    faults = [f"{name} has no gradient: nothing that is computed depends on it" for name in named if name not in found]
    faults += [f"the gradient of {name} is zero everywhere" for name, grad in found.items() if not bool(grad.any())]
    faults += [f"the gradient of {name} is not finite" for name, grad in found.items() if not bool(grad.isfinite().all())]
    fail_on(faults, where="")
    return f"{len(found)} parameters"


def check_dropout(subject: Subject) -> str:
    """Each kind of dropout that the config has works in training; nothing is random without it, nor in evaluation."""
    kinds = [name for name in DROPOUT if getattr(subject.config, name, 0.0) > 0]
    tokens = subject.tokens()

    def drawn(config: ModelConfig, *, training: bool) -> float:
        model: Any = real_model(subject.family, config, seed=subject.seed).train(training)
        results = []
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            for seed in range(2):
                torch.manual_seed(seed)
                results.append(model.hidden_states(tokens, mask=subject.mask()))
        return relative_error(*results)

    none: dict[str, Any] = dict.fromkeys(kinds, 0.0)
    without = attrs.evolve(subject.config, **none)
    faults = ["evaluation is random"] if drawn(subject.config, training=False) > FLOAT64 else []
    faults += ["training is random, and the config has no dropout for it"] if drawn(without, training=True) > FLOAT64 else []
    for name in kinds:
        value = getattr(subject.config, name)
        if drawn(attrs.evolve(without, **{name: value}), training=True) < CHANGED:
            faults.append(f"{name} is {value:g}, and training is not random because of it")
    fail_on(faults, where="")
    return ", ".join(kinds) or "none"


def check_recompute(subject: Subject) -> str:
    """Blocks computed again in the backward pass give the same loss and gradients, dropout included."""
    return _wrapped(subject, recompute_activations, "with recompute")


def check_compile(subject: Subject) -> str:
    """The graphs that torch.compile captures of the blocks compute what the blocks do; no machine code is made."""

    def captured(model: Any) -> None:
        for block in model.blocks:
            block.forward = torch.compile(block.forward, backend="eager", dynamic=False)

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch.compile's own, of itself
            return _wrapped(subject, captured, "captured by torch.compile", lifted=False)
    finally:
        torch.compiler.reset()


def _wrapped(subject: Subject, change: Callable[[Any], None], how: str, *, lifted: bool = True) -> str:
    """The model in training mode against itself after `change`: loss and gradients."""
    tokens, results = subject.tokens(), []
    for changed in (False, True):
        model = copy.deepcopy(subject.model).train()
        if changed:
            change(model)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            loss = training_loss(model, tokens, subject.mask(), lifted=lifted)
            results.append({"loss": loss.detach(), **_gradients(loss, dict(model.named_parameters()))})
    errors = relative_errors(results[1], results[0])
    size = max(float(value.norm()) for value in results[0].values())
    small = {name for name, value in results[0].items() if float(value.norm()) < FLOAT64 * size}
    fail_on(
        (
            f"{how}, {name if name == 'loss' else f'the gradient of {name}'} {_exactly(error)} from that of the plain model"
            for name, error in errors.items()
            if error > FLOAT64 and name not in small
        ),
        where="",
    )
    return f"loss and gradients {max(error for name, error in errors.items() if name not in small):.1g}"


BEHAVIOUR: tuple[tuple[str, Callable[[Subject], str]], ...] = (
    ("mathematics", check_mathematics),
    ("causality", check_causality),
    ("cache", check_cache),
    ("prefill", check_prefill),
    ("documents", check_documents),
    ("padding", check_padding),
    ("backends", check_backends),
    ("loss", check_loss),
    ("gradients", check_gradients),
    ("dropout", check_dropout),
    ("recompute", check_recompute),
    ("compile", check_compile),
)
"""Name → check, in the order of the report."""


def check_on_meta(model: nn.Module, tokens: Iterable[int], mask: Mask) -> str:
    """Shapes alone of a model on the meta device: hidden states and logits have those of their config."""
    typed: Any = model
    ids = torch.empty(tuple(tokens), dtype=torch.int64, device="meta")
    try:
        hidden = typed.hidden_states(ids, mask=mask)
        shapes = tuple(hidden.shape), tuple(typed.logits(hidden).shape)
    except (NotImplementedError, RuntimeError) as error:
        if not any(word in str(error).lower() for word in ("meta", "device type")):
            raise
        raise NotCheckedError("its forward reads values, which the meta device does not have") from error
    expected = (*ids.shape, typed.config.hidden_size), (*ids.shape, typed.config.vocab_size)
    names = ("hidden states", "logits")
    fail_on(
        (
            f"{name} are {list(found)}, expected {list(wanted)}"
            for name, found, wanted in zip(names, shapes, expected, strict=True)
            if found != wanted
        ),
        where="",
    )
    return f"{list(shapes[0])} and {list(shapes[1])}"
