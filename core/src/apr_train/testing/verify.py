"""All that the kit can measure of an installed family, as a certificate: its checks, and distances from another library.

The reference is made from the family's smallest preset alone: its config.json, written as an export writes it, is given to the
library's class of the card's name, and both sides get the same random weights.
"""

from __future__ import annotations

import importlib.util
import platform
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from importlib.metadata import version
from typing import Any, Literal, get_args

import attrs
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from apr_train.artifact.metadata import hf_config
from apr_train.errors import PluginError
from apr_train.family.certificate import Certificate, code_sha256
from apr_train.family.config import ModelConfig
from apr_train.family.decoder_config import DecoderConfig
from apr_train.family.name_map import to_parameters
from apr_train.family.plugin import Family
from apr_train.model.loss import head_loss
from apr_train.testing.agreement import Agreement, compare_models, layout_of
from apr_train.testing.compare import check_agreement, fail_on
from apr_train.testing.conformance import EXACT_BELOW, check_family, parameter_count
from apr_train.testing.float64 import compute_in_float64, everything_in_float64
from apr_train.testing.lifecycle import check_absent_keys, runnable
from apr_train.testing.models import meta_model, model_from_tensors, randomize
from apr_train.testing.report import Report
from apr_train.testing.subject import Subject

Against = Literal["transformers"]
DTYPES = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16}
STEPS = 10
"""Optimizer steps that both sides take from the same weights on the same tokens."""
LEARNING_RATE = 1e-3
LOSSES = {"float64": 1e-9, "float32": 1e-4}
"""Precision of the training that is compared → largest relative error of a step's loss."""
WEIGHTS = {"float64": 1e-9, "float32": 1e-2}
"""The same of the weights after the last step: AdamW divides by each gradient's own size, which lifts its rounding."""
NO_GRADIENT = ("k_proj.bias",)
"""Parameters on which nothing depends where no position is rotated: it adds the same to every score of a query."""


def verify(family: Family, *, against: Against | None = None, tell: Callable[[str], None] = lambda text: None) -> Certificate:
    """Run the kit, and compare with a library where one is named.

    Args:
        against: the library; None: the kit's checks alone.
        tell: called with each step that begins, for people who wait.

    Raises:
        ConformanceError: with every fault of the first part that has any: the kit, an absent key, a distance.
        PluginError: the library is not installed, or has no class of the family's name.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the matrices are tiny: more threads wait for each other
    try:
        with _quiet(against):
            return _verified(family, against, tell)
    finally:
        torch.set_num_threads(threads)


@contextmanager
def _quiet(library: str | None) -> Iterator[None]:
    """Keep the library's bars and remarks about its configs from the screen."""
    if library is None or importlib.util.find_spec(library) is None:
        yield
        return
    told: Any = importlib.import_module(f"{library}.utils.logging")
    before = told.get_verbosity()
    told.set_verbosity_error()
    told.disable_progress_bar()
    try:
        yield
    finally:
        told.set_verbosity(before)
        told.enable_progress_bar()


def _verified(family: Family, against: Against | None, tell: Callable[[str], None]) -> Certificate:
    tell("the kit's checks")
    report = check_family(family)
    agreement: dict[str, dict[str, float]] = {}
    training: dict[str, dict[str, float]] = {}
    if against is not None:
        config = smallest(family)
        tell(f"a model of {against}")
        reference = reference_of(family, config, against)
        check_absent_keys(family, reference)
        agreement |= _agreements(family, config, reference, tell)
        for precision in LOSSES:
            tell(f"{STEPS} optimizer steps in {precision}")
            training[precision] = compare_training(family, config, reference, precision)
    return Certificate(
        family=family.name,
        distribution=family.distribution,
        version=family.version,
        api_version=family.info.api_version,
        code=code_sha256(family.plugin),
        against=f"{against} {version(against)}" if against is not None else "",
        environment=_environment(),
        checks=(*_checks(report), *_not_compared(smallest(family), against)),
        agreement=agreement,
        training=training,
    )


FACTOR = 10.0
"""How much a distance may differ between two machines, where it is above the floor of its precision."""
FLOOR = {"float64": 1e-11, "float32": 1e-5, "bfloat16": 2e-2}
"""Precision → distances up to which are the order of sums and nothing else."""


def check_holds(shipped: Certificate, made: Certificate) -> None:
    """Hold a certificate against what was measured now: the same checks are kept, the same distances are as small.

    Raises:
        ConformanceError: naming every check and every distance that the certificate has and that is not seen again.
    """
    kept = [{(item["check"], item.get("preset", "")) for item in side.checks if "seen" in item} for side in (shipped, made)]
    faults = [f"the check {check} {preset}".rstrip() + " is not kept now" for check, preset in sorted(kept[0] - kept[1])]
    for part in ("agreement", "training"):
        certified, now = getattr(shipped, part), getattr(made, part)
        for name in sorted(certified.keys() | now.keys()):
            faults += _other_numbers(name, certified.get(name, {}), now.get(name, {}))
    fail_on(faults, where=f"{shipped.family}: the certificate no longer holds")


def _other_numbers(name: str, certified: Mapping[str, float], now: Mapping[str, float]) -> Iterator[str]:
    precision = name.partition(",")[0]
    for what in sorted(certified.keys() | now.keys()):
        before, after = certified.get(what), now.get(what)
        if before is None or after is None or not _near(what, before, after, precision):
            yield f"{name}: {what} was {before}, and is {after}"


def _near(what: str, before: float, after: float, precision: str) -> bool:
    if what in ("tolerance", "steps"):
        return before == after
    floor = WEIGHTS.get(precision, 0.0) if what == "weights" else FLOOR.get(precision, 0.0)
    return max(before, after) <= max(floor, FACTOR * min(before, after))


def library_of(certificate: Certificate) -> Against | None:
    """The library that a certificate is a comparison with; None for the kit's checks alone.

    Raises:
        PluginError: a library that is not compared with here.
    """
    name = certificate.against.partition(" ")[0]
    known = next((library for library in get_args(Against) if library == name), None)
    if name and known is None:
        expected = " or ".join(get_args(Against))
        raise PluginError("compared with a library that is not known", where=certificate.family, expected=expected, found=name)
    return known


def _environment() -> dict[str, str]:
    return {
        "apr-train": version("apr-train"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "machine": platform.machine(),
        "vector instructions": torch.backends.cpu.get_cpu_capability(),
    }


def _checks(report: Report) -> Iterator[dict[str, str]]:
    for outcome in report.outcomes:
        seen = {"seen": outcome.measured} if outcome.checked else {"not_checked": outcome.reason}
        yield {"check": outcome.check, **({"preset": outcome.subject} if outcome.subject else {}), **seen}


def _not_compared(config: ModelConfig, against: str | None) -> Iterator[dict[str, str]]:
    if against is None:
        yield {"check": "comparison", "not_checked": "no library was named"}
    elif _routed(config):
        yield {"check": "bfloat16", "not_checked": "rounding decides which expert a token goes to"}


def smallest(family: Family) -> ModelConfig:
    """The config of the preset with the fewest parameters.

    Raises:
        ConformanceError: when even that is too large to be run in a moment.
    """
    counted = {}
    for preset in family.info.presets:
        config = family.build_config(preset=preset)
        counted[preset] = (parameter_count(meta_model(family, config)), config)
    count, config = min(counted.values(), key=lambda item: item[0])
    too_large = [] if count <= EXACT_BELOW else [f"the smallest preset has {count:,} parameters: give the family a tiny one"]
    fail_on(too_large, where=f"{family.name} presets")
    return config


def reference_of(family: Family, config: ModelConfig, library: str) -> nn.Module:
    """The library's own model of a config, with random weights that show, in float32 and in evaluation mode.

    Raises:
        PluginError: the library is not installed, has no such class, or its class refuses the config.
    """
    try:
        module = importlib.import_module(library)
    except ImportError as error:
        hint = f"pip install {library}, or leave --against out."
        raise PluginError(f"{library} is not installed", where=family.name, hint=hint) from error
    name = family.info.hf_classes[0]
    model_class: Any = getattr(module, name, None)
    if model_class is None:
        hint = "Leave --against out: the certificate then says that it is the kit's checks alone."
        raise PluginError(f"{library} {version(library)} has no {name}", where=family.name, hint=hint)
    values = hf_config(config, family.info)
    values |= {key: None for key in ("pad_token_id", "bos_token_id", "eos_token_id") if key not in values}
    made = model_class(model_class.config_class.from_dict(values))
    return randomize(made).eval()


def _agreements(
    family: Family, config: ModelConfig, reference: nn.Module, tell: Callable[[str], None]
) -> Iterator[tuple[str, dict[str, float]]]:
    """`PRECISION, BACKEND` → the distances; files once, experts not in bfloat16."""
    wide, tokens = compute_in_float64(reference), Subject(family, config).tokens()
    for attention in runnable(config):
        for precision, dtype in DTYPES.items():
            if precision == "bfloat16" and _routed(config):
                continue
            tell(f"logits and gradients in {precision} with {attention}")
            there = wide if precision == "float64" else _again(reference, dtype)
            found = compare_models(
                family,
                config,
                there,
                tokens,
                precision="float64" if precision == "float64" else "weights",
                rounding=precision != "float64",
                attention=attention,
                vanishing=_vanishing(config),
                files=precision == "float32" and attention == "eager",
            )
            yield f"{precision}, {attention}", _numbers(found)


def _again(reference: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Another model of the reference's class with the same weights, in a dtype and in evaluation mode."""
    make: Callable[[Any], nn.Module] = type(reference)
    again = make(reference.config)
    again.load_state_dict(reference.state_dict())
    return again.to(dtype).eval()


def _routed(config: ModelConfig) -> bool:
    """Whether tokens are sent to experts: where two are nearly as good, rounding decides, and nothing is near afterwards."""
    return getattr(config, "num_experts", 0) > 0


def _numbers(found: Agreement) -> dict[str, float]:
    values = attrs.asdict(found)
    return {name: float(value) for name, value in values.items() if isinstance(value, float)}


def _vanishing(config: ModelConfig) -> tuple[str, ...]:
    rotary = isinstance(config, DecoderConfig) and not config.learned_positions
    return () if rotary else NO_GRADIENT


def compare_training(family: Family, config: ModelConfig, reference: nn.Module, precision: str) -> dict[str, float]:
    """Ten steps of AdamW on both sides, from the same weights, on the same tokens.

    The loss is the cross entropy, ours in chunks from the hidden states as a run computes it, theirs from the logits.

    Raises:
        ConformanceError: a loss, or the weights after the last step, differ by more than rounding.
    """
    theirs = compute_in_float64(reference) if precision == "float64" else _again(reference, torch.float32)
    layout, subject = layout_of(reference), Subject(family, config)
    state = {name: tensor for name, tensor in theirs.state_dict().items() if tensor.is_floating_point()}
    ours = model_from_tensors(family, config, state, layout=layout)
    optimizers = [torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE) for model in (ours, theirs)]
    losses: list[tuple[Tensor, Tensor]] = []
    for step in range(STEPS):
        tokens = subject.tokens(seed=step)
        with everything_in_float64() if precision == "float64" else nullcontext():
            hidden = ours.hidden_states(tokens, mask=subject.mask())  # type: ignore[operator] # LanguageModel's
            targets = tokens.roll(-1, dims=1).flatten()
            own = head_loss(ours, hidden.flatten(0, 1), targets, scale=1 / targets.numel())  # type: ignore[arg-type]
        losses.append((own, F.cross_entropy(theirs(input_ids=tokens).logits.flatten(0, 1), targets)))
        for optimizer, loss in zip(optimizers, losses[-1], strict=True):
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    after = {name: tensor for name, tensor in theirs.state_dict().items() if tensor.is_floating_point()}
    trained = to_parameters(family.map_tensor_names(config, layout), after)
    own_weights = {name: tensor for name, tensor in ours.named_parameters() if not name.endswith(_vanishing(config) or " ")}
    there = {name: trained[name] for name in own_weights}
    where = f"{family.name}, {STEPS} steps in {precision}"
    pairs = {f"the loss of step {step}": pair for step, pair in enumerate(losses, 1)}
    ours_by_step, theirs_by_step = ({name: pair[side].detach() for name, pair in pairs.items()} for side in (0, 1))
    return {
        "steps": float(STEPS),
        "losses": check_agreement(ours_by_step, theirs_by_step, tolerance=LOSSES[precision], where=where),
        "weights": check_agreement(own_weights, there, tolerance=WEIGHTS[precision], where=where),
    }
