"""The settings of a run as keywords of `apr_train.train`; written by tools/setting_types.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any, Literal, TypedDict

Place = str | PathLike[str]
"""A path as text or as a `Path`."""


class TrainSettings(TypedDict, total=False):
    """Every setting by its name; None is the same as leaving it out. docs/training.md tells each with its default."""

    # [model]
    arch: str | None
    """Family; may be left out when exactly one installed family claims the checkpoint."""
    init: Place | None
    """Checkpoint to start from: .apr, safetensors, GGUF, or a Hugging Face folder. Without it: from scratch."""
    preset: str | None
    """Named config of the family, for a run without --init."""
    tokenizer: Place | None
    """A tokenizer.json, or a folder with one; else the checkpoint's own, or, without --init, one trained on the corpus."""
    add_tokens: Place | None
    """A file of tokens, one a line, that the vocabulary of --init gets beside its own."""
    new_rows: Literal["mean", "pieces"] | None
    """What the rows of added tokens begin as: the mean of all old rows, or of those of the pieces of a token's text; mean
    otherwise."""
    vocab_size: int | None
    """Vocabulary of a model from scratch, instead of the preset's."""
    rope_layout: Literal["split-half", "adjacent"] | None
    """Order of the rows of q and k, for a checkpoint that does not say."""
    chat_template: Place | None
    """A chat template (.jinja), or a tokenizer_config.json with one; else the tokenizer's own."""
    objective: Literal["causal-lm", "sft", "fim", "masked-lm"] | None
    """What is learnt; the family's first objective by default."""
    attention: str | None
    """Force one attention backend, or fail with its reason."""
    # [data]
    data: Place | Sequence[Place] | None
    """Files, folders or globs, or NAME=PATH:WEIGHT for a part of a mixture; else the Python standard library's own source."""
    source: Sequence[Mapping[str, Any]] | None
    val_data: Place | Sequence[Place] | None
    """Held-out text of one's own, as --data; nothing of --data is held out then."""
    text_field: str | None
    """The field of a record that is its text; text or content otherwise."""
    gitignore: bool | None
    """Leave out what the .gitignore files of a checkout leave out, unless it is named."""
    validation_fraction: float | None
    """Share of the text that is held out, in whole documents."""
    sequence_length: int | None
    """Tokens in a row."""
    batch_size: int | None
    """Rows in one forward and backward pass, over all processes."""
    accumulate: int | None
    """Passes whose gradients make one step."""
    parse_special: bool | None
    """Text that spells a special token becomes that control token; it is text otherwise."""
    document_mask: bool | None
    """Keep attention inside documents when several share a row."""
    mask_probability: float | None
    """Masked-LM: share of tokens to predict."""
    packing: Literal["concatenate", "best-fit"] | None
    """How documents come into rows: concatenate, or best-fit, which cuts none that fits; the objective decides otherwise."""
    train_on: Literal["assistant", "completion", "all"] | None
    """sft: which turns are learnt."""
    chat_date: str | None
    """sft: the date that a chat template is told, YYYY-MM-DD; today's otherwise."""
    fim_rate: float | None
    """fim: share of the documents with a hole."""
    fim_spm_rate: float | None
    """fim: of these, share with the suffix in front."""
    fim_tokens: str | None
    """fim: PREFIX,SUFFIX,MIDDLE, entries of the vocabulary; the family's or the known ones otherwise."""
    rehash: bool | None
    """Read all text, though nothing says that it has changed."""
    val_batches: int | None
    """Batches in one validation."""
    # [optimizer]
    optimizer: Literal["adamw", "muon"] | None
    """AdamW for everything, or Muon for the matrices of the blocks and AdamW for the rest."""
    lr: float | None
    """Peak learning rate."""
    schedule: Literal["cosine", "linear", "constant", "wsd"] | None
    """How the rate falls after warm-up."""
    warmup_steps: int | None
    """Steps of linear warm-up."""
    min_lr_ratio: float | None
    """Where the rate ends, as a share of the peak."""
    decay_ratio: float | None
    """wsd: share of all steps in which the rate falls."""
    weight_decay: float | None
    """Decoupled weight decay, on matrices only."""
    muon_lr: float | None
    """Muon's peak learning rate, if it is not --lr."""
    muon_adjust_lr: Literal["match-rms-adamw", "original"] | None
    """How Muon's rate goes by a matrix's shape: match-rms-adamw makes AdamW's rates its own."""
    muon_momentum: float | None
    """Muon's momentum."""
    bf16_update: Literal["stochastic", "master", "nearest"] | None
    """bf16-weights: what becomes of an update that is smaller than a weight's last bit."""
    beta1: float | None
    """AdamW's first-moment decay."""
    beta2: float | None
    """AdamW's second-moment decay."""
    eps: float | None
    """AdamW's epsilon."""
    clip_norm: float | None
    """Largest gradient norm; 0 does not clip."""
    group: Sequence[Mapping[str, Any]] | None
    # [lora]
    lora_rank: int | None
    """Rank of the adapters that are trained in place of the weights, on the base of --init."""
    lora_alpha: float | None
    """The adapters' product counts alpha / rank times; twice the rank otherwise."""
    lora_dropout: float | None
    """Dropout on what goes into an adapter."""
    lora_target: str | Sequence[str] | None
    """End of the names of the matrices that get an adapter, q_proj say; may be given several times. The family's, or all
    matrices of the blocks, otherwise."""
    # [run]
    run: Place | None
    """Name of the run's folder; made from the model's name otherwise."""
    out: Place | None
    """Folder that holds the runs."""
    steps: int | None
    """Optimizer steps in all; 0 only loads, validates and writes."""
    eval: str | None
    """Evaluations at each validation, NAME:COUNT with commas between."""
    tracker: str | Sequence[str] | None
    """Tell this tracker of the run: tensorboard, wandb, or an installed one; may be given several times."""
    val_every: int | None
    """Steps between validations; 0 for first and last only."""
    save_every: int | None
    """Steps between checkpoints; 0 for the last only."""
    keep: int | None
    """Checkpoints that are kept; 0 keeps all."""
    async_save: Literal["auto", "on", "off"] | None
    """Whether steps go on while a checkpoint is written: on copies it in memory, off lets them wait, auto copies where that
    takes at most half of the memory that is free."""
    log_every: int | None
    """Steps between lines when there is no terminal."""
    max_time: str | None
    """End in order before so much time is over, such as 90s, 30m or 1h30m; 0 for no limit."""
    early_stop: int | None
    """End in order after so many validations without a better one; 0 for never."""
    keep_best: Literal["none", "val_loss", "fim", "syntax"] | None
    """Also keep the checkpoint that was measured best: the lowest validation loss, the lowest loss of --eval fim, or the
    highest share of --eval syntax."""
    skip_spikes: float | None
    """Skip a step whose loss or gradient norm lies more than so many standard deviations above the recent ones; 0 for none."""
    ema: float | None
    """Also average the weights over the steps with this decay, 0.99 say: validations, sample and result are of the average."""
    precision: Literal["fp32", "bf16", "bf16-weights"] | None
    """fp32; bf16: float32 weights under autocast; bf16-weights: everything in bfloat16. bf16 where the hardware has it."""
    compile: bool | None
    """Compile the blocks with torch.compile: from so many operations on that it pays, where nothing is said."""
    recompute: bool | None
    """Recompute each block in the backward pass: less memory, more time."""
    recompute_keep: Literal["nothing", "products"] | None
    """What of a recomputed block is kept: nothing; products, the results of its matrix products: less time, more memory."""
    device: str | None
    """cpu or cuda; cuda when there is one."""
    threads: int | None
    """CPU threads; one for each core that the process may use otherwise."""
    peak_tflops: float | None
    """What the device does at most, in 10¹² operations a second, for the MFU; a table's, or measured on a CPU, otherwise."""
    profile: str | None
    """Steps whose trace goes into the run's folder, FIRST:LAST."""
    seed: int | None
    """Seed of initialisation, data order, masking and dropout."""
    deterministic: bool | None
    """Deterministic algorithms, on CUDA slower."""
    allow_cold_init: bool | None
    """Go on although the loss at step 0, or the reference loss, speaks against the weights of --init."""
    prompt: str | None
    """Start of the sample that ends a run."""
    sample_tokens: int | None
    """Tokens of that sample; 0 for none."""
    # [processes]
    shard: Literal["auto", "full", "hybrid", "none"] | None
    """Where each parameter lies: full, in pieces over all processes; hybrid, in pieces over those of a machine; none, whole in
    each. auto is full on one machine, hybrid on several."""
    replicate: int | None
    """hybrid: how many groups of processes have all parameters; one a machine otherwise."""
    offload: bool | None
    """Keep parameters, gradients and optimizer state in the machine's memory, and on the GPU the block that runs: for CUDA."""
    timeout: int | None
    """Seconds that a process waits for the others before it gives up."""
