"""Which of a folder's weights are read: those that transformers takes, whatever else lies there."""

import json
import os
import shutil

import numpy as np
import pytest
from apr_train.checkpoint.apr import AprWriter, TensorSpec
from apr_train.checkpoint.open import open_checkpoint
from apr_train.errors import FormatError
from safetensors.numpy import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

EMBEDDING = "model.embed_tokens.weight"
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A small model as transformers saves it, in one file."""
    folder = tmp_path_factory.mktemp("original")
    size = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=20, num_key_value_heads=1, **size)).save_pretrained(folder)
    return folder


def shifted(original, by):
    return {name: (data + by).astype(data.dtype) for name, data in load_file(original / SINGLE).items()}


def single(folder, original, by, name=SINGLE):
    save_file(shifted(original, by), folder / name, {"format": "pt"})


def shards(folder, original, by, *, count=2, index=INDEX):
    """Weights in numbered files and their index; `index=None` leaves that out."""
    tensors = shifted(original, by)
    weight_map = {}
    for number in range(count):
        name = f"model-{number + 1:05d}-of-{count:05d}.safetensors"
        part = {key: tensors[key] for key in sorted(tensors)[number::count]}
        save_file(part, folder / name, {"format": "pt"})
        weight_map |= dict.fromkeys(part, name)
    if index is not None:
        (folder / index).write_text(json.dumps({"metadata": {"total_size": 0}, "weight_map": weight_map}))


def older_shards_beside_one_file(folder, original):
    shards(folder, original, 1)
    single(folder, original, 2)


def an_index_without_its_shards_beside_one_file(folder, original):
    older_shards_beside_one_file(folder, original)
    for file in folder.glob("model-0*"):
        file.unlink()


def an_index_that_is_none_beside_one_file(folder, original):
    single(folder, original, 2)
    (folder / INDEX).write_text("{")


def two_sets_of_shards(folder, original):
    shards(folder, original, 1, count=3)
    shards(folder, original, 2)


def a_variant_beside_one_file(folder, original):
    single(folder, original, 1, "model.fp16.safetensors")
    single(folder, original, 2)


def another_name_beside_shards(folder, original):
    single(folder, original, 1, "consolidated.safetensors")
    shards(folder, original, 2)


def an_apr_beside_one_file(folder, original):
    single(folder, original, 2)
    write_apr(folder / "model.apr")


def a_name_in_the_config(folder, original):
    single(folder, original, 1)
    single(folder, original, 2, "best.safetensors")
    edit_config(folder, transformers_weights="best.safetensors")


def an_index_named_in_the_config(folder, original):
    single(folder, original, 1)
    shards(folder, original, 2, index="best.safetensors.index.json")
    edit_config(folder, transformers_weights="best.safetensors.index.json")


def write_apr(path):
    with AprWriter(path, {"model_type": "x"}, [TensorSpec("w", "F32", (2,))]) as writer:
        writer.write("w", np.ones(2, np.float32))


def edit_config(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


@pytest.fixture
def folder(tmp_path, original):
    shutil.copy(original / "config.json", tmp_path)
    return tmp_path


@pytest.mark.rule("PREFLIGHT-021")
@pytest.mark.parametrize(
    ("lay", "read", "not_read"),
    [
        (older_shards_beside_one_file, SINGLE, "model-00001-of-00002.safetensors, model-00002-of-00002.safetensors, " + INDEX),
        (an_index_without_its_shards_beside_one_file, SINGLE, INDEX),
        (an_index_that_is_none_beside_one_file, SINGLE, INDEX),
        (two_sets_of_shards, "model-00001-of-00002.safetensors", "model-00001-of-00003.safetensors"),
        (a_variant_beside_one_file, SINGLE, "model.fp16.safetensors"),
        (another_name_beside_shards, "model-00001-of-00002.safetensors", "consolidated.safetensors"),
        (an_apr_beside_one_file, SINGLE, "model.apr"),
        (a_name_in_the_config, "best.safetensors", SINGLE),
        (an_index_named_in_the_config, "model-00001-of-00002.safetensors", SINGLE),
    ],
)
def test_of_several_sets_of_weights_that_of_transformers_is_read_and_the_rest_is_named(lay, read, not_read, folder, original):
    lay(folder, original)
    expected = LlamaForCausalLM.from_pretrained(folder).state_dict()
    with open_checkpoint(folder) as checkpoint:
        assert set(checkpoint.header.tensors) == set(expected)
        for name, tensor in expected.items():
            np.testing.assert_array_equal(checkpoint.read(name).data, tensor.numpy())
        (finding,) = checkpoint.header.findings
    assert (finding.rule, finding.severity) == ("PREFLIGHT-021", "warning")
    taken, _, left = finding.found.partition(" (read); ")
    assert read in taken
    assert not_read in left


def alone(folder, original):
    single(folder, original, 2)


def alone_in_shards(folder, original):
    shards(folder, original, 2)


def with_an_index_of_itself(folder, original):
    single(folder, original, 2)
    (folder / INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(load_file(folder / SINGLE), SINGLE)}))


def beside_the_weights_of_other_libraries(folder, original):
    single(folder, original, 2)
    for name in ("pytorch_model.bin", "tf_model.h5", "flax_model.msgpack", "optimizer.pt"):
        (folder / name).write_bytes(b"PK")


@pytest.mark.parametrize("lay", [alone, alone_in_shards, with_an_index_of_itself, beside_the_weights_of_other_libraries])
def test_one_set_of_weights_is_no_finding(lay, folder, original):
    lay(folder, original)
    with open_checkpoint(folder) as checkpoint:
        np.testing.assert_array_equal(checkpoint.read(EMBEDDING).data, shifted(original, 2)[EMBEDDING])
        assert checkpoint.header.findings == ()


def test_shards_that_are_not_there_are_named(folder, original):
    shards(folder, original, 1, count=4)
    for number in (2, 4):
        (folder / f"model-{number:05d}-of-00004.safetensors").unlink()
    with pytest.raises(FormatError, match=r"INIT-003.*2 of the 4 files.*00002-of-00004\.safetensors, .*00004-of-00004.*Fetch"):
        open_checkpoint(folder)


def test_an_index_whose_files_are_gone_names_the_other_set_that_is_there(folder, original):
    shards(folder, original, 1, count=3)
    shards(folder, original, 2, index=None)
    for file in folder.glob("*-of-00003*"):
        file.unlink()
    with pytest.raises(FormatError, match=r"3 of the 3 files.*other weights: model-00001-of-00002\.safetensors"):
        open_checkpoint(folder)


def test_an_index_of_other_tensors_says_what_to_do(folder, original):
    shards(folder, original, 1)
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"] |= {"other.weight": "model-00001-of-00002.safetensors"}
    (folder / INDEX).write_text(json.dumps(index))
    with pytest.raises(FormatError, match=r"other\.weight.*fetch them again together"):
        open_checkpoint(folder)


def test_shards_without_their_index_are_no_model(folder, original):
    shards(folder, original, 1, index=None)
    with pytest.raises(OSError, match="no file named"):
        LlamaForCausalLM.from_pretrained(folder)
    with pytest.raises(FormatError, match=r"model-00001-of-00002\.safetensors.*index is missing"):
        open_checkpoint(folder)
    (folder / "model-00002-of-00002.safetensors").unlink()  # the one that is left is not taken for the model
    with pytest.raises(FormatError, match="index is missing"):
        open_checkpoint(folder)


@pytest.mark.rule("PREFLIGHT-021")
def test_weights_that_transformers_would_pass_over_for_pickled_ones_are_not_taken(folder, original):
    single(folder, original, 1, "converted.safetensors")
    (folder / "pytorch_model.bin").write_bytes(b"PK")
    with pytest.raises(FormatError, match=r"PREFLIGHT-021.*pytorch_model\.bin.*converted\.safetensors.*give that file"):
        open_checkpoint(folder)


@pytest.mark.rule("PREFLIGHT-021")
@pytest.mark.parametrize("names", [("a.apr", "b.apr"), ("a.apr", "b.safetensors")])
def test_of_two_models_that_transformers_does_not_know_none_is_taken(names, tmp_path):
    for name in names:
        if name.endswith(".apr"):
            write_apr(tmp_path / name)
        else:
            save_file({"w": np.ones(2, np.float32)}, tmp_path / name)
    with pytest.raises(FormatError, match=rf"PREFLIGHT-021.*more than one model.*Give the file that is meant: {tmp_path}"):
        open_checkpoint(tmp_path)


def test_an_optimizer_s_state_is_no_model(tmp_path):
    """A step of a run holds it beside model.apr."""
    write_apr(tmp_path / "model.apr")
    save_file({"exp_avg.w": np.zeros(2, np.float32)}, tmp_path / "optimizer.safetensors")
    with open_checkpoint(tmp_path) as checkpoint:
        assert (checkpoint.header.format, list(checkpoint.header.tensors)) == ("apr", ["w"])
        assert checkpoint.header.findings == ()


@pytest.mark.parametrize("named", ["../x.safetensors", "sub/x.safetensors", "model.bin", 5, ""])
def test_a_config_names_only_safetensors_of_its_own_folder(named, folder, original):
    single(folder, original, 1)
    edit_config(folder, transformers_weights=named)
    with pytest.raises(FormatError, match=r"config\.json \[transformers_weights\]"):
        open_checkpoint(folder)


def test_weights_that_a_config_names_and_that_are_not_there_are_an_error(folder, original):
    single(folder, original, 1)
    edit_config(folder, transformers_weights="best.safetensors")
    with pytest.raises(FormatError, match=r"INIT-003.*expected best\.safetensors, found model\.safetensors"):
        open_checkpoint(folder)


@pytest.mark.rule("FALSIFY-APR-PRETRAIN-INIT-003")
@pytest.mark.skipif(os.geteuid() == 0, reason="root may look everywhere")
@pytest.mark.parametrize("locked", ["folder", "weights", "index", "shard"])
def test_what_may_not_be_read_is_said_to_be(locked, folder, original):
    (shards if locked in ("index", "shard") else single)(folder, original, 1)
    names = {"folder": ".", "weights": SINGLE, "index": INDEX, "shard": "model-00002-of-00002.safetensors"}
    path = folder / names[locked]
    path.chmod(0)
    try:
        with pytest.raises(FormatError, match=r"INIT-003.*cannot be read: Permission denied"):
            open_checkpoint(folder)
    finally:
        path.chmod(0o755)
