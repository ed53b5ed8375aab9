"""What a GGUF is planned to hold: tables of rotary factors, and the differences that a config's keys leave."""

import attrs
import numpy as np
import pytest
import torch
from apr_train.artifact.gguf.plan import _rope_tables, differences
from apr_train.errors import ConfigError
from apr_train.family.decoder_config import DecoderConfig
from transformers import Phi3Config
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

SIZES = {
    "vocab_size": 61,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 128,
    "rope_theta": 10_000.0,
}
CONFIG = DecoderConfig(**SIZES, rms_norm_eps=1e-5, tie_word_embeddings=True)
LONGROPE = {
    "rope_type": "longrope",
    "short_factor": [1.0, 1.1, 1.2, 1.5],
    "long_factor": [1.5, 2.0, 3.0, 6.0],
    "original_max_position_embeddings": 32,
}


def test_longrope_is_two_tables_and_the_factor_that_transformers_has_on_cos_and_sin():
    rope = {"rope_theta": 10_000.0, "partial_rotary_factor": 1.0, "factor": 4.0, **LONGROPE}
    theirs = Phi3Config(**SIZES, pad_token_id=None, original_max_position_embeddings=32, rope_parameters=rope)
    frequencies, factor = ROPE_INIT_FUNCTIONS["longrope"](theirs, torch.device("cpu"), seq_len=24)
    tables, keys = _rope_tables(attrs.evolve(CONFIG, rope_scaling=LONGROPE), "phi3", "here")
    assert keys["phi3.rope.scaling.attn_factor"] == pytest.approx(factor, rel=1e-6)
    assert keys["phi3.rope.scaling.original_context_length"] == 32
    plain = 10_000.0 ** -(np.arange(0, 8, 2) / 8)
    np.testing.assert_allclose(plain / tables["rope_factors_short.weight"], frequencies.numpy(), rtol=1e-6)
    np.testing.assert_array_equal(tables["rope_factors_long.weight"], np.float32(LONGROPE["long_factor"]))


def test_a_table_that_an_architecture_does_not_read_is_refused():
    with pytest.raises(ConfigError, match="no longrope scaling in a GGUF of llama"):
        _rope_tables(attrs.evolve(CONFIG, rope_scaling=LONGROPE), "llama", "here")


def test_numbers_are_compared_as_the_floats_that_a_file_holds():
    near = attrs.evolve(CONFIG, rms_norm_eps=float(np.float32(1e-5)), initializer_range=0.5, attention_multiplier=8**-0.5)
    assert differences(CONFIG, near) == []  # None stands for 1/sqrt(8), and nothing is drawn any more
    other = attrs.evolve(CONFIG, rope_theta=20_000.0, hidden_act="gelu")
    assert [name for name, *_ in differences(CONFIG, other)] == ["hidden_act", "rope_theta"]
    stretched = attrs.evolve(CONFIG, rope_scaling={"rope_type": "linear", "factor": 2.0})
    assert [name for name, *_ in differences(CONFIG, stretched)] == ["rope_scaling"]
    assert differences(stretched, attrs.evolve(CONFIG, rope_scaling={"rope_type": "linear", "factor": 2})) == []
    longrope = attrs.evolve(CONFIG, rope_scaling=LONGROPE)  # 128 positions from 32: a factor of 4, √(1 + ln 4 / ln 32)
    for same in (
        {"factor": 4.0},
        {"attention_factor": 1.1832159566},
        {"long_factor": [float(np.float32(x)) for x in (1.5, 2, 3, 6)]},
    ):
        assert differences(longrope, attrs.evolve(CONFIG, rope_scaling=LONGROPE | same)) == []
    other = attrs.evolve(CONFIG, rope_scaling=LONGROPE | {"factor": 8.0})
    assert [name for name, *_ in differences(longrope, other)] == ["rope_scaling"]
