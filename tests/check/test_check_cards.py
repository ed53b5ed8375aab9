"""What files of many architectures say: read into a config, judged, and written so that transformers reads the same."""

import json

import attrs
import pytest
import torch
import transformers
from apr_train.artifact.metadata import apr_metadata, hf_config
from apr_train.checkpoint.apr.metadata import header_from_apr
from apr_train.checkpoint.gguf import header_from_gguf
from apr_train.checkpoint.header import Tie
from apr_train.checkpoint.huggingface import header_from_hf
from apr_train.errors import FormatError
from apr_train.family import DecoderConfig, EncoderConfig, FamilyInfo, read_config
from apr_train.family.rope_scaling import LinearScaling, LongRopeScaling, YarnScaling
from apr_train.preflight.config_keys import config_key_findings
from apr_train.preflight.config_rules import bogus_values, config_from_file

SMALL = {
    **{"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4},
    **{"num_key_value_heads": 2, "max_position_embeddings": 128, "tie_word_embeddings": True},
    **{"rope_theta": 1e4, "rms_norm_eps": 1e-6},
}
ONE_BIAS = {"attention_output_bias": "attention_bias"}
WINDOWS = ("sliding_window", "layer_types")
NO_WINDOW = {"use_sliding_window": False, "max_window_layers": 28, "sliding_window": 4096}
LAYER_NORM = {"norm": "layer", "gated_mlp": False}
EXPERTS = ("num_experts", "num_experts_per_tok", "router_aux_loss_coef")


@attrs.frozen
class Carded:
    """A family as far as its files' configs go: what `config_from_file` asks of one."""

    info: FamilyInfo
    presets: dict

    def build_config(self, *, header):
        return read_config(self.info, self.presets, None, header)


def card(model_type, hf_class, kind="decoder", **more):
    """A family with one preset, of the core's config of its kind; `more` is the card's."""
    config = DecoderConfig if kind == "decoder" else EncoderConfig
    more["implied"] = {"hidden_act": "silu" if kind == "decoder" else "gelu", **more.get("implied", {})}
    info = FamilyInfo(
        name=model_type, api_version="1.0", kind=kind, objectives=("causal-lm",) if kind == "decoder" else ("masked-lm",),
        hf_classes=(hf_class,), model_type=model_type, presets=("tiny",), default_preset="tiny", never_permuted=True, **more,
    )  # fmt: skip
    said = {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 24, "query_pre_attn_scalar": 16}
    said |= {"attention_multiplier": 0.25}
    values = {**SMALL, **{name: value for name, value in said.items() if name in info.config_keys}, **info.fixed}
    if info.fixed.get("norm") == "layer":
        values |= {"layer_norm_eps": 1e-5, "rms_norm_eps": None}
    if info.fixed.get("learned_positions"):
        values["rope_theta"] = None
    if "num_key_value_heads" in info.implied:
        values["num_key_value_heads"] = values["num_attention_heads"]
    if info.fixed.get("lm_head_bias"):
        values["tie_word_embeddings"] = False
    if kind == "encoder":
        kept = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
        values = {name: SMALL[name] for name in (*kept, "max_position_embeddings", "tie_word_embeddings")}
        values |= {"type_vocab_size": 1, "layer_norm_eps": 1e-5, "pad_token_id": 1, **info.fixed}
    return Carded(info, {"tiny": config(**values)})


CARDS = {
    "Qwen3ForCausalLM": card(
        "qwen3", "Qwen3ForCausalLM", config_keys=WINDOWS, fixed={"qk_norm": "head"}, implied={"head_dim": 128},
        absent_keys=NO_WINDOW, config_names=ONE_BIAS,
    ),
    "Olmo2ForCausalLM": card(
        "olmo2", "Olmo2ForCausalLM", fixed={"qk_norm": "projection", "norm_position": "post"}, config_names=ONE_BIAS,
    ),
    "GemmaForCausalLM": card(
        "gemma", "GemmaForCausalLM", fixed={"norm_offset": 1.0, "scale_embedding": True}, config_names=ONE_BIAS,
    ),
    "Gemma2ForCausalLM": card(
        "gemma2", "Gemma2ForCausalLM",
        config_keys=(*WINDOWS, "query_pre_attn_scalar", "attn_logit_softcapping", "final_logit_softcapping"),
        fixed={"norm_offset": 1.0, "scale_embedding": True, "norm_position": "both"},
        implied={"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0, "query_pre_attn_scalar": 256,
                 "hidden_act": "gelu_pytorch_tanh"},
        config_names={"hidden_act": "hidden_activation", **ONE_BIAS},
        layer_pattern=("sliding_attention", "full_attention"),
    ),
    "Gemma3ForCausalLM": card(
        "gemma3_text", "Gemma3ForCausalLM",
        config_keys=(*WINDOWS, "query_pre_attn_scalar", "final_logit_softcapping", "attn_logit_softcapping",
                     "rope_local_base_freq"),
        fixed={"norm_offset": 1.0, "scale_embedding": True, "norm_position": "both", "qk_norm": "head"},
        implied={"rope_local_base_freq": 1e4, "query_pre_attn_scalar": 256, "hidden_act": "gelu_pytorch_tanh"},
        absent_keys={"sliding_window_pattern": 6},
        config_names={"hidden_act": "hidden_activation", **ONE_BIAS},
    ),
    "MistralForCausalLM": card(
        "mistral", "MistralForCausalLM", config_keys=("sliding_window",), layer_pattern=("sliding_attention",),
        implied={"sliding_window": 4096},
    ),
    "MixtralForCausalLM": card(
        "mixtral", "MixtralForCausalLM", config_keys=("sliding_window", *EXPERTS), layer_pattern=("sliding_attention",),
        config_names={"num_experts": "num_local_experts"},
        fixed={"norm_topk_prob": True},
        implied={"num_experts": 8, "num_experts_per_tok": 2, "sliding_window": None},
    ),
    "Qwen2MoeForCausalLM": card(
        "qwen2_moe", "Qwen2MoeForCausalLM",
        config_keys=(*EXPERTS, "moe_intermediate_size", "norm_topk_prob", "shared_expert_intermediate_size",
                     "decoder_sparse_step", "mlp_only_layers"),
        config_names={"attention_bias": "qkv_bias"},
        implied={"norm_topk_prob": False, "attention_bias": True, "decoder_sparse_step": 1, "mlp_only_layers": ()},
        absent_keys=NO_WINDOW,
    ),
    "PhiForCausalLM": card(
        "phi", "PhiForCausalLM", config_keys=("partial_rotary_factor",),
        fixed={**LAYER_NORM, "parallel_residual": True, "attention_bias": True, "attention_output_bias": True,
               "mlp_bias": True, "lm_head_bias": True},
        implied={"partial_rotary_factor": 0.5, "hidden_act": "gelu_new", "num_key_value_heads": "num_attention_heads"},
    ),
    "Phi3ForCausalLM": card(
        "phi3", "Phi3ForCausalLM", config_keys=("sliding_window", "partial_rotary_factor"),
        layer_pattern=("sliding_attention",), implied={"partial_rotary_factor": 1.0},
    ),
    "GPT2LMHeadModel": card(
        "gpt2", "GPT2LMHeadModel",
        fixed={**LAYER_NORM, "learned_positions": True, "attention_bias": True, "attention_output_bias": True,
               "mlp_bias": True},
        implied={"intermediate_size": "4*hidden_size", "num_key_value_heads": "num_attention_heads", "hidden_act": "gelu_new"},
        config_names={"hidden_size": "n_embd", "num_hidden_layers": "n_layer", "num_attention_heads": "n_head",
                      "max_position_embeddings": "n_positions", "intermediate_size": "n_inner",
                      "hidden_act": "activation_function", "layer_norm_eps": "layer_norm_epsilon"},
    ),
    "Starcoder2ForCausalLM": card(
        "starcoder2", "Starcoder2ForCausalLM", config_keys=("sliding_window",), fixed=LAYER_NORM,
        layer_pattern=("sliding_attention",), implied={"attention_bias": True, "attention_output_bias": True, "mlp_bias": True},
        config_names={"attention_bias": "use_bias", "attention_output_bias": "use_bias", "mlp_bias": "use_bias",
                      "layer_norm_eps": "norm_epsilon"},
    ),
    "GraniteForCausalLM": card(
        "granite", "GraniteForCausalLM", config_names=ONE_BIAS,
        config_keys=("embedding_multiplier", "logits_scaling", "residual_multiplier", "attention_multiplier"),
        implied={"attention_multiplier": 1.0},
    ),
    "SmolLM3ForCausalLM": card(
        "smollm3", "SmolLM3ForCausalLM", config_keys=("no_rope_layers",), config_names=ONE_BIAS,
        absent_keys={"no_rope_layer_interval": 4, "use_sliding_window": False},
    ),
    "CohereForCausalLM": card(
        "cohere", "CohereForCausalLM", config_keys=("logit_scale",), implied={"logit_scale": 0.0625}, config_names=ONE_BIAS,
        fixed={"norm": "layer", "norm_bias": False, "parallel_residual": True},
    ),
    "BertForMaskedLM": card("bert", "BertForMaskedLM", "encoder", fixed={"positions_after_padding": False}),
    "RobertaForMaskedLM": card("roberta", "RobertaForMaskedLM", "encoder"),
}  # fmt: skip
"""Class of transformers → the card of its files."""

SIZES = {name: value for name, value in SMALL.items() if not name.startswith("r")} | {"head_dim": 8}
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128, "vocab_size": 64}
NO_SIZES = ("num_key_value_heads", "head_dim")
CLASSES = {
    "GPT2LMHeadModel": GPT2,
    "BertForMaskedLM": {key: value for key, value in SIZES.items() if key not in NO_SIZES},
    "RobertaForMaskedLM": {key: value for key, value in SIZES.items() if key not in NO_SIZES} | {"type_vocab_size": 1},
    "Gemma2ForCausalLM": {"query_pre_attn_scalar": 16, "sliding_window": 5},
    "Gemma3ForCausalLM": {"query_pre_attn_scalar": 16, "sliding_window": 5},
    "MistralForCausalLM": {"sliding_window": 5},
    "MixtralForCausalLM": {"num_local_experts": 4, "sliding_window": 5},
    "Qwen2MoeForCausalLM": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24,
                            "shared_expert_intermediate_size": 40},
    "PhiForCausalLM": {"tie_word_embeddings": False},
    "Phi3ForCausalLM": {"pad_token_id": None, "bos_token_id": 1, "eos_token_id": 2, "sliding_window": 5},
    "SmolLM3ForCausalLM": {"num_hidden_layers": 4, "pad_token_id": None, "bos_token_id": 1, "eos_token_id": 2},
    "CohereForCausalLM": {"bos_token_id": 1, "eos_token_id": 2},
    "Olmo2ForCausalLM": {"bos_token_id": 1, "eos_token_id": 2},
    "Starcoder2ForCausalLM": {"sliding_window": 5, "bos_token_id": 1, "eos_token_id": 2},
}  # fmt: skip
"""What a class's config is made with beside the common sizes; of a class with names of its own instead of them."""
BESIDE = {
    **{"is_causal": False, "use_bidirectional_attention": True, "attention_bias": True, "mlp_bias": True, "use_bias": False},
    **{"hidden_act": "relu", "activation_function": "relu", "hidden_activation": "relu", "layer_norm_eps": 0.5},
    **{"rms_norm_eps": 0.5, "layer_norm_epsilon": 0.5, "norm_epsilon": 0.5, "sliding_window": 3, "norm_topk_prob": True},
    **{"layer_types": ["full_attention", "sliding_attention"], "no_rope_layers": [0, 1, 1, 1], "mlp_only_layers": [0]},
    **{"partial_rotary_factor": 0.5, "rope_theta": 100.0, "rope_scaling": {"type": "linear", "factor": 2.0}},
    **{"no_rope_layer_interval": 2, "sliding_window_pattern": 2, "use_sliding_window": True, "max_window_layers": 1},
    **{"num_local_experts": 3, "num_experts_per_tok": 1, "qkv_bias": False, "decoder_sparse_step": 2, "logit_scale": 0.5},
}
"""Other values of keys where the next number, or the other truth, tests less; a class that lacks a key may not read it."""
ROPE = ("rope_theta", "rope_scaling", "partial_rotary_factor")
TOKENS = torch.arange(5, 37)[None]


def changed(value):
    """Another value of the same type; None where the type has none."""
    if isinstance(value, bool):
        return not value
    return value + 1 if isinstance(value, int) else value * 2 + 0.1 if isinstance(value, float) else None


def default(name):
    """A small config of a class; the classes' own defaults are left as they are."""
    model = getattr(transformers, name)
    own = CLASSES.get(name, {})
    return model.config_class(**(own if len(own) > 4 else {**SIZES, **own}), architectures=[name])


def written(name, folder):
    default(name).save_pretrained(folder)
    return json.loads((folder / "config.json").read_text())


def logits(name, config, state):
    torch.manual_seed(0)
    model = getattr(transformers, name)._from_config(config, attn_implementation="eager").eval()
    model.load_state_dict(state)
    with torch.no_grad():
        return model(TOKENS, return_dict=True).logits


def read(name, values, path="config.json"):
    """(config, findings) of a config.json, by the class's card; the tie is as the class has it."""
    header = header_from_hf(path, values, {})
    header = header_of(header, values.get("tie_word_embeddings", True))
    config, findings = config_from_file(CARDS[name], header)
    return config, [*findings, *bogus_values(header), *config_key_findings(header, config, CARDS[name].info)]


def header_of(header, tied):
    return attrs.evolve(header, tie=Tie(tied, "metadata"))


def errors(findings):
    return [str(finding) for finding in findings if finding.severity == "error"]


@pytest.mark.rule("PREFLIGHT-003", "PREFLIGHT-004")
@pytest.mark.parametrize("name", CARDS)
def test_every_key_of_a_class_is_a_field_or_judged_or_harmless_for_a_reason(name, tmp_path):
    values = {**default(name).to_dict(), **written(name, tmp_path)}
    config, findings = read(name, values)
    assert errors(findings) == []
    assert [str(finding) for finding in findings if finding.rule == "PREFLIGHT-004"] == []
    assert config is not None


@pytest.mark.rule("PREFLIGHT-003")
@pytest.mark.parametrize("name", CARDS)
def test_no_key_that_changes_transformers_logits_is_lost(name, tmp_path):
    torch.manual_seed(0)
    base, config_class = default(name), getattr(transformers, name).config_class
    model = getattr(transformers, name)(base)
    for parameter in model.parameters():  # fresh biases are zeros, and would hide that they are left out
        torch.nn.init.normal_(parameter, std=0.3)
    state, values = model.state_dict(), written(name, tmp_path)
    before = logits(name, base, state)
    other = {key: changed(value) for key, value in {**base.to_dict(), **values}.items() if changed(value) is not None} | BESIDE
    differing, lost = [], []
    for key, value in other.items():
        file = {**values, key: value}
        if key in ROPE:
            table = file.pop("rope_parameters", None)
            file = {"rope_theta": 1e4, **file} if table else file
        try:
            after = logits(name, config_class(**file), state)
        except Exception:  # transformers itself cannot build or run it with these weights: there is nothing to compare
            continue
        if torch.allclose(after, before, atol=1e-5):
            continue
        differing.append(key)
        config, findings = read(name, file)
        if errors(findings):
            continue
        ids = {key: file.get(key) for key in base.to_dict() if key.endswith("_token_id")}
        ours = logits(name, config_class(**{**ids, **hf_config(config, CARDS[name].info)}), state)
        lost += [] if torch.allclose(ours, after, atol=1e-5) else [key]
    assert lost == []
    assert len(differing) >= 3, differing


@pytest.mark.parametrize("name", CARDS)
def test_a_config_survives_the_way_through_both_kinds_of_file(name, tmp_path):
    config, _ = read(name, written(name, tmp_path))
    info = CARDS[name].info
    again, findings = read(name, json.loads(json.dumps(hf_config(config, info))))
    assert (again, errors(findings)) == (config, [])
    header = header_of(header_from_apr("x.apr", apr_metadata(config, info), {}), config.tie_word_embeddings)
    through, findings = config_from_file(CARDS[name], header)
    assert (through, errors([*findings, *config_key_findings(header, through, info)])) == (config, [])
    own = {"qk_norm", "norm_position", "norm_offset", "learned_positions", "gated_mlp", "parallel_residual", "lm_head_bias"}
    assert not own & hf_config(config, info).keys()


@pytest.mark.parametrize("name", CARDS)
def test_an_export_of_a_preset_is_read_by_transformers_as_the_same_config(name):
    preset, info = CARDS[name].presets["tiny"], CARDS[name].info
    exported = json.loads(json.dumps(hf_config(preset, info)))
    loaded = getattr(transformers, name).config_class(**exported)
    config, findings = read(name, loaded.to_dict())
    assert (config, errors(findings)) == (preset, [])


@pytest.mark.parametrize("theta", [1e4, 5e3])
def test_one_rope_for_each_type_of_layer_is_read_and_written_for_both_major_versions(theta, tmp_path):
    scaling = {"rope_type": "linear", "factor": 8.0}
    table = {
        "full_attention": {**scaling, "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": theta},
    }
    values = {**written("Gemma3ForCausalLM", tmp_path), "rope_parameters": table}
    config, findings = read("Gemma3ForCausalLM", values)
    assert errors(findings) == []
    assert (config.rope_theta, config.rope_local_base_freq, config.rope_scaling.factor) == (1e6, theta, 8.0)
    exported = hf_config(config, CARDS["Gemma3ForCausalLM"].info)
    assert exported["rope_parameters"] == table
    older = ("rope_theta", "rope_local_base_freq", "rope_scaling")
    assert {key: exported[key] for key in older} == {"rope_theta": 1e6, "rope_local_base_freq": theta, "rope_scaling": scaling}
    assert transformers.Gemma3TextConfig(**exported).rope_parameters == table
    assert read("Gemma3ForCausalLM", {key: item for key, item in exported.items() if key != "rope_parameters"})[0] == config


@pytest.mark.rule("PREFLIGHT-003")
def test_sliding_layers_with_a_scaling_of_their_own_are_refused(tmp_path):
    linear = {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e4}
    table = {"full_attention": {"rope_type": "default", "rope_theta": 1e6}, "sliding_attention": linear}
    _, findings = read("Gemma3ForCausalLM", {**written("Gemma3ForCausalLM", tmp_path), "rope_parameters": table})
    assert any("one RoPE per layer type" in text for text in errors(findings))


def test_phi3_has_the_original_length_outside_of_its_scaling(tmp_path):
    scaling = {"type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
    values = written("Phi3ForCausalLM", tmp_path)
    values = {key: value for key, value in values.items() if key != "rope_parameters"}
    values |= {"rope_theta": 1e4, "rope_scaling": scaling, "original_max_position_embeddings": 32}
    config, findings = read("Phi3ForCausalLM", values)
    assert errors(findings) == []
    assert config.rope_scaling == LongRopeScaling(
        short_factor=(1.0,) * 4, long_factor=(2.0,) * 4, original_max_position_embeddings=32
    )
    exported = json.loads(json.dumps(hf_config(config, CARDS["Phi3ForCausalLM"].info)))
    assert exported["original_max_position_embeddings"] == 32
    assert transformers.Phi3Config(**exported).rope_parameters["original_max_position_embeddings"] == 32
    assert read("Phi3ForCausalLM", exported)[0] == config


@pytest.mark.rule("FALSIFY-APR-PRETRAIN-ARCH-003")
def test_a_yarn_without_its_original_length_is_read_as_transformers_does_and_told(tmp_path):
    values = written("Qwen3ForCausalLM", tmp_path)
    values["rope_parameters"] = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4}
    header = header_from_hf("config.json", values, {})
    assert [(item.rule, item.severity) for item in header.findings] == [("FALSIFY-APR-PRETRAIN-ARCH-003", "warning")]
    config, _ = read("Qwen3ForCausalLM", values)
    theirs = transformers.Qwen3Config(**values).rope_parameters["original_max_position_embeddings"]
    assert config.rope_scaling == YarnScaling(factor=4.0, original_max_position_embeddings=theirs)


@pytest.mark.rule("PREFLIGHT-003", "PREFLIGHT-022")
@pytest.mark.parametrize("switch", [True, False, None])
def test_the_routers_loss_counts_where_transformers_adds_it(switch, tmp_path):
    values = {**written("MixtralForCausalLM", tmp_path), "output_router_logits": switch, "router_aux_loss_coef": 0.02}
    config, findings = read("MixtralForCausalLM", values)
    assert config.router_aux_loss_coef == (0.02 if switch else 0.0)
    told = [finding for finding in findings if finding.rule == "PREFLIGHT-022"]
    assert [finding.field for finding in told] == ([] if switch else ["router_aux_loss_coef"])
    exported = hf_config(config, CARDS["MixtralForCausalLM"].info)
    assert exported["output_router_logits"] is bool(switch)


@pytest.mark.rule("FALSIFY-APR-PRETRAIN-ARCH-003")
def test_how_experts_are_weighed_is_read_or_asked_for_whatever_a_card_forgets(tmp_path):
    whole = CARDS["Qwen2MoeForCausalLM"]
    keys = tuple(key for key in whole.info.config_keys if key != "norm_topk_prob")
    implied = {key: value for key, value in whole.info.implied.items() if key != "norm_topk_prob"}
    forgetful = attrs.evolve(whole, info=attrs.evolve(whole.info, config_keys=keys, implied=implied))
    said = {**written("Qwen2MoeForCausalLM", tmp_path), "norm_topk_prob": False}
    header = header_of(header_from_hf("x", said, {}), False)
    config, _ = config_from_file(forgetful, header)
    assert config.norm_topk_prob is False
    assert [item for item in config_key_findings(header, config, forgetful.info) if item.severity == "error"] == []
    del said["norm_topk_prob"]
    config, findings = config_from_file(forgetful, header_of(header_from_hf("x", said, {}), False))
    assert config is None
    assert [(item.rule, item.field) for item in findings] == [("FALSIFY-APR-PRETRAIN-ARCH-003", "norm_topk_prob")]


@pytest.mark.rule("FALSIFY-APR-PRETRAIN-INIT-005")
def test_every_bogus_value_of_a_new_key_is_named(tmp_path):
    bogus = {
        **{"sliding_window": -1, "num_experts": "8", "num_experts_per_tok": 1.5, "moe_intermediate_size": 0},
        **{"attn_logit_softcapping": "30", "final_logit_softcapping": -1.0, "partial_rotary_factor": 1.5},
        **{"logit_scale": 0, "layer_types": "full_attention", "no_rope_layers": [1, "0"], "norm_topk_prob": "false"},
        **{"query_pre_attn_scalar": True, "rope_local_base_freq": 0.0, "router_aux_loss_coef": -0.1, "mlp_only_layers": 3},
    }
    header = header_from_hf("x", {**written("Gemma2ForCausalLM", tmp_path), **bogus}, {})
    assert {finding.field for finding in bogus_values(header)} == set(bogus)


@pytest.mark.rule("FALSIFY-APR-PRETRAIN-INIT-005", "PREFLIGHT-005")
@pytest.mark.parametrize(("name", "key"), [("Olmo2ForCausalLM", "hidden_act"), ("Gemma2ForCausalLM", "hidden_activation")])
def test_an_activation_that_is_no_name_is_not_one_that_nobody_wrote(name, key, tmp_path):
    header = header_of(header_from_hf("x", {**written(name, tmp_path), key: 5}, {}), True)
    assert [finding.field for finding in bogus_values(header)] == ["hidden_act"]
    config, findings = config_from_file(CARDS[name], header)
    assert config is None
    assert [(item.rule, item.field, item.found) for item in findings] == [("PREFLIGHT-005", "hidden_act", "5")]


@pytest.mark.parametrize("sizes", [{"num_experts": 0, "num_experts_per_tok": 2}, {"num_experts": 0, "mlp_only_layers": [0]}])
def test_a_dense_file_of_a_class_of_mixtures_is_read(sizes, tmp_path):
    values = {**written("Qwen2MoeForCausalLM", tmp_path), **sizes}
    config, findings = read("Qwen2MoeForCausalLM", values)
    assert errors(findings) == []
    assert (config.num_experts, config.num_experts_per_tok, config.moe_intermediate_size) == (0, 0, None)
    info = CARDS["Qwen2MoeForCausalLM"].info
    assert read("Qwen2MoeForCausalLM", hf_config(config, info))[0] == config
    header = header_of(header_from_apr("x.apr", apr_metadata(config, info), {}), True)
    assert config_from_file(CARDS["Qwen2MoeForCausalLM"], header)[0] == config


def test_a_gemma_3_without_sliding_layers_has_one_rotary_base(tmp_path):
    values = {**written("Gemma3ForCausalLM", tmp_path), "layer_types": ["full_attention"] * 2}
    config, findings = read("Gemma3ForCausalLM", values)
    assert errors(findings) == []
    assert (config.rope_local_base_freq, config.layer_types, config.sliding_window) == (None, None, None)


@pytest.mark.parametrize("use", [True, False, None])
@pytest.mark.parametrize("window", [3, None])
@pytest.mark.parametrize("first", [0, 1, 2])
def test_the_layers_that_slide_are_those_of_transformers(use, window, first, tmp_path):
    values = {key: value for key, value in written("Qwen3ForCausalLM", tmp_path).items() if key != "layer_types"}
    values |= {"use_sliding_window": use, "sliding_window": window, "max_window_layers": first}
    values = {key: value for key, value in values.items() if key != "use_sliding_window" or value is not None}
    theirs = transformers.Qwen3Config(**values)
    config, findings = read("Qwen3ForCausalLM", values)
    assert errors(findings) == []
    assert list(config.stated("layer_types")) == theirs.layer_types
    assert config.sliding_window == (theirs.sliding_window if "sliding_attention" in theirs.layer_types else None)


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("Gemma3ForCausalLM", {"sliding_window_pattern": 2, "num_hidden_layers": 5}),
        ("Gemma3ForCausalLM", {"num_hidden_layers": 7}),
        ("Gemma2ForCausalLM", {"num_hidden_layers": 5}),
        ("Gemma2ForCausalLM", {"layer_types": ["full_attention", "sliding_attention"]}),
    ],
)
def test_a_pattern_of_layers_is_transformers(name, keys, tmp_path):
    values = {key: value for key, value in written(name, tmp_path).items() if key != "layer_types"} | keys
    config, findings = read(name, values)
    assert errors(findings) == []
    assert list(config.layer_types) == getattr(transformers, name).config_class(**values).layer_types


@pytest.mark.rule("PREFLIGHT-003")
def test_a_window_that_nothing_says_the_layers_of_is_refused(tmp_path):
    mistral = CARDS["MistralForCausalLM"]
    unsaid = attrs.evolve(mistral, info=attrs.evolve(mistral.info, layer_pattern=()))
    header = header_of(header_from_hf("x", written("MistralForCausalLM", tmp_path), {}), True)
    config, _ = config_from_file(unsaid, header)
    assert config.layer_types is None
    assert [item.field for item in config_key_findings(header, config, unsaid.info)] == ["sliding_window"]


def test_a_null_is_no_absent_key(tmp_path):
    values = written("Gemma2ForCausalLM", tmp_path) | {"final_logit_softcapping": None}
    config, _ = read("Gemma2ForCausalLM", values)
    assert (config.final_logit_softcapping, config.attn_logit_softcapping) == (None, 50.0)
    info = CARDS["Gemma2ForCausalLM"].info
    assert hf_config(config, info)["final_logit_softcapping"] is None
    header = header_of(header_from_apr("x.apr", apr_metadata(config, info), {}), True)
    assert config_from_file(CARDS["Gemma2ForCausalLM"], header)[0] == config
    del values["final_logit_softcapping"]
    assert read("Gemma2ForCausalLM", values)[0].final_logit_softcapping == 30.0


@pytest.mark.rule("PREFLIGHT-003")
def test_a_key_of_another_family_is_refused_where_a_family_does_not_read_it(tmp_path):
    values = written("Olmo2ForCausalLM", tmp_path) | {"attn_logit_softcapping": 30.0, "no_rope_layers": [1, 0]}
    values |= {"qk_norm": True, "embedding_multiplier": 2.0}
    _, findings = read("Olmo2ForCausalLM", values)
    refused = {finding.field for finding in findings if finding.rule == "PREFLIGHT-003"}
    assert refused == {"attn_logit_softcapping", "no_rope_layers", "qk_norm", "embedding_multiplier"}


GGUF = {
    "block_count": 3, "context_length": 128, "embedding_length": 32, "feed_forward_length": 48,
    "attention.head_count": 4, "attention.head_count_kv": 2, "attention.key_length": 8, "vocab_size": 64,
    "attention.layer_norm_rms_epsilon": 1e-6, "rope.freq_base": 1e6,
}  # fmt: skip


def read_gguf(name, architecture, keys):
    metadata = {f"{architecture}.{key}": value for key, value in {**GGUF, **keys}.items() if value is not None}
    header = header_of(
        header_from_gguf("x.gguf", {"general.architecture": architecture, **metadata}, {}), "phi" not in architecture
    )
    config, findings = config_from_file(CARDS[name], header)
    return config, [*findings, *bogus_values(header), *config_key_findings(header, config, CARDS[name].info)]


@pytest.mark.parametrize(
    ("name", "architecture", "keys", "wanted"),
    [
        ("Gemma2ForCausalLM", "gemma2", {"attention.sliding_window": 16, "attn_logit_softcapping": 50.0,
         "final_logit_softcapping": 30.0},
         {"sliding_window": 16, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0,
          "layer_types": ("sliding_attention", "full_attention", "sliding_attention")}),
        ("Gemma3ForCausalLM", "gemma3", {"attention.sliding_window": 16, "rope.freq_base_swa": 5e3,
         "attention.sliding_window_pattern": [True, True, False], "rope.scaling.type": "linear", "rope.scaling.factor": 8.0},
         {"rope_local_base_freq": 5e3, "layer_types": ("sliding_attention", "sliding_attention", "full_attention"),
          "rope_scaling": LinearScaling(factor=8.0)}),
        ("Gemma3ForCausalLM", "gemma3", {"attention.sliding_window": 16, "attention.sliding_window_pattern": 2},
         {"layer_types": ("sliding_attention", "full_attention", "sliding_attention"), "rope_local_base_freq": 1e4}),
        ("GraniteForCausalLM", "granite", {"logit_scale": 8.0, "embedding_scale": 12.0, "residual_scale": 0.25,
         "attention.scale": 0.125},
         {"logits_scaling": 8.0, "logit_scale": 1.0, "embedding_multiplier": 12.0, "residual_multiplier": 0.25,
          "attention_multiplier": 0.125}),
        ("CohereForCausalLM", "command-r", {"logit_scale": 0.0625, "attention.layer_norm_epsilon": 1e-5},
         {"logit_scale": 0.0625, "logits_scaling": 1.0, "layer_norm_eps": 1e-5, "rms_norm_eps": None}),
        ("PhiForCausalLM", "phi2", {"rope.dimension_count": 4, "attention.layer_norm_epsilon": 1e-5,
         "attention.layer_norm_rms_epsilon": None}, {"partial_rotary_factor": 0.5, "layer_norm_eps": 1e-5}),
        ("MixtralForCausalLM", "llama", {"expert_count": 4, "expert_used_count": 2},
         {"num_experts": 4, "num_experts_per_tok": 2, "norm_topk_prob": True, "expert_size": 48}),
        ("Qwen2MoeForCausalLM", "qwen2moe", {"expert_count": 4, "expert_used_count": 2, "expert_feed_forward_length": 24,
         "expert_shared_feed_forward_length": 40},
         {"moe_intermediate_size": 24, "shared_expert_intermediate_size": 40, "norm_topk_prob": False}),
        ("SmolLM3ForCausalLM", "smollm3", {"block_count": 5}, {"no_rope_layers": (1, 1, 1, 0, 1)}),
        ("Qwen2MoeForCausalLM", "qwen2moe", {"expert_count": 4, "expert_used_count": 2, "expert_weights_norm": True},
         {"norm_topk_prob": True, "moe_intermediate_size": None}),
    ],
)  # fmt: skip
def test_gguf_keys_are_read_as_llama_cpp_means_them(name, architecture, keys, wanted):
    config, findings = read_gguf(name, architecture, keys)
    assert errors(findings) == []
    assert {key: getattr(config, key) for key in wanted} == wanted


@pytest.mark.rule("PREFLIGHT-003")
@pytest.mark.parametrize(
    ("keys", "field"),
    [
        ({"expert_weights_norm": False}, "norm_topk_prob"),
        ({"expert_gating_func": 2}, "mixtral.expert_gating_func"),
        ({"expert_weights_scale": 2.5}, "mixtral.expert_weights_scale"),
        ({"expert_group_used_count": 2}, "mixtral.expert_group_used_count"),
    ],
)
def test_gguf_keys_of_experts_are_judged_where_there_are_experts(keys, field):
    experts = {"expert_count": 4, "expert_used_count": 2}
    _, findings = read_gguf("MixtralForCausalLM", "mixtral", {**experts, **keys})
    assert [finding.field for finding in findings if finding.severity == "error"] == [field]
    dense = {key.removeprefix("mixtral."): value for key, value in keys.items()}
    assert errors(read_gguf("MistralForCausalLM", "mistral", dense)[1]) == []


@pytest.mark.rule("CONFIG-001", "PREFLIGHT-003")
def test_a_files_contradictions_are_findings_beside_the_others(tmp_path):
    values = written("Gemma2ForCausalLM", tmp_path) | {"layer_types": ["full_attention"], "hidden_activation": "mish"}
    values |= {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}, "rope_theta": 1e4, "num_experts": 4, "flux": 1}
    config, findings = read("Gemma2ForCausalLM", values)
    assert config is not None
    found = {(finding.rule, finding.subject, finding.field) for finding in findings}
    assert found >= {
        ("CONFIG-001", "config.json", "layer_types"),
        ("PREFLIGHT-003", "config.json", "hidden_act"),
        ("PREFLIGHT-003", "config.json", "rope_scaling"),
        ("PREFLIGHT-003", "config.json", "num_experts"),
        ("PREFLIGHT-004", "config.json", "config"),
    }


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"n_embd": 32, "hidden_size": 64}, "n_embd"),
        ({"num_local_experts": 4, "num_experts": 8}, "num_local_experts"),
        ({"rope_theta": 1e4, "rope_parameters": {"rope_type": "default", "rope_theta": 1e5}}, "rope_parameters.rope_theta"),
        (
            {"original_max_position_embeddings": 8, "rope_scaling": {"type": "su", "original_max_position_embeddings": 16}},
            "rope_scaling.original_max_position_embeddings",
        ),
    ],
)
def test_two_spellings_with_two_values_are_refused(values, field):
    with pytest.raises(FormatError, match="two values of") as caught:
        header_from_hf("config.json", values, {})
    assert caught.value.finding.field == field


@pytest.mark.parametrize(
    ("key", "value", "line"),
    [
        ("use_bias", True, 'FAMILY.config_names["attention_bias"] = "use_bias"'),
        ("final_logit_softcapping", 30.0, "FAMILY.config_keys, or FAMILY.fixed"),
        ("alibi", True, None),
    ],
)
def test_a_refused_key_that_the_core_computes_says_which_line_of_a_card_it_needs(key, value, line, tmp_path):
    """Mathematics that the core lacks gets no such promise."""
    _, findings = read("MistralForCausalLM", written("MistralForCausalLM", tmp_path) | {key: value})
    (finding,) = [finding for finding in findings if finding.severity == "error"]
    assert (finding.rule, finding.field) == ("PREFLIGHT-003", key)
    assert (line in finding.hint) if line else ("FAMILY" not in finding.hint)
