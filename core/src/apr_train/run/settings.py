"""Every setting of a run, each with its help, limits and rules for a resume: the tables of `--config run.toml`."""

from __future__ import annotations

import glob
import math
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args

import attrs
from attrs import Factory, frozen

from apr_train.checkpoint.given import is_address
from apr_train.checkpoint.given_name import given_stem
from apr_train.checkpoint.header import RopeRows
from apr_train.errors import ConfigError
from apr_train.run.folder import OUT
from apr_train.run.objective_names import Packing, SourceKind, TrainingObjective, TrainOn
from apr_train.run.other_names import meant_value
from apr_train.run.paths import user_path
from apr_train.run.precision import PRECISION_TYPES
from apr_train.suggest import did_you_mean

MAY_CHANGE = "may change at a resume"
MAY_MOVE = "may lie elsewhere at a resume"
DECIDES = "decides what a run computes"
PATH = "is a path"
TABLES = "is an array of tables"
IN_TABLE = "the array of tables that it is a key of"


def option(
    default: Any,
    text: str,
    *,
    kind: type,
    minimum: float | None = None,
    above: float | None = None,
    maximum: float | None = None,
    choices: Sequence[str] = (),
    many: bool = False,
    or_one: bool = False,
    may_change: bool = False,
    may_move: bool = False,
    decides: bool = True,
    path: bool = False,
    in_table: str = "",
) -> Any:
    """An attrs field that knows its help text and its limits.

    Args:
        default: the value without a word from the user; None means that the run decides (see `defaults`).
        text: the field's docstring, and its `--help`.
        kind: bool, int, float or str; of the items when `many`.
        minimum: the least value allowed.
        above: a value that is already too small.
        maximum: the greatest value allowed.
        choices: the strings allowed.
        many: a tuple of values.
        or_one: of many, one alone may stand without a list around it.
        may_change: whether a resumed run may have another value than the one it started with.
        may_move: whether a resumed run may name another place for it: what lies there is compared with what the run started on.
        decides: whether the value decides what is computed; a path does not, what lies there is known by its hash.
        path: whether `~` stands for the home folder in it.
        in_table: of a key that the command line has no option for, the array of tables that it stands in.
    """
    limits = {"minimum": minimum, "above": above, "maximum": maximum, "choices": tuple(choices)}
    resume = {MAY_CHANGE: may_change, MAY_MOVE: may_move}
    metadata = {"text": text, "kind": kind, "many": many, PATH: path, DECIDES: decides, IN_TABLE: in_table, **resume, **limits}
    converter = None if not many else _one_or_many if or_one else _to_tuple
    return attrs.field(default=default, metadata=metadata, validator=_check, converter=converter)


def options_of(group: type) -> list[attrs.Attribute[Any]]:
    """The settings of a table that the command line has an option for: all but its arrays of tables."""
    return [item for item in attrs.fields(group) if TABLES not in item.metadata]


def flag(name: str) -> str:
    """`batch_size` → `--batch-size`."""
    return "--" + name.replace("_", "-")


def _to_tuple(value: Any) -> Any:
    """A list as a tuple; what is neither stays, for `_check` to refuse (a string would fall apart into letters)."""
    return tuple(value) if isinstance(value, list) else value


def _one_or_many(value: Any) -> Any:
    return (value,) if isinstance(value, str) else _to_tuple(value)


def _check(instance: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
    """Reject a value of the wrong type or outside the limits, naming the option."""
    if value is None and attribute.default is None:
        return
    many, kind = attribute.metadata["many"], attribute.metadata["kind"]
    if many and not isinstance(value, tuple):
        raise ConfigError("wrong type", where=_where(attribute), expected=f"a list of {kind.__name__}", found=repr(value))
    for item in value if many else (value,):
        _check_type(attribute, item)
        _check_range(attribute, item)


def _check_type(attribute: attrs.Attribute[Any], value: Any) -> None:
    kind: type = attribute.metadata["kind"]
    accepted = (int, float) if kind is float else kind
    if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
        raise ConfigError("wrong type", where=_where(attribute), expected=kind.__name__, found=repr(value))
    if value == "":  # as a path it would be the folder one happens to be in
        raise ConfigError("empty", where=_where(attribute), expected="a text, or to leave the option out", found="''")
    if isinstance(value, str) and not value.isascii() and value != value.encode(errors="replace").decode():
        expected = "valid Unicode, which a run's settings are written in"
        raise ConfigError("no text", where=_where(attribute), expected=expected, found=value)
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError("not a finite number", where=_where(attribute), found=repr(value))


def _check_range(attribute: attrs.Attribute[Any], value: Any) -> None:
    limits = attribute.metadata
    where = _where(attribute)
    if limits["minimum"] is not None and value < limits["minimum"]:
        raise ConfigError("too small", where=where, expected=f"at least {limits['minimum']}", found=value)
    if limits["above"] is not None and value <= limits["above"]:
        raise ConfigError("too small", where=where, expected=f"more than {limits['above']}", found=value)
    if limits["maximum"] is not None and value > limits["maximum"]:
        raise ConfigError("too large", where=where, expected=f"at most {limits['maximum']}", found=value)
    if limits["choices"] and value not in limits["choices"]:
        choices = ", ".join(limits["choices"])
        hint = meant_value(attribute.name, str(value), flag) or did_you_mean(str(value), limits["choices"])
        raise ConfigError("no such choice", where=where, expected=choices, found=value, hint=hint)


def _where(attribute: attrs.Attribute[Any]) -> str:
    if table := attribute.metadata[IN_TABLE]:
        return f"[[{table}]] {attribute.name}"
    return f"{attribute.name} ({flag(attribute.name)})"


MAX_SEED = 2**63 - 1
"""What torch and TOML have room for."""


@frozen(kw_only=True)
class ModelSettings:
    """[model]: what is trained, and from where."""

    arch: str | None = option(
        None, "Family; may be left out when exactly one installed family claims the checkpoint.", kind=str
    )
    init: str | None = option(
        None,
        "Checkpoint to start from: .apr, safetensors, GGUF, or a Hugging Face folder. Without it: from scratch.",
        kind=str,
        may_move=True,
        decides=False,
        path=True,
    )
    preset: str | None = option(None, "Named config of the family, for a run without --init.", kind=str)
    tokenizer: str | None = option(
        None,
        "A tokenizer.json, or a folder with one; else the checkpoint's own, or, without --init, one trained on the corpus.",
        kind=str,
        may_move=True,
        decides=False,
        path=True,
    )
    vocab_size: int | None = option(None, "Vocabulary of a model from scratch, instead of the preset's.", kind=int, minimum=1)
    rope_layout: RopeRows | None = option(
        None,
        "Order of the rows of q and k, for a checkpoint that does not say.",
        kind=str,
        choices=get_args(RopeRows),
        decides=False,
    )
    chat_template: str | None = option(
        None,
        "A chat template (.jinja), or a tokenizer_config.json with one; else the tokenizer's own.",
        kind=str,
        may_move=True,
        decides=False,
        path=True,
    )
    objective: TrainingObjective | None = option(
        None, "What is learnt; the family's first objective by default.", kind=str, choices=get_args(TrainingObjective)
    )
    attention: str | None = option(None, "Force one attention backend, or fail with its reason.", kind=str)


def _tables(cls: type) -> Any:
    """An attrs field for an array of tables, `[[group.field]]` in TOML; the command line has no option for it."""

    def convert(value: Any) -> Any:
        return tuple(cls(**item) if isinstance(item, dict) else item for item in value)

    metadata = {TABLES: cls, MAY_CHANGE: False, MAY_MOVE: True, DECIDES: False, PATH: False}
    return attrs.field(default=(), converter=convert, metadata=metadata)


_SOURCE = "data.source"


@frozen(kw_only=True)
class SourceSettings:
    """[[data.source]]: one part of a mixture. What the parts must be together is judged with the text (`data.source`)."""

    name: str | None = option(None, "What the source is called in metrics and report.", kind=str, in_table=_SOURCE)
    path: tuple[str, ...] = option(
        (), "Files, folders or globs: one, or a list.", kind=str, many=True, or_one=True, path=True, in_table=_SOURCE
    )
    weight: float | None = option(None, "Its share of the rows, by the sum of all weights.", kind=float, in_table=_SOURCE)
    kind: SourceKind | None = option(None, "What its documents are.", kind=str, choices=get_args(SourceKind), in_table=_SOURCE)
    max_epochs: int | None = option(None, "How often it is gone through at most.", kind=int, minimum=1, in_table=_SOURCE)
    text_field: str | None = option(None, "The field of a record that is its text.", kind=str, in_table=_SOURCE)


@frozen(kw_only=True)
class DataSettings:
    """[data]: what it is trained on, and in which portions."""

    data: tuple[str, ...] = option(
        (),
        "Files, folders or globs, or NAME=PATH:WEIGHT for a part of a mixture; else the Python standard library's own source.",
        kind=str,
        many=True,
        may_move=True,
        decides=False,
        path=True,
    )
    source: tuple[SourceSettings, ...] = _tables(SourceSettings)
    val_data: tuple[str, ...] = option(
        (),
        "Held-out text of one's own, as --data; nothing of --data is held out then.",
        kind=str,
        many=True,
        may_move=True,
        decides=False,
        path=True,
    )
    text_field: str | None = option(None, "The field of a record that is its text; text or content otherwise.", kind=str)
    gitignore: bool = option(
        True, "Leave out what the .gitignore files of a checkout leave out, unless it is named.", kind=bool, decides=False
    )
    validation_fraction: float = option(
        0.05, "Share of the text that is held out, in whole documents.", kind=float, above=0, maximum=0.9
    )
    sequence_length: int | None = option(None, "Tokens in a row.", kind=int, minimum=3)
    batch_size: int | None = option(None, "Rows in one forward and backward pass.", kind=int, minimum=1)
    accumulate: int = option(1, "Passes whose gradients make one step.", kind=int, minimum=1)
    parse_special: bool = option(
        False, "Text that spells a special token becomes that control token; it is text otherwise.", kind=bool
    )
    document_mask: bool = option(False, "Keep attention inside documents when several share a row.", kind=bool)
    mask_probability: float = option(0.15, "Masked-LM: share of tokens to predict.", kind=float, above=0, maximum=0.9)
    packing: Packing | None = option(
        None,
        "How documents come into rows: concatenate, or best-fit, which cuts none that fits; the objective decides otherwise.",
        kind=str,
        choices=get_args(Packing),
    )
    train_on: TrainOn = option("assistant", "sft: which turns are learnt.", kind=str, choices=get_args(TrainOn))
    chat_date: str | None = option(None, "sft: the date that a chat template is told, YYYY-MM-DD; today's otherwise.", kind=str)
    fim_rate: float = option(0.5, "fim: share of the documents with a hole.", kind=float, minimum=0, maximum=1)
    fim_spm_rate: float = option(0.5, "fim: of these, share with the suffix in front.", kind=float, minimum=0, maximum=1)
    fim_tokens: str | None = option(
        None, "fim: PREFIX,SUFFIX,MIDDLE, entries of the vocabulary; the family's or the known ones otherwise.", kind=str
    )
    rehash: bool = option(
        False, "Read all text, though nothing says that it has changed.", kind=bool, may_change=True, decides=False
    )
    val_batches: int = option(8, "Batches in one validation.", kind=int, minimum=1, decides=False)


@frozen(kw_only=True)
class OptimizerSettings:
    """[optimizer]: AdamW and the way of its learning rate."""

    lr: float | None = option(None, "Peak learning rate.", kind=float, above=0)
    schedule: str = option(
        "cosine", "How the rate falls after warm-up.", kind=str, choices=("cosine", "linear", "constant", "wsd")
    )
    warmup_steps: int | None = option(None, "Steps of linear warm-up.", kind=int, minimum=0)
    min_lr_ratio: float = option(0.1, "Where the rate ends, as a share of the peak.", kind=float, minimum=0, maximum=1)
    decay_ratio: float = option(0.2, "wsd: share of all steps in which the rate falls.", kind=float, minimum=0, maximum=1)
    weight_decay: float = option(0.1, "Decoupled weight decay, on matrices only.", kind=float, minimum=0)
    beta1: float = option(0.9, "AdamW's first-moment decay.", kind=float, minimum=0, maximum=0.9999)
    beta2: float = option(0.95, "AdamW's second-moment decay.", kind=float, minimum=0, maximum=0.9999)
    eps: float = option(1e-8, "AdamW's epsilon.", kind=float, above=0)
    clip_norm: float = option(1.0, "Largest gradient norm; 0 does not clip.", kind=float, minimum=0)


@frozen(kw_only=True)
class LoraSettings:
    """[lora]: low-rank matrices beside those of a base that stays as it is (Hu et al. 2021); without a rank, none."""

    lora_rank: int | None = option(
        None, "Rank of the adapters that are trained in place of the weights, on the base of --init.", kind=int, minimum=1
    )
    lora_alpha: float | None = option(
        None, "The adapters' product counts alpha / rank times; twice the rank otherwise.", kind=float, above=0
    )
    lora_dropout: float = option(0.0, "Dropout on what goes into an adapter.", kind=float, minimum=0, maximum=0.9)
    lora_target: tuple[str, ...] = option(
        (),
        "End of the names of the matrices that get an adapter, q_proj say; may be given several times. The family's, or all "
        "matrices of the blocks, otherwise.",
        kind=str,
        many=True,
    )


@frozen(kw_only=True)
class RunSettings:
    """[run]: how long, how, and what is written."""

    run: str | None = option(
        None, "Name of the run's folder; made from the model's name otherwise.", kind=str, decides=False, path=True
    )
    out: str = option(OUT, "Folder that holds the runs.", kind=str, decides=False, path=True)
    steps: int = option(
        200, "Optimizer steps in all; 0 only loads, validates and writes.", kind=int, minimum=0, may_change=True
    )
    eval: str | None = option(
        None, "Evaluations at each validation, NAME:COUNT with commas between.", kind=str, may_change=True, decides=False
    )
    val_every: int = option(
        50, "Steps between validations; 0 for first and last only.", kind=int, minimum=0, may_change=True, decides=False
    )
    save_every: int = option(
        100, "Steps between checkpoints; 0 for the last only.", kind=int, minimum=0, may_change=True, decides=False
    )
    keep: int = option(2, "Checkpoints that are kept; 0 keeps all.", kind=int, minimum=0, may_change=True, decides=False)
    log_every: int = option(
        10, "Steps between lines when there is no terminal.", kind=int, minimum=1, may_change=True, decides=False
    )
    precision: str | None = option(
        None,
        "fp32; bf16: float32 weights under autocast; bf16-weights: everything in bfloat16. bf16 where the hardware has it.",
        kind=str,
        choices=tuple(PRECISION_TYPES),
    )
    compile: bool = option(False, "Compile the blocks with torch.compile.", kind=bool)
    recompute: bool = option(False, "Recompute each block in the backward pass: less memory, more time.", kind=bool)
    device: str | None = option(None, "cpu or cuda; cuda when there is one.", kind=str, decides=False)
    threads: int | None = option(
        None, "CPU threads; torch's own choice otherwise.", kind=int, minimum=1, may_change=True, decides=False
    )
    seed: int = option(0, "Seed of initialisation, data order, masking and dropout.", kind=int, minimum=0, maximum=MAX_SEED)
    deterministic: bool = option(False, "Deterministic algorithms, on CUDA slower.", kind=bool)
    allow_cold_init: bool = option(
        False,
        "Go on although the loss at step 0, or the reference loss, speaks against the weights of --init.",
        kind=bool,
        may_change=True,
        decides=False,
    )
    prompt: str | None = option(None, "Start of the sample that ends a run.", kind=str, may_change=True, decides=False)
    sample_tokens: int = option(32, "Tokens of that sample; 0 for none.", kind=int, minimum=0, may_change=True, decides=False)


@frozen(kw_only=True)
class Settings:
    """All settings of a run."""

    model: ModelSettings = Factory(ModelSettings)
    data: DataSettings = Factory(DataSettings)
    optimizer: OptimizerSettings = Factory(OptimizerSettings)
    lora: LoraSettings = Factory(LoraSettings)
    run: RunSettings = Factory(RunSettings)


GROUPS: dict[str, type] = {
    "model": ModelSettings,
    "data": DataSettings,
    "optimizer": OptimizerSettings,
    "lora": LoraSettings,
    "run": RunSettings,
}
"""TOML table → its class."""


def run_stem(settings: Settings) -> str:
    """`family-x` for `--init x.apr`, `family-preset` from scratch: the name of a run without `--run`."""
    model = settings.model
    origin = given_stem(model.init) if model.init is not None else model.preset
    return f"{model.arch}-{origin}"


def absolute_paths(settings: Settings, *, absent: bool = False) -> Settings:
    """The paths of inputs made absolute, so that the run's settings mean the same from any folder; no `~` in any path.

    A model or tokenizer that is not there stays as it was typed, unless `absent`, as for a resume, whose files may be gone:
    it may be a name on the Hub, and is refused as that.

    Raises:
        ConfigError: for a `~` where there is no home folder.
    """
    settings = _without_tilde(settings)
    model = settings.model
    init, tokenizer, template = (
        str(Path(path).absolute()) if path is not None and (absent or os.path.lexists(path)) else path
        for path in (model.init, model.tokenizer, model.chat_template)
    )
    return attrs.evolve(
        settings,
        model=attrs.evolve(model, init=init, tokenizer=tokenizer, chat_template=template),
        data=_absolute_data(settings.data),
    )


def _absolute_data(data: DataSettings) -> DataSettings:
    sources = tuple(attrs.evolve(item, path=tuple(_absolute(user_path(path)) for path in item.path)) for item in data.source)
    named, val = (tuple(of_argument(item, _absolute) for item in paths) for paths in (data.data, data.val_data))
    return attrs.evolve(data, data=named, val_data=val, source=sources)


SOURCE_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")
"""What a source may be called."""
_ARGUMENT = re.compile(rf"(?P<name>{SOURCE_NAME.pattern})=(?P<path>.+?)(?::(?P<weight>[-+]?(?:[0-9.][0-9.eE+-]*|inf|nan)))?")


@frozen(kw_only=True)
class DataArgument:
    """One argument of `--data`: a path, or `NAME=PATH:WEIGHT`."""

    name: str | None
    path: str
    weight: str | None

    @classmethod
    def parse(cls, text: str) -> DataArgument:
        """Take an argument apart; one that is a path as it stands is that."""
        found = None if os.path.lexists(text) else _ARGUMENT.fullmatch(text)
        return cls(name=None, path=text, weight=None) if found is None else cls(**found.groupdict())

    def source(self) -> SourceSettings:
        """The same as a table.

        Raises:
            ConfigError: for a weight that is no finite number.
        """
        try:
            weight = None if self.weight is None else float(self.weight)
            return SourceSettings(name=self.name, path=(self.path,), weight=weight)
        except (ValueError, ConfigError) as error:
            where = f"--data [{self.name}]"
            raise ConfigError(
                "a weight that is no finite number", where=where, expected="such as 0.3", found=self.weight
            ) from error

    def __str__(self) -> str:
        name = "" if self.name is None else f"{self.name}="
        return f"{name}{self.path}" + ("" if self.weight is None else f":{self.weight}")


def mixture_of(data: DataSettings) -> tuple[SourceSettings, ...]:
    """The sources with names, as tables, however they were said; none for one pool.

    Raises:
        ConfigError: for a weight that is no finite number.
    """
    named = [argument for argument in map(DataArgument.parse, data.data) if argument.name is not None]
    return (*data.source, *(argument.source() for argument in named))


def moved_sources(data: DataSettings, arguments: Sequence[str]) -> DataSettings:
    """The settings of a run with names in its data, where the user says of some of them where they lie now.

    Raises:
        ConfigError: as `mixture_of`.
    """
    now = {argument.name: argument for argument in map(DataArgument.parse, arguments)}
    if None in now or not mixture_of(data):
        return attrs.evolve(data, data=tuple(arguments), source=())
    tables = {item.name: item for item in mixture_of(data)}
    for name, argument in now.items():
        said = argument.source()
        before = tables.get(name, said)
        weight = before.weight if said.weight is None else said.weight
        tables[name] = attrs.evolve(before, path=said.path, weight=weight)
    return attrs.evolve(data, data=(), source=tuple(tables.values()))


def of_argument(text: str, change: Callable[[str], str]) -> str:
    """An argument of `--data` with another path."""
    argument = DataArgument.parse(text)
    return str(attrs.evolve(argument, path=change(argument.path)))


def _without_tilde(settings: Settings) -> Settings:
    groups = {}
    for name, cls in GROUPS.items():
        group = getattr(settings, name)
        paths = [item.name for item in attrs.fields(cls) if item.metadata[PATH]]
        groups[name] = attrs.evolve(group, **{path: expanded(getattr(group, path)) for path in paths})
    return Settings(**groups)


def expanded(value: Any) -> Any:
    """A path setting's value, one or several, as `user_path` gives it; None stays."""
    if value is None:
        return None
    return tuple(of_argument(item, user_path) for item in value) if isinstance(value, tuple) else user_path(value)


def _absolute(item: str) -> str:
    """A path, or a glob, in which nothing but what the user wrote is a pattern; an address is refused as it was typed."""
    if is_address(item):
        return item
    here = str(Path.cwd())
    there = os.path.exists(item)  # noqa: PTH110  # Path's raises for a name that is too long
    return str(Path(here if there else glob.escape(here), item))
