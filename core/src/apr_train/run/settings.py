"""Every setting of a run, each with its help, limits and rules for a resume: the tables of `--config run.toml`."""

from __future__ import annotations

from typing import Literal, get_args

from attrs import Factory, frozen

from apr_train.checkpoint.given_name import given_stem
from apr_train.checkpoint.header import RopeRows
from apr_train.run.duration import seconds
from apr_train.run.folder import OUT
from apr_train.run.measures import MEASURES, NONE
from apr_train.run.objective_names import Packing, SourceKind, TrainingObjective, TrainOn
from apr_train.run.optimizer_names import Bf16Update, MuonAdjustment, OptimizerName
from apr_train.run.option import Beside, input_path, option, tables
from apr_train.run.precision import PRECISION_TYPES

NewRows = Literal["mean", "pieces"]

MAX_THREADS = 1024
"""More than the largest machines have; OpenMP ends the process over some thousand more."""
MAX_SEED = 2**63 - 1
"""What torch and TOML have room for."""

# Why a resume may not change a setting; each sentence stands behind the setting's name.
_WEIGHTS = "the weights of the checkpoint are that model's"
_ORDERED = "the checkpoint has its rows in order"
_TEXT = "it decides which text is learnt and which is held out"
_ROWS = "it decides what a row is and what is predicted in it, and the position in the data counts rows"
_SHARES = "which row of which source comes next follows from it"
_DRAWS = "fresh weights, the order of the rows and what is hidden in them were drawn with it"
_MEASURED = "the validations before and after would be of other rows"
_RATES = "the steps that are done had their learning rates from it"
_STATE = "the optimizer's state in the checkpoint is of that kind"
_MOMENTS = "the optimizer's moments were averaged with it"
_ADAPTERS = "the adapters of the checkpoint were made and trained with it"
_AVERAGED = "the averaged weights of the checkpoint were made with it"
_PLACE = "the run is the folder that --resume names"


@frozen(kw_only=True)
class ModelSettings:
    """[model]: what is trained, and from where."""

    arch: str | None = option(
        None, "Family; may be left out when exactly one installed family claims the checkpoint.", kind=str, fixed=_WEIGHTS
    )
    init: str | None = input_path(
        None,
        "Checkpoint to start from: .apr, safetensors, GGUF, or a Hugging Face folder. Without it: from scratch.",
    )
    preset: str | None = option(None, "Named config of the family, for a run without --init.", kind=str, fixed=_WEIGHTS)
    tokenizer: str | None = input_path(
        None,
        "A tokenizer.json, or a folder with one; else the checkpoint's own, or, without --init, one trained on the corpus.",
    )
    add_tokens: str | None = option(
        None,
        "A file of tokens, one a line, that the vocabulary of --init gets beside its own.",
        kind=str,
        decides=False,
        path=True,
        fixed=_WEIGHTS,
    )
    new_rows: NewRows | None = option(
        None,
        "What the rows of added tokens begin as: the mean of all old rows, or of those of the pieces of a token's text; mean "
        "otherwise.",
        kind=str,
        choices=get_args(NewRows),
        fixed=_WEIGHTS,
        used_with=(Beside("add_tokens"),),
    )
    vocab_size: int | None = option(
        None, "Vocabulary of a model from scratch, instead of the preset's.", kind=int, minimum=1, fixed=_WEIGHTS
    )
    rope_layout: RopeRows | None = option(
        None,
        "Order of the rows of q and k, for a checkpoint that does not say.",
        kind=str,
        choices=get_args(RopeRows),
        decides=False,
        fixed=_ORDERED,
        used_with=(Beside("init"),),
    )
    chat_template: str | None = input_path(
        None,
        "A chat template (.jinja), or a tokenizer_config.json with one; else the tokenizer's own.",
    )
    objective: TrainingObjective | None = option(
        None,
        "What is learnt; the family's first objective by default.",
        kind=str,
        choices=get_args(TrainingObjective),
        fixed=_ROWS,
    )
    attention: str | None = option(None, "Force one attention backend, or fail with its reason.", kind=str, may_change=True)


_SOURCE = "data.source"


@frozen(kw_only=True)
class SourceSettings:
    """[[data.source]]: one part of a mixture. What the parts must be together is judged with the text (`data.source`)."""

    name: str | None = option(
        None, "What the source is called in metrics and report.", kind=str, in_table=_SOURCE, fixed=_SHARES
    )
    path: tuple[str, ...] = input_path((), "Files, folders or globs: one, or a list.", many=True, or_one=True, in_table=_SOURCE)
    weight: float | None = option(
        None, "Its share of the rows, by the sum of all weights.", kind=float, in_table=_SOURCE, fixed=_SHARES
    )
    kind: SourceKind | None = option(
        None, "What its documents are.", kind=str, choices=get_args(SourceKind), in_table=_SOURCE, fixed=_SHARES
    )
    max_epochs: int | None = option(
        None, "How often it is gone through at most.", kind=int, minimum=1, in_table=_SOURCE, fixed=_SHARES
    )
    text_field: str | None = option(None, "The field of a record that is its text.", kind=str, in_table=_SOURCE, fixed=_TEXT)


@frozen(kw_only=True)
class DataSettings:
    """[data]: what it is trained on, and in which portions."""

    data: tuple[str, ...] = input_path(
        (),
        "Files, folders or globs, or NAME=PATH:WEIGHT for a part of a mixture; else the Python standard library's own source.",
        many=True,
    )
    source: tuple[SourceSettings, ...] = tables(SourceSettings, _SOURCE)
    val_data: tuple[str, ...] = input_path(
        (),
        "Held-out text of one's own, as --data; nothing of --data is held out then.",
        many=True,
    )
    text_field: str | None = option(
        None, "The field of a record that is its text; text or content otherwise.", kind=str, fixed=_TEXT
    )
    gitignore: bool = option(
        True,
        "Leave out what the .gitignore files of a checkout leave out, unless it is named.",
        kind=bool,
        decides=False,
        fixed=_TEXT,
    )
    validation_fraction: float = option(
        0.05, "Share of the text that is held out, in whole documents.", kind=float, above=0, maximum=0.9, fixed=_TEXT
    )
    sequence_length: int | None = option(None, "Tokens in a row.", kind=int, minimum=3, fixed=_ROWS)
    batch_size: int | None = option(
        None, "Rows in one forward and backward pass, over all processes.", kind=int, minimum=1, may_change=True
    )
    accumulate: int = option(1, "Passes whose gradients make one step.", kind=int, minimum=1, may_change=True)
    parse_special: bool = option(
        False, "Text that spells a special token becomes that control token; it is text otherwise.", kind=bool, fixed=_ROWS
    )
    document_mask: bool = option(False, "Keep attention inside documents when several share a row.", kind=bool, fixed=_ROWS)
    mask_probability: float = option(
        0.15,
        "Masked-LM: share of tokens to predict.",
        kind=float,
        above=0,
        maximum=0.9,
        fixed=_ROWS,
        used_with=(Beside("objective", ("masked-lm",)),),
    )
    packing: Packing | None = option(
        None,
        "How documents come into rows: concatenate, or best-fit, which cuts none that fits; the objective decides otherwise.",
        kind=str,
        choices=get_args(Packing),
        fixed=_ROWS,
    )
    train_on: TrainOn = option(
        "assistant",
        "sft: which turns are learnt.",
        kind=str,
        choices=get_args(TrainOn),
        fixed=_ROWS,
        used_with=(Beside("objective", ("sft",)),),
    )
    chat_date: str | None = option(
        None,
        "sft: the date that a chat template is told, YYYY-MM-DD; today's otherwise.",
        kind=str,
        fixed=_ROWS,
        used_with=(Beside("objective", ("sft",)),),
    )
    fim_rate: float = option(
        0.5,
        "fim: share of the documents with a hole.",
        kind=float,
        minimum=0,
        maximum=1,
        fixed=_ROWS,
        used_with=(Beside("objective", ("fim",)),),
    )
    fim_spm_rate: float = option(
        0.5,
        "fim: of these, share with the suffix in front.",
        kind=float,
        minimum=0,
        maximum=1,
        fixed=_ROWS,
        used_with=(Beside("objective", ("fim",)),),
    )
    fim_tokens: str | None = option(
        None,
        "fim: PREFIX,SUFFIX,MIDDLE, entries of the vocabulary; the family's or the known ones otherwise.",
        kind=str,
        fixed=_ROWS,
        used_with=(
            Beside("objective", ("fim",)),
            Beside("eval"),
        ),
    )
    rehash: bool = option(
        False, "Read all text, though nothing says that it has changed.", kind=bool, may_change=True, decides=False
    )
    val_batches: int = option(8, "Batches in one validation.", kind=int, minimum=1, decides=False, fixed=_MEASURED)


_GROUP = "optimizer.group"
_MUON = Beside("optimizer", ("muon",))


@frozen(kw_only=True)
class GroupSettings:
    """[[optimizer.group]]: what is otherwise for some parameters. Whether it can be so is judged with the model."""

    pattern: str | None = option(
        None,
        "Whole names of parameters, here or in Hugging Face's files; *, ? and [a-z] as in a shell.",
        kind=str,
        in_table=_GROUP,
    )
    lr: float | None = option(
        None, "Their peak learning rate; it rises and falls as the run's does.", kind=float, above=0, in_table=_GROUP
    )
    weight_decay: float | None = option(None, "Their weight decay.", kind=float, minimum=0, in_table=_GROUP)
    frozen: bool = option(False, "They stay as they are: no gradient, no state.", kind=bool, in_table=_GROUP)


@frozen(kw_only=True)
class OptimizerSettings:
    """[optimizer]: how weights are updated, and the way of the learning rate."""

    optimizer: OptimizerName = option(
        "adamw",
        "AdamW for everything, or Muon for the matrices of the blocks and AdamW for the rest.",
        kind=str,
        choices=get_args(OptimizerName),
        fixed=_STATE,
    )
    lr: float | None = option(None, "Peak learning rate.", kind=float, above=0, may_change=True)
    schedule: str = option(
        "cosine",
        "How the rate falls after warm-up.",
        kind=str,
        choices=("cosine", "linear", "constant", "wsd"),
        may_change=True,
    )
    warmup_steps: int | None = option(None, "Steps of linear warm-up.", kind=int, minimum=0, fixed=_RATES)
    min_lr_ratio: float = option(
        0.1,
        "Where the rate ends, as a share of the peak.",
        kind=float,
        minimum=0,
        maximum=1,
        may_change=True,
        used_with=(Beside("schedule", ("cosine", "linear", "wsd")),),
    )
    decay_ratio: float = option(
        0.2,
        "wsd: share of all steps in which the rate falls.",
        kind=float,
        minimum=0,
        maximum=1,
        may_change=True,
        used_with=(Beside("schedule", ("wsd",)),),
    )
    weight_decay: float = option(0.1, "Decoupled weight decay, on matrices only.", kind=float, minimum=0, may_change=True)
    muon_lr: float | None = option(
        None, "Muon's peak learning rate, if it is not --lr.", kind=float, above=0, may_change=True, used_with=(_MUON,)
    )
    muon_adjust_lr: MuonAdjustment = option(
        "match-rms-adamw",
        "How Muon's rate goes by a matrix's shape: match-rms-adamw makes AdamW's rates its own.",
        kind=str,
        choices=get_args(MuonAdjustment),
        may_change=True,
        used_with=(_MUON,),
    )
    muon_momentum: float = option(
        0.95, "Muon's momentum.", kind=float, minimum=0, maximum=0.9999, fixed=_MOMENTS, used_with=(_MUON,)
    )
    bf16_update: Bf16Update = option(
        "stochastic",
        "bf16-weights: what becomes of an update that is smaller than a weight's last bit.",
        kind=str,
        choices=get_args(Bf16Update),
        may_change=True,
        used_with=(Beside("precision", ("bf16-weights",)),),
    )
    beta1: float = option(0.9, "AdamW's first-moment decay.", kind=float, minimum=0, maximum=0.9999, fixed=_MOMENTS)
    beta2: float = option(0.95, "AdamW's second-moment decay.", kind=float, minimum=0, maximum=0.9999, fixed=_MOMENTS)
    eps: float = option(1e-8, "AdamW's epsilon.", kind=float, above=0, may_change=True)
    clip_norm: float = option(1.0, "Largest gradient norm; 0 does not clip.", kind=float, minimum=0, may_change=True)
    group: tuple[GroupSettings, ...] = tables(GroupSettings, _GROUP, may_move=False, decides=True, fixed=_STATE)


@frozen(kw_only=True)
class LoraSettings:
    """[lora]: low-rank matrices beside those of a base that stays as it is (Hu et al. 2021); without a rank, none."""

    lora_rank: int | None = option(
        None,
        "Rank of the adapters that are trained in place of the weights, on the base of --init.",
        kind=int,
        minimum=1,
        fixed=_ADAPTERS,
    )
    lora_alpha: float | None = option(
        None,
        "The adapters' product counts alpha / rank times; twice the rank otherwise.",
        kind=float,
        above=0,
        fixed=_ADAPTERS,
        used_with=(Beside("lora_rank"),),
    )
    lora_dropout: float = option(
        0.0,
        "Dropout on what goes into an adapter.",
        kind=float,
        minimum=0,
        maximum=0.9,
        may_change=True,
        used_with=(Beside("lora_rank"),),
    )
    lora_target: tuple[str, ...] = option(
        (),
        "End of the names of the matrices that get an adapter, q_proj say; may be given several times. The family's, or all "
        "matrices of the blocks, otherwise.",
        kind=str,
        many=True,
        fixed=_ADAPTERS,
        used_with=(Beside("lora_rank"),),
    )


@frozen(kw_only=True)
class RunSettings:
    """[run]: how long, how, and what is written."""

    run: str | None = option(
        None,
        "Name of the run's folder; made from the model's name otherwise.",
        kind=str,
        decides=False,
        path=True,
        fixed=_PLACE,
    )
    out: str = option(OUT, "Folder that holds the runs.", kind=str, decides=False, path=True, fixed=_PLACE)
    steps: int = option(
        200, "Optimizer steps in all; 0 only loads, validates and writes.", kind=int, minimum=0, may_change=True
    )
    eval: str | None = option(
        None, "Evaluations at each validation, NAME:COUNT with commas between.", kind=str, may_change=True, decides=False
    )
    tracker: tuple[str, ...] = option(
        (),
        "Tell this tracker of the run: tensorboard, wandb, or an installed one; may be given several times.",
        kind=str,
        many=True,
        or_one=True,
        may_change=True,
        decides=False,
    )
    val_every: int = option(
        50, "Steps between validations; 0 for first and last only.", kind=int, minimum=0, may_change=True, decides=False
    )
    save_every: int = option(
        100, "Steps between checkpoints; 0 for the last only.", kind=int, minimum=0, may_change=True, decides=False
    )
    keep: int = option(2, "Checkpoints that are kept; 0 keeps all.", kind=int, minimum=0, may_change=True, decides=False)
    async_save: str = option(
        "auto",
        "Whether steps go on while a checkpoint is written: on copies it in memory, off lets them wait, auto copies where "
        "that takes at most half of the memory that is free.",
        kind=str,
        choices=("auto", "on", "off"),
        may_change=True,
        decides=False,
    )
    log_every: int = option(
        10, "Steps between lines when there is no terminal.", kind=int, minimum=1, may_change=True, decides=False
    )
    max_time: str | None = option(
        None,
        "End in order before so much time is over, such as 90s, 30m or 1h30m; 0 for no limit.",
        kind=str,
        check=seconds,
        may_change=True,
        decides=False,
    )
    early_stop: int = option(
        0,
        "End in order after so many validations without a better one; 0 for never.",
        kind=int,
        minimum=0,
        used_with=(Beside("val_every"),),
        may_change=True,
        decides=False,
    )
    keep_best: str = option(
        NONE,
        "Also keep the checkpoint that was measured best: the lowest validation loss, the lowest loss of --eval fim, or the "
        "highest share of --eval syntax.",
        kind=str,
        choices=(NONE, *MEASURES),
        alone="val_loss",
        may_change=True,
        decides=False,
    )
    skip_spikes: float = option(
        0.0,
        "Skip a step whose loss or gradient norm lies more than so many standard deviations above the recent ones; 0 for none.",
        kind=float,
        minimum=0,
        may_change=True,
    )
    ema: float | None = option(
        None,
        "Also average the weights over the steps with this decay, 0.99 say: validations, sample and result are of the average.",
        kind=float,
        above=0,
        maximum=0.99999,
        fixed=_AVERAGED,
    )
    precision: str | None = option(
        None,
        "fp32; bf16: float32 weights under autocast; bf16-weights: everything in bfloat16. bf16 where the hardware has it.",
        kind=str,
        choices=tuple(PRECISION_TYPES),
        may_change=True,
    )
    compile: bool | None = option(
        None,
        "Compile the blocks with torch.compile: from so many operations on that it pays, where nothing is said.",
        kind=bool,
        may_change=True,
    )
    recompute: bool = option(
        False, "Recompute each block in the backward pass: less memory, more time.", kind=bool, may_change=True
    )
    recompute_keep: str = option(
        "nothing",
        "What of a recomputed block is kept: nothing; products, the results of its matrix products: less time, more memory.",
        kind=str,
        choices=("nothing", "products"),
        used_with=(Beside("recompute"),),
        may_change=True,
    )
    device: str | None = option(None, "cpu or cuda; cuda when there is one.", kind=str, decides=False, may_change=True)
    threads: int | None = option(
        None,
        "CPU threads; one for each core that the process may use otherwise.",
        kind=int,
        minimum=1,
        maximum=MAX_THREADS,
        may_change=True,
        decides=False,
    )
    peak_tflops: float | None = option(
        None,
        "What the device does at most, in 10¹² operations a second, for the MFU; a table's, or measured on a CPU, otherwise.",
        kind=float,
        above=0,
        may_change=True,
        decides=False,
    )
    profile: str | None = option(
        None, "Steps whose trace goes into the run's folder, FIRST:LAST.", kind=str, may_change=True, decides=False
    )
    seed: int = option(
        0, "Seed of initialisation, data order, masking and dropout.", kind=int, minimum=0, maximum=MAX_SEED, fixed=_DRAWS
    )
    deterministic: bool = option(False, "Deterministic algorithms, on CUDA slower.", kind=bool, may_change=True)
    allow_cold_init: bool = option(
        False,
        "Go on although the loss at step 0, or the reference loss, speaks against the weights of --init.",
        kind=bool,
        may_change=True,
        decides=False,
    )
    prompt: str | None = option(
        None,
        "Start of the sample that ends a run.",
        kind=str,
        may_change=True,
        decides=False,
        used_with=(Beside("sample_tokens"),),
    )
    sample_tokens: int = option(32, "Tokens of that sample; 0 for none.", kind=int, minimum=0, may_change=True, decides=False)


@frozen(kw_only=True)
class ProcessSettings:
    """[processes]: how several processes, started by torchrun, share a run; one process alone has no use for it."""

    shard: str = option(
        "auto",
        "Where each parameter lies: full, in pieces over all processes; hybrid, in pieces over those of a machine; none, "
        "whole in each. auto is full on one machine, hybrid on several.",
        kind=str,
        choices=("auto", "full", "hybrid", "none"),
        may_change=True,
        decides=False,
    )
    replicate: int | None = option(
        None,
        "hybrid: how many groups of processes have all parameters; one a machine otherwise.",
        kind=int,
        minimum=1,
        used_with=(Beside("shard", ("auto", "hybrid")),),
        may_change=True,
        decides=False,
    )
    offload: bool = option(
        False,
        "Keep parameters, gradients and optimizer state in the machine's memory, and on the GPU the block that runs: for CUDA.",
        kind=bool,
        may_change=True,
        decides=False,
    )
    timeout: int = option(
        600,
        "Seconds that a process waits for the others before it gives up.",
        kind=int,
        minimum=1,
        may_change=True,
        decides=False,
    )


@frozen(kw_only=True)
class Settings:
    """All settings of a run."""

    model: ModelSettings = Factory(ModelSettings)
    data: DataSettings = Factory(DataSettings)
    optimizer: OptimizerSettings = Factory(OptimizerSettings)
    lora: LoraSettings = Factory(LoraSettings)
    run: RunSettings = Factory(RunSettings)
    processes: ProcessSettings = Factory(ProcessSettings)


GROUPS: dict[str, type] = {
    "model": ModelSettings,
    "data": DataSettings,
    "optimizer": OptimizerSettings,
    "lora": LoraSettings,
    "run": RunSettings,
    "processes": ProcessSettings,
}
"""TOML table → its class."""


def run_stem(settings: Settings) -> str:
    """`family-x` for `--init x.apr`, `family-preset` from scratch: the name of a run without `--run`."""
    model = settings.model
    origin = given_stem(model.init) if model.init is not None else model.preset
    return f"{model.arch}-{origin}"
