"""A program of a user's own that trains, one run after the other: `torchrun … program.py TEXT`; says what comes of it."""

import json
import os
import sys
from pathlib import Path

import apr_train
from apr_train.errors import AprTrainError

VALUES = {
    "arch": "codebert", "preset": "tiny", "vocab_size": 340, "sequence_length": 32, "batch_size": 3, "precision": "fp32",
    "device": "cpu", "threads": 1, "val_every": 0, "val_batches": 1, "save_every": 0,
}  # fmt: skip


def outcome(**values):
    try:
        run = apr_train.train(data=sys.argv[1], **{**VALUES, **values})
    except AprTrainError as error:
        return {"error": str(error)}
    return {"folder": str(run.folder), "steps": run.metrics[-1].step, "notices": len(run.notices), "path": run.path.is_file()}


def main():
    found = {
        "timed": outcome(run="timed", steps=100_000, max_time="2s"),
        "traced": outcome(run="traced", steps=4, profile="2:3"),
        "again": outcome(resume="runs/traced"),
        "refused": outcome(run="refused", steps=4, batch_size=1),
    }
    Path(f"outcome-{os.environ['RANK']}.json").write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()
