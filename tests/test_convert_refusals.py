"""What `import` and `export` refuse to write over or to lose, and what they say about what they did not check."""

import hashlib
import os
import re
import signal
import struct
import subprocess
import sys
import time
import zlib
from contextlib import contextmanager

import apr_train.artifact.convert
import apr_train.cli.conversion
import pytest
import torch
from apr_train.checkpoint.apr import AprWriter, TensorSpec, open_apr
from apr_train.cli import cli
from click.testing import CliRunner
from transformers import LlamaConfig, LlamaForCausalLM


def invoke(*arguments, exit_code=0):
    result = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    assert result.exit_code == exit_code, result.output
    return result


@pytest.fixture
def folder(tmp_path):
    """A Hugging Face folder."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    LlamaForCausalLM(LlamaConfig(vocab_size=32, max_position_embeddings=16, **sizes)).save_pretrained(tmp_path / "hf")
    return tmp_path / "hf"


@pytest.fixture
def apr(folder):
    """The same model as `.apr`."""
    invoke("import", folder, "-o", folder.parent / "m.apr")
    return folder.parent / "m.apr"


def contents(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def test_an_export_into_the_folder_of_its_source_is_refused(apr, tmp_path, monkeypatch):
    home = tmp_path / "home"
    home.mkdir()
    source = apr.rename(home / "model.apr")
    before = contents(home)
    assert "holds the source" in invoke("export", source, "-o", home, exit_code=1).output
    monkeypatch.chdir(home)
    assert "holds the source" in invoke("export", "model.apr", "-o", ".", exit_code=1).output
    assert contents(home) == before


def test_an_export_of_a_folder_onto_itself_is_refused(folder):
    before = contents(folder)
    assert "holds the source" in invoke("export", folder, "-o", folder, exit_code=1).output
    assert contents(folder) == before


@pytest.mark.parametrize("name", ["model.apr", "model.gguf", "models/x", "README.md", "generation_config.json"])
def test_an_export_replaces_only_what_an_export_writes(name, apr, tmp_path):
    (tmp_path / "out" / name).parent.mkdir(parents=True)
    (tmp_path / "out" / name).write_text("mine")
    assert name.split("/")[0] in invoke("export", apr, "-o", tmp_path / "out", exit_code=1).output
    assert (tmp_path / "out" / name).read_text() == "mine"


def test_a_sharded_export_is_replaced_by_a_later_one(apr, tmp_path):
    invoke("export", apr, "-o", tmp_path / "out", "--shard-size", 2000)
    assert (tmp_path / "out" / "model.safetensors.index.json").exists()
    invoke("export", apr, "-o", tmp_path / "out")
    assert sorted(contents(tmp_path / "out")) == ["config.json", "model.safetensors"]


def test_an_import_does_not_write_over_its_source(folder, apr):
    link = folder.parent / "link.apr"
    link.symlink_to(apr)
    for source, target in ((apr, apr), (apr, link), (folder / "model.safetensors",) * 2, (folder, folder / "config.json")):
        before = target.read_bytes()
        output = invoke("import", source, "-o", target, exit_code=1).output
        assert re.search("the target is (a file of )?the source", output)
        assert target.read_bytes() == before


def test_a_tokenizer_that_apr_cannot_hold_is_refused_by_name_and_not_dropped(apr, tmp_path):
    with open_apr(apr) as reader:
        metadata = {**reader.raw_metadata, "tokenizer.vocabulary": ["a", "b"], "tokenizer.scores": [0.0, -1.0]}
        specs = [TensorSpec(name, entry.dtype.name, entry.shape) for name, entry in reader.entries.items()]
        home = tmp_path / "home"
        home.mkdir()
        with AprWriter(home / "sp.apr", metadata, specs) as writer:
            for name in reader.entries:
                writer.write(name, reader.read_raw(name))
    output = invoke("import", home / "sp.apr", "-o", tmp_path / "new.apr", exit_code=1).output
    assert "sentencepiece" in output
    assert "tokenizer.json" in output
    assert not (tmp_path / "new.apr").exists()


@pytest.mark.parametrize("command", ["inspect", "import", "export", "check", "validate", "diff"])
def test_a_signature_that_is_not_checked_is_said(command, apr, tmp_path):
    raw = bytearray(apr.read_bytes())
    raw[6] |= 1 << 3
    raw[40:44] = struct.pack("<I", zlib.crc32(bytes(raw[:40] + raw[44:64])))
    raw[-4:] = struct.pack("<I", zlib.crc32(bytes(raw[:-4])))
    apr.write_bytes(raw)
    arguments = {"import": ["-o", tmp_path / "n.apr"], "export": ["-o", tmp_path / "out"], "diff": [apr]}.get(command, [])
    result = invoke(command, apr, *arguments)
    assert "signature was not checked" in (result.stdout if command == "check" else result.stderr)


@pytest.mark.parametrize("command", ["import", "export", "diff"])
def test_every_command_that_can_skip_the_checksum_skips_it_and_says_so(command, apr, tmp_path):
    damaged = tmp_path / "damaged.apr"
    raw = bytearray(apr.read_bytes())
    raw[-1] ^= 1  # the checksum itself: every value is right
    damaged.write_bytes(raw)
    arguments = {"import": ["-o", tmp_path / "n.apr"], "export": ["-o", tmp_path / "out"], "diff": [apr]}[command]
    assert "the file is damaged" in invoke(command, damaged, *arguments, exit_code=2 if command == "diff" else 1).output
    assert "not checked (--no-verify)" in invoke(command, damaged, *arguments, "--no-verify").stderr


def test_an_interrupted_import_leaves_the_old_file_and_no_litter(folder, tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    (home / "m.apr").write_bytes(b"old")
    code = (
        "import sys, time\n"
        "import apr_train.artifact.convert as convert\n"
        "from apr_train.cli import cli\n"
        "data = convert.Conversion.data\n"
        "convert.Conversion.data = lambda *rest: (time.sleep(0.5), data(*rest))[1]\n"
        "cli(sys.argv[1:])\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, "import", folder, "-o", home / "m.apr"], stderr=subprocess.PIPE, env={**os.environ}
    )
    deadline = time.monotonic() + 60
    while len(list(home.iterdir())) == 1 and time.monotonic() < deadline:
        time.sleep(0.02)
    assert len(list(home.iterdir())) == 2
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"Traceback" not in errors
    assert (home / "m.apr").read_bytes() == b"old"
    assert [path.name for path in home.iterdir()] == ["m.apr"]


@pytest.mark.parametrize("command", ["import", "export"])
def test_the_check_of_a_source_has_a_bar_and_comes_before_anything_is_written(command, apr, tmp_path, monkeypatch):
    told = {}

    @contextmanager
    def bar(description, total=None, **how):
        told[description] = 0

        def advance(count):
            told[description] += count

        yield advance

    monkeypatch.setattr(apr_train.cli.conversion, "progress_bar", bar)
    size = apr.stat().st_size
    invoke(command, apr, "-o", tmp_path / "first")
    assert told == {"checking m.apr": size - 4}  # all but the checksum itself
    raw = bytearray(apr.read_bytes())
    raw[-1] ^= 1
    apr.write_bytes(raw)
    monkeypatch.setattr(apr_train.artifact.convert.Conversion, "moves", lambda *_: pytest.fail("it went on"))
    assert "the file is damaged" in invoke(command, apr, "-o", tmp_path / "second", exit_code=1).output
