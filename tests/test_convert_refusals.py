"""What `import` and `export` refuse to write over or to lose, and what they say about what they did not check."""

import hashlib
import json
import os
import signal
import struct
import subprocess
import sys
import time
import zlib
from contextlib import contextmanager

import apr_train.api.conversion
import apr_train.artifact.convert
import apr_train.artifact.export
import apr_train.cli.export
import pytest
import torch
from apr_train.checkpoint.apr import AprWriter, Flags, TensorSpec, open_apr
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
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir() if path.is_file()}


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


NAMES = ["model.apr", "model.gguf", "models/x", "README.md", "generation_config.json", "config.json", "apr-train.json"]


@pytest.mark.rule("WRITE-002")
@pytest.mark.parametrize("name", NAMES)
def test_an_export_replaces_no_folder_that_it_did_not_write(name, apr, tmp_path):
    (tmp_path / "out" / name).parent.mkdir(parents=True)
    (tmp_path / "out" / name).write_text("mine")
    assert "not one that apr-train export wrote" in invoke("export", apr, "-o", tmp_path / "out", exit_code=1).output
    assert (tmp_path / "out" / name).read_text() == "mine"


@pytest.mark.rule("WRITE-002")
@pytest.mark.parametrize("name", ["notes.txt", "sub/notes.txt", "config.json", "model.safetensors"])
def test_what_somebody_put_into_an_export_or_changed_there_is_not_replaced(name, apr, tmp_path):
    invoke("export", apr, "-o", tmp_path / "out")
    (tmp_path / "out" / name).parent.mkdir(exist_ok=True)
    (tmp_path / "out" / name).write_text("mine")
    output = invoke("export", apr, "-o", tmp_path / "out", exit_code=1).output
    assert name in output
    assert "move away what you want to keep" in output
    assert (tmp_path / "out" / name).read_text() == "mine"


@pytest.mark.rule("WRITE-002")
@pytest.mark.parametrize("made", ["empty folder", "link"])
def test_an_empty_folder_and_a_link_in_an_export_are_somebodys(made, apr, tmp_path):
    invoke("export", apr, "-o", tmp_path / "out")
    thing = tmp_path / "out" / "thing"
    thing.mkdir() if made == "empty folder" else thing.symlink_to(tmp_path)
    assert "thing" in invoke("export", apr, "-o", tmp_path / "out", exit_code=1).output
    assert thing.is_dir()


@pytest.mark.rule("WRITE-002")
def test_what_is_put_into_the_folder_while_an_export_is_written_is_not_lost(apr, tmp_path, monkeypatch):
    invoke("export", apr, "-o", tmp_path / "out")
    monkeypatch.setattr(
        apr_train.artifact.export, "_write_card", lambda *_: (tmp_path / "out" / "notes.txt").write_text("mine")
    )
    invoke("export", apr, "-o", tmp_path / "out", exit_code=1)
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine"


@pytest.mark.rule("WRITE-002")
def test_weights_of_any_size_that_were_changed_in_an_export_are_not_replaced(tmp_path):
    torch.manual_seed(0)
    sizes = {"hidden_size": 256, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    LlamaForCausalLM(LlamaConfig(vocab_size=20_000, max_position_embeddings=16, **sizes)).save_pretrained(tmp_path / "hf")
    invoke("export", tmp_path / "hf", "-o", tmp_path / "out")
    invoke("export", tmp_path / "hf", "-o", tmp_path / "out")  # what is as it was written is replaced
    weights = tmp_path / "out" / "model.safetensors"
    assert weights.stat().st_size > 1 << 24
    with weights.open("r+b") as file:
        file.seek(-4, os.SEEK_END)
        file.write(b"mine")
    output = invoke("export", tmp_path / "hf", "-o", tmp_path / "out", exit_code=1).output
    assert "files were changed since apr-train export wrote them, found model.safetensors" in output
    assert weights.read_bytes().endswith(b"mine")


@pytest.mark.rule("WRITE-002")
@pytest.mark.parametrize("noted", [{}, {"size": 4}, None])
@pytest.mark.parametrize("made", ["file", "link"])
def test_a_file_that_the_mark_holds_no_sum_of_is_somebodys(made, noted, apr, tmp_path):
    invoke("export", apr, "-o", tmp_path / "out")
    thing, mark = tmp_path / "out" / "SHA256SUMS", tmp_path / "out" / "apr-train.json"
    (tmp_path / "mine").write_text("mine")
    thing.write_text("mine") if made == "file" else thing.symlink_to(tmp_path / "mine")
    content = json.loads(mark.read_text())
    content["files"][thing.name] = noted
    mark.write_text(json.dumps(content))
    output = invoke("export", apr, "-o", tmp_path / "out", exit_code=1).output
    assert "files were changed since apr-train export wrote them, found SHA256SUMS" in output
    assert thing.read_text() == "mine"


def test_a_sharded_export_is_replaced_by_a_later_one(apr, tmp_path):
    invoke("export", apr, "-o", tmp_path / "out", "--shard-size", 2000)
    assert (tmp_path / "out" / "model.safetensors.index.json").exists()
    invoke("export", apr, "-o", tmp_path / "out")
    expected = ["apr-train.json", "config.json", "generation_config.json", "model.safetensors"]
    assert sorted(contents(tmp_path / "out")) == expected


def linked(path, how):
    """Another path to a file."""
    other = path.parent.parent / f"other{path.suffix}"
    if how == "link":
        other.symlink_to(path)
    elif how == "hard link":
        other.hardlink_to(path)
    return other if how in ("link", "hard link") else path.parent / ".." / path.parent.name / path.name


@pytest.fixture
def shards(apr, tmp_path):
    """The same model in two shards with a manifest."""
    home = tmp_path / "shards"
    home.mkdir()
    with open_apr(apr) as reader:
        names = list(reader.entries)
        parts = (names[:3], names[3:])
        for number, part in enumerate(parts):
            table = {"shard_count": 2, "shard_index": number, "total_size": 0, "pattern": ""}
            specs = [TensorSpec(name, reader.entries[name].dtype.name, reader.entries[name].shape) for name in part]
            path = home / f"m-0000{number + 1}-of-00002.apr"
            with AprWriter(path, {**reader.raw_metadata, "sharding": table}, specs, flags=Flags.SHARDED) as writer:
                for name in part:
                    writer.write(name, reader.read_raw(name))
    manifest = {"version": "1", "shard_count": 2, "total_size": 0, "tensor_count": len(names)}
    manifest["shards"] = [{"filename": f"m-0000{number + 1}-of-00002.apr", "index": number} for number in (0, 1)]
    manifest["weight_map"] = {name: int(name in parts[1]) for name in names}
    (home / "m.json").write_text(json.dumps(manifest))
    return home


@pytest.mark.rule("WRITE-001")
@pytest.mark.parametrize("source", [".", "m.json", "m-00001-of-00002.apr"])
@pytest.mark.parametrize("target", ["m-00001-of-00002.apr", "m-00002-of-00002.apr", "m.json"])
def test_an_import_of_shards_writes_over_none_of_them_nor_their_manifest(source, target, shards):
    before = contents(shards)
    output = invoke("import", shards / source, "-o", shards / target, exit_code=1).output
    assert "WRITE-001" in output
    assert "the target is a file of the source" in output
    assert contents(shards) == before


BESIDE = ("config.json", "tokenizer.json", "tokenizer_config.json", "README.md", "generation_config.json", "model.safetensors")


@pytest.mark.rule("WRITE-001")
@pytest.mark.parametrize("how", ["itself", "link", "hard link", "another spelling"])
@pytest.mark.parametrize("target", BESIDE)
@pytest.mark.parametrize("source", ["", "model.safetensors"])
def test_an_import_writes_over_nothing_that_lies_beside_the_weights(source, target, how, folder):
    for name in BESIDE:
        (folder / name).touch()
    (folder / "tokenizer.json").write_text('{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}}')
    (folder / "tokenizer_config.json").write_text("{}")
    before = contents(folder)
    path = folder / target if how == "itself" else linked(folder / target, how)
    assert "WRITE-001" in invoke("import", folder / source, "-o", path, exit_code=1).output
    assert contents(folder) == before


@pytest.mark.rule("WRITE-001")
@pytest.mark.parametrize("how", ["itself", "link", "hard link", "another spelling"])
def test_an_import_does_not_write_over_the_apr_that_it_reads(how, apr, tmp_path):
    (tmp_path / "home").mkdir()
    apr = apr.rename(tmp_path / "home" / "m.apr")
    before = apr.read_bytes()
    path = apr if how == "itself" else linked(apr, how)
    assert "WRITE-001" in invoke("import", apr, "-o", path, exit_code=1).output
    assert apr.read_bytes() == before


def test_an_import_into_its_own_folder_may_be_given_again(folder):
    for _ in range(2):
        invoke("import", folder, "-o", folder / "m.apr")


@pytest.mark.rule("WRITE-001")
@pytest.mark.parametrize("how", ["link inside", "link to inside", "hard link", "link to the folder"])
def test_an_export_does_not_replace_a_folder_that_the_source_is_reached_through(how, apr, tmp_path):
    out, source = tmp_path / "out", tmp_path / "source"
    invoke("export", apr, "-o", out)
    source.mkdir()
    (source / "config.json").write_bytes((out / "config.json").read_bytes())
    if how == "link inside":
        source = out
    elif how == "link to inside":
        (source / "model.safetensors").symlink_to(out / "model.safetensors")
    elif how == "hard link":
        (source / "model.safetensors").hardlink_to(out / "model.safetensors")
    else:
        source = tmp_path / "other"
        source.symlink_to(out)
    before = contents(out)
    assert "the folder holds the source" in invoke("export", source, "-o", out, exit_code=1).output
    assert contents(out) == before


@pytest.mark.rule("WRITE-001")
@pytest.mark.parametrize("name", ["model.apr", "config.toml", "metrics.jsonl", "step-000002/model.apr", "step-000002/x.apr"])
def test_what_a_run_keeps_is_not_written_over(name, folder, tmp_path):
    run = tmp_path / "runs" / "x"
    (run / "step-000002").mkdir(parents=True)
    for kept in ("config.toml", "identity.json", "metrics.jsonl", "model.apr", "step-000002/model.apr"):
        (run / kept).write_text("kept")
    invoke("import", folder, "-o", run / "mine.apr")  # beside them there is room
    output = invoke("import", folder, "-o", run / name, exit_code=1).output
    assert "a file that a training run keeps" in output
    assert not (run / name).exists() or (run / name).read_text() == "kept"
    (tmp_path / "link.apr").symlink_to(run / name)
    assert "WRITE-001" in invoke("import", folder, "-o", tmp_path / "link.apr", exit_code=1).output


@pytest.mark.rule("WRITE-003")
@pytest.mark.parametrize("name", ["x.gguf", "x.safetensors", "x.apr", "x.APR"])
def test_a_folder_is_not_given_the_name_of_a_file(name, apr, tmp_path):
    output = invoke("export", apr, "-o", tmp_path / name, exit_code=1).output
    assert "export writes a folder, and the name is that of a file" in output
    assert not (tmp_path / name).exists()


@pytest.mark.rule("WRITE-003")
@pytest.mark.parametrize("name", ["x.gguf", "x.safetensors", "x.json"])
def test_an_apr_file_is_not_given_the_name_of_another_kind(name, folder, tmp_path):
    output = invoke("import", folder, "-o", tmp_path / name, exit_code=1).output
    assert "expected a name that ends in .apr" in output
    assert not (tmp_path / name).exists()


@pytest.mark.rule("WRITE-003")
@pytest.mark.parametrize("name", ["data/f0.py", "LICENSE", "notes.apr"])
def test_an_import_replaces_no_file_that_is_no_apr(name, folder, tmp_path):
    target = tmp_path / name
    target.parent.mkdir(exist_ok=True)
    target.write_text("AP")
    output = invoke("import", folder, "-o", target, exit_code=1).output
    assert "WRITE-003" in output
    assert "expected a file that begins with APR, an empty one, or none" in output
    assert target.read_text() == "AP"


@pytest.mark.parametrize("there", [b"", b"APRN of version 1", b"APR\0"])
def test_an_import_replaces_an_empty_file_and_an_apr_of_any_version(there, folder, tmp_path):
    (tmp_path / "m.apr").write_bytes(there)
    invoke("import", folder, "-o", tmp_path / "m.apr")
    open_apr(tmp_path / "m.apr").close()


@pytest.mark.parametrize(("source", "title"), [("model.apr", "x"), ("step-000002/model.apr", "x"), ("mine.apr", "mine")])
def test_the_card_of_a_runs_export_is_called_after_the_run(source, title, apr, tmp_path):
    run = tmp_path / "runs" / "x"
    (run / "step-000002").mkdir(parents=True)
    (run / "config.toml").touch()
    (run / "identity.json").touch()
    invoke("stamp", apr, "--license", "MIT")
    apr.rename(run / source)
    invoke("export", run / source, "-o", tmp_path / "out")
    assert (tmp_path / "out" / "README.md").read_text().endswith(f"\n# {title}\n")


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


def writing(home):
    """Whether bytes are in a part beside the file: one that was only just created is left to the next writer if it must be."""
    return any(path.stat().st_size for path in home.iterdir() if path.name != "m.apr")


def test_an_interrupted_import_leaves_the_old_file_and_no_litter(folder, tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    (home / "m.apr").write_bytes(b"APR old")
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
    while not writing(home) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert writing(home)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"Traceback" not in errors
    assert (home / "m.apr").read_bytes() == b"APR old"
    assert [path.name for path in home.iterdir()] == ["m.apr"]


@pytest.mark.parametrize("command", ["import", "export"])
def test_the_check_of_a_source_has_a_bar_and_comes_before_anything_is_written(command, apr, tmp_path, monkeypatch):
    told, module = {}, apr_train.cli.export if command == "export" else apr_train.api.conversion

    @contextmanager
    def bar(description, total=None, **how):
        told[description] = 0

        def advance(count):
            told[description] += count

        yield advance

    monkeypatch.setattr(module, "progress_bar", bar)
    size = apr.stat().st_size
    invoke(command, apr, "-o", tmp_path / "first")
    assert list(told) == ["checking m.apr", "writing first"]
    assert told["checking m.apr"] == size - 4  # all but the checksum itself
    raw = bytearray(apr.read_bytes())
    raw[-1] ^= 1
    apr.write_bytes(raw)
    monkeypatch.setattr(apr_train.artifact.convert.Conversion, "moves", lambda *_: pytest.fail("it went on"))
    assert "the file is damaged" in invoke(command, apr, "-o", tmp_path / "second", exit_code=1).output
