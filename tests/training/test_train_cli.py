"""`apr-train …` as a user types it."""

import json
import math
import os
import re
import shutil

import pytest
import torch
from apr_train.checkpoint.apr import open_apr
from apr_train.checkpoint.apr.writer import AprWriter, TensorSpec
from apr_train.errors import DataError, PreflightError, RunError
from apr_train.family.certificate import certificate_path, read_certificate
from apr_train.family.registry import Registry
from apr_train.preflight import opening
from apr_train.run.preflight_file import read_preflight
from apr_train.run.samples import read_samples
from apr_train.run.settings_file import read_toml
from apr_train.training import build, compilation, finish, inputs, loop, trainer
from safetensors.torch import load_file

from tests.training.conftest import SMALL

SCRATCH = ("--arch", "llama370m", "--preset", "tiny")


def with_metadata(source, target, **changes):
    """A copy of an .apr with other metadata."""
    with open_apr(source) as old:
        specs = [TensorSpec(tensor.name, tensor.dtype, tensor.shape) for tensor in old.header.tensors.values()]
        with AprWriter(target, {**old.raw_metadata, **changes}, specs) as writer:
            for name in old.header.tensors:
                writer.write(name, old.read_raw(name))
    return target


def metadata(path):
    with open_apr(path) as checkpoint:
        return checkpoint.raw_metadata


def test_a_run_from_scratch_needs_two_words(place):
    out = place.train(*SCRATCH, "--steps", "3")
    for part in ("836,736 parameters, from scratch, preset tiny", "sdpa", "validation loss", "MODEL_CARD.md", "tokens/s"):
        assert part in out
    folder = place.run("llama370m-tiny")
    written = {"model.apr", "MODEL_CARD.md", "config.toml", "identity.json", "metrics.jsonl", "step-000003"}
    written |= {"preflight.json", "machine.json", "samples.jsonl"}
    assert {item.name for item in folder.iterdir() if not item.name.startswith(".")} == written
    data = next(line for line in out.splitlines() if line.startswith("data "))
    assert re.fullmatch(r"data .*: [\d,]+ tokens to learn from, [\d,]+ more held out", data)
    first = place.curve("llama370m-tiny")[0]
    assert first["val_loss"] == pytest.approx(math.log(1024), abs=0.2)


def test_names_of_runs_are_counted_up(place):
    for _ in range(2):
        place.train(*SCRATCH, "--steps", "0")
    assert {item.name for item in (place.folder / "runs").iterdir()} == {"llama370m-tiny", "llama370m-tiny-2"}


def test_a_used_name_is_refused(place):
    place.train(*SCRATCH, "--steps", "0", "--run", "x")
    assert "--resume" in place.train(*SCRATCH, "--steps", "0", "--run", "x", code=3)


def test_the_written_settings_make_the_same_run_again(place):
    place.train(*SCRATCH, "--steps", "3", "--run", "first", "--accumulate", "2")
    place("--config", place.run("first") / "config.toml", "--run", "second")
    place.assert_same_end("first", "second", step=3)


def test_the_command_line_wins_over_the_file(place):
    (place.folder / "run.toml").write_text("[run]\nsteps = 9\nseed = 5\n")
    place.train(*SCRATCH, "--config", "run.toml", "--steps", "1", "--run", "x")
    written = (place.run("x") / "config.toml").read_text()
    assert "steps = 1\n" in written
    assert "seed = 5\n" in written


def test_an_unknown_key_offers_the_closest(place):
    (place.folder / "run.toml").write_text("[run]\nstpes = 9\n")
    assert "[run.stpes]: no such setting. did you mean run.steps?" in place("--config", "run.toml", code=1)


def test_a_dry_run_writes_nothing(place, taught):
    out = place.train("--init", taught, "--dry-run")
    assert "ready: 0 errors" in out
    assert list(place.folder.iterdir()) == []


@pytest.mark.rule("FALSIFY-APR-PRETRAIN-INIT-003")
@pytest.mark.rule("FALSIFY-APR-PRETRAIN-INIT-004")
@pytest.mark.parametrize(("content", "rule"), [(None, "INIT-003"), (b"", "INIT-004"), (b"what is this file", "INIT-004")])
def test_a_file_that_is_none_stops_before_anything_is_made(place, content, rule):
    if content is not None:
        (place.folder / "x.apr").write_bytes(content)
    assert rule in place.train("--init", "x.apr", code=3)
    assert not (place.folder / "runs").exists()


@pytest.mark.rule("FALSIFY-APR-PRETRAIN-INIT-001")
@pytest.mark.rule("FALSIFY-APR-PRETRAIN-INIT-002")
def test_without_init_nothing_of_a_checkpoint_is_read(place, taught, monkeypatch):
    place.train(*SCRATCH, "--steps", "1", "--run", "plain")
    (place.folder / "model.apr").write_bytes(taught.read_bytes())
    for module, name in ((opening, "open_checkpoint"), (inputs, "open_source"), (build, "load_weights")):
        monkeypatch.setattr(module, name, lambda *args, name=name, **values: pytest.fail(f"{name} ran"))
    place.train(*SCRATCH, "--steps", "1", "--run", "beside a checkpoint")
    place.assert_same_end("plain", "beside a checkpoint", step=1)


@pytest.mark.rule("FALSIFY-APR-PRETRAIN-INIT-006")
def test_a_taught_model_passes_and_goes_on_learning(place, taught):
    out = place.train("--init", taught, "--steps", "20", "--run", "x", "--lr", "3e-4", "--batch-size", "8")
    assert "FALSIFY-APR-PRETRAIN-INIT-006: validation loss" in out
    lines = place.curve("x")
    assert lines[0]["val_loss"] < math.log(1024) - 3
    assert lines[-1]["val_loss"] < lines[0]["val_loss"]


@pytest.mark.rule("FALSIFY-APR-PRETRAIN-INIT-006")
def test_weights_that_know_nothing_are_refused_unless_asked_for(place):
    place.train(*SCRATCH, "--steps", "0", "--run", "cold")
    cold = place.run("cold") / "model.apr"
    out = place.train("--init", cold, "--steps", "2", "--run", "x", code=1)
    assert "FALSIFY-APR-PRETRAIN-INIT-006" in out
    assert "--allow-cold-init" in out
    place.train("--init", cold, "--steps", "2", "--run", "y", "--allow-cold-init")
    assert len(place.curve("y")) == 3


@pytest.mark.rule("FALSIFY-APR-PRETRAIN-INIT-009")
def test_optimizer_and_schedule_start_fresh_whatever_lies_beside_the_weights(place, taught):
    checkpoint = next(taught.parent.glob("step-*")) / "model.apr"
    place.train("--init", checkpoint, "--steps", "2", "--run", "beside", "--save-every", "1")
    (place.folder / "alone.apr").write_bytes(checkpoint.read_bytes())
    place.train("--init", "alone.apr", "--steps", "2", "--run", "alone", "--save-every", "1")
    place.assert_same_end("beside", "alone", step=2)
    state = load_file(place.run("beside") / "step-000001" / "optimizer.safetensors")
    assert {float(value) for key, value in state.items() if key.startswith("step.")} == {1.0}


@pytest.mark.rule("FALSIFY-APR-PRETRAIN-INIT-010")
@pytest.mark.parametrize("precision", ["fp32", "bf16", "bf16-weights"])
def test_no_steps_twice_give_the_same_bytes(place, taught, precision):
    for name in ("one", "two"):
        place.train("--init", taught, "--steps", "0", "--run", name, "--precision", precision)
    made = [(place.run(name) / "model.apr").read_bytes() for name in ("one", "two")]
    assert made[0] == made[1]


@pytest.mark.rule("FALSIFY-APR-PRETRAIN-INIT-010")
def test_no_steps_in_fp32_keep_every_weight(place, taught):
    place.train("--init", taught, "--steps", "0", "--run", "x")
    with open_apr(taught) as before, open_apr(place.run("x") / "model.apr") as after:
        assert before.header.tensors == after.header.tensors
        assert all(before.read_raw(name) == after.read_raw(name) for name in before.header.tensors)


def test_provenance_is_inherited_and_the_run_is_noted(place, taught):
    licence = {"license": "Apache-2.0", "data_source": "somewhere", "data_license": "CC-BY-4.0", "author": "someone"}
    stamped = with_metadata(taught, place.folder / "stamped.apr", **licence)
    place.train("--init", stamped, "--steps", "1", "--run", "x")
    found = metadata(place.run("x") / "model.apr")
    assert {key: found[key] for key in licence} == licence
    noted = found["apr_train.run"]
    with open_apr(stamped) as checkpoint:
        assert noted["init"] == checkpoint.content_hash()
    assert noted["corpus"] == json.loads((place.run("x") / "identity.json").read_text())["corpus"]
    assert noted["settings"]["optimizer"]["lr"] == 5e-05
    assert set(noted["versions"]) == {"apr-train", "apr-train-llama370m", "torch"}
    assert str(place.folder) not in json.dumps(found)
    card = (place.run("x") / "MODEL_CARD.md").read_text()
    certificate = read_certificate(certificate_path(Registry.discover().family("llama370m").plugin))
    certified = f"by its author, certificate {certificate.sha256[:12]} |"
    for part in ("Apache-2.0", noted["init"], "validation loss", "tensors", 'objective = "causal-lm"', certified):
        assert part in card


def test_a_tiny_encoder_learns_by_masking(place):
    args = ("--arch", "codebert", "--preset", "tiny", "--run", "x", "--lr", "3e-3", "--batch-size", "16")
    place.train(*args, "--steps", "60", "--precision", "fp32")
    lines = place.curve("x")
    assert lines[-1]["val_loss"] < lines[0]["val_loss"] - 1.0
    assert lines[-1]["val_accuracy"] > lines[0]["val_accuracy"]


def test_an_encoder_is_refused_by_the_causal_objective(place):
    out = place.train("--arch", "codebert", "--preset", "tiny", "--objective", "causal-lm", code=3)
    assert "PREFLIGHT-002" in out


def test_a_document_mask_learns_no_document_from_another(place):
    args = (*SCRATCH, "--steps", "3", "--precision", "fp32", "--batch-size", "8")
    place.train(*args, "--run", "plain")
    place.train(*args, "--run", "masked", "--document-mask")
    plain, masked = place.curve("plain"), place.curve("masked")
    assert sum(line["targets"] for line in masked[1:]) < sum(line["targets"] for line in plain[1:])
    assert all(ours["loss"] != theirs["loss"] for ours, theirs in zip(masked[1:], plain[1:], strict=True))


def test_best_fit_learns_whole_documents_and_says_what_is_padding(place):
    args = (*SCRATCH, "--steps", "3", "--precision", "fp32", "--batch-size", "8", "--packing", "best-fit")
    out = place.train(*args, "--run", "packed")
    first = out.index("step 0/3")
    (share,) = re.findall(r"best-fit: ([\d.]+) % padding", out[:first])
    assert 0 < float(share) < 20
    place.train(*args, "--run", "said", "--document-mask")
    assert place.curve("packed") == place.curve("said")
    settings = read_toml(place.run("packed") / "config.toml")
    assert (settings.data.packing, settings.data.document_mask) == ("best-fit", True)


def test_a_wsd_schedule_falls_at_the_end(place):
    shape = ("--schedule", "wsd", "--warmup-steps", "1", "--decay-ratio", "0.4", "--min-lr-ratio", "0.5")
    place.train(*SCRATCH, "--steps", "5", "--lr", "1e-3", *shape, "--run", "x")
    rates = [line["lr"] for line in place.curve("x")[1:]]
    assert rates == pytest.approx([1e-3, 1e-3, 1e-3, 7.5e-4, 5e-4])


def test_a_deterministic_run_asks_torch_for_it_and_comes_again(place, monkeypatch):
    torch.use_deterministic_algorithms(False)
    usual, asked = loop.train_step, []

    def step(*args, **kwargs):
        asked.append(torch.are_deterministic_algorithms_enabled())
        return usual(*args, **kwargs)

    monkeypatch.setattr(loop, "train_step", step)
    for name in ("one", "two"):
        place.train(*SCRATCH, "--steps", "2", "--deterministic", "--run", name)
    assert asked == [True] * 4
    place.assert_same_end("one", "two", step=2)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # torch.compile's own, of itself
def test_a_compiled_run_validates_and_resumes_like_any_other(place):
    args = (*SCRATCH, "--steps", "4", "--val-every", "2", "--save-every", "2", "--precision", "fp32")
    for name in ("whole", "back"):
        place.train(*args, "--compile", "--run", name)
    place("--resume", "runs/back/step-000002")
    place.assert_same_end("whole", "back", step=4)
    place.train(*args, "--run", "plain")
    plain, compiled = ([line["val_loss"] for line in place.curve(name) if "val_loss" in line] for name in ("plain", "whole"))
    assert len(compiled) == 3
    assert compiled == pytest.approx(plain, rel=1e-4)


def test_a_run_goes_on_without_the_compiler_that_is_not_there(place):
    """The command line in a process of its own: torch remembers which compiler it has found."""
    args = ("--data", place.corpus, *SMALL, *SCRATCH, "--steps", "1", "--precision", "fp32", "--compile", "--run", "x")
    place.train(*SCRATCH, "--steps", "1", "--precision", "fp32", "--run", "plain")
    environment = {**os.environ, "CXX": str(place.folder / "no-such-compiler")}
    with place.start(*args, env=environment) as process:
        said, _ = process.communicate(timeout=120)
    assert process.returncode == 0, said
    assert said.count("the run goes on without --compile") == 1
    assert "torch.compile does not work here (InvalidCxxCompiler: No working C++ compiler found" in said
    assert read_toml(place.run("x") / "config.toml").run.compile is False
    place.assert_same_end("x", "plain", step=1)


def test_what_was_decided_about_compiling_stands_in_the_config_and_goes_for_a_resume(place, monkeypatch):
    monkeypatch.setattr(compilation, "PAYS", {"cpu": 1.0})
    monkeypatch.setattr(inputs, "compiler_fault", lambda device: None)
    compiled = []
    monkeypatch.setattr(build, "compile_blocks", compiled.append)
    step, heads = loop.train_step, []

    def take(*args, compiled, **named):
        heads.append(compiled)
        return step(*args, compiled=False, **named)

    monkeypatch.setattr(loop, "train_step", take)
    args = (*SCRATCH, "--steps", "2", "--save-every", "1", "--precision", "fp32")
    out = place.train(*args, "--run", "x")
    assert "a run of so many operations is compiled" in out
    assert read_toml(place.run("x") / "config.toml").run.compile is True
    monkeypatch.setattr(compilation, "PAYS", {"cpu": 1e30})
    out = place("--resume", "runs/x/step-000001")
    assert "a run of so many operations" not in out
    assert len(compiled) == 2
    monkeypatch.setattr(compilation, "PAYS", {"cpu": 1.0})
    place.train(*args, "--no-compile", "--run", "no")
    assert len(compiled) == 2
    assert heads == [True] * 3 + [False] * 2


def test_a_resume_without_the_compiler_that_there_was_is_a_change_of_the_run(place, monkeypatch):
    """Its numbers differ from there on, so it is noted where a change by the user is."""
    step = loop.train_step
    monkeypatch.setattr(build, "compile_blocks", lambda model: None)
    monkeypatch.setattr(loop, "train_step", lambda *args, compiled, **named: step(*args, compiled=False, **named))
    monkeypatch.setattr(inputs, "compiler_fault", lambda device: None)
    place.train(*SCRATCH, "--steps", "2", "--save-every", "1", "--precision", "fp32", "--compile", "--run", "x")
    monkeypatch.setattr(inputs, "compiler_fault", lambda device: "no compiler")
    out = place("--resume", "runs/x/step-000001")
    assert "no compiler: the run goes on without --compile" in out
    assert "changed: --compile true → false from step 2 on" in out
    told = {"step": 1, "setting": "run.compile", "before": True, "after": False}
    assert [json.loads(line) for line in (place.run("x") / "changes.jsonl").read_text().splitlines()] == [told]


@pytest.mark.rule("INV-TRAIN-007")
def test_a_loss_that_is_no_number_ends_the_run_at_the_last_good_state(place):
    args = ("--steps", "5", "--save-every", "0", "--precision", "fp32", "--warmup-steps", "0", "--lr", "1e15")
    out = place.train(*SCRATCH, *args, "--run", "x", code=1)
    assert "INV-TRAIN-007: step 2:" in out
    assert [item.name for item in place.run("x").glob("step-*")] == ["step-000001"]
    assert not (place.run("x") / "model.apr").exists()


def test_the_sample_is_what_generate_says(place, taught):
    prompt = "def alpha_beta(count):"
    args = ("--steps", "0", "--precision", "fp32", "--prompt", prompt, "--sample-tokens", "12", "--run", "x")
    place.train("--init", taught, *args)
    sample = (place.run("x") / "MODEL_CARD.md").read_text().partition("## Sample")[2].partition("\n## ")[0]
    shown = sample.split("```\n")[3].removesuffix("\n")
    made = place("generate", place.run("x"), "--prompt", prompt, "--max-tokens", "12", "--echo")
    assert shown.strip()
    assert prompt + shown in made


def test_a_run_is_not_lost_to_a_prompt_without_a_token(place, monkeypatch):
    def refuse(*args):
        raise DataError("no token is in the prompt")

    monkeypatch.setattr(finish, "ids_of_prompt", refuse)
    assert "no sample: no token is in the prompt" in place.train(*SCRATCH, "--steps", "1", "--run", "x")
    assert "## Sample" not in (place.run("x") / "MODEL_CARD.md").read_text()


def test_a_run_writes_its_preflight_before_it_trains_and_its_sample_at_the_end(place, monkeypatch):
    def stop(run, **_):
        raise RunError("stopped before step 1")

    args = (*SCRATCH, "--run", "x", "--prompt", "```")
    with monkeypatch.context() as patch:
        patch.setattr(trainer, "train", stop)
        place.train(*args, "--steps", "1", code=1)
    preflight = read_preflight(place.run("x") / "preflight.json")
    assert preflight.facts["vocab_size"] == 1024
    assert not (place.run("x") / "samples.jsonl").exists()
    place.train(*args, "--steps", "1")
    (sample,) = read_samples(place.run("x") / "samples.jsonl")
    assert (sample.step, sample.prompt) == (1, "```")
    card = (place.run("x") / "MODEL_CARD.md").read_text()
    assert f"````\n```\n````\n\n```\n{sample.text}\n" in card


def test_the_card_calls_inputs_by_their_names(place, taught):
    init = shutil.copy(taught, place.folder / "taught.apr")
    place.train("--init", init, "--steps", "0", "--run", "x")
    place.train("--init", place.run("x") / "model.apr", "--allow-cold-init", "--steps", "0", "--run", "y")
    cards = [(place.run(name) / "MODEL_CARD.md").read_text() for name in ("x", "y")]
    assert all(str(place.folder) not in card and str(place.corpus) not in card for card in cards)
    assert "| started from | taught.apr |" in cards[0]
    assert "| file | taught.apr |" in cards[0]
    assert "| started from | x/model.apr |" in cards[1]
    assert 'init = "x/model.apr"' in cards[1]
    assert f'data = [\n    "{place.corpus.name}",\n]' in cards[1]


def test_a_sample_longer_than_the_model_ends_with_its_positions(place):
    place.train(*SCRATCH, "--steps", "0", "--run", "x", "--sample-tokens", "100000")
    assert "## Sample" in (place.run("x") / "MODEL_CARD.md").read_text()


def test_the_card_tells_memory_as_people_read_it(place):
    place.train(*SCRATCH, "--steps", "0", "--run", "x", "--precision", "fp32")
    assert "| memory | weights: 3.3 MB, gradients: 3.3 MB, optimizer: 6.7 MB," in (place.run("x") / "MODEL_CARD.md").read_text()


@pytest.mark.parametrize("option", ["--data", "--init", "--run", "--prompt"])
def test_an_empty_text_is_no_path_and_no_prompt(place, option):
    assert f"({option}): empty" in place(*SCRATCH, option, "", code=1)
    assert list(place.folder.iterdir()) == []


def test_recomputing_gives_the_same_numbers(place):
    place.train(*SCRATCH, "--steps", "3", "--run", "kept", "--precision", "fp32")
    place.train(*SCRATCH, "--steps", "3", "--run", "again", "--precision", "fp32", "--recompute")
    assert place.curve("kept") == place.curve("again")


@pytest.mark.rule("INV-TRAIN-011")
def test_an_exhausted_corpus_starts_again_and_says_so(place):
    (place.folder / "small.txt").write_text("one two three four five six seven\n" * 60)
    out = place("--data", "small.txt", *SCRATCH, "--sequence-length", "64", "--attention", "sdpa", "--steps", "30")
    assert "epoch 1 done" in out


def test_the_largest_errors_are_one_message(place):
    out = place.train("--arch", "lama370m", code=3)
    assert "llama370m" in out
    assert "Traceback" not in out


def test_help_names_every_setting_and_shows_defaults(place):
    out = " ".join(place("train", "--help").split())
    for part in ("--batch-size", "--no-compile", "[default: cosine]", "--seq-len", "--resume", "causal-lm|sft|fim|masked-lm"):
        assert part in out


def test_a_preflight_error_holds_all_findings():
    assert PreflightError.exit_code == 3
