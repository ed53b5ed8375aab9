"""Whole runs, one after the other, on as many processes as a launcher has started: `python runs.py CASES.json`.

A case is `{"values": settings by name, "resume": path or null, "copy": [from, to] or null}`; a run without a launcher is the
reference. Dropout is off unless a case has `"dropout": true`: a process that no launcher started draws its own masks.
"""

import json
import os
import shutil
import sys
from pathlib import Path

import torch
from apr_train.model.sharding import local
from apr_train.run.launch import Launch
from apr_train.run.resume import plan_resume
from apr_train.run.settings import Settings
from apr_train.run.settings_file import with_values
from apr_train.training.checkpoint import Weights
from apr_train.training.finish import finish
from apr_train.training.loop import train
from apr_train.training.processes import Processes
from apr_train.training.setup import prepare
from apr_train.training.step import NonFiniteError

VALUES = {
    "preset": "tiny", "vocab_size": 320, "sequence_length": 32, "batch_size": 5, "steps": 20, "val_every": 0, "val_batches": 2,
    "save_every": 10, "keep": 0, "precision": "fp32", "device": "cpu", "threads": 1, "seed": 3, "sample_tokens": 4,
    "lr": 1e-3, "warmup_steps": 2, "allow_cold_init": True,
}  # fmt: skip


def without_dropout(model):
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if isinstance(getattr(module, "dropout", None), float):
            module.dropout = 0.0


def run_case(case, processes=None):
    """Take one run to its end; the first process leaves its weights at the start beside it, as start.apr."""
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in case["values"].items()}
    settings, plan = with_values(Settings(), {**VALUES, **values}), None
    processes = processes or Processes()
    if case.get("resume"):
        if case.get("copy") and processes.is_first:
            shutil.copytree(*case["copy"])
        processes.everyone("copied")
        plan = plan_resume(Path(case["resume"]), Settings(), ())
        settings = plan.settings
    with prepare(settings, plan, lambda text: None, processes=processes) as prepared:
        run = prepared.run
        if not case.get("dropout"):
            without_dropout(run.model)
        if not processes.several and plan is None:
            run.write_model(run.folder / "start.apr", Weights.of(run.model), step=0)
        if case.get("poison") == processes.rank:
            poison(run, step=3)
        if case.get("breaks") == processes.rank:
            break_weights(run, step=10)
        train(run)
        finish(prepared)
        return run.folder


def poison(run, *, step):
    """From that step on, what this process computes of its rows is not a number."""
    compute = run.model.hidden_states

    def broken(*arguments, **named):
        hidden = compute(*arguments, **named)
        return hidden * float("nan") if run.step >= step - 1 and run.model.training else hidden

    run.model.hidden_states = broken


def break_weights(run, *, step):
    """After that step, a weight that this process has is not a number."""
    part = run.optimizer.parts[0]
    take = part.step

    @torch.no_grad()
    def broken():
        take()
        if run.step == step - 1:
            local(next(run.model.parameters())).view(-1)[0] = float("nan")

    part.step = broken


def main():
    from apr_train.training.process_group import several

    cases = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    with several(Launch.of(os.environ)) as processes:
        first = cases[0]["values"]
        how = {"device": "cpu", "shard": first.get("shard", "auto"), "replicate": first.get("replicate")}
        processes.connect(with_values(Settings(), how))
        for case in cases:
            try:
                run_case(case, processes)
            except NonFiniteError as error:
                Path(f"{case['values']['run']}-{processes.rank}.error").write_text(str(error), encoding="utf-8")


if __name__ == "__main__":
    main()
