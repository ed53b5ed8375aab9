"""`--tracker wandb`: metrics and settings to Weights & Biases; the only thing here that sends anything, and only when asked."""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import Any

from apr_train.checkpoint.files import read_text
from apr_train.run.events import RunEnd, RunStart, hookimpl
from apr_train.run.metrics import Metrics

PROJECT = "apr-train"
"""The project, where `WANDB_PROJECT` names no other."""
SENT = (
    "the run's name, its settings but for paths, and the numbers of every step; "
    "not sent: text, weights, paths, code, what the terminal shows, this machine's name and figures"
)
_LONGEST_ID = 64
"""Bytes of an id."""


class WeightsAndBiases:
    """One run there for a run here: its id is kept in the run's folder, so that a resume goes on with it."""

    _run: Any

    @hookimpl
    def run_started(self, run: RunStart) -> None:
        """Say what is sent, and begin or go on with the run."""
        import wandb

        run.own.mkdir(parents=True, exist_ok=True)
        run.say(f"wandb: sends {SENT}")
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            id=_id_of(run.own / "id"),
            resume="allow",
            name=run.name,
            dir=str(run.own),
            config={name: value for name, value in run.settings.items() if name not in run.paths},
            settings=_quiet(wandb),
        )
        self._run.define_metric("*", step_metric="step")  # a resume goes over steps again, and wandb's own only go up

    @hookimpl
    def step_done(self, line: Metrics) -> None:
        """Send the numbers of the step, a validation in it included."""
        self._run.log({"step": line.step, **line.numbers()})

    @hookimpl
    def validated(self, line: Metrics) -> None:
        """Send the validation before the first step; `step_done` has the others."""
        if line.loss is None:
            self._run.log({"step": line.step, **line.numbers()})

    @hookimpl
    def run_ended(self, end: RunEnd) -> None:
        """Close the run; one that was stopped or failed is marked as failed."""
        self._run.finish(exit_code=0 if end.result is not None else 1)


def _quiet(wandb: Any) -> Any:
    """Settings of wandb under which it adds nothing of its own about the machine, the code or the terminal."""
    return wandb.Settings(
        silent=True,
        console="off",
        host="",
        username="",
        email="",
        disable_code=True,
        disable_git=True,
        save_code=False,
        x_disable_machine_info=True,
        x_disable_meta=True,
        x_disable_stats=True,
        x_save_requirements=False,
        disable_job_creation=True,
    )


def _id_of(note: Path) -> str:
    """The id that an earlier start of the run has noted, or a new one, noted."""
    if not note.exists():
        note.write_text(secrets.token_hex(4), encoding="utf-8")
    return read_text(note, most=_LONGEST_ID)
