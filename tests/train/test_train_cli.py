"""`apr-train …` as a user types it."""

import json
import math

import pytest
from apr_train.errors import PreflightError
from apr_train.formats.apr import open_apr
from apr_train.formats.apr.writer import AprWriter, TensorSpec
from safetensors.torch import load_file

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
    assert {item.name for item in folder.iterdir() if not item.name.startswith(".")} == written
    first = place.curve("llama370m-tiny")[0]
    assert first["val_loss"] == pytest.approx(math.log(1024), abs=0.2)


def test_names_of_runs_are_counted_up(place):
    for _ in range(2):
        place.train(*SCRATCH, "--steps", "0")
    assert {item.name for item in (place.folder / "runs").iterdir()} == {"llama370m-tiny", "llama370m-tiny-2"}


def test_a_used_name_is_refused(place):
    place.train(*SCRATCH, "--steps", "0", "--run", "x")
    assert "--resume" in place.train(*SCRATCH, "--steps", "0", "--run", "x", code=1)


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
    assert "run.stpes: did you mean steps?" in place("--config", "run.toml", code=1)


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
def test_without_init_nothing_of_a_checkpoint_is_read(place, taught):
    place.train(*SCRATCH, "--steps", "1", "--run", "plain")
    (place.folder / "model.apr").write_bytes(taught.read_bytes())
    place.train(*SCRATCH, "--steps", "1", "--run", "beside a checkpoint")
    place.assert_same_end("plain", "beside a checkpoint", step=1)


@pytest.mark.rule("FALSIFY-APR-PRETRAIN-INIT-006")
def test_a_taught_model_passes_and_goes_on_learning(place, taught):
    out = place.train("--init", taught, "--steps", "20", "--run", "x", "--lr", "1e-3", "--batch-size", "8")
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
    for part in ("Apache-2.0", noted["init"], "validation loss", "tensors", 'objective = "causal-lm"'):
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


@pytest.mark.parametrize("extra", [("--document-mask",), ("--recompute",), ("--deterministic",), ("--schedule", "wsd")])
def test_options_that_change_the_way_not_the_goal(place, extra):
    place.train(*SCRATCH, "--steps", "2", "--run", "x", *extra)
    assert place.curve("x")[-1]["step"] == 2


def test_recomputing_gives_the_same_numbers(place):
    place.train(*SCRATCH, "--steps", "3", "--run", "kept", "--precision", "fp32")
    place.train(*SCRATCH, "--steps", "3", "--run", "again", "--precision", "fp32", "--recompute")
    assert place.curve("kept") == place.curve("again")


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
    for part in ("--batch-size", "--no-compile", "[default: cosine]", "--seq-len", "--resume", "causal-lm|masked-lm"):
        assert part in out


def test_a_preflight_error_holds_all_findings():
    assert PreflightError.exit_code == 3
