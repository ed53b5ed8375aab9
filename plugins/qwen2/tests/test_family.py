"""The Qwen2 family's data and hooks; torch-free."""

import apr_train_qwen2 as family
import attrs
import pytest
from apr_train.family import (
    ConfigError,
    DecoderConfig,
    Header,
    Identity,
    Ignored,
    Layout,
    NameMapError,
    TensorInfo,
    Tie,
    Tied,
    YarnScaling,
)
from apr_train.family.load_plan import plan_load
from apr_train.family.registry import Registry
from apr_train.preflight.config_keys import config_key_findings

# name: hidden, layers, heads, kv heads, intermediate, vocabulary, tied: the published Qwen2.5-Coder-*-Instruct configs
PUBLISHED = {
    "0.5b": (896, 24, 14, 2, 4864, 151936, True),
    "1.5b": (1536, 28, 12, 2, 8960, 151936, True),
    "3b": (2048, 36, 16, 2, 11008, 151936, True),
    "7b": (3584, 28, 28, 4, 18944, 152064, False),
    "14b": (5120, 48, 40, 8, 13824, 152064, False),
    "32b": (5120, 64, 40, 8, 27648, 152064, False),
}
# The 0.5B's published config.json, keys that only concern other programs included
CONFIG_JSON = {
    "architectures": ["Qwen2ForCausalLM"],
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "hidden_act": "silu",
    "hidden_size": 896,
    "initializer_range": 0.02,
    "intermediate_size": 4864,
    "max_position_embeddings": 32768,
    "max_window_layers": 24,
    "model_type": "qwen2",
    "num_attention_heads": 14,
    "num_hidden_layers": 24,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 32768,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "use_sliding_window": False,
    "vocab_size": 151936,
}


def header(config=CONFIG_JSON, *, tie=True):
    return Header(path="model", format="safetensors", architecture="qwen2", config=config, tie=Tie(tie, "metadata"))


def qwen_file_tensors():
    """Names and shapes of the published 0.5B file, written out here by hand and not from the family's table."""
    layer = {
        "self_attn.q_proj.weight": (896, 896),
        "self_attn.q_proj.bias": (896,),
        "self_attn.k_proj.weight": (128, 896),
        "self_attn.k_proj.bias": (128,),
        "self_attn.v_proj.weight": (128, 896),
        "self_attn.v_proj.bias": (128,),
        "self_attn.o_proj.weight": (896, 896),
        "mlp.gate_proj.weight": (4864, 896),
        "mlp.up_proj.weight": (4864, 896),
        "mlp.down_proj.weight": (896, 4864),
        "input_layernorm.weight": (896,),
        "post_attention_layernorm.weight": (896,),
    }
    shapes = {f"model.layers.{n}.{name}": shape for n in range(24) for name, shape in layer.items()}
    shapes |= {"model.embed_tokens.weight": (151936, 896), "model.norm.weight": (896,)}
    return {name: TensorInfo(name, "BF16", shape, 0) for name, shape in shapes.items()}


@pytest.mark.rule("FALSIFY-APR-PRETRAIN-ARCH-001")
@pytest.mark.parametrize("preset", PUBLISHED)
def test_preset_is_the_published_config_field_for_field(preset):
    hidden, layers, heads, kv_heads, intermediate, vocabulary, tied = PUBLISHED[preset]
    assert family.build_config(preset, None) == DecoderConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=hidden // heads,
        intermediate_size=intermediate,
        max_position_embeddings=32768,
        rope_theta=1_000_000.0,
        rope_scaling=None,
        rms_norm_eps=1e-6,
        tie_word_embeddings=tied,
        hidden_act="silu",
        initializer_range=0.02,
        attention_bias=True,
        attention_output_bias=False,
        mlp_bias=False,
    )


@pytest.mark.rule("FALSIFY-APR-PRETRAIN-ARCH-001")
def test_preset_of_the_smallest_equals_its_config_json():
    assert family.build_config("0.5b", None) == family.build_config(None, header())


def test_presets_are_those_that_the_card_lists():
    assert set(family.FAMILY.presets) == {*PUBLISHED, "tiny"}


def test_preset_tiny_has_the_real_gqa_ratio():
    tiny = family.PRESETS["tiny"]
    assert (tiny.num_attention_heads, tiny.num_key_value_heads) == (14, 2)


def test_unknown_preset_is_an_error_that_names_the_nearest():
    with pytest.raises(ConfigError, match=r"did you mean 1\.5b"):
        family.build_config("1.5", None)


@pytest.mark.rule("FALSIFY-APR-PRETRAIN-INIT-007")
def test_published_file_is_used_whole_290_of_290_and_72_biases():
    tensors = qwen_file_tensors()
    name_map = family.map_tensor_names(family.PRESETS["0.5b"], Layout())
    plan = plan_load(name_map, tensors, where="model")
    assert plan.findings == ()
    assert (len(tensors), len(plan.loads), len(name_map.fills)) == (290, 290, 290)
    assert sum(entry.checkpoint.endswith(".bias") for entry in plan.loads) == 72


@pytest.mark.rule("FALSIFY-APR-PRETRAIN-INIT-007")
def test_file_that_lost_its_biases_is_refused_72_times():
    tensors = {name: info for name, info in qwen_file_tensors().items() if not name.endswith(".bias")}
    plan = plan_load(family.map_tensor_names(family.PRESETS["0.5b"], Layout()), tensors, where="model")
    assert len(plan.findings) == 72


@pytest.mark.rule("FALSIFY-APR-PRETRAIN-ARCH-003")
@pytest.mark.parametrize("name", sorted({*DecoderConfig.REQUIRED} - {*family.FAMILY.implied}))
def test_header_without_a_required_field_is_an_error_that_names_it(name):
    lacking = {key: value for key, value in CONFIG_JSON.items() if key != name}
    with pytest.raises(ConfigError, match=name):
        family.build_config(None, header(lacking, tie=None))


def test_biases_are_the_architectures_whatever_the_file_says():
    config = family.build_config(None, header(CONFIG_JSON | {"attention_bias": False}))
    assert (config.attention_bias, config.attention_output_bias) == (True, False)


@pytest.mark.parametrize("tied", [True, False])
def test_gguf_names_are_llama_cpps_and_no_rows_are_permuted(tied):
    config = attrs.evolve(family.PRESETS["tiny"], tie_word_embeddings=tied)
    name_map = family.map_tensor_names(config, Layout(names="gguf"))
    assert {edge.operation for edges in name_map.fills.values() for edge in edges} == {Identity()}
    assert [entry.checkpoint for entry in name_map.entries if isinstance(entry, Tied)] == (["output.weight"] if tied else [])
    assert not [entry for entry in name_map.entries if isinstance(entry, Ignored)]
    stems = ["attn_norm", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_norm", "ffn_gate", "ffn_up", "ffn_down"]
    expected = {f"blk.{n}.{stem}.weight" for n in range(2) for stem in stems}
    expected |= {f"blk.{n}.attn_{which}.bias" for n in range(2) for which in "qkv"}
    assert set(name_map.by_checkpoint) == expected | {"token_embd.weight", "output_norm.weight", "output.weight"}


@pytest.mark.parametrize("names", ["hf", "gguf"])
def test_rows_in_adjacent_pairs_are_refused(names):
    with pytest.raises(NameMapError, match="a qwen2 file never has its rows of q and k in adjacent pairs"):
        Registry.discover().family("qwen2").map_tensor_names(family.PRESETS["tiny"], Layout(names=names, rope_rows="adjacent"))


def test_bare_model_has_no_prefix():
    name_map = family.map_tensor_names(family.PRESETS["tiny"], Layout(bare=True))
    assert not any(name.startswith("model.") for name in name_map.by_checkpoint)


def test_published_header_has_no_findings():
    assert Registry.discover().family("qwen2").validate_family(header(), "causal-lm") == []


def test_published_yarn_is_read():
    yarn = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
    config = family.build_config(None, header(CONFIG_JSON | {"rope_scaling": yarn}))
    assert config.rope_scaling == YarnScaling(factor=4.0, original_max_position_embeddings=32768)


def test_dynamic_scaling_is_refused_by_name():
    with pytest.raises(ConfigError, match="dynamic"):
        family.build_config(None, header(CONFIG_JSON | {"rope_scaling": {"type": "dynamic", "factor": 4.0}}))


def test_fim_tokens_are_those_of_the_published_tokenizer():
    assert family.FAMILY.fim_tokens == {
        "prefix": "<|fim_prefix|>",
        "middle": "<|fim_middle|>",
        "suffix": "<|fim_suffix|>",
        "pad": "<|fim_pad|>",
    }


def test_published_config_has_no_key_that_is_not_implemented():
    config = family.build_config(None, header())
    assert [finding for finding in config_key_findings(header(), config) if finding.severity == "error"] == []
