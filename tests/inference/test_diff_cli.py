"""`apr-train diff` on real files: the same model in other clothes, and one difference of every kind."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from apr_train.checkpoint.apr import AprWriter, TensorSpec
from apr_train.checkpoint.dtypes import bf16_to_f32, f32_to_bf16
from apr_train.checkpoint.open import open_checkpoint
from apr_train.family.card import Layout
from apr_train.family.registry import Registry
from apr_train.testing.conformance import header_from
from gguf import GGUFWriter
from safetensors.numpy import load_file, save_file

Q = "model.layers.1.self_attn.q_proj.weight"
DTYPES = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16}


@pytest.fixture
def copy(models, tmp_path):
    """`copy("name.apr", metadata=…, tensors=…)`: the decoder's model.apr with changes; `dtype` of all tensors."""

    def make(name, *, metadata=None, dtype="F32", **tensors):
        with open_checkpoint(models.decoder / "model.apr") as checkpoint:
            values = {**checkpoint.raw_metadata, **(metadata or {})}
            arrays = {key: np.array(checkpoint.read(key).data) for key in checkpoint.header.tensors}
        for key, change in tensors.items():
            key = key if key in ("extra", "lm_head.weight") else Q
            array = change(arrays.get(key))
            arrays |= {} if array is None else {key: array}
            if array is None:
                del arrays[key]
        cast = f32_to_bf16 if dtype == "BF16" else DTYPES[dtype]
        specs = [TensorSpec(key, dtype, array.shape) for key, array in arrays.items()]
        with AprWriter(tmp_path / name, values, specs) as writer:
            for key, array in arrays.items():
                writer.write(key, cast(array))
        return tmp_path / name

    return make


def compare(apr, a, b, *options, code=1):
    answer = apr("diff", a, b, *options, "--json", code=code).json
    assert answer["schema_version"] == 1
    assert answer["same"] == (code == 0)
    assert (
        apr("diff", a, b, *options, code=code)
        .stdout.splitlines()[-1]
        .startswith("the same model" if code == 0 else "different")
    )
    return answer


def by_name(answer):
    return {item["name"]: item for item in answer["tensors"]}


def test_a_file_is_the_same_as_itself_and_as_its_run(apr, models):
    answer = compare(apr, models.decoder / "model.apr", models.decoder, code=0)
    assert answer["family"] == "llama370m"
    assert {item["status"] for item in answer["tensors"]} == {"same"}
    assert answer["about"] == answer["config"] == answer["tokenizer"] == []


def test_a_last_step_is_the_same_as_the_model(apr, models):
    compare(apr, models.decoder / "step-000100", models.decoder, code=0)


def test_distances_are_numpys(apr, models, copy):
    noise = np.random.default_rng(0).normal(0, 0.01, (128, 128)).astype(np.float32)
    with open_checkpoint(models.decoder / "model.apr") as checkpoint:
        before = np.array(checkpoint.read(Q).data)
    answer = compare(apr, models.decoder, copy("b.apr", q=lambda array: array + noise))
    differing = [item for item in answer["tensors"] if item["differs"]]
    assert [item["name"] for item in differing] == ["layers.1.self_attn.q_proj.weight"]
    (found,) = differing
    x, y = before.astype(np.float64).ravel(), (before + noise).astype(np.float64).ravel()
    assert found["status"] == "values"
    assert found["a"]["name"] == found["b"]["name"] == Q
    assert found["max_abs"] == pytest.approx(np.abs(x - y).max(), rel=1e-12)
    assert found["mean_abs"] == pytest.approx(np.abs(x - y).mean(), rel=1e-12)
    assert found["cosine"] == pytest.approx(x @ y / np.linalg.norm(x) / np.linalg.norm(y), rel=1e-12)
    compare(apr, models.decoder, "b.apr", "--tolerance", found["max_abs"], code=0)
    compare(apr, models.decoder, "b.apr", "--tolerance", found["max_abs"] * 0.99)


def test_another_type_of_the_same_values_is_the_same_model(apr, copy):
    half = copy("half.apr", dtype="BF16")
    with open_checkpoint(half) as checkpoint:
        arrays = {name: bf16_to_f32(np.array(checkpoint.read(name).data)) for name in checkpoint.header.tensors}
        metadata = checkpoint.raw_metadata
    specs = [TensorSpec(name, "F32", array.shape) for name, array in arrays.items()]
    with AprWriter(half.with_name("wide.apr"), metadata, specs) as writer:
        for name, array in arrays.items():
            writer.write(name, array)
    answer = compare(apr, half, "wide.apr", code=0)
    found = by_name(answer)["layers.1.self_attn.q_proj.weight"]
    assert (found["a"]["dtype"], found["b"]["dtype"], found["max_abs"]) == ("BF16", "F32", 0.0)


def test_tensors_missing_or_of_another_shape_are_named(apr, models, copy):
    answer = compare(apr, copy("a.apr", q=lambda _: None), models.decoder)
    assert by_name(answer)["layers.1.self_attn.q_proj.weight"]["status"] == "missing in A"
    answer = compare(apr, models.decoder, copy("b.apr", extra=lambda _: np.ones((2, 3), np.float32)))
    assert by_name(answer)["extra"] == {
        "name": "extra", "status": "missing in A", "a": None, "b": {"name": "extra", "dtype": "F32", "shape": [2, 3]},
        "max_abs": None, "mean_abs": None, "cosine": None, "differs": True,
    }  # fmt: skip
    answer = compare(apr, models.decoder, copy("c.apr", q=lambda array: array[:64]))
    assert by_name(answer)["layers.1.self_attn.q_proj.weight"]["status"] == "shape"


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_value_that_is_no_number_on_one_side_differs_and_on_both_does_not(apr, models, copy, value):
    def spoil(array):
        array[3, 4] = value
        return array

    spoilt = copy("b.apr", q=spoil)
    found = by_name(compare(apr, models.decoder, spoilt, "--tolerance", 1e9))["layers.1.self_attn.q_proj.weight"]
    assert (found["status"], found["differs"], found["max_abs"], found["cosine"]) == ("values", True, None, None)
    compare(apr, spoilt, copy("c.apr", q=spoil), code=0)
    compare(apr, spoilt, copy("d.apr", q=lambda array: spoil(array) * np.float32(1 + 1e-6)), "--tolerance", 1e-5, code=0)


def test_config_and_tokenizer_count_and_provenance_does_not(apr, models, copy):
    answer = compare(apr, models.decoder, copy("a.apr", metadata={"rope_theta": 5e5}))
    assert answer["config"] == [{"name": "rope_theta", "a": 10000.0, "b": 500000.0}]
    assert not any(item["differs"] for item in answer["tensors"])
    said = apr("diff", models.decoder, "a.apr", code=1).stdout.splitlines()[-1]
    total = len(answer["tensors"])
    assert said == f"different in architecture only: 0 of {total} tensors differ"
    answer = compare(apr, models.decoder, copy("b.apr", metadata={"license": "MIT", "author": "someone"}), code=0)
    assert {item["name"] for item in answer["about"]} == {"provenance.license", "provenance.author"}


def test_another_tokenizer_counts(apr, models, tmp_path):
    apr("export", models.decoder, "-o", "a")
    shutil.copytree("a", "b")
    content = json.loads((tmp_path / "b" / "tokenizer.json").read_text())
    vocabulary = content["model"]["vocab"]
    one, two = "Ġ=", "Ġreturn"
    vocabulary[one], vocabulary[two] = vocabulary[two], vocabulary[one]
    (tmp_path / "b" / "tokenizer.json").write_text(json.dumps(content))
    compare(apr, "a", models.decoder, code=0)
    (field,) = compare(apr, "a", "b")["tokenizer"]
    assert field["name"] == "tokens (2 differ)"
    assert "Ġreturn" in field["a"]
    (tmp_path / "b" / "tokenizer.json").unlink()
    (tmp_path / "b" / "tokenizer_config.json").unlink()
    assert compare(apr, "a", "b")["tokenizer"] == [{"name": "tokenizer", "a": "1024 tokens", "b": "none"}]


def write_gguf(path, models):
    """The decoder as llama.cpp's converter would write it: its names, its order of rows."""
    family = Registry.discover().family("llama370m")
    with open_checkpoint(models.decoder / "model.apr") as checkpoint:
        config = family.build_config(header=checkpoint.header)
        ours = family.map_tensor_names(config, Layout()).fills
        arrays = {name: np.array(checkpoint.read(entry.checkpoint).data) for name, (entry,) in ours.items()}
    writer = GGUFWriter(path, "llama")
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_theta)
    for name, (entry,) in family.map_tensor_names(config, Layout(names="gguf", rope_rows="adjacent")).fills.items():
        array = arrays[name]
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(name.split(".")[-2])
        if heads:  # LlamaModel.permute of llama.cpp's convert_hf_to_gguf.py
            array = array.reshape(heads, 2, array.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(array.shape)
        writer.add_tensor(entry.checkpoint, array)
    for part in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
        part()
    return path


def test_a_gguf_and_the_apr_have_the_same_tensors_whatever_their_names_and_rows(apr, models, tmp_path):
    answer = compare(apr, write_gguf(tmp_path / "x.gguf", models), models.decoder)  # no tokenizer is in this GGUF
    assert [item["name"] for item in answer["tokenizer"]] == ["tokenizer"]
    assert answer["config"] == []
    assert {item["status"] for item in answer["tensors"]} == {"same"}
    found = by_name(answer)["layers.1.self_attn.q_proj.weight"]
    assert (found["a"]["name"], found["b"]["name"], found["max_abs"]) == ("blk.1.attn_q.weight", Q, 0.0)
    about = {item["name"]: (item["a"], item["b"]) for item in answer["about"]}
    assert about["format"] == ("gguf", "apr")
    assert about["rope rows"] == ("adjacent", "split-half")


def test_what_the_gguf_was_imported_to_is_the_same_model(apr, models, tmp_path):
    apr("import", write_gguf(tmp_path / "x.gguf", models), "-o", "x.apr")
    compare(apr, "x.gguf", "x.apr", code=0)


def test_a_head_stored_a_second_time_is_no_difference(apr, models, tmp_path):
    apr("export", models.decoder, "-o", "a")
    shutil.copytree("a", "b")
    (weights,) = (tmp_path / "b").glob("*.safetensors")
    tensors = load_file(weights)
    save_file({**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"].copy()}, weights, metadata={"format": "pt"})
    answer = compare(apr, "a", "b", code=0)
    assert answer["left_out"] == ["lm_head.weight (B)"]


def test_files_of_two_families_are_compared_by_name(apr, models):
    answer = compare(apr, models.decoder, models.encoder)
    assert answer["family"] is None
    assert "A: llama370m; B: codebert" in answer["reason"]
    assert {item["status"] for item in answer["tensors"]} == {"missing in A", "missing in B"}
    assert {item["name"] for item in answer["config"]} >= {"rope_theta", "layer_norm_eps"}


def test_the_table_lists_what_differs_and_all_lists_everything(apr, models, copy):
    changed = copy("b.apr", q=lambda array: array * 2)
    short, long = (apr("diff", models.decoder, changed, *more, code=1).stdout for more in ((), ("--all",)))
    assert "layers.1.self_attn.q_proj.weight  values  [128, 128]" in short
    assert "1.00000000" in short
    assert "layers.0.self_attn.q_proj.weight" not in short
    assert "layers.0.self_attn.q_proj.weight" in long
    assert short.splitlines()[-1] == f"different: 1 of {len(header_tensors(models))} tensors differ"


def header_tensors(models):
    with open_checkpoint(models.decoder / "model.apr") as checkpoint:
        return checkpoint.header.tensors


def test_trouble_has_an_exit_status_of_its_own(apr, models, tmp_path):
    (tmp_path / "bad.apr").write_bytes(b"APR\0" + bytes(100))
    assert "no such file" in apr("diff", models.decoder, "nothing.apr", code=2).stderr
    assert "bad.apr" in apr("diff", models.decoder, "bad.apr", code=2).stderr
    assert "one of the installed families" in apr("diff", models.decoder, models.decoder, "--arch", "llama371m", code=2).stderr


def test_nothing_of_torch_is_imported(models):
    code = "import sys; from apr_train.cli import cli; cli(sys.argv[1:], standalone_mode=False); "
    code += "print('torch' in sys.modules, file=sys.stderr)"
    command = [sys.executable, "-c", code, "diff", str(models.decoder), str(models.decoder)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
    assert done.stderr.splitlines()[-1] == "False"


def test_a_header_made_up_from_a_config_matches_by_parameter():
    """Large files are matched by their headers alone."""
    from apr_train.artifact.diff import match

    class Opened:
        def __init__(self, header):
            self.header = header

    family = Registry.discover().family("qwen2")
    config = family.build_config(preset="32b")
    sides = [Opened(header_from(family, config, layout)) for layout in (Layout(), Layout(names="gguf"))]
    matching = match(*sides, Registry.discover())
    assert matching.family == "qwen2"
    assert matching.sides[0].keys() == matching.sides[1].keys()
