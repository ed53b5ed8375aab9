"""The last lines of `make demo`, from the files that it wrote: losses, speed, completions, paths."""

import argparse
import json
import sys
from pathlib import Path


def main() -> None:
    """Read the run's metrics and the demo's own files in the current folder; print what came of it, and keep it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("run", type=Path)
    parser.add_argument("--prompt", required=True)
    parser.add_argument("--seconds", type=int, required=True)
    given = parser.parse_args()
    lines = [json.loads(line) for line in (given.run / "metrics.jsonl").read_text().splitlines()]
    text = [*losses(lines), "", *speed(lines, given.seconds), "", *completions(given.prompt), "", *paths(given.run)]
    Path("summary.txt").write_text("\n".join(text) + "\n")
    sys.stdout.write("\n" + "\n".join(text) + "\n")


def losses(lines: list[dict[str, float]]) -> list[str]:
    """Validation losses, all on the same held-out rows."""
    measured = [line for line in lines if "val_loss" in line]
    (scratch,) = json.loads(Path("scratch.json").read_text())["results"]
    return [
        "validation loss on held-out files of the standard library (nats per token)",
        f"  from scratch           {scratch['loss']:.3f}",
        f"  step 0, from --init    {measured[0]['val_loss']:.3f}",
        f"  step {measured[-1]['step']}, trained       {measured[-1]['val_loss']:.3f}",
    ]


def speed(lines: list[dict[str, float]], seconds: int) -> list[str]:
    """Tokens by time, without the first step, which warms up."""
    steps = [line for line in lines if "step_time" in line][1:] or lines[1:]
    duration = sum(line["step_time"] for line in steps)
    tokens = sum(line["tokens_per_s"] * line["step_time"] for line in steps)
    return [f"training speed           {tokens / duration:,.0f} tokens/s; the demo took {seconds} s in all"]


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
