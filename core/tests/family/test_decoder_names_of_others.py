"""The table of names of decoders that are no Llama, against transformers' modules and files and llama.cpp's tables."""

import math
from functools import partial

import gguf
import pytest
import torch
import transformers
from apr_train.checkpoint.header import Header, TensorInfo
from apr_train.errors import NameMapError, WrongMapError
from apr_train.family.card import FamilyInfo, Layout
from apr_train.family.decoder_config import DecoderConfig
from apr_train.family.decoder_names import decoder_rules
from apr_train.family.name_map import NameMap, Tied, to_checkpoint, to_parameters
from apr_train.family.name_rules import apply, rename, split, transpose
from apr_train.family.operations import AddOffset, Transpose
from safetensors.torch import load_file

SIZES = {
    "vocab_size": 61,
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 40,
    "max_position_embeddings": 64,
}
LAYER_NORM = {"rms_norm_eps": None, "layer_norm_eps": 1e-5, "norm": "layer"}
PHI = {"self_attn.o_proj": "self_attn.dense", "mlp.up_proj": "mlp.fc1", "mlp.down_proj": "mlp.fc2", "norm": "final_layernorm"}
MIXTRAL = {
    "mlp.gate": "block_sparse_moe.gate",
    "mlp.experts.gate_proj": "block_sparse_moe.experts.{expert}.w1",
    "mlp.experts.up_proj": "block_sparse_moe.experts.{expert}.w3",
    "mlp.experts.down_proj": "block_sparse_moe.experts.{expert}.w2",
}
GPT2 = {
    "embed_tokens": "wte",
    "embed_positions": "wpe",
    "layers": "h",
    "input_layernorm": "ln_1",
    "post_attention_layernorm": "ln_2",
    "norm": "ln_f",
}
BIASES = {"attention_bias": True, "attention_output_bias": True, "mlp_bias": True}


def ours(**changes):
    return DecoderConfig(**{**SIZES, "rope_theta": 1e4, "rms_norm_eps": 1e-6, "tie_word_embeddings": False, **changes})


def gpt2_rules(config, layout):
    """Conv1D has `[in, out]`, and q, k and v in one; llama.cpp turns the matrices round and leaves them in one."""
    block = "layers.{layer}."
    parts = [(f"{block}self_attn.{name}_proj", "hidden_size") for name in "qkv"]
    weights, biases = ([(f"{name}.{kind}", size) for name, size in parts] for kind in ("weight", "bias"))
    if layout.names == "gguf":
        added = [*split("blk.{layer}.attn_qkv.weight", weights, "hidden_size"), *split("blk.{layer}.attn_qkv.bias", biases)]
        return decoder_rules(config, layout, names=GPT2, drop=[f"self_attn.{name}_proj" for name in "qkv"], add=added)
    prefix = ("" if layout.bare else "transformer.") + "h.{layer}."
    added = [
        *split(f"{prefix}attn.c_attn.weight", weights, "hidden_size", dim=1, operation=Transpose()),
        *split(f"{prefix}attn.c_attn.bias", biases),
    ]
    matrices = (
        ("attn.c_proj", "self_attn.o_proj", "hidden_size", "hidden_size"),
        ("mlp.c_fc", "mlp.up_proj", "intermediate_size", "hidden_size"),
        ("mlp.c_proj", "mlp.down_proj", "hidden_size", "intermediate_size"),
    )
    for theirs, stem, rows, columns in matrices:
        added.append(transpose(f"{prefix}{theirs}.weight", f"{block}{stem}.weight", rows, columns))
        added.append(rename(f"{prefix}{theirs}.bias", f"{block}{stem}.bias", rows))
    drop = [*(f"self_attn.{name}_proj" for name in "qkvo"), "mlp.up_proj", "mlp.down_proj"]
    return decoder_rules(config, layout, prefix="transformer.", names=GPT2, drop=drop, add=added)


def phi3_rules(config, layout):
    prefix = "blk.{layer}." if layout.names == "gguf" else "model.layers.{layer}."
    names = ("attn_qkv", "ffn_up") if layout.names == "gguf" else ("self_attn.qkv_proj", "mlp.gate_up_proj")
    heads = {"q": "num_attention_heads", "k": "num_key_value_heads", "v": "num_key_value_heads"}
    qkv = [(f"layers.{{layer}}.self_attn.{name}_proj.weight", f"{count}*head_dim") for name, count in heads.items()]
    mlp = [(f"layers.{{layer}}.mlp.{name}_proj.weight", "intermediate_size") for name in ("gate", "up")]
    added = [split(f"{prefix}{name}.weight", part, "hidden_size") for name, part in zip(names, (qkv, mlp), strict=True)]
    drop = [*(f"self_attn.{name}_proj" for name in "qkv"), "mlp.gate_proj", "mlp.up_proj"]
    return decoder_rules(config, layout, drop=drop, add=added)


MOE = {"num_experts": 3, "num_experts_per_tok": 2}
QWEN2_MOE = {**MOE, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 20}
CASES = {
    "LLAMA": ("Llama", {}, ours(), decoder_rules),
    "QWEN3": ("Qwen3", {}, ours(qk_norm="head"), decoder_rules),
    "OLMO2": ("Olmo2", {}, ours(norm_position="post", qk_norm="projection", head_dim=6), decoder_rules),
    "GEMMA": ("Gemma", {}, ours(norm_offset=1.0, tie_word_embeddings=True), decoder_rules),
    "GEMMA2": ("Gemma2", {}, ours(norm_position="both", norm_offset=1.0, tie_word_embeddings=True), decoder_rules),
    "GEMMA3": (
        "Gemma3",
        {},
        ours(norm_position="both", norm_offset=1.0, qk_norm="head", tie_word_embeddings=True),
        decoder_rules,
    ),
    "PHI2": (
        "Phi",
        {},
        ours(**LAYER_NORM, **BIASES, head_dim=6, parallel_residual=True, gated_mlp=False, lm_head_bias=True),
        partial(decoder_rules, names=PHI),
    ),
    "PHI3": ("Phi3", {"pad_token_id": 0}, ours(head_dim=6), phi3_rules),
    "STARCODER2": (
        "Starcoder2",
        {},
        ours(**LAYER_NORM, **BIASES, head_dim=6, gated_mlp=False),
        partial(decoder_rules, names={"mlp.up_proj": "mlp.c_fc", "mlp.down_proj": "mlp.c_proj"}),
    ),
    "GPT2": (
        "GPT2",
        {"n_positions": 64, "n_inner": 40},
        ours(
            **LAYER_NORM, **BIASES, head_dim=6, num_key_value_heads=4, gated_mlp=False, learned_positions=True,
            rope_theta=None, tie_word_embeddings=True,
        ),
        gpt2_rules,
    ),
    "COMMAND_R": (
        "Cohere",
        {},
        ours(**LAYER_NORM, norm_bias=False, head_dim=6, parallel_residual=True, tie_word_embeddings=True),
        decoder_rules,
    ),
    "GRANITE": ("Granite", {}, ours(head_dim=6), decoder_rules),
    "SMOLLM3": ("SmolLM3", {"pad_token_id": 0}, ours(head_dim=6), decoder_rules),
    "QWEN2MOE": (
        "Qwen2Moe",
        {"mlp_only_layers": [1]},
        ours(**QWEN2_MOE, attention_bias=True, head_dim=6, mlp_only_layers=(1,)),
        decoder_rules,
    ),
    "OLMOE": ("Olmoe", {}, ours(**MOE, qk_norm="projection", head_dim=6), decoder_rules),
    "MIXTRAL": ("Mixtral", {}, ours(**MOE), partial(decoder_rules, names=MIXTRAL)),
}  # fmt: skip
"""GGUF architecture → transformers' classes, what their config says besides, ours, and the rules."""


def reference(arch):
    name, extra, config, _ = CASES[arch]
    config_name = "Gemma3TextConfig" if name == "Gemma3" else f"{name}Config"
    sizes = {**SIZES, "head_dim": config.head_dim, "num_key_value_heads": config.num_key_value_heads}
    if config.num_experts:
        sizes |= {"num_local_experts" if name == "Mixtral" else "num_experts": 3}
        sizes |= {"moe_intermediate_size": 16, "shared_expert_intermediate_size": 20} if name == "Qwen2Moe" else {}
    made = getattr(transformers, config_name)(**sizes, tie_word_embeddings=config.tie_word_embeddings, **extra)
    model_class = {"GPT2": "GPT2LMHeadModel"}.get(name, f"{name}ForCausalLM")
    torch.manual_seed(0)
    return getattr(transformers, model_class)(made)


def map_of(arch, **layout):
    _, _, config, rules = CASES[arch]
    return NameMap.for_config(config, rules(config, Layout(**layout)))


def shapes_of(state):
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


@pytest.mark.parametrize("arch", CASES)
def test_names_and_shapes_in_memory_are_transformers_own(arch):
    state, name_map = shapes_of(reference(arch).state_dict()), map_of(arch, experts="stacked")
    ties = {entry.checkpoint for entry in name_map.entries if isinstance(entry, Tied)}
    assert name_map.tensors == {name: shape for name, shape in state.items() if name not in ties}
    assert ties <= set(state)


@pytest.mark.parametrize("arch", ["QWEN2MOE", "OLMOE", "MIXTRAL", "GPT2", "PHI3"])
def test_a_file_of_transformers_has_the_names_that_files_have(arch, tmp_path):
    """And both spellings of the experts are one model."""
    model = reference(arch)
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    files, memory = map_of(arch), map_of(arch, experts="stacked")
    assert files.tensors == shapes_of(saved)
    ours, theirs = to_parameters(files, saved), to_parameters(memory, model.state_dict())
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    back = to_checkpoint(files, ours)
    assert back.keys() == saved.keys()
    assert all(torch.equal(back[name], saved[name]) for name in saved)


DENSE = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 3)
"""For the dense layers of a model with experts: llama.cpp has them nowhere, and their names can only be these."""


def gguf_name(table, name):
    """llama.cpp's name of one of Hugging Face's, as gguf-py's tables have it; experts under their merged name."""
    stem, _, kind = name.rpartition(".")
    if kind not in ("weight", "bias"):
        stem, kind = name, "weight"
    words = stem.split(".")
    if "experts" in words and words[-2].isdigit():
        stem = ".".join([*words[:-2], words[-1]])
        if "block_sparse_moe" in words:  # conversion/llama.py merges Mixtral's under Meta's names
            stem = stem.removeprefix("model.").replace("block_sparse_moe", "feed_forward")
    found = table.get_name(stem) or DENSE.get_name(stem)
    assert found is not None, stem
    return f"{found}.{kind}"


@pytest.mark.parametrize("arch", CASES)
def test_gguf_names_are_llama_cpps_of_the_same_parameters(arch):
    table = gguf.get_tensor_name_map(getattr(gguf.MODEL_ARCH, "LLAMA" if arch == "MIXTRAL" else arch), 3)
    hf, theirs = map_of(arch), map_of(arch, names="gguf")
    assert hf.parameters == theirs.parameters
    for parameter, edges in hf.fills.items():
        assert {edge.checkpoint for edge in theirs.fills[parameter]} == {gguf_name(table, edge.checkpoint) for edge in edges}


def test_gguf_experts_are_stacks_in_the_files_order():
    shapes = map_of("QWEN2MOE", names="gguf").tensors
    assert {name: shapes[f"blk.0.{name}.weight"] for name in ("ffn_gate_exps", "ffn_down_exps", "ffn_gate_inp_shexp")} == {
        "ffn_gate_exps": (3, 16, 24),
        "ffn_down_exps": (3, 24, 16),
        "ffn_gate_inp_shexp": (1, 24),
    }
    assert "blk.1.ffn_gate_exps.weight" not in shapes
    assert shapes["blk.1.ffn_gate.weight"] == (40, 24)


@pytest.mark.parametrize("arch", ["GEMMA", "GEMMA2", "GEMMA3"])
def test_every_norm_of_a_gemma_is_one_more_in_a_gguf_and_nothing_else_is(arch):
    """llama.cpp adds one to every tensor whose Hugging Face name ends in norm.weight (conversion/gemma.py)."""
    theirs = {edge.parameter: edge.checkpoint for edges in map_of(arch).fills.values() for edge in edges}
    offsets = {
        name: edge.operation
        for name, (edge,) in map_of(arch, names="gguf").fills.items()
        if isinstance(edge.operation, AddOffset)
    }
    assert set(offsets) == {name for name, checkpoint in theirs.items() if checkpoint.endswith("norm.weight")}
    assert {operation.offset for operation in offsets.values()} == {1.0}
    assert not [edge for edges in map_of(arch).fills.values() for edge in edges if isinstance(edge.operation, AddOffset)]


def test_bare_names_lack_the_prefix_also_where_experts_are_stacked():
    headed, bare = map_of("MIXTRAL", experts="stacked").tensors, map_of("MIXTRAL", experts="stacked", bare=True).tensors
    assert {name.removeprefix("model."): shape for name, shape in headed.items()} == bare


def test_files_with_stacked_experts_are_known_by_a_name():
    info = FamilyInfo(
        name="moe", api_version="1.0", kind="decoder", objectives=("causal-lm",), hf_classes=("M",), model_type="moe",
        presets=("t",), default_preset="t",
    )  # fmt: skip
    for experts in ("stacked", "separate"):
        shapes = map_of("QWEN2MOE", experts=experts).tensors
        tensors = {name: TensorInfo(name, "F32", shape, 4 * math.prod(shape)) for name, shape in shapes.items()}
        assert info.layout_of(Header(path="f", format="safetensors", tensors=tensors)).experts == experts


@pytest.mark.parametrize("argument", ["names", "gguf"])
def test_a_stem_that_no_decoder_has_is_named(argument):
    with pytest.raises(WrongMapError, match=rf"{argument}: no module of a decoder is called mlp.gate_porj \(did you mean mlp"):
        decoder_rules(ours(), Layout(), **{argument: {"mlp.gate_porj": "x"}})
    with pytest.raises(WrongMapError, match="drop: no module of a decoder is called o_proj"):
        decoder_rules(ours(), Layout(), drop=["o_proj"])


def test_gguf_stems_are_a_familys_own_where_it_says_so():
    rules = decoder_rules(ours(), Layout(names="gguf"), gguf={"self_attn.o_proj": "attn_out", "norm": "final"})
    found = NameMap.for_config(ours(), rules).tensors
    assert {"blk.2.attn_out.weight", "final.weight"} <= found.keys()


class Doubled:
    def to_parameter(self, tensor):
        return tensor * 2

    def to_checkpoint(self, tensor):
        return tensor / 2


def test_an_added_rule_may_have_an_operation_of_the_familys_own():
    added = [apply(Doubled(), "model.norm.weight", "norm.weight", "hidden_size")]
    name_map = NameMap.for_config(ours(), decoder_rules(ours(), Layout(), drop=["norm"], add=added))
    assert to_parameters(name_map, {"model.norm.weight": torch.ones(24)})["norm.weight"].tolist() == [2.0] * 24


@pytest.mark.rule("PREFLIGHT-008")
def test_adjacent_rows_that_nobody_defines_are_refused_whatever_the_family_says():
    for config in (ours(qk_norm="head"), ours(partial_rotary_factor=0.5)):
        with pytest.raises(NameMapError, match="whole heads without norms only") as caught:
            decoder_rules(config, Layout(rope_rows="adjacent"))
        assert not isinstance(caught.value, WrongMapError)
