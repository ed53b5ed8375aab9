"""Tensor names that a wrapper was left around: one finding that names it, instead of two for each tensor."""

import json
import re

import pytest
import torch
from apr_train.checkpoint.open import open_checkpoint
from apr_train.cli import cli
from apr_train.family.card import Layout
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM, RobertaConfig, RobertaForMaskedLM

TENSOR_SET = "FALSIFY-APR-PRETRAIN-INIT-007"
SIZES = {
    "vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
    "max_position_embeddings": 34,
}  # fmt: skip
HEADS = {"num_key_value_heads": 2}
MODELS = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, **HEADS)),
    "llama tied": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, **HEADS, tie_word_embeddings=True)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SIZES, **HEADS)),
    "roberta": lambda: RobertaForMaskedLM(RobertaConfig(**SIZES, type_vocab_size=1, pad_token_id=1)),
}
WRAPPERS = ["_orig_mod.", "module.", "base_model.model.", "module._orig_mod.", "someone.elses_wrapper."]


def save(name, folder, rename):
    """A model as transformers saves it, its tensors then renamed."""
    MODELS[name]().save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    save_file({rename(key): tensor for key, tensor in tensors.items()}, folder / "model.safetensors", {"format": "pt"})
    return folder


def behind(wrapper):
    return lambda name: wrapper + name


def errors_of(checked):
    return [finding for finding in checked.report["findings"] if finding["severity"] == "error"]


def do_as_told(finding, file):
    """Run the line of Python in the finding's hint."""
    expression = re.search(r"tensors = (\{.*\}),", finding["hint"]).group(1)
    tensors = eval(expression, {"tensors": load_file(file)})  # what the user is told to run
    save_file(tensors, file, {"format": "pt"})


@pytest.mark.rule("FALSIFY-APR-PRETRAIN-INIT-007")
@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("name", MODELS)
def test_a_prefix_before_every_name_is_one_finding(name, wrapper, tmp_path, check):
    folder = save(name, tmp_path / "hf", behind(wrapper))
    checked = check(folder, *(["--objective", "masked-lm"] if name == "roberta" else []))
    assert checked.exit_code == 3
    errors = errors_of(checked)
    assert [finding["id"] for finding in errors] == [TENSOR_SET], checked.text
    assert errors[0]["problem"] == f"every tensor's name begins with {wrapper}"
    assert errors[0]["where"] == f"{folder} [{wrapper}]"


@pytest.mark.parametrize("name", MODELS)
def test_the_line_of_python_in_the_hint_gives_names_that_load(name, tmp_path, check):
    folder = save(name, tmp_path / "hf", behind("_orig_mod."))
    (finding,) = errors_of(check(folder, "--objective", "masked-lm" if name == "roberta" else "causal-lm"))
    assert "torch.compile" in finding["hint"]
    do_as_told(finding, folder / "model.safetensors")
    assert check(folder, "--objective", "masked-lm" if name == "roberta" else "causal-lm").ids() <= {"PREFLIGHT-011"}


def test_the_name_that_data_parallelism_leaves_is_the_one_that_is_known(tmp_path, check):
    wrapped = list(torch.nn.DataParallel(torch.nn.Linear(2, 2)).state_dict())
    assert wrapped == ["module.weight", "module.bias"]
    (finding,) = errors_of(check(save("llama", tmp_path / "hf", behind("module."))))
    assert "DataParallel" in finding["hint"]


@pytest.mark.rule("FALSIFY-APR-PRETRAIN-INIT-007")
@pytest.mark.parametrize("word", ["_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_orig_mod"])
def test_a_wrapper_around_each_layer_is_one_finding(word, tmp_path, check):
    folder = save("llama", tmp_path / "hf", lambda name: re.sub(r"(layers\.\d+)\.", rf"\1.{word}.", name))
    (finding,) = errors_of(check(folder))
    assert finding["problem"] == f"{word}. stands in the tensors' names"
    do_as_told(finding, folder / "model.safetensors")
    assert check(folder).exit_code == 0


def test_what_else_is_wrong_with_a_wrapped_file_is_told_beside_it(build, check):
    shapes = build.shapes("llama370m", build.config("llama370m"))
    wrapped = {f"module.{name}": shape for name, shape in shapes.items() if name != "model.norm.weight"}
    path = build.apr("llama370m", drop=tuple(shapes), tensors=wrapped)
    fields = [finding["where"] for finding in check(path).report["findings"] if finding["id"] == TENSOR_SET]
    assert fields == [f"{path} [module.]", f"{path} [model.norm.weight]"]


@pytest.mark.parametrize("command", ["import", "export"])
def test_a_conversion_says_the_same_in_one_line(command, tmp_path):
    folder = save("llama tied", tmp_path / "hf", behind("module."))
    done = CliRunner().invoke(cli, [command, str(folder), "-o", str(tmp_path / "out.apr")])
    assert done.exit_code == 3
    assert done.output.count(TENSOR_SET) == 1
    assert "every tensor's name begins with module." in done.output


@pytest.mark.parametrize("bare", [False, True])
@pytest.mark.parametrize("name", ["llama370m", "qwen2", "codebert"])
def test_a_familys_own_prefix_is_no_wrapper(name, bare, build, check):
    path = build.apr(name, bare=bare)
    with open_checkpoint(path) as checkpoint:
        assert set(checkpoint.header.tensors) == set(build.shapes(name, build.config(name), Layout(bare=bare)))
    assert not any("wrap" in json.dumps(item) or "begins with" in item["problem"] for item in check(path).report["findings"])


def test_a_file_of_other_names_altogether_is_not_called_wrapped(build, check):
    path = build.apr("llama370m", drop=tuple(build.shapes("llama370m", build.config("llama370m"))), tensors={"x.h.0.w": (2,)})
    assert "begins with" not in check(path).text
