"""The contract of a family as checks: its card, presets, configs, hooks and name maps, and what runs of its model."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
from attrs import evolve
from torch import nn

from apr_train import rules
from apr_train.checkpoint.companions import CONFIG
from apr_train.checkpoint.gguf_keys import KEYS
from apr_train.checkpoint.header import Header, RopeRows, TensorInfo, Tie
from apr_train.data.objectives import OBJECTIVES
from apr_train.errors import AprTrainError, ConfigError, Finding, NameMapError, WrongMapError
from apr_train.family.card import Layout
from apr_train.family.config import ModelConfig
from apr_train.family.name_map import Fill, NameMap, to_checkpoint, to_parameters
from apr_train.family.name_rules import EXPERTS
from apr_train.family.operations import Operation
from apr_train.family.plugin import Family
from apr_train.family.reading import AUX_LOSS
from apr_train.family.registry import Registry
from apr_train.family.writing import nulls, said
from apr_train.model.attention import Bidirectional, Causal
from apr_train.testing.behaviour import BEHAVIOUR, check_forward, check_on_meta
from apr_train.testing.compare import ConformanceError, fail_on
from apr_train.testing.initial import check_seed, check_start
from apr_train.testing.models import meta_model, parameter_shapes, random_array, random_tensors
from apr_train.testing.names_of_gguf import check_gguf_names, check_gguf_rows, check_gguf_values
from apr_train.testing.report import Checks, NotCheckedError, Report
from apr_train.testing.sharded import check_sharding
from apr_train.testing.subject import Subject


def header_from(family: Family, config: ModelConfig, layout: Layout | None = None) -> Header:
    """The header that a complete float32 file of this config would have: every field, every tensor of the name map.

    A tied head is stored once; ignored tensors are left out.
    """
    layout = layout or Layout()
    values = {key: value for key, value in said(config, family.info).items() if value is not None}
    name_map = family.map_tensor_names(config, layout)
    shapes = {
        name: shape
        for name, shape in name_map.tensors.items()
        if not (layout.bare and any(edge.fresh_group for edge in name_map.edges(name)))
    }
    return Header(
        path=f"<{family.name}>",
        format="gguf" if layout.names == "gguf" else "safetensors",
        hf_class=family.info.hf_classes[-1 if layout.bare else 0] if layout.names == "hf" else None,
        architecture=family.info.model_type if layout.names == "hf" else family.info.gguf_architectures[0],
        config=values,
        tensors={name: _info(name, shape) for name, shape in shapes.items()},
        names=layout.names,
        rope_rows=layout.rope_rows if family.info.kind == "decoder" else None,
        tie=Tie(config.tie_word_embeddings, "metadata"),
        companions={CONFIG: nulls(config, family.info)},
    )


def _info(name: str, shape: tuple[int, ...]) -> TensorInfo:
    return TensorInfo(name, "F32", shape, 4 * math.prod(shape))


_ROWS: tuple[RopeRows, ...] = ("split-half", "adjacent")
ALL_LAYOUTS = (
    *(Layout(rope_rows=rows, bare=bare) for rows in _ROWS for bare in (False, True)),
    *(Layout(names="gguf", rope_rows=rows) for rows in _ROWS),
    *(Layout(experts="stacked", bare=bare) for bare in (False, True)),
)
"""Every spelling that a checkpoint may come in; the stacked ones of a model with experts only."""
EXACT_BELOW = 1 << 22
"""Parameters up to which there-and-back is tried with real numbers: presets above are checked by name and shape."""


def installed_family(name: str) -> Family:
    """The family as `--arch NAME` finds it, its entry point included.

    Raises:
        PluginError: it is not installed, or broken.
    """
    return Registry.discover().family(name)


RUN_PRESETS = 2
"""Presets that are run with real numbers at most: the smallest of those with at most `EXACT_BELOW` parameters."""


def check_family(family: Family) -> Report:
    """Check card, presets, configs, hooks and name maps, and run the smallest presets: docs/hooks.md lists the checks.

    Nothing that another implementation would have to tell is checked here: see `compare_models`.

    Returns:
        What was checked, what could not be, and what was measured; `print` it.

    Raises:
        ConformanceError: with everything that all checks found, each finding named by its check and preset.
    """
    checks = Checks(family.name)
    checks.run("import", "", check_import, family)
    checks.run("card", "", check_card, family)
    sizes = {preset: _check_preset(checks, family, preset) for preset in family.info.presets}
    real = sorted((size, preset) for preset, size in sizes.items() if size is not None and size <= EXACT_BELOW)
    for _, preset in real[:RUN_PRESETS]:
        _run_preset(checks, family, preset)
    for _, preset in real[RUN_PRESETS:]:
        checks.skip("behaviour", preset, f"{RUN_PRESETS} smaller presets are run")
    if not real:
        checks.skip("behaviour", "", f"no preset has {EXACT_BELOW} parameters or fewer: give the family a tiny one")
    report = checks.report()
    report.raise_faults()
    return report


def _check_preset(checks: Checks, family: Family, preset: str) -> int | None:
    """Everything about a preset that needs no numbers; its parameters' number, or None if there is no model of it."""
    if not checks.run("preset", preset, lambda: str(type(family.build_config(preset=preset)).__name__)):
        return None
    config = family.build_config(preset=preset)
    checks.run("config", preset, check_config, family, config)
    checks.run("hooks", preset, check_hooks, family, config)
    layouts: list[Layout] = []
    if checks.run("layouts", preset, lambda: f"{len(supported_layouts(family, config))} spellings"):
        layouts = supported_layouts(family, config)
        checks.run("spellings", preset, check_spellings, family, config, layouts)
        checks.run("GGUF config", preset, check_gguf_config, family, config)
        checks.run("there and back", preset, _over, check_there_and_back, family, config, layouts)
        checks.run("GGUF names", preset, check_gguf_names, family, config)
        checks.run("GGUF rows", preset, check_gguf_rows, family, config)
    model = _built(checks, family, preset, config)
    if model is None:
        return None
    checks.run("name map", preset, _over, partial(check_name_map, model=model), family, config, layouts)
    checks.run("parameter count", preset, check_parameter_count, family, preset, model)
    if parameter_count(model) > EXACT_BELOW:
        checks.run("shapes", preset, _check_shapes, family, config, model)
    return parameter_count(model)


def _built(checks: Checks, family: Family, preset: str, config: ModelConfig) -> nn.Module | None:
    """The preset's model on the meta device, or None where it cannot be built, which is noted."""
    made: list[nn.Module] = []

    def build() -> str:
        made.append(meta_model(family, config))
        return type(made[0]).__name__

    return made[0] if checks.run("model", preset, build) else None


def _over(check: Callable[..., None], family: Family, config: ModelConfig, layouts: list[Layout]) -> str:
    """A check for every layout; the same fault of several is told once."""
    found: dict[tuple[str, str, str], Finding] = {}
    for layout in layouts:
        try:
            check(family, config, layout)
        except AprTrainError as error:
            for finding in error.findings:
                found.setdefault((finding.rule, finding.field, finding.problem), finding)
    if found:
        raise ConformanceError.of(found.values())
    return f"{len(layouts)} spellings"


def _run_preset(checks: Checks, family: Family, preset: str) -> None:
    subject = Subject(family, family.build_config(preset=preset))
    runs = checks.run("forward", preset, check_forward, subject)
    checks.run("GGUF values", preset, check_gguf_values, family, subject.config)
    for name, check in (*BEHAVIOUR, ("sharding", check_sharding)):
        if runs:
            checks.run(name, preset, check, subject)
        else:
            checks.skip(name, preset, "the model does not run")
    checks.run("start", preset, check_start, subject)
    checks.run("seed", preset, check_seed, subject)


def _check_shapes(family: Family, config: ModelConfig, model: nn.Module) -> str:
    mask = Causal() if family.info.kind == "decoder" else Bidirectional()
    return check_on_meta(model, (2, min(16, config.usable_positions)), mask)


def parameter_count(model: nn.Module) -> int:
    """Numbers in the parameters of a model, a tied matrix counted once."""
    return sum(parameter.numel() for parameter in model.parameters())


def check_parameter_count(family: Family, preset: str, model: nn.Module) -> str:
    """A preset's model must have as many parameters as the card says that it has."""
    expected, found = family.info.parameter_counts.get(preset), parameter_count(model)
    if expected is None:
        raise NotCheckedError("the card's parameter_counts has no number for it")
    fail_on([f"{found:,} parameters, the card says {expected:,}"] if found != expected else [], where="")
    return f"{found:,}"


def check_import(family: Family) -> None:
    """Importing the plugin must be a matter of milliseconds: neither torch nor transformers may come along."""
    module = family.plugin.entry_point.value
    code = f"import sys, {module}; print(*sorted({{'torch', 'transformers'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if done.returncode:
        fail_on([f"the import fails: {done.stderr.strip().splitlines()[-1]}"], where=module)
    fail_on((f"the import loads {heavy}" for heavy in done.stdout.split()), where=module)


def check_card(family: Family) -> None:
    """The objectives must fit the kind (the card itself checks the rest): a mask that shows the answer teaches nothing."""
    info = family.info
    wrong = [name for name in info.objectives if OBJECTIVES[name].kind != info.kind]
    fail_on((f"objective {name} does not fit kind {info.kind}" for name in wrong), where=f"{family.name} FAMILY")


def check_config(family: Family, config: ModelConfig) -> None:
    """A config must survive its dict, and come back unchanged from the header of a file that holds it."""
    faults = []
    if type(config).from_dict(config.to_dict()) != config:
        faults.append("from_dict(to_dict()) is another config")
    header = header_from(family, config)
    faults += _read_otherwise(config, family.build_config(header=header))
    if not family.info.claims(header):
        faults.append("the family does not claim its own file")
    faults += [f"{name} is guessed when the file lacks it" for name in _guessed(family, config, header)]
    fail_on(faults, where=f"{family.name} build_config")


def _read_otherwise(config: ModelConfig, read: ModelConfig) -> Iterator[str]:
    """The fields of a config that its own file does not give back."""
    ours, theirs = config.to_dict(), read.to_dict()
    for name in sorted(ours.keys() | theirs.keys()):
        if (before := ours.get(name)) != (after := theirs.get(name)):
            yield f"{name} is {before!r}, and is read from the config's own header as {after!r}"
    if type(config) is not type(read):
        yield f"the config is a {type(config).__name__}, and is read from its own header as a {type(read).__name__}"


def check_gguf_config(family: Family, config: ModelConfig) -> None:
    """What a GGUF has no key for (an activation, layers without rotary positions) must be on the card, or it is read wrong."""
    layout = next((layout for layout in supported_layouts(family, config) if layout.names == "gguf"), None)
    if layout is None or not family.info.gguf_architectures:
        raise NotCheckedError("no GGUF files are this family's")
    header = header_from(family, config, layout)
    known = {key: value for key, value in header.config.items() if key in IN_GGUF}
    where = f"{family.name} build_config"
    try:
        read = family.build_config(header=evolve(header, config=known, companions={}))
    except ConfigError as error:
        unread = [finding.field for finding in error.findings]
        fail_on((f"a GGUF has no key for {name}, and nothing is guessed: {IMPLY_IT}" for name in unread), where=where)
        raise
    same = getattr(read, "attention_scale", None) == getattr(config, "attention_scale", None)
    told = {"initializer_range", *(("query_pre_attn_scalar", "attention_multiplier") if same else ())}
    ours, theirs = config.to_dict(), read.to_dict()
    fail_on(
        (
            f"a GGUF has no key for {name}, which is read as {theirs[name]!r} where it is {value!r}: {IMPLY_IT}"
            for name, value in ours.items()
            if name not in told and theirs[name] != value
        ),
        where=where,
    )


IMPLY_IT = "say what is meant in FAMILY.implied, or in FAMILY.gguf_implied where only GGUF files mean it"
IN_GGUF = frozenset({*KEYS.values(), "logits_scaling", "partial_rotary_factor", "rope_scaling"})
"""Keys of a config that a GGUF can say."""


def _guessed(family: Family, config: ModelConfig, header: Header) -> Iterator[str]:
    """Fields that a file must give, and that may be missing from it without a finding of a ConfigError that names them."""
    info = family.info
    of_files = {*info.config_keys} - {*info.absent_keys, "layer_types", "no_rope_layers", AUX_LOSS}  # other keys tell of these
    for name in sorted({*config.required(config.to_dict()), *of_files} - {*info.implied, *info.fixed}):
        values = {key: value for key, value in header.config.items() if key != name}
        tie = Tie(None, "decided at load") if name == "tie_word_embeddings" else header.tie
        try:
            family.build_config(header=evolve(header, config=values, tie=tie, companions={}))
        except ConfigError as error:
            if any(finding.field in (name, info.config_names.get(name)) for finding in error.findings):
                continue
        yield name


def check_spellings(family: Family, config: ModelConfig, layouts: list[Layout]) -> str:
    """Files of each spelling are known by their names; a bare one is a headed one without `base_prefix` and head."""
    faults = []
    for layout in layouts:
        if layout.names == "gguf" and not family.info.gguf_architectures:
            continue
        found = family.info.layout_of(header_from(family, config, layout))
        if (found.names, found.bare, found.experts) != (layout.names, layout.bare, layout.experts):
            faults.append(f"a file in {layout} is taken for one in {found}")
        if layout.bare:
            faults += _not_the_headed(family, config, layout)
    fail_on(dict.fromkeys(faults), where="")
    return f"{len(layouts)}"


def _not_the_headed(family: Family, config: ModelConfig, layout: Layout) -> Iterator[str]:
    """What a bare map does otherwise than the headed one: its tensors must fill the same, and its head must be fresh."""
    prefix = family.info.base_prefix
    headed, bare = (family.map_tensor_names(config, evolve(layout, bare=value)) for value in (False, True))
    for name in headed.tensors:
        filled = {edge.parameter for edge in headed.edges(name)}
        own = name.removeprefix(prefix)
        if name.startswith(prefix) and {edge.parameter for edge in bare.edges(own)} != filled:
            yield f"{name} fills {', '.join(sorted(filled))}, and {own} of a bare file does not"
        if not name.startswith(prefix):
            edges = [edge for parameter in filled for edge in bare.fills.get(parameter, ())]
            yield from (
                f"a bare file, which has no head, must have {edge.checkpoint}" for edge in edges if not edge.fresh_group
            )


def check_hooks(family: Family, config: ModelConfig) -> None:
    """Hooks must answer with the right types (`Family` checks that), find a sound file sound, survive an empty one."""
    family.attention_impl(config)
    sound = header_from(family, config)
    faults = [
        f"a sound file is refused: {finding}"
        for objective in family.info.objectives
        for finding in family.validate_family(sound, objective)
        if finding.severity == "error"
    ]
    family.validate_family(Header(path="<empty>", format="safetensors"), family.info.objectives[0])
    fail_on(faults, where=f"{family.name} validate_family")


def supported_layouts(family: Family, config: ModelConfig) -> list[Layout]:
    """The layouts that the family's files have: it refuses the others with a `NameMapError`.

    Raises:
        WrongMapError: for a map that is wrong in itself, which is no refusal of a layout.
        ConformanceError: when the layout of `.apr` files is refused.
    """
    layouts = []
    for layout in ALL_LAYOUTS:
        if layout.experts == "stacked" and not getattr(config, EXPERTS, 0):
            continue
        try:
            family.map_tensor_names(config, layout)
        except WrongMapError:
            raise
        except NameMapError:
            continue
        layouts.append(layout)
    if Layout() not in layouts:
        fail_on(["Hugging Face's names are refused, which .apr files have"], where=f"{family.name} map_tensor_names")
    return layouts


def check_name_map(family: Family, config: ModelConfig, layout: Layout, *, model: nn.Module) -> None:
    """The name map must fill every parameter of the (meta) model, with its shape, and nothing else."""
    family.map_tensor_names(config, layout).check_against(parameter_shapes(model))


def check_there_and_back(family: Family, config: ModelConfig, layout: Layout) -> None:
    """Checkpoint → parameters → checkpoint must give every bit back, and leave no tensor out; so must each operation alone.

    Models above `EXACT_BELOW` parameters are compared by name only.

    Raises:
        ConformanceError: NAMES-001 for an operation whose two directions are not each other's inverse.
    """
    name_map = family.map_tensor_names(config, layout)
    names = set(name_map.tensors)
    if sum(math.prod(shape) for shape in name_map.tensors.values()) > EXACT_BELOW:
        return
    where = f"{family.name} {layout}"
    check_operations(name_map, where=where)
    before = random_tensors(name_map)
    after = to_checkpoint(name_map, to_parameters(name_map, before))
    faults = [f"{name} does not come back" for name in sorted(names ^ set(after))]
    faults += [f"{name} comes back changed" for name in sorted(names & set(after)) if not _same(before[name], after[name])]
    fail_on(faults, where=where)


def check_operations(name_map: NameMap, *, where: str) -> None:
    """Every operation of a map must undo itself, bit for bit, starting from the file and starting from the model.

    Raises:
        ConformanceError: (NAMES-001) naming tensor, operation and direction.
    """
    source = np.random.default_rng(1)
    faults = []
    for edges in name_map.fills.values():
        for edge in edges:
            operation = edge.operation
            if problem := _not_inverse(operation, edge, source):
                faults.append(_broken(f"{type(operation).__name__} {problem}", where, edge))
    if faults:
        raise ConformanceError.of(faults)


def _not_inverse(operation: Operation, edge: Fill, source: np.random.Generator) -> str:
    """What is wrong with an operation, in words; empty when both directions give back what they were given."""
    ends = (
        ("to_parameter", operation.to_parameter, operation.to_checkpoint, edge.checkpoint_piece, edge.piece),
        ("to_checkpoint", operation.to_checkpoint, operation.to_parameter, edge.piece, edge.checkpoint_piece),
    )
    for name, there, back, shape, other in ends:
        given = random_array(source, shape)
        made = np.asarray(there(given))
        if made.shape != other:
            return f"gives {list(made.shape)} by {name}, where {list(other)} belongs"
        if not _same(given, back(made)):
            return f"does not give back what went through {name}"
    return ""


def _broken(problem: str, where: str, edge: Fill) -> Finding:
    return Finding(
        rule=rules.NAMES_001,
        subject=where,
        field=edge.checkpoint,
        problem=problem,
        expected="two directions that are each other's exact inverse",
        found=f"{edge.checkpoint} comes back changed ({edge.parameter})",
        hint="A file that is written and read again would not be the same model.",
    )


def _same(a: object, b: object) -> bool:
    first, second = np.asarray(a), np.asarray(b)
    return first.shape == second.shape and first.dtype == second.dtype and first.tobytes() == second.tobytes()
