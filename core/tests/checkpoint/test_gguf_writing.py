"""GGUF files written: types as llama.cpp's quantize chooses them, keys, tokenizers; read again by the `gguf` package."""

import gguf
import numpy as np
import pytest
from apr_train.checkpoint.gguf_keys import config_of_keys, rope_of_keys
from apr_train.checkpoint.gguf_writing import (
    FILE_TYPES,
    QUANTISED,
    config_keys,
    quantised,
    tensor_info,
    tokenizer_keys,
    unknown_tensors,
    write_gguf,
    written_type,
)
from apr_train.checkpoint.header import AddedToken, TokenizerSpec
from apr_train.checkpoint.tokenizer_metadata import spec_from_gguf
from apr_train.errors import OutputError, TokenizerError

KINDS = gguf.GGMLQuantizationType


@pytest.mark.parametrize(
    ("name", "shape", "wanted", "expected"),
    [
        ("blk.0.attn_q.weight", (64, 64), "Q4_0", "Q4_0"),
        ("blk.0.attn_q.bias", (64,), "Q4_0", "F32"),
        ("blk.0.attn_norm.weight", (64,), "F16", "F32"),
        ("blk.0.attn_q_norm.weight", (8, 32), "Q8_0", "F32"),
        ("blk.0.ffn_gate_inp.weight", (4, 64), "BF16", "F32"),
        ("blk.0.ffn_gate_inp_shexp.weight", (1, 64), "Q8_0", "F32"),
        ("position_embd.weight", (32, 64), "Q8_0", "F32"),
        ("blk.0.ffn_down_exps.weight", (4, 64, 96), "Q5_1", "Q5_1"),
        ("blk.0.ffn_down.weight", (64, 112), "Q5_0", "F16"),  # 112 is no multiple of 32
        ("blk.0.ffn_down.weight", (64, 112), "BF16", "BF16"),
        ("output.weight", (96, 64), "Q4_1", "Q8_0"),
        ("token_embd.weight", (96, 64), "Q4_1", "Q4_1"),
        ("output.weight", (96, 112), "Q4_1", "F16"),
        ("output.weight", (96, 64), "F16", "F16"),
    ],
)
def test_types_are_those_of_llama_cpps_quantize(name, shape, wanted, expected):
    assert written_type(name, shape, wanted, tied=False) == expected


def test_a_tied_embedding_makes_the_logits_and_gets_eight_bits():
    assert written_type("token_embd.weight", (96, 64), "Q4_0", tied=True) == "Q8_0"


@pytest.mark.parametrize("kind", QUANTISED)
def test_pieces_that_end_anywhere_are_quantised_as_the_whole_tensor(kind):
    values = np.random.default_rng(0).standard_normal((24, 96), np.float32)
    pieces = np.split(values.reshape(-1), [5, 5, 700, 733, 2000])
    found = np.concatenate([piece.reshape(-1) for piece in quantised(pieces, kind)])
    np.testing.assert_array_equal(found, gguf.quantize(values, KINDS[kind]).reshape(-1))


def test_every_type_has_the_number_that_llama_cpp_has_for_a_file_of_it():
    assert {name: int(gguf.LlamaFileType[kind]) for name, kind in FILE_TYPES.items()} == {
        "F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q5_0": 8, "Q5_1": 9, "BF16": 32
    }  # fmt: skip


def test_what_is_written_the_gguf_package_reads(tmp_path):
    values = {
        "blk.0.attn_norm.weight": np.linspace(-1, 1, 64, dtype=np.float32),
        "blk.0.attn_q.weight": np.arange(128, dtype=np.float16).reshape(2, 64),
        "blk.0.attn_k.weight": gguf.quantize(np.linspace(-3, 3, 128, dtype=np.float32).reshape(2, 64), KINDS.Q4_1),
    }
    bits = (np.arange(64, dtype=np.float32).view(np.uint32) >> 16).astype(np.uint16)
    tensors = [
        tensor_info("blk.0.attn_norm.weight", "F32", (64,)),
        tensor_info("blk.0.attn_q.weight", "F16", (2, 64)),
        tensor_info("blk.0.attn_k.weight", "Q4_1", (2, 64)),
        tensor_info("blk.0.attn_v.weight", "BF16", (1, 64)),
    ]
    metadata = {"llama.block_count": 1, "llama.rope.freq_base": 1e4, "general.name": "Ünï", "t.flag": False, "t.list": [3, 1]}
    data = {**values, "blk.0.attn_v.weight": bits}
    write_gguf(tmp_path / "m.gguf", "llama", metadata, tensors, lambda name: np.array_split(data[name].reshape(-1), 3))
    reader = gguf.GGUFReader(tmp_path / "m.gguf")
    assert {key: reader.fields[key].contents() for key in metadata} == metadata
    assert reader.fields["general.architecture"].contents() == "llama"
    assert reader.fields["llama.block_count"].types == [gguf.GGUFValueType.UINT32]
    assert reader.fields["llama.rope.freq_base"].types == [gguf.GGUFValueType.FLOAT32]
    assert [(item.name, item.tensor_type.name, item.shape.tolist()) for item in reader.tensors] == [
        (item.name, item.dtype, [*reversed(item.shape)]) for item in tensors
    ]
    for item in reader.tensors:
        assert item.data.tobytes() == data[item.name].tobytes(), item.name


@pytest.mark.parametrize("sizes", [[], [7], [4, 3], [8, 1], [16], [4, 9]])
def test_a_tensor_with_other_bytes_than_its_entry_is_never_written(sizes, tmp_path):
    tensors = [tensor_info("output_norm.weight", "F32", (8,))]
    with pytest.raises(OutputError, match=f"expected 32, found {4 * sum(sizes)}") as caught:
        write_gguf(tmp_path / "m.gguf", "llama", {}, tensors, lambda name: [np.ones(size, np.float32) for size in sizes])
    assert caught.value.findings[0].field == "output_norm.weight"


VALUES = {
    "num_hidden_layers": 2, "max_position_embeddings": 64, "hidden_size": 32, "intermediate_size": 48,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "vocab_size": 61, "rope_theta": 10000,
    "rms_norm_eps": 1e-5,
}  # fmt: skip


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"sliding_window": 7, "final_logit_softcapping": 30.0, "attn_logit_softcapping": 50},
        {"layer_types": ["sliding_attention", "full_attention"]},
        {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "norm_topk_prob": False},
        {"rope_scaling": {"rope_type": "linear", "factor": 4}},
        {
            "rope_scaling": {
                "rope_type": "yarn",
                "factor": 4.0,
                "original_max_position_embeddings": 16,
                "beta_fast": 31,
                "beta_slow": 2,
            }
        },
    ],
)
def test_keys_of_a_config_are_read_back_as_it(more):
    keys = config_keys("llama", VALUES | more)
    found = config_of_keys(keys, "llama") | rope_of_keys(keys, "llama", VALUES)
    assert found == VALUES | more


def test_numbers_have_the_types_that_llama_cpp_asks_for():
    yarn = {"rope_type": "yarn", "factor": 4, "original_max_position_embeddings": 16, "beta_fast": 32, "beta_slow": 1}
    more = {"logits_scaling": 8, "embedding_multiplier": 12, "rotary_dim": 8, "rope_scaling": yarn}
    keys = config_keys("granite", VALUES | more)
    whole = {key for key, value in keys.items() if type(value) is int}
    assert {"granite.rope.scaling.yarn_beta_fast", "granite.rope.scaling.factor"} <= {*keys} - whole
    assert "granite.rope.scaling.original_context_length" in whole
    assert {"granite.rope.freq_base", "granite.logit_scale", "granite.embedding_scale"} <= {*keys} - whole
    assert {"granite.block_count", "granite.rope.dimension_count", "granite.attention.value_length"} <= whole


SPEC = TokenizerSpec(
    vocabulary=("<|end|>", "a", "b", "ab", "<tool>"),
    merges=("a b",),
    pre_type="qwen2",
    added_tokens=(AddedToken(id=0, content="<|end|>", special=True), AddedToken(id=4, content="<tool>")),
    special_ids={"bos": 0, "eos": 0, "sep": 4},
    chat_template="{{ m }}",
    size=5,
    add_bos=True,
    origin="here",
)


def test_a_tokenizer_comes_back_and_rows_without_a_token_are_padding():
    keys = tokenizer_keys(SPEC, rows=7, first=[0], last=[])
    assert keys["tokenizer.ggml.tokens"] == ["<|end|>", "a", "b", "ab", "<tool>", "[PAD5]", "[PAD6]"]
    assert keys["tokenizer.ggml.token_type"] == [3, 1, 1, 1, 4, 5, 5]
    assert keys["tokenizer.ggml.seperator_token_id"] == 4
    found = spec_from_gguf("x.gguf", keys)
    for name in ("merges", "pre_type", "added_tokens", "special_ids", "chat_template", "size", "add_bos"):
        assert getattr(found, name) == getattr(SPEC, name), name


def test_a_tokenizer_of_another_kind_is_refused():
    content = {"model": {"type": "Unigram", "vocab": {"a": 0}}, "added_tokens": []}
    with pytest.raises(TokenizerError, match="only a byte-level BPE"):
        tokenizer_keys(TokenizerSpec(json=content, size=1, origin="t.json"), rows=4, first=(), last=())


def test_a_cut_that_llama_cpp_does_not_have_is_refused():
    content = {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}, "pre_tokenizer": {"type": "Whitespace"}}
    with pytest.raises(TokenizerError, match="no pre-tokenizer"):
        tokenizer_keys(TokenizerSpec(json=content, size=1, origin="t.json"), rows=4, first=(), last=())


def test_more_tokens_than_rows_and_an_unsayable_frame_are_refused():
    with pytest.raises(TokenizerError, match="at most 4, found 5"):
        tokenizer_keys(SPEC, rows=4, first=(), last=())
    with pytest.raises(TokenizerError, match="not its bos"):
        tokenizer_keys(SPEC, rows=5, first=[0, 1], last=())


def test_names_that_an_architecture_does_not_have_are_found():
    names = ["token_embd.weight", "blk.11.attn_q.bias", "blk.0.attn_qkv.weight", "blk.0.nonsense.weight"]
    assert unknown_tensors("qwen2", names) == names[2:]
    assert unknown_tensors("no-such", names) == names
