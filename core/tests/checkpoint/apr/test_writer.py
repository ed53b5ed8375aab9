"""Writing: what is refused, what happens to the old file when it goes wrong, and how much memory it takes."""

from __future__ import annotations

import resource
import signal
import subprocess
import sys
import textwrap
import time
import tracemalloc

import numpy as np
import pytest
from apr_train.checkpoint.apr import AprWriter, Flags, TensorSpec, open_apr, rewrite
from apr_train.errors import FormatError, OutputError

MEGABYTE = 1 << 20


def litter(folder):
    return sorted(path.name for path in folder.glob(".*"))


def test_a_round_trip_keeps_every_byte(small_file, small_tensors):
    with open_apr(small_file) as reader:
        for name, (spec, data) in small_tensors.items():
            assert bytes(reader.read_raw(name)) == data.tobytes()
            assert reader.header.tensors[name].shape == spec.shape
            assert not reader.read(name).data.flags.writeable


def test_views_outlive_the_reader(small_file, small_tensors):
    with open_apr(small_file) as reader:
        view = reader.read("model.embed_tokens.weight")
    np.testing.assert_array_equal(view.data, small_tensors["model.embed_tokens.weight"][1])


def test_scalars_and_empty_tensors_are_kept(tmp_path):
    specs = [TensorSpec("s", "F64", ()), TensorSpec("e", "F32", (0, 3)), TensorSpec("q", "APR_Q8", (0,))]
    with AprWriter(tmp_path / "x.apr", {}, specs) as writer:
        writer.write("s", np.array(2.5))
        writer.write("e", b"")
    with open_apr(tmp_path / "x.apr") as reader:
        assert reader.read("s").data.item() == 2.5
        assert reader.read("e").data.shape == (0, 3)
        assert reader.read("q").data.shape == (0,)


def test_a_model_without_tensors_is_a_file(tmp_path):
    with AprWriter(tmp_path / "x.apr", {}, []):
        pass
    with open_apr(tmp_path / "x.apr") as reader:
        reader.verify()
        assert reader.header.tensors == {}


def test_pieces_make_the_same_file_as_the_whole(tmp_path):
    data = np.arange(1000, dtype=np.float32)
    for name, value in {"whole": data, "pieces": (data[start : start + 7] for start in range(0, 1000, 7))}.items():
        with AprWriter(tmp_path / name, {}, [TensorSpec("t", "F32", (1000,))]) as writer:
            writer.write("t", value)
    assert (tmp_path / "whole").read_bytes() == (tmp_path / "pieces").read_bytes()


def test_other_flags_are_kept_and_row_major_is_always_set(tmp_path):
    with AprWriter(tmp_path / "x.apr", {}, [], flags=1 << 9):
        pass
    assert (tmp_path / "x.apr").read_bytes()[6:8] == b"\x00\x06"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (TensorSpec("t", "Q8_0", (32,)), "no id for Q8_0"),
        (TensorSpec("t", "Q4_K", (100,)), "cannot have"),
        (TensorSpec("t", "F32", (1,) * 9), "cannot have"),
        (TensorSpec("t", "F32", (-1,)), "cannot have"),
        (TensorSpec("", "F32", (1,)), "name"),
        (TensorSpec("a\0b", "F32", (1,)), "name"),
        (TensorSpec("ä" * 129, "F32", (1,)), "name"),
        (TensorSpec("\ud800", "F32", (1,)), "Unicode"),
    ],
)
def test_a_tensor_that_the_format_cannot_hold_is_refused_before_anything_is_written(tmp_path, spec, message):
    with pytest.raises(FormatError, match=message):
        AprWriter(tmp_path / "x.apr", {}, [spec])
    assert list(tmp_path.iterdir()) == []


def test_a_tensor_declared_twice_is_refused(tmp_path):
    with pytest.raises(FormatError, match="twice"):
        AprWriter(tmp_path / "x.apr", {}, [TensorSpec("t", "F32", (1,))] * 2)


def write_all(path, writes):
    with AprWriter(path, {}, [TensorSpec("t", "F32", (2,))]) as writer:
        for name, data in writes:
            writer.write(name, data)


@pytest.mark.parametrize(
    ("writes", "message"),
    [
        ([], "not written"),
        ([("t", b"1234")], "fit"),
        ([("t", bytes(12))], "fit"),
        ([("u", bytes(8))], "not among"),
        ([("t", bytes(8)), ("t", bytes(8))], "twice"),
        ([("t", [bytes(4), bytes(4), bytes(4)])], "fit"),
    ],
)
def test_a_wrong_write_leaves_the_old_file_and_no_litter(tmp_path, writes, message):
    path = tmp_path / "x.apr"
    path.write_bytes(b"old")
    with pytest.raises(OutputError, match=message):
        write_all(path, writes)
    assert path.read_bytes() == b"old"
    assert litter(tmp_path) == []


def test_metadata_is_rewritten_in_place_with_every_tensor_bit_identical(small_file, small_tensors):
    with open_apr(small_file) as reader:
        counts: list[int] = []
        rewrite(reader, small_file, {**reader.raw_metadata, "license": "MIT"}, progress=counts.append)
    with open_apr(small_file) as reader:
        assert reader.raw_metadata["license"] == "MIT"
        assert {name: bytes(reader.read_raw(name)) for name in small_tensors} == {
            name: data.tobytes() for name, (_, data) in small_tensors.items()
        }
        assert sum(counts) == sum(entry.size for entry in reader.entries.values())


def test_rewriting_with_the_same_metadata_gives_the_same_file(tmp_path):
    specs = [TensorSpec(name, "F32", (3,)) for name in ("z", "a", "m")]
    with AprWriter(tmp_path / "x.apr", {"name": "x"}, specs, flags=Flags.VOCABULARY, keep_order=True) as writer:
        for number, spec in enumerate(specs):
            writer.write(spec.name, np.full(3, number, np.float32))
    with open_apr(tmp_path / "x.apr") as reader:
        rewrite(reader, tmp_path / "y.apr", reader.raw_metadata)
    assert (tmp_path / "x.apr").read_bytes() == (tmp_path / "y.apr").read_bytes()


def test_a_damaged_source_is_not_rewritten(small_file, tmp_path):
    raw = small_file.read_bytes()
    small_file.write_bytes(raw[:-10] + b"\x01" + raw[-9:])
    with open_apr(small_file) as reader, pytest.raises(FormatError, match="checksum"):
        rewrite(reader, tmp_path / "y.apr", {})
    assert not (tmp_path / "y.apr").exists()


def test_peak_memory_is_one_tensor(tmp_path):
    specs = [TensorSpec(f"t{number}", "F32", (MEGABYTE // 4,)) for number in range(16)]
    tracemalloc.start()
    with AprWriter(tmp_path / "x.apr", {}, specs) as writer:
        for spec in specs:
            writer.write(spec.name, np.zeros(spec.shape, np.float32))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2.2 * MEGABYTE  # the one being made while the last is still named


WRITE = """
import sys, time, numpy as np
from apr_train.errors import AprTrainError
from apr_train.checkpoint.apr import AprWriter, TensorSpec
path, pause = sys.argv[1], float(sys.argv[2])
try:
    with AprWriter(path, {}, [TensorSpec("t", "F32", (1 << 18,))]) as writer:
        def pieces():
            for number in range(16):
                yield np.full(1 << 14, number, np.float32)
                if number == 8:
                    print("half", flush=True)
                    time.sleep(pause)
        writer.write("t", pieces())
except AprTrainError as error:
    print(error)
    sys.exit(7)
"""


def test_a_full_disk_leaves_the_old_file_whole(tmp_path):
    path = tmp_path / "x.apr"
    path.write_bytes(b"old")
    limit = textwrap.dedent("""
        import resource
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
    """)
    done = subprocess.run(
        [sys.executable, "-c", limit + WRITE, path, "0"], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 7, done.stderr
    assert "cannot be written" in done.stdout
    assert "limit on file sizes" in done.stdout
    assert path.read_bytes() == b"old"
    assert litter(tmp_path) == []


def test_a_killed_writer_leaves_the_old_file_and_the_next_clears_the_litter(tmp_path):
    path = tmp_path / "x.apr"
    path.write_bytes(b"old")
    process = subprocess.Popen([sys.executable, "-c", WRITE, path, "60"], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "half\n"
    with AprWriter(tmp_path / "other.apr", {}, []):  # another target: no business of ours
        pass
    assert len(litter(tmp_path)) == 1
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert path.read_bytes() == b"old"
    assert len(litter(tmp_path)) == 1
    with AprWriter(path, {}, []):
        pass
    assert litter(tmp_path) == []
    assert path.read_bytes()[:4] == b"APR\0"


def test_an_interrupted_writer_cleans_up_after_itself(tmp_path):
    path = tmp_path / "x.apr"
    with pytest.raises(KeyboardInterrupt), AprWriter(path, {}, [TensorSpec("t", "F32", (2,))]):
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_the_checksum_pass_is_not_slower_than_zlib(tmp_path):
    """Guards against a CRC library that lost its fast path; a ratio, with much room."""
    import zlib

    from isal.isal_zlib import crc32

    data = bytes(8 * MEGABYTE)
    times = {crc32: [], zlib.crc32: []}
    for _ in range(5):
        for function, found in times.items():
            start = time.perf_counter()
            function(data)
            found.append(time.perf_counter() - start)
    assert min(times[crc32]) < 1.5 * min(times[zlib.crc32])


def test_opening_a_large_file_reads_only_its_header(tmp_path):
    path = tmp_path / "x.apr"
    with AprWriter(path, {}, [TensorSpec("t", "F32", (16 * MEGABYTE,))]) as writer:
        writer.write("t", (np.zeros(MEGABYTE, np.float32) for _ in range(16)))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with open_apr(path) as reader:
        assert reader.header.parameter_count == 16 * MEGABYTE
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 8 * 1024
