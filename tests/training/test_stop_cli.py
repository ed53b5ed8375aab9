"""Runs that end in order, and resumes with other settings, through the command line."""

import json
import re

import pytest
import torch
from apr_train.checkpoint.apr import open_apr
from apr_train.run.settings_file import read_toml
from safetensors.torch import load_file

SCRATCH = ("--arch", "llama370m", "--preset", "tiny", "--sequence-length", "32", "--val-batches", "2", "--attention", "sdpa")
RUN = (*SCRATCH, "--sample-tokens", "0", "--threads", "1", "--val-every", "2", "--save-every", "2", "--precision", "fp32")


def changes(place, name):
    return [json.loads(line) for line in (place.run(name) / "changes.jsonl").read_text().splitlines()]


def weights(path):
    with open_apr(path) as reader:
        return {name: torch.from_numpy(reader.read(name).data.copy()) for name in reader.header.tensors}


def test_a_resume_changes_what_may_change_says_so_and_writes_it_down(place):
    place("--data", place.corpus, *RUN, "--steps", "4", "--run", "x")
    changed = ("--batch-size", "4", "--precision", "bf16-weights", "--min-lr-ratio", "0.5", "--save-every", "3", "--lr", "1e-3")
    out = place("--resume", "runs/x", "--steps", "6", *changed)
    for told in (
        "changed: --batch-size 2 → 4 from step 5 on",
        "changed: --steps 4 → 6 from step 5 on",
        "changed: --min-lr-ratio 0.1 → 0.5 from step 5 on",
        "changed: --lr 0.0006 → 0.001 from step 5 on",
        "changed: --precision fp32 → bf16-weights from step 5 on; weights and the optimizer's state become BF16, rounded",
    ):
        assert told in out
    assert {item["setting"] for item in changes(place, "x")} == {
        "data.batch_size",
        "optimizer.lr",
        "optimizer.min_lr_ratio",
        "run.steps",
        "run.save_every",
        "run.precision",
    }
    settings = read_toml(place.run("x") / "config.toml")
    assert (settings.data.batch_size, settings.run.precision, settings.run.steps) == (4, "bf16-weights", 6)
    tokens = [line["tokens"] for line in place.curve("x") if line["step"]]
    assert tokens == [64, 128, 192, 256, 384, 512]
    assert place.curve("x")[-1]["lr"] == pytest.approx(0.5e-3)
    end = load_file(place.run("x") / "step-000006" / "optimizer.safetensors")
    assert {value.dtype for name, value in end.items() if name.startswith("exp_avg")} == {torch.bfloat16}
    out = place("--resume", "runs/x", "--steps", "7", "--precision", "bf16")
    assert "--precision bf16-weights → bf16 from step 7 on; weights and the optimizer's state become F32, exactly" in out
    assert "--batch-size" not in re.findall("changed: .*", out)[0]
    place("report", "runs/x", "-o", "report.html")
    assert "--batch-size 2 → 4 from step 5 on" in (place.folder / "report.html").read_text()
    assert "--batch-size 2 → 4 from step 5 on" in (place.run("x") / "MODEL_CARD.md").read_text()


def test_the_validation_is_of_the_same_rows_whatever_the_batch_size(place):
    place("--data", place.corpus, *RUN, "--steps", "2", "--run", "x")
    place("--data", place.corpus, *RUN, "--steps", "2", "--run", "y")
    (place.run("x") / "metrics.jsonl").write_text("")
    assert "batch-size 2 → 3" in place("--resume", "runs/x", "--batch-size", "3", "--steps", "4", "--lr", "1e-30")
    first, last = place.curve("y")[-1], place.curve("x")[-1]
    assert last["val_loss"] == pytest.approx(first["val_loss"], rel=1e-6)


def test_bfloat16_there_and_back_changes_no_weight_that_it_can_hold(place):
    place("--data", place.corpus, *RUN[:-1], "bf16-weights", "--steps", "2", "--run", "x")
    place("--resume", "runs/x", "--precision", "fp32", "--steps", "3", "--lr", "1e-30", "--weight-decay", "0")
    before, after = (weights(place.run("x") / step / "model.apr") for step in ("step-000002", "step-000003"))
    assert all(value.dtype == torch.float32 for value in after.values())
    for name, value in before.items():
        widened = value.view(torch.uint16).to(torch.int32).bitwise_left_shift(16).view(torch.float32)
        assert torch.equal(widened, after[name])


def test_changes_of_steps_that_are_forgotten_are_forgotten(place):
    place("--data", place.corpus, *RUN, "--steps", "4", "--run", "x", "--keep", "0")
    place("--resume", "runs/x", "--steps", "6", "--batch-size", "3")
    out = place("--resume", "runs/x/step-000002", "--steps", "4", "--batch-size", "2")
    assert "changed:" not in out
    assert (place.run("x") / "changes.jsonl").read_text() == ""
    place("--data", place.corpus, *RUN, "--steps", "4", "--run", "y", "--keep", "0")
    assert place.curve("x") == place.curve("y")


def test_a_damaged_record_of_changes_stops_a_resume(place):
    place("--data", place.corpus, *RUN, "--steps", "2", "--run", "x")
    (place.run("x") / "changes.jsonl").write_text("{}\n")
    assert "changes.jsonl: line 1 is no change of a setting" in place("--resume", "runs/x", "--steps", "4", code=1)


def test_a_run_out_of_time_writes_its_end_and_says_how_to_go_on(place):
    args = ("--data", place.corpus, *RUN, "--steps", "500", "--run", "x")
    out = place(*args, "--max-time", "1s")
    step = place.curve("x")[-1]["step"]
    assert 1 <= step < 500
    assert f"by --max-time 1s, after step {step} of 500; everything is saved" in out
    assert "apr-train --resume runs/x" in out
    assert "val_loss" in place.curve("x")[-1]
    assert (place.run("x") / "MODEL_CARD.md").is_file()
    with open_apr(place.run("x") / "model.apr") as reader:
        assert reader.raw_metadata["apr_train.run"]["step"] == step
    out = place("--resume", "runs/x", "--max-time", "0", "--steps", str(step + 2))
    assert "by --max-time" not in out
    assert place.curve("x")[-1]["step"] == step + 2


def test_averages_and_the_best_are_named_at_the_end_and_in_the_report(place):
    options = ("--ema", "0.5", "--keep-best", "--keep", "1", "--skip-spikes", "6", "--early-stop", "9")
    out = place("--data", place.corpus, *RUN, "--steps", "6", "--run", "x", "--lr", "5e-3", *options)
    assert "step-000006, validation loss" in out
    assert "of step 6, the averaged weights" in out
    assert "without averaging" in out
    step, result = (weights(path / "model.apr") for path in (place.run("x") / "step-000006", place.run("x")))
    averages = load_file(place.run("x") / "step-000006" / "averaging.safetensors")
    assert all(torch.equal(step[name], result[name]) for name in result)
    assert torch.equal(averages["averaged.norm.weight"], result["model.norm.weight"])
    assert not torch.equal(averages["trained.norm.weight"], result["model.norm.weight"])
    place("report", "runs/x", "-o", "report.html")
    told = (place.folder / "report.html").read_text()
    assert "step-000006, validation loss" in told
    assert "of the averaged weights" in told


@pytest.mark.rule("PREFLIGHT-030")
def test_every_setting_without_a_meaning_is_refused_at_once(place):
    idle = ("--fim-rate", "0.4", "--train-on", "all", "--mask-probability", "0.2", "--lora-alpha", "8", "--decay-ratio", "0.3")
    out = place("--data", place.corpus, *RUN, *idle, "--keep-best", "syntax", "--rope-layout", "adjacent", "--dry-run", code=3)
    found = set(re.findall(r"PREFLIGHT-030: (--[a-z-]+)", " ".join(out.split())))
    assert found == {
        "--fim-rate",
        "--train-on",
        "--mask-probability",
        "--lora-alpha",
        "--decay-ratio",
        "--keep-best",
        "--rope-layout",
    }
    assert "ready: 0 errors" in place("--data", place.corpus, *RUN, "--dry-run")


@pytest.mark.rule("PREFLIGHT-030")
def test_a_resume_judges_what_it_is_given(place):
    place("--data", place.corpus, *RUN, "--steps", "2", "--run", "x")
    path = place.run("x") / "config.toml"
    path.write_text(path.read_text().replace("fim_rate = 0.5", "fim_rate = 0.4"))  # of a version that ignored it
    assert "ready: 0 errors" in place("--resume", "runs/x", "--steps", "3", "--dry-run")
    out = place("--resume", "runs/x", "--steps", "3", "--decay-ratio", "0.3", "--dry-run", code=3)
    assert "PREFLIGHT-030: --decay-ratio: this would change nothing, expected --schedule wsd, found --schedule cosine" in out


def test_averaged_adapters_go_on_bit_for_bit(place):
    pytest.importorskip("peft")
    place("--data", place.corpus, *RUN, "--steps", "1", "--run", "base")
    base = ("--data", place.corpus, *RUN[4:], "--arch", "llama370m", "--init", "runs/base/model.apr", "--allow-cold-init")
    args = (*base, "--lora-rank", "2", "--ema", "0.5", "--lr", "1e-2", "--schedule", "constant", "--warmup-steps", "0")
    place(*args, "--steps", "4", "--run", "whole")
    place(*args, "--steps", "2", "--run", "x")
    place("--resume", "runs/x", "--steps", "4")
    ends = [place.run(name) for name in ("whole", "x")]
    for file in ("adapter/adapter_model.safetensors", "step-000004/averaging.safetensors"):
        one, other = (load_file(end / file) for end in ends)
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)
    trained = {name for name in one if name.startswith("trained.")}
    assert trained
    assert all("lora_" in name for name in trained)


@pytest.mark.slow
def test_a_run_from_scratch_ends_whose_vocabulary_is_mostly_reserved(place):
    """Its metadata was 23 MB at the end of the run, of 16 MiB that there may be."""
    sizes = ("--vocab-size", "151936", "--run", "x", "--steps", "1")
    out = place("--data", place.corpus, *RUN, *sizes)
    assert "reserved" in out
    with open_apr(place.run("x") / "model.apr") as reader:
        assert reader.header.tokenizer.size == 151_936
