"""A damaged or hostile file is a FormatError, whatever is wrong with it; with its checksum it never yields other data."""

from __future__ import annotations

import os
import struct
import tracemalloc
from pathlib import Path

import pytest
from apr_train.checkpoint.apr import open_apr
from apr_train.checkpoint.validation import validate
from apr_train.errors import Finding, FormatError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

HEADER_FIELDS = {
    "magic": (0, "<I"),
    "major": (4, "<B"),
    "minor": (5, "<B"),
    "flags": (6, "<H"),
    "tensor count": (8, "<I"),
    "metadata offset": (12, "<Q"),
    "metadata size": (20, "<I"),
    "index offset": (24, "<Q"),
    "data offset": (32, "<Q"),
    "checksum": (40, "<I"),
    **{f"reserved {position}": (position, "<I") for position in range(44, 64, 4)},
}


def consume(path: Path, *, verify: bool = True) -> dict[str, bytes] | None:
    """Everything in the file by every way of reading, or None if it is refused; any other exception fails the test."""
    try:
        with open_apr(path, verify=verify) as reader:
            found = {name: bytes(reader.read_raw(name)) for name in reader.header.tensors}
            for name in found:
                reader.read(name)
            with reader.stream() as stream:
                streamed = {name: b"".join(bytes(chunk) for chunk in stream.chunks(name)) for name in found}
            assert streamed == found
            return found
    except FormatError:
        return None


def faults(path: Path, *, data: bool = False) -> list[Finding]:
    """What a validation finds behind a good structure."""
    try:
        with open_apr(path, verify=False) as reader:
            return validate(reader, data=data)
    except FormatError:
        return []


def field_values(raw: bytes, offset: int, form: str) -> list[int]:
    """0, the maximum, and one more and one less than what is there."""
    (value,) = struct.unpack_from(form, raw, offset)
    top = (1 << 8 * struct.calcsize(form)) - 1
    near = {(value - 1) & top, (value + 1) & top, 0, top, top >> 1, (top >> 1) + 1}
    return sorted(near - {value})


def with_field(raw: bytes, offset: int, form: str, value: int) -> bytes:
    return raw[:offset] + struct.pack(form, value) + raw[offset + struct.calcsize(form) :]


def index_fields(raw: bytes) -> list[tuple[str, int, str]]:
    """Where each field of each index entry lies, walked here independently of the reader."""
    (count,) = struct.unpack_from("<I", raw, 8)
    (position,) = struct.unpack_from("<Q", raw, 24)
    found = []
    for number in range(count):
        (size,) = struct.unpack_from("<H", raw, position)
        found.append((f"{number} name length", position, "<H"))
        position += 2 + size
        found += [(f"{number} dtype", position, "<B"), (f"{number} dimensions", position + 1, "<B")]
        dimensions = raw[position + 1]
        position += 2
        for field in [*(f"dimension {axis}" for axis in range(dimensions)), "offset", "size"]:
            found.append((f"{number} {field}", position, "<Q"))
            position += 8
    return found


@pytest.fixture
def raw(small_file) -> bytes:
    return small_file.read_bytes()


@pytest.mark.parametrize("mask", [0xFF, 0x01, 0x80])
def test_every_flipped_byte_is_noticed(small_file, raw, mask):
    for position in range(len(raw)):
        small_file.write_bytes(raw[:position] + bytes([raw[position] ^ mask]) + raw[position + 1 :])
        assert consume(small_file) is None, position


@pytest.mark.parametrize("mask", [0xFF, 0x01, 0x80])
def test_every_flipped_byte_behind_good_checksums_is_refused_or_read(small_file, raw, mask, reseal):
    for position in range(len(raw)):
        changed = reseal(raw[:position] + bytes([raw[position] ^ mask]) + raw[position + 1 :])
        small_file.write_bytes(changed)
        consume(small_file)
        consume(small_file, verify=False)
        faults(small_file, data=True)


def test_every_truncation_is_found_from_the_header_alone(small_file, raw, reseal):
    for length in range(len(raw)):
        for shorter in (raw[:length], reseal(raw[:length])):
            small_file.write_bytes(shorter)
            with pytest.raises(FormatError):
                open_apr(small_file, verify=False)


def test_bytes_after_the_end_are_refused(small_file, raw, reseal):
    for extra in (1, 4, 64, 100):
        for longer in (raw + bytes(extra), reseal(raw + bytes(extra))):
            small_file.write_bytes(longer)
            with pytest.raises(FormatError, match="after the end"):
                open_apr(small_file, verify=False)


@pytest.mark.parametrize("field", HEADER_FIELDS)
def test_a_header_field_at_its_extremes_is_refused(small_file, raw, field, reseal):
    offset, form = HEADER_FIELDS[field]
    for value in field_values(raw, offset, form):
        changed = with_field(raw, offset, form, value)
        small_file.write_bytes(changed)
        assert consume(small_file) is None
        sealed = reseal(changed)
        small_file.write_bytes(sealed)
        read = consume(small_file)
        assert read is None or field in ("flags", "checksum"), value  # the checksum's own bytes were set right again


def test_an_index_field_at_its_extremes_is_refused_or_harmless(small_file, raw, reseal):
    for name, offset, form in index_fields(raw):
        for value in field_values(raw, offset, form):
            changed = with_field(raw, offset, form, value)
            small_file.write_bytes(changed)
            assert consume(small_file) is None, (name, value)
            small_file.write_bytes(reseal(changed))
            read = consume(small_file)
            # I32 for F32, or 34 elements in the padded blocks of 33: nothing can know
            assert read is None or "dtype" in name or (name, value) == ("2 dimension 0", 34), (name, value)


def test_a_mutated_file_allocates_a_small_multiple_of_its_size(small_file, raw, reseal):
    cases = [(offset, form) for offset, form in HEADER_FIELDS.values()]
    cases += [(offset, form) for _, offset, form in index_fields(raw)]
    consume(small_file)  # imports and caches are not the file's doing
    for offset, form in cases:
        for value in field_values(raw, offset, form):
            small_file.write_bytes(reseal(with_field(raw, offset, form, value)))
            tracemalloc.start()
            consume(small_file)
            _, peak = tracemalloc.get_traced_memory()
            tracemalloc.stop()
            assert peak < 100 * len(raw), (offset, value, peak)


mutations = st.lists(
    st.one_of(
        st.tuples(st.just("set"), st.integers(0, 1 << 20), st.integers(0, 255)),
        st.tuples(st.just("set64"), st.integers(0, 1 << 20), st.integers(0, (1 << 64) - 1)),
        st.tuples(st.just("cut"), st.integers(0, 1 << 20), st.integers(1, 64)),
        st.tuples(st.just("insert"), st.integers(0, 1 << 20), st.integers(0, 255)),
        st.tuples(st.just("copy"), st.integers(0, 1 << 20), st.integers(0, 1 << 20)),
    ),
    min_size=1,
    max_size=6,
)


def mutate(raw: bytes, steps: list[tuple[str, int, int]]) -> bytes:
    for kind, position, value in steps:
        at = position % max(len(raw), 1)
        if kind == "set":
            raw = raw[:at] + bytes([value]) + raw[at + 1 :]
        elif kind == "set64":
            raw = raw[:at] + struct.pack("<Q", value) + raw[at + 8 :]
        elif kind == "cut":
            raw = raw[:at] + raw[at + value :]
        elif kind == "insert":
            raw = raw[:at] + bytes([value]) + raw[at:]
        else:
            source = value % max(len(raw), 1)
            raw = raw[:at] + raw[source : source + 16] + raw[at + 16 :]
    return raw


@settings(max_examples=2500, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=mutations, sealed=st.booleans())
def test_thousands_of_mutations_raise_nothing_but_format_errors(small_file, raw, reseal, steps, sealed):
    changed = mutate(raw, steps)
    path = small_file.with_name("mutated.apr")
    path.write_bytes(reseal(changed) if sealed else changed)
    read = consume(path)
    if not sealed and changed != raw:
        assert read is None
    consume(path, verify=False)


@pytest.mark.parametrize(
    ("start", "message"),
    [
        (b"APRN", "version 1.*apr convert"),
        (b"APR1", "draft.*APR1"),
        (b"APR2", "draft.*APR2"),
        (b"GGUF", "not an .apr file"),
        (b"", "empty file"),
    ],
)
def test_other_containers_are_refused_by_name(tmp_path, start, message):
    path = tmp_path / "x.apr"
    path.write_bytes(start + bytes(100 if start else 0))
    with pytest.raises(FormatError, match=message):
        open_apr(path)


@pytest.mark.parametrize(
    ("bit", "message"),
    [(0, "LZ4"), (1, "Zstandard"), (2, "encrypted"), (11, "column-major.*Import"), (12, "not known"), (15, "not known")],
)
def test_features_that_cannot_be_read_are_refused_by_name(small_file, raw, reseal, bit, message):
    (flags,) = struct.unpack_from("<H", raw, 6)
    small_file.write_bytes(reseal(with_field(raw, 6, "<H", flags | 1 << bit)))
    with pytest.raises(FormatError, match=message):
        open_apr(small_file)


@pytest.mark.parametrize("bits", [0, 1 << 3, 1 << 5, 1 << 6, 1 << 7, 1 << 8, 1 << 9])
def test_informational_flags_and_an_absent_row_major_bit_are_read(small_file, raw, reseal, bits):
    small_file.write_bytes(reseal(with_field(raw, 6, "<H", bits)))
    assert consume(small_file)


def test_a_signed_file_says_that_the_signature_was_not_checked(small_file, raw, reseal):
    small_file.write_bytes(reseal(with_field(raw, 6, "<H", 1 << 10 | 1 << 3)))
    (finding,) = faults(small_file)
    assert finding.severity == "warning"
    assert "signature" in finding.problem


@pytest.mark.parametrize("name", [b"a\0b", b"\xff\xfe", b"\xc3"])
def test_a_name_that_is_not_text_is_refused(small_file, raw, reseal, name):
    small_file.write_bytes(reseal(raw.replace(b"x.q8", (name + b"zzzz")[:4])))
    with pytest.raises(FormatError, match="name"):
        open_apr(small_file)


def test_unsorted_and_duplicate_names_are_refused(small_file, raw, reseal):
    small_file.write_bytes(reseal(raw.replace(b"x.q8", b"a.q8")))
    with pytest.raises(FormatError, match="not sorted"):
        open_apr(small_file)
    small_file.write_bytes(reseal(raw.replace(b"x.q8", b"x.q4")))
    with pytest.raises(FormatError, match="twice"):
        open_apr(small_file)


def test_overlapping_tensors_are_refused(small_file, raw, reseal):
    offsets = [offset for name, offset, _ in index_fields(raw) if name.endswith(" offset")]
    small_file.write_bytes(reseal(with_field(raw, offsets[2], "<Q", 0)))
    with pytest.raises(FormatError, match="overlap"):
        open_apr(small_file)


@pytest.mark.parametrize("kind", ["missing", "folder", "fifo", "nul"])
def test_what_is_no_file_is_refused_without_hanging(tmp_path, kind):
    path = tmp_path / kind
    if kind == "folder":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "nul":
        path = tmp_path / "a\0b"
    with pytest.raises(FormatError):
        open_apr(path)


def test_a_plain_read_of_damaged_data_raises_unless_verification_is_off(small_file, raw):
    position = raw.rindex(struct.pack("<3b", 1, -2, 3))
    small_file.write_bytes(raw[:position] + b"\x05" + raw[position + 1 :])
    with open_apr(small_file) as reader, pytest.raises(FormatError, match="checksum"):
        reader.read("x.q8")
    with open_apr(small_file) as reader, pytest.raises(FormatError, match="checksum"):
        reader.read_raw("x.q8")
    with open_apr(small_file, verify=False) as reader:
        assert reader.read("x.q8").data.tolist() == [2.5, -1.0, 1.5]


def test_the_header_is_there_without_reading_damaged_data(small_file, raw):
    small_file.write_bytes(raw[:-10] + b"\x01" + raw[-9:])
    with open_apr(small_file) as reader:
        assert len(reader.header.tensors) == 4


def test_a_file_that_shrinks_while_it_is_open_is_a_format_error(small_file, raw):
    with open_apr(small_file) as reader:
        small_file.write_bytes(raw[:-100])
        with pytest.raises(FormatError, match="shorter"):
            reader.verify()
