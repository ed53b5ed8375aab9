"""Rotary tables, RMSNorm and the Llama 3 stretch, against transformers and against their definitions."""

import math

import pytest
import torch
from apr_train.family.decoder_config import DecoderConfig
from apr_train.family.rope_scaling import Llama3Scaling
from apr_train.model.norms import RMSNorm
from apr_train.model.rope import inverse_frequencies, rotary_tables, rotate, table_factor
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm, LlamaRotaryEmbedding, apply_rotary_pos_emb

SCALING = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


def config(**changes):
    values = {
        "vocab_size": 16,
        "hidden_size": 256,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": 131072,
        "rope_theta": 500000.0,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": True,
    }
    return DecoderConfig(**(values | changes))


def theirs(scaled):
    rope = {"rope_type": "llama3", **SCALING} if scaled else {"rope_type": "default"}
    return LlamaConfig(
        hidden_size=256,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=131072,
        rope_parameters={"rope_theta": 500000.0, **rope},
    )


@pytest.mark.parametrize("scaled", [False, True])
def test_rotation_equals_transformers_far_beyond_the_first_positions(scaled):
    ours = config(rope_scaling=Llama3Scaling(**SCALING) if scaled else None)
    positions = torch.tensor([[0, 1, 7, 500, 8191, 30_000, 131_071]])
    q = torch.randn(1, positions.shape[1], 4, 64)
    k = torch.randn(1, positions.shape[1], 2, 64)
    cos, sin = LlamaRotaryEmbedding(theirs(scaled))(q, positions)
    expected = apply_rotary_pos_emb(q.transpose(1, 2), k.transpose(1, 2), cos, sin)
    tables = rotary_tables(ours, positions, torch.float32)
    for mine, other in zip((rotate(q, tables), rotate(k, tables)), expected, strict=True):
        torch.testing.assert_close(mine, other.transpose(1, 2), rtol=0, atol=1e-6)


def test_stretched_frequencies_are_transformers_exactly():
    expected, _ = ROPE_INIT_FUNCTIONS["llama3"](theirs(True), "cpu")
    ours = inverse_frequencies(config(rope_scaling=Llama3Scaling(**SCALING)), device=torch.device("cpu"), dtype=torch.float32)
    assert torch.equal(ours, expected)


def test_float64_models_get_float64_tables():
    cos, sin = rotary_tables(config(), torch.tensor([[12_345]]), torch.float64)
    angle = 12_345 * 500000.0 ** (-2 / 64)
    assert cos.dtype == sin.dtype == torch.float64
    assert cos[0, 0, 0, 1].item() == pytest.approx(math.cos(angle), abs=1e-10)


def test_bfloat16_is_rotated_in_float32():
    tables = rotary_tables(config(), torch.tensor([[1000]]), torch.bfloat16)
    x = torch.randn(1, 1, 1, 64).bfloat16()
    assert tables[0].dtype == torch.float32
    assert torch.equal(rotate(x, tables), rotate(x.float(), tables).bfloat16())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rmsnorm_equals_transformers(dtype):
    ours, other = RMSNorm(32, 1e-6), LlamaRMSNorm(32, 1e-6)
    weight = torch.randn(32)
    for norm in (ours, other):
        norm.weight.data.copy_(weight)
        norm.to(dtype)
    x = torch.randn(5, 32).to(dtype) * 1e-3
    assert torch.equal(ours(x), other(x))


def test_rmsnorm_stays_in_float64():
    norm, x = RMSNorm(32, 1e-6).double(), torch.randn(5, 32, dtype=torch.float64)
    expected = x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    torch.testing.assert_close(norm(x), expected, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rmsnorm_with_an_offset_equals_transformers_gemma(dtype):
    ours, other = RMSNorm(32, 1e-6, offset=1.0), Gemma2RMSNorm(32, 1e-6)
    assert torch.equal(ours.weight, other.weight)
    weight = torch.randn(32)
    for norm in (ours, other):
        norm.weight.data.copy_(weight)
        norm.to(dtype)
    x = torch.randn(5, 32).to(dtype) * 1e-3
    assert torch.equal(ours(x), other(x))


SCALED = {
    "linear": {"factor": 4.0},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 4096},
    "longrope": {
        "short_factor": [1.0 + i / 7 for i in range(16)],
        "long_factor": [2.0 + i for i in range(16)],
        "original_max_position_embeddings": 4096,
    },
}


@pytest.mark.parametrize("kind", SCALED)
@pytest.mark.parametrize("length", [4096, 4097])
def test_scaled_frequencies_and_their_factor_are_transformers_at_half_rotation(kind, length):
    scaling = {"rope_type": kind, **SCALED[kind]}
    ours = config(rope_scaling=scaling, partial_rotary_factor=0.5)
    reference = theirs(False)
    reference.rope_parameters = {"rope_theta": 500000.0, "partial_rotary_factor": 0.5} | scaling
    expected, factor = ROPE_INIT_FUNCTIONS[kind](reference, "cpu", seq_len=length)
    mine = inverse_frequencies(ours, device=torch.device("cpu"), dtype=torch.float32, longest=length)
    torch.testing.assert_close(mine, expected, rtol=1e-6, atol=0)
    assert table_factor(ours) == pytest.approx(factor, rel=1e-12)


def test_local_tables_have_their_own_base_and_no_scaling():
    slides = {"sliding_window": 8, "layer_types": ["sliding_attention"]}
    ours = config(rope_scaling={"rope_type": "yarn", **SCALED["yarn"]}, rope_local_base_freq=10_000.0, **slides)
    plain = config(rope_theta=10_000.0)
    positions = torch.tensor([[0, 5, 9000]])
    for mine, expected in zip(
        rotary_tables(ours, positions, torch.float32, local=True), rotary_tables(plain, positions, torch.float32), strict=True
    ):
        assert torch.equal(mine, expected)


def test_dimensions_beyond_the_rotated_ones_stay():
    tables = rotary_tables(config(partial_rotary_factor=0.25), torch.tensor([[7]]), torch.float32)
    x = torch.randn(1, 1, 3, 64)
    out = rotate(x, tables)
    assert tables[0].shape == (1, 1, 1, 8)
    assert torch.equal(out[..., 16:], x[..., 16:])
    assert torch.equal(out[..., :16], rotate(x[..., :16], tables))
    assert (out[..., :16] - x[..., :16]).abs().max() > 0.1
