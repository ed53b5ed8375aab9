"""What people give for a model that is none, and what each error says to do."""

import inspect
import json
import shlex
import subprocess
import sys

import numpy as np
import pytest
import safetensors.torch
import torch
from apr_train.checkpoint.apr import AprWriter, TensorSpec
from apr_train.checkpoint.open import open_checkpoint, open_tokenizer
from apr_train.errors import FormatError
from safetensors.numpy import save_file

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 988097824\n"
LAST = "model-00003-of-00003.safetensors"


def message(path, **options):
    with pytest.raises(FormatError) as caught:
        open_checkpoint(path, **options).close()
    return str(caught.value)


def write(path, name="w"):
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: np.ones(2, np.float32)}, path)
    return path.parent


def write_apr(path):
    with AprWriter(path, {"model_type": "x"}, [TensorSpec("w", "F32", (2,))]) as writer:
        writer.write("w", np.ones(2, np.float32))
    return path


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.rule("FALSIFY-APR-PRETRAIN-INIT-003")
@pytest.mark.parametrize(
    ("given", "command", "then"),
    [
        ("Org/Some-Model-0.5B", "hf download Org/Some-Model-0.5B --local-dir Some-Model-0.5B", "Some-Model-0.5B"),
        ("gpt2", "hf download gpt2 --local-dir gpt2", "gpt2"),
        ("https://huggingface.co/org/m", "hf download org/m --local-dir m", "m"),
        ("https://huggingface.co/org/m/tree/main", "hf download org/m --local-dir m", "m"),
        ("https://huggingface.co/org/m/blob/v1.0/config.json", "hf download org/m --revision v1.0 --local-dir m", "m"),
        ("https://huggingface.co/gpt2/resolve/main/model.safetensors", "hf download gpt2 --local-dir gpt2", "gpt2"),
        ("hf.co/org/m", "hf download org/m --local-dir m", "m"),
        ("hf://org/m@abc123/q8.gguf", "hf download org/m q8.gguf --revision abc123 --local-dir m", "m/q8.gguf"),
        ("https://huggingface.co/org/m/blob/main/m-Q8_0.gguf", "hf download org/m m-Q8_0.gguf --local-dir m", "m/m-Q8_0.gguf"),
    ],
)
def test_a_name_or_an_address_on_the_hub_says_how_to_download_it(given, command, then, here):
    said = message(given)
    assert "INIT-003" in said
    assert f"download it first: {command} (pip install" in said
    assert said.endswith(f"then give {then}")


def test_the_download_command_has_the_options_of_the_hub_s_own_client():
    from huggingface_hub.cli.download import download

    assert {"repo_id", "filenames", "local_dir", "revision"} <= set(inspect.signature(download).parameters)


@pytest.mark.parametrize(
    "given", ["s3://bucket/model", "https://example.org/m.gguf", "https://huggingface.co/datasets/org/data"]
)
def test_another_address_must_be_downloaded_too(given, here):
    assert "Download it first: nothing is fetched here" in message(given)


@pytest.mark.parametrize("given", ["models/absent", "/absent/name", "a/b/c", "model.gguf", "x--y/z"])
def test_what_is_spelt_as_a_path_is_no_name_on_the_hub(given, here):
    (here / "models").mkdir()
    assert "hf download" not in message(given)


def test_a_misspelt_name_offers_the_one_that_is_there(here):
    write(here / "qwen-small" / SINGLE)
    assert message("qwen-smal").endswith("Did you mean qwen-small?")


@pytest.mark.parametrize("name", ["model-00001-of-00003.safetensors", LAST])
def test_one_file_of_several_says_which_it_is_and_asks_for_the_folder(name, tmp_path):
    write(tmp_path / name)
    assert "Its index is missing" in message(tmp_path / name)
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"w": name, "v": "model-00002-of-00003.safetensors"}}))
    said = message(tmp_path / name)
    assert f"file {int(name[6:11])} of a model in 3" in said
    assert said.endswith(f"Give the folder: {tmp_path}")


def test_a_file_of_several_by_the_index_alone_asks_for_the_folder(tmp_path):
    write(tmp_path / "first.safetensors")
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"w": "first.safetensors", "v": "second.safetensors"}}))
    assert message(tmp_path / "first.safetensors").endswith(f"Give the folder: {tmp_path}")


def test_who_looks_at_files_gets_one_of_several_with_a_warning(tmp_path):
    write(tmp_path / LAST)
    with open_checkpoint(tmp_path / LAST, whole=False) as checkpoint:
        (finding,) = checkpoint.header.findings
    assert (finding.severity, finding.problem) == ("warning", "file 3 of a model in 3")


def test_one_file_of_one_is_a_whole_model(tmp_path):
    write(tmp_path / "model-00001-of-00001.safetensors")
    with open_checkpoint(tmp_path / "model-00001-of-00001.safetensors") as checkpoint:
        assert checkpoint.header.findings == ()


def test_a_part_of_a_split_gguf_says_how_to_join_them(some_gguf):
    part = some_gguf.rename(some_gguf.with_name("m-Q4_0-00002-of-00004.gguf"))
    first, joined = part.with_name("m-Q4_0-00001-of-00004.gguf"), part.with_name("m-Q4_0.gguf")
    assert f"llama-gguf-split --merge {first} {joined}, then give {joined}" in message(part)


def test_a_part_of_a_split_gguf_of_another_name_is_known_by_its_keys(make_gguf):
    def split(writer):
        writer.add_uint16("split.no", 1)
        writer.add_uint16("split.count", 3)

    said = message(make_gguf(more=split))
    assert "file 2 of a model in 3" in said
    assert "llama-gguf-split --merge NAME-00001-of-00003.gguf" in said


@pytest.mark.rule("FALSIFY-APR-PRETRAIN-INIT-004")
@pytest.mark.parametrize(
    ("name", "content"),
    [
        (INDEX, {"metadata": {}, "weight_map": {"w": SINGLE}}),
        ("config.json", {"model_type": "llama"}),
        ("tokenizer.json", {"model": {}}),
        ("generation_config.json", {"eos_token_id": 2}),
        ("vocab.json", {"a": 0}),
    ],
)
def test_a_json_file_of_a_model_s_folder_asks_for_the_folder(name, content, tmp_path):
    (tmp_path / name).write_text(json.dumps(content, indent=2))
    write(tmp_path / SINGLE)
    said = message(tmp_path / name)
    assert "INIT-004" in said
    assert said.endswith(f"Give the folder: {tmp_path}")


def test_a_text_file_of_a_model_s_folder_asks_for_the_folder(tmp_path):
    write(tmp_path / SINGLE)
    (tmp_path / "README.md").write_text("# A model of mine")
    assert message(tmp_path / "README.md").endswith(f"Give the folder: {tmp_path}")


@pytest.fixture
def cache(tmp_path):
    """A model as huggingface_hub lays it out: snapshots of two commits, the newer one `main`."""
    root = tmp_path / "models--org--m"
    for commit in ("aaa", "bbb"):
        write(root / "snapshots" / commit / SINGLE)
    (root / "blobs").mkdir()
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text("bbb")
    return root


@pytest.mark.parametrize("level", [".", "snapshots", ".."])
def test_a_folder_of_a_hub_cache_names_its_snapshots_and_main_first(level, cache):
    snapshots = cache / "snapshots"
    assert message((cache / level).resolve()).endswith(f"Give {snapshots / 'bbb'}, {snapshots / 'aaa'}.")


def test_a_folder_whose_subfolder_holds_the_model_says_which(tmp_path):
    write(tmp_path / "final" / "checkpoint-20" / SINGLE)
    assert message(tmp_path).endswith(f"Give {tmp_path / 'final' / 'checkpoint-20'}.")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("m.gguf", "Give the file: {folder}/m.gguf"),
        ("model.onnx", "an ONNX model"),
        ("tf_model.h5", "TensorFlow weights"),
        ("flax_model.msgpack", "Flax weights"),
    ],
)
def test_weights_of_other_kinds_are_named(name, words, tmp_path):
    (tmp_path / name).write_bytes(b"\0" * 9)
    said = message(tmp_path)
    assert name in said
    assert words.format(folder=tmp_path) in said


@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.00.pth", "model.pt", "last.ckpt"])
def test_pickled_weights_come_with_the_command_that_converts_them(name, tmp_path):
    (tmp_path / name).write_bytes(b"PK")
    said = message(tmp_path)
    assert f"found {name}" in said
    code = shlex.split(said[said.index("python -c") :])[2]
    assert repr(str(tmp_path / name)) in code
    assert repr(str(tmp_path / SINGLE)) in code


def test_the_command_converts_pickled_weights_that_share_memory(tmp_path):
    tensors = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(2)}
    torch.save({**tensors, "c": tensors["a"], "d": tensors["a"].T}, tmp_path / "pytorch_model.bin")
    said = message(tmp_path)
    subprocess.run([sys.executable, *shlex.split(said[said.index("python -c") :])[1:]], check=True)
    assert torch.equal(safetensors.torch.load_file(tmp_path / SINGLE)["d"], tensors["a"].T)
    with open_checkpoint(tmp_path) as checkpoint:
        assert list(checkpoint.header.tensors) == ["a", "b", "c", "d"]


def test_a_pickled_file_that_is_given_comes_with_the_command_too(tmp_path):
    torch.save({"a": torch.ones(2)}, tmp_path / "weights.bin")
    said = message(tmp_path / "weights.bin")
    assert f"torch.load({str(tmp_path / 'weights.bin')!r}" in shlex.split(said[said.index("python -c") :])[2]


def test_pickled_weights_in_several_files_name_the_class_s_own_way(tmp_path):
    for number in (1, 2):
        (tmp_path / f"pytorch_model-0000{number}-of-00002.bin").write_bytes(b"PK")
    assert "save_pretrained" in message(tmp_path)


def test_an_empty_folder_holds_nothing(tmp_path):
    assert "found nothing" in message(tmp_path)


@pytest.mark.rule("FALSIFY-APR-PRETRAIN-INIT-004")
@pytest.mark.parametrize(
    ("content", "words"),
    [(b"\x1f\x8b" + b"\0" * 9, "gzip"), (b"<!DOCTYPE html><html>", "a web page"), (b"\x89HDF" + b"\0" * 9, "HDF5")],
)
def test_files_of_other_kinds_are_named(content, words, tmp_path):
    (tmp_path / "m").write_bytes(content)
    assert words in message(tmp_path / "m")


def in_single(folder):
    return folder / SINGLE


def in_a_shard(folder):
    write(folder / "model-00001-of-00002.safetensors")
    shard = "model-00002-of-00002.safetensors"
    (folder / INDEX).write_text(json.dumps({"weight_map": {"w": "model-00001-of-00002.safetensors", "v": shard}}))
    return folder / shard


def in_the_index(folder):
    return folder / INDEX


def in_the_config(folder):
    write(folder / SINGLE)
    return folder / "config.json"


def in_the_tokenizer(folder):
    write(folder / SINGLE)
    return folder / "tokenizer.json"


def in_the_merges(folder):
    write(folder / SINGLE)
    (folder / "vocab.json").write_text("{}")
    (folder / "config.json").write_text('{"model_type": "gpt2"}')
    return folder / "merges.txt"


@pytest.mark.parametrize("place", [in_single, in_a_shard, in_the_index, in_the_config, in_the_tokenizer, in_the_merges])
def test_a_git_lfs_pointer_in_a_folder_is_called_one(place, tmp_path):
    path = place(tmp_path)
    path.write_text(POINTER)
    said = message(tmp_path)
    assert f"{path}: a Git LFS pointer lies in the place of the file, expected a file of 988,097,824 bytes" in said
    assert "git lfs pull" in said


@pytest.mark.parametrize("name", ["m.gguf", "m.apr", "m.safetensors"])
def test_a_git_lfs_pointer_given_as_a_file_is_called_one(name, tmp_path):
    (tmp_path / name).write_text(POINTER)
    assert "git lfs pull" in message(tmp_path / name)


def test_a_git_lfs_pointer_in_the_place_of_an_apr_shard_is_called_one(tmp_path):
    manifest = {"shards": [{"filename": "m-1.apr", "index": 0}], "shard_count": 1, "tensor_count": 1, "weight_map": {"w": 0}}
    (tmp_path / "m.json").write_text(json.dumps(manifest))
    (tmp_path / "m-1.apr").write_text(POINTER)
    assert "git lfs pull" in message(tmp_path / "m.json")


TOKENIZER = {"model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"]}}


def test_a_tokenizer_is_found_in_a_folder_in_each_of_its_files_and_in_a_checkpoint(tmp_path, some_gguf):
    folder = tmp_path / "t"
    folder.mkdir()
    (folder / "vocab.json").write_text(json.dumps(TOKENIZER["model"]["vocab"]))
    (folder / "merges.txt").write_text("a b\n")
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "GPT2Tokenizer", "eos_token": "b"}')
    for given in (folder, folder / "vocab.json", folder / "merges.txt", folder / "tokenizer_config.json"):
        assert open_tokenizer(given).special_ids["eos"] == 1
    (tmp_path / "other-name.json").write_text(json.dumps(TOKENIZER))
    assert open_tokenizer(tmp_path / "other-name.json").size == 3
    assert open_tokenizer(some_gguf).special_ids["eos"] == 3


def test_a_folder_s_config_names_the_ids_that_its_tokenizer_does_not(tmp_path):
    (tmp_path / "tokenizer.json").write_text(json.dumps(TOKENIZER))
    (tmp_path / "config.json").write_text('{"eos_token_id": 2}')
    assert open_tokenizer(tmp_path).special_ids == {"eos": 2}


def tokenizer_message(path):
    with pytest.raises(FormatError) as caught:
        open_tokenizer(path)
    return str(caught.value)


@pytest.mark.rule("PREFLIGHT-018")
def test_what_is_no_tokenizer_says_what_to_give(here):
    assert "hf download org/m" in tokenizer_message("org/m")
    (here / "top" / "below").mkdir(parents=True)
    (here / "top" / "below" / "tokenizer.json").write_text(json.dumps(TOKENIZER))
    assert tokenizer_message(here / "top").endswith(f"Give {here / 'top' / 'below'}.")
    assert "no tokenizer" in tokenizer_message(write_apr(here / "m.apr"))
    (here / "t.json").write_text(POINTER)
    assert "git lfs pull" in tokenizer_message(here / "t.json")
