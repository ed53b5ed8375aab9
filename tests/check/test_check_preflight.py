"""The PREFLIGHT rules through `apr-train check` on real files, each with a case that passes and one that does not."""

import json
import os

import attrs
import pytest
import transformers
from apr_train.checkpoint.apr.metadata import header_from_apr
from apr_train.data.tokens import TokenWriter

SMALL = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "tie_word_embeddings": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
CLASSES = {"qwen2": (transformers.Qwen2Config, "Qwen2ForCausalLM"), "llama370m": (transformers.LlamaConfig, "LlamaForCausalLM")}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


@pytest.fixture
def folder(build, tmp_path):
    """`folder(family, **keys)` → a Hugging Face folder whose config.json transformers wrote, the tensors to match."""

    def make(name, *, tensors=None, written=None, without=(), **keys):
        config_class, hf_class = CLASSES[name]
        values = config_class(**{**SMALL, **keys}, architectures=[hf_class]).to_dict() | (written or {})
        values = {key: value for key, value in values.items() if key not in without}
        config = build.config(name, **{key: keys.get(key, SMALL[key]) for key in SMALL if not key.endswith("_id")}, head_dim=8)
        return build.safetensors(values, build.shapes(name, config) | (tensors or {}))

    return make


@pytest.mark.rule("PREFLIGHT-001")
def test_file_of_one_family_is_claimed_by_it(build, check):
    for name in ("qwen2", "llama370m"):
        assert check(build.apr(name)).report["family"] == name


@pytest.mark.rule("PREFLIGHT-001")
def test_file_of_no_family_says_what_each_answered(build, check):
    checked = check(build.apr("qwen2", metadata={"architecture": "gpt9", "hf_architecture": "GPT9", "hf_model_type": "gpt9"}))
    message = checked.finding("PREFLIGHT-001")
    assert checked.exit_code == 3
    for word in ("GPT9", "qwen2: not mine", "llama370m: not mine", "codebert: not mine"):
        assert word in message


@pytest.mark.rule("PREFLIGHT-001")
def test_unknown_arch_offers_the_closest(build, check):
    assert "did you mean qwen2" in check(build.apr("qwen2"), "--arch", "qwen").finding("PREFLIGHT-001")


@pytest.mark.rule("PREFLIGHT-002")
def test_decoder_is_not_trained_to_fill_masks(build, check):
    path = build.apr("qwen2")
    assert check(path, "--objective", "causal-lm").exit_code == 0
    assert "masked-lm" in check(path, "--objective", "masked-lm").finding("PREFLIGHT-002")


@pytest.mark.rule("PREFLIGHT-003", "PREFLIGHT-004")
@pytest.mark.parametrize("name", ["qwen2", "llama370m"])
def test_config_json_of_transformers_is_harmless(folder, check, name):
    checked = check(folder(name))
    assert checked.ids("error") == set(), checked.text
    assert checked.ids("warning") == {"PREFLIGHT-017"}, checked.text


PUBLISHED_QWEN = {
    "attention_dropout": 0.0,
    "max_window_layers": 21,
    "sliding_window": 32_768,
    "use_sliding_window": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.43.1",
    "use_cache": True,
    "use_mrope": False,
    "rope_theta": 1_000_000.0,
}
PUBLISHED_SMOLLM2 = {
    "is_llama_config": True,
    "rope_interleaved": False,
    "rope_scaling": None,
    "rope_theta": 100_000,
    "pretraining_tp": 1,
    "attention_bias": False,
    "mlp_bias": False,
    "pad_token_id": 2,
    "torch_dtype": "bfloat16",
    "transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16"}},
}


@pytest.mark.rule("PREFLIGHT-003", "PREFLIGHT-004")
@pytest.mark.parametrize(("name", "published"), [("qwen2", PUBLISHED_QWEN), ("llama370m", PUBLISHED_SMOLLM2)])
def test_keys_of_published_config_json_files_are_harmless(folder, check, name, published):
    old = {"rope_parameters": None, "layer_types": None, "dtype": None}
    checked = check(folder(name, written={**old, **published}))
    assert (checked.ids("error"), checked.ids("warning")) == (set(), {"PREFLIGHT-017"}), checked.text


@pytest.mark.rule("PREFLIGHT-003")
def test_llama3_rope_scaling_is_implemented(folder, check):
    checked = check(folder("llama370m", written={"rope_parameters": LLAMA3}))
    assert checked.exit_code == 0, checked.text
    assert checked.report["config"]["rope_scaling"]["factor"] == 8.0


HARMFUL = {
    "sliding_window": {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 0, "layer_types": None},
    "is_causal": {"is_causal": False},
    "v_head_dim": {"v_head_dim": 16},
    "layer_types": {"layer_types": ["full_attention", "sliding_attention"]},
    "rope_scaling": {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e6, "factor": 4.0}},
    "rope_scaling, old spelling": {
        "rope_parameters": None,
        "rope_theta": 1e4,
        "rope_scaling": {"type": "dynamic", "factor": 2.0},
    },
    "partial_rotary_factor": {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "partial_rotary_factor": 0.5}},
    "hidden_act": {"hidden_act": "mish"},
    "attention_bias": {"attention_bias": False},
    "mlp_bias": {"mlp_bias": True},
    "attn_logit_softcapping": {"attn_logit_softcapping": 50.0},
    "final_logit_softcapping": {"final_logit_softcapping": 30.0},
    "embedding_multiplier": {"embedding_multiplier": 12.0},
    "logits_scaling": {"logits_scaling": 8.0},
    "residual_multiplier": {"residual_multiplier": 0.2},
    "attention_multiplier": {"attention_multiplier": 0.01},
    "query_pre_attn_scalar": {"query_pre_attn_scalar": 256},
    "use_qk_norm": {"use_qk_norm": True},
    "rope_interleaved": {"rope_interleaved": True},
    "no_rope_layers": {"no_rope_layers": [1, 0]},
    "num_experts": {"num_experts": 8},
    "use_mrope": {"use_mrope": True},
    "quantization_config": {"quantization_config": {"quant_method": "gptq"}},
    "is_encoder_decoder": {"is_encoder_decoder": True},
    "use_qkv_bias": {"use_qkv_bias": True},
    "rope_interleave": {"rope_interleave": True},
    "activation_function": {"activation_function": "gelu_new"},
    "kv_lora_rank": {"kv_lora_rank": 16},
    "local_attention": {"local_attention": 128},
    "sliding_window_pattern": {"_sliding_window_pattern": 6},
    "no_rope_layer_interval": {"no_rope_layer_interval": 4},
    "rotary_dim": {"rotary_dim": 4},
    "embedding_size": {"embedding_size": 16},
    "scale_attn_weights": {"scale_attn_weights": False},
    "swiglu_limit": {"swiglu_limit": 7.0},
    "attn_temperature_tuning": {"attn_temperature_tuning": True},
    "_logit_scale": {"_logit_scale": 0.0625},
}


@pytest.mark.rule("PREFLIGHT-003")
@pytest.mark.parametrize("value", [{}, [], "", False, True, "8", [8]], ids=repr)
@pytest.mark.parametrize("key", ["v_head_dim", "rotary_dim", "embedding_size", "no_rope_layer_interval"])
def test_a_size_of_another_type_is_not_taken_for_an_absent_one(folder, check, key, value):
    checked = check(folder("qwen2", written={key: value}))
    assert f"[{key}]" in checked.finding("PREFLIGHT-003")
    assert check(folder("qwen2", written={key: 0})).ids("error") == set()


@pytest.mark.rule("PREFLIGHT-003", "FALSIFY-APR-PRETRAIN-INIT-005")
@pytest.mark.parametrize("value", [{}, [], "", False], ids=repr)
@pytest.mark.parametrize("key", ["attention_multiplier", "query_pre_attn_scalar", "rope_local_base_freq", "no_rope_layers"])
def test_a_scale_of_another_type_is_not_taken_for_an_absent_one(folder, check, key, value):
    checked = check(folder("qwen2", written={key: value}))
    nothing = key == "no_rope_layers" and value == []
    assert f"[{key}]" in checked.text or nothing
    assert ("PREFLIGHT-003" in checked.ids("error")) is not nothing


@pytest.mark.rule("FALSIFY-APR-PRETRAIN-INIT-005")
@pytest.mark.parametrize("value", [5, ["silu"], {}, False], ids=repr)
def test_an_activation_that_is_no_name_is_a_value_that_cannot_be(folder, check, value):
    checked = check(folder("qwen2", written={"hidden_act": value}))
    told = [item for item in checked.report["findings"] if "[hidden_act]" in item["where"]]
    assert [(item["id"], item["expected"], item["found"]) for item in told] == [
        ("FALSIFY-APR-PRETRAIN-INIT-005", "a name", repr(value))
    ]


@pytest.mark.rule("PREFLIGHT-003")
@pytest.mark.parametrize("case", HARMFUL)
def test_key_that_changes_the_mathematics_is_an_error(folder, check, case):
    checked = check(folder("qwen2", written=HARMFUL[case]))
    message = checked.finding("PREFLIGHT-003")
    assert checked.exit_code == 3
    assert case.partition(",")[0] in message


@pytest.mark.rule("PREFLIGHT-003", "PREFLIGHT-010")
def test_what_is_not_implemented_does_not_hide_other_faults(folder, check, tokenizer_file):
    dynamic = {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e6, "factor": 4.0}}
    made = folder("qwen2", tensors={"model.extra.weight": (2, 2)}, written=dynamic | {"hidden_act": "mish", "eos_token_id": 64})
    checked = check(made, "--tokenizer", tokenizer_file(96), "--seq-len", 129)
    shown = {finding["where"].rpartition(" ")[2] for finding in checked.report["findings"] if finding["id"] == "PREFLIGHT-003"}
    assert shown == {"[hidden_act]", "[rope_scaling]"}
    others = {"FALSIFY-APR-PRETRAIN-INIT-007", "FALSIFY-APR-PRETRAIN-ARCH-010", "PREFLIGHT-009", "PREFLIGHT-010"}
    assert checked.ids() == {"PREFLIGHT-003"} | others


@pytest.mark.rule("PREFLIGHT-003")
@pytest.mark.parametrize(
    "neutral",
    [
        {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 2},
        {"layer_types": ["full_attention", "full_attention"]},
        {"attn_logit_softcapping": None},
        {"attention_multiplier": 8**-0.5},
        {"query_pre_attn_scalar": 8},
        {"no_rope_layers": [1, 1]},
        {"num_experts": 0},
        {"activation_function": "silu"},
        {"no_rope_layer_interval": 4, "no_rope_layers": [1, 1]},
        {"rotary_dim": 8},
        {"embedding_size": 32},
        {"scale_attn_weights": True},
        {"use_qkv_bias": False, "_attn_implementation": "sdpa", "original_max_position_embeddings": 128},
        {"attention_dropout": 0.0},
        {"is_causal": True, "is_decoder": True},
        {"num_experts_per_tok": 2, "moe_intermediate_size": 64, "num_experts": 0},
        {"rope_parameters": None, "rope_theta": 1e6, "rope_scaling": {"type": "linear", "factor": 1.0}},
        {"v_head_dim": 8},
        {"hidden_act": "swish"},
    ],
)
def test_same_keys_at_their_neutral_value_pass(folder, check, neutral):
    checked = check(folder("qwen2", written=neutral))
    assert (checked.exit_code, checked.ids("warning")) == (0, {"PREFLIGHT-017"}), checked.text


@pytest.mark.rule("PREFLIGHT-003")
@pytest.mark.parametrize("use", [None, False, True])
@pytest.mark.parametrize("window", [None, 16])
@pytest.mark.parametrize("first", [None, 0, 2])
def test_sliding_windows_are_found_where_transformers_has_them(folder, check, use, window, first):
    keys = {"use_sliding_window": use, "sliding_window": window, "max_window_layers": first}
    absent = [key for key in keys if keys[key] is None]
    made = folder("qwen2", written=keys, without=[*absent, "layer_types"])
    slides = set(transformers.AutoConfig.from_pretrained(made).layer_types) != {"full_attention"}
    assert ("PREFLIGHT-003" in check(made).ids("error")) == slides


@pytest.mark.rule("PREFLIGHT-003")
def test_window_of_a_gguf_is_an_error_and_a_mere_mention_in_an_apr_is_none(build, check):
    assert "sliding_window" in check(build.gguf("qwen2", keys={"attention.sliding_window": 16})).finding("PREFLIGHT-003")
    assert check(build.apr("qwen2", metadata={"sliding_window": 16})).exit_code == 0
    asked = build.apr("qwen2", metadata={"sliding_window": 16, "use_sliding_window": True, "max_window_layers": 1})
    assert "sliding_window" in check(asked).finding("PREFLIGHT-003")


GGUF_HARMFUL = {
    "rope.scaling.type": "longrope",
    "rope.scaling.attn_factor": 2.0,
    "rope.scaling.yarn_ext_factor": 0.5,
    "rope.scaling.yarn_log_multiplier": 0.1,
    "attention.sliding_window_pattern": 2,
    "attention.causal": False,
    "attention.clamp_kqv": 8.0,
    "attention.max_alibi_bias": 8.0,
    "attention.value_length": 16,
    "attention.temperature_length": 8192,
    "attention.q_lora_rank": 4,
    "use_parallel_residual": True,
    "expert_shared_count": 1,
    "rope.freq_base_swa": 1e4,
    "embedding_length_per_layer_input": 8,
    "decoder_block_count": 2,
}


@pytest.mark.rule("PREFLIGHT-003")
@pytest.mark.parametrize("key", GGUF_HARMFUL)
def test_gguf_key_that_changes_the_mathematics_is_an_error(build, check, key):
    checked = check(build.gguf("qwen2", keys={key: GGUF_HARMFUL[key]}))
    message = checked.finding("PREFLIGHT-003")
    assert checked.exit_code == 3
    canonical = {"rope.scaling.type": "rope_scaling", "rope.freq_base_swa": "rope_local_base_freq"}
    assert canonical.get(key, key.rpartition(".")[2]) in message


def test_gguf_scalings_are_read_as_llama_cpp_means_them(build, check):
    for keys in (
        {"rope.scale_linear": 4.0},
        {"rope.scaling.factor": 4.0},
        {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0},
    ):
        checked = check(build.gguf("qwen2", keys=keys))
        assert checked.report["config"]["rope_scaling"] == {"rope_type": "linear", "factor": 4.0}, checked.text
    yarn = {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 32}
    found = check(build.gguf("qwen2", keys=yarn | {"rope.scaling.yarn_beta_fast": 16.0})).report["config"]["rope_scaling"]
    assert (found["rope_type"], found["factor"], found["original_max_position_embeddings"]) == ("yarn", 4.0, 32)
    assert (found["beta_fast"], found["beta_slow"], found["attention_factor"]) == (16.0, 1.0, None)
    silent = check(build.gguf("qwen2", keys={"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0})).report["config"]
    assert silent["rope_scaling"]["original_max_position_embeddings"] == silent["max_position_embeddings"]


@pytest.mark.rule("PREFLIGHT-003", "PREFLIGHT-004")
@pytest.mark.parametrize(
    "keys",
    [
        {"rope.scaling.type": "none", "rope.scaling.factor": 4.0},
        {"rope.scaling.type": "linear", "rope.scaling.factor": 1.0},
        {"rope.scale_linear": 1.0, "rope.scaling.attn_factor": 1.0, "rope.scaling.finetuned": True},
        {"rope.scaling.factor": 0.0, "rope.scale_linear": 4.0},
        {"attention.causal": True, "attention.clamp_kqv": 0.0, "attention.max_alibi_bias": 0.0, "use_parallel_residual": False},
        {"attention.key_length": 8, "attention.value_length": 8, "tensor_data_layout": "Meta AI original pth"},
        {"attention.scale": 0.0, "embedding_scale": 0.0, "logit_scale": 0.0, "residual_scale": 0.0},
        {"expert_count": 0, "expert_used_count": 0, "pooling_type": 1},
    ],
)
def test_gguf_keys_at_the_values_that_llama_cpp_reads_as_nothing_pass(build, check, keys):
    checked = check(build.gguf("qwen2", keys=keys))
    assert (checked.exit_code, checked.ids("warning") - {"PREFLIGHT-017"}) == (0, set()), checked.text


@pytest.mark.rule("PREFLIGHT-004")
def test_keys_that_nobody_knows_are_told_of_every_container(build, check):
    assert "qwen2.flux" in check(build.gguf("qwen2", keys={"flux": 88})).finding("PREFLIGHT-004")
    assert "flux, qwen2.flux" in check(build.apr("qwen2", metadata={"qwen2.flux": 88, "flux": 1})).finding("PREFLIGHT-004")


@pytest.mark.rule("PREFLIGHT-003")
def test_mathematics_that_came_from_a_gguf_is_judged_in_an_apr(build, check):
    message = check(build.apr("qwen2", metadata={"qwen2.attention.causal": False})).finding("PREFLIGHT-003")
    assert "qwen2.attention.causal" in message
    assert "rope_type" in check(build.apr("qwen2", metadata={"rope_type": 8})).finding("PREFLIGHT-003")


@pytest.mark.rule("PREFLIGHT-003")
@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        ("rope.scaling.type", "longrope", "rope_scaling"),
        ("rope.dimension_count", 4, "partial_rotary_factor"),
        ("attention.sliding_window", 8, "sliding_window"),
        ("attn_logit_softcapping", 30.0, "attn_logit_softcapping"),
        ("expert_count", 4, "num_experts"),
        ("hidden_act", "gelu", "hidden_act"),
    ],
)
def test_a_key_of_a_gguf_means_the_same_in_an_apr(build, check, key, value, named):
    assert named in check(build.gguf("qwen2", keys={key: value})).finding("PREFLIGHT-003")
    assert named in check(build.apr("qwen2", metadata={f"qwen2.{key}": value})).finding("PREFLIGHT-003")


@pytest.mark.rule("FALSIFY-APR-PRETRAIN-INIT-005")
def test_two_values_of_one_key_are_an_error(build, check):
    (finding,) = header_from_apr("x.apr", {"num_heads": 14, "num_attention_heads": 4}, {}).findings
    assert (finding.rule, finding.severity, finding.field) == ("FALSIFY-APR-PRETRAIN-INIT-005", "error", "num_heads")
    checked = check(build.apr("qwen2", metadata={"num_heads": 14, "qwen2.attention.head_count": 4}))
    assert "two values" in checked.finding("FALSIFY-APR-PRETRAIN-INIT-005")
    assert check(build.apr("qwen2", metadata={"num_heads": 14, "qwen2.attention.head_count": 14})).exit_code == 0


@pytest.mark.rule("PREFLIGHT-003")
def test_layer_types_decide_alone_where_they_are_given(folder, check):
    keys = {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 0}
    made = folder("qwen2", written={**keys, "layer_types": ["full_attention"] * 2})
    assert set(transformers.AutoConfig.from_pretrained(made).layer_types) == {"full_attention"}
    assert check(made).exit_code == 0


def test_gguf_that_holds_no_model_says_what_it_holds(build, check):
    message = check(build.gguf("qwen2", general={"general.type": "adapter"})).finding("FALSIFY-APR-PRETRAIN-INIT-004")
    assert "adapter" in message
    assert "Merge it into its base model" in message


@pytest.mark.rule("FALSIFY-APR-PRETRAIN-ARCH-003")
@pytest.mark.parametrize("written", [{"num_key_value_heads": None}, {"num_key_value_heads": 4}])
def test_absent_kv_heads_mean_all_heads_where_the_tensors_agree(folder, check, written):
    made = folder("llama370m", num_key_value_heads=4, written=written)
    assert transformers.AutoConfig.from_pretrained(made).num_key_value_heads == 4
    checked = check(made)
    assert checked.exit_code == 0, checked.text
    assert checked.report["config"]["num_key_value_heads"] == 4
    assert ("FALSIFY-APR-PRETRAIN-ARCH-003" in checked.ids("warning")) == (None in written.values())


@pytest.mark.rule("FALSIFY-APR-PRETRAIN-ARCH-003")
def test_absent_kv_heads_that_the_tensors_contradict_are_asked_for_by_name(folder, check):
    checked = check(folder("llama370m", num_key_value_heads=2, written={"num_key_value_heads": None}))
    assert checked.exit_code == 3
    assert 'Add "num_key_value_heads" to config.json' in checked.finding("FALSIFY-APR-PRETRAIN-ARCH-003")


@pytest.mark.rule("PREFLIGHT-003")
def test_dropout_that_is_not_applied_is_a_warning(folder, check):
    checked = check(folder("qwen2", attention_dropout=0.1))
    assert (checked.exit_code, checked.ids("warning")) == (0, {"PREFLIGHT-003", "PREFLIGHT-017"})


@pytest.mark.rule("PREFLIGHT-003", "PREFLIGHT-004")
def test_config_json_of_a_codebert_is_harmless(roberta_folder, check):
    folder = roberta_folder("RobertaModel")
    values = json.loads((folder / "config.json").read_text()) | {"output_past": True, "gradient_checkpointing": False}
    (folder / "config.json").write_text(json.dumps(values))
    checked = check(folder)
    assert (checked.exit_code, checked.ids("warning")) == (0, {"PREFLIGHT-017"}), checked.text


@pytest.mark.rule("PREFLIGHT-003")
@pytest.mark.parametrize("key", ["is_decoder", "add_cross_attention", "position_embedding_type"])
def test_another_kind_of_encoder_is_an_error(roberta_folder, check, key):
    folder = roberta_folder("RobertaForMaskedLM")
    value = "relative_key" if key == "position_embedding_type" else True
    values = json.loads((folder / "config.json").read_text()) | {key: value}
    (folder / "config.json").write_text(json.dumps(values))
    assert key in check(folder).finding("PREFLIGHT-003")


@pytest.mark.rule("PREFLIGHT-004")
def test_unknown_keys_are_listed_in_one_warning(folder, check):
    checked = check(folder("qwen2", written={"flux_capacitor": 88, "warp": True}))
    assert checked.exit_code == 0
    assert checked.ids("warning") == {"PREFLIGHT-004", "PREFLIGHT-017"}
    assert "flux_capacitor, warp" in checked.finding("PREFLIGHT-004")


@pytest.mark.rule("PREFLIGHT-005")
def test_kv_heads_that_do_not_divide_the_heads_are_an_error(build, check):
    assert check(build.apr("qwen2")).exit_code == 0
    message = check(build.apr("qwen2", metadata={"num_kv_heads": 3})).finding("PREFLIGHT-005")
    assert "14" in message
    assert "3" in message


@pytest.mark.rule("PREFLIGHT-006")
def test_weights_of_integers_are_an_error(build, check, tmp_path):
    from apr_train.checkpoint.apr import AprWriter, TensorSpec
    from apr_train.checkpoint.open import open_checkpoint

    sound = build.apr("qwen2")
    assert check(sound).exit_code == 0
    with open_checkpoint(sound) as checkpoint:
        tensors = checkpoint.header.tensors.values()
        specs = [TensorSpec(item.name, "I64" if item.name == "model.norm.weight" else "BF16", item.shape) for item in tensors]
        config = build.registry.family("qwen2").build_config(header=checkpoint.header)
    from apr_train.artifact.metadata import apr_metadata

    with AprWriter(tmp_path / "integers.apr", apr_metadata(config, build.registry.family("qwen2").info), specs) as writer:
        for item in specs:
            writer.write(item.name, bytes(item.nbytes))
    message = check(tmp_path / "integers.apr").finding("PREFLIGHT-006")
    assert "I64" in message
    assert "model.norm.weight" in message


@pytest.mark.rule("PREFLIGHT-007")
def test_tie_flag_that_contradicts_the_tensors_is_an_error(build, check):
    head = {"lm_head.weight": (1024, 112)}
    assert check(build.apr("qwen2", metadata={"tie_word_embeddings": False}, tensors=head)).exit_code == 0
    checked = check(build.apr("qwen2", metadata={"tie_word_embeddings": False}))
    assert "no output head" in checked.finding("PREFLIGHT-007")
    assert checked.ids() == {"PREFLIGHT-007"}


@pytest.mark.rule("PREFLIGHT-008")
def test_llama_that_does_not_say_its_row_order_needs_the_option(build, check):
    path = build.apr("llama370m", drop=("rope_type",))
    assert "--rope-layout" in check(path).finding("PREFLIGHT-008")
    assert check(path, "--rope-layout", "split-half").exit_code == 0
    assert check(path, "--rope-layout", "adjacent").exit_code == 0


@pytest.mark.rule("PREFLIGHT-008")
def test_option_that_contradicts_the_file_is_an_error(build, check):
    assert "PREFLIGHT-008" in check(build.apr("llama370m"), "--rope-layout", "adjacent").ids()


@pytest.mark.rule("PREFLIGHT-009")
def test_row_must_fit_the_usable_positions(build, roberta_folder, check):
    path = build.apr("llama370m")
    assert check(path, "--sequence-length", 512).exit_code == 0
    assert "512" in check(path, "--sequence-length", 513).finding("PREFLIGHT-009")
    encoder = roberta_folder("RobertaForMaskedLM")
    assert check(encoder, "--sequence-length", 32).exit_code == 0
    assert "32" in check(encoder, "--sequence-length", 33).finding("PREFLIGHT-009")


@pytest.mark.rule("PREFLIGHT-010")
def test_special_ids_lie_inside_the_vocabulary(build, check, spec):
    assert check(build.apr("qwen2", tokenizer=spec(1024, eos=1023))).exit_code == 0
    assert "[eos]" in check(build.apr("qwen2", tokenizer=spec(1024, eos=1024))).finding("PREFLIGHT-010")


@pytest.mark.rule("PREFLIGHT-010")
@pytest.mark.parametrize("value", [64, [2, 64], -5, "last"])
def test_special_ids_of_the_config_lie_inside_the_vocabulary(folder, check, value):
    assert "eos_token_id" in check(folder("llama370m", written={"eos_token_id": value})).finding("PREFLIGHT-010")


@pytest.mark.rule("PREFLIGHT-011")
def test_masked_lm_needs_a_mask_token(roberta_folder, check, tokenizer_file):
    folder = roberta_folder("RobertaForMaskedLM")
    assert check(folder, "--tokenizer", tokenizer_file(96, ("<mask>",))).exit_code == 0
    assert "mask" in check(folder, "--tokenizer", tokenizer_file(96)).finding("PREFLIGHT-011")


@pytest.mark.rule("PREFLIGHT-012")
def test_corpus_of_another_tokenizer_is_an_error(build, check, tmp_path):
    def corpus(largest):
        with TokenWriter(tmp_path / f"{largest}.tokens", key="ab" * 32, size=1 << 20) as writer:
            writer.append([5, largest, 7], text_bytes=9)
            writer.end_document(0)
            writer.finish()
        return tmp_path / f"{largest}.tokens"

    path = build.apr("qwen2")
    assert check(path, "--corpus", corpus(1023)).exit_code == 0
    message = check(path, "--corpus", corpus(1024)).finding("PREFLIGHT-012")
    assert "1024" in message
    assert "1023" in message
    assert "not a tokenised corpus" in check(path, "--corpus", path).finding("PREFLIGHT-012")
    assert "not a tokenised corpus" in check(path, "--corpus", tmp_path / "none").finding("PREFLIGHT-012")


@pytest.mark.rule("PREFLIGHT-013")
@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_folder_that_cannot_be_written_is_an_error(build, check, tmp_path):
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    assert "not writable" in check(build.apr("qwen2"), "--out", closed / "runs").finding("PREFLIGHT-013")


@pytest.mark.rule("PREFLIGHT-013")
def test_file_in_the_place_of_the_folder_is_an_error(build, check, tmp_path):
    path = build.apr("qwen2")
    assert check(path, "--out", tmp_path / "runs").exit_code == 0
    assert "not a folder" in check(path, "--out", path / "runs").finding("PREFLIGHT-013")


@pytest.mark.rule("PREFLIGHT-013")
def test_folder_that_no_name_can_have_is_an_error(build, check, tmp_path):
    path = build.apr("qwen2")
    loop, dangling = tmp_path / "loop", tmp_path / "dangling"
    loop.symlink_to(loop)
    dangling.symlink_to(tmp_path / "none")
    for out in (loop, loop / "runs", dangling, tmp_path / ("x" * 300)):
        assert check(path, "--out", out).ids() == {"PREFLIGHT-013"}, out


@pytest.mark.rule("PREFLIGHT-014")
def test_disk_without_room_for_the_checkpoints_is_an_error(build, check, tmp_path, monkeypatch):
    path = build.apr("qwen2")
    assert check(path, "--out", tmp_path).exit_code == 0
    usage = attrs.make_class("Usage", ["free"])
    monkeypatch.setattr("apr_train.preflight.machine_rules.shutil.disk_usage", lambda folder: usage(free=10_000_000))
    message = check(path, "--out", tmp_path).finding("PREFLIGHT-014")
    assert "10.0 MB" in message


@pytest.mark.rule("PREFLIGHT-015")
def test_attention_backend_is_chosen_with_the_reason(build, check):
    checked = check(build.apr("qwen2"), "--device", "cpu")
    assert checked.exit_code == 0
    assert "first that can run" in checked.report["facts"]["attention"]
    assert "PREFLIGHT-015" in check(build.apr("qwen2"), "--device", "cpu", "--attention", "sdpaa").ids()


@pytest.mark.rule("PREFLIGHT-015")
def test_device_that_is_not_here_is_an_error(build, check):
    assert "abacus" in check(build.apr("qwen2"), "--device", "abacus").finding("PREFLIGHT-015")


@pytest.mark.rule("PREFLIGHT-015")
@pytest.mark.parametrize(("device", "here"), [("cuda", True), ("cuda:1", True), ("cuda:2", False), ("cuda:x", False)])
def test_cuda_device_is_counted(monkeypatch, device, here):
    import torch
    from apr_train.preflight.machine_rules import device_findings

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [finding.rule for finding in device_findings(device)] == ([] if here else ["PREFLIGHT-015"])


@pytest.mark.rule("PREFLIGHT-016")
def test_memory_that_does_not_suffice_is_a_warning(build, check, monkeypatch):
    path = build.apr("qwen2")
    arguments = (path, "--device", "cpu", "--sequence-length", 64)
    roomy = check(*arguments)
    assert (roomy.exit_code, roomy.ids("warning")) == (0, {"PREFLIGHT-017"})
    assert roomy.report["facts"]["memory"]["weights"] == 4 * 581_456
    monkeypatch.setattr("apr_train.preflight.machine_rules.free_memory", lambda device: 1_000_000)
    small = check(*arguments)
    assert small.exit_code == 0
    assert "1.0 MB" in small.finding("PREFLIGHT-016")


@pytest.mark.rule("PREFLIGHT-017")
def test_checkpoint_without_a_tokenizer_is_a_warning(build, check, spec):
    assert check(build.apr("qwen2")).ids("warning") == {"PREFLIGHT-017"}
    assert check(build.apr("qwen2", tokenizer=spec(1024))).ids("warning") == set()


@pytest.mark.rule("PREFLIGHT-018")
@pytest.mark.parametrize("content", [None, "{}", "no json", '{"model": {"vocab": {"a": "b"}}}'])
def test_tokenizer_that_is_none_is_an_error(build, check, tmp_path, content):
    path = tmp_path / "tok.json"
    if content is not None:
        path.write_text(content)
    checked = check(build.apr("qwen2"), "--tokenizer", path)
    assert "tok.json" in checked.finding("PREFLIGHT-018")
    assert checked.report["config"]["hidden_size"] == 112


@pytest.mark.rule("PREFLIGHT-018")
def test_tokenizer_of_an_impossible_name_is_an_error(build, check):
    assert "cannot be read" in check(build.apr("qwen2"), "--tokenizer", "x" * 300).finding("PREFLIGHT-018")


@pytest.mark.rule("PREFLIGHT-018")
def test_sentencepiece_tokenizer_needs_its_json(build, check, tokenizer_file):
    words = [f"t{number}" for number in range(1024)]
    path = build.apr("llama370m", metadata={"tokenizer.vocabulary": words, "tokenizer.scores": [0.0] * 1024})
    assert "sentencepiece" in check(path).finding("PREFLIGHT-018")
    assert check(path, "--tokenizer", tokenizer_file(1024)).exit_code == 0
