"""The CodeBERT family's data and hooks; torch-free."""

import apr_train_codebert as family
import attrs
import pytest
from apr_train.family import ConfigError, EncoderConfig, Header, Ignored, Layout, NameMapError, TensorInfo, Tie
from apr_train.family.load_plan import plan_load
from apr_train.preflight.config_keys import config_key_findings

# microsoft/codebert-base's published config.json
CONFIG_JSON = {
    "architectures": ["RobertaModel"],
    "attention_probs_dropout_prob": 0.1,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "hidden_size": 768,
    "initializer_range": 0.02,
    "intermediate_size": 3072,
    "layer_norm_eps": 1e-05,
    "max_position_embeddings": 514,
    "model_type": "roberta",
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "output_past": True,
    "pad_token_id": 1,
    "type_vocab_size": 1,
    "vocab_size": 50265,
}
LINEARS = {
    "attention.self.query": (768, 768),
    "attention.self.key": (768, 768),
    "attention.self.value": (768, 768),
    "attention.output.dense": (768, 768),
    "intermediate.dense": (3072, 768),
    "output.dense": (768, 3072),
}


def header(config=CONFIG_JSON, **more):
    tie = Tie(True, "lm_head absent")
    return Header(path="model", format="safetensors", architecture="roberta", config=config, tie=tie, **more)


def base_tensors(prefix=""):
    """Names and shapes of a published RobertaModel, written out by hand."""
    shapes = {
        "embeddings.word_embeddings.weight": (50265, 768),
        "embeddings.position_embeddings.weight": (514, 768),
        "embeddings.token_type_embeddings.weight": (1, 768),
        "embeddings.LayerNorm.weight": (768,),
        "embeddings.LayerNorm.bias": (768,),
    }
    for n in range(12):
        for name, shape in LINEARS.items():
            shapes |= {f"encoder.layer.{n}.{name}.weight": shape, f"encoder.layer.{n}.{name}.bias": shape[:1]}
        for name in ("attention.output.LayerNorm", "output.LayerNorm"):
            shapes |= {f"encoder.layer.{n}.{name}.weight": (768,), f"encoder.layer.{n}.{name}.bias": (768,)}
    return infos({prefix + name: shape for name, shape in shapes.items()})


def head_tensors():
    return infos(
        {
            "lm_head.dense.weight": (768, 768),
            "lm_head.dense.bias": (768,),
            "lm_head.layer_norm.weight": (768,),
            "lm_head.layer_norm.bias": (768,),
            "lm_head.bias": (50265,),
        }
    )


def infos(shapes):
    return {name: TensorInfo(name, "F32", shape, 0) for name, shape in shapes.items()}


def plan(tensors, *, bare):
    return plan_load(family.map_tensor_names(family.PRESETS["base"], Layout(bare=bare)), tensors, where="model")


def test_preset_base_is_codebert_field_for_field():
    assert family.build_config("base", None) == EncoderConfig(
        vocab_size=50265,
        hidden_size=768,
        num_hidden_layers=12,
        num_attention_heads=12,
        intermediate_size=3072,
        max_position_embeddings=514,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
        pad_token_id=1,
        tie_word_embeddings=True,
        hidden_act="gelu",
        initializer_range=0.02,
        hidden_dropout_prob=0.1,
        attention_probs_dropout_prob=0.1,
    )


def test_preset_base_equals_the_published_config_json():
    assert family.build_config("base", None) == family.build_config(None, header())


def test_512_of_514_positions_are_usable():
    assert family.PRESETS["base"].usable_positions == 512


@pytest.mark.rule("FALSIFY-APR-PRETRAIN-ARCH-003")
@pytest.mark.parametrize("name", sorted({*EncoderConfig.REQUIRED} - {"tie_word_embeddings", *family.FAMILY.implied}))
def test_header_without_a_required_field_is_an_error_that_names_it(name):
    lacking = {key: value for key, value in CONFIG_JSON.items() if key != name}
    with pytest.raises(ConfigError, match=name):
        family.build_config(None, header(lacking))


@pytest.mark.rule("FALSIFY-APR-PRETRAIN-INIT-007")
def test_bare_file_gives_the_encoder_and_says_that_pooler_is_ignored_and_head_fresh():
    pooler = infos({"pooler.dense.weight": (768, 768), "pooler.dense.bias": (768,), "embeddings.position_ids": (1, 514)})
    result = plan(base_tensors() | pooler, bare=True)
    assert result.findings == ()
    assert {entry.checkpoint for entry in result.ignored} == set(pooler)
    assert {entry.parameter for entry in result.fresh} == {
        *(f"lm_head.{module}.{part}" for module in ("dense", "norm") for part in ("weight", "bias")),
        "lm_head.bias",
    }
    assert len(result.loads) == len(base_tensors()) == 197


@pytest.mark.rule("FALSIFY-APR-PRETRAIN-INIT-007")
@pytest.mark.parametrize("stored_twice", [True, False])
def test_masked_lm_file_is_used_whole_with_or_without_the_decoder_stored(stored_twice):
    tensors = base_tensors("roberta.") | head_tensors()
    if stored_twice:
        tensors |= infos({"lm_head.decoder.weight": (50265, 768), "lm_head.decoder.bias": (50265,)})
    result = plan(tensors, bare=False)
    assert (result.findings, result.fresh) == ((), ())
    assert {entry.parameter for entry in result.duplicates} == (
        {"embeddings.word_embeddings.weight", "lm_head.bias"} if stored_twice else set()
    )


@pytest.mark.parametrize("bare", [True, False])
def test_head_that_is_there_in_part_is_a_fault_not_fresh(bare):
    tensors = base_tensors("" if bare else "roberta.") | head_tensors()
    del tensors["lm_head.dense.weight"]
    assert [finding.expected for finding in plan(tensors, bare=bare).findings] == ["lm_head.dense.weight"]


def test_masked_lm_file_without_a_head_is_a_fault():
    assert len(plan(base_tensors("roberta."), bare=False).findings) == 5


def test_untied_decoder_is_a_parameter_of_its_own():
    config = attrs.evolve(family.PRESETS["tiny"], tie_word_embeddings=False)
    name_map = family.map_tensor_names(config, Layout())
    assert name_map.fills["lm_head.decoder.weight"][0].checkpoint == "lm_head.decoder.weight"
    assert name_map.fills["lm_head.bias"][0].checkpoint == "lm_head.decoder.bias"
    assert isinstance(name_map.by_checkpoint["lm_head.bias"][0], Ignored)


def test_gguf_names_are_refused():
    with pytest.raises(NameMapError, match="gguf"):
        family.map_tensor_names(family.PRESETS["tiny"], Layout(names="gguf"))


@pytest.mark.parametrize("activation", ["gelu_new", "relu"])
def test_another_activation_is_refused_by_name(activation):
    with pytest.raises(ConfigError, match=activation):
        family.build_config(None, header(CONFIG_JSON | {"hidden_act": activation}))


def test_card_trains_masked_lm_only():
    assert (family.FAMILY.kind, family.FAMILY.objectives) == ("encoder", ("masked-lm",))


def test_table_of_positions_without_a_usable_row_is_a_finding():
    (finding,) = family.validate_family(header(CONFIG_JSON | {"max_position_embeddings": 2}), "masked-lm")
    assert "pad_token_id + 1" in finding.problem


def test_sound_header_has_no_findings():
    assert family.validate_family(header(), "masked-lm") == []


def test_published_config_has_no_key_that_is_not_implemented():
    config = family.build_config(None, header())
    assert [finding for finding in config_key_findings(header(), config) if finding.severity == "error"] == []
