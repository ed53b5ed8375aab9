"""The repository, and run folders made by hand: curves like a real run's, in milliseconds."""

import json
import math
import random
from pathlib import Path

import hypothesis
import pytest

hypothesis.settings.register_profile("shared", deadline=None)  # on a machine that others use, too, a time says nothing
hypothesis.settings.load_profile("shared")

CONFIG = '[model]\narch = "{arch}"\n\n[optimizer]\nlr = {lr}\nschedule = "cosine"\n\n[run]\nsteps = {steps}\nrun = "{name}"\n'
FINDING = {"id": "", "where": "", "problem": "", "expected": "", "found": "", "hint": "", "severity": "warning"}
FACTS = {"file": "none", "attention": "sdpa (as asked)", "parameters": 836736, "memory": {"weights": 3_346_944}}
SAMPLE = {
    "prompt": 'def fibonacci(n: int) -> int:\n    """Return the n-th <Fibonacci> number."""\n',
    "text": "    if n < 2:\n        return n\n    return fibonacci(n - 1) + fibonacci(n - 2)",
}


@pytest.fixture(scope="session")
def repository():
    return Path(__file__).resolve().parents[2]


@pytest.fixture
def make_run_folder(tmp_path):
    """Write runs/NAME with `steps` lines of metrics and what else a run leaves; each finding is a dict of what it says."""

    def make(name="a", *, steps=200, lr=6e-4, seed=0, ended=True, findings=(), folder="runs", every=20, arch="fam"):
        path = tmp_path / folder / name
        path.mkdir(parents=True)
        (path / "config.toml").write_text(CONFIG.format(lr=lr, steps=steps, name=name.replace('"', ""), arch=arch))
        (path / "identity.json").write_text('{"corpus": "c", "tokenizer": "t", "init": null}')
        draw = random.Random(seed)
        lines = [{"step": 0, "val_loss": 6.9, "perplexity": math.exp(6.9)}]
        for step in range(1, steps + 1):
            level = 2.1 + 4.8 * math.exp(-step * lr * 60)
            rate = lr * min(1, step / (steps / 10)) * (0.55 + 0.45 * math.cos(math.pi * step / steps))
            line = {"step": step, "loss": level + draw.gauss(0, 0.08), "lr": rate}
            line |= {"grad_norm": 0.6 + abs(draw.gauss(0, 0.3)) + 4 / step, "targets": 4000, "tokens": 4096 * step}
            line |= {"tokens_per_s": 9000 + 900 * seed + draw.gauss(0, 250), "step_time": 0.45, "memory": 1 << 30}
            if step % every == 0 or step == steps:
                line |= {"val_loss": level + 0.12, "perplexity": math.exp(level + 0.12)}
            lines.append(line)
        (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        preflight = {"schema": 1, "findings": [FINDING | finding for finding in findings], "facts": FACTS}
        (path / "preflight.json").write_text(json.dumps(preflight))
        if ended:
            (path / "samples.jsonl").write_text(json.dumps({"step": steps, **SAMPLE}) + "\n")
        return path

    return make
