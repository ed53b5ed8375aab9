import json

import attrs
import numpy as np
import pytest
from apr_train.artifact.metadata import apr_metadata, hf_config
from apr_train.checkpoint.apr import AprWriter, TensorSpec, open_apr
from apr_train.checkpoint.apr.keys import ALIASES, HF_NAMES, KEYS
from apr_train.checkpoint.apr.metadata import header_from_apr
from apr_train.checkpoint.dtypes import shortest_f32
from apr_train.checkpoint.header import TensorInfo
from apr_train.checkpoint.huggingface import canonical_config, header_from_hf
from apr_train.checkpoint.tie import resolve_tie, tie_contradiction
from apr_train.errors import FormatError
from apr_train.family.card import FamilyInfo
from apr_train.family.decoder_config import DecoderConfig
from apr_train.family.encoder_config import EncoderConfig

DECODER = DecoderConfig(
    vocab_size=40,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    intermediate_size=48,
    max_position_embeddings=64,
    rope_theta=500000.0,
    rms_norm_eps=1e-6,
    tie_word_embeddings=True,
)
ENCODER = EncoderConfig(
    vocab_size=40,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=48,
    max_position_embeddings=64,
    type_vocab_size=1,
    layer_norm_eps=1e-5,
    pad_token_id=1,
    tie_word_embeddings=True,
)


def card(kind):
    objective = "causal-lm" if kind == "decoder" else "masked-lm"
    return FamilyInfo(
        name="toy",
        api_version="1.0",
        kind=kind,
        objectives=(objective,),
        hf_classes=("ToyForLM", "ToyModel"),
        model_type="toy",
        presets=("tiny",),
        default_preset="tiny",
    )


def infos(*names, shape=(4, 4), dtype="F32"):
    return {name: TensorInfo(name, dtype, shape, 64) for name in names}


DECODER_TENSORS = infos("model.embed_tokens.weight", "model.layers.0.self_attn.q_proj.weight")
ENCODER_TENSORS = infos("roberta.embeddings.word_embeddings.weight", "roberta.encoder.layer.0.output.dense.weight")


def header(raw, tensors=DECODER_TENSORS):
    return header_from_apr("m.apr", raw, tensors)


@pytest.mark.parametrize(("typed", "alias"), [(key.name, alias) for key in KEYS for alias in key.aliases])
def test_every_alias_is_read_as_its_typed_key(typed, alias):
    assert header({alias: 7}).config[HF_NAMES[typed]] == 7


def test_the_typed_key_wins_over_its_aliases():
    assert header({"hidden_size": 8, "d_model": 9, "n_embd": 10}).config["hidden_size"] == 8


def test_an_explicit_null_means_absent():
    found = header({"hidden_size": None, "d_model": 9, "rope_theta": None, "license": None, "hidden_act": None})
    assert found.config == {"hidden_size": 9}
    assert found.provenance == {}


def test_floats_that_were_four_bytes_are_spelled_short():
    found = header({"rms_norm_eps": 9.999999747378752e-06, "rope_theta": 1000000.0}).config
    assert found["rms_norm_eps"] == 1e-5
    assert found["rope_theta"] == 1_000_000.0


@pytest.mark.parametrize("value", [0.0, 1e-5, 1e-6, 0.1, 10000.0, 1e6, 3.4e38, 1.17e-38, -2.5, 16777217.0])
def test_shortest_spelling_reads_back_to_the_same_four_bytes(value):
    stored = float(np.float32(value))
    assert shortest_f32(stored) == float(str(np.float32(value)))


@pytest.mark.parametrize("value", [float("inf"), float("nan"), 1e300])
def test_what_four_bytes_cannot_hold_is_left_alone(value):
    assert str(shortest_f32(value)) == str(value)


def test_keys_that_change_the_mathematics_are_kept_under_their_names():
    raw = {
        "sliding_window": 4096,
        "attention_bias": True,
        "rope_scaling": {"rope_type": "llama3"},
        "tokenizer.x": 1,
        "name": "n",
    }
    assert header(raw).config == {key: raw[key] for key in ("sliding_window", "attention_bias", "rope_scaling")}


@pytest.mark.parametrize(
    ("raw", "rows"),
    [
        ({"rope_type": 2, "original_format": "gguf", "architecture": "llama"}, "split-half"),
        ({"rope_type": 0, "original_format": "safetensors", "architecture": "llama"}, "split-half"),
        ({"rope_type": 0, "original_format": "gguf", "architecture": "llama"}, "adjacent"),
        ({"rope_type": 0, "original_format": "gguf", "architecture": "Qwen2"}, "split-half"),
        ({"rope_type": 0, "hf_model_type": "qwen2"}, "split-half"),
        ({"rope_type": 0, "architecture": "llama"}, None),
        ({"architecture": "llama"}, None),
        ({}, None),
        ({"rope_type": 2}, "split-half"),
    ],
)
def test_rope_rows_are_decided_as_the_format_says(raw, rows):
    assert header(raw).rope_rows == rows


def test_norm_epsilon_has_the_name_of_the_tensors_structure():
    assert header({"rms_norm_eps": 1e-5}).config == {"rms_norm_eps": 1e-5}
    assert header({"rms_norm_eps": 1e-5}, ENCODER_TENSORS).config == {"layer_norm_eps": 1e-5}
    assert header({"layer_norm_eps": 1e-5}, {}).config == {"rms_norm_eps": 1e-5, "layer_norm_eps": 1e-5}


HEAD = infos("lm_head.weight")


@pytest.mark.parametrize(
    ("raw", "tensors", "value", "reason"),
    [
        ({}, DECODER_TENSORS, True, "lm_head absent"),
        ({}, DECODER_TENSORS | HEAD, None, "decided at load"),
        ({}, DECODER_TENSORS | infos("lm_head.weight", shape=(5, 4)), False, "lm_head differs"),
        ({"tie_word_embeddings": True}, DECODER_TENSORS | HEAD, True, "metadata"),
        ({"tie_word_embeddings": False}, DECODER_TENSORS | HEAD, False, "metadata"),
        ({}, ENCODER_TENSORS, True, "lm_head absent"),
        ({}, ENCODER_TENSORS | infos("lm_head.decoder.weight"), None, "decided at load"),
    ],
)
def test_tie_is_what_metadata_and_index_can_tell(raw, tensors, value, reason):
    found = header(raw, tensors).tie
    assert (found.value, found.reason) == (value, reason)


def test_a_flag_that_contradicts_the_index_is_told():
    assert tie_contradiction(header({"tie_word_embeddings": True}, DECODER_TENSORS)) is None
    assert "no output head" in tie_contradiction(header({"tie_word_embeddings": False}, DECODER_TENSORS))
    wrong = DECODER_TENSORS | infos("lm_head.weight", shape=(5, 4))
    assert "another shape" in tie_contradiction(header({"tie_word_embeddings": True}, wrong))


def apr_with_head(path, head, metadata):
    embedding = np.arange(8, dtype=np.float32).reshape(4, 2)
    names = ("model.embed_tokens.weight", "lm_head.weight")
    with AprWriter(path, metadata, [TensorSpec(name, "F32", (4, 2)) for name in names]) as writer:
        writer.write(names[0], embedding)
        writer.write(names[1], embedding + head)
    return open_apr(path)


@pytest.mark.parametrize(
    ("difference", "value", "reason"), [(0, True, "lm_head equal to the embedding"), (1, False, "lm_head differs")]
)
def test_bytes_decide_the_tie_that_metadata_leaves_open(difference, value, reason, tmp_path):
    with apr_with_head(tmp_path / "m.apr", difference, {}) as reader:
        assert reader.header.tie.value is None
        found = resolve_tie(reader)
    assert (found.tie.value, found.tie.reason) == (value, reason)


def test_a_tied_flag_beside_a_head_of_its_own_is_an_error(tmp_path):
    with (
        apr_with_head(tmp_path / "m.apr", 1, {"tie_word_embeddings": True}) as reader,
        pytest.raises(FormatError, match="other values"),
    ):
        resolve_tie(reader)


def test_an_untied_flag_is_believed_even_when_the_head_is_a_copy(tmp_path):
    with apr_with_head(tmp_path / "m.apr", 0, {"tie_word_embeddings": False}) as reader:
        assert resolve_tie(reader).tie.value is False


@pytest.mark.parametrize(("config", "tensors"), [(DECODER, DECODER_TENSORS), (ENCODER, ENCODER_TENSORS)])
def test_a_config_survives_the_way_through_apr_metadata(config, tensors):
    kind = "decoder" if config is DECODER else "encoder"
    written = apr_metadata(config, card(kind), provenance={"source": "s", "license": "mit"})
    found = header(json.loads(json.dumps(written)), tensors)
    assert type(config).from_header(found) == config
    assert found.rope_rows == ("split-half" if kind == "decoder" else None)
    assert (found.hf_class, found.architecture) == ("ToyForLM", "toy")
    assert found.provenance == {"source": "s", "license": "mit"}
    assert "created_at" not in written


def test_no_alias_is_ever_written():
    source = header(dict.fromkeys(ALIASES, 3) | {"sliding_window": None})
    source = attrs.evolve(source, config={**source.config, "n_ctx": 5, "n_inner": 6, "layer_norm_eps": 1.0})
    for config, kind in ((DECODER, "decoder"), (ENCODER, "encoder")):
        written = apr_metadata(config, card(kind), header=source)
        assert not ALIASES & set(written)


def test_further_keys_of_the_source_are_kept_and_housekeeping_is_not():
    source = header({"sliding_window": 7, "transformers_version": "5", "dtype": "float32", "bos_token_id": 1})
    written = apr_metadata(DECODER, card("decoder"), header=source)
    assert (written["sliding_window"], written["bos_token_id"]) == (7, 1)
    assert not {"transformers_version", "dtype"} & set(written)


def test_provenance_must_be_plain():
    with pytest.raises(FormatError, match="provenance"):
        apr_metadata(DECODER, card("decoder"), provenance={"source": object()})


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"rope_parameters": {"rope_theta": 5.0, "rope_type": "default"}}, {"rope_theta": 5.0}),
        ({"rope_theta": 5.0, "rope_parameters": {"rope_theta": 5.0}}, {"rope_theta": 5.0}),
        (
            {"rope_parameters": {"rope_theta": 5.0, "rope_type": "linear", "factor": 2.0}},
            {"rope_theta": 5.0, "rope_scaling": {"rope_type": "linear", "factor": 2.0}},
        ),
        (
            {"rope_parameters": {"rope_theta": 5.0, "rope_type": "default", "partial_rotary_factor": 0.5}},
            {"rope_theta": 5.0, "partial_rotary_factor": 0.5},
        ),
        ({"rope_scaling": {"type": "default"}, "rope_theta": 5.0}, {"rope_theta": 5.0}),
        ({"rope_scaling": {"type": "default", "partial_rotary_factor": 0.5}}, {"partial_rotary_factor": 0.5}),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, {"rope_scaling": {"type": "linear", "factor": 2.0}}),
        ({"rope_scaling": None, "head_dim": None}, {}),
    ],
)
def test_rope_of_both_transformers_generations_becomes_one_spelling(given, expected):
    assert canonical_config(given, "p") == expected


def test_a_rope_per_layer_type_is_not_taken_for_the_default():
    found = canonical_config({"rope_parameters": {"full_attention": {"rope_theta": 1.0}}}, "p")
    assert found["rope_scaling"]["rope_type"] == "one RoPE per layer type"


@pytest.mark.parametrize("config", [DECODER, ENCODER])
def test_config_json_reads_back_to_the_same_config(config):
    kind = "decoder" if config is DECODER else "encoder"
    written = hf_config(config, card(kind))
    assert type(config).from_header(header_from_hf("p", written, {})) == config
    assert "attention_output_bias" not in written
