"""The last lines of `make demo`, from the files that it wrote: losses, speed, completions, paths."""

import argparse
import json
import sys
from pathlib import Path

from apr_train.run.metrics import Metrics, mean_speed, read_metrics


def main() -> None:
    """Read the run's metrics and the demo's own files in the current folder; print what came of it, and keep it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("run", type=Path)
    parser.add_argument("--prompt", required=True)
    parser.add_argument("--seconds", type=int, required=True)
    given = parser.parse_args()
    lines = read_metrics(given.run / "metrics.jsonl")
    text = [*losses(lines), "", *speed(lines, given.seconds), "", *completions(given.prompt), "", *paths(given.run)]
    Path("summary.txt").write_text("\n".join(text) + "\n")
    sys.stdout.write("\n" + "\n".join(text) + "\n")


def losses(lines: list[Metrics]) -> list[str]:
    """Validation losses, all on the same held-out rows."""
    measured = [line for line in lines if line.val_loss is not None]
    (scratch,) = json.loads(Path("scratch.json").read_text())["results"]
    return [
        "validation loss on held-out files of the standard library (nats per token)",
        f"  from scratch           {scratch['loss']:.3f}",
        f"  step 0, from --init    {measured[0].val_loss:.3f}",
        f"  step {measured[-1].step}, trained       {measured[-1].val_loss:.3f}",
    ]


def speed(lines: list[Metrics], seconds: int) -> list[str]:
    """The run's mean speed, and the time that all of it took."""
    return [f"training speed           {mean_speed(lines) or 0:,.0f} tokens/s; the demo took {seconds} s in all"]


def completions(prompt: str) -> list[str]:
    """The prompt, and what the model wrote after it before and after the training, greedily."""
    shown = [f"prompt\n{indented(prompt)}"]
    return shown + [f"completion {when}\n{indented(Path(f'{when}.txt').read_text())}" for when in ("before", "after")]


def indented(text: str) -> str:
    """Each line moved to the right."""
    return "\n".join(f"    | {line}" for line in text.strip("\n").splitlines())


def paths(run: Path) -> list[str]:
    """What lies where now."""
    here = Path.cwd()
    written = ["smollm2.apr", run / "model.apr", run / "MODEL_CARD.md", run / "metrics.jsonl", run / "config.toml"]
    return ["written", *(f"  {here.name}/{path}" for path in written)]


if __name__ == "__main__":
    main()
