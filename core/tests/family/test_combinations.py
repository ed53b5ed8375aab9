"""Combinations of fields that nothing implements, and fields without a meaning: each is told by its field, with what to do."""

import attrs
import pytest
from apr_train.checkpoint.header import Header
from apr_train.errors import ConfigError
from apr_train.family.card import FamilyInfo
from apr_train.family.combinations import ACTIVATION, DECODER_COMBINATIONS, DEPENDENTS
from apr_train.family.config import read_config
from apr_train.family.decoder_config import DecoderConfig
from apr_train.family.encoder_config import EncoderConfig
from apr_train.preflight.config_keys import config_key_findings

DECODER = {
    "vocab_size": 100,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 64,
    "rope_theta": 10000.0,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
}
LAYER = {"norm": "layer", "layer_norm_eps": 1e-5, "rms_norm_eps": None}
SPARSE = {"num_experts": 4, "num_experts_per_tok": 2}
SLIDING = {"sliding_window": 8, "layer_types": ["full_attention", "sliding_attention"]}


def longrope(short, long):
    kind = {"rope_type": "longrope", "original_max_position_embeddings": 8}
    return {"rope_scaling": {**kind, "short_factor": [1.0] * short, "long_factor": [1.0] * long}}


COMBINATIONS = [
    ("hidden_act", {"hidden_act": "mish"}, "mish", "widen ACTIVATIONS"),
    ("rms_norm_eps", {"rms_norm_eps": None}, "None", "FAMILY.implied"),
    ("layer_norm_eps", {"norm": "layer", "rms_norm_eps": None}, "None", 'Add "layer_norm_eps"'),
    ("norm_offset", {"norm_offset": 0.5}, "0.5", "a norm of the family's own"),
    ("norm_offset", {**LAYER, "norm_offset": 1.0}, "1.0", "Leave norm_offset out"),
    ("qk_norm", {**LAYER, "qk_norm": "head"}, "head", "prepare_heads"),
    ("norm_position", {"parallel_residual": True, "norm_position": "post"}, "post", 'norm_position="pre"'),
    ("norm_position", {"parallel_residual": True, "norm_position": "both"}, "both", 'norm_position="pre"'),
    ("rope_theta", {"rope_theta": None}, "None", 'Add "rope_theta"'),
    ("learned_positions", {"learned_positions": True}, "rope_theta", "Leave the fields found out"),
    (
        "learned_positions",
        {"learned_positions": True, "rope_theta": None, "no_rope_layers": [1, 0], "partial_rotary_factor": 0.5},
        "partial_rotary_factor, no_rope_layers",
        "Leave the fields found out",
    ),
    ("head_dim", {"head_dim": 5}, "5", "hidden_size"),
    ("partial_rotary_factor", {"partial_rotary_factor": 0.75}, "0.75, which is 3", "Divide"),
    ("partial_rotary_factor", {"partial_rotary_factor": 0.2}, "0.2", "1.0 rotates all"),
    ("no_rope_layers", {"no_rope_layers": [1]}, "(1,)", "each of the 2 layers"),
    ("no_rope_layers", {"no_rope_layers": []}, "()", "each of the 2 layers"),
    ("no_rope_layers", {"no_rope_layers": [1, 2]}, "(1, 2)", "each of the 2 layers"),
    ("rope_scaling.short_factor", longrope(1, 2), "1", "one and the same config"),
    ("rope_scaling.long_factor", longrope(2, 3), "3", "one and the same config"),
    (
        "attention_multiplier",
        {"attention_multiplier": 0.1, "query_pre_attn_scalar": 4.0},
        "attention_multiplier 0.1 and query_pre_attn_scalar 4.0",
        "Keep one",
    ),
    ("layer_types", {"layer_types": ["full_attention"]}, "('full_attention',)", "each of the 2 layers"),
    (
        "layer_types",
        {"layer_types": ["full_attention", "chunked_attention"]},
        "('full_attention', 'chunked_attention')",
        "attention of the family's own",
    ),
    ("layer_types", {"sliding_window": 8}, "None", "Name the sliding layers"),
    ("sliding_window", {"layer_types": ["full_attention", "sliding_attention"]}, "None", 'Add "sliding_window"'),
    ("lm_head_bias", {"lm_head_bias": True}, "True", "tie_word_embeddings=False"),
    ("num_experts_per_tok", {**SPARSE, "num_experts_per_tok": 5}, "5", "each token goes to"),
    ("num_experts_per_tok", {"num_experts": 4}, "0", "each token goes to"),
    ("gated_mlp", {**SPARSE, "gated_mlp": False}, "False", "a block of the family's own"),
    ("mlp_bias", {**SPARSE, "mlp_bias": True}, "True", "a block of the family's own"),
    ("decoder_sparse_step", {**SPARSE, "decoder_sparse_step": 3}, "3", "num_experts=0"),
    ("mlp_only_layers", {**SPARSE, "mlp_only_layers": [2]}, "(2,)", "too large"),
    ("mlp_only_layers", {**SPARSE, "mlp_only_layers": [1, 0]}, "(1, 0)", "num_experts=0"),
    ("mlp_only_layers", {**SPARSE, "mlp_only_layers": [1], "decoder_sparse_step": 2}, "(1,)", "num_experts=0"),
]
"""(the field that is named, what is beside a Llama's fields, what was found, a part of the hint)."""
MEANINGLESS = [
    ("num_experts_per_tok", {"num_experts_per_tok": 2}, "Set num_experts"),
    ("moe_intermediate_size", {"moe_intermediate_size": 8}, "Set num_experts"),
    ("norm_topk_prob", {"norm_topk_prob": False}, "Set num_experts"),
    ("shared_expert_intermediate_size", {"shared_expert_intermediate_size": 8}, "Set num_experts"),
    ("shared_expert_gate", {"shared_expert_gate": False}, "Set num_experts"),
    ("decoder_sparse_step", {"decoder_sparse_step": 2}, "Set num_experts"),
    ("mlp_only_layers", {"mlp_only_layers": [0]}, "Set num_experts"),
    ("router_aux_loss_coef", {"router_aux_loss_coef": 0.01}, "Set num_experts"),
    ("shared_expert_gate", {**SPARSE, "shared_expert_gate": False}, "Set shared_expert_intermediate_size"),
    ("rope_local_base_freq", {"rope_local_base_freq": 100.0}, "Name the sliding layers"),
    ("rope_local_base_freq", {"rope_local_base_freq": 100.0, "layer_types": ["full_attention"] * 2}, "Name the sliding layers"),
    ("norm_bias", {"norm_bias": False}, "norm=layer"),
    ("layer_norm_eps", {"layer_norm_eps": 1e-5}, "Keep the epsilon"),
    ("rms_norm_eps", {**LAYER, "rms_norm_eps": 1e-6}, "Keep the epsilon"),
]


def faults(values):
    with pytest.raises(ConfigError) as caught:
        DecoderConfig(**{**DECODER, **values})
    return caught.value.findings


def ids(table):
    return [f"{row[0]}-{number}" for number, row in enumerate(table)]


@pytest.mark.rule("CONFIG-001")
@pytest.mark.parametrize(("name", "values", "found", "hint"), COMBINATIONS, ids=ids(COMBINATIONS))
def test_a_combination_that_nothing_implements_is_named(name, values, found, hint):
    (fault,) = faults(values)
    assert (fault.rule, fault.subject, fault.field, fault.found) == ("CONFIG-001", "DecoderConfig", name, found)
    assert hint in fault.hint
    assert fault.expected
    assert not {"{", "}"} & set(fault.expected + fault.hint)


@pytest.mark.rule("CONFIG-001")
@pytest.mark.parametrize(("name", "values", "hint"), MEANINGLESS, ids=ids(MEANINGLESS))
def test_a_field_without_a_meaning_is_named(name, values, hint):
    (fault,) = faults(values)
    assert (fault.rule, fault.subject, fault.field) == ("CONFIG-001", "DecoderConfig", name)
    assert fault.expected == str(attrs.fields_dict(DecoderConfig)[name].default)
    assert hint in fault.hint
    assert "{" not in fault.hint


def test_every_row_of_the_tables_is_told_of_something():
    told = {(fault.field, fault.problem) for _, values, *_ in (*COMBINATIONS, *MEANINGLESS) for fault in faults(values)}
    rows = {(row.field, row.problem) for row in DECODER_COMBINATIONS}
    assert told == rows | {(name, row.problem) for row in DEPENDENTS for name in row.fields}


@pytest.mark.parametrize(
    "values",
    [
        LAYER,
        {**LAYER, "norm_bias": False},
        {"norm_offset": 1},
        {"qk_norm": "projection", "norm_position": "both"},
        {"parallel_residual": True},
        {"learned_positions": True, "rope_theta": None},
        {"partial_rotary_factor": 0.5},
        {"no_rope_layers": [0, 1]},
        longrope(2, 2),
        SLIDING,
        {**SLIDING, "rope_local_base_freq": 100.0},
        {"query_pre_attn_scalar": 4.0},
        {"attention_multiplier": 0.5},
        {"lm_head_bias": True, "tie_word_embeddings": False},
        {"gated_mlp": False, "mlp_bias": True},
        {**SPARSE, "num_experts_per_tok": 4, "moe_intermediate_size": 8, "norm_topk_prob": False},
        {**SPARSE, "num_experts_per_tok": 1, "shared_expert_intermediate_size": 8, "shared_expert_gate": False},
        {**SPARSE, "decoder_sparse_step": 2, "router_aux_loss_coef": 0.01},
        {**SPARSE, "mlp_only_layers": [1]},
        {**SPARSE, "decoder_sparse_step": 2, "mlp_only_layers": [0]},
    ],
)
def test_what_is_implemented_is_a_config(values):
    config = DecoderConfig(**{**DECODER, **values})
    assert DecoderConfig.from_dict(config.to_dict()) == config


@pytest.mark.rule("CONFIG-001")
def test_several_faults_are_told_at_once():
    told = faults({"lm_head_bias": True, "layer_types": ["full_attention"], "norm_offset": 0.5, "norm_bias": False})
    assert {fault.field for fault in told} == {"lm_head_bias", "layer_types", "norm_offset", "norm_bias"}


@pytest.mark.rule("CONFIG-001")
def test_an_encoders_activation_is_one_of_the_combinations():
    sizes = {name: DECODER[name] for name in DECODER if name not in ("num_key_value_heads", "rope_theta", "rms_norm_eps")}
    with pytest.raises(ConfigError) as caught:
        EncoderConfig(**sizes, type_vocab_size=1, layer_norm_eps=1e-5, pad_token_id=1, hidden_act="silu")
    (fault,) = caught.value.findings
    assert (fault.rule, fault.subject, fault.field, fault.expected) == ("CONFIG-001", "EncoderConfig", "hidden_act", "gelu")
    assert fault.hint == ACTIVATION.hint


def test_corrupted_numbers_of_layers_cost_no_time():
    huge = {**SPARSE, "num_hidden_layers": 1 << 40, "decoder_sparse_step": 1}
    with pytest.raises(ConfigError, match=r"num_hidden_layers.*too large, expected at most 2000, found 1099511627776"):
        DecoderConfig(**{**DECODER, **huge, "mlp_only_layers": [0]})


EXPERT_KEYS = tuple(name for name, *_ in MEANINGLESS[:8])
MOE = FamilyInfo(
    name="moe", api_version="1.0", kind="decoder", objectives=("causal-lm",), hf_classes=("MoeForCausalLM",), model_type="moe",
    presets=("tiny",), default_preset="tiny", config_keys=("num_experts", *EXPERT_KEYS, "layer_types", "rope_local_base_freq"),
    implied={
        "hidden_act": "silu", "num_experts": 0, "sliding_window": None, "decoder_sparse_step": 1, "mlp_only_layers": (),
        "moe_intermediate_size": None, "shared_expert_intermediate_size": 0, "shared_expert_gate": True,
    },
)  # fmt: skip


@pytest.mark.rule("CONFIG-001", "PREFLIGHT-003")
@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ({"num_experts": 0, **{key: value for _, values, _ in MEANINGLESS[:8] for key, value in values.items()}}, {}),
        ({**SPARSE, "norm_topk_prob": True, "shared_expert_gate": False}, SPARSE),
        ({"rope_local_base_freq": 100.0, "layer_types": ["full_attention"] * 2}, {}),
    ],
)
def test_files_may_say_what_means_nothing(said, meant):
    header = Header(path="config.json", format="safetensors", config={**DECODER, **said})
    config = DecoderConfig.from_header(header, info=MOE)
    assert config == DecoderConfig(**{**DECODER, **meant})
    assert config_key_findings(header, config, MOE) == []


@pytest.mark.rule("PREFLIGHT-003")
def test_the_same_keys_are_judged_where_they_mean_something():
    header = Header(path="config.json", format="safetensors", config={**DECODER, **SPARSE})
    config = DecoderConfig(**{**DECODER, **SPARSE, "num_experts_per_tok": 1})
    assert [fault.field for fault in config_key_findings(header, config, MOE)] == ["num_experts_per_tok"]


def test_an_architectures_choice_that_means_nothing_in_a_dense_model_is_no_contradiction():
    keys = tuple(key for key in MOE.config_keys if key not in ("norm_topk_prob", "shared_expert_gate"))
    implied = {key: value for key, value in MOE.implied.items() if key != "shared_expert_gate"}
    fixed = {"norm_topk_prob": False, "shared_expert_gate": False}
    info = attrs.evolve(MOE, config_keys=keys, fixed=fixed, implied=implied)
    presets = {"tiny": DecoderConfig(**DECODER)}
    header = Header(path="config.json", format="safetensors", config={**DECODER, "num_experts": 0})
    assert read_config(info, presets, "tiny", None) == read_config(info, presets, None, header) == presets["tiny"]
    sparse = read_config(info, presets, None, attrs.evolve(header, config={**DECODER, **SPARSE}))
    assert (sparse.norm_topk_prob, sparse.shared_expert_gate) == (False, True)


def test_a_familys_own_config_says_itself_what_means_nothing():
    @attrs.frozen(kw_only=True)
    class Own(DecoderConfig):
        """Has experts of another kind, which go by the same number."""

        @classmethod
        def meaningless(cls, values):
            return super().meaningless(values) - {"num_experts_per_tok"}

    assert Own(**DECODER, num_experts_per_tok=2).num_experts_per_tok == 2
    with pytest.raises(ConfigError, match="norm_topk_prob"):
        Own(**DECODER, norm_topk_prob=False)


@pytest.mark.parametrize("eps", ["rms_norm_eps", "layer_norm_eps"])
def test_an_apr_has_one_key_for_the_epsilon_of_either_norm(eps):
    info = attrs.evolve(MOE, config_keys=("layer_norm_eps",), fixed={"norm": "rms" if eps == "rms_norm_eps" else "layer"})
    header = Header(path="x.apr", format="apr", config={**DECODER, "rms_norm_eps": 0.5})
    config = DecoderConfig.from_header(header, info=info)
    other = {"rms_norm_eps": "layer_norm_eps", "layer_norm_eps": "rms_norm_eps"}[eps]
    assert (getattr(config, eps), getattr(config, other)) == (0.5, None)
