"""Seeded defects, all known from the field: with each of them put in, the comparison with transformers must fail.

The comparison is that of the plugins' own tests (the same helper, the same tolerances), so what survives here would
survive there. The models are small but keep what a defect could hide behind: random biases and norm weights, several kv
heads, square matrices, as many positions as a wrong RoPE base needs to show.
"""

from __future__ import annotations

import attrs
import gguf
import pytest
import torch
from apr_train.family.card import Layout
from apr_train.family.name_rules import FillRule, IgnoreRule, rope_rows
from apr_train.family.operations import Identity, RopeRowPermutation
from apr_train.model import encoder as encoder_module
from apr_train.model.attention import Causal
from apr_train.model.attention.dense import allowed
from apr_train.model.attention.eager import EagerAttention
from apr_train.model.attention_layer import GroupedQueryAttention
from apr_train.model.decoder import Decoder
from apr_train.model.mlp import MLP
from apr_train.testing import (
    FLOAT64,
    ConformanceError,
    check_agreement,
    compare_models,
    compute_in_float64,
    installed_family,
    model_from_tensors,
    our_logits,
    randomize,
    reference_config,
)
from torch import nn
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM, RobertaConfig, RobertaForMaskedLM

torch.set_num_threads(1)
SIZES = {
    "vocab_size": 61,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "max_position_embeddings": 514,
}
ROPE = {"rope_type": "default", "rope_theta": 1_000_000.0}
CLASSES = {"llama370m": (LlamaConfig, LlamaForCausalLM), "qwen2": (Qwen2Config, Qwen2ForCausalLM)}


def tokens(seed=3):
    return torch.randint(4, 61, (2, 160), generator=torch.Generator().manual_seed(seed))


def decoder(name="qwen2", *, kv_heads=2, tied=True, change=lambda config: config):
    """The comparison of the decoders' tests, in float64; `change` spoils our config."""
    family, (config_class, model_class) = installed_family(name), CLASSES[name]
    config = config_class(
        **SIZES, num_key_value_heads=kv_heads, rms_norm_eps=1e-6, rope_parameters=ROPE, tie_word_embeddings=tied
    )
    model = randomize(model_class(config)).eval()
    compare_models(family, change(reference_config(family, model)), model, tokens())


def encoder(*, change=lambda config: config):
    """The comparison of CodeBERT's tests, in float64, with padding."""
    family = installed_family("codebert")
    model = randomize(RobertaForMaskedLM(RobertaConfig(**SIZES, type_vocab_size=1, layer_norm_eps=1e-5))).eval()
    keep = torch.arange(160) < torch.tensor([[160], [90]])
    batch = tokens().masked_fill(~keep, 1)
    config = change(reference_config(family, model))
    compare_models(family, config, model, batch, keep=keep, vanishing=("k_proj.bias",))


def from_gguf(name):
    """Our model from a GGUF's tensors, made by llama.cpp's rules and gguf-py's names, against the model it was made from."""
    family, (config_class, model_class) = installed_family(name), CLASSES[name]
    model = compute_in_float64(
        randomize(model_class(config_class(**SIZES, num_key_value_heads=2, rms_norm_eps=1e-6, rope_parameters=ROPE))).eval()
    )
    arch = {"llama370m": gguf.MODEL_ARCH.LLAMA, "qwen2": gguf.MODEL_ARCH.QWEN2}[name]
    names = gguf.get_tensor_name_map(arch, SIZES["num_hidden_layers"])
    tensors = {names.get_name(key, (".weight", ".bias")): value for key, value in model.state_dict().items()}
    if name == "llama370m":
        tensors = {
            key: _permute(value, 8 if "attn_q" in key else 2) if _rotated(key) else value for key, value in tensors.items()
        }
    layout = Layout(names="gguf", rope_rows="adjacent" if name == "llama370m" else "split-half")
    ours = model_from_tensors(family, reference_config(family, model), tensors, layout=layout)
    check_agreement({"l": our_logits(family, ours, tokens())}, {"l": model(tokens()).logits}, tolerance=FLOAT64, where="gguf")


def _rotated(key):
    return "attn_q." in key or "attn_k." in key


def _permute(weights, heads):
    """`LlamaModel.permute` of llama.cpp's convert_hf_to_gguf.py, copied in its own spelling."""
    rows = weights.shape[0] // heads // 2
    return weights.reshape(heads, 2, rows, *weights.shape[1:]).swapaxes(1, 2).reshape(weights.shape)


def spoil_rules(monkeypatch, name, change):
    """Let the family's table of names go through `change(rule)`."""
    module = f"apr_train_{name}"
    original = pytest.importorskip(module).decoder_rules
    monkeypatch.setattr(f"{module}.decoder_rules", lambda config, layout: [change(rule) for rule in original(config, layout)])


def swapped(first, second):
    """Rules whose parameter is `first` fill `second`, and the other way round."""

    def change(rule):
        if isinstance(rule, IgnoreRule):
            return rule
        there = rule.parameter.replace(first, "\0").replace(second, first).replace("\0", second)
        return attrs.evolve(rule, parameter=there)

    return change


def swap_q_and_k(monkeypatch):
    spoil_rules(monkeypatch, "qwen2", swapped("q_proj", "k_proj"))
    decoder(kv_heads=8)


def swap_gate_and_up(monkeypatch):
    spoil_rules(monkeypatch, "qwen2", swapped("gate_proj", "up_proj"))
    decoder()


def swap_the_norms(monkeypatch):
    spoil_rules(monkeypatch, "llama370m", swapped("input_layernorm", "post_attention_layernorm"))
    decoder("llama370m")


def drop_the_row_permutation(monkeypatch):
    monkeypatch.setattr(RopeRowPermutation, "to_parameter", lambda self, tensor: tensor)
    from_gguf("llama370m")


def permute_the_rows_the_other_way(monkeypatch):
    monkeypatch.setattr(RopeRowPermutation, "to_parameter", RopeRowPermutation.to_checkpoint)
    from_gguf("llama370m")


def permute_the_rows_of_a_qwen2(monkeypatch):
    def change(rule):
        heads = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}
        which = next((key for key in heads if isinstance(rule, FillRule) and key in rule.parameter), None)
        return rope_rows(rule.checkpoint, rule.parameter, *rule.shape, heads=heads[which]) if which else rule

    spoil_rules(monkeypatch, "qwen2", change)
    from_gguf("qwen2")


def theta_of_ten_thousand(monkeypatch):
    decoder(change=lambda config: attrs.evolve(config, rope_theta=10_000.0))


def eps_of_1e_5(monkeypatch):
    decoder(change=lambda config: attrs.evolve(config, rms_norm_eps=1e-5))


def interleave_the_kv_groups(monkeypatch):
    original = EagerAttention.__call__

    def interleaved(self, q, k, v, mask, *, dropout=0.0):
        heads, groups = q.shape[2], k.shape[2]
        order = torch.arange(heads).reshape(-1, groups).T.flatten()  # query head h reads kv head h modulo groups
        return original(self, q[:, :, order], k, v, mask, dropout=dropout)[:, :, order.argsort()]

    monkeypatch.setattr(EagerAttention, "__call__", interleaved)
    decoder()


def head_is_a_copy(monkeypatch):
    """Equal values, but the head's gradient no longer reaches the embedding."""
    monkeypatch.setattr(Decoder, "head_weight", property(lambda self: self.embed_tokens.weight.detach()))
    decoder()


def head_is_a_second_matrix(monkeypatch):
    decoder(change=lambda config: attrs.evolve(config, tie_word_embeddings=False))


def head_is_tied_in_an_untied_model(monkeypatch):
    decoder(tied=False, change=lambda config: attrs.evolve(config, tie_word_embeddings=True))


def transpose_square_matrices(monkeypatch):
    def transposed(self, tensor):
        return tensor.T.contiguous() if tensor.ndim == 2 and tensor.shape[0] == tensor.shape[1] else tensor

    monkeypatch.setattr(Identity, "to_parameter", transposed)
    decoder()


def drop_the_bias_of(projection, monkeypatch):
    class WithoutBias(nn.Linear):
        def forward(self, x):
            return F.linear(x, self.weight)

    original = GroupedQueryAttention.__init__

    def init(self, *arguments):
        original(self, *arguments)
        getattr(self, projection).__class__ = WithoutBias

    monkeypatch.setattr(GroupedQueryAttention, "__init__", init)
    decoder()


def load_without_the_biases(monkeypatch):
    decoder(change=lambda config: attrs.evolve(config, attention_bias=False))


def shift_the_causal_mask(by, monkeypatch):
    def shifted(mask, *arguments):
        return allowed(Causal(mask.offset + by), *arguments)

    monkeypatch.setattr("apr_train.model.attention.eager.allowed", shifted)
    decoder()


def count_positions_from_zero(monkeypatch):
    monkeypatch.setattr(encoder_module, "position_ids", lambda tokens, pad: torch.arange(tokens.shape[1])[None])
    encoder()


def ignore_the_padding(monkeypatch):
    monkeypatch.setattr("apr_train.model.attention.eager.allowed", lambda *arguments: None)
    encoder()


def approximate_the_gelu(monkeypatch):
    monkeypatch.setattr(MLP, "forward", lambda self, x: self.down_proj(F.gelu(self.up_proj(x), approximate="tanh")))
    encoder()


def layer_norm_eps_of_1e_12(monkeypatch):
    encoder(change=lambda config: attrs.evolve(config, layer_norm_eps=1e-12))


MUTANTS = {
    "q and k swapped in the name map": swap_q_and_k,
    "gate and up swapped": swap_gate_and_up,
    "the two norms of a block swapped": swap_the_norms,
    "RoPE row permutation dropped for a GGUF Llama": drop_the_row_permutation,
    "RoPE row permutation in the wrong direction": permute_the_rows_the_other_way,
    "RoPE row permutation applied to a Qwen2": permute_the_rows_of_a_qwen2,
    "theta 10,000 instead of 1,000,000": theta_of_ten_thousand,
    "eps 1e-5 for 1e-6": eps_of_1e_5,
    "kv groups interleaved instead of blocked": interleave_the_kv_groups,
    "head untied: a copy of the embedding": head_is_a_copy,
    "head untied: loaded as a second matrix": head_is_a_second_matrix,
    "head tied in an untied model": head_is_tied_in_an_untied_model,
    "a square matrix transposed": transpose_square_matrices,
    "bias of q dropped": lambda monkeypatch: drop_the_bias_of("q_proj", monkeypatch),
    "bias of k dropped": lambda monkeypatch: drop_the_bias_of("k_proj", monkeypatch),
    "bias of v dropped": lambda monkeypatch: drop_the_bias_of("v_proj", monkeypatch),
    "all biases left in the file": load_without_the_biases,
    "causal mask shows the next token": lambda monkeypatch: shift_the_causal_mask(1, monkeypatch),
    "causal mask hides the token itself": lambda monkeypatch: shift_the_causal_mask(-1, monkeypatch),
    "encoder positions counted from zero": count_positions_from_zero,
    "encoder attends to padding": ignore_the_padding,
    "GELU by its tanh approximation": approximate_the_gelu,
    "LayerNorm eps 1e-12 for 1e-5": layer_norm_eps_of_1e_12,
}


@pytest.mark.rule("FALSIFY-APR-PRETRAIN-ARCH-004")
@pytest.mark.parametrize("name", MUTANTS)
def test_comparison_catches(name, monkeypatch):
    with pytest.raises(ConformanceError):
        MUTANTS[name](monkeypatch)


CLEAN = {
    "qwen2": decoder,
    "qwen2 with a kv head per query head": lambda: decoder(kv_heads=8),
    "qwen2 untied": lambda: decoder(tied=False),
    "llama": lambda: decoder("llama370m"),
    "encoder": encoder,
    "llama from GGUF": lambda: from_gguf("llama370m"),
    "qwen2 from GGUF": lambda: from_gguf("qwen2"),
}


@pytest.mark.parametrize("name", CLEAN)
def test_comparison_passes_without_a_defect(name):
    CLEAN[name]()
