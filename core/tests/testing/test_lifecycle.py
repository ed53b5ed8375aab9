"""The checks of a family's whole life: sound families pass, a change anywhere on the way is seen."""

import pytest
import torch
from apr_train.testing import ConformanceError, check_files, check_run, files, installed_family, lifecycle, randomize
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

TOKENS = torch.randint(0, 61, (2, 12), generator=torch.Generator().manual_seed(1))


def reference():
    config = Qwen2Config(
        vocab_size=61, hidden_size=32, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        max_position_embeddings=64, attn_implementation="eager",
    )  # fmt: skip
    return randomize(Qwen2ForCausalLM(config)).eval()


def test_files_of_a_sound_family_pass(tmp_path):
    check_files(installed_family("qwen2"), reference(), TOKENS, tmp_path)


def test_a_weight_that_changed_on_the_way_is_seen(tmp_path, monkeypatch):
    write = files.export_to_folder

    def with_another_weight(conversion, target):
        write(conversion, target)
        tensors = load_file(target / "model.safetensors")
        tensors["model.norm.weight"][3] += 1e-3
        save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})

    monkeypatch.setattr(files, "export_to_folder", with_another_weight)
    with pytest.raises(ConformanceError, match="qwen2 from ours"):
        check_files(installed_family("qwen2"), reference(), TOKENS, tmp_path)


@pytest.mark.parametrize("family", ["llama370m", "qwen2", "codebert"])
def test_runs_of_sound_families_pass(family, tmp_path):
    check_run(installed_family(family), tmp_path, document_mask=family != "codebert", recompute=True)


def test_a_resume_that_differs_is_seen(tmp_path, monkeypatch):
    plan_resume = lifecycle.plan_resume

    def with_another_state(path, *rest):
        state = path / "optimizer.safetensors"
        save_file({name: tensor * 1.01 for name, tensor in load_file(state).items()}, state)
        return plan_resume(path, *rest)

    monkeypatch.setattr(lifecycle, "plan_resume", with_another_state)
    with pytest.raises(ConformanceError, match=r"model\.apr differs"):
        check_run(installed_family("llama370m"), tmp_path)


LLAMA = {
    "vocab_size": 61, "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64,
}  # fmt: skip
CARD = 'model_type="toy",'


@pytest.mark.parametrize(
    ("implied", "fault"),
    [
        ({"hidden_act": "silu"}, None),
        ({}, None),  # what no card implies is asked for
        ({"hidden_act": "gelu"}, "without hidden_act in a file the class takes hidden_act 'silu', and 'gelu' is read"),
        ({"rms_norm_eps": 1e-5}, "without rms_norm_eps in a file the class takes rms_norm_eps 1e-06, and 1e-05 is read"),
        ({"rope_theta": 500.0}, "without rope_parameters in a file the class takes rope_theta 10000.0, and 500.0 is read"),
    ],
)
def test_what_a_card_implies_is_what_the_class_takes(toy, implied, fault):
    family = toy(CARD, f"{CARD} implied={implied!r},")
    model = LlamaForCausalLM(LlamaConfig(**LLAMA))
    if fault is None:
        lifecycle.check_absent_keys(family, model)
        return
    with pytest.raises(ConformanceError) as caught:
        lifecycle.check_absent_keys(family, model)
    (finding,) = caught.value.findings
    assert finding.problem == f"{fault}: say it in FAMILY.implied"
