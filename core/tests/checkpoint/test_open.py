import json
import os
import subprocess
import sys

import numpy as np
import pytest
import safetensors.numpy
from apr_train.checkpoint.apr import AprWriter, TensorSpec
from apr_train.checkpoint.open import open_checkpoint
from apr_train.errors import FormatError


def write_apr(path):
    with AprWriter(path, {"model_type": "x"}, [TensorSpec("w", "F32", (2,))]) as writer:
        writer.write("w", np.ones(2, np.float32))


def test_the_first_bytes_decide_and_not_the_ending(tmp_path, some_gguf):
    some_gguf.rename(tmp_path / "a.apr")
    write_apr(tmp_path / "b.gguf")
    safetensors.numpy.save_file({"w": np.ones(2, np.float32)}, tmp_path / "c.bin")
    found = {}
    for name in ("a.apr", "b.gguf", "c.bin"):
        with open_checkpoint(tmp_path / name) as checkpoint:
            found[name] = checkpoint.header.format
    assert found == {"a.apr": "gguf", "b.gguf": "apr", "c.bin": "safetensors"}


def test_a_safetensors_header_whose_length_looks_like_a_brace_is_no_manifest(tmp_path):
    """A header of 123 bytes makes `{` the file's first byte, as in a JSON manifest."""
    text = json.dumps({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    path = tmp_path / "m"
    path.write_bytes((123).to_bytes(8, "little") + text.ljust(123) + b"\0" * 8)
    assert path.read_bytes()[:1] == b"{"
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.header.format == "safetensors"


def test_a_folder_with_one_apr_file_opens_it(tmp_path):
    write_apr(tmp_path / "model.apr")
    with open_checkpoint(tmp_path) as checkpoint:
        assert checkpoint.header.format == "apr"


@pytest.mark.rule("FALSIFY-APR-PRETRAIN-INIT-003")
def test_a_missing_file_is_an_error_with_the_rule_s_id(tmp_path):
    with pytest.raises(FormatError, match=r"FALSIFY-APR-PRETRAIN-INIT-003.*absent\.apr"):
        open_checkpoint(tmp_path / "absent.apr")


@pytest.mark.rule("FALSIFY-APR-PRETRAIN-INIT-004")
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "an empty file"),
        (b"GGUF", "4 bytes"),
        (b"hello, world", "hell"),
        (b"PK\x03\x04" + b"\0" * 20, "pickle is never read"),
        (b"\x80\x02" + b"\0" * 20, "pickle is never read"),
        (b"lmgg" + b"\0" * 20, "old GGML"),
        (b"<!DOCTYPE html><html>", "a web page"),
        (b"\n<!doctype html><html>", "a web page"),
        (b"<HTML><body>404</body>", "a web page"),
    ],
)
def test_an_empty_or_foreign_file_is_an_error_with_the_rule_s_id(content, words, tmp_path):
    path = tmp_path / "m"
    path.write_bytes(content)
    with pytest.raises(FormatError, match=f"FALSIFY-APR-PRETRAIN-INIT-004.*{words}"):
        open_checkpoint(path)


@pytest.mark.rule("FALSIFY-APR-PRETRAIN-INIT-004")
@pytest.mark.parametrize(
    ("content", "words"),
    [(b"<!doctype html><html>", "a web page"), (b"PK\x03\x04" + b"\0" * 20, "pickle is never read")],
)
def test_a_foreign_file_under_the_name_of_a_folder_s_weights_is_called_what_it_is(content, words, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(FormatError, match=f"FALSIFY-APR-PRETRAIN-INIT-004.*model.safetensors.*{words}"):
        open_checkpoint(tmp_path)


def test_a_header_as_long_as_a_pickle_s_first_bytes_say_is_a_header(tmp_path):
    text = json.dumps({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    raw = (640).to_bytes(8, "little") + text.ljust(640) + b"\0" * 8
    assert raw.startswith(b"\x80\x02")
    (tmp_path / "model.safetensors").write_bytes(raw)
    with open_checkpoint(tmp_path) as checkpoint:
        assert list(checkpoint.header.tensors) == ["w"]


def test_a_pipe_is_refused_instead_of_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FormatError, match="neither a file nor a folder"):
        open_checkpoint(tmp_path / "pipe")


def test_a_path_that_the_system_cannot_look_up_is_an_error_of_ours(tmp_path):
    with pytest.raises(FormatError, match="cannot be read"):
        open_checkpoint(tmp_path / ("x" * 5000))


def test_an_empty_folder_is_an_error(tmp_path):
    with pytest.raises(FormatError, match="holds no safetensors"):
        open_checkpoint(tmp_path)


def test_rope_layout_answers_what_the_file_does_not_say(make_gguf):
    path = make_gguf(architecture="mamba")
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.header.rope_rows is None
    with open_checkpoint(path, rope_layout="adjacent") as checkpoint:
        assert checkpoint.header.rope_rows == "adjacent"


def test_rope_layout_must_not_contradict_the_file(some_gguf):
    with pytest.raises(FormatError, match="another order"):
        open_checkpoint(some_gguf, rope_layout="split-half")


def test_opening_every_container_needs_no_torch(tmp_path, some_gguf):
    write_apr(tmp_path / "m.apr")
    safetensors.numpy.save_file({"w": np.ones(2, np.float32)}, tmp_path / "m.safetensors")
    code = (
        "import sys\n"
        "from apr_train.checkpoint.open import open_checkpoint\n"
        "for path in sys.argv[1:]:\n"
        "    with open_checkpoint(path) as c:\n"
        "        [c.read(name) for name in c.header.tensors]; c.content_hash()\n"
        "assert 'torch' not in sys.modules\n"
    )
    files = [tmp_path / "m.apr", tmp_path / "m.safetensors", some_gguf]
    done = subprocess.run([sys.executable, "-c", code, *files], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
