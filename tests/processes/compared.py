"""Runs of one and of several processes, started and compared."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from apr_train.checkpoint.open import open_checkpoint
from apr_train.run.folder import METRICS
from apr_train.run.metrics import MEASURED, read_metrics
from attrs import evolve

RUNS = Path(__file__).with_name("runs.py")
NO_GRADIENT = ("k_proj.bias", "key.bias")
"""The softmax does not see them: their gradient is zero but for rounding."""


def launch(count, cases, folder, *more):
    """Run cases on so many processes under torchrun."""
    path = folder / f"cases-{count}.json"
    path.write_text(json.dumps(cases))
    started(count, folder, *more, RUNS, path, timeout=300)


def started(count, folder, *command, timeout):
    """The end of a program that torchrun has started so many times, and that went well everywhere."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*launcher, *map(str, command)], cwd=folder, env=environment, capture_output=True, text=True, timeout=timeout
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done


def case(place, name, values, count):
    return {"values": {"data": [str(place / "text")], "out": str(place / "runs"), **values, "run": f"{name}-{count}"}}


def resumed(place, name, before, after):
    """A run of `before` processes, from its half on with `after`."""
    folder = place / "runs" / f"{name}-{before}-{after}"
    copy = [str(place / "runs" / f"{name}-{before}"), str(folder)]
    return {"values": {}, "resume": str(folder / "step-000010"), "copy": copy}


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
