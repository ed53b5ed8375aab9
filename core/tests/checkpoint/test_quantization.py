"""Decoders against slow scalar ones written from the format description, and against gguf's own."""

from __future__ import annotations

import math
import struct
import subprocess
import sys

import numpy as np
import pytest
from apr_train.checkpoint.apr import AprWriter, TensorSpec, open_apr
from apr_train.checkpoint.apr import reader as reader_module


def scalar_q4(raw: bytes, elements: int) -> list[float]:
    values = []
    for block in range(len(raw) // 18):
        piece = raw[18 * block : 18 * block + 18]
        (scale,) = struct.unpack("<e", piece[:2])
        if math.isnan(scale) or math.isinf(scale) or abs(scale) < 2**-14:
            scale = 0.0
        for k in range(32):
            byte = piece[2 + k // 2]
            nibble = byte & 15 if k % 2 == 0 else byte >> 4
            values.append((nibble - 8) * scale)
    return values[:elements]


def scalar_q8(raw: bytes) -> list[float]:
    (scale,) = struct.unpack("<f", raw[:4])
    return [float(np.float32(byte - 256 if byte > 127 else byte) * np.float32(scale)) for byte in raw[4:]]


def write(path, dtype: str, shape: tuple[int, ...], raw: bytes):
    with AprWriter(path, {}, [TensorSpec("t", dtype, shape)]) as writer:
        writer.write("t", raw)
    return open_apr(path)


def streamed(reader) -> np.ndarray:
    with reader.stream() as stream:
        return np.concatenate([view.data.copy() for view in stream.values("t")])


@pytest.mark.parametrize("elements", [1, 31, 32, 33, 96, 1000])
def test_q4_decodes_like_the_scalar_description(tmp_path, monkeypatch, elements):
    monkeypatch.setattr(reader_module, "CHUNK", 100)
    random = np.random.default_rng(elements)
    raw = random.integers(0, 256, -(-elements // 32) * 18, dtype=np.uint8).tobytes()
    with write(tmp_path / "x.apr", "APR_Q4", (elements,), raw) as reader:
        expected = np.array(scalar_q4(raw, elements), np.float32)
        np.testing.assert_array_equal(reader.read("t").data, expected)
        np.testing.assert_array_equal(streamed(reader), expected)


@pytest.mark.parametrize("bits", [0x7C00, 0xFC00, 0x7E00, 0x0001, 0x03FF, 0x83FF, 0x0000])
def test_a_q4_scale_that_is_no_normal_number_counts_as_zero(tmp_path, bits):
    with write(tmp_path / "x.apr", "APR_Q4", (32,), struct.pack("<H", bits) + bytes(range(16))) as reader:
        assert not reader.read("t").data.any()


def test_the_smallest_normal_q4_scale_counts(tmp_path):
    with write(tmp_path / "x.apr", "APR_Q4", (32,), struct.pack("<H", 0x0400) + bytes(16)) as reader:
        assert reader.read("t").data.tolist() == [-8 * 2.0**-14] * 32


def test_q8_decodes_like_the_scalar_description(tmp_path, monkeypatch):
    monkeypatch.setattr(reader_module, "CHUNK", 64)
    raw = struct.pack("<f", 0.0123) + bytes(range(256))
    with write(tmp_path / "x.apr", "APR_Q8", (16, 16), raw) as reader:
        expected = np.array(scalar_q8(raw), np.float32)
        np.testing.assert_array_equal(reader.read("t").data, expected.reshape(16, 16))
        np.testing.assert_array_equal(streamed(reader), expected)


@pytest.mark.parametrize(("dtype", "block"), [("Q4_K", 144), ("Q6_K", 210)])
def test_super_blocks_decode_like_gguf(tmp_path, monkeypatch, dtype, block):
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    monkeypatch.setattr(reader_module, "CHUNK", 500)
    blocks = np.random.default_rng(1).integers(0, 256, (6, block), dtype=np.uint8)
    scales = {"Q4_K": slice(0, 4), "Q6_K": slice(208, 210)}[dtype]
    blocks[:, scales] = np.frombuffer(np.full(12, 0.03, np.float16).tobytes(), np.uint8)[: blocks[:, scales].shape[1]]
    with write(tmp_path / "x.apr", dtype, (3, 512), blocks.tobytes()) as reader:
        expected = dequantize(blocks, GGMLQuantizationType[dtype])
        np.testing.assert_array_equal(reader.read("t").data, expected.reshape(3, 512))
        np.testing.assert_array_equal(streamed(reader), expected.reshape(-1))


@pytest.mark.parametrize(("dtype", "nbytes", "imported"), [("F32", 1024, False), ("APR_Q4", 144, False), ("Q4_K", 144, True)])
def test_only_a_tensor_of_ggml_s_blocks_imports_the_gguf_package(tmp_path, dtype, nbytes, imported):
    write(tmp_path / "x.apr", dtype, (256,), bytes(nbytes)).close()
    code = "import sys; from apr_train.checkpoint.open import open_checkpoint as o; o(sys.argv[1]).read('t')"
    code += "; print('gguf' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "x.apr"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(imported)
