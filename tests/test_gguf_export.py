"""`export --format gguf` through the command line: against transformers' models, llama.cpp's own files, and bad input."""

import json
import re
from pathlib import Path
from typing import get_args

import gguf
import numpy as np
import pytest
import torch
import yaml
from apr_train.artifact.gguf import export as export_module
from apr_train.artifact.gguf import reopened as reopened_module
from apr_train.artifact.gguf.k_quants import K_QUANTS
from apr_train.checkpoint.gguf_writing import FILE_TYPES, QUANTISED, GgufDtype
from apr_train.checkpoint.open import open_checkpoint
from apr_train.cli import cli
from apr_train.cli.export import BLOCKS, BY_LLAMA_CPP, FLOATS
from apr_train.data.reference import SHA256, reference_text
from apr_train.testing import installed_family, model_from_file, our_logits
from click.testing import CliRunner
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM, RobertaConfig, RobertaForMaskedLM

SIZES = {
    "vocab_size": 320,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 112,
    "max_position_embeddings": 64,
}
MODELS = {"llama": (LlamaConfig, LlamaForCausalLM), "qwen2": (Qwen2Config, Qwen2ForCausalLM)}
FAMILY_OF = {"llama": "llama370m", "qwen2": "qwen2"}
TOKENS = torch.arange(48)[None] * 7 % 256
EXAMPLES = Path(__file__).parents[1] / "docs" / "families"
WITH_GGUF = sorted(path.parent.name for path in EXAMPLES.glob("*/llama-cpp.gguf"))
COMPARE = Path(__file__).with_name("gguf_against_llama_cpp.py")
TELLING = ("gemma3", "gpt2", "olmo2", "phi3")
"""Those that differ most, for every run of the tests: offsets of norms, transposed and fused tensors, norms of q and k."""


def model_of(kind, **changes):
    config_class, model_class = MODELS[kind]
    torch.manual_seed(0)
    model = model_class(config_class(**SIZES | changes, rms_norm_eps=1e-5)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.1)
    return model


def write_tokenizer(folder):
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate(["<|end|>", *letters, "de", "def"])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[("d", "e"), ("de", "f")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|end|>"])
    tokenizer.add_tokens(["<tool>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|end|>", "chat_template": "{{ m }}"}))
    return tokenizer


def source(tmp_path, kind, *, tokenizer=True, **changes):
    """A Hugging Face folder; returns it with its model."""
    model = model_of(kind, **changes)
    model.save_pretrained(tmp_path / "hf")
    (tmp_path / "hf" / "README.md").write_text("---\nlicense: apache-2.0\nauthor: Ada\n---\n")
    if tokenizer:
        write_tokenizer(tmp_path / "hf")
    return tmp_path / "hf", model


def invoke(*arguments, exit_code=0):
    result = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    assert result.exit_code == exit_code, result.output
    return result.output


def to_gguf(path, target, *options, exit_code=0):
    return invoke("export", path, "-o", target, "--format", "gguf", *options, exit_code=exit_code)


def fields_of(path):
    return {name: field.contents() for name, field in gguf.GGUFReader(path).fields.items()}


def front_matter(path):
    return yaml.safe_load(path.read_text().split("---\n")[1])


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", MODELS)
def test_out_and_in_again_gives_transformers_logits_and_the_same_tensors(kind, tied, tmp_path):
    folder, model = source(tmp_path, kind, tie_word_embeddings=tied)
    output = to_gguf(folder, tmp_path / "m.gguf")
    count = {"llama": 20, "qwen2": 26}[kind] + (not tied)
    assert f"{count} of {count} tensors are identical" in output
    assert f"rows of q and k: {4 if kind == 'llama' else 0} tensors were reordered" in output
    family = installed_family(FAMILY_OF[kind])
    loaded, _ = model_from_file(family, tmp_path / "m.gguf")
    with torch.no_grad():
        torch.testing.assert_close(our_logits(family, loaded, TOKENS), model(TOKENS).logits, rtol=0, atol=2e-5)
    invoke("import", tmp_path / "m.gguf", "-o", tmp_path / "back.apr")
    invoke("import", folder, "-o", tmp_path / "straight.apr")
    with open_checkpoint(tmp_path / "back.apr") as back, open_checkpoint(tmp_path / "straight.apr") as straight:
        assert back.header.tensors == straight.header.tensors
        for name in straight.header.tensors:
            assert back.read_raw(name) == straight.read_raw(name), name
        assert family.build_config(header=back.header) == family.build_config(header=straight.header)


def test_tokenizer_template_and_provenance_are_in_the_file(tmp_path):
    folder, _ = source(tmp_path, "qwen2")
    to_gguf(folder, tmp_path / "m.gguf")
    found = fields_of(tmp_path / "m.gguf")
    expected = {
        "general.architecture": "qwen2",
        "general.type": "model",
        "general.name": "hf",
        "general.author": "Ada",
        "general.license": "apache-2.0",
        "general.file_type": 0,
        "general.quantization_version": 2,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.eos_token_id": 0,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.ggml.merges": ["d e", "de f"],
        "tokenizer.chat_template": "{{ m }}",
    }
    assert {key: found[key] for key in expected} == expected
    assert len(found["tokenizer.ggml.tokens"]) == len(found["tokenizer.ggml.token_type"]) == 320
    assert [found["tokenizer.ggml.token_type"][index] for index in (0, 1, 258, 259, 260)] == [3, 1, 1, 4, 5]
    with open_checkpoint(tmp_path / "m.gguf") as checkpoint:
        spec, provenance = checkpoint.header.tokenizer, checkpoint.header.provenance
    assert spec.size == 260
    assert (provenance["license"], provenance["author"]) == ("apache-2.0", "Ada")


@pytest.mark.parametrize(("dtype", "torch_dtype"), [("f16", torch.float16), ("bf16", torch.bfloat16)])
def test_half_precision_rounds_matrices_as_torch_does_and_keeps_vectors(dtype, torch_dtype, tmp_path):
    folder, model = source(tmp_path, "qwen2")
    to_gguf(folder, tmp_path / "m.gguf", "--dtype", dtype)
    tensors = {item.name: item for item in gguf.GGUFReader(tmp_path / "m.gguf").tensors}
    state = model.state_dict()
    down = state["model.layers.1.mlp.down_proj.weight"].to(torch_dtype)
    assert tensors["blk.1.ffn_down.weight"].data.tobytes() == down.view(torch.uint8).numpy().tobytes()
    for name in ("blk.0.attn_q.bias", "blk.0.attn_norm.weight", "output_norm.weight"):
        assert tensors[name].tensor_type.name == "F32"
    bias = state["model.layers.0.self_attn.q_proj.bias"].numpy()
    np.testing.assert_array_equal(tensors["blk.0.attn_q.bias"].data, bias)


@pytest.mark.parametrize("dtype", ["q8_0", "q5_1", "q5_0", "q4_1", "q4_0"])
def test_blocks_are_the_gguf_packages_own_and_what_cannot_be_one_is_told(dtype, tmp_path):
    folder, model = source(tmp_path, "llama", tie_word_embeddings=True)
    output = to_gguf(folder, tmp_path / "m.gguf", "--dtype", dtype)
    tensors = {item.name: item for item in gguf.GGUFReader(tmp_path / "m.gguf").tensors}
    kind = gguf.GGMLQuantizationType[dtype.upper()]
    up = model.state_dict()["model.layers.0.mlp.up_proj.weight"].numpy()
    assert tensors["blk.0.ffn_up.weight"].tensor_type == kind
    np.testing.assert_array_equal(tensors["blk.0.ffn_up.weight"].data, gguf.quantize(up, kind))
    q = model.state_dict()["model.layers.0.self_attn.q_proj.weight"].numpy()
    rows = q.reshape(4, 2, 8, 64).swapaxes(1, 2).reshape(q.shape)
    np.testing.assert_array_equal(tensors["blk.0.attn_q.weight"].data, gguf.quantize(rows, kind))
    assert tensors["blk.0.ffn_down.weight"].tensor_type.name == "F16"  # rows of 112
    assert "as F16 instead: blk.0.ffn_down.weight, blk.1.ffn_down.weight" in output
    assert tensors["token_embd.weight"].tensor_type.name == "Q8_0"  # the tied head
    assert ("as Q8_0 instead: token_embd.weight" in output) == (dtype != "q8_0")
    assert fields_of(tmp_path / "m.gguf")["general.file_type"] == gguf.LlamaFileType[f"MOSTLY_{dtype.upper()}"]


def test_perplexity_and_agreement_are_measured_printed_and_put_into_the_card(tmp_path):
    """Compared with transformers' two models on the same rows: the source, and the one of the dequantised matrices."""
    folder, model = source(tmp_path, "llama")
    output = to_gguf(folder, tmp_path / "m.gguf", "--dtype", "q4_0")
    held = front_matter(tmp_path / "m.gguf.md")
    numbers = held["apr_train.gguf"]
    invoke("import", tmp_path / "m.gguf", "-o", tmp_path / "q.apr")
    invoke("export", tmp_path / "q.apr", "-o", tmp_path / "q")
    other = LlamaForCausalLM.from_pretrained(tmp_path / "q").eval()
    ids = Tokenizer.from_file(str(folder / "tokenizer.json")).encode(reference_text()).ids
    (loss, best), (other_loss, others) = rows_of(model, ids), rows_of(other, ids)
    assert numbers["source_perplexity"] == pytest.approx(np.exp(loss), rel=1e-5)
    assert numbers["perplexity"] == pytest.approx(np.exp(other_loss), rel=1e-5)
    assert numbers["top1_agreement"] == pytest.approx(float((best == others).float().mean()), abs=2 / len(best))
    assert (numbers["targets"], numbers["text_sha256"]) == (len(ids) - 1, SHA256)
    assert 0.3 < numbers["top1_agreement"] < 1
    assert f"at {numbers['top1_agreement']:.2%} of {numbers['targets']:,} positions" in output
    assert (held["license"], held["author"]) == ("apache-2.0", "Ada")


@torch.no_grad()
def rows_of(model, ids, length=64):
    """Mean loss and most likely tokens of rows that follow on one another."""
    losses, best = [], []
    for start in range(0, len(ids) - 1, length):
        row = torch.tensor(ids[start : start + length + 1])
        logits = model(row[None, :-1]).logits[0]
        losses.append(torch.nn.functional.cross_entropy(logits, row[1:], reduction="sum"))
        best.append(logits.argmax(-1))
    return float(sum(losses)) / (len(ids) - 1), torch.cat(best)


def test_no_verify_compares_nothing_and_says_so(tmp_path, monkeypatch):
    folder, _ = source(tmp_path, "llama")
    monkeypatch.setattr(export_module, "reopened", None)
    output = to_gguf(folder, tmp_path / "m.gguf", "--dtype", "q4_0", "--no-verify")
    assert "compared with its source: not at all (--no-verify)" in output
    assert front_matter(tmp_path / "m.gguf.md")["apr_train.gguf"] == {"dtype": "Q4_0", "compared": False}


def test_types_that_llama_cpp_chose_and_nobody_looked_at_are_not_told(tmp_path, monkeypatch):
    folder, _ = source(tmp_path, "llama")
    monkeypatch.setattr(export_module, "llama_cpp", lambda name, path, target: gguf)
    monkeypatch.setattr(export_module, "_write_by_llama_cpp", lambda plan, path, *_, **__: path.write_bytes(b"GGUF"))
    to_gguf(folder, tmp_path / "m.gguf", "--dtype", "q4_k_m", "--no-verify")
    assert "| tensors | 21, types not looked at |" in (tmp_path / "m.gguf.md").read_text()


def test_without_a_tokenizer_the_file_says_so_and_blocks_are_only_compared(tmp_path):
    folder, _ = source(tmp_path, "qwen2", tokenizer=False)
    output = to_gguf(folder, tmp_path / "m.gguf", "--dtype", "q8_0")
    assert "tokenizer: none in the source" in output
    assert "not measured: perplexity and agreement" in output
    assert "are quantised, with a relative error of at most 0." in output
    assert fields_of(tmp_path / "m.gguf")["tokenizer.ggml.model"] == "none"


def wrong_rows(monkeypatch):
    """A writer that forgets to permute."""
    monkeypatch.setattr("apr_train.family.operations.RopeRowPermutation.to_checkpoint", lambda self, tensor: tensor)


def wrong_values(monkeypatch):
    def shuffled(*arguments, **named):
        for piece in original(*arguments, **named):
            yield piece[::-1].copy()

    original = export_module.GgufPlan.data
    monkeypatch.setattr(export_module.GgufPlan, "data", shuffled)


def wrong_key(monkeypatch):
    original = export_module.write_gguf
    wrong = {"llama.rope.freq_base": 5e5}
    monkeypatch.setattr(
        export_module, "write_gguf", lambda path, name, keys, *rest: original(path, name, {**keys, **wrong}, *rest)
    )


@pytest.mark.parametrize("dtype", ["f32", "q4_0"])
@pytest.mark.parametrize("fault", [wrong_rows, wrong_values, wrong_key])
def test_a_file_that_is_not_its_source_is_found_and_not_put_in_place(fault, dtype, tmp_path, monkeypatch):
    folder, _ = source(tmp_path, "llama")
    (tmp_path / "m.gguf").write_bytes(b"GGUF the older one")
    fault(monkeypatch)
    output = to_gguf(folder, tmp_path / "m.gguf", "--dtype", dtype, exit_code=1)
    assert "the file that was written is not its source" in output
    assert (tmp_path / "m.gguf").read_bytes() == b"GGUF the older one"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hf", "m.gguf"]


def test_a_quantised_tensor_in_another_ones_place_is_too_far_from_it():
    values = np.random.default_rng(0).standard_normal((2, 64, 64))
    assert reopened_module._error(values[0], values[1]) > reopened_module.LARGEST_ERROR
    kind = gguf.GGMLQuantizationType.Q4_0
    coarse = gguf.dequantize(gguf.quantize(values[0].astype(np.float32), kind), kind)
    assert reopened_module._error(values[0], coarse) < 0.2


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--format", "gguf", "--dtype", "q3_k"], "'q3_k' is not one of 'f32', 'f16', 'bf16', 'q8_0'"),
        (["--dtype", "q8_0"], "--dtype q8_0 is only with --format gguf"),
        (["--format", "gguf", "--shard-size", "5"], "--shard-size is only with --format hf"),
        (["--format", "ggml"], "'ggml' is not one of 'hf', 'gguf'"),
    ],
)
def test_wrong_options_get_one_message(options, said, tmp_path):
    assert said in invoke("export", tmp_path / "hf", "-o", tmp_path / "x", *options, exit_code=2)


def test_the_command_offers_every_type_that_can_be_written():
    assert tuple(name.upper() for name in BLOCKS) == QUANTISED
    assert {name.upper() for name in FLOATS + BLOCKS} == {*get_args(GgufDtype)} == {*FILE_TYPES}
    assert tuple(K_QUANTS) == BY_LLAMA_CPP


def test_k_quants_without_llama_cpp_give_the_two_commands(tmp_path, monkeypatch):
    folder, _ = source(tmp_path, "llama")
    monkeypatch.setattr("apr_train.artifact.gguf.k_quants.find_spec", lambda name: None)
    output = to_gguf(folder, tmp_path / "x.gguf", "--dtype", "q4_k_m", exit_code=1)
    plain, target = tmp_path / "x-f32.gguf", tmp_path / "x.gguf"
    assert f"apr-train export {folder} --format gguf --dtype f32 -o {plain} && llama-quantize {plain} {target} Q4_K_M" in output
    assert output.count("q4_k_m") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hf"]


def test_a_family_without_gguf_names_is_refused(tmp_path):
    config = RobertaConfig(
        vocab_size=96,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=48,
        max_position_embeddings=34,
    )
    RobertaForMaskedLM(config).save_pretrained(tmp_path / "hf")
    output = to_gguf(tmp_path / "hf", tmp_path / "x.gguf", exit_code=1)
    assert "the family codebert has no names for a GGUF" in output
    assert "--format hf" in output
    assert not (tmp_path / "x.gguf").exists()


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"hidden_act": "gelu"}, "hidden_act"),
        (
            {
                "rope_parameters": {
                    "rope_type": "yarn",
                    "rope_theta": 1e4,
                    "factor": 2.0,
                    "original_max_position_embeddings": 32,
                    "attention_factor": 1.5,
                }
            },
            "rope_scaling",
        ),
    ],
)
def test_a_config_that_gguf_has_no_key_for_is_refused_by_name(changes, field, tmp_path):
    folder, _ = source(tmp_path, "llama", **changes)
    output = to_gguf(folder, tmp_path / "x.gguf", exit_code=1)
    assert f"[{field}]: llama.cpp has no key for this" in output
    assert not (tmp_path / "x.gguf").exists()


LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip


def test_llama_3s_scaling_is_a_table_and_its_blocks_are_measured_all_the_same(tmp_path):
    folder, _ = source(tmp_path, "llama", rope_parameters=dict(LLAMA3))
    output = to_gguf(folder, tmp_path / "m.gguf", "--dtype", "q8_0")
    table = {item.name: item for item in gguf.GGUFReader(tmp_path / "m.gguf").tensors}["rope_freqs.weight"]
    assert (table.tensor_type.name, table.shape.tolist()) == ("F32", [8])
    assert {1.0, 8.0} <= set(table.data.tolist())
    assert re.search(r"the same most likely token at 9\d\.\d+% of", output)


SCALINGS = {
    "linear": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.5},
    "yarn": {
        "rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "beta_fast": 31.0, "beta_slow": 2.0,
        "original_max_position_embeddings": 16,
    },
    "llama3": LLAMA3 | {"low_freq_factor": 1.25},
}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "scaling"), [(kind, scaling) for kind in MODELS for scaling in SCALINGS if (kind, scaling) != ("qwen2", "llama3")]
)
def test_a_scaling_that_is_written_is_read_again(kind, scaling, tmp_path):
    """Config and tensors of the way through a GGUF, its table included, are those of the straight way."""
    folder, _ = source(tmp_path, kind, rope_parameters=dict(SCALINGS[scaling]))
    to_gguf(folder, tmp_path / "m.gguf")
    invoke("import", tmp_path / "m.gguf", "-o", tmp_path / "back.apr")
    invoke("import", folder, "-o", tmp_path / "straight.apr")
    family = installed_family(FAMILY_OF[kind])
    with open_checkpoint(tmp_path / "back.apr") as back, open_checkpoint(tmp_path / "straight.apr") as straight:
        expected = family.build_config(header=straight.header)
        assert expected.rope_scaling is not None
        assert family.build_config(header=back.header) == expected
        assert back.header.tensors == straight.header.tensors
        assert all(back.read_raw(name) == straight.read_raw(name) for name in straight.header.tensors)


def test_a_foreign_table_of_factors_is_refused_with_its_name(tmp_path):
    folder, _ = source(tmp_path, "llama", rope_parameters=dict(LLAMA3))
    to_gguf(folder, tmp_path / "m.gguf")
    table = {item.name: item for item in gguf.GGUFReader(tmp_path / "m.gguf", "r+").tensors}["rope_freqs.weight"]
    table.data[3] *= 2
    table.data.flush()
    said = invoke("import", tmp_path / "m.gguf", "-o", tmp_path / "back.apr", exit_code=3)
    assert "[rope_freqs.weight]: a tensor of the file is not used by the model" in said


ROUND_TRIP = Path(__file__).with_name("gguf_round_trip.py")


def test_longrope_comes_back_from_a_gguf(examples, tmp_path):
    done = examples.run(tmp_path, ROUND_TRIP, tmp_path, "phi3")
    assert done.returncode == 0, done.stderr[-4000:]
    refused = {"llama3": "rope_scaling"}
    kinds = ("none", "linear", "yarn", "longrope", "longrope with a factor", "longrope with an attention factor")
    assert json.loads(done.stdout.splitlines()[-1]) == {"phi3": dict.fromkeys(kinds, "back") | refused}


def test_llama_3s_scaling_is_refused_where_llama_cpp_reads_no_table(tmp_path):
    folder, _ = source(tmp_path, "qwen2", rope_parameters=dict(LLAMA3))
    output = to_gguf(folder, tmp_path / "m.gguf", exit_code=1)
    assert "[rope_scaling]" in output
    assert "no llama3 scaling in a GGUF of qwen2" in output


def test_a_base_model_without_its_head_is_refused(tmp_path):
    model_of("llama", tie_word_embeddings=False).model.save_pretrained(tmp_path / "hf")
    output = to_gguf(tmp_path / "hf", tmp_path / "m.gguf", exit_code=1)
    assert "a base model without its head" in output


def test_what_is_read_or_of_another_kind_is_never_written_over(tmp_path):
    folder, _ = source(tmp_path, "llama")
    to_gguf(folder, tmp_path / "m.gguf")
    (tmp_path / "other.gguf").write_bytes(b"APR?")
    (tmp_path / "n.gguf.md").write_text("# My notes\n")
    before = {path: path.read_bytes() for path in tmp_path.glob("*.*")}
    assert "WRITE-001" in to_gguf(tmp_path / "m.gguf", tmp_path / "m.gguf", exit_code=1)
    assert "WRITE-003" in to_gguf(folder, tmp_path / "other.gguf", exit_code=1)
    assert "WRITE-003" in to_gguf(folder, tmp_path / "x.apr", exit_code=1)
    assert "WRITE-003" in to_gguf(folder, tmp_path / "n.gguf", exit_code=1)
    assert {path: path.read_bytes() for path in tmp_path.glob("*.*")} == before
    to_gguf(folder, tmp_path / "m.gguf")  # an earlier one, and its card, are replaced
    assert {path: path.read_bytes() for path in tmp_path.glob("*.*")} == before


def test_a_float_export_needs_no_torch(tmp_path, examples):
    folder, _ = source(tmp_path, "llama")
    code = "import sys; from apr_train.cli import cli; cli(sys.argv[1:], standalone_mode=False); print('torch' in sys.modules)"
    done = examples.run(tmp_path, "-c", code, "export", folder, "-o", tmp_path / "m.gguf", "--format", "gguf")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "False"


MAY_ADD = re.compile(r"general\.name|tokenizer\.ggml\.model|.*\.(vocab_size|rope\.dimension_count|rope\.freq_base)")
DEFAULTS = re.compile(r".*\.attention\.(key_length|value_length|head_count_kv)|GGUF\.kv_count")
MAY_LACK = {"phi": {"tokenizer.ggml.add_bos_token"}, "phi3": {"phi3.rope.scaling.original_context_length"}}
"""Keys of llama.cpp's converter that do nothing in these files: one of a tokenizer, one of a scaling; neither is there."""
WITH_A_WINDOW = "phi3"
"""The one of these files that has a window which llama.cpp does not compute."""


@pytest.mark.parametrize(
    "name", [name if name in TELLING else pytest.param(name, marks=pytest.mark.slow) for name in WITH_GGUF]
)
def test_an_example_familys_file_is_llama_cpps_own_tensor_by_tensor_and_key_by_key(examples, tmp_path, name):
    done = examples.run(tmp_path, COMPARE, name, tmp_path)
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert "error" not in found, found
    assert (found["only"], found["other"]) == ([], [])
    assert found["same"] > 10
    assert ("llama.cpp computes full attention in a" in found["output"]) == (name == WITH_A_WINDOW)
    for key, (ours, theirs) in found["keys"].items():
        if key in MAY_LACK.get(name, ()):
            assert ours is None
        elif DEFAULTS.fullmatch(key):
            assert theirs is None or key == "GGUF.kv_count", key
        else:
            assert MAY_ADD.fullmatch(key), (key, ours, theirs)
            assert theirs is None or key == "general.name", (key, ours, theirs)


def test_weights_in_float64_ask_for_a_type(tmp_path):
    model_of("llama").double().save_pretrained(tmp_path / "hf")
    output = to_gguf(tmp_path / "hf", tmp_path / "m.gguf", exit_code=1)
    assert "llama.cpp reads no weights in F64" in output
    assert "Take --dtype f32, f16 or bf16." in output
    assert "21 of 21 tensors are identical" in to_gguf(tmp_path / "hf", tmp_path / "m.gguf", "--dtype", "f32")
