"""Any checkpoint as a model that is ready to run: opened, judged by the preflight, loaded, in evaluation mode."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from attrs import field, frozen
from torch import nn

from apr_train import rules
from apr_train.artifact.merge import merged_run
from apr_train.checkpoint.checkpoint import Checkpoint, Progress
from apr_train.checkpoint.header import Header, Kind, RopeRows, TokenizerSpec
from apr_train.data.objectives import OBJECTIVES, Objective
from apr_train.data.tokenizer import Tokenizer, build_tokenizer
from apr_train.errors import ConfigError, Finding, FormatError, PreflightError, TokenizerError
from apr_train.family.config import ModelConfig
from apr_train.family.load_plan import LoadPlan
from apr_train.family.plugin import Family
from apr_train.family.registry import Registry
from apr_train.model.attention import Choice, MaskKind, Request, choose_backend
from apr_train.model.build import build_model
from apr_train.model.device import PRECISIONS, Precision, choose_device
from apr_train.model.load import LoadReport, load_weights
from apr_train.preflight import PreflightInput, Report, preflight
from apr_train.preflight.opening import given_tokenizer, open_source, opening_finding, tied_header
from apr_train.preflight.report import ClearedFile
from apr_train.run.events import Say
from apr_train.run.folder import weights_of
from apr_train.run.objective_names import TrainingObjective

_OTHER = {
    "decoder": (
        "a masked language model (an encoder) does not continue a text",
        "Its own are generate --fill-mask TEXT, with the mask in the text, and eval without --syntax.",
    ),
    "encoder": ("a causal language model (a decoder) has no mask to fill", "Take --prompt TEXT: it continues a text."),
}
"""What is asked for → what is wrong with a file of the other kind, and what to do."""


@frozen(kw_only=True)
class Wanted:
    """Which model, and how it shall run."""

    path: str
    """Any checkpoint that `--init` opens, or one step of a run."""
    arch: str | None = None
    """Family by name; None: exactly one installed family must claim the file."""
    tokenizer: str | None = None
    """A `tokenizer.json` instead of the checkpoint's own."""
    rope_layout: RopeRows | None = None
    """The user's word on the order of the rows of q and k."""
    device: str | None = None
    precision: str | None = None
    """A name in `PRECISIONS`; None: the caller's default for the device."""
    attention: str | None = None
    """An attention backend that is forced."""
    objective: TrainingObjective | None = None
    """What the model is measured on; None, and where its family does not predict that: the family's first objective."""


@frozen(kw_only=True)
class Opened:
    """A checkpoint that passed the preflight; nothing of its tensors has been read."""

    wanted: Wanted
    checkpoint: Checkpoint = field(repr=False)
    header: Header = field(repr=False)
    family: Family
    config: ModelConfig
    objective: Objective
    plan: LoadPlan = field(repr=False)
    tokenizer: TokenizerSpec = field(repr=False)
    device: torch.device

    @property
    def total_bytes(self) -> int:
        """Bytes of tensors that a load reads."""
        return sum(tensor.nbytes for tensor in self.header.tensors.values())


@frozen(kw_only=True)
class Ready:
    """A model in evaluation mode on its device, with all that is needed to give it text."""

    path: str
    family: Family
    config: ModelConfig
    header: Header = field(repr=False)
    objective: Objective
    model: nn.Module = field(repr=False)
    tokenizer: Tokenizer = field(repr=False)
    device: torch.device
    precision: Precision
    attention: Choice
    loaded: LoadReport = field(repr=False)
    compiled: bool = False
    """Whether the step that writes a token is compiled: `inference.generate.for_writing`."""


@contextmanager
def opened(wanted: Wanted, *, kind: Kind | None = None, say: Say) -> Iterator[Opened]:
    """Open the checkpoint and judge it as a run would; it is closed when the context is left.

    Args:
        wanted: which checkpoint.
        kind: what the model must be for what is to be done with it; None: anything.
        say: told of each warning.

    Raises:
        PreflightError: with every fault.
        ConfigError: for a model of another kind.
        TokenizerError: when there is no tokenizer.
        RunError: for a device that is not there.
    """
    device = choose_device(wanted.device)
    with _source(wanted) as checkpoint:
        header = tied_header(checkpoint)
        report = _judge(wanted, header)
        _check_kind(wanted, report.family, kind)
        cleared = report.cleared_file()
        for finding in report.warnings:
            say(f"warning: {finding}")
        yield _examined(wanted, checkpoint, header, cleared, device)


def _source(wanted: Wanted) -> Checkpoint:
    """The checkpoint, or what a run's adapter makes of its base."""
    try:
        merged = merged_run(wanted.path, exact=True)
    except FormatError as error:
        raise PreflightError([opening_finding(error)]) from error
    return open_source(weights_of(wanted.path), wanted.rope_layout) if merged is None else merged


def _check_kind(wanted: Wanted, family: Family | None, kind: Kind | None) -> None:
    if family is not None and kind is not None and family.info.kind != kind:
        problem, hint = _OTHER[kind]
        found = f"{family.name}, {_a(family.info.kind)}"
        raise ConfigError(problem, where=wanted.path, expected=_a(kind), found=found, hint=hint)


def _a(kind: Kind) -> str:
    return {"decoder": "a decoder", "encoder": "an encoder"}[kind]


def _judge(wanted: Wanted, header: Header) -> Report:
    tokenizer = None if wanted.tokenizer is None else given_tokenizer(wanted.tokenizer)
    return preflight(PreflightInput(registry=Registry.discover(), header=header, arch=wanted.arch, tokenizer=tokenizer))


def _examined(wanted: Wanted, checkpoint: Checkpoint, header: Header, cleared: ClearedFile, device: torch.device) -> Opened:
    if cleared.tokenizer is None:
        raise TokenizerError(
            "the checkpoint carries no tokenizer", where=wanted.path, hint="Give a tokenizer.json with --tokenizer."
        )
    return Opened(
        wanted=wanted,
        checkpoint=checkpoint,
        header=header,
        family=cleared.family,
        config=cleared.config,
        objective=_objective(wanted, cleared),
        plan=cleared.plan,
        tokenizer=cleared.tokenizer,
        device=device,
    )


def _objective(wanted: Wanted, cleared: ClearedFile) -> Objective:
    named = None if wanted.objective is None else OBJECTIVES[wanted.objective]
    return named if named is not None and named.predicts in cleared.family.info.objectives else cleared.objective


def make_ready(
    examined: Opened,
    *,
    precision: str,
    document_mask: bool = False,
    allow_fresh: bool = False,
    progress: Progress | None = None,
) -> Ready:
    """Load the weights; the checkpoint is not needed any more afterwards.

    Args:
        examined: what `opened` gave.
        precision: a name in `PRECISIONS`, unless the user named one.
        document_mask: whether the batches will keep documents apart.
        allow_fresh: whether parameters that the file does not have (a bare file's head) may be made up.
        progress: told of the bytes read.

    Raises:
        PreflightError: for parameters that the file does not have, and for what `load_weights` finds.
        AttentionError: when no backend can run, or the forced one cannot.
        FormatError: for a damaged file.
    """
    chosen = PRECISIONS[examined.wanted.precision or precision]
    if examined.plan.fresh and not allow_fresh:
        raise PreflightError([_lacking(examined)])
    choice = _attention(examined, chosen, examined.objective.mask_kind(document_mask=document_mask))
    model = build_model(examined.family.build_model, examined.config, choice.backend)
    loaded = load_weights(
        model, examined.checkpoint, examined.plan, dtype=chosen.weights, device=examined.device, progress=progress
    )
    model.eval().requires_grad_(False)
    return Ready(
        path=examined.wanted.path,
        family=examined.family,
        config=examined.config,
        header=examined.header,
        objective=examined.objective,
        model=model,
        tokenizer=build_tokenizer(examined.tokenizer),
        device=examined.device,
        precision=chosen,
        attention=choice,
        loaded=loaded,
    )


def _attention(examined: Opened, precision: Precision, mask: MaskKind) -> Choice:
    request = Request.for_config(
        examined.config,
        device=examined.device.type,
        dtype=precision.kernel_dtype,
        mask=mask,
        training=False,
    )
    return choose_backend(examined.family.attention_impl(examined.config), request, examined.wanted.attention)


def _lacking(examined: Opened) -> Finding:
    names = ", ".join(examined.plan.fresh_parameters)
    return Finding(
        rule=rules.INIT_007,
        subject=examined.wanted.path,
        problem="the file is a base model without the part that predicts tokens",
        expected=names,
        found="nothing of it in the file",
        hint="Train it first: a training run makes the missing part and learns it.",
    )
