"""Configs: one clear message for each bad value, and dicts that read back to an equal config."""

import math

import attrs
import pytest
from apr_train.checkpoint.header import Header, Tie
from apr_train.errors import ConfigError
from apr_train.family.card import FamilyInfo
from apr_train.family.config import read_config
from apr_train.family.decoder_config import DecoderConfig
from apr_train.family.encoder_config import EncoderConfig
from apr_train.family.rope_scaling import Llama3Scaling
from apr_train.family.writing import said
from hypothesis import given
from hypothesis import strategies as st

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
    "hidden_act": "silu",
}
ENCODER = {
    "vocab_size": 100,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 32,
    "max_position_embeddings": 66,
    "type_vocab_size": 1,
    "layer_norm_eps": 1e-5,
    "pad_token_id": 1,
    "tie_word_embeddings": True,
    "hidden_act": "gelu",
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
NOT_A_SIZE = [0, -1, 1.5, "8", True, None]


def refused(cls, values, **changes):
    with pytest.raises(ConfigError) as caught:
        cls(**{**values, **changes})
    return str(caught.value)


@pytest.mark.parametrize("value", NOT_A_SIZE)
@pytest.mark.parametrize("name", [name for name, value in DECODER.items() if type(value) is int])
def test_decoder_sizes_are_positive_integers(name, value):
    message = refused(DecoderConfig, DECODER, **{name: value})
    assert message == f"DecoderConfig [{name}]: not a positive integer, expected an integer > 0, found {value!r}"


@pytest.mark.parametrize("value", NOT_A_SIZE)
@pytest.mark.parametrize("name", [name for name, value in ENCODER.items() if type(value) is int and name != "pad_token_id"])
def test_encoder_sizes_are_positive_integers(name, value):
    assert f"EncoderConfig [{name}]: not a positive integer" in refused(EncoderConfig, ENCODER, **{name: value})


@pytest.mark.parametrize("value", [0, -1.0, math.nan, math.inf, 10**400, "1e-6", False], ids=lambda value: f"{value!r:.9}")
@pytest.mark.parametrize("name", ["rope_theta", "rms_norm_eps", "initializer_range"])
def test_real_numbers_are_finite_and_positive(name, value):
    assert f"DecoderConfig [{name}]: not a positive number" in refused(DecoderConfig, DECODER, **{name: value})


@pytest.mark.parametrize("name", ["tie_word_embeddings", "attention_bias", "attention_output_bias", "mlp_bias"])
def test_flags_are_booleans_not_words(name):
    assert f"DecoderConfig [{name}]: not a boolean" in refused(DecoderConfig, DECODER, **{name: "false"})


@pytest.mark.parametrize("value", [-0.1, 1.0, "0.1", True])
def test_dropout_is_a_fraction(value):
    message = refused(EncoderConfig, ENCODER, hidden_dropout_prob=value)
    assert "EncoderConfig [hidden_dropout_prob]: not a fraction" in message


def test_kv_heads_divide_heads():
    message = refused(DecoderConfig, DECODER, num_key_value_heads=3)
    problem = "num_key_value_heads does not divide num_attention_heads"
    assert message == f"DecoderConfig [num_key_value_heads]: {problem}, expected a divisor of 4, found 3"


def test_an_odd_head_cannot_be_rotated():
    assert "[head_dim]: head_dim is odd, RoPE rotates pairs" in refused(DecoderConfig, DECODER, head_dim=5)
    still = {"head_dim": 5, "learned_positions": True, "rope_theta": None}
    assert DecoderConfig(**{**DECODER, **still}).head_dim == 5


def test_head_dim_is_the_width_over_the_heads_unless_given():
    assert DecoderConfig(**DECODER).head_dim == 4
    assert DecoderConfig(**DECODER, head_dim=8).head_dim == 8


@pytest.mark.parametrize(("cls", "values"), [(DecoderConfig, DECODER), (EncoderConfig, ENCODER)])
def test_heads_divide_the_width(cls, values):
    assert "hidden_size is not divisible by num_attention_heads" in refused(cls, values, hidden_size=18)


@pytest.mark.parametrize(
    ("cls", "values", "wanted"),
    [
        (DecoderConfig, DECODER, "silu or gelu or gelu_new or gelu_pytorch_tanh or relu2 or relu"),
        (EncoderConfig, ENCODER, "gelu"),
    ],
)
def test_another_activation_is_refused_by_name(cls, values, wanted):
    message = refused(cls, values, hidden_act="mish")
    assert f"{cls.__name__} [hidden_act]: activation not implemented, expected {wanted}, found mish" in message


@pytest.mark.parametrize("value", [-1, 1.0, "1", True])
def test_the_padding_token_is_a_token_id(value):
    assert "EncoderConfig [pad_token_id]: not an integer of zero or more" in refused(EncoderConfig, ENCODER, pad_token_id=value)


def test_the_padding_token_is_in_the_vocabulary():
    assert "pad_token_id outside the vocabulary, expected 0 to 99, found 100" in refused(
        EncoderConfig, ENCODER, pad_token_id=100
    )


def test_an_encoder_has_a_position_left_for_a_token():
    assert EncoderConfig(**ENCODER).usable_positions == 64
    assert "no position is left" in refused(EncoderConfig, ENCODER, max_position_embeddings=2)


@given(
    heads=st.sampled_from([(1, 1), (4, 1), (4, 2), (14, 2)]),
    half=st.integers(1, 8),
    scaled=st.booleans(),
    tied=st.booleans(),
    theta=st.floats(1, 1e7),
)
def test_a_decoder_config_reads_back_from_its_dict(heads, half, scaled, tied, theta):
    changes = {"num_attention_heads": heads[0], "num_key_value_heads": heads[1], "hidden_size": heads[0] * half * 2}
    scaling = LLAMA3 if scaled else None
    config = DecoderConfig(**{**DECODER, **changes, "rope_theta": theta, "tie_word_embeddings": tied, "rope_scaling": scaling})
    assert DecoderConfig.from_dict(config.to_dict()) == config


def test_an_encoder_config_reads_back_from_its_dict():
    config = EncoderConfig(**ENCODER)
    assert EncoderConfig.from_dict(config.to_dict()) == config


def test_an_unknown_key_is_an_error_with_the_closest_name():
    with pytest.raises(ConfigError, match=r"unknown keys num_atention_heads.*did you mean num_attention_heads\?"):
        DecoderConfig.from_dict({**DECODER, "num_atention_heads": 4})


def test_every_missing_key_is_named():
    lacking = {key: value for key, value in DECODER.items() if key not in ("vocab_size", "num_key_value_heads")}
    with pytest.raises(ConfigError, match="missing keys vocab_size, num_key_value_heads"):
        DecoderConfig.from_dict(lacking)


@pytest.mark.parametrize(("cls", "values"), [(DecoderConfig, DECODER), (EncoderConfig, ENCODER)])
def test_a_header_that_lacks_fields_gets_one_finding_for_each(cls, values):
    for name in cls.REQUIRED:
        with pytest.raises(ConfigError) as caught:
            cls.from_header(Header(path="x.apr", format="apr", config={key: values[key] for key in values if key != name}))
        assert [finding.where for finding in caught.value.findings] == [f"x.apr [{name}]"]
    with pytest.raises(ConfigError) as caught:
        cls.from_header(Header(path="x.gguf", format="gguf"))
    assert [finding.where for finding in caught.value.findings] == [f"x.gguf [{name}]" for name in cls.REQUIRED]


@pytest.mark.parametrize("cls", [DecoderConfig, EncoderConfig])
def test_an_apr_without_any_dimension_gets_one_finding_with_all_fields(cls):
    with pytest.raises(ConfigError) as caught:
        cls.from_header(Header(path="x.apr", format="apr"))
    (finding,) = caught.value.findings
    assert finding.expected == f"values of {', '.join(cls.REQUIRED)}"


def test_a_header_gives_a_config_and_the_observed_tie_wins_over_the_written_one():
    header = Header(path="x", format="apr", config={**DECODER, "unrelated": 1}, tie=Tie(False, "lm_head differs"))
    config = DecoderConfig.from_header(header, attention_bias=True)
    assert config == DecoderConfig(**{**DECODER, "tie_word_embeddings": False}, attention_bias=True)


@pytest.mark.parametrize("key", ["type", "rope_type"])
def test_another_rope_scaling_is_refused_by_name(key):
    message = refused(DecoderConfig, DECODER, rope_scaling={key: "dynamic", "factor": 2.0})
    kinds = "llama3, linear, yarn, longrope, or no scaling"
    assert message == f"rope_scaling.rope_type: this RoPE scaling is not implemented, expected {kinds}, found dynamic"


@pytest.mark.parametrize("value", [None, {}, {"rope_type": "default"}, {"type": "default", "rope_theta": 1e4}])
def test_the_default_rope_scaling_is_none(value):
    assert DecoderConfig(**DECODER, rope_scaling=value).rope_scaling is None


def test_llama3_scaling_is_read_whatever_the_kind_is_called():
    plain = {"type" if key == "rope_type" else key: value for key, value in LLAMA3.items()}
    assert DecoderConfig(**DECODER, rope_scaling={**plain, "rope_theta": 5e5}).rope_scaling == Llama3Scaling(**LLAMA3)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"factor": 8.0}, "missing keys rope_type"),
        ({"rope_type": "llama3", "factor": 8.0}, "missing keys low_freq_factor"),
        ({**LLAMA3, "beta_fast": 1}, "unknown keys beta_fast"),
        ({**LLAMA3, "low_freq_factor": 4.0}, "low_freq_factor is not below high_freq_factor"),
        ("llama3", "not a table"),
        ({1: 2.0, "factor": 8.0}, "missing keys rope_type"),
        ({**LLAMA3, 1: 2.0, "beta": 3.0}, "unknown keys 1, beta"),
    ],
)
def test_a_malformed_rope_scaling_is_refused(value, message):
    assert message in refused(DecoderConfig, DECODER, rope_scaling=value)


CARD = {
    "name": "x",
    "api_version": "1.0",
    "kind": "decoder",
    "objectives": ("causal-lm",),
    "hf_classes": ("XForCausalLM",),
    "model_type": "x",
    "presets": ("tiny",),
    "default_preset": "tiny",
}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("api_version", "1"),
        ("api_version", 1.0),
        ("model_type", None),
        ("base_prefix", None),
        ("objectives", (["causal-lm"],)),
        ("presets", (1, "tiny")),
        ("kind", "both"),
        ("objectives", ()),
        ("objectives", ("causal",)),
        ("hf_classes", ()),
        ("hf_classes", "XForCausalLM"),
        ("presets", ["tiny"]),
        ("default_preset", "huge"),
        ("config_keys", ["sliding_window"]),
        ("fixed", ("qk_norm",)),
        ("fixed", {1: "head"}),
        ("implied", {None: 1}),
        ("config_names", {"hidden_size": 1}),
        ("fim_tokens", {"prefix": 7}),
        ("layer_pattern", ("chunked_attention",)),
        ("never_permuted", "yes"),
        ("adapter_targets", "q_proj"),
    ],
)
def test_a_data_card_that_contradicts_itself_names_the_field(name, value):
    from apr_train.errors import PluginError

    FamilyInfo(**CARD)
    with pytest.raises(PluginError, match=rf"FAMILY\.{name} is wrong"):
        FamilyInfo(**{**CARD, name: value})


INFO = FamilyInfo(
    **CARD,
    config_keys=("sliding_window", "layer_types"),
    fixed={"qk_norm": "head"},
    implied={
        "intermediate_size": "4*hidden_size",
        "num_key_value_heads": "num_attention_heads",
        "rope_theta": 5000.0,
        "hidden_act": "silu",
        "sliding_window": None,
    },
    config_names={"num_attention_heads": "heads"},
)


def of(values, info=INFO, **more):
    return DecoderConfig.from_header(Header(path="x", format="safetensors", config=values), info=info, **more)


def test_a_card_says_what_is_read_fixed_implied_and_how_it_is_called():
    absent = ("intermediate_size", "num_key_value_heads", "rope_theta", "num_attention_heads")
    values = {key: value for key, value in DECODER.items() if key not in absent}
    values |= {"heads": 4, "attn_logit_softcapping": 30.0, "qk_norm": "none", "sliding_window": 8}
    values["layer_types"] = ["sliding_attention", "full_attention"]
    wanted = {"intermediate_size": 64, "num_key_value_heads": 4, "rope_theta": 5000.0, "qk_norm": "head", "sliding_window": 8}
    assert of(values) == DecoderConfig(**{**DECODER, **wanted}, layer_types=("sliding_attention", "full_attention"))
    assert of(values, qk_norm="projection").qk_norm == "projection"


def test_files_mention_only_what_is_not_a_llamas():
    config = DecoderConfig(**DECODER, qk_norm="head", mlp_only_layers=[])
    plain = FamilyInfo(**CARD)
    assert set(said(config, plain)) - set(said(DecoderConfig(**DECODER), plain)) == {"qk_norm"}
    assert {"sliding_window", "layer_types"} <= set(said(config, INFO))
    assert "qk_norm" not in said(config, INFO)


SOUND = {**DECODER, "norm_topk_prob": True}
DECIDED = {
    "sliding_window": 8, "query_pre_attn_scalar": 16, "attn_logit_softcapping": 50.0, "residual_multiplier": 0.5,
    "partial_rotary_factor": 0.5, "num_experts": 4, "num_experts_per_tok": 2, "hidden_act": "gelu",
}  # fmt: skip
FILES = {"sliding_window", "query_pre_attn_scalar", "attn_logit_softcapping"}
"""Of them those of which a null is an answer: there is none."""


@pytest.mark.rule("FALSIFY-APR-PRETRAIN-ARCH-003")
@pytest.mark.parametrize("name", DECIDED)
def test_what_files_decide_is_asked_for_where_a_file_is_silent(name):
    """No default of ours stands in: the class that wrote the file may mean another."""
    info = FamilyInfo(**CARD, config_keys=tuple(set(DECIDED) - {"hidden_act"}), layer_pattern=("sliding_attention",))
    whole = {**SOUND, **DECIDED}
    assert getattr(of(whole, info=info), name) == DECIDED[name]
    silent = {key: value for key, value in whole.items() if key != name}
    with pytest.raises(ConfigError) as caught:
        of(silent, info=info)
    (finding,) = caught.value.findings
    assert (finding.rule, finding.field) == ("FALSIFY-APR-PRETRAIN-ARCH-003", name)
    assert f'FAMILY.implied["{name}"]' in finding.hint
    implied = attrs.evolve(info, implied={name: DECIDED[name]})
    assert getattr(of(silent, info=implied), name) == DECIDED[name]
    nulls = Header(path="x", format="safetensors", config=silent, companions={"config.json": {name: None}})
    if name in FILES:
        assert getattr(DecoderConfig.from_header(nulls, info=info), name) is None
    else:
        with pytest.raises(ConfigError, match=f"a value for {name}"):
            DecoderConfig.from_header(nulls, info=info)


def test_what_experts_ask_for_is_read_where_their_number_is_implied():
    info = FamilyInfo(
        **CARD,
        config_keys=("num_experts", "num_experts_per_tok"),
        implied={"num_experts": 4, "num_experts_per_tok": 2, "norm_topk_prob": True},
    )
    assert of({**DECODER, "norm_topk_prob": False}, info=info).norm_topk_prob is False
    assert of(DECODER, info=info).norm_topk_prob is True


def test_a_gguf_means_what_llama_cpp_takes_for_a_key_that_is_not_there():
    """No such thing, unless the card knows better; what a GGUF has no key for is asked for as of every file."""
    info = FamilyInfo(**CARD, config_keys=("partial_rotary_factor", "residual_multiplier", "query_pre_attn_scalar"))
    silent = {key: value for key, value in DECODER.items() if key != "hidden_act"} | {"head_dim": 4}
    gguf = Header(path="x", format="gguf", names="gguf", config=silent)
    with pytest.raises(ConfigError) as caught:
        DecoderConfig.from_header(gguf, info=info)
    assert [finding.field for finding in caught.value.findings] == ["hidden_act", "query_pre_attn_scalar"]
    assert all("FAMILY.gguf_implied" in finding.hint for finding in caught.value.findings)
    own = {"query_pre_attn_scalar": "head_dim", "residual_multiplier": 2.0}
    meant = attrs.evolve(info, implied={"hidden_act": "gelu", "residual_multiplier": 3.0}, gguf_implied=own)
    read = DecoderConfig.from_header(gguf, info=meant)
    assert (read.partial_rotary_factor, read.residual_multiplier, read.query_pre_attn_scalar) == (1.0, 2.0, 4)
    with pytest.raises(ConfigError, match="a value for query_pre_attn_scalar"):
        of(DECODER, info=attrs.evolve(meant, implied={**meant.implied, "partial_rotary_factor": 1.0}))


@pytest.mark.rule("FALSIFY-APR-PRETRAIN-ARCH-003")
def test_a_size_of_what_is_missing_itself_is_asked_for_with_it():
    with pytest.raises(ConfigError) as caught:
        of({key: value for key, value in DECODER.items() if key not in ("hidden_size", "intermediate_size")})
    assert [finding.field for finding in caught.value.findings] == ["hidden_size", "intermediate_size"]


@pytest.mark.parametrize(
    ("part", "value", "name"),
    [
        ("config_keys", ("sliding_windw",), "sliding_windw"),
        ("fixed", {"qk_nrm": "head"}, "qk_nrm"),
        ("implied", {"head_dims": 4}, "head_dims"),
        ("implied", {"intermediate_size": "4*hidden_sise"}, r"4\*hidden_sise"),
        ("gguf_implied", {"head_dims": 4}, "head_dims"),
        ("gguf_implied", {"intermediate_size": "4*hidden_sise"}, r"4\*hidden_sise"),
        ("config_names", {"hiddn_size": "n_embd"}, "hiddn_size"),
    ],
)
def test_a_card_that_names_no_field_is_refused_with_the_closest(part, value, name):
    from apr_train.errors import PluginError

    card = {**CARD, "config_keys": (), part: value}
    with pytest.raises(PluginError, match=rf"FAMILY\.{part} .*found {name}\. .*did you mean"):
        of(DECODER, info=FamilyInfo(**card))


def test_a_usual_build_config_is_one_call():
    presets = {"tiny": DecoderConfig(**DECODER, qk_norm="head")}
    header = Header(path="x", format="safetensors", config=DECODER)
    assert read_config(INFO, presets, "tiny", None) is presets["tiny"]
    assert read_config(INFO, presets, None, header) == presets["tiny"]
    assert read_config(INFO, presets, None, header, attention_bias=True).attention_bias is True
    with pytest.raises(ConfigError, match="did you mean tiny"):
        read_config(INFO, presets, "tyny", None)


def test_a_preset_that_contradicts_the_card_is_refused():
    from apr_train.errors import PluginError

    with pytest.raises(PluginError, match=r"the preset tiny contradicts FAMILY\.fixed, expected qk_norm='head', found 'none'"):
        read_config(INFO, {"tiny": DecoderConfig(**DECODER)}, "tiny", None)


def test_what_files_decide_is_not_fixed():
    from apr_train.errors import PluginError

    with pytest.raises(PluginError, match=r"FAMILY\.config_keys is wrong, expected no field that `fixed` has, found 'qk_norm'"):
        FamilyInfo(**CARD, config_keys=("qk_norm",), fixed={"qk_norm": "head"})
