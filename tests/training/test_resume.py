"""Interrupted runs go on bit for bit, through the command line, whatever ended them."""

import json
import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
from apr_train.checkpoint.apr import open_apr, rewrite
from apr_train.checkpoint.open import open_checkpoint
from apr_train.data.split import SPLIT_RULE
from apr_train.data.tokenizer import build_tokenizer
from apr_train.errors import RunError
from apr_train.run.record import read_record
from apr_train.run.resume import plan_resume
from apr_train.run.settings import RunSettings, Settings
from apr_train.run.settings_file import read_toml
from apr_train.training.setup import prepare

SCRATCH = ("--arch", "llama370m", "--preset", "tiny", "--sequence-length", "32", "--val-batches", "2", "--attention", "sdpa")
RUN = (*SCRATCH, "--sample-tokens", "0", "--threads", "1", "--save-every", "3", "--val-every", "4", "--accumulate", "2")


def wait_for_line(place, name, process, count=1):
    """Until metrics.jsonl has some lines, or the process has ended."""
    path = place.run(name) / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        if path.exists() and path.read_text().count("\n") >= count:
            return
        time.sleep(0.01)


def kill_until_done(place, name, args, *, kills, seed, longest):
    """Start, kill -9 after a random time, resume, and again; the last one runs to its end.

    At least one kill must have hit a run that had steps left: otherwise nothing was tried.
    """
    draw, hits = random.Random(seed), 0
    last = int(args[args.index("--steps") + 1])
    for number in range(kills):
        resumable = (place.run(name) / "config.toml").exists()
        process = place.start(*(("--resume", place.run(name)) if resumable else (*args, "--run", name)))
        lines = len(place.curve(name)) if (place.run(name) / "metrics.jsonl").exists() else 0
        wait_for_line(place, name, process, lines + 1 if number else 1)
        time.sleep(draw.uniform(0, longest))
        process.kill()
        process.communicate()
        hits += process.returncode == -signal.SIGKILL and place.curve(name)[-1]["step"] < last
    assert hits
    place("--resume", place.run(name))


@pytest.mark.parametrize("precision", ["fp32", pytest.param("bf16", marks=pytest.mark.slow), "bf16-weights"])
def test_a_run_killed_at_random_moments_ends_the_same(place, precision):
    args = ("--data", place.corpus, *RUN, "--steps", "40", "--precision", precision)
    place(*args, "--run", "whole")
    kill_until_done(place, "killed", args, kills=2, seed=len(precision), longest=0.5)
    place.assert_same_end("whole", "killed", step=40)


def test_a_run_whose_text_was_held_out_by_another_rule_is_not_gone_on_with(place):
    """One of before the rule was noted says nothing of it."""
    place("--data", place.corpus, *RUN, "--steps", "0", "--run", "x")
    path = place.run("x") / "identity.json"
    noted = json.loads(path.read_text())
    assert noted.pop("split") == SPLIT_RULE
    path.write_text(json.dumps(noted))
    plan = plan_resume(place.run("x"), Settings(run=RunSettings(steps=1)), {"steps"})
    with pytest.raises(RunError, match="chose otherwise which text is held out"), prepare(plan.settings, plan, print):
        pass


def test_a_packed_run_goes_on_bit_for_bit(place):
    args = ("--data", place.corpus, *RUN, "--steps", "16", "--precision", "fp32", "--packing", "best-fit")
    place(*args, "--run", "whole")
    kill_until_done(place, "killed", args, kills=2, seed=3, longest=0.3)
    place.assert_same_end("whole", "killed", step=16)


def test_a_resume_refuses_another_packing(place):
    place("--data", place.corpus, *RUN, "--steps", "2", "--run", "x")
    out = place("--resume", "runs/x", "--packing", "best-fit", "--steps", "5", code=1)
    assert "--packing: a resume cannot change this: it decides what a row is" in out
    assert "expected concatenate, found best-fit" in out


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("arch", ["llama370m", "codebert"])
def test_a_run_killed_many_times_ends_the_same(place, precision, arch):
    run = (*RUN[2:], "--arch", arch, "--steps", "400", "--precision", precision, "--batch-size", "3")
    args = ("--data", place.corpus, *run)
    place(*args, "--run", "whole")
    kill_until_done(place, "killed", args, kills=15, seed=7, longest=1.5)
    place.assert_same_end("whole", "killed", step=400)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_says_how_to_go_on(place, number):
    args = ("--data", place.corpus, *RUN, "--steps", "40", "--precision", "fp32")
    process = place.start(*args, "--run", "stopped")
    wait_for_line(place, "stopped", process, 4)
    process.send_signal(number)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert f"by {number.name} after step" in out
    assert "apr-train --resume runs/stopped" in out
    place("--resume", "runs/stopped")
    place(*args, "--run", "whole")
    place.assert_same_end("whole", "stopped", step=40)


def test_dropout_and_masks_go_on_where_they_were(place):
    args = ("--data", place.corpus, *RUN[2:], "--arch", "codebert", "--precision", "fp32", "--batch-size", "3")
    place(*args, "--steps", "9", "--run", "whole", "--schedule", "constant")
    place(*args, "--steps", "4", "--run", "longer", "--schedule", "constant")
    place("--resume", "runs/longer", "--steps", "9")
    whole, longer = (place.curve(name) for name in ("whole", "longer"))
    drop = {"val_loss", "perplexity", "val_accuracy"}
    assert [{key: line[key] for key in line if key not in drop} for line in whole] == [
        {key: line[key] for key in line if key not in drop} for line in longer
    ]


def test_a_resume_refuses_other_settings_by_name(place):
    place("--data", place.corpus, *RUN, "--steps", "2", "--run", "x")
    out = place("--resume", "runs/x", "--seed", "3", "--warmup-steps", "4", "--steps", "5", "--batch-size", "4", code=1)
    assert "--seed: a resume cannot change this: fresh weights" in out
    assert "--warmup-steps: a resume cannot change this: the steps that are done had their learning rates from it" in out
    assert "--steps:" not in out
    assert "--batch-size" not in out


@pytest.mark.rule("PREFLIGHT-028")
def test_a_resume_refuses_another_corpus(place):
    text = place.folder / "text.py"
    text.write_text("def one():\n    return 1\n" * 200)
    place("--data", text, *RUN, "--steps", "2", "--run", "x")
    text.write_text("def two():\n    return 2\n" * 200)
    tokens = Path(os.environ["APR_TRAIN_CACHE"], "tokens")
    before = set(tokens.iterdir())
    out = place("--resume", "runs/x", "--steps", "4", code=1)
    assert f"PREFLIGHT-028: --data [{text}]: not the text that the run was started on" in out
    assert "--tokenizer" not in out
    assert set(tokens.iterdir()) == before  # it is known before the other text is tokenised


@pytest.mark.rule("PREFLIGHT-028")
def test_a_resume_refuses_another_init_and_a_missing_one_is_said(place, taught):
    init = place.folder / "init.apr"
    init.write_bytes(taught.read_bytes())
    place.train("--init", init, "--steps", "2", "--run", "x")
    init.write_bytes((place.run("x") / "model.apr").read_bytes())
    assert "--init [" in place("--resume", "runs/x", "--steps", "4", code=1)
    init.unlink()
    assert "init.apr is gone" in place("--resume", "runs/x", "--steps", "4")


@pytest.fixture
def started(place, taught):
    """A run from a checkpoint, a tokenizer's file and a folder of text, stopped at step 3 of 6; and one that was not."""
    (place.folder / "old").mkdir()
    with open_apr(taught) as checkpoint:
        build_tokenizer(checkpoint.header.tokenizer).save(place.folder / "old" / "tok.json")
    shutil.copytree(place.corpus, place.folder / "old" / "text")
    shutil.copy(taught, place.folder / "old" / "init.apr")
    files = ("--init", "old/init.apr", "--tokenizer", "old/tok.json", "--data", "old/text")
    args = (*files, *RUN[4:], "--steps", "6", "--precision", "fp32", "--allow-cold-init")
    place(*args, "--run", "whole")
    place(*args, "--run", "moved")
    shutil.rmtree(place.run("moved") / "step-000006")
    (place.run("moved") / "model.apr").unlink()
    return place


def test_what_a_run_reads_may_lie_elsewhere_at_a_resume(started):
    """Equal content goes on bit for bit, and the run records the new place."""
    (started.folder / "old").rename(started.folder / "new")
    new = {name: started.folder / "new" / file for name, file in (("init", "init.apr"), ("tokenizer", "tok.json"))}
    started(
        "--resume", "runs/moved", "--data", "new/text", *(part for name, path in new.items() for part in (f"--{name}", path))
    )
    started.assert_same_end("whole", "moved", step=6)
    settings = read_toml(started.run("moved") / "config.toml")
    assert settings.data.data == (str(started.folder / "new" / "text"),)
    assert (settings.model.init, settings.model.tokenizer) == tuple(map(str, new.values()))
    assert "ready: 0 errors" in started("--resume", "runs/moved", "--steps", "9", "--dry-run")


def test_a_checkpoint_holds_the_tokenizer_whose_file_is_gone(started):
    (started.folder / "old" / "tok.json").unlink()
    assert "tok.json is gone: the checkpoint holds the same tokenizer" in started("--resume", "runs/moved")
    started.assert_same_end("whole", "moved", step=6)


@pytest.mark.rule("PREFLIGHT-028")
def test_other_content_in_another_place_is_refused_by_name_all_at_once(started):
    other = shutil.copytree(started.corpus, started.folder / "other")
    (other / "module_0.py").write_text("another = 1\n")
    tokenizer = json.loads((started.folder / "old" / "tok.json").read_text())
    tokenizer["model"]["merges"].pop()
    (started.folder / "other.json").write_text(json.dumps(tokenizer))
    model = started.run("whole") / "model.apr"
    before = {path: path.read_bytes() for path in started.run("moved").rglob("*") if path.is_file()}
    files = {"--data": other, "--tokenizer": started.folder / "other.json", "--init": model}
    out = started("--resume", "runs/moved", *(part for pair in files.items() for part in pair), code=1)
    for option, path in files.items():
        assert f"PREFLIGHT-028: {option} [{path}]: not the" in out
    assert {path: path.read_bytes() for path in started.run("moved").rglob("*") if path.is_file()} == before


def test_what_is_gone_may_be_named_anew_and_the_message_says_so(started):
    shutil.rmtree(started.folder / "old" / "text")
    out = started("--resume", "runs/moved", code=3)
    assert "PREFLIGHT-019" in out
    assert "say with --data where it is now" in out
    text = ("--data", started.corpus)
    started(*text, *RUN, "--tokenizer", "old/tok.json", "--steps", "2", "--run", "scratch")
    shutil.rmtree(started.run("scratch") / "step-000002")
    (started.folder / "old" / "tok.json").unlink()
    assert "say with --tokenizer where it is now" in started("--resume", "runs/scratch", code=3)
    for option in ("--init", "--tokenizer", "--data"):  # what the user names is never called gone
        out = started("--resume", "runs/moved", *text, option, "none", code=3)
        assert "none" in out
        assert "is gone" not in out


def test_a_run_from_scratch_cannot_be_given_an_init(place, taught):
    place("--data", place.corpus, *RUN, "--steps", "2", "--run", "x")
    assert "--init: a resume cannot change this: only where it lies may change, expected nothing" in place(
        "--resume", "runs/x", "--init", taught, "--steps", "3", code=1
    )


@pytest.mark.parametrize("arch", ["llama370m", "qwen2", "codebert"])
def test_an_earlier_checkpoint_forgets_the_later_ones(place, arch):
    args = ("--data", place.corpus, *RUN[2:], "--arch", arch, "--steps", "6", "--precision", "fp32", "--keep", "0")
    place(*args, "--run", "whole")
    place(*args, "--run", "back")
    out = place("--resume", "runs/back/step-000003")
    assert "forgetting step-000006" in out
    place.assert_same_end("whole", "back", step=6)


def test_a_finished_run_writes_its_end_again(place):
    place("--data", place.corpus, *RUN, "--steps", "3", "--run", "x")
    model = (place.run("x") / "model.apr").read_bytes()
    (place.run("x") / "model.apr").unlink()
    place("--resume", "runs/x")
    assert (place.run("x") / "model.apr").read_bytes() == model


def state_of(folder):
    """Every file and folder below with its bytes and the time at which it was changed."""
    paths = sorted([folder, *folder.rglob("*")])
    return {path: (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else None) for path in paths}


STAMP = ("--license", "MIT", "--author", "me", "--data-source", "a corpus", "--data-license", "MIT", "--name", "Mine")


@pytest.mark.parametrize("steps", [0, 2])
def test_a_resume_with_nothing_left_to_do_touches_nothing_and_says_how_to_go_on(place, steps):
    place("--data", place.corpus, *RUN, "--steps", str(steps), "--run", "x")
    place("stamp", place.run("x") / "model.apr", *STAMP)
    before = state_of(place.run("x"))
    for more in ((), ("--prompt", "def f(", "--sample-tokens", "2"), ("--dry-run",)):
        out = place("--resume", "runs/x", *more)
        assert f"all {steps} steps are done" in out
        assert f"apr-train --resume runs/x --steps {max(1, 2 * steps)}" in out
        assert state_of(place.run("x")) == before
    place("--resume", "runs/x", "--steps", str(max(1, 2 * steps)))  # what was said works


def test_a_stamp_is_the_users_word_and_stays_when_the_run_goes_on(place):
    place("--data", place.corpus, *RUN, "--steps", "2", "--run", "x")
    model = place.run("x") / "model.apr"
    place("stamp", model, *STAMP)
    place("--resume", "runs/x", "--steps", "3")
    with open_checkpoint(model) as checkpoint:
        found = checkpoint.raw_metadata
    assert {"license": "MIT", "author": "me", "data_source": "a corpus", "name": "Mine"}.items() <= found.items()
    assert found["apr_train.run"]["step"] == 3
    assert "| license | MIT |" in (place.run("x") / "MODEL_CARD.md").read_text()
    place("publish", model, "-o", place.folder / "out")


def test_the_stamp_of_another_runs_model_is_not_taken_over(place):
    place("--data", place.corpus, *RUN, "--steps", "2", "--run", "x")
    model = place.run("x") / "model.apr"
    with open_checkpoint(model) as checkpoint:
        origin = {**checkpoint.raw_metadata["apr_train.run"], "corpus": "another"}
        rewrite(checkpoint, model, {**checkpoint.raw_metadata, "license": "MIT", "apr_train.run": origin})
    place("--resume", "runs/x", "--steps", "3")
    with open_checkpoint(model) as checkpoint:
        assert "license" not in checkpoint.raw_metadata


def test_a_run_killed_before_its_model_is_written_writes_its_end_at_a_resume(place):
    place("--data", place.corpus, *RUN, "--steps", "2", "--run", "x")
    earlier = (place.run("x") / "model.apr").read_bytes()
    place("--resume", "runs/x", "--steps", "3")
    after = (place.run("x") / "model.apr").read_bytes()
    (place.run("x") / "model.apr").write_bytes(earlier)  # the last of the end's files
    place("--resume", "runs/x")
    assert (place.run("x") / "model.apr").read_bytes() == after


def test_what_a_private_run_writes_at_a_resume_is_private(place):
    place("--data", place.corpus, *RUN, "--steps", "2", "--run", "x")
    place.run("x").chmod(0o700)
    kept = [path for path in place.run("x").iterdir() if path.is_file()]
    for path in kept:
        path.chmod(0o600)
    place("--resume", "runs/x", "--steps", "3")
    assert {path.name: path.stat().st_mode & 0o777 for path in kept} == {path.name: 0o600 for path in kept}
    assert (place.run("x") / "step-000003").stat().st_mode & 0o777 == 0o700


def test_a_file_that_somebody_put_into_a_checkpoint_is_never_removed_with_it(place):
    args = ("--data", place.corpus, *RUN, "--save-every", "1", "--steps", "2", "--keep", "1")
    place(*args, "--run", "x")
    notes = place.run("x") / "step-000002" / "notes.txt"
    notes.write_text("mine")
    place("--resume", "runs/x", "--steps", "4", "--keep", "2")
    assert {item.name for item in place.run("x").glob("step-*")} == {"step-000002", "step-000003", "step-000004"}
    (place.run("x") / "step-000004" / "notes.txt").write_text("mine")
    before = state_of(place.run("x") / "step-000003")
    assert "holds what no run wrote, found notes.txt" in place("--resume", "runs/x/step-000002", code=1)
    assert state_of(place.run("x") / "step-000003") == before
    assert notes.read_text() == "mine"


def test_a_resume_keeps_the_preflight_of_the_start_and_the_samples_up_to_its_step(place):
    place("--data", place.corpus, *RUN, "--sample-tokens", "4", "--keep", "0", "--steps", "2", "--run", "x")
    before = read_record(place.run("x"))
    place("--resume", "runs/x")
    place("--resume", "runs/x", "--steps", "4")
    after = read_record(place.run("x"))
    assert after.preflight == before.preflight
    assert [sample.step for sample in after.samples] == [2, 4]
    assert after.samples[0] == before.samples[0]
    place("--resume", "runs/x/step-000002", "--steps", "3")
    assert [sample.step for sample in read_record(place.run("x")).samples] == [2, 3]


def test_going_back_behind_the_checkpoint_is_refused(place):
    place("--data", place.corpus, *RUN, "--steps", "3", "--run", "x")
    assert "at least 3" in place("--resume", "runs/x", "--steps", "2", code=1)


@pytest.mark.parametrize("path", ["nowhere", "."])
def test_what_is_no_run_is_said(place, path):
    assert "this is no run" in place("--resume", path, code=1)


def test_a_resume_does_not_move_a_run(place):
    place("--data", place.corpus, *RUN, "--steps", "2", "--run", "x")
    out = place("--resume", "runs/x", "--run", "y", "--out", "elsewhere", code=1)
    assert "--run: a resume cannot change this: the run is the folder that --resume names, expected x, found y" in out
    assert (
        "--out: a resume cannot change this: the run is the folder that --resume names, expected runs, found elsewhere" in out
    )
    place("--resume", "runs/x", "--run", "x", "--out", "runs", "--steps", "3")


def test_a_run_that_was_moved_goes_on_where_it_is_now(place):
    place("--data", place.corpus, *RUN, "--steps", "2", "--run", "x", "--out", "old")
    (place.folder / "old").rename(place.folder / "new")
    (place.folder / "old").write_text("no folder")
    place("--resume", "new/x", "--steps", "3")
    assert (place.folder / "new" / "x" / "step-000003").is_dir()


def test_a_resume_that_another_one_overtook_is_refused(place):
    place("--data", place.corpus, *RUN, "--steps", "3", "--run", "x")
    plan = plan_resume(place.run("x"), Settings(), ())
    place("--resume", "runs/x", "--steps", "6")
    expected = "the run went on meanwhile, expected step-000003, found step-000006"
    with pytest.raises(RunError, match=expected), prepare(plan.settings, plan, print):
        pass
    assert {item.name for item in place.run("x").glob("step-*")} == {"step-000003", "step-000006"}


def test_the_display_of_a_resume_starts_at_its_checkpoint(place, monkeypatch):
    from apr_train.training import setup as module

    seen, usual = [], module.make_display

    def make_display(steps, *, done, every):
        seen.append(done)
        return usual(steps, done=done, every=every)

    monkeypatch.setattr(module, "make_display", make_display)
    place("--data", place.corpus, *RUN, "--steps", "3", "--run", "x")
    place("--resume", "runs/x", "--steps", "4")
    assert seen == [0, 3]


def test_a_nan_in_step_1_then_a_resume_then_a_report(place):
    from apr_train.training import step

    args = ("--data", place.corpus, *RUN, "--steps", "3", "--precision", "fp32")
    place(*args, "--run", "whole")
    usual = step.head_loss
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(step, "head_loss", lambda *values, **options: usual(*values, **options) * float("nan"))
        out = place(*args, "--run", "x", code=1)
    assert "INV-TRAIN-007: step 1:" in out
    assert "Start a new run with a lower --lr" in out
    place("--resume", "runs/x")
    place.assert_same_end("whole", "x", step=3)
    place("report", "runs/x", "-o", "report.html")


def test_damaged_samples_stop_a_resume_before_it_reads_the_text_and_say_what_helps(place):
    place("--data", place.corpus, *RUN, "--steps", "2", "--run", "x")
    (place.run("x") / "samples.jsonl").write_text("{}\n")
    out = place("--resume", "runs/x", "--steps", "4", "--dry-run", code=1)
    assert "line 1 is not a sample" in out
    assert "Move the file away" in out
    (place.run("x") / "samples.jsonl").unlink()
    place("--resume", "runs/x", "--steps", "4")


def test_a_damaged_checkpoint_is_an_error_not_another_start(place):
    place("--data", place.corpus, *RUN, "--steps", "3", "--run", "x")
    path = place.run("x") / "step-000003" / "optimizer.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    assert "optimizer.safetensors" in place("--resume", "runs/x", "--steps", "4", code=1)
    model = place.run("x") / "step-000003" / "model.apr"
    data = bytearray(model.read_bytes())
    data[-200] ^= 1
    model.write_bytes(bytes(data))
    assert "model.apr" in place("--resume", "runs/x", "--steps", "4", code=1)


def test_two_processes_do_not_share_a_folder(place):
    process = place.start("--data", place.corpus, *RUN, "--steps", "2000", "--run", "x")
    wait_for_line(place, "x", process, 2)
    try:
        assert "another process is training in this folder" in place("--resume", "runs/x", code=1)
    finally:
        process.kill()
        process.communicate()
