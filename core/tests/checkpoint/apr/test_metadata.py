"""Spelling of metadata, and what a reader survives in it."""

from __future__ import annotations

import json
import struct

import numpy as np
import pytest
from apr_train.checkpoint.apr.keys import KEYS, TYPED
from apr_train.checkpoint.apr.metadata import encode_metadata, parse_metadata
from apr_train.errors import FormatError
from hypothesis import given
from hypothesis import strategies as st


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1e-5, "0.00001"),
        (9.999999747378752e-06, "0.00001"),
        (1e-6, "0.000001"),
        (9.9999e-6, "0.0000099999"),
        (9.9e-7, "9.9e-7"),
        (1e-7, "1e-7"),
        (1.5e-7, "1.5e-7"),
        (1e-12, "1e-12"),
        (1e-45, "1e-45"),
        (0.0, "0.0"),
        (-0.0, "-0.0"),
        (0.1, "0.1"),
        (10000.0, "10000.0"),
        (1000000, "1000000.0"),
        (500000.0, "500000.0"),
        (1.5e12, "1500000000000.0"),
        (9.999999e12, "9999999000000.0"),
        (1e13, "1e+13"),
        (1.5e13, "1.5e+13"),
        (1e20, "1e+20"),
        (3.4028234663852886e38, "3.4028235e+38"),
    ],
)
def test_typed_floats_are_spelt_as_the_reference_writer_spells_an_f32(value, text):
    assert f'"rope_theta":{text}}}'.encode() in encode_metadata({"rope_theta": value}, "x")
    assert np.float32(json.loads(text)) == np.float32(value)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1e-5, "0.00001"),
        (9.9999e-6, "9.9999e-6"),
        (1e-6, "1e-6"),
        (9.999999747378752e-06, "9.999999747378752e-6"),
        (5e-324, "5e-324"),
        (-0.0, "-0.0"),
        (123456789.125, "123456789.125"),
        (1e13, "10000000000000.0"),
        (1e15, "1000000000000000.0"),
        (1234567890123456.0, "1234567890123456.0"),
        (9007199254740993.0, "9007199254740992.0"),
        (1e16, "1e+16"),
        (1.5e16, "1.5e+16"),
        (1e17, "1e+17"),
        (1.7976931348623157e308, "1.7976931348623157e+308"),
    ],
)
def test_custom_floats_are_spelt_as_the_reference_writer_spells_an_f64(value, text):
    assert f'"x":{text}}}'.encode() in encode_metadata({"x": value}, "x")
    assert f'"x":{{"y":[{text}]}}}}'.encode() in encode_metadata({"x": {"y": [value]}}, "x")
    assert json.loads(text) == value


@given(st.floats(width=32, allow_nan=False, allow_infinity=False))
def test_an_f32_spelling_reads_back_to_the_same_bits_in_the_fewest_digits(value):
    text = encode_metadata({"rope_theta": value}, "x").decode().split('"rope_theta":')[1].rstrip("}")
    assert struct.pack("<f", json.loads(text)) == struct.pack("<f", value)
    assert significant(text) == significant(np.format_float_scientific(np.float32(value)))
    assert ("e" in text) == (value != 0 and not 1e-6 <= abs(np.float32(value)) < np.float32(1e13))


def significant(text):
    return text.lstrip("-").split("e")[0].replace(".", "").strip("0")


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_custom_float_keeps_all_its_bits(value):
    raw = encode_metadata({"x": value}, "x")
    text = raw.decode().split('"x":')[1].rstrip("}")
    assert struct.pack("<d", json.loads(raw)["x"]) == struct.pack("<d", value)
    assert ("e" in text) == (value != 0 and not 1e-5 <= abs(value) < 1e16)


REFERENCE_ORDER = """
    model_type name description author license data_source data_license version source original_format created_at total_size
    param_count quantization sharding chat_template chat_format special_tokens architecture hf_architecture hf_model_type
    hidden_size num_layers num_heads num_kv_heads vocab_size intermediate_size max_position_embeddings rope_theta rope_type
    rms_norm_eps head_dim num_experts num_experts_per_tok moe_intermediate_size
"""


def test_keys_come_in_the_documented_order_and_custom_keys_sorted_after():
    values = {"text": "text", "count": 1, "float": 1.0}
    tables = {"quantization": QUANTIZATION, "sharding": SHARDING, "special_tokens": {"bos": "<s>"}}
    given_order = {key.name: tables.get(key.name) or values[key.type] for key in reversed(KEYS)} | {"zz": 1, "aa": 1}
    assert list(json.loads(encode_metadata(given_order, "x"))) == [*REFERENCE_ORDER.split(), "aa", "zz"]


def test_keys_of_nested_objects_are_sorted_by_their_bytes_at_every_depth():
    raw = encode_metadata({"x": {"b": 1, "a": {"é": 1, "z": [{"d": 1, "c": None}], "😀": 0, "￿": 0}}}, "x")
    assert '"x":{"a":{"z":[{"c":null,"d":1}],"é":1,"￿":0,"😀":0},"b":1}}'.encode() in raw


def test_starred_keys_are_null_and_other_unset_keys_absent():
    raw = encode_metadata({"name": None}, "x")
    assert raw == (b'{"model_type":"","license":null,"data_source":null,"data_license":null,"total_size":0,"param_count":0}')


@pytest.mark.parametrize("alias", ["num_hidden_layers", "n_layers", "n_layer"])
def test_an_alias_is_written_as_the_typed_key_and_never_beside_it(alias):
    assert json.loads(encode_metadata({alias: 3}, "x"))["num_layers"] == 3
    both = json.loads(encode_metadata({alias: 3, "num_layers": 3}, "x"))
    assert both["num_layers"] == 3
    assert alias not in both


@pytest.mark.rule("FALSIFY-APR-PRETRAIN-INIT-005")
@pytest.mark.parametrize("typed", [{"num_layers": 4}, {"num_hidden_layers": 4}])
def test_two_spellings_of_one_key_with_different_values_are_not_written(typed):
    with pytest.raises(FormatError, match="another spelling of num_layers") as caught:
        encode_metadata({"n_layer": 3, **typed}, "x")
    assert caught.value.finding.field in ("n_layer", "num_hidden_layers")


def test_text_is_raw_utf8_with_json_escapes_only_where_needed():
    assert b'"x":"\xe6\xbc\xa2 \\"\\\\\\n\\u0001\x7f"' in encode_metadata({"x": '漢 "\\\n\x01\x7f'}, "x")


QUANTIZATION = {"quant_type": "int8", "bits": 8, "symmetric": True}
SHARDING = {"shard_count": 2, "shard_index": 0, "total_size": 1}


def without(table, key):
    return {name: value for name, value in table.items() if name != key}


def nested(levels):
    value = 1
    for level in range(levels):
        value = [value] if level % 2 else {"a": value}
    return value


@pytest.mark.rule("FALSIFY-APR-PRETRAIN-INIT-005")
@pytest.mark.parametrize(
    ("metadata", "field"),
    [
        ({"hidden_size": "896"}, "hidden_size"),
        ({"hidden_size": -1}, "hidden_size"),
        ({"hidden_size": True}, "hidden_size"),
        ({"hidden_size": 1 << 64}, "hidden_size"),
        ({"rope_type": 1 << 32}, "rope_type"),
        ({"name": 3}, "name"),
        ({"rms_norm_eps": "1e-6"}, "rms_norm_eps"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps"),
        ({"rms_norm_eps": 1e300}, "rms_norm_eps"),
        ({"sharding": []}, "sharding"),
        *(({"sharding": without(SHARDING, key)}, f"sharding.{key}") for key in SHARDING),
        *(({"quantization": without(QUANTIZATION, key)}, f"quantization.{key}") for key in QUANTIZATION),
        ({"sharding": SHARDING | {"pattern": 3}}, "sharding.pattern"),
        ({"quantization": QUANTIZATION | {"bits": 256}}, "quantization.bits"),
        ({"quantization": QUANTIZATION | {"symmetric": 1}}, "quantization.symmetric"),
        ({"quantization": QUANTIZATION | {"block_size": "32"}}, "quantization.block_size"),
        ({"special_tokens": ["<s>"]}, "special_tokens"),
        ({"special_tokens": {"bos": 1}}, "special_tokens.bos"),
        ({"special_tokens": {"bos": None}}, "special_tokens.bos"),
        ({"norm_topk_prob": 1}, "norm_topk_prob"),
        ({"norm_topk_prob": "true"}, "norm_topk_prob"),
        ({"deep": nested(127)}, "deep"),
        ({"large": 10**309}, "large"),
        pytest.param({"large": [-(10**5000)]}, "large", id="more digits than Python prints"),
        ({"x": {1: 2}}, "x"),
        ({"x": bytes(1)}, "x"),
        ({"x": "\ud800"}, "x"),
        ({"x": float("inf")}, "x"),
    ],
    ids=lambda value: f"{value!r:.50}",
)
def test_what_the_reference_readers_choke_on_is_refused_by_its_key(metadata, field):
    with pytest.raises(FormatError) as caught:
        encode_metadata(metadata, "x")
    assert caught.value.finding.field == field
    assert field in caught.value.finding.hint


def test_metadata_beyond_the_formats_limit_is_refused():
    with pytest.raises(FormatError, match="too large"):
        encode_metadata({"x": "a" * (16 << 20)}, "x")


@pytest.mark.parametrize(
    "metadata",
    [
        {"rope_type": (1 << 32) - 1},
        {"hidden_size": (1 << 64) - 1},
        {"sharding": SHARDING | {"pattern": None}},
        {"quantization": QUANTIZATION | {"bits": 255, "block_size": 32}},
        {"special_tokens": {}},
        {"norm_topk_prob": False},
        {"deep": nested(126)},
        {"large": 1 << 1023},
    ],
    ids=lambda value: f"{value!r:.50}",
)
def test_the_last_value_that_they_take_is_written(metadata):
    assert json.loads(encode_metadata(metadata, "x")).items() >= metadata.items()


def test_of_duplicate_keys_the_last_wins_and_nulls_are_absent():
    assert parse_metadata(b'{"a":1,"b":null,"a":2,"c":[null]}', "x") == {"a": 2, "c": [None]}


def test_both_spellings_of_unset_keys_read_the_same():
    new = encode_metadata({"model_type": "llama", "hidden_size": 8}, "x")
    old = json.dumps(dict.fromkeys(TYPED) | json.loads(new)).encode()
    assert parse_metadata(old, "x") == parse_metadata(new, "x")


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"[1]",
        b"null",
        b'"x"',
        b'{"a":NaN}',
        b'{"a":Infinity}',
        b'{"a":1e999}',
        b'{"a":-1e999}',
        b'{"a":"\xff"}',
        b'{"a":"\\ud800"}',
        b'{"a":' + b"9" * 5000 + b"}",
        b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"a":1} x',
    ],
    ids=lambda raw: repr(raw[:20]),
)
def test_metadata_that_is_not_a_json_object_is_a_format_error(raw):
    with pytest.raises(FormatError, match="metadata"):
        parse_metadata(raw, "x")


def test_an_escaped_surrogate_pair_is_text():
    assert parse_metadata(b'{"a":"\\ud83d\\ude00"}', "x") == {"a": "😀"}
