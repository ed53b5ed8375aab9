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
        (1e-6, "1e-6"),
        (1e-5, "1e-5"),
        (9.999999747378752e-06, "1e-5"),
        (1.5e-7, "1.5e-7"),
        (1e-12, "1e-12"),
        (10000.0, "10000.0"),
        (1000000, "1000000.0"),
        (500000.0, "500000.0"),
        (0.1, "0.1"),
        (1e20, "1e20"),
        (0.0, "0.0"),
    ],
)
def test_typed_floats_have_the_shortest_f32_spelling(value, text):
    assert f'"rms_norm_eps":{text}' in encode_metadata({"rms_norm_eps": value}, "x").decode()


@given(st.floats(width=32, allow_nan=False, allow_infinity=False))
def test_an_f32_spelling_reads_back_to_the_same_bits_and_is_json(value):
    raw = encode_metadata({"rope_theta": value}, "x")
    text = raw.decode().split('"rope_theta":')[1].rstrip("}")
    assert struct.pack("<f", json.loads(text)) == struct.pack("<f", value)
    assert len(text.lstrip("-").split("e")[0].replace(".", "").strip("0")) == len(
        np.format_float_scientific(np.float32(value)).lstrip("-").split("e")[0].replace(".", "").strip("0")
    )
    assert "e-0" not in text
    assert "+" not in text


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_custom_float_keeps_all_its_bits(value):
    raw = encode_metadata({"x": value}, "x")
    assert struct.pack("<d", json.loads(raw)["x"]) == struct.pack("<d", value)


REFERENCE_ORDER = """
    model_type name description author license data_source data_license version source original_format created_at total_size
    param_count quantization sharding chat_template chat_format special_tokens architecture hf_architecture hf_model_type
    hidden_size num_layers num_heads num_kv_heads vocab_size intermediate_size max_position_embeddings rope_theta rope_type
    rms_norm_eps head_dim num_experts num_experts_per_tok moe_intermediate_size
"""


def test_keys_come_in_the_documented_order_and_custom_keys_sorted_after():
    values = {"text": "text", "count": 1, "float": 1.0, "table": {}}
    given_order = {key.name: values[key.type] for key in reversed(KEYS)} | {"zz": 1, "aa": 1}
    found = json.loads(encode_metadata(given_order, "x"), object_pairs_hook=lambda pairs: [key for key, _ in pairs])
    # the nested objects are empty lists of pairs, so the outermost hook result is the whole order
    assert found == [*REFERENCE_ORDER.split(), "aa", "zz"]


def test_starred_keys_are_null_and_other_unset_keys_absent():
    raw = encode_metadata({"name": None}, "x")
    assert raw == (b'{"model_type":"","license":null,"data_source":null,"data_license":null,"total_size":0,"param_count":0}')


@pytest.mark.parametrize("alias", ["num_hidden_layers", "n_layers", "n_layer"])
def test_an_alias_is_written_as_the_typed_key_and_never_beside_it(alias):
    assert json.loads(encode_metadata({alias: 3}, "x"))["num_layers"] == 3
    both = json.loads(encode_metadata({alias: 3, "num_layers": 4}, "x"))
    assert both["num_layers"] == 4
    assert alias not in both


def test_text_is_raw_utf8_with_json_escapes_only_where_needed():
    assert b'"x":"\xe6\xbc\xa2 \\"\\\\\\n\\u0001\x7f"' in encode_metadata({"x": '漢 "\\\n\x01\x7f'}, "x")


@pytest.mark.parametrize(
    "metadata",
    [
        {"hidden_size": "896"},
        {"hidden_size": -1},
        {"hidden_size": True},
        {"hidden_size": 1 << 64},
        {"name": 3},
        {"rms_norm_eps": "1e-6"},
        {"rms_norm_eps": float("nan")},
        {"rms_norm_eps": 1e300},
        {"sharding": []},
        {"x": {1: 2}},
        {"x": bytes(1)},
        {"x": "\ud800"},
        {"x": float("inf")},
        {"x": "a" * (16 << 20)},
    ],
    ids=lambda metadata: repr(metadata)[:40],
)
def test_metadata_that_the_reference_reader_would_drop_is_refused(metadata):
    with pytest.raises(FormatError):
        encode_metadata(metadata, "x")


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
