"""The table of names that Llama-shaped decoders share, against names written out by hand."""

import attrs
import pytest
from apr_train.checkpoint.header import Header, TensorInfo
from apr_train.family.card import Layout
from apr_train.family.decoder_config import DecoderConfig
from apr_train.family.decoder_names import decoder_rules, tensors_have
from apr_train.family.name_map import NameMap, Tied
from apr_train.family.operations import RopeRowPermutation

CONFIG = DecoderConfig(
    vocab_size=11,
    hidden_size=24,
    num_hidden_layers=1,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    intermediate_size=40,
    max_position_embeddings=64,
    rope_theta=1e4,
    rms_norm_eps=1e-5,
    tie_word_embeddings=False,
)
HF = {
    "model.embed_tokens.weight": (11, 24),
    "model.layers.0.input_layernorm.weight": (24,),
    "model.layers.0.self_attn.q_proj.weight": (32, 24),
    "model.layers.0.self_attn.k_proj.weight": (16, 24),
    "model.layers.0.self_attn.v_proj.weight": (16, 24),
    "model.layers.0.self_attn.o_proj.weight": (24, 32),
    "model.layers.0.post_attention_layernorm.weight": (24,),
    "model.layers.0.mlp.gate_proj.weight": (40, 24),
    "model.layers.0.mlp.up_proj.weight": (40, 24),
    "model.layers.0.mlp.down_proj.weight": (24, 40),
    "model.norm.weight": (24,),
    "lm_head.weight": (11, 24),
}
GGUF = {
    "token_embd.weight": "model.embed_tokens.weight",
    "blk.0.attn_norm.weight": "model.layers.0.input_layernorm.weight",
    "blk.0.attn_q.weight": "model.layers.0.self_attn.q_proj.weight",
    "blk.0.attn_k.weight": "model.layers.0.self_attn.k_proj.weight",
    "blk.0.attn_v.weight": "model.layers.0.self_attn.v_proj.weight",
    "blk.0.attn_output.weight": "model.layers.0.self_attn.o_proj.weight",
    "blk.0.ffn_norm.weight": "model.layers.0.post_attention_layernorm.weight",
    "blk.0.ffn_gate.weight": "model.layers.0.mlp.gate_proj.weight",
    "blk.0.ffn_up.weight": "model.layers.0.mlp.up_proj.weight",
    "blk.0.ffn_down.weight": "model.layers.0.mlp.down_proj.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}


def fills(config=CONFIG, **layout):
    entries = NameMap.for_config(config, decoder_rules(config, Layout(**layout))).fills.values()
    return {entry.checkpoint: entry for group in entries for entry in group}


def test_hugging_faces_names_and_shapes():
    assert {name: entry.checkpoint_shape for name, entry in fills().items()} == HF


def test_parameters_are_hugging_faces_names_without_the_prefix():
    assert {name: entry.parameter for name, entry in fills().items()} == {name: name.removeprefix("model.") for name in HF}


def test_gguf_names_fill_the_same_parameters_with_the_same_shapes():
    hf, gguf = fills(), fills(names="gguf")
    assert {name: (entry.parameter, entry.checkpoint_shape) for name, entry in gguf.items()} == {
        name: (hf[theirs].parameter, hf[theirs].checkpoint_shape) for name, theirs in GGUF.items()
    }


def test_bare_names_lack_the_prefix_and_the_head_may_be_fresh():
    bare = fills(bare=True)
    assert set(bare) == {name.removeprefix("model.") for name in HF}
    assert [name for name, entry in bare.items() if entry.fresh_group] == ["lm_head.weight"]


@pytest.mark.parametrize(
    ("flag", "modules"),
    [
        ("attention_bias", {"q_proj", "k_proj", "v_proj"}),
        ("attention_output_bias", {"o_proj"}),
        ("mlp_bias", {"gate_proj", "up_proj", "down_proj"}),
    ],
)
def test_each_bias_flag_adds_its_own_biases(flag, modules):
    added = fills(attrs.evolve(CONFIG, **{flag: True})).keys() - HF.keys()
    assert {name.split(".")[-2] for name in added} == modules
    assert all(name.endswith(".bias") for name in added)


@pytest.mark.parametrize("names", ["hf", "gguf"])
def test_adjacent_rows_permute_q_and_k_with_their_own_head_counts(names):
    entries = fills(attrs.evolve(CONFIG, attention_bias=True), names=names, rope_rows="adjacent").values()
    heads = {entry.parameter: entry.operation.heads for entry in entries if isinstance(entry.operation, RopeRowPermutation)}
    assert heads == {
        f"layers.0.self_attn.{module}.{part}": count
        for module, count in (("q_proj", 4), ("k_proj", 2))
        for part in ("weight", "bias")
    }


def test_tied_head_is_a_tie_and_no_parameter():
    tied = attrs.evolve(CONFIG, tie_word_embeddings=True)
    (entry,) = NameMap.for_config(tied, decoder_rules(tied, Layout())).by_checkpoint["lm_head.weight"]
    assert entry == Tied(checkpoint="lm_head.weight", parameter="embed_tokens.weight", shape=(11, 24))
    assert "lm_head.weight" not in fills(tied)


def test_tensors_say_what_metadata_does_not():
    header = Header(path="f", format="gguf", tensors={"blk.0.attn_q.bias": TensorInfo("blk.0.attn_q.bias", "F32", (1,), 4)})
    assert tensors_have(header, "q_proj.bias", "attn_q.bias")
    assert not tensors_have(header, "ffn_up.bias")
