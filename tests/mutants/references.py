"""What each family is compared with: transformers models, GGUF tensors as llama.cpp names and permutes them, published configs.

A family of docs/families is compared with what its own tests have: their `reference`, their tokens, their llama-cpp.gguf.
The models of the plugins are made here. They keep what a defect could hide behind: random biases and norm weights, several kv
heads, square matrices, as many positions as a wrong RoPE base needs to show.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from functools import cache
from types import ModuleType
from typing import Any

import gguf
import torch
import transformers
from apr_train.checkpoint.huggingface import header_from_hf
from apr_train.family.card import Layout
from apr_train.family.plugin import Family
from apr_train.testing import (
    FLOAT32,
    FLOAT64,
    ConformanceError,
    check_agreement,
    check_reference,
    compare_models,
    compute_in_float64,
    model_from_file,
    model_from_tensors,
    our_logits,
    randomize,
    reference_config,
)
from torch import Tensor, nn

from tests.mutants.apply import PROJECTS
from tests.mutants.published import PUBLISHED

_SIZES = {
    "vocab_size": 61,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "max_position_embeddings": 514,
}
_DECODER = _SIZES | {
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-6,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0},
    "tie_word_embeddings": True,
}
_PLUGINS = {
    "llama370m": ("LlamaConfig", "LlamaForCausalLM", _DECODER),
    "qwen2": ("Qwen2Config", "Qwen2ForCausalLM", _DECODER),
    "codebert": ("RobertaConfig", "RobertaForMaskedLM", _SIZES | {"type_vocab_size": 1, "layer_norm_eps": 1e-5}),
}
"""Family → transformers' classes of the config and the model, and the config."""
_LONG = 160
"""Tokens in a row for the families of `_PLUGINS`."""


@cache
def _own_tests(family: str) -> ModuleType:
    """The test module of a family of docs/families."""
    path = PROJECTS[family].parent / f"test_{family}.py"
    spec = importlib.util.spec_from_file_location(f"mutants_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def reference(family: str, changes: Mapping[str, Any]) -> nn.Module:
    """A tiny transformers model of the family's architecture, with random weights, in float32."""
    if family not in _PLUGINS:
        model: nn.Module = _own_tests(family).reference(**changes)
        return model
    config, model_class, values = _PLUGINS[family]
    made = getattr(transformers, config)(**values | dict(changes))
    return randomize(getattr(transformers, model_class)._from_config(made, attn_implementation="eager")).eval()


def tokens(family: str) -> Tensor:
    """Two rows of tokens."""
    if family not in _PLUGINS:
        ids: Tensor = _own_tests(family).TOKENS
        return ids
    return torch.randint(4, 61, (2, _LONG), generator=torch.Generator().manual_seed(3))


def comparisons(family: Family, changes: Mapping[str, Any], folder: Any) -> dict[str, Callable[[], object]]:
    """What a family is compared with, by name; each raises for a difference."""
    checks: dict[str, Callable[[], object]] = {
        "compare_models": lambda: _in_float64(family, reference(family.name, changes)),
        "check_reference": lambda: check_reference(
            family, reference(family.name, changes), tokens(family.name), folder, vanishing=_vanishing(family)
        ),
    }
    if family.name in ("llama370m", "qwen2"):
        checks["GGUF"] = lambda: _from_gguf_tensors(family)
    elif (PROJECTS[family.name].parent / "llama-cpp.gguf").exists():
        checks["GGUF"] = lambda: _from_gguf_file(family)
    if family.name in PUBLISHED:
        checks["published configs"] = lambda: _check_presets(family)
    return checks


def _vanishing(family: Family) -> tuple[str, ...]:
    """Without rotary positions a key's bias adds the same to every score of a row."""
    return ("k_proj.bias",) if family.name in ("codebert", "bert", "gpt2") else ()


def _in_float64(family: Family, model: nn.Module) -> None:
    """Everything in float64, an encoder with padding."""
    ids, keep = tokens(family.name), None
    if family.info.kind == "encoder":
        length = ids.shape[1]
        keep = torch.arange(length) < torch.tensor([[length], [length * 9 // 16]])
        ids = ids.masked_fill(~keep, int(getattr(model.config, "pad_token_id", None) or 0))
    compare_models(family, None, model, ids, keep=keep, vanishing=_vanishing(family))


def _from_gguf_tensors(family: Family) -> None:
    """Our model from a GGUF's tensors, by llama.cpp's rules and gguf-py's names, against the model they were made from."""
    model = compute_in_float64(reference(family.name, {"tie_word_embeddings": False}))
    arch = {"llama370m": gguf.MODEL_ARCH.LLAMA, "qwen2": gguf.MODEL_ARCH.QWEN2}[family.name]
    names = gguf.get_tensor_name_map(arch, _SIZES["num_hidden_layers"])
    tensors = {names.get_name(key, (".weight", ".bias")): value for key, value in model.state_dict().items()}
    if family.name == "llama370m":
        for key in [key for key in tensors if "attn_q." in key or "attn_k." in key]:
            tensors[key] = _permute(tensors[key], 8 if "attn_q" in key else 2)
    layout = Layout(names="gguf", rope_rows="adjacent" if family.name == "llama370m" else "split-half")
    ours = model_from_tensors(family, reference_config(family, model), tensors, layout=layout)
    _agree(family, ours, model, tokens(family.name), tolerance=FLOAT64, where="GGUF")


def _permute(weights: Tensor, heads: int) -> Tensor:
    """`LlamaModel.permute` of llama.cpp's convert_hf_to_gguf.py, copied in its own spelling."""
    rows = weights.shape[0] // heads // 2
    return weights.reshape(heads, 2, rows, *weights.shape[1:]).swapaxes(1, 2).reshape(weights.shape)


def _from_gguf_file(family: Family) -> None:
    """Our model from the file that llama.cpp's converter made, against the model that it was made from."""
    tests = _own_tests(family.name)
    ours, _ = model_from_file(family, PROJECTS[family.name].parent / "llama-cpp.gguf")
    model = tests.reference(**getattr(tests, "IN_GGUF", {}))
    _agree(family, ours, model, tests.TOKENS, tolerance=FLOAT32, where="llama-cpp.gguf")


def _agree(family: Family, ours: nn.Module, theirs: nn.Module, ids: Tensor, *, tolerance: float, where: str) -> None:
    check_agreement(
        {"logits": our_logits(family, ours, ids)}, {"logits": theirs(input_ids=ids).logits}, tolerance=tolerance, where=where
    )


def _check_presets(family: Family) -> None:
    """A preset is the config that is read from the published config.json."""
    for preset, (config_class, values) in PUBLISHED[family.name].items():
        published = getattr(transformers, config_class)(**values).to_dict()
        theirs = family.build_config(header=header_from_hf(family.info.hf_classes[0], published, {})).to_dict()
        ours = family.build_config(preset=preset).to_dict()
        wrong = [f"{name} is {ours[name]!r}, published {theirs[name]!r}" for name in ours if ours[name] != theirs[name]]
        if wrong:
            raise ConformanceError("; ".join(wrong), where=f"{family.name} preset {preset}")
