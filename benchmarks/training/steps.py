"""One training step, ours and theirs, on the same random tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from training.shapes import BATCH, LENGTH, SHAPES

OURS, EAGER, COMPILED = "ours", "transformers", "transformers-compiled"


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What a row is measured with; each row is told with it."""

    clip_norm: float = 1.0
    bf16_update: str = "stochastic"
    """Ours alone: theirs rounds bfloat16 weights to nearest."""
    recompute: bool = False
    """Ours alone: activation checkpointing."""
    threads: int | None = None


def make_step(contender: str, shape: str, precision: str, setting: Setting) -> Callable[[], None]:
    """The contender's step."""
    if setting.threads is not None:
        torch.set_num_threads(setting.threads)
    if contender == OURS:
        return our_step(shape, precision, setting)
    return their_step(shape, precision, setting, compiled=contender == COMPILED)


def random_tokens() -> torch.Tensor:
    """`[batch, length + 1]`."""
    return torch.randint(0, 49_152, (BATCH, LENGTH + 1), generator=torch.Generator().manual_seed(0))


def our_step(shape: str, precision_name: str, setting: Setting) -> Callable[[], None]:
    """One step of the package's own loop."""
    from apr_train.data.batch import Batch
    from apr_train.data.objectives import OBJECTIVES
    from apr_train.family.decoder_config import DecoderConfig
    from apr_train.model.acceleration import compile_blocks
    from apr_train.model.attention import load_backend
    from apr_train.model.build import build_model, recompute_activations
    from apr_train.model.device import PRECISIONS
    from apr_train.model.tied_rows import add_rows_apart
    from apr_train.run.settings import OptimizerSettings
    from apr_train.training.optimizer.make import make_optimizer
    from apr_train.training.step import train_step

    precision = PRECISIONS[precision_name]
    model = build_model(None, DecoderConfig(**SHAPES[shape]), load_backend("sdpa"))
    model.to(precision.weights).to_empty(device="cpu").initialize(torch.Generator().manual_seed(0))
    compile_blocks(model)
    add_rows_apart(model)
    if setting.recompute:
        recompute_activations(model)
    settings = OptimizerSettings(bf16_update=setting.bf16_update, clip_norm=setting.clip_norm)
    optimizer = make_optimizer(model, settings, lr=1e-4)
    ids = random_tokens()
    batch = Batch(tokens=ids[:, :-1].contiguous(), targets=ids[:, 1:].contiguous(), target_count=BATCH * LENGTH)
    options = {"objective": OBJECTIVES["causal-lm"], "precision": precision, "step": 1, "compiled": True}
    options["clip_norm"] = setting.clip_norm
    return lambda: train_step(model, optimizer, [batch], **options)


def their_step(shape: str, precision_name: str, setting: Setting, *, compiled: bool) -> Callable[[], None]:
    """One step of a plain loop around transformers' model class and its own loss."""
    from contextlib import nullcontext

    from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

    sizes = dict(SHAPES[shape])
    bias, theta = sizes.pop("attention_bias"), sizes.pop("rope_theta")
    kinds = (Qwen2Config, Qwen2ForCausalLM) if bias else (LlamaConfig, LlamaForCausalLM)
    config = kinds[0](**sizes, rope_parameters={"rope_type": "default", "rope_theta": theta}, use_cache=False)
    config._attn_implementation = "sdpa"
    dtype = torch.bfloat16 if precision_name == "bf16-weights" else torch.float32
    model = kinds[1](config).to(dtype).train()
    forward = torch.compile(model) if compiled else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    ids = random_tokens()[:, :-1].contiguous()

    def step() -> None:
        context = torch.autocast("cpu", dtype=torch.bfloat16) if precision_name == "bf16" else nullcontext()
        with context:
            loss = forward(input_ids=ids, labels=ids).loss
        loss.backward()
        if setting.clip_norm:
            torch.nn.utils.clip_grad_norm_(model.parameters(), setting.clip_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step
