"""From a config to a model without memory, and activation checkpointing around its blocks."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from apr_train.errors import PluginError
from apr_train.family.config import ModelConfig
from apr_train.family.decoder_config import DecoderConfig
from apr_train.family.encoder_config import EncoderConfig
from apr_train.model.attention import AttentionBackend
from apr_train.model.decoder import Decoder
from apr_train.model.encoder import Encoder
from apr_train.model.head import head_logits
from apr_train.model.protocol import LanguageModel

BuildHook = Callable[[ModelConfig, AttentionBackend], nn.Module | None]
"""A family's `build_model`; None for an answer means the core's own."""


def build_model(hook: BuildHook | None, config: ModelConfig, attention: AttentionBackend) -> nn.Module:
    """Make the model on the meta device: the family's own module if its hook answers, else the core's.

    Raises:
        PluginError: when the family's module does not satisfy `LanguageModel`, computes its logits in a way of its own,
            or has allocated memory, or when neither the family nor the core can build this kind of config.
    """
    with torch.device("meta"), _NoValues():
        own = hook(config, attention) if hook is not None else None
        model = own if own is not None else _from_config(config, attention)
    _check(model)
    return model


class _NoValues(TorchFunctionMode):
    """Leaves out what `torch.nn.init` does: nothing is there to fill, and on meta tensors it imports the compiler."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        named = kwargs or {}
        if getattr(func, "__module__", None) == nn.init.__name__ and isinstance(named.get("tensor"), torch.Tensor):
            return named["tensor"]
        return func(*args, **named)


def _from_config(config: ModelConfig, attention: AttentionBackend) -> nn.Module:
    if isinstance(config, DecoderConfig):
        _check_activation(config, DecoderConfig.ACTIVATIONS)
        return Decoder(config, attention)
    if isinstance(config, EncoderConfig):
        _check_activation(config, EncoderConfig.ACTIVATIONS)
        return Encoder(config, attention)
    raise PluginError(
        "the core cannot build a model from this config",
        where="build_model",
        expected="DecoderConfig, EncoderConfig, or a module from the family's own build_model",
        found=type(config).__name__,
    )


def _check_activation(config: ModelConfig, implemented: tuple[str, ...]) -> None:
    """Refuse an activation that a family's own config allows and that only a module of its own could compute."""
    if config.hidden_act not in implemented:
        raise PluginError(
            "the core does not compute this activation",
            where="build_model",
            field="hidden_act",
            expected=" or ".join(implemented),
            found=config.hidden_act,
            hint=f"A family whose config ({type(config).__name__}) allows more answers build_model with a module that does.",
        )


def _check(model: nn.Module) -> None:
    if not isinstance(model, LanguageModel):
        lacking = [name for name in dir(LanguageModel) if not name.startswith("_") and not hasattr(model, name)]
        raise PluginError(
            "not a language model",
            where="build_model",
            expected="an nn.Module with the members of apr_train.model.protocol.LanguageModel",
            found=f"{type(model).__name__} without {', '.join(lacking)}",
        )
    _check_head(model)
    real = [name for name, tensor in (*model.named_parameters(), *model.named_buffers()) if not tensor.is_meta]
    if real:
        raise PluginError("memory was allocated", where="build_model", expected="meta tensors only", found=", ".join(real))


def _check_head(model: LanguageModel) -> None:
    """Refuse logits that training would never see, and a model that could not hand over a loss of its own."""
    name = type(model).__name__
    if getattr(model.logits, "__func__", None) is not head_logits:
        raise PluginError(
            "logits is a function of the model's own, which training and evaluation do not call",
            where=f"build_model: {name}",
            field="logits",
            expected="logits = apr_train.model.head_logits",
            found="another function",
            hint="Training computes from head_weight, head_bias, head_scale, head_softcap and head_input, and never holds "
            "the logits of a batch: put the cap or the scale there.",
        )
    signature = inspect.signature(model.hidden_states)
    try:
        signature.bind(None, mask=None, positions=None, cache=None, losses=None)
    except TypeError as error:
        raise PluginError(
            f"hidden_states cannot be called: {error}",
            where=f"build_model: {name}",
            field="hidden_states",
            expected="hidden_states(tokens, *, mask, positions=None, cache=None, losses=None)",
            found=f"hidden_states{signature}",
        ) from error


_aten = torch.ops.aten
PRODUCTS = {_aten.mm.default, _aten.addmm.default, _aten._grouped_mm.default}
"""Matrix products of weights; those of scores, which grow with the square of the length, are none of them."""
KERNELS = {
    _aten._scaled_dot_product_flash_attention_for_cpu.default: 3,
    _aten._scaled_dot_product_flash_attention.default: 3,
    _aten._scaled_dot_product_efficient_attention.default: 5,
    _aten._scaled_dot_product_cudnn_attention.default: 5,
}
"""Attention as one operator → where its probability of dropout stands among the arguments."""


def recompute_activations(model: LanguageModel, *, keep_products: bool = False) -> None:
    """Checkpoint every block of `model` (Chen et al. 2016); parameter names stay as they are.

    Works on a family's own module too. Dropout draws the same numbers again. Where blocks are compiled: compile their
    `forward` before they are checkpointed as a whole, for `block.compile()`, before or after, finds the checkpoint before any
    tensor work and compiles nothing; but after it if products are kept, which only a compiler that sees the checkpoint can do.

    Args:
        keep_products: compute again only what lies between the matrix products (Korthikanti et al. 2022).
    """
    how: dict[str, Any] = {"use_reentrant": False}
    if keep_products:
        how["context_fn"] = partial(create_selective_checkpoint_contexts, _policy)
    for block in model.blocks:
        block.forward = partial(checkpoint, block.forward, **how)


def _policy(context: Any, operator: Any, *arguments: Any, **named: Any) -> CheckpointPolicy:
    """Keep products, and attention that draws nothing: of what is drawn again, all must be, in its order.

    Compiled blocks draw nothing again: masks of dropout are kept, too.
    """
    place = KERNELS.get(operator)
    drops = place is not None and (named.get("dropout_p") or (arguments[place] if len(arguments) > place else 0.0))
    keep = operator in PRODUCTS or (place is not None and not drops)
    if torch.Tag.nondeterministic_seeded in operator.tags and torch.compiler.is_compiling():
        keep = True  # torch 2.13 cannot run them again on a CPU, and would have to give each its generator's state
    return CheckpointPolicy.MUST_SAVE if keep else CheckpointPolicy.PREFER_RECOMPUTE
