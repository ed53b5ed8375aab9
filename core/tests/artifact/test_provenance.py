"""Stamping: what changes, what must not, and what a crash leaves."""

import errno
import json
import os
import shutil
import subprocess
import sys
import zlib

import numpy as np
import pytest
from apr_train import atomic
from apr_train.artifact import provenance
from apr_train.artifact.provenance import stamp
from apr_train.checkpoint.apr import AprWriter, Flags, TensorSpec, open_apr
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


def validate_file(path):
    with open_apr(path, verify=False) as reader:
        return validate(reader)


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
    stamp(file, {"license": "mit", "data_source": data_source})
    new = file.read_bytes()
    assert tensors(file) == before
    assert data_of(new) == data_of(old)
    check_checksums(new)
    assert validate_file(file) == []
    size = int.from_bytes(new[20:24], "little")
    written = json.loads(new[64 : 64 + size])
    assert (written["license"], written["data_source"], written["hidden_size"]) == ("MIT", data_source, 8)


def test_other_names_of_a_file_keep_what_it_was(file, tmp_path):
    old = file.read_bytes()
    os.link(file, tmp_path / "other.apr")
    stamp(file, {"license": "MIT"})
    assert (tmp_path / "other.apr").read_bytes() == old
    assert file.read_bytes() != old


def test_a_link_is_followed_and_stays_a_link(file, tmp_path):
    (tmp_path / "link.apr").symlink_to(file)
    stamp(tmp_path / "link.apr", {"license": "MIT", "name": "x" * 200})
    assert (tmp_path / "link.apr").is_symlink()
    with open_apr(file) as reader:
        assert reader.raw_metadata["license"] == "MIT"


def test_the_same_stamp_twice_writes_nothing(file):
    stamp(file, {"license": "MIT"})
    before = file.stat()
    assert stamp(file, {"license": "mit"}) == {}
    assert file.stat().st_mtime_ns == before.st_mtime_ns


def test_null_keys_and_aliases_of_an_older_writer_survive(tmp_path):
    path = make(tmp_path / "x.apr", n_layer=3)
    stamp(path, {"license": "MIT"})
    with open_apr(path) as reader:
        assert reader.raw_metadata["num_layers"] == 3
        assert reader.raw_metadata["license"] == "MIT"


class Crash(BaseException):
    """The machine stops."""


@pytest.mark.parametrize("at", range(6))
def test_a_write_that_fails_leaves_the_old_file_and_no_litter(file, monkeypatch, at):
    """The writes: the front, two tensors and the padding of each, the trailing checksum."""
    old, pwrite, count = file.read_bytes(), os.pwrite, iter(range(100))

    def crashing(descriptor, data, offset):
        if next(count) == at:
            pwrite(descriptor, bytes(data)[: len(data) // 2], offset)
            raise Crash
        return pwrite(descriptor, data, offset)

    with monkeypatch.context() as patch, pytest.raises(Crash):
        patch.setattr("os.pwrite", crashing)
        stamp(file, {"license": "MIT"})
    assert file.read_bytes() == old
    assert [item.name for item in file.parent.iterdir()] == ["x.apr"]


KILLED = """
import sys, time
from apr_train.artifact import provenance
from apr_train.artifact.provenance import stamp

def progress(count):
    print("copying", flush=True)
    time.sleep(60)

stamp(sys.argv[1], {"license": "MIT"}, progress=progress)
"""


def test_a_killed_stamp_leaves_the_old_file_and_the_next_clears_the_litter(file):
    old = file.read_bytes()
    with subprocess.Popen([sys.executable, "-c", KILLED, file], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "copying\n"
        process.kill()
    assert file.read_bytes() == old
    assert len(list(file.parent.iterdir())) == 2
    assert stamp(file, {"license": "MIT"}) == {"license": ("ISC", "MIT")}
    assert validate_file(file) == []
    assert [item.name for item in file.parent.iterdir()] == ["x.apr"]


def test_a_stamp_during_another_is_refused_and_undoes_nothing(file):
    refused = []

    def second(count):
        with pytest.raises(OutputError, match="another process is writing it") as caught:
            stamp(file, {"author": "someone"})
        refused.append(caught.value.finding.hint)

    stamp(file, {"license": "MIT"}, progress=second)
    assert refused[0] == "Wait for it to end, then stamp again."
    stamp(file, {"author": "someone"})
    assert validate_file(file) == []
    with open_apr(file) as reader:
        assert (reader.raw_metadata["license"], reader.raw_metadata["author"]) == ("MIT", "someone")
    assert [item.name for item in file.parent.iterdir()] == ["x.apr"]


def test_a_stamp_that_opened_a_file_which_was_then_replaced_is_refused(file, monkeypatch):
    def replaced(descriptor):
        shutil.copy(file, file.with_name("new"))
        file.with_name("new").rename(file)
        return True

    monkeypatch.setattr(provenance, "lock", replaced)
    with pytest.raises(OutputError, match="another process"):
        stamp(file, {"license": "MIT"})
    with open_apr(file) as reader:
        assert reader.raw_metadata["license"] == "ISC"


def test_on_a_file_system_without_locks_a_file_is_stamped_without_one(file, monkeypatch):
    def refuse(descriptor, how):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(atomic.fcntl, "flock", refuse)
    stamp(file, {"license": "MIT"})
    with open_apr(file) as reader:
        assert reader.raw_metadata["license"] == "MIT"


def test_damaged_data_is_not_copied(file):
    raw = bytearray(file.read_bytes())
    raw[-70] ^= 1
    file.write_bytes(raw)
    with pytest.raises(FormatError, match="damaged"):
        stamp(file, {"name": "x" * 500})
    assert file.read_bytes() == raw


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
