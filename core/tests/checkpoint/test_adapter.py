"""Adapters: LoRA and peft's other kinds, alone, beside a base, and inside a file."""

import json
import re
import shlex

import numpy as np
import pytest
from apr_train.checkpoint.apr import AprWriter, TensorSpec
from apr_train.checkpoint.open import open_checkpoint
from apr_train.errors import FormatError
from safetensors.numpy import save_file
from transformers.utils import find_adapter_config_file

LORA = {
    f"base_model.model.model.layers.0.self_attn.q_proj.lora_{x}.weight": np.ones(s, np.float32)
    for x, s in (("A", (2, 4)), ("B", (4, 2)))
}
BASE = {"model.embed_tokens.weight": np.ones((4, 4), np.float32)}
CONFIG = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": "Org/Base-0.5B"}


def lay(folder, *, config=CONFIG, base=False, file="adapter_model.safetensors"):
    if base:
        save_file(BASE, folder / "model.safetensors")
        (folder / "config.json").write_text('{"model_type": "llama"}')
    if file.endswith(".bin"):
        (folder / file).write_bytes(b"PK")
    else:
        save_file(LORA, folder / file)
    if config is not None:
        (folder / "adapter_config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    return folder


def message(path):
    with pytest.raises(FormatError) as caught:
        open_checkpoint(path).close()
    assert caught.value.finding.rule == "PREFLIGHT-020"
    return str(caught.value)


def command(said):
    """The words of the command that a message gives."""
    return shlex.split(re.search(r"(apr-train merge .*? -o X\.apr)", said)[1])


@pytest.mark.rule("PREFLIGHT-020")
@pytest.mark.parametrize("file", ["adapter_model.safetensors", "adapter_model.bin"])
def test_an_adapter_alone_names_its_base_and_how_to_merge_it(file, tmp_path):
    said = message(lay(tmp_path, file=file))
    assert "a LoRA adapter, not a whole model" in said
    assert f"found adapter_config.json, {file}, for the base Org/Base-0.5B" in said
    assert "its base, Org/Base-0.5B" in said
    assert command(said) == ["apr-train", "merge", str(tmp_path), "--base", "BASE", "-o", "X.apr"]
    assert ("save it again as safetensors" in said) is file.endswith(".bin")


@pytest.mark.rule("PREFLIGHT-020")
def test_an_adapter_beside_a_base_is_refused_because_transformers_would_load_it_on_top(tmp_path):
    lay(tmp_path, base=True)
    assert find_adapter_config_file(str(tmp_path)) is not None  # all that transformers asks before it loads an adapter, too
    said = message(tmp_path)
    assert "lies beside the model, and would not be used" in said
    assert "Move adapter_* into a folder of their own" in said
    assert command(said) == ["apr-train", "merge", "ADAPTER", "--base", str(tmp_path), "-o", "X.apr"]


@pytest.mark.rule("PREFLIGHT-020")
@pytest.mark.parametrize("file", ["adapter_model.safetensors", "adapter_model.bin"])
def test_an_adapter_s_weights_without_its_config_are_passed_over_as_in_transformers_with_a_warning(file, tmp_path):
    lay(tmp_path, base=True, config=None, file=file)
    assert find_adapter_config_file(str(tmp_path)) is None
    for whole in (True, False):
        with open_checkpoint(tmp_path, whole=whole) as checkpoint:
            assert list(checkpoint.header.tensors) == list(BASE)
            (warning,) = checkpoint.header.findings
        assert (warning.rule, warning.severity) == ("PREFLIGHT-020", "warning")
        assert warning.found == f"{file}, and no adapter_config.json"


@pytest.mark.rule("PREFLIGHT-020")
@pytest.mark.parametrize("config", [CONFIG, None])
def test_who_looks_at_files_sees_an_adapter_s_own_weights_and_that_it_is_no_model(config, tmp_path):
    lay(tmp_path, config=config)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with open_checkpoint(tmp_path, whole=False) as checkpoint:
        assert set(checkpoint.header.tensors) == set(LORA)
        (warning,) = checkpoint.header.findings
    assert (warning.rule, warning.severity) == ("PREFLIGHT-020", "warning")
    assert "adapter, not a whole model" in warning.problem


@pytest.mark.rule("PREFLIGHT-020")
def test_a_pickled_adapter_is_named_and_never_read(tmp_path):
    lay(tmp_path, file="adapter_model.bin")
    with pytest.raises(FormatError, match=r"PREFLIGHT-020.*a LoRA adapter, not a whole model"):
        open_checkpoint(tmp_path, whole=False)


@pytest.mark.rule("PREFLIGHT-020")
def test_an_adapter_beside_an_apr_is_a_warning_for_who_looks_at_files(tmp_path):
    lay(tmp_path)
    with AprWriter(tmp_path / "m.apr", {"model_type": "x"}, [TensorSpec("w", "F32", (2,))]) as writer:
        writer.write("w", np.ones(2, np.float32))
    with open_checkpoint(tmp_path, whole=False) as checkpoint:
        assert [item.rule for item in checkpoint.header.findings] == ["PREFLIGHT-020"]


@pytest.mark.rule("PREFLIGHT-020")
@pytest.mark.parametrize("config", [None, "{", "[]", {"peft_type": 5, "base_model_name_or_path": None}])
def test_an_adapter_with_a_config_that_says_nothing_is_still_one(config, tmp_path):
    assert "adapter, not a whole model" in message(lay(tmp_path, config=config))


@pytest.mark.rule("PREFLIGHT-020")
@pytest.mark.parametrize(("base", "words"), [(True, "Move adapter_* out"), (False, "Give the base model instead")])
def test_learnt_prompts_are_said_to_be_no_weights_to_merge(base, words, tmp_path):
    said = message(lay(tmp_path, base=base, config={**CONFIG, "peft_type": "PROMPT_TUNING"}))
    assert "PROMPT_TUNING adapter" in said
    assert words in said
    assert "apr-train merge" not in said


@pytest.mark.rule("PREFLIGHT-020")
@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        (LORA, "found 2 of 2 tensors are an adapter's"),
        (BASE | LORA, "an adapter (LoRA or another of peft's kinds) that is not merged into the model, .* found 2 of 3"),
        (BASE | {"model.norm.modules_to_save.weight": np.ones(4, np.float32)}, "found 1 of 2"),
        (
            {
                "model.q_proj.base_layer.weight": np.ones(4, np.float32),
                "model.q_proj.lora_A.default.weight": np.ones(4, np.float32),
            },
            "2 of 2",
        ),
        ({"blk.0.attn_q.weight.lora_a": np.ones(4, np.float32)}, "1 of 1"),
    ],
)
def test_an_adapter_s_tensors_inside_a_file_are_called_that(tensors, words, tmp_path):
    save_file(tensors, tmp_path / "m.safetensors")
    said = message(tmp_path / "m.safetensors")
    assert re.search(words.replace("(", r"\(").replace(")", r"\)"), said)
    assert "merge_and_unload()" in said
    with open_checkpoint(tmp_path / "m.safetensors", whole=False) as checkpoint:  # for who looks at the file
        assert [(item.rule, item.severity) for item in checkpoint.header.findings] == [("PREFLIGHT-020", "warning")]


@pytest.mark.rule("PREFLIGHT-020")
def test_the_weights_of_an_adapter_that_are_named_alone_are_merged_by_their_folder(tmp_path):
    lay(tmp_path)
    said = message(tmp_path / "adapter_model.safetensors")
    assert command(said) == ["apr-train", "merge", str(tmp_path), "--base", "BASE", "-o", "X.apr"]


def test_names_that_only_resemble_an_adapter_s_are_a_model_s(tmp_path):
    names = ["model.layers.0.attn.w_lora.lora.0.weight", "model.layers.0.self_attn.kv_a_proj_with_mqa.weight", "base.model.x"]
    save_file({name: np.ones(2, np.float32) for name in names}, tmp_path / "m.safetensors")
    with open_checkpoint(tmp_path / "m.safetensors") as checkpoint:
        assert checkpoint.header.findings == ()
