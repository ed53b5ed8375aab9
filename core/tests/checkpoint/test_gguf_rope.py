"""Tables of rotary factors in a GGUF: as transformers computes them, and read back as the numbers they were made of."""

import math

import gguf
import numpy as np
import pytest
import torch
from apr_train.checkpoint.gguf_rope import ROPE_FREQS, is_table, llama3_factors, scaling_of_tables, tables_of_scaling
from apr_train.checkpoint.header import TensorInfo
from apr_train.checkpoint.open import open_checkpoint
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

THETA, ROTATED = 500_000.0, 128
LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}  # fmt: skip
OTHER = LLAMA3 | {"factor": 6.5, "low_freq_factor": 1.25, "original_max_position_embeddings": 4096}
LONGROPE = {
    "rope_type": "longrope",
    "short_factor": [1.0, 1.1, 1.2, 1.5],
    "long_factor": [1.5, 2.0, 3.0, 6.0],
    "original_max_position_embeddings": 32,
    "factor": None,
    "attention_factor": None,
}


def transformers_table(scaling):
    """What the unscaled frequencies are divided by in transformers: `[rotated / 2]` float32."""
    config = LlamaConfig(
        hidden_size=256,
        num_attention_heads=2,
        max_position_embeddings=1 << 17,
        rope_parameters={"rope_theta": THETA, **scaling},
    )
    theirs, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    return (THETA ** -(np.arange(0, ROTATED, 2) / ROTATED) / theirs.numpy()).astype(np.float32)


def read(metadata, tables, architecture="llama", **config):
    head = 8 if architecture == "phi3" else ROTATED
    plain = {"rope_theta": THETA, "max_position_embeddings": 128, "head_dim": head}
    return scaling_of_tables(metadata, architecture, plain | config, tables)


def written(scaling, architecture, length=128):
    return tables_of_scaling(scaling, architecture, theta=THETA, rotated=ROTATED, length=length)


@pytest.mark.parametrize("scaling", [LLAMA3, OTHER])
def test_llama_3s_factors_divide_the_frequencies_as_transformers_does(scaling):
    found = llama3_factors(scaling, THETA, ROTATED)
    np.testing.assert_allclose(found, transformers_table(scaling), rtol=2e-6)
    assert {1.0, scaling["factor"]} < {*found.tolist()}


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_the_published_numbers_are_known_by_their_table_alone(factor):
    """As llama.cpp's converter leaves Llama 3.1, 3.2 and 3.3: no key says what the table was made of."""
    scaling = LLAMA3 | {"factor": factor}
    assert read({}, {ROPE_FREQS: transformers_table(scaling)}) == scaling


def test_other_numbers_are_read_from_our_own_keys_and_only_with_their_table():
    tables, keys = written(OTHER, "llama")
    assert read(keys, tables) == OTHER
    assert read({}, tables) is None
    assert read(keys, {ROPE_FREQS: tables[ROPE_FREQS] * np.float32(1.001)}) is None
    assert read(keys, tables, rope_theta=10_000.0) is None
    assert read(keys, tables, "qwen2") is None
    assert read(keys, tables, head_dim=64) is None  # a number for each pair
    assert read(keys | {"llama.rope.dimension_count": 64}, tables) is None
    assert read(keys, tables, head_dim=None, hidden_size=512, num_attention_heads=4) == OTHER


@pytest.mark.parametrize("wrong", [0, -1.0, float("nan"), float("inf"), "8", [8.0], True, None])
@pytest.mark.parametrize("name", ["factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"])
def test_numbers_that_cannot_be_are_not_believed(name, wrong):
    tables, keys = written(OTHER, "llama")
    assert read(keys | {f"apr_train.rope_scaling.{name}": wrong}, tables) is None


@pytest.mark.parametrize("table", [np.zeros(64, np.float32), np.full(64, np.nan, np.float32)])
def test_a_table_of_nothing_is_no_scaling(table):
    assert read({}, {ROPE_FREQS: table}) is None


@pytest.mark.parametrize(
    ("more", "stated"),
    [
        ({}, {}),
        ({"factor": 9.0}, {"attention_factor": math.sqrt(1 + math.log(9) / math.log(32))}),
        ({"attention_factor": 1.3}, {"attention_factor": 1.3}),
    ],
)
def test_longrope_comes_back_and_its_factor_is_said_where_the_lengths_do_not_give_it(more, stated):
    tables, keys = written(LONGROPE | more, "phi3")
    expected = {name: value for name, value in LONGROPE.items() if value is not None} | stated
    found = read(keys, tables, "phi3")
    assert found.pop("attention_factor", None) == pytest.approx(expected.pop("attention_factor", None))
    assert found == expected
    assert read({key: value for key, value in keys.items() if "original" not in key}, tables, "phi3") is None
    assert read(keys, {name: tables[name] for name in list(tables)[:1]}, "phi3") is None
    assert read(keys, tables, "phi3", head_dim=16) is None


@pytest.mark.parametrize(
    ("dtype", "shape", "expected"),
    [("F32", (64,), True), ("F16", (64,), False), ("F32", (1 << 20,), False), ("F32", (8, 8), False), ("F32", (0,), False)],
)
def test_only_a_small_vector_of_float32_is_read_with_the_header(dtype, shape, expected):
    assert is_table(TensorInfo(ROPE_FREQS, dtype, shape, 0)) == expected


def test_a_file_of_llama_cpps_own_writer_says_its_scaling_in_the_header(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_rope_freq_base(THETA)
    writer.add_rope_dimension_count(ROTATED)
    writer.add_tensor(ROPE_FREQS, transformers_table(LLAMA3))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with open_checkpoint(tmp_path / "m.gguf") as checkpoint:
        assert checkpoint.header.config["rope_scaling"] == LLAMA3
