"""Do two checkouts write the same bytes? For a change that moves walls and nothing else.

    git worktree add ../before REVISION
    python tools/compare_checkouts.py ../before .

Every family trains its tiny preset, goes on, starts from its own result, and is exported, imported, stamped, published,
measured and compared; bad input is judged. Compared are all files that come of it (weights, optimizer, metrics without times,
exports) and what every command prints with `--json`. Cards and reports are for people: they are left out.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

MEASURED = ("tokens_per_s", "step_time", "mfu", "memory")
FAMILIES = {"llama370m": 320, "qwen2": 320, "codebert": 340}
LEFT_OUT = ("MODEL_CARD.md", "README.md", "SHA256SUMS", "preflight.json", "samples.jsonl", ".lock")
TEXT = "".join(f"def scale_{n}(values):\n    return [value * {n % 7} for value in values]\n\n\n" for n in range(200))
RUN = "--steps 4 --save-every 2 --val-every 2 --val-batches 2 --sequence-length 48 --batch-size 2 --precision fp32 --threads 1"
PROVENANCE = ("--license", "MIT", "--data-license", "MIT", "--data-source", "text of the comparison")


def scenario(family: str, vocabulary: int) -> Iterator[tuple[str, list[str]]]:
    """Name and arguments of each command, in order."""
    run, model = [*RUN.split(), "--data", "text"], f"runs/{family}/model.apr"
    yield "train", ["--arch", family, "--preset", "tiny", "--vocab-size", str(vocabulary), "--run", family, *run]
    yield "resume", ["--resume", f"runs/{family}", "--steps", "6"]
    init = ["--arch", family, "--init", model, "--allow-cold-init", "--document-mask", "--accumulate", "2"]
    yield "warm", [*init, "--run", f"{family}-warm", *run, "--precision", "bf16", "--recompute"]
    yield "dry run", [*init, "--dry-run", "--data", "text", "--threads", "1"]
    yield "stamp", ["stamp", model, *PROVENANCE]
    yield "stamp long", ["stamp", f"runs/{family}-warm/model.apr", "--description", "a" * 500]
    yield "export", ["export", model, "-o", f"hf-{family}"]
    yield "export in shards", ["export", model, "-o", f"shards-{family}", "--dtype", "bf16", "--shard-size", "100000"]
    yield "import", ["import", f"hf-{family}", "-o", f"again-{family}.apr"]
    yield "publish", ["publish", model, "-o", f"published-{family}", "--language", "code"]
    for name, target in (("apr", model), ("folder", f"hf-{family}"), ("shards", f"shards-{family}")):
        yield f"inspect {name}", ["inspect", target, "--json", "--tensors"]
        yield f"validate {name}", ["validate", target, "--json", "--data"]
        yield f"check {name}", ["check", target, "--json", "--sequence-length", "48", "--out", "runs", "--device", "cpu"]
        yield f"eval {name}", ["eval", target, "--json", "--data", "text", "--batches", "2", "--sequence-length", "40"]
    yield "diff same", ["diff", model, f"hf-{family}", "--json"]
    yield "diff other", ["diff", model, f"runs/{family}-warm", "--json"]
    yield "diff rounded", ["diff", model, f"shards-{family}", "--json", "--tolerance", "0.01"]
    if family == "codebert":
        yield "fill", ["generate", model, "--fill-mask", "def <mask>(values):", "--json"]
    else:
        yield "generate", ["generate", model, "--prompt", "def scale", "--max-tokens", "12", "--json"]
        yield "draw", ["generate", model, "--prompt", "def scale", "--max-tokens", "12", "--temperature", "1", "--json"]
        yield "syntax", ["eval", model, "--syntax", "2", "--max-tokens", "8", "--data", "text", "--json"]
    yield "check scratch", ["check", "--arch", family, "--preset", "tiny", "--json"]
    yield "check long", ["check", model, "--json", "--sequence-length", "100000", "--out", "text/0.py/x"]
    yield "check wrong family", ["check", model, "--arch", "codebert" if family != "codebert" else "qwen2", "--json"]
    yield "check objective", ["check", model, "--objective", "masked-lm" if family != "codebert" else "causal-lm", "--json"]


def bad_input(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Files that are not what they should be, made from a good export."""
    good = folder / "hf-qwen2"
    for name, change in {
        "window": {"sliding_window": 32, "use_sliding_window": True},
        "scaling": {"rope_parameters": {"rope_theta": 1e6, "rope_type": "yarn", "factor": 2.0}},
        "activation": {"hidden_act": "gelu"},
        "layers": {"num_hidden_layers": 3},
        "heads": {"num_attention_heads": 7},
        "hidden": {"hidden_size": 96},
        "kv": {"num_key_value_heads": 3},
        "words": {"hidden_size": "wide", "rms_norm_eps": -1},
        "ids": {"eos_token_id": 99999},
        "unknown": {"flux_capacitor": 1.21, "attention_dropout": 0.1},
        "untied": {"tie_word_embeddings": False},
        "lacking": {"num_hidden_layers": None, "rms_norm_eps": None},
        "nameless": {"architectures": None, "model_type": None},
    }.items():
        bad = folder / f"bad-{name}"
        shutil.copytree(good, bad)
        config = json.loads((bad / "config.json").read_text())
        config = {key: value for key, value in (config | change).items() if value is not None}
        (bad / "config.json").write_text(json.dumps(config))
        yield f"bad {name}", ["check", bad.name, "--arch", "qwen2", "--json"]
        yield f"bad {name}, no --arch", ["check", bad.name, "--json"]
    (folder / "empty.apr").write_bytes(b"")
    (folder / "noise.apr").write_bytes(bytes(range(256)) * 4)
    whole = (folder / "runs/qwen2/model.apr").read_bytes()
    (folder / "cut.apr").write_bytes(whole[:-100])
    (folder / "flipped.apr").write_bytes(whole[:-200] + bytes([whole[-200] ^ 1]) + whole[-199:])
    for name in ("missing.apr", "empty.apr", "noise.apr", "cut.apr", "flipped.apr", "text"):
        yield f"check {name}", ["check", name, "--arch", "qwen2", "--json"]
        yield f"validate {name}", ["validate", name, "--json"]
        yield f"inspect {name}", ["inspect", name, "--json"]
    yield "plugins", ["plugins", "--json"]
    yield "check nothing", ["check", "--json"]
    yield "check unknown", ["check", "--arch", "qwen3", "--json"]


def run(checkout: Path, folder: Path) -> dict[str, bytes]:
    """Everything that the checkout says and writes in `folder`."""
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "text").mkdir(parents=True)
    for part in range(12):
        (folder / "text" / f"{part}.py").write_text(f"# part {part}\n" + TEXT[part * 500 : part * 500 + 1500])
    found: dict[str, bytes] = {}
    for family, vocabulary in FAMILIES.items():
        for name, line in scenario(family, vocabulary):
            found[f"{family}: {name}"] = command(checkout, folder, line)
    for name, line in bad_input(folder):
        found[name] = command(checkout, folder, line)
    return found | dict(files(folder))


def command(checkout: Path, folder: Path, line: list[str]) -> bytes:
    """Status, and what is printed as JSON, of one command."""
    sources = [checkout / "core" / "src", *(checkout / "plugins").glob("*/src")]
    variables = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, sources)),
        "OMP_NUM_THREADS": "1",
        "APR_TRAIN_CACHE": str(folder / "cache"),
    }
    code = "from apr_train.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code, *line], cwd=folder, env=variables, capture_output=True, check=False)
    printed = "--json" in line
    if done.returncode not in (0, 1, 3) or (not printed and done.returncode):
        sys.stderr.write(f"{' '.join(line)}: {done.returncode}\n{done.stderr.decode()}\n")
    said = _without_times(json.loads(done.stdout)) if printed and done.stdout else None
    return json.dumps([done.returncode, said], indent=1).encode()


def _without_times(value: object) -> object:
    if isinstance(value, dict):
        return {key: _without_times(item) for key, item in value.items() if key != "tokens_per_s"}
    return [_without_times(item) for item in value] if isinstance(value, list) else value


def files(folder: Path) -> Iterator[tuple[str, bytes]]:
    """What was written, times left out."""
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_file() and path.name not in LEFT_OUT and not name.startswith(("bad-", "text")):
            yield name, _metrics(path) if path.name == "metrics.jsonl" else path.read_bytes()


def _metrics(path: Path) -> bytes:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return json.dumps([{key: value for key, value in line.items() if key not in MEASURED} for line in lines]).encode()


def main() -> int:
    """Compare; 1 if anything differs."""
    checkouts = [Path(path).resolve() for path in sys.argv[1:3]]
    with tempfile.TemporaryDirectory() as place:
        before, after = (run(checkout, Path(place) / "same") for checkout in checkouts)
    names = sorted({*before, *after})
    differing = [name for name in names if before.get(name) != after.get(name)]
    for name in differing:
        sys.stdout.write(f"differs: {name}\n")
        for side, found in (("before", before), ("after", after)):
            if name in found and b"\0" not in found[name][:2000]:
                sys.stdout.write(f"--- {side}\n{found[name].decode(errors='replace')[:4000]}\n")
    total = sum(len(content) for content in before.values())
    sys.stdout.write(f"{len(names)} outputs and files, {total:,} bytes: {len(differing)} differ\n")
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main())
