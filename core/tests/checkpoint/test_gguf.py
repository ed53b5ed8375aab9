import struct
import tracemalloc

import gguf
import numpy as np
import pytest
from apr_train.checkpoint.gguf import GgufReader
from apr_train.errors import FormatError
from gguf import quants
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

KINDS = gguf.GGMLQuantizationType
BLOCKS = sorted((kind for kind in quants._type_traits if kind is not KINDS.BF16), key=lambda kind: kind.name)


def quantised(kind, rows, columns):
    block, size = gguf.GGML_QUANT_SIZES[kind]
    return np.random.default_rng(kind.value).integers(0, 256, (rows, columns // block * size)).astype(np.uint8)


@pytest.mark.parametrize("kind", BLOCKS, ids=lambda kind: kind.name)
def test_every_quantisation_gives_the_values_of_gguf_s_own_dequantiser(kind, make_gguf):
    data = quantised(kind, 70, 512)
    with GgufReader.open(make_gguf([("x", data, kind)])) as reader, np.errstate(all="ignore"):
        found = reader.read("x")
        expected = gguf.dequantize(data, kind)
        assert reader.header.tensors["x"].dtype == kind.name
    assert found.dtype == "F32"
    assert found.data.shape == (70, 512) == expected.shape
    assert found.data.tobytes() == np.ascontiguousarray(expected, np.float32).tobytes()


def test_more_blocks_than_one_piece_are_all_dequantised(make_gguf):
    data = quantised(KINDS.Q8_0, 700, 1024)
    with GgufReader.open(make_gguf([("x", data, KINDS.Q8_0)])) as reader, np.errstate(all="ignore"):
        np.testing.assert_array_equal(reader.read("x").data, gguf.dequantize(data, KINDS.Q8_0))


@pytest.mark.parametrize("numpy_type", ["float32", "float16", "float64", "int8", "int16", "int32", "int64"])
def test_plain_types_are_views_of_the_file(numpy_type, make_gguf):
    data = np.random.default_rng(0).integers(-100, 100, (3, 5)).astype(numpy_type)
    with GgufReader.open(make_gguf([("x", data, None)])) as reader:
        found = reader.read("x")
        np.testing.assert_array_equal(found.data, data)
        assert not found.data.flags.writeable
        assert not found.data.flags.owndata
        assert bytes(reader.read_raw("x")) == data.tobytes()


def test_bf16_arrives_as_its_bits(make_gguf):
    bits = np.arange(0x3F80, 0x3F80 + 32, dtype=np.uint16).reshape(4, 8)
    with GgufReader.open(make_gguf([("x", bits.view(np.uint8), KINDS.BF16)])) as reader:
        assert reader.read("x").dtype == "BF16"
        np.testing.assert_array_equal(reader.read("x").data, bits)


def test_header_has_hugging_face_names_and_people_s_spelling_of_floats(some_gguf):
    with GgufReader.open(some_gguf) as reader:
        header = reader.header
    assert header.config == {
        "num_hidden_layers": 2,
        "max_position_embeddings": 128,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-5,  # stored as 9.999999747378752e-06
        "rope_theta": 10000.0,
        "vocab_size": 4,
        "eos_token_id": 3,
    }
    assert (header.format, header.names, header.architecture, header.hf_class) == ("gguf", "gguf", "llama", None)
    assert header.tensors["token_embd.weight"].shape == (4, 64)
    assert header.tokenizer.added_tokens[0].content == "<|end|>"
    assert header.tokenizer.added_tokens[0].special


@pytest.mark.parametrize(("architecture", "rows"), [("llama", "adjacent"), ("qwen2", "split-half"), ("mamba", None)])
def test_rope_rows_follow_the_architecture(architecture, rows, make_gguf):
    with GgufReader.open(make_gguf(architecture=architecture)) as reader:
        assert reader.header.rope_rows == rows


def test_partial_rotary_and_scaling_are_not_lost(make_gguf):
    def more(writer):
        writer.add_rope_dimension_count(8)
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(2.0)

    with GgufReader.open(make_gguf(more=more)) as reader:
        config = reader.header.config
    assert config["partial_rotary_factor"] == 0.5
    assert config["rope_scaling"] == {"rope_type": "linear", "factor": 2.0}


def test_license_and_name_are_kept(make_gguf):
    def more(writer):
        writer.add_license("apache-2.0")
        writer.add_name("Tiny")

    with GgufReader.open(make_gguf(more=more)) as reader:
        assert reader.header.provenance == {"original_format": "gguf", "license": "apache-2.0", "name": "Tiny"}


def test_a_tensor_type_that_cannot_be_dequantised_is_named(make_gguf):
    data = np.zeros((2, 292), np.uint8)
    with GgufReader.open(make_gguf([("x", data, KINDS.Q8_K)])) as reader, pytest.raises(FormatError, match="Q8_K"):
        reader.read("x")


def test_content_hash_changes_with_one_bit_of_data(some_gguf):
    with GgufReader.open(some_gguf) as reader:
        before = reader.content_hash()
    raw = bytearray(some_gguf.read_bytes())
    raw[-40] ^= 1
    some_gguf.write_bytes(raw)
    with GgufReader.open(some_gguf) as reader:
        assert reader.content_hash() != before


def read_all(path):
    """Everything there is to read; the only exception may be a FormatError, which names the file."""
    try:
        with GgufReader.open(path) as reader:
            for name in reader.header.tensors:
                reader.read(name)
    except FormatError as error:
        return str(path) in str(error)
    return None


def test_every_truncation_is_a_format_error_or_only_lacks_padding(some_gguf):
    raw = some_gguf.read_bytes()
    with GgufReader.open(some_gguf) as reader:
        needed = max(place.end for place in reader._places.values())
    for length in range(0, len(raw), 3):
        some_gguf.write_bytes(raw[:length])
        assert read_all(some_gguf) is (None if length >= needed else True), length


def test_no_changed_byte_of_the_front_raises_anything_else(some_gguf):
    raw = some_gguf.read_bytes()
    with GgufReader.open(some_gguf) as reader:
        front = min(place.start for place in reader._places.values())
    for index in range(front):
        for change in (0xFF, 0x01, 0x80):
            damaged = bytearray(raw)
            damaged[index] ^= change
            some_gguf.write_bytes(damaged)
            assert read_all(some_gguf) in (None, True)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_mutations_raise_nothing_but_format_errors(data, some_gguf, tmp_path):
    raw = bytearray(some_gguf.read_bytes())
    for _ in range(data.draw(st.integers(1, 6))):
        start = data.draw(st.integers(0, 900))
        raw[start : start + data.draw(st.integers(0, 9))] = data.draw(st.binary(max_size=12))
    path = tmp_path / "mutated.gguf"
    path.write_bytes(raw)
    assert read_all(path) in (None, True)


def front(*, version=3, tensors=0, pairs=0, body=b""):
    return b"GGUF" + struct.pack("<IQQ", version, tensors, pairs) + body


def text(value):
    return struct.pack("<Q", len(value)) + value


ARCHITECTURE = text(b"general.architecture") + struct.pack("<I", 8) + text(b"llama")


def tensor(name=b"x", dims=(4,), kind=0, offset=0):
    return text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)


HUGE = (1 << 63) - 1
LIES = {
    "version 1": (front(version=1), "version"),
    "big endian": (front(version=0x03000000), "big-endian"),
    "tensor count": (front(tensors=HUGE, pairs=1, body=ARCHITECTURE), "room"),
    "pair count": (front(pairs=HUGE), "room"),
    "string length": (front(pairs=1, body=struct.pack("<Q", HUGE) + b"x" * 20), "ends in the middle"),
    "array length": (front(pairs=1, body=text(b"k") + struct.pack("<IIQ", 9, 4, HUGE)), "too long"),
    "array longer than the file": (front(pairs=1, body=text(b"k") + struct.pack("<IIQ", 9, 4, 1 << 20)), "room"),
    "string array": (front(pairs=1, body=text(b"k") + struct.pack("<IIQ", 9, 8, 2) + struct.pack("<QQ", HUGE, 0)), "longer"),
    "nested array": (front(pairs=1, body=text(b"k") + struct.pack("<IIQ", 9, 9, 1) + b"\0" * 16), "not supported"),
    "value type": (front(pairs=1, body=text(b"k") + struct.pack("<I", 77)), "unknown value type"),
    "boolean": (front(pairs=1, body=text(b"key") + struct.pack("<IB", 7, 2)), "not a boolean"),
    "text": (front(pairs=1, body=text(b"key") + struct.pack("<I", 8) + text(b"\xff\xfe")), "UTF-8"),
    "key twice": (front(pairs=2, body=ARCHITECTURE * 2), "twice"),
    "no architecture": (front(), "architecture"),
    "dimensions": (front(tensors=1, pairs=1, body=ARCHITECTURE + tensor(dims=(1,) * 5)), "dimensions"),
    "product of sizes": (front(tensors=1, pairs=1, body=ARCHITECTURE + tensor(dims=(1 << 62, 1 << 62))), "impossible shape"),
    "nothing times all": (front(tensors=1, pairs=1, body=ARCHITECTURE + tensor(dims=(0, 1 << 62))), "impossible shape"),
    "a long name": (front(tensors=1, pairs=1, body=ARCHITECTURE + tensor(b"x" * 1001)), "usable tensor name"),
    "offset": (front(tensors=1, pairs=1, body=ARCHITECTURE + tensor(offset=HUGE - 31 & ~31)), "beyond"),
    "unaligned": (front(tensors=1, pairs=1, body=ARCHITECTURE + tensor(offset=1) + b"\0" * 99), "aligned"),
    "type": (front(tensors=1, pairs=1, body=ARCHITECTURE + tensor(kind=999)), "unknown tensor type"),
    "block": (front(tensors=1, pairs=1, body=ARCHITECTURE + tensor(dims=(33,), kind=2)), "blocks"),
    "name twice": (front(tensors=2, pairs=1, body=ARCHITECTURE + tensor() * 2 + b"\0" * 99), "twice"),
    "overlap": (front(tensors=2, pairs=1, body=ARCHITECTURE + tensor() + tensor(b"y") + b"\0" * 99), "overlaps"),
    "alignment": (
        front(pairs=2, body=ARCHITECTURE + text(b"general.alignment") + struct.pack("<II", 4, 3)),
        "power of two",
    ),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_file_that_lies_is_refused_by_name_without_a_large_allocation(lie, tmp_path):
    raw, words = LIES[lie]
    path = tmp_path / "lie.gguf"
    path.write_bytes(raw)
    tracemalloc.start()
    with pytest.raises(FormatError, match=words):
        GgufReader.open(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000
