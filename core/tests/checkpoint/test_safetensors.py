import json
import re
import struct
import tracemalloc

import numpy as np
import pytest
import safetensors
import safetensors.numpy
import safetensors.torch
import torch
from apr_train.checkpoint.dtypes import SAFETENSORS
from apr_train.checkpoint.header import TensorInfo
from apr_train.checkpoint.safetensors import SafetensorsReader, write_safetensors, write_sharded
from apr_train.checkpoint.validation import validate
from apr_train.errors import FormatError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

TORCH = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip


def some_tensors():
    torch.manual_seed(0)
    return {
        dtype.lower(): (torch.randn(3, 5) * 20).to(kind) if kind.is_floating_point else torch.randint(0, 2, (3, 5)).to(kind)
        for dtype, kind in TORCH.items()
    }


def test_every_dtype_reads_as_the_safetensors_package_wrote_it(tmp_path):
    tensors = some_tensors() | {"empty": torch.zeros(0, 4), "scalar": torch.tensor(2.5)}
    path = tmp_path / "m.safetensors"
    safetensors.torch.save_file(tensors, path)
    with SafetensorsReader.open(path) as reader:
        assert set(reader.header.tensors) == set(tensors)
        for name, tensor in tensors.items():
            found = reader.read(name)
            assert TORCH[found.dtype] == tensor.dtype
            assert found.data.shape == tuple(tensor.shape)
            assert found.data.tobytes() == tensor.reshape(-1).view(torch.uint8).numpy().tobytes()
            assert not found.data.flags.writeable


def write_ours(path, tensors):
    infos = [
        TensorInfo(name, dtype, tuple(tensors[name].shape), tensors[name].nbytes)
        for dtype, name in ((dtype, dtype.lower()) for dtype in TORCH)
    ]
    raw = {name: tensor.reshape(-1).view(torch.uint8).numpy() for name, tensor in tensors.items()}
    write_safetensors(path, infos, lambda name: [raw[name][:7], raw[name][7:]])
    return infos, raw


def test_what_we_write_the_safetensors_package_reads(tmp_path):
    tensors = some_tensors()
    path = tmp_path / "m.safetensors"
    write_ours(path, tensors)
    found = safetensors.torch.load_file(path)
    assert set(found) == set(tensors)
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)
    with safetensors.safe_open(path, "pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_data_starts_at_a_multiple_of_eight(tmp_path):
    path = tmp_path / "m.safetensors"
    write_ours(path, some_tensors())
    assert struct.unpack("<Q", path.read_bytes()[:8])[0] % 8 == 0


def test_a_wrong_amount_of_data_leaves_no_file(tmp_path):
    with pytest.raises(FormatError, match="wrong size"):
        write_safetensors(tmp_path / "m.safetensors", [TensorInfo("x", "F32", (2,), 8)], lambda name: [np.zeros(1, np.float32)])
    assert list(tmp_path.iterdir()) == []


def test_shards_are_split_by_size_and_read_back_through_the_index(tmp_path):
    data = {f"t{number}": np.full((10, 10), number, np.float32) for number in range(5)}
    infos = [TensorInfo(name, "F32", (10, 10), 400) for name in data]
    files = write_sharded(tmp_path, infos, lambda name: [data[name]], limit=900)
    assert files == [f"model-{number:05d}-of-00003.safetensors" for number in (1, 2, 3)]
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 2000
    for name, file in index["weight_map"].items():
        np.testing.assert_array_equal(safetensors.numpy.load_file(tmp_path / file)[name], data[name])
    with SafetensorsReader.open(tmp_path) as reader:
        for name, expected in data.items():
            np.testing.assert_array_equal(reader.read(name).data, expected)


def test_a_sharded_folder_of_transformers_opens(tmp_path):
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=40, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, num_key_value_heads=2
    )
    model = LlamaForCausalLM(config)
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    with SafetensorsReader.open(tmp_path) as reader:
        header = reader.header
        for name, tensor in model.state_dict().items():
            np.testing.assert_array_equal(reader.read(name).data, tensor.numpy())
    assert (header.hf_class, header.architecture, header.rope_rows) == ("LlamaForCausalLM", "llama", "split-half")
    assert header.config["rope_theta"] == 10000.0
    assert "rope_parameters" not in header.config
    assert "rope_scaling" not in header.config
    assert (header.tie.value, header.tie.reason) == (False, "metadata")


def shard_folder(tmp_path, weight_map):
    safetensors.numpy.save_file({"a": np.zeros(2, np.float32)}, tmp_path / "one.safetensors")
    safetensors.numpy.save_file({"b": np.zeros(2, np.float32)}, tmp_path / "two.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return tmp_path


@pytest.mark.parametrize("name", ["../one.safetensors", "/one.safetensors", "sub/one.safetensors", "..", "", "a\\b", 7, "x\0y"])
def test_index_names_only_files_of_its_own_folder(name, tmp_path):
    with pytest.raises(FormatError, match="not a file name"):
        SafetensorsReader.open(shard_folder(tmp_path, {"a": name}))


@pytest.mark.parametrize(
    "weight_map",
    [
        {"a": "one.safetensors", "c": "one.safetensors", "b": "two.safetensors"},
        {"b": "one.safetensors", "a": "two.safetensors"},
        {"a": "absent.safetensors"},
        {},
        {"x": "one.safetensors", "b": "two.safetensors"},
    ],
)
def test_index_that_lies_is_refused(weight_map, tmp_path):
    with pytest.raises(FormatError):
        SafetensorsReader.open(shard_folder(tmp_path, weight_map))


def test_a_tensor_in_two_shards_is_refused(tmp_path):
    folder = shard_folder(tmp_path, {"a": "one.safetensors", "b": "two.safetensors"})
    safetensors.numpy.save_file({"a": np.zeros(2, np.float32), "b": np.zeros(2, np.float32)}, folder / "two.safetensors")
    with pytest.raises(FormatError, match="two shards"):
        SafetensorsReader.open(folder)


def test_pickle_files_are_refused_by_name(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"PK")
    with pytest.raises(FormatError, match="Pickle files are never read"):
        SafetensorsReader.open(tmp_path)


def test_license_comes_from_the_readme(tmp_path):
    safetensors.numpy.save_file({"a": np.zeros(2, np.float32)}, tmp_path / "model.safetensors")
    (tmp_path / "README.md").write_text("---\nlanguage: en\nlicense: apache-2.0 # SPDX\ntags: []\n---\n# Model\nlicense: mit\n")
    with SafetensorsReader.open(tmp_path) as reader:
        assert reader.header.provenance["license"] == "apache-2.0"


def raw_file(header, data=b"\0" * 8):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


LIES = {
    "empty": b"",
    "seven bytes": b"\0" * 7,
    "header length": struct.pack("<Q", 1 << 62) + b"{}",
    "header longer than the file": struct.pack("<Q", 100) + b"{}",
    "not JSON": raw_file(b"{nope", b""),
    "not UTF-8": raw_file(b'{"\xff": 1}', b""),
    "not an object": raw_file(b"[1]", b""),
    "deep": raw_file(b"[" * 100_000, b""),
    "key twice": raw_file(b'{"x":{"dtype":"F32","shape":[2],"data_offsets":[0,8],"dtype":"I32"}}'),
    "unknown dtype": raw_file({"x": entry("F99")}),
    "negative shape": raw_file({"x": entry(shape=(-2,))}),
    "boolean shape": raw_file({"x": entry(shape=(True, 2))}),
    "huge shape": raw_file({"x": entry(shape=(1 << 62, 1 << 62))}),
    "shape and size": raw_file({"x": entry(shape=(3,))}),
    "offsets backwards": raw_file({"x": entry(offsets=(8, 0))}),
    "offsets beyond": raw_file({"x": entry(shape=(1 << 20,), offsets=(0, 1 << 22))}),
    "one offset": raw_file({"x": entry(offsets=(8,))}),
    "hole": raw_file({"x": entry(shape=(1,), offsets=(4, 8))}),
    "overlap": raw_file({"x": entry(), "y": entry(shape=(1,), offsets=(4, 8))}),
    "left over": raw_file({"x": entry()}, b"\0" * 9),
    "truncated": raw_file({"x": entry()}, b"\0" * 7),
    "empty name": raw_file({"": entry()}),
    "NUL in a name": raw_file({"x\0y": entry()}),
    "half a surrogate": raw_file(b'{"\\ud800":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'),
    "no entry": raw_file({"x": 7}),
    "metadata": raw_file({"__metadata__": {"a": 1}, "x": entry()}),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_file_that_lies_is_refused_without_a_large_allocation(lie, tmp_path):
    path = tmp_path / "lie.safetensors"
    path.write_bytes(LIES[lie])
    tracemalloc.start()
    with pytest.raises(FormatError, match=r"lie\.safetensors"):
        SafetensorsReader.open(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3_000_000


def test_every_truncation_and_every_changed_byte_is_a_format_error_or_reads(tmp_path):
    path = tmp_path / "m.safetensors"
    safetensors.numpy.save_file({"a": np.zeros((2, 2), np.float32), "b": np.ones(3, np.float16)}, path)
    raw = path.read_bytes()
    for length in range(len(raw)):
        path.write_bytes(raw[:length])
        with pytest.raises(FormatError):
            SafetensorsReader.open(path)
    for index in range(len(raw)):
        for change in (0xFF, 1):
            path.write_bytes(raw[:index] + bytes([raw[index] ^ change]) + raw[index + 1 :])
            assert read_all(path) in (None, True)


def read_all(path):
    try:
        with SafetensorsReader.open(path) as reader:
            for name in reader.header.tensors:
                reader.read(name)
    except FormatError as error:
        return str(path) in str(error)
    return None


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_mutations_raise_nothing_but_format_errors(data, tmp_path):
    path = tmp_path / "m.safetensors"
    raw = bytearray(safetensors.numpy.save({"a": np.zeros((2, 2), np.float32), "b": np.ones(3, np.float16)}))
    for _ in range(data.draw(st.integers(1, 5))):
        start = data.draw(st.integers(0, len(raw)))
        raw[start : start + data.draw(st.integers(0, 9))] = data.draw(st.binary(max_size=12))
    path.write_bytes(raw)
    assert read_all(path) in (None, True)


@pytest.mark.parametrize("content", ["{", "[]", '{"rope_parameters": {"rope_theta": 1.0}, "rope_theta": 2.0}'])
def test_a_broken_config_is_a_format_error(content, tmp_path):
    safetensors.numpy.save_file({"a": np.zeros(2, np.float32)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(FormatError):
        SafetensorsReader.open(tmp_path)


BITS = {
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8,
    "F8_E4M3": 8,
    "F8_E5M2": 8,
    "C64": 64,
}


def safetensors_refuses(path):
    try:
        with safetensors.safe_open(path, "np"):
            return False
    except safetensors.SafetensorError:
        return True


def test_the_types_are_those_that_the_safetensors_package_reads(tmp_path):
    for dtype, kind in SAFETENSORS.items():
        size = kind.nbytes(8)
        (tmp_path / dtype).write_bytes(raw_file({"x": entry(dtype, (2, 4), (0, size))}, b"\0" * size))
        with safetensors.safe_open(tmp_path / dtype, "np") as file:
            assert file.get_slice("x").get_dtype() == dtype
        with SafetensorsReader.open(tmp_path / dtype) as reader:
            assert (reader.header.tensors["x"].shape, len(reader.read_raw("x"))) == ((2, 4), size)
    (tmp_path / "F99").write_bytes(raw_file({"x": entry("F99", (2, 4), (0, 8))}))
    with pytest.raises(safetensors.SafetensorError) as unknown:
        safetensors.safe_open(tmp_path / "F99", "np").__enter__()
    listed = set(re.findall(r"`(\w+)`", str(unknown.value))) - {"F99"}
    assert listed == set(SAFETENSORS)  # the package names all that it has


@pytest.mark.parametrize("dtype", BITS)
@pytest.mark.parametrize("elements", range(1, 9))
def test_elements_must_fill_whole_bytes_as_in_the_safetensors_package(dtype, elements, tmp_path):
    size = -(-elements * BITS[dtype] // 8)
    (tmp_path / "m").write_bytes(raw_file({"x": entry(dtype, (elements,), (0, size))}, b"\0" * size))
    try:
        SafetensorsReader.open(tmp_path / "m").close()
        refused = False
    except FormatError:
        refused = True
    assert refused == safetensors_refuses(tmp_path / "m")


@pytest.mark.rule("PREFLIGHT-006")
@pytest.mark.parametrize("dtype", ["F4", "F6_E2M3", "F6_E3M2"])
def test_values_that_share_a_byte_are_not_read_as_numbers(dtype, tmp_path):
    size = SAFETENSORS[dtype].nbytes(4)
    (tmp_path / "m").write_bytes(raw_file({"x": entry(dtype, (4,), (0, size))}, b"\xff" * size))
    with SafetensorsReader.open(tmp_path / "m") as reader:
        assert validate(reader, data=True) == []
        with pytest.raises(FormatError, match=rf"PREFLIGHT-006.*\[x\].*found {dtype}"):
            reader.read("x")


def test_complex_values_are_looked_at_for_nan_too(tmp_path):
    data = np.array([complex(1, np.nan), complex(np.inf, 0), 1j, 0], np.complex64).tobytes()
    (tmp_path / "m").write_bytes(raw_file({"x": entry("C64", (4,), (0, 32))}, data))
    with SafetensorsReader.open(tmp_path / "m") as reader:
        assert [finding.found for finding in validate(reader, data=True)] == ["1 NaN, 1 infinite"]
