"""Stamping: what changes, what must not, and what a crash leaves."""

import fcntl
import json
import os
import zlib

import numpy as np
import pytest
from apr_train.artifact.provenance import stamp
from apr_train.checkpoint.apr import AprWriter, Flags, TensorSpec, in_place, open_apr, rewrite
from apr_train.checkpoint.validation import validate
from apr_train.errors import AprTrainError, ConfigError, FormatError, OutputError

SPECS = [TensorSpec("b", "F32", (5, 3)), TensorSpec("a", "BF16", (40,)), TensorSpec("empty", "F32", (0,))]


def make(path, *, flags=0, **metadata):
    source = np.random.default_rng(0)
    with AprWriter(path, {"model_type": "x", "hidden_size": 8, **metadata}, SPECS, flags=flags) as writer:
        for spec in SPECS:
            writer.write(spec.name, source.bytes(spec.nbytes))
    return path


def tensors(path):
    with open_apr(path) as reader:
        return {name: bytes(reader.read_raw(name)) for name in reader.header.tensors}


def data_of(raw):
    """The tensor section by the documented layout, without this package."""
    return raw[int.from_bytes(raw[32:40], "little") : -4]


def check_checksums(raw):
    assert zlib.crc32(raw[:40] + raw[44:64]) == int.from_bytes(raw[40:44], "little")
    assert zlib.crc32(raw[:-4]) == int.from_bytes(raw[-4:], "little")


@pytest.fixture
def file(tmp_path):
    return make(tmp_path / "x.apr", license="ISC", data_source="a" * 20)


@pytest.mark.parametrize("data_source", ["b" * 20, "b" * 2000])
def test_tensor_data_is_bit_identical_and_both_checksums_are_renewed(file, data_source):
    before, old = tensors(file), file.read_bytes()
    done = stamp(file, {"license": "mit", "data_source": data_source})
    new = file.read_bytes()
    assert done.in_place == (len(new) == len(old))
    assert tensors(file) == before
    assert data_of(new) == data_of(old)
    check_checksums(new)
    assert validate(file) == []
    size = int.from_bytes(new[20:24], "little")
    written = json.loads(new[64 : 64 + size])
    assert (written["license"], written["data_source"], written["hidden_size"]) == ("MIT", data_source, 8)


def test_in_place_writes_what_a_copy_would(file, tmp_path):
    with open_apr(file) as reader:
        rewrite(reader, tmp_path / "copy.apr", {**reader.raw_metadata, "license": "MIT"})
    assert stamp(file, {"license": "MIT"}).in_place
    assert file.read_bytes() == (tmp_path / "copy.apr").read_bytes()


def test_in_place_reads_and_writes_no_tensor(file, monkeypatch):
    inode = file.stat().st_ino
    monkeypatch.setattr("apr_train.artifact.provenance.rewrite", None)
    touched = []
    pwrite = os.pwrite
    monkeypatch.setattr("os.pwrite", lambda fd, data, at: touched.append((at, len(data))) or pwrite(fd, data, at))
    stamp(file, {"license": "MIT"})
    start = int.from_bytes(file.read_bytes()[24:32], "little")
    assert file.stat().st_ino == inode
    assert all(at + count <= start or at == file.stat().st_size - 4 for at, count in touched)


def test_other_names_of_a_file_keep_what_it_was(file, tmp_path):
    old = file.read_bytes()
    os.link(file, tmp_path / "other.apr")
    assert not stamp(file, {"license": "MIT"}).in_place
    assert (tmp_path / "other.apr").read_bytes() == old


def test_a_link_is_followed_and_stays_a_link(file, tmp_path):
    (tmp_path / "link.apr").symlink_to(file)
    stamp(tmp_path / "link.apr", {"license": "MIT", "name": "x" * 200})
    assert (tmp_path / "link.apr").is_symlink()
    with open_apr(file) as reader:
        assert reader.raw_metadata["license"] == "MIT"


def test_the_same_stamp_twice_writes_nothing(file):
    stamp(file, {"license": "MIT"})
    before = file.stat()
    done = stamp(file, {"license": "mit"})
    assert not done.changes
    assert file.stat().st_mtime_ns == before.st_mtime_ns


def test_null_keys_and_aliases_of_an_older_writer_survive(tmp_path):
    path = make(tmp_path / "x.apr", n_layer=3)
    stamp(path, {"license": "MIT"})
    with open_apr(path) as reader:
        assert reader.raw_metadata["num_layers"] == 3
        assert reader.raw_metadata["license"] == "MIT"


class Crash(BaseException):
    """The machine stops."""


@pytest.mark.parametrize("at", range(4))
def test_a_crash_in_any_write_is_refused_by_readers_and_mended_by_the_next_stamp(file, monkeypatch, at):
    old = file.read_bytes()
    pwrite, count = os.pwrite, iter(range(100))

    def crashing(descriptor, data, offset):
        if next(count) == at:
            pwrite(descriptor, bytes(data)[: len(data) // 2], offset)
            raise Crash
        return pwrite(descriptor, data, offset)

    with monkeypatch.context() as patch, pytest.raises(Crash):
        patch.setattr("apr_train.checkpoint.apr.in_place.os.pwrite", crashing)
        stamp(file, {"license": "MIT"})
    if at == 0:
        assert file.read_bytes() == old  # the half of the header that was written is what stood there
    else:
        with pytest.raises(FormatError, match="stamp puts the old metadata back"):
            open_apr(file, verify=False)
    assert stamp(file, {"license": "ISC"}).recovered == (at > 0)
    assert file.read_bytes() == old
    assert [item.name for item in file.parent.iterdir()] == ["x.apr"]


def test_an_undo_file_of_another_file_is_refused(file, tmp_path):
    other = make(tmp_path / "y.apr", license="ISC", name="longer " * 40)
    with open_apr(other) as reader:
        in_place._write_undo(file, b"front", reader.fixed.data_offset, b"1234")
    raw = bytearray(file.read_bytes())
    raw[41] ^= 1
    file.write_bytes(raw)
    with pytest.raises(FormatError, match="not this file's"):
        stamp(file, {"license": "MIT"})


def test_a_stale_undo_file_is_not_applied_to_a_whole_file(file):
    old = file.read_bytes()
    in_place._write_undo(file, bytes(128), len(old), bytes(4))
    assert not stamp(file, {"license": "MIT"}).recovered
    with open_apr(file) as reader:
        reader.verify()
    assert not in_place.undo_path(file).exists()


def test_damage_in_the_data_stays_visible_after_a_stamp_in_place(file):
    raw = bytearray(file.read_bytes())
    raw[-70] ^= 1
    file.write_bytes(raw)
    assert stamp(file, {"license": "MIT"}).in_place
    with open_apr(file) as reader, pytest.raises(FormatError, match="damaged"):
        reader.verify()


def test_damaged_data_is_not_copied(file):
    raw = bytearray(file.read_bytes())
    raw[-70] ^= 1
    file.write_bytes(raw)
    with pytest.raises(FormatError, match="damaged"):
        stamp(file, {"name": "x" * 500})
    assert file.read_bytes() == raw


def test_two_stamps_at_once_do_not_mix(file):
    with file.open("r+b") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(OutputError, match="another process"):
            stamp(file, {"license": "MIT"})


def test_a_signed_file_is_refused(tmp_path):
    path = make(tmp_path / "x.apr", flags=Flags.SIGNED)
    with pytest.raises(FormatError, match="signature"):
        stamp(path, {"license": "MIT"})


@pytest.mark.parametrize("content", [b"GGUF" + bytes(100), b"", b"{}", bytes(200)])
def test_what_is_no_apr_file_is_refused(tmp_path, content):
    path = tmp_path / "x.apr"
    path.write_bytes(content)
    with pytest.raises(AprTrainError):
        stamp(path, {"license": "MIT"})


@pytest.mark.parametrize("values", [{"license": "mitt"}, {"name": "  "}, {"hidden_size": "9"}, {"name": "\ud800"}])
def test_bad_values_are_refused_before_the_file_is_opened(tmp_path, values):
    with pytest.raises(ConfigError):
        stamp(tmp_path / "missing.apr", values)
