"""Settings of one kind beside those of another: averages, Muon, types of weights, adapters, new tokens, resumes."""

import pytest
import torch
from safetensors.torch import load_file

RUN = ("--arch", "qwen2", "--preset", "tiny", "--batch-size", "2", "--schedule", "constant", "--warmup-steps", "0")
STILL = ("--lr", "1e-30", "--weight-decay", "0")


def trained(place, name, step):
    """Parameter → trained weights of a checkpoint, by its averaging.safetensors."""
    tensors = load_file(place.run(name) / f"step-{step:06d}" / "averaging.safetensors")
    return {key.removeprefix("trained."): value for key, value in tensors.items() if key.startswith("trained.")}


def optimizer(place, name, step):
    return load_file(place.run(name) / f"step-{step:06d}" / "optimizer.safetensors")


@pytest.mark.parametrize("update", ["stochastic", "master"])
def test_averages_of_bfloat16_weights_that_muon_updates_go_on_bit_for_bit(place, update):
    args = (*RUN, "--optimizer", "muon", "--ema", "0.5", "--precision", "bf16-weights", "--bf16-update", update)
    args = (*args, "--keep-best", "--early-stop", "9", "--val-every", "2", "--lr", "1e-2", "--skip-spikes", "6")
    place.train(*args, "--steps", "4", "--run", "whole", "--save-every", "2")
    place.train(*args, "--steps", "2", "--run", "x", "--save-every", "2")
    place("--resume", "runs/x", "--steps", "4")
    place.assert_same_end("whole", "x", step=4)
    one, other = (load_file(place.run(name) / "step-000004" / "averaging.safetensors") for name in ("whole", "x"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_master_copy_that_begins_at_a_resume_is_of_the_trained_weights_not_of_the_averages(place):
    args = (*RUN, "--ema", "0.9", "--precision", "bf16-weights", "--lr", "1e-2")
    place.train(*args, "--steps", "2", "--run", "x", "--keep", "0")
    place("--resume", "runs/x", "--bf16-update", "master", "--steps", "3", *STILL)
    before, after = trained(place, "x", 2), trained(place, "x", 3)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_master_copy_becomes_the_float32_weights_of_a_resume_beside_averages(place):
    args = (*RUN, "--ema", "0.9", "--precision", "bf16-weights", "--bf16-update", "master", "--lr", "1e-2")
    place.train(*args, "--steps", "2", "--run", "x", "--keep", "0")
    place("--resume", "runs/x", "--precision", "fp32", "--steps", "3", *STILL)
    masters, after = optimizer(place, "x", 2), trained(place, "x", 3)
    assert all(torch.equal(masters[f"master.{name}"], value) for name, value in after.items())
    assert any(not torch.equal(value, value.bfloat16().float()) for value in after.values())


@pytest.mark.parametrize(
    ("before", "after", "update", "told"),
    [
        ("fp32", "bf16-weights", "stochastic", "weights and the optimizer's state become BF16, rounded to nearest"),
        ("fp32", "bf16-weights", "master", "weights become BF16, rounded to nearest, and the optimizer's state stays F32"),
        ("bf16-weights", "fp32", "stochastic", "weights and the optimizer's state become F32, exactly"),
        ("bf16-weights", "fp32", "master", "weights and the optimizer's state become F32, exactly"),
    ],
)
def test_muons_state_beside_averages_follows_another_precision_there_and_back(place, before, after, update, told):
    narrow = ("--bf16-update", update)
    here, there = ((), narrow) if after == "bf16-weights" else (narrow, ())
    args = (*RUN, "--optimizer", "muon", "--ema", "0.9", "--keep", "0", "--steps", "2", "--run", "x")
    place.train(*args, "--precision", before, *here)
    said = place("--resume", "runs/x", "--precision", after, "--steps", "3", *there)
    assert f"changed: --precision {before} → {after} from step 3 on; {told}\n" in said
    place("--resume", "runs/x", "--precision", before, "--steps", "4")
    for step, precision in ((3, after), (4, before)):
        state = optimizer(place, "x", step)
        wide = precision == "fp32" or update == "master"
        assert {value.dtype for key, value in state.items() if not key.startswith("step.")} == {
            torch.float32 if wide else torch.bfloat16
        }
        assert any(key.startswith("momentum_buffer.") for key in state)
        assert any(key.startswith("master.") for key in state) == (precision == "bf16-weights" and update == "master")


def test_adapters_stay_float32_at_a_resume_with_another_precision(place, bases):
    args = ("--init", bases["qwen2"][0], "--allow-cold-init", "--lora-rank", "2", "--ema", "0.5", *RUN[4:])
    place.train(*args, "--precision", "bf16-weights", "--steps", "2", "--run", "x", "--keep", "0")
    said = place("--resume", "runs/x", "--precision", "fp32", "--steps", "3", *STILL)
    assert "the base becomes F32, adapters and the optimizer's state stay as they are" in said
    before, after = trained(place, "x", 2), trained(place, "x", 3)
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.fixture
def tokens(place):
    path = place.folder / "tokens.txt"
    path.write_text("<|new|>\nalpha_beta_count\n")
    return path


def test_new_tokens_with_averages_on_a_runs_checkpoint_go_on_bit_for_bit(place, tokens):
    start = (
        "--arch",
        "llama370m",
        "--preset",
        "tiny",
        "--batch-size",
        "2",
        "--precision",
        "fp32",
        "--ema",
        "0.5",
        "--lr",
        "3e-3",
    )
    place.train(*start, "--steps", "2", "--run", "base")
    args = ("--init", "runs/base/step-000002", "--allow-cold-init", "--add-tokens", tokens, *start[4:])
    args = (*args, "--optimizer", "muon", "--schedule", "constant", "--warmup-steps", "0", "--val-every", "2")
    place.train(*args, "--steps", "4", "--run", "whole")
    place.train(*args, "--steps", "2", "--run", "x")
    tokens.unlink()
    place("--resume", "runs/x", "--steps", "4")
    place.assert_same_end("whole", "x", step=4)


def test_groups_of_adapters_beside_frozen_ones_and_averages_go_on_bit_for_bit(place, bases):
    config = place.folder / "run.toml"
    groups = ('pattern = "*lora_A*"\nfrozen = true', 'pattern = "*lora_B*"\nlr = 1e-2')
    config.write_text("".join(f"[[optimizer.group]]\n{group}\n" for group in groups))
    args = ("--init", bases["qwen2"][0], "--allow-cold-init", "--lora-rank", "2", "--config", config, "--ema", "0.5")
    args = (*args, "--precision", "bf16-weights", *RUN[4:], "--optimizer", "muon", "--val-every", "2")
    said = place.train(*args, "--steps", "4", "--run", "whole")
    assert "model      581,456 parameters" in said  # without those of adapters, frozen or not
    assert "6,336 parameters trained, 586,576 frozen" in said
    place.train(*args, "--steps", "2", "--run", "x")
    place("--resume", "runs/x", "--steps", "4")
    one, other = (load_file(place.run(name) / "adapter" / "adapter_model.safetensors") for name in ("whole", "x"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert any("lora_A" in name for name in one)


def test_rates_of_groups_stay_at_a_resume_with_another_rate(place):
    config = place.folder / "run.toml"
    config.write_text('[[optimizer.group]]\npattern = "*embed*"\nlr = 1e-2\n')
    args = (*RUN, "--config", config, "--optimizer", "muon", "--muon-lr", "0.02", "--lr", "1e-3")
    place.train(*args, "--steps", "2", "--run", "x")
    said = place(
        "--resume", "runs/x", "--lr", "1e-4", "--muon-lr", "0.01", "--steps", "3", "--accumulate", "2", "--skip-spikes", "6"
    )
    assert "*embed*: 1 tensor of 114,688 parameters, lr 0.01," in said
    assert "vectors: 11 tensors of 848 parameters, lr 0.0001," in said
    assert "matrices: 14 tensors of 465,920 parameters, lr 0.01 (match-rms-adamw)" in said
