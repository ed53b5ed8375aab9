"""The Llama family's data and hooks; torch-free."""

import apr_train_llama370m as family
import pytest
from apr_train.family import (
    ConfigError,
    DecoderConfig,
    Header,
    Ignored,
    Layout,
    LinearScaling,
    Llama3Scaling,
    RopeRowPermutation,
    TensorInfo,
    Tie,
    Tied,
)
from apr_train.preflight.config_keys import config_key_findings

SMOLLM2 = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "max_position_embeddings": 8192,
    "num_attention_heads": 9,
    "num_hidden_layers": 30,
    "num_key_value_heads": 3,
    "rms_norm_eps": 1e-5,
    "rope_theta": 100_000,
    "vocab_size": 49_152,
}
LLAMA31 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0} | {
    "original_max_position_embeddings": 8192
}


def header(config=SMOLLM2, *, tie=True, tensors=(), kind="safetensors"):
    infos = {name: TensorInfo(name, "F32", (1,), 4) for name in tensors}
    return Header(path="model", format=kind, architecture="llama", config=config, tensors=infos, tie=Tie(tie, "metadata"))


@pytest.mark.rule("FALSIFY-APR-PRETRAIN-ARCH-002")
def test_preset_370m_is_the_baseline_field_for_field():
    assert family.PRESETS["370m"] == DecoderConfig(
        vocab_size=50257,
        hidden_size=1024,
        num_hidden_layers=24,
        num_attention_heads=16,
        num_key_value_heads=4,
        head_dim=64,
        intermediate_size=2816,
        max_position_embeddings=4096,
        rope_theta=10000.0,
        rope_scaling=None,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        hidden_act="silu",
        initializer_range=0.02,
        attention_bias=False,
        attention_output_bias=False,
        mlp_bias=False,
    )
    assert family.FAMILY.default_preset == "370m"


@pytest.mark.rule("INV-ARCH-370M-002")
def test_370m_heads_times_head_dim_is_the_width():
    config = family.PRESETS["370m"]
    assert config.num_attention_heads * config.head_dim == config.hidden_size == 1024


@pytest.mark.rule("INV-ARCH-370M-003")
def test_370m_kv_heads_divide_the_heads_four_to_one():
    config = family.PRESETS["370m"]
    assert config.num_attention_heads == 4 * config.num_key_value_heads


@pytest.mark.rule("INV-ARCH-370M-004")
def test_370m_head_is_a_tie_and_fills_no_parameter_of_its_own():
    name_map = family.map_tensor_names(family.PRESETS["370m"], Layout())
    assert isinstance(name_map.by_checkpoint["lm_head.weight"][0], Tied)
    assert "lm_head.weight" not in name_map.fills


@pytest.mark.rule("INV-ARCH-370M-005")
def test_370m_rope_theta_is_ten_thousand():
    assert family.PRESETS["370m"].rope_theta == 10_000.0


@pytest.mark.rule("INV-ARCH-370M-006")
def test_370m_vocabulary_is_gpt2s():
    assert family.PRESETS["370m"].vocab_size == 50_257


@pytest.mark.rule("INV-ARCH-370M-007")
def test_370m_mlp_is_swiglu_with_gate_and_up_apart():
    config = family.PRESETS["370m"]
    fills = family.map_tensor_names(config, Layout()).fills
    (gate,), (up,) = fills["layers.0.mlp.gate_proj.weight"], fills["layers.0.mlp.up_proj.weight"]
    assert config.hidden_act == "silu"
    assert gate.checkpoint != up.checkpoint
    assert gate.checkpoint_shape == up.checkpoint_shape == (2816, 1024)


@pytest.mark.rule("INV-ARCH-370M-008")
@pytest.mark.parametrize("names", ["hf", "gguf"])
def test_370m_has_no_bias_anywhere(names):
    fills = family.map_tensor_names(family.PRESETS["370m"], Layout(names=names)).fills
    assert [name for name in fills if not name.endswith(".weight")] == []


@pytest.mark.rule("INV-ARCH-370M-009")
def test_370m_embedding_and_head_are_vocabulary_by_hidden():
    by_checkpoint = family.map_tensor_names(family.PRESETS["370m"], Layout()).by_checkpoint
    shapes = {name: by_checkpoint[name][0].checkpoint_shape for name in ("model.embed_tokens.weight", "lm_head.weight")}
    assert set(shapes.values()) == {(50257, 1024)}


@pytest.mark.rule("FALSIFY-APR-PRETRAIN-INIT-007")
def test_370m_tied_is_218_tensors_and_219_with_the_head_stored_twice():
    name_map = family.map_tensor_names(family.PRESETS["370m"], Layout())
    ties = [entry for entry in name_map.entries if isinstance(entry, Tied)]
    assert (len(name_map.fills), len(name_map.fills) + len(ties)) == (218, 219)


def test_preset_tiny_keeps_the_baselines_proportions():
    tiny, base = family.PRESETS["tiny"], family.PRESETS["370m"]
    assert all(config.num_attention_heads == 4 * config.num_key_value_heads for config in (tiny, base))
    assert tiny.intermediate_size / tiny.hidden_size == base.intermediate_size / base.hidden_size


def test_unknown_preset_is_an_error_that_names_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 370m"):
        family.build_config("370", None)


def test_config_of_a_smollm2_comes_from_its_header():
    config = family.build_config(None, header())
    assert (config.rope_theta, config.head_dim, config.num_attention_heads, config.num_key_value_heads) == (100_000, 64, 9, 3)
    assert config.tie_word_embeddings is True


@pytest.mark.rule("FALSIFY-APR-PRETRAIN-ARCH-003")
@pytest.mark.parametrize("name", sorted({*DecoderConfig.REQUIRED} - {"tie_word_embeddings", *family.FAMILY.implied}))
def test_header_without_a_required_field_is_an_error_that_names_it(name):
    lacking = {key: value for key, value in SMOLLM2.items() if key != name}
    with pytest.raises(ConfigError, match=name):
        family.build_config(None, header(lacking))


@pytest.mark.rule("FALSIFY-APR-PRETRAIN-ARCH-003")
def test_header_that_does_not_decide_the_tie_is_an_error():
    with pytest.raises(ConfigError, match="tie_word_embeddings"):
        family.build_config(None, header(tie=None))


def test_head_dim_of_the_file_wins_over_width_by_heads():
    assert family.build_config(None, header(SMOLLM2 | {"head_dim": 32})).head_dim == 32


def test_llama3_scaling_is_read_exactly():
    config = family.build_config(None, header(SMOLLM2 | {"rope_scaling": LLAMA31}))
    assert config.rope_scaling == Llama3Scaling(
        factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8192
    )


def test_linear_scaling_is_read():
    config = family.build_config(None, header(SMOLLM2 | {"rope_scaling": {"type": "linear", "factor": 2.0}}))
    assert config.rope_scaling == LinearScaling(factor=2.0)


@pytest.mark.parametrize("kind", ["dynamic", "proportional"])
def test_another_rope_scaling_is_refused_by_name(kind):
    with pytest.raises(ConfigError, match=kind):
        family.build_config(None, header(SMOLLM2 | {"rope_scaling": {"rope_type": kind, "factor": 2.0}}))


def test_attention_bias_means_q_k_v_and_o():
    config = family.build_config(None, header(SMOLLM2 | {"attention_bias": True}))
    fills = family.map_tensor_names(config, Layout()).fills
    assert {name.split(".")[-2] for name in fills if name.endswith(".bias")} == {"q_proj", "k_proj", "v_proj", "o_proj"}


def test_biases_that_the_metadata_does_not_mention_are_found_in_the_tensors():
    silent = {key: value for key, value in SMOLLM2.items() if key != "attention_bias"}
    config = family.build_config(None, header(silent, tensors=["blk.0.attn_q.bias"], kind="gguf"))
    assert (config.attention_bias, config.attention_output_bias, config.mlp_bias) == (True, True, False)


def test_gguf_rows_of_q_and_k_are_permuted_and_no_others():
    config = family.build_config(None, header(SMOLLM2 | {"attention_bias": True}))
    name_map = family.map_tensor_names(config, Layout(names="gguf", rope_rows="adjacent"))
    fills = [entry for (entry,) in name_map.fills.values() if entry.checkpoint.startswith("blk.0.")]
    layer0 = {entry.checkpoint: entry.operation.heads for entry in fills if isinstance(entry.operation, RopeRowPermutation)}
    assert layer0 == {f"blk.0.attn_{which}.{part}": {"q": 9, "k": 3}[which] for which in "qk" for part in ("weight", "bias")}


def test_bare_file_has_no_prefix_and_an_untied_head_is_fresh():
    config = family.build_config(None, header(tie=False))
    by_checkpoint = family.map_tensor_names(config, Layout(bare=True)).by_checkpoint
    assert "embed_tokens.weight" in by_checkpoint
    assert by_checkpoint["lm_head.weight"][0].fresh_group == "lm_head"
    assert family.map_tensor_names(config, Layout()).by_checkpoint["lm_head.weight"][0].fresh_group is None


def test_saved_rotary_tables_of_old_files_are_ignored_with_a_reason():
    by_checkpoint = family.map_tensor_names(family.PRESETS["tiny"], Layout()).by_checkpoint
    (entry,) = by_checkpoint["model.layers.3.self_attn.rotary_emb.inv_freq"]
    assert isinstance(entry, Ignored)
    assert "rope_theta" in entry.reason


def test_table_of_rope_factors_in_a_gguf_is_refused():
    (finding,) = family.validate_family(header(tensors=["rope_freqs.weight"], kind="gguf"), "causal-lm")
    assert (finding.severity, "rope_freqs.weight" in finding.where) == ("error", True)


@pytest.mark.parametrize(("kind", "count"), [("apr", 1), ("gguf", 1), ("safetensors", 0)])
def test_llama31_without_its_scaling_is_warned_of_unless_the_config_json_said_so(kind, count):
    llama31 = SMOLLM2 | {"rope_theta": 500_000.0, "max_position_embeddings": 131_072}
    findings = family.validate_family(header(llama31, kind=kind), "causal-lm")
    assert [finding.severity for finding in findings] == ["warning"] * count


def test_sound_header_has_no_findings():
    assert family.validate_family(header(), "causal-lm") == []


def test_published_config_has_no_key_that_is_not_implemented():
    config = family.build_config(None, header())
    assert [finding for finding in config_key_findings(header(), config) if finding.severity == "error"] == []
