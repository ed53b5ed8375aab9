"""What one process learns, two and three learn, too: losses, updates, and resumes on another number of them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from apr_train.checkpoint.open import open_checkpoint
from apr_train.run.folder import METRICS, MODEL, OPTIMIZER, STATE, checkpoints
from apr_train.run.metrics import MEASURED, read_metrics
from attrs import evolve

from tests.processes.runs import run_case

RUNS = Path(__file__).with_name("runs.py")
TEXT = "".join(f"def scale_{n}(values):\n    return [value * {n} + {n % 7} for value in values]\n\n\n" for n in range(400))
CASES = {
    "llama370m": {"arch": "llama370m", "accumulate": 2},
    "documents": {"arch": "qwen2", "document_mask": True, "batch_size": 3},
    "masked": {"arch": "codebert", "vocab_size": 340, "recompute": True},
    "bf16": {"arch": "llama370m", "precision": "bf16", "steps": 8},
    "bf16-weights": {"arch": "llama370m", "precision": "bf16-weights", "steps": 8, "accumulate": 2},
}
NO_GRADIENT = ("k_proj.bias", "key.bias")
"""The softmax does not see them: their gradient is zero but for rounding."""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    (folder / "text").mkdir()
    for number in range(20):
        (folder / "text" / f"{number}.py").write_text(f"# part {number}\n{TEXT[number * 900 : number * 900 + 2400]}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("APR_TRAIN_CACHE", str(folder / "cache"))
        yield folder


def launch(count, cases, folder, *more):
    """Run cases on so many processes under torchrun."""
    path = folder / f"cases-{count}.json"
    path.write_text(json.dumps(cases))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count), *more, str(RUNS)]
    done = subprocess.run(
        [*command, str(path)],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-4000:]


def case(place, name, values, count):
    return {"values": {"data": [str(place / "text")], "out": str(place / "runs"), **values, "run": f"{name}-{count}"}}


def resumed(place, name, before, after):
    """A run of `before` processes, from its half on with `after`."""
    folder = place / "runs" / f"{name}-{before}-{after}"
    copy = [str(place / "runs" / f"{name}-{before}"), str(folder)]
    return {"values": {}, "resume": str(folder / "step-000010"), "copy": copy}


@pytest.fixture(scope="module")
def runs(place):
    """All runs: of one process here, of two and three under torchrun."""
    for name, values in CASES.items():
        run_case(case(place, name, values, 1))
    two = [case(place, name, values, 2) for name, values in CASES.items()]
    poisoned = {**case(place, "poisoned", CASES["masked"], 2), "poison": 1}
    launch(2, [*two, resumed(place, "documents", 2, 2), resumed(place, "llama370m", 1, 2), poisoned], place)
    some = [case(place, name, {**CASES[name], "shard": "none"}, 3) for name in ("documents", "masked")]
    launch(3, [*some, resumed(place, "documents", 1, 3)], place)
    run_case(resumed(place, "documents", 2, 1))
    launch(2, [resumed(place, "documents", 3, 2)], place)
    return place / "runs"


def curve(folder):
    return [evolve(line, **dict.fromkeys(MEASURED)) for line in read_metrics(folder / METRICS)]


def assert_same_losses(one, other, tolerance):
    ours, theirs = (list(read_metrics(folder / METRICS)) for folder in (one, other))
    assert [line.step for line in ours] == [line.step for line in theirs]
    for before, after in zip(ours, theirs, strict=True):
        for name in ("loss", "val_loss", "grad_norm"):
            value = getattr(before, name)
            if value is not None:
                assert getattr(after, name) == pytest.approx(value, rel=tolerance if name != "grad_norm" else 10 * tolerance)
        assert (before.targets, before.tokens, before.lr) == (after.targets, after.tokens, after.lr)


def weights(path):
    with open_checkpoint(path) as checkpoint:
        names = [name for name in checkpoint.header.tensors if not name.endswith(NO_GRADIENT)]
        return np.concatenate([np.array(checkpoint.read(name).data, dtype=np.float64).ravel() for name in names])


def cosine(start, one, other):
    ours, theirs = weights(one) - weights(start), weights(other) - weights(start)
    return float(ours @ theirs / np.sqrt((ours @ ours) * (theirs @ theirs)))


@pytest.mark.parametrize(("name", "count"), [*((name, 2) for name in CASES), ("documents", 3), ("masked", 3)])
def test_several_processes_learn_what_one_learns(runs, name, count):
    one, several = runs / f"{name}-1", runs / f"{name}-{count}"
    exact = not name.startswith("bf16")
    assert_same_losses(one, several, 1e-5 if exact else 2e-2)
    if exact:
        assert cosine(one / "start.apr", one / MODEL, several / MODEL) >= 0.9999


def test_a_resume_on_as_many_processes_is_exact(runs):
    whole, half = runs / "documents-2", runs / "documents-2-2"
    assert curve(whole) == curve(half)
    for name in (MODEL, f"step-000020/{OPTIMIZER}", f"step-000020/{STATE}"):
        assert (whole / name).read_bytes() == (half / name).read_bytes()


@pytest.mark.parametrize(
    ("name", "before", "after"), [("documents", 2, 1), ("documents", 1, 3), ("documents", 3, 2), ("llama370m", 1, 2)]
)
def test_a_run_goes_on_with_another_number_of_processes(runs, name, before, after):
    whole, half = runs / f"{name}-{before}", runs / f"{name}-{before}-{after}"
    assert_same_losses(whole, half, 1e-5)
    assert cosine(runs / f"{name}-1" / "start.apr", whole / MODEL, half / MODEL) >= 0.9999


def test_a_value_that_is_not_finite_on_one_process_stops_all_before_the_update(runs):
    """The error names the process; the state of the step before is saved."""
    told = [(runs.parent / f"poisoned-2-{rank}.error").read_text() for rank in range(2)]
    assert told[0] == told[1]
    assert "INV-TRAIN-007: step 3" in told[0]
    assert "the rows of rank 1" in told[0]
    assert "gradients not finite: embeddings" in told[0]
    assert [item.step for item in checkpoints(runs / "poisoned-2")] == [2]
    assert read_metrics(runs / "poisoned-2" / METRICS)[-1].step == 2
