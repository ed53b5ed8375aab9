"""Time the three families against another commit: `python tools/compare_commits.py COMMIT [--pairs 7] [NAME…]`.

Whole processes of the command line, one thread, this checkout and the other one in turns, after one uncounted run of each.
A line is the median of the pairs' ratios, this checkout's figure divided by the other's, with the lowest and the highest:
processor time (user and system), wall time, and the peak of resident memory, all as the system counts them for a finished
process. Ratios of processor time are what counts on a machine that has other work to do.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[1]
FAMILIES = ("llama370m", "qwen2", "codebert")
SOURCES = ("core/src", *(f"plugins/{name}/src" for name in FAMILIES))
VOCABULARY = 8000
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 512,
    "num_attention_heads": 8,
    "intermediate_size": 1408,
    "max_position_embeddings": 514,
}
LAYERS, LARGE_LAYERS = 6, 28
TRAIN = ("--sequence-length", "128", "--batch-size", "2", "--val-batches", "1", "--val-every", "0", "--sample-tokens", "0")
FIXED = ("--precision", "fp32", "--device", "cpu", "--threads", "1")


def write_checkpoint(family: str, layers: int, folder: Path) -> None:
    """A transformers model with random weights and a tokenizer of the standard library's text."""
    import transformers

    shape = SHAPE | {"num_hidden_layers": layers}
    if family == "codebert":
        config = transformers.RobertaConfig(**shape, type_vocab_size=1, pad_token_id=1, bos_token_id=0, eos_token_id=2)
        made = transformers.RobertaForMaskedLM(config)
    else:
        name = "Llama" if family == "llama370m" else "Qwen2"
        config = getattr(transformers, f"{name}Config")(**shape, num_key_value_heads=2, tie_word_embeddings=family == "qwen2")
        made = getattr(transformers, f"{name}ForCausalLM")(config)
    made.save_pretrained(folder)
    write_tokenizer(folder / "tokenizer.json")


def write_tokenizer(path: Path) -> None:
    """A byte-level BPE with RoBERTa's special tokens."""
    from tokenizers import ByteLevelBPETokenizer

    tokenizer = ByteLevelBPETokenizer()
    files = [str(file) for file in sorted(Path(os.__file__).parent.glob("*.py"))]
    tokenizer.train(files, vocab_size=VOCABULARY, special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    tokenizer.save(str(path))
    path.with_name("tokenizer_config.json").write_text('{"eos_token": "</s>", "bos_token": "<s>", "mask_token": "<mask>"}')


def commands(folder: Path) -> dict[str, tuple[str, ...]]:
    """Name → arguments of apr-train, with `OUT` for a place that is new in each run."""
    text = str(folder / "text")
    found: dict[str, tuple[str, ...]] = {}
    for family in FAMILIES:
        train = ("--arch", family, "--init", str(folder / family), "--data", text, *TRAIN, *FIXED, "--allow-cold-init")
        found[f"{family}, 30 steps"] = (*train, "--steps", "30", "--out", "OUT")
        apr = str(folder / f"{family}.apr")
        found[f"{family}, import, {LARGE_LAYERS} layers"] = ("import", str(folder / f"{family}-large"), "-o", "OUT/x.apr")
        large = ("--arch", family, "--init", apr, "--data", text, *TRAIN, *FIXED, "--allow-cold-init")
        found[f"{family}, load and save, {LARGE_LAYERS} layers"] = (*large, "--steps", "0", "--out", "OUT")
        rows = ("--data", text, "--sequence-length", "128", "--batch-size", "4", "--batches", "4")
        found[f"{family}, eval, {LARGE_LAYERS} layers"] = (
            "eval",
            apr,
            "--arch",
            family,
            *rows,
            "--precision",
            "fp32",
            "--device",
            "cpu",
        )
    return found


def prepare(folder: Path) -> None:
    """The models of every family, the large ones as `.apr` too, and the text."""
    (folder / "text").mkdir()
    for file in sorted(Path(os.__file__).parent.glob("*.py"))[:60]:
        shutil.copy(file, folder / "text")
    for family in FAMILIES:
        write_checkpoint(family, LAYERS, folder / family)
        large = folder / f"{family}-large"
        write_checkpoint(family, LARGE_LAYERS, large)
        run(ROOT, ("import", str(large), "-o", str(folder / f"{family}.apr")), folder)


def run(source: Path, arguments: tuple[str, ...], folder: Path) -> dict[str, float]:
    """Run apr-train of a checkout; seconds and the peak of memory as the system counts them."""
    path = os.pathsep.join(str(source / part) for part in SOURCES)
    cache = folder / f"cache-{source.name}"
    variables = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "APR_TRAIN_CACHE": str(cache)}
    variables |= {"PYTHONPYCACHEPREFIX": str(folder / "bytecode"), "PYTHONDONTWRITEBYTECODE": ""}  # as installed ones have it
    with tempfile.TemporaryDirectory(dir=folder) as out, tempfile.TemporaryFile() as said:
        cache.mkdir(exist_ok=True)
        command = [sys.executable, "-c", "from apr_train.cli import main; main()"]
        command += [argument.replace("OUT", out) if argument.startswith("OUT") else argument for argument in arguments]
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT, env=variables, cwd=out)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            said.seek(0)
            raise SystemExit(f"{source}: {' '.join(command[3:])}\n{said.read().decode()[-3000:]}")
    return {"processor": usage.ru_utime + usage.ru_stime, "wall": seconds, "memory": float(usage.ru_maxrss)}


@contextmanager
def checkout(commit: str) -> Iterator[Path]:
    """Another commit's files."""
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / "other"
        git = ("git", "-C", str(ROOT), "worktree")
        subprocess.run([*git, "add", "--detach", str(folder), commit], check=True, capture_output=True)
        try:
            yield folder
        finally:
            subprocess.run([*git, "remove", "--force", str(folder)], check=True, capture_output=True)


def compare(name: str, arguments: tuple[str, ...], other: Path, folder: Path, pairs: int) -> str:
    """One command on both sides in turns, as a line of a table."""
    sides: dict[Path, list[dict[str, float]]] = {ROOT: [], other: []}
    for source in sides:
        run(source, arguments, folder)
    for number in range(pairs):
        for source in list(sides)[:: 1 if number % 2 == 0 else -1]:
            sides[source].append(run(source, arguments, folder))
    parts = []
    for figure in ("processor", "wall", "memory"):
        ratios = [mine[figure] / theirs[figure] for mine, theirs in zip(sides[ROOT], sides[other], strict=True)]
        parts.append(f"{statistics.median(ratios):.3f} ({min(ratios):.3f}–{max(ratios):.3f})")
    seconds, memory = (statistics.median(found[key] for found in sides[ROOT]) for key in ("processor", "memory"))
    return f"| {name} | {' | '.join(parts)} | {seconds:.1f} s, {memory / 1e6:.2f} GB |"


def main() -> None:
    """Read the command line and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("commit", metavar="COMMIT")
    parser.add_argument("names", metavar="NAME", nargs="*", help="only commands whose name has one of these")
    parser.add_argument("--pairs", type=int, default=7)
    args = parser.parse_args()
    with checkout(args.commit) as other, tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder)
        for title, arguments in commands(folder).items():
            if not args.names or any(word in title for word in args.names):
                print(compare(title, arguments, other, folder, args.pairs), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
