"""The format description, written out by hand: what the writer must produce, and what the reader must accept."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
from apr_train.checkpoint.apr import AprWriter, TensorSpec, open_apr

METADATA = (
    b'{"model_type":"llama","name":"tiny","license":"MIT","data_source":null,"data_license":null,"total_size":0,'
    b'"param_count":7,"architecture":"llama","hidden_size":4,"rope_theta":10000.0,"rope_type":2,"rms_norm_eps":0.000001,'
    b'"note":"na\xc3\xafve \\"\\n"}'
)


def expected_file() -> bytes:
    metadata = METADATA + bytes(-len(METADATA) % 64)
    index = (
        b"\x01\x00" + b"a" + b"\x1e\x01" + struct.pack("<Q", 3) + struct.pack("<QQ", 0, 6)  # BF16 is 30
        + b"\x06\x00" + b"b.bias" + b"\x00\x02" + struct.pack("<QQ", 2, 2) + struct.pack("<QQ", 64, 16)
    )  # fmt: skip
    index += bytes(-len(index) % 64)
    data = b"\x80\x3f\x00\x40\x40\x40" + bytes(58) + struct.pack("<4f", 1.0, -2.0, 0.5, 4.0) + bytes(48)
    start = (
        b"APR\x00" + b"\x02\x00" + b"\x00\x04" + struct.pack("<I", 2)
        + struct.pack("<Q", 64) + struct.pack("<I", len(METADATA))
        + struct.pack("<Q", 64 + len(metadata)) + struct.pack("<Q", 64 + len(metadata) + len(index))
    )  # fmt: skip
    header = start + struct.pack("<I", zlib.crc32(start + bytes(20))) + bytes(20)
    body = header + metadata + index + data
    return body + struct.pack("<I", zlib.crc32(body))


def write(path: Path, *, reverse: bool = False) -> bytes:
    tensors = {
        "b.bias": (TensorSpec("b.bias", "F32", (2, 2)), np.array([[1, -2], [0.5, 4]], np.float32)),
        "a": (TensorSpec("a", "BF16", (3,)), np.array([0x3F80, 0x4000, 0x4040], np.uint16)),
    }
    metadata = {
        "note": 'naïve "\n',
        "rms_norm_eps": 9.999999974752427e-07,
        "rope_theta": 10000,
        "num_heads": None,
        "rope_type": 2,
        "d_model": 4,
        "model_type": "llama",
        "param_count": 7,
        "license": "MIT",
        "name": "tiny",
        "architecture": "llama",
    }
    with AprWriter(path, metadata, [spec for spec, _ in tensors.values()]) as writer:
        for name in sorted(tensors, reverse=reverse):
            writer.write(name, tensors[name][1])
    return path.read_bytes()


def test_the_writer_produces_the_documented_bytes(tmp_path):
    assert write(tmp_path / "x.apr") == expected_file()


def test_the_order_of_writing_does_not_change_the_bytes(tmp_path):
    assert write(tmp_path / "x.apr", reverse=True) == expected_file()


def test_the_reader_reads_the_documented_bytes(tmp_path):
    path = tmp_path / "x.apr"
    path.write_bytes(expected_file())
    with open_apr(path) as reader:
        assert list(reader.header.tensors) == ["a", "b.bias"]
        assert reader.read("b.bias").data.tolist() == [[1.0, -2.0], [0.5, 4.0]]
        assert reader.read("a").dtype == "BF16"
        assert reader.read("a").data.tolist() == [0x3F80, 0x4000, 0x4040]
        assert reader.header.config["hidden_size"] == 4
        assert reader.raw_metadata["note"] == 'naïve "\n'
        assert "data_source" not in reader.raw_metadata


def test_a_streaming_writers_data_order_is_kept_when_asked(tmp_path):
    path = tmp_path / "x.apr"
    specs = [TensorSpec("z", "F32", (1,)), TensorSpec("a", "F32", (1,))]
    with AprWriter(path, {}, specs, keep_order=True) as writer:
        writer.write("a", np.array([1], np.float32))
        writer.write("z", np.array([2], np.float32))
    with open_apr(path) as reader:
        assert list(reader.entries) == ["a", "z"]
        assert (reader.entries["z"].offset, reader.entries["a"].offset) == (0, 64)
        assert reader.read("z").data.tolist() == [2.0]


def test_dtype_ids_are_the_documented_ones(tmp_path):
    ids = {"F32": 0, "F16": 1, "F64": 3, "I32": 4, "I64": 5, "I8": 6, "U8": 7, "Q4_K": 12, "Q6_K": 14, "BF16": 30}
    ids |= {"APR_Q4": 128, "APR_Q8": 129}
    for name, number in ids.items():
        spec = TensorSpec("t", name, (256,))
        with AprWriter(tmp_path / "x.apr", {}, [spec]) as writer:
            writer.write("t", bytes(spec.nbytes))
        raw = (tmp_path / "x.apr").read_bytes()
        index_offset = int.from_bytes(raw[24:32], "little")
        assert raw[index_offset : index_offset + 4] == b"\x01\x00t" + bytes([number])


def test_ids_of_older_files_are_read_as_the_same_dtypes(small_file, reseal):
    raw = small_file.read_bytes()
    old = raw.replace(b"x.q4\x80", b"x.q4\x08").replace(b"x.q8\x81", b"x.q8\x09")
    assert old != raw
    with open_apr(small_file) as reader:
        expected = {name: reader.read(name).data.tolist() for name in ("x.q4", "x.q8")}
    small_file.write_bytes(reseal(old))
    with open_apr(small_file) as reader:
        assert {name: reader.read(name).data.tolist() for name in expected} == expected
