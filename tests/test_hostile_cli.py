"""Commands on files that nobody means well with: one message, soon, and no control character of the file's."""

from __future__ import annotations

import json
import os
import re
import time

import numpy as np
import pytest
from apr_train.checkpoint.apr import AprWriter, TensorSpec
from apr_train.cli import cli
from click.testing import CliRunner

SIZES = {"hidden_size": 8, "num_layers": 1, "num_heads": 2, "num_kv_heads": 2, "vocab_size": 16, "intermediate_size": 8}
CONFIG = {**SIZES, "max_position_embeddings": 16, "rope_theta": 1e4, "rms_norm_eps": 1e-5, "tie_word_embeddings": True}
SHAPES = {
    "model.embed_tokens.weight": (16, 8),
    "model.norm.weight": (8,),
    **{f"model.layers.0.{name}_layernorm.weight": (8,) for name in ("input", "post_attention")},
    **{f"model.layers.0.self_attn.{name}_proj.weight": (8, 8) for name in "qkvo"},
    **{f"model.layers.0.mlp.{name}_proj.weight": (8, 8) for name in ("gate", "up", "down")},
}
ESCAPES = "\x1b[2J\x1b]0;t\x07\x9b1m\u202e"
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\ud800-\udfff]")


@pytest.fixture
def write(tmp_path):
    def make(file, shapes=SHAPES, /, **metadata):
        path = tmp_path / file
        whole = {
            "architecture": "llama",
            "hf_architecture": "LlamaForCausalLM",
            "original_format": "safetensors",
            **CONFIG,
            **metadata,
        }
        with AprWriter(path, whole, [TensorSpec(tensor, "F32", shape) for tensor, shape in shapes.items()]) as writer:
            for tensor, shape in shapes.items():
                writer.write(tensor, np.zeros(shape, np.float32))
        return path

    return make


def run(*words, **environment):
    """The exit status and all that was printed; anything but an error of ours is raised."""
    start = time.process_time()
    done = CliRunner().invoke(cli, [str(word) for word in words], env=environment)
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    assert time.process_time() - start < 5
    assert CONTROL.search(done.output) is None
    return done


COMMANDS = {
    "inspect": ("inspect", "{}"),
    "check": ("check", "{}"),
    "import": ("import", "{}", "-o", "{out}.apr"),
    "export": ("export", "{}", "-o", "{out}"),
    "diff": ("diff", "{}", "{}"),
    "publish": ("publish", "{}", "-o", "{out}"),
}


@pytest.mark.parametrize("layers", [2_001, 1 << 31, 1 << 62])
@pytest.mark.parametrize("command", COMMANDS)
def test_a_file_that_claims_any_number_of_layers_is_answered_soon(write, tmp_path, command, layers):
    path = write("x.apr", num_layers=layers, license="MIT", data_source="x", data_license="MIT")
    done = run(*(word.format(path, out=tmp_path / "made") for word in COMMANDS[command]))
    assert len(done.output.encode()) < 8192
    if command in ("check", "import", "export", "publish"):
        assert done.exit_code == 3
        assert re.search(r"num_hidden_layers\].*, expected (at most 2000|1, as in the tensors|an integer > 0)", done.output)


def test_a_file_that_claims_any_number_of_experts_is_answered_soon(write, tmp_path):
    path = write("x.apr", num_experts=1 << 30, num_experts_per_tok=2, moe_intermediate_size=8)
    for command in COMMANDS.values():
        run(*(word.format(path, out=tmp_path / "made") for word in command))


SAID = (
    *COMMANDS.items(),
    ("inspect", ("inspect", "{}", "--tensors")),
    *((name, (name, "{}", "--json")) for name in ("inspect", "check")),
)


@pytest.mark.parametrize(("command", "words"), SAID)
def test_what_a_file_says_reaches_no_terminal_raw(write, tmp_path, command, words):
    shapes = {**SHAPES, f"w{ESCAPES}": (8,)}
    path = write("x.apr", shapes, name=f"n{ESCAPES}", description=ESCAPES, license="MIT", odd=ESCAPES, chat_format=ESCAPES)
    said = run(*(word.format(path, out=tmp_path / "made") for word in words)).output
    assert command in ("diff", "publish") or r"\x1b[2J" in said or r"\u001b[2J" in said


@pytest.mark.parametrize("option", ["--config", "--tokenizer", "--init"])
@pytest.mark.parametrize("kind", ["/dev/zero", "fifo"])
def test_what_never_ends_is_refused_by_its_kind(tmp_path, option, kind):
    path = tmp_path / "x"
    os.mkfifo(path) if kind == "fifo" else path.symlink_to(kind)
    text = tmp_path / "a.txt"
    text.write_text("x " * 500)
    done = run("--arch", "llama370m", "--preset", "tiny", "--data", text, "--out", tmp_path / "runs", option, path)
    assert done.exit_code in (1, 3)
    assert re.search("not a regular file|neither a file nor a folder", done.output)


@pytest.mark.parametrize("epoch", ["9" * 30, "-1", "1e9", "²", "253402300800"])
def test_a_time_that_there_is_not_is_refused(write, tmp_path, epoch):
    done = run("import", write("x.apr"), "-o", tmp_path / "made.apr", SOURCE_DATE_EPOCH=epoch)
    assert done.exit_code == 1
    assert "SOURCE_DATE_EPOCH: no time, expected seconds since 1970" in done.output
    assert not (tmp_path / "made.apr").exists()


def test_the_message_about_a_megabyte_is_4_kb(write, tmp_path):
    path = write("x.apr", hf_architecture="A" * 5_000_000, rope_scaling={"rope_type": "x" * 5_000_000})
    for command in COMMANDS.values():
        done = run(*(word.format(path, out=tmp_path / "made") for word in command))
        assert len(done.output.partition("Error: ")[2].encode()) <= 4096


def test_the_json_of_a_command_is_json_whatever_the_file_says(write):
    path = write("x.apr", odd={"a": ESCAPES, "b": 1e308}, name="\udfff".encode("utf-8", "replace").decode())
    for command in ("inspect", "check"):
        json.loads(run(command, path, "--json").stdout)


@pytest.mark.parametrize("words", [("check", "{}"), ("inspect", "{}"), ("inspect", "{}", "--json")])
def test_a_name_that_is_no_utf_8_is_shown_all_the_same(write, words):
    path = write("m\udce9.apr")
    done = run(*(word.format(path) for word in words))
    assert done.exit_code in (0, 3)
    assert "m\\xe9.apr" in done.output or "m\\udce9.apr" in done.output or words[0] == "check"
