"""How many files does one open to follow a value? Counted by running, not by guessing.

    python tools/walk.py                       this checkout
    python tools/walk.py ../before             another one

A tiny model is trained for one step from text and from its own result as safetensors and as `.apr`; the files of the core are
counted in which a function runs below the ones named here. What runs at import, and what a fault would run, is left out.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

WALKS = {
    "a token from text to loss": ("load_corpus", "next_batch", "_accumulate"),
    "a safetensors tensor to its parameter": ("open_source", "tied_header", "tensor_report", "load_weights"),
    "an .apr tensor to its parameter": ("open_source", "tied_header", "tensor_report", "load_weights"),
}
SMALL = [
    *("--steps", "1", "--sequence-length", "32", "--batch-size", "2", "--val-batches", "1"),
    *("--precision", "fp32", "--threads", "1", "--sample-tokens", "0"),
]
TRACER = """
import sys, json
from pathlib import Path
import apr_train
roots, out, arguments = set(json.loads(sys.argv[1])), sys.argv[2], sys.argv[3:]
home, depth, seen = str(Path(apr_train.__file__).parent), 0, {}
def watch(frame, event, _):
    global depth
    code = frame.f_code
    if not code.co_filename.startswith(home):
        return
    if event == "call":
        depth += code.co_name in roots
        if depth and code.co_name != "<module>":
            seen.setdefault(code.co_filename[len(home) + 1:])
    elif event == "return":
        depth -= code.co_name in roots
from apr_train.cli import cli
sys.setprofile(watch)
try:
    cli(arguments, prog_name="apr-train", standalone_mode=False)
finally:
    sys.setprofile(None)
    Path(out).write_text(json.dumps(list(seen)))
"""


def files(checkout: Path, folder: Path, roots: tuple[str, ...], line: list[str]) -> list[str]:
    """The core's files in which something ran below `roots`, in the order of their first call."""
    sources = [checkout / "core" / "src", *(checkout / "plugins").glob("*/src")]
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, sources)), "OMP_NUM_THREADS": "1"}
    variables["APR_TRAIN_CACHE"] = str(folder / f"cache{len(list(folder.iterdir()))}")
    out = folder / "seen.json"
    command = [sys.executable, "-c", TRACER, json.dumps(roots), str(out), *line]
    done = subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    found: list[str] = json.loads(out.read_text())
    return found


def main() -> None:
    """Print a count and the files of each walk."""
    checkout = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parents[1]).resolve()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        (folder / "text").mkdir()
        for part in range(4):
            (folder / "text" / f"{part}.py").write_text(f"# {part}\n" + "def f(x):\n    return x + 1\n\n\n" * 60)
        scratch = ["--arch", "qwen2", "--preset", "tiny", "--vocab-size", "300", "--data", "text", *SMALL]
        warm = ["--arch", "qwen2", "--data", "text", "--allow-cold-init", *SMALL]
        lines = [
            [*scratch, "--run", "a"],
            [*warm, "--run", "b", "--init", "hf"],
            [*warm, "--run", "c", "--init", "runs/a/model.apr"],
        ]
        for (name, roots), line in zip(WALKS.items(), lines, strict=True):
            found = files(checkout, folder, roots, line)
            sys.stdout.write(f"{name}: {len(found)}\n  " + "\n  ".join(found) + "\n")
            if name.startswith("a token"):
                files(checkout, folder, ("nothing",), ["export", "runs/a/model.apr", "-o", "hf"])


if __name__ == "__main__":
    main()
