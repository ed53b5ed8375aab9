"""A checkpoint with rows that its file does not have: what it says of itself, and its tensors by all ways of reading."""

import gguf
import numpy as np
import pytest
from apr_train.checkpoint.apr import AprWriter, TensorSpec
from apr_train.checkpoint.checkpoint import Streaming
from apr_train.checkpoint.dtypes import bf16_to_f32
from apr_train.checkpoint.grown import Growth, grow
from apr_train.checkpoint.header import TokenizerSpec
from apr_train.checkpoint.open import open_checkpoint
from apr_train.errors import FormatError
from safetensors.numpy import save_file

ROWS, KNOWN, WIDTH = 6, 5, 4
DRAWN = np.random.default_rng(0).standard_normal((ROWS, WIDTH)).astype(np.float32)
OTHER = np.arange(8, dtype=np.float32)
NAME = "model.embed_tokens.weight"
TOKENS = {"<|a|>": 5, "<|b|>": 6, "<|c|>": 7}


def growth(**changes):
    found = {"tokenizer": TokenizerSpec(size=8), "tokens": TOKENS, "known": KNOWN, "before": ROWS, "rows": 8}
    return Growth(**found | {"tensors": frozenset({NAME})} | changes)


def write_apr(path):
    tensors = {NAME: DRAWN, "model.norm.weight": OTHER}
    specs = [TensorSpec(name, "F32", data.shape) for name, data in tensors.items()]
    with AprWriter(path, {"architecture": "llama", "vocab_size": ROWS}, specs) as writer:
        for name, data in tensors.items():
            writer.write(name, data)
    return path


def write_safetensors(path):
    save_file({NAME: DRAWN, "model.norm.weight": OTHER}, path)
    return path


@pytest.mark.parametrize("write", [write_apr, write_safetensors])
def test_old_rows_stay_and_new_ones_are_the_mean_of_those_that_have_a_token(tmp_path, write):
    with open_checkpoint(write(tmp_path / "x")) as base:
        grown = grow(base, growth(), base.header)
        data = grown.read(NAME).data
        assert grown.header.tensors[NAME].shape == data.shape == (8, WIDTH)
        assert grown.header.tensors[NAME].nbytes == data.nbytes == len(grown.read_raw(NAME))
        assert grown.header.config["vocab_size"] == 8
        assert grown.content_hash() == base.content_hash()
        assert np.array_equal(data[:KNOWN], DRAWN[:KNOWN])
        mean = DRAWN[:KNOWN].astype(np.float64).mean(axis=0).astype(np.float32)
        assert all(np.array_equal(row, mean) for row in data[KNOWN:])
        assert np.array_equal(grown.read("model.norm.weight").data, OTHER)
        assert isinstance(grown, Streaming) == isinstance(base, Streaming)
        pieces = grow(base, growth(pieces={6: (1, 3)}), base.header).read(NAME).data
        assert np.array_equal(pieces[6], DRAWN[[1, 3]].astype(np.float64).mean(axis=0).astype(np.float32))
        assert np.array_equal(pieces[7], mean)


def test_a_stream_gives_the_same_bytes_and_checks_those_of_the_file(tmp_path):
    path = write_apr(tmp_path / "x.apr")
    with open_checkpoint(path) as base:
        grown = grow(base, growth(), base.header)
        whole = bytes(grown.read_raw(NAME))
        with grown.stream() as stream:
            buffer = bytearray(len(whole))
            stream.read_into(NAME, memoryview(buffer))
            assert bytes(buffer) == whole
            assert b"".join(map(bytes, stream.chunks("model.norm.weight"))) == OTHER.tobytes()
        with grown.stream() as stream:
            assert b"".join(map(bytes, stream.chunks(NAME))) == whole
            assert b"".join(view.data.tobytes() for view in stream.values(NAME)) == whole
    content = bytearray(path.read_bytes())
    content[content.index(DRAWN.tobytes())] ^= 1
    path.write_bytes(content)
    with open_checkpoint(path) as base:
        stream = grow(base, growth(), base.header).stream()
        with pytest.raises(FormatError, match="checksum"), stream:
            list(stream.chunks(NAME))


def test_bfloat16_rows_are_rounded_once(tmp_path):
    bits = (DRAWN.view(np.uint32) >> 16).astype(np.uint16)
    specs = [TensorSpec(NAME, "BF16", bits.shape)]
    with AprWriter(tmp_path / "x.apr", {"architecture": "llama"}, specs) as writer:
        writer.write(NAME, bits)
    with open_checkpoint(tmp_path / "x.apr") as base:
        view = grow(base, growth(), base.header).read(NAME)
    assert view.dtype == "BF16"
    assert np.array_equal(view.data[:KNOWN], bits[:KNOWN])
    mean = bf16_to_f32(bits[:KNOWN]).astype(np.float64).mean(axis=0)
    assert np.all(np.abs(bf16_to_f32(view.data[6]) - mean) <= np.abs(mean) * 2**-8)


def test_a_quantised_matrix_becomes_float32(tmp_path):
    wide = np.random.default_rng(1).standard_normal((ROWS, 32)).astype(np.float32)
    blocks = gguf.quants.quantize(wide, gguf.GGMLQuantizationType.Q4_1)
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "llama")
    writer.add_tensor("token_embd.weight", blocks, raw_dtype=gguf.GGMLQuantizationType.Q4_1)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with open_checkpoint(tmp_path / "x.gguf") as base:
        grown = grow(base, growth(tensors=frozenset({"token_embd.weight"})), base.header)
        assert grown.header.tensors["token_embd.weight"].dtype == "F32"
        data = grown.read("token_embd.weight").data
        held = gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType.Q4_1)
    assert np.array_equal(data[:KNOWN], held[:KNOWN])
    assert np.allclose(data[7], held[:KNOWN].mean(axis=0), atol=1e-6)


def test_what_is_new_is_told_in_one_sentence():
    assert str(growth()) == "3 new tokens (1 in free rows, 2 in new ones), 0 of them words; 8 rows"
    assert str(growth(before=8, rows=8)) == "3 new tokens (3 in free rows), 0 of them words; 8 rows"
