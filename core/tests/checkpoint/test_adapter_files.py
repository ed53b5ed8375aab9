"""PEFT's two files, byte for byte against the safetensors library, and what is refused."""

import json

import numpy as np
import pytest
from apr_train.checkpoint.adapter_files import open_adapter, write_adapter
from apr_train.checkpoint.checkpoint import TensorView
from apr_train.errors import FormatError
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

A, B = np.arange(6, dtype=np.float32).reshape(2, 3), np.arange(8, dtype=np.float32).reshape(4, 2)
NAMES = {"m.q.lora_A.weight": A, "m.q.lora_B.weight": B}


def write(folder):
    views = {name: TensorView("F32", array) for name, array in NAMES.items()}
    write_adapter(folder, {"r": 2, "peft_type": "LORA"}, views, note={"apr_train.step": "7"})
    return folder


def test_what_is_written_is_what_safetensors_reads_and_what_is_read_back(tmp_path):
    found = open_adapter(write(tmp_path))
    with safe_open(tmp_path / "adapter_model.safetensors", "np") as file:
        assert file.metadata() == {"format": "pt", "apr_train.step": "7"}
    theirs = load_file(tmp_path / "adapter_model.safetensors")
    assert theirs.keys() == {f"base_model.model.{name}" for name in NAMES}
    for name, array in NAMES.items():
        np.testing.assert_array_equal(theirs[f"base_model.model.{name}"], array)
        np.testing.assert_array_equal(found.read(name), array)
        assert bytes(found.raw(name)) == array.tobytes()
    assert found.config == {"r": 2, "peft_type": "LORA"}
    assert found.note["apr_train.step"] == "7"
    assert (tmp_path / "adapter_config.json").read_text() == '{\n  "peft_type": "LORA",\n  "r": 2\n}\n'


def test_bfloat16_and_float16_are_read_as_float32(tmp_path):
    write(tmp_path)
    save_file({"base_model.model.x": np.array([1.5], np.float16)}, tmp_path / "adapter_model.safetensors")
    assert open_adapter(tmp_path).read("x").dtype == np.float32


@pytest.mark.rule("ADAPTER-002")
@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda folder: (folder / "adapter_config.json").unlink(), "an adapter without its config"),
        (lambda folder: (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin"), "pickled"),
        (lambda folder: (folder / "adapter_model.safetensors").unlink(), "no adapter"),
        (lambda folder: (folder / "adapter_config.json").write_text("[]"), "not a JSON object"),
        (lambda folder: (folder / "adapter_model.safetensors").write_bytes(b"\0" * 9), "header"),
        (lambda folder: save_file({"x": np.ones(2, np.int32)}, folder / "adapter_model.safetensors"), "no float tensor"),
    ],
)
def test_a_damaged_or_incomplete_adapter_is_named(tmp_path, spoil, words):
    spoil(write(tmp_path))
    with pytest.raises(FormatError, match=words) as caught:
        open_adapter(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_weights_that_cannot_be_written_leave_the_old_ones(tmp_path):
    write(tmp_path)
    before = (tmp_path / "adapter_model.safetensors").read_bytes()
    with pytest.raises(FormatError):
        write_adapter(tmp_path, {"r": 2}, {"x": TensorView("Q4_K", A)}, note={})
    assert (tmp_path / "adapter_model.safetensors").read_bytes() == before
    assert json.loads((tmp_path / "adapter_config.json").read_text())["r"] == 2
