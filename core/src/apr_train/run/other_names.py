"""What other trainers call a run's settings, and what they have that a run here does not: for those who type it."""

from __future__ import annotations

from collections.abc import Callable, Mapping

OTHER_NAMES: Mapping[str, tuple[str, ...]] = {
    "arch": ("architecture", "family", "model_family", "model_type"),
    "init": (
        *(
            "base_model",
            "checkpoint",
            "checkpoint_path",
            "ckpt",
            "from_pretrained",
            "init_from",
            "model",
            "model_id",
            "model_name",
        ),
        *("model_name_or_path", "model_path", "pretrained", "pretrained_model", "pretrained_model_name_or_path", "weights"),
    ),
    "preset": ("config_name", "model_config", "model_size"),
    "tokenizer": ("tokenizer_file", "tokenizer_name", "tokenizer_name_or_path", "tokenizer_path", "vocab_file"),
    "vocab_size": ("n_vocab", "num_embeddings", "padded_vocab_size", "vocabulary_size"),
    "objective": ("loss", "task", "task_type"),
    "attention": ("attention_backend", "attn", "attn_backend", "attn_impl", "attn_implementation"),
    "data": (
        *(
            "corpus",
            "data_dir",
            "data_files",
            "data_path",
            "dataset",
            "dataset_dir",
            "dataset_name",
            "dataset_path",
            "datasets",
        ),
        *("input", "input_file", "text", "train", "train_data", "train_data_file", "train_data_path", "train_dataset"),
        *("train_file", "train_files", "train_path", "training_data"),
    ),
    "val_data": (
        *("eval_data", "eval_dataset", "eval_file", "test_file", "val_dataset", "valid_data", "validation_data"),
        *("validation_dataset", "validation_file"),
    ),
    "text_field": ("content_field", "dataset_text_field", "field", "text_column", "text_key"),
    "packing": ("group_by_length", "pack", "packing_strategy", "sample_packing"),
    "train_on": ("assistant_only_loss", "completion_only_loss", "response_only", "train_on_inputs", "train_on_responses"),
    "chat_template": ("chat_format", "conversation_template", "prompt_template", "template"),
    "fim_rate": ("fim_ratio",),
    "fim_spm_rate": ("fim_spm_ratio", "spm_rate"),
    "eval": ("evals", "evaluations"),
    "tracker": ("log_with", "logger", "loggers", "report_to", "trackers"),
    "validation_fraction": (
        "eval_split",
        "test_size",
        "val_fraction",
        "val_ratio",
        "val_size",
        "val_split",
        "validation_split",
    ),
    "sequence_length": (
        *("block_size", "context", "context_len", "context_length", "context_size", "ctx", "ctx_len", "cutoff_len", "max_len"),
        *("max_length", "max_seq_len", "max_seq_length", "max_sequence_length", "model_max_length", "n_ctx", "seq_length"),
        *("seqlen", "sequence_len"),
    ),
    "batch_size": (
        *("batch", "bs", "device_batch_size", "local_batch_size", "mbs", "micro_batch_size", "microbatch_size"),
        *("per_device_batch_size", "per_device_train_batch_size", "per_gpu_train_batch_size", "train_batch_size"),
    ),
    "accumulate": (
        *("accum", "accumulate_grad_batches", "accumulation_steps", "gradient_accumulation", "gradient_accumulation_iters"),
        *("gradient_accumulation_steps", "grad_acc_steps", "grad_accum", "grad_accum_steps", "grad_accumulation_steps"),
    ),
    "mask_probability": ("mask_prob", "masking_probability", "mlm_probability"),
    "val_batches": ("eval_batches", "eval_iters", "limit_val_batches", "val_iters", "val_max_steps"),
    "optimizer": ("optim", "optimizer_name", "optimizer_type"),
    "lr": ("base_lr", "learning_rate", "max_lr", "peak_lr"),
    "schedule": ("decay", "lr_decay_style", "lr_schedule", "lr_scheduler", "lr_scheduler_type", "scheduler"),
    "warmup_steps": ("lr_warmup_steps", "num_warmup_steps", "warmup", "warmup_iters"),
    "weight_decay": ("wd",),
    "beta1": ("adam_beta1",),
    "beta2": ("adam_beta2",),
    "eps": ("adam_eps", "adam_epsilon", "epsilon"),
    "clip_norm": (
        *("clip", "clip_grad", "clip_grad_norm", "grad_clip", "grad_clip_norm", "grad_norm_clip", "gradient_clip_norm"),
        *("gradient_clip_val", "gradient_clipping", "max_grad_norm", "max_norm"),
    ),
    "lora_rank": ("lora_r", "r"),
    "lora_alpha": ("alpha",),
    "lora_dropout": ("adapter_dropout", "lora_drop"),
    "lora_target": (
        *("lora_target_modules", "lora_targets", "peft_target_modules", "target_modules", "lora_modules"),
        *("lora_target_linear", "peft_target"),
    ),
    "run": ("exp_name", "experiment", "experiment_name", "job_name", "name", "run_name"),
    "out": ("checkpoint_dir", "exp_dir", "log_dir", "out_dir", "output", "output_dir", "output_path", "save_dir", "save_path"),
    "steps": (
        *("iterations", "iters", "max_iters", "max_steps", "max_train_steps", "n_steps", "num_iterations", "num_steps"),
        *("num_train_steps", "num_training_steps", "total_steps", "train_iters", "train_steps", "training_steps"),
    ),
    "val_every": (
        "eval_every",
        "eval_freq",
        "eval_interval",
        "eval_steps",
        "val_check_interval",
        "val_interval",
        "validate_every",
    ),
    "save_every": (
        *("checkpoint_every", "checkpoint_interval", "checkpointing_steps", "ckpt_interval", "save_freq", "save_interval"),
        "save_steps",
    ),
    "keep": ("keep_checkpoints", "keep_last", "keep_last_n", "max_checkpoints", "save_total_limit"),
    "log_every": ("log_freq", "log_interval", "log_steps", "logging_steps"),
    "max_time": ("max_duration", "max_train_time", "time_limit", "train_time"),
    "early_stop": ("early_stopping", "early_stopping_patience", "patience"),
    "keep_best": ("load_best_model_at_end", "metric_for_best_model", "save_best", "save_best_only"),
    "skip_spikes": ("skip_step", "skip_step_optimizer", "spike_threshold"),
    "ema": ("ema_decay", "use_ema"),
    "precision": ("amp", "autocast", "dtype", "mixed_precision", "param_dtype", "torch_dtype"),
    "compile": ("torch_compile", "use_compile"),
    "recompute": (
        *("ac", "activation_checkpoint", "activation_checkpointing", "checkpoint_activations", "grad_checkpointing"),
        *("gradient_checkpointing", "recompute_activations", "use_gradient_checkpointing"),
    ),
    "offload": ("cpu_offload", "fsdp_offload_params", "offload_params"),
    "recompute_keep": ("ac_mode", "selective_ac", "selective_checkpointing"),
    "device": ("accelerator", "device_type", "gpu", "gpus"),
    "threads": ("cpu_threads", "num_threads", "torch_threads"),
    "seed": ("data_seed", "manual_seed", "random_seed"),
    "deterministic": ("full_determinism", "use_deterministic_algorithms"),
    "prompt": ("sample_prompt",),
    "sample_tokens": ("max_new_tokens", "sample_length"),
}
"""Setting → its names in transformers, nanoGPT, litgpt, torchtitan, axolotl, Megatron and the like."""

_EPOCHS = (
    "A run is counted in {steps}. One pass over the text takes its tokens / ({batch_size} × {accumulate} × {sequence_length})"
)
_ADAPTERS = "Adapters are asked for by their rank: {lora_rank} 16, and {lora_alpha}, {lora_dropout}, {lora_target}"
_QLORA = "A base is not quantised for training: {lora_rank} 16 with {precision} bf16-weights takes two bytes a weight"
_ONE_DEVICE = "A run is one process on one device: {device}"
_FULL_WEIGHTS = "Weights are trained in 32 or 16 bits: {precision}"
_REPORTED = "{tracker} tensorboard writes for TensorBoard, {tracker} wandb sends to Weights & Biases; others are plugins"
_PROJECT = "The environment variable WANDB_PROJECT names the project of {tracker} wandb"
_SHAPE = "A model's shape is its family's preset ({preset}) or its file's ({init})"
_FLOAT16 = "There is no float16, which needs a scaled loss; {precision} bf16 has float32's range"
_NO_8_BIT = (
    "Optimizer states are of the weights' own type; of bfloat16 weights they take four bytes a weight: {precision} bf16-weights"
)
_PUBLISHED = "A run uploads nothing: `apr-train publish` makes the folder to upload"

NOT_HERE: Mapping[str, str] = {
    **dict.fromkeys(("epoch", "epochs", "max_epochs", "n_epochs", "num_epochs", "num_train_epochs"), _EPOCHS),
    **dict.fromkeys(("lora", "peft", "use_lora", "use_peft", "adapter", "adapter_name"), _ADAPTERS),
    "qlora": _QLORA,
    **dict.fromkeys(("load_in_4bit", "load_in_8bit", "quantization", "quantize", "bits", "fp8"), _FULL_WEIGHTS),
    **dict.fromkeys(("bf16", "use_bf16", "bfloat16"), "That is {precision} bf16"),
    **dict.fromkeys(("fp32", "float32", "tf32"), "That is {precision} fp32"),
    **dict.fromkeys(("fp16", "float16", "half"), _FLOAT16),
    **dict.fromkeys(("use_cpu", "no_cuda", "cpu"), "That is {device} cpu"),
    **dict.fromkeys(("cuda", "use_cuda", "use_gpu"), "That is {device} cuda"),
    **dict.fromkeys(
        ("deepspeed", "ddp", "devices", "fsdp", "local_rank", "n_gpu", "nnodes", "nproc_per_node", "num_gpus", "num_nodes"),
        _ONE_DEVICE,
    ),
    **dict.fromkeys(
        ("warmup_fraction", "warmup_ratio", "warmup_proportion"),
        "Warm-up is counted in steps: {warmup_steps}, a share of {steps}",
    ),
    **dict.fromkeys(("min_lr", "final_lr", "lr_min"), "The last rate is a share of the first: {min_lr_ratio}, of {lr}"),
    **dict.fromkeys(
        ("effective_batch_size", "global_batch_size", "total_batch_size"), "A step has {batch_size} × {accumulate} rows"
    ),
    **dict.fromkeys(("mlm", "masked_lm"), "That is {objective} masked-lm"),
    **dict.fromkeys(("clm", "causal_lm"), "That is {objective} causal-lm"),
    **dict.fromkeys(
        ("flash_attn", "flash_attention", "use_flash_attn", "use_flash_attention_2"), "A backend is named: {attention}"
    ),
    **dict.fromkeys(
        ("embedding_lr", "lr_groups", "param_groups", "unfrozen_parameters", "freeze", "freeze_layers"),
        "Parameters by name have [[optimizer.group]] in the file of --config: pattern, lr, weight_decay, frozen",
    ),
    **dict.fromkeys(("tensorboard", "wandb", "use_wandb", "mlflow"), _REPORTED),
    "wandb_project": _PROJECT,
    **dict.fromkeys(("hub_model_id", "hub_token", "push_to_hub"), _PUBLISHED),
    **dict.fromkeys(
        ("n_layer", "n_layers", "num_layers", "num_hidden_layers", "hidden_size", "n_embd", "d_model", "n_head", "n_heads"),
        _SHAPE,
    ),
    **dict.fromkeys(
        ("resume_from", "resume_from_checkpoint", "continue", "restart_from"), "Go on with a run by `--resume RUN`"
    ),
    **dict.fromkeys(("config_file", "config_path", "conf"), "Settings are read from a TOML file by `--config FILE`"),
    **dict.fromkeys(("do_train", "do_eval"), "A run always does both; {steps} 0 only validates, and so does `apr-train eval`"),
    "overwrite_output_dir": "A run's folder is never overwritten: give another name with {run}",
    "trust_remote_code": "No code is ever taken from a checkpoint: a family is an installed plugin",
    "validation_split_percentage": "The held-out share is a fraction: {validation_fraction} 0.05 for 5 percent",
}
"""Name → what to do instead, each setting in braces."""

OTHER_VALUES: Mapping[str, Mapping[str, str]] = {
    "precision": {
        **dict.fromkeys(("float32", "float", "32", "full", "no", "tf32", "f32", "32-true"), "fp32"),
        **dict.fromkeys(("bfloat16", "16", "bf16-mixed", "mixed", "amp", "auto", "true"), "bf16"),
        **dict.fromkeys(("bf16-true", "bf16-pure", "pure-bf16"), "bf16-weights"),
        **dict.fromkeys(("fp16", "float16", "half", "16-mixed", "f16"), _FLOAT16),
        **dict.fromkeys(("fp8", "int8", "int4", "nf4", "4bit", "8bit"), _FULL_WEIGHTS),
    },
    "device": {
        **dict.fromkeys(("gpu", "nvidia", "rocm", "hip", "amd"), "cuda"),
        **dict.fromkeys(("mps", "tpu", "xpu", "npu", "metal"), "A run is on a CPU, or on a GPU that torch calls cuda"),
    },
    "objective": {
        **dict.fromkeys(("clm", "causal", "lm", "gpt", "next-token", "causal_lm"), "causal-lm"),
        **dict.fromkeys(("mlm", "masked", "bert", "fill-mask", "masked_lm"), "masked-lm"),
        **dict.fromkeys(("chat", "conversation", "instruct", "instruction", "supervised", "supervised_fine_tuning"), "sft"),
        **dict.fromkeys(("infill", "infilling", "fill-in-the-middle", "fill_in_the_middle", "psm", "spm"), "fim"),
    },
    "schedule": {
        **dict.fromkeys(("cos", "cosine_with_min_lr", "cosine_decay", "cosine-annealing"), "cosine"),
        **dict.fromkeys(("constant_with_warmup", "none", "const", "fixed"), "constant"),
        **dict.fromkeys(("lin", "linear_decay", "linear_with_warmup"), "linear"),
        **dict.fromkeys(("warmup_stable_decay", "warmup-stable-decay", "trapezoidal"), "wsd"),
    },
    "optimizer": {
        **dict.fromkeys(("adam", "adamw_torch", "adamw_torch_fused", "fused_adamw"), "adamw"),
        **dict.fromkeys(("adamw_8bit", "adamw_bnb_8bit", "paged_adamw_8bit"), _NO_8_BIT),
    },
    "attention": dict.fromkeys(
        ("flash", "flash2", "flash_attention", "flash_attention_2", "flash-attn", "fa2", "torch"), "sdpa"
    ),
}
"""Setting → value that others give it → ours, or what to do instead."""


def plain(name: str) -> str:
    """`--Batch-Size` → `batch_size`."""
    return name.lstrip("-").replace("-", "_").lower()


def settings_called(name: str) -> list[str]:
    """The settings that others call so, spelt with `_` or `-`; as a rule none or one."""
    wanted = plain(name)
    return [setting for setting, others in OTHER_NAMES.items() if wanted in others]


def advice(name: str, spell: Callable[[str], str]) -> str | None:
    """What to do instead of an option that a run does not have; None for a name that nothing is known of.

    Args:
        name: as typed, with or without dashes.
        spell: how a setting is written where the name was: `--steps`, say.
    """
    wanted = plain(name)
    text = _ADAPTERS if wanted.startswith(("lora_", "peft_", "adapter_")) else NOT_HERE.get(wanted)
    return None if text is None else _spelt(text, spell)


def meant_value(setting: str, value: str, spell: Callable[[str], str]) -> str | None:
    """A hint at what a value of another trainer is here, or None."""
    text = OTHER_VALUES.get(setting, {}).get(value.lower())
    if text is None:
        return None
    return _spelt(text, spell) if " " in text else f"Here that is {text}."


def _spelt(text: str, spell: Callable[[str], str]) -> str:
    return text.format_map(_Spelling(spell)) + "."


class _Spelling(dict[str, str]):
    """Every setting's name, spelt."""

    def __init__(self, spell: Callable[[str], str]) -> None:
        super().__init__()
        self._spell = spell

    def __missing__(self, name: str) -> str:
        return self._spell(name)
