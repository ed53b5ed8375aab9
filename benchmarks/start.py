"""What a start on a large corpus takes beyond one on a small one, when neither has changed since the last run.

Each measurement is a whole `apr-train` of one step on the tiny preset, its processor time as the system counts it; the
corpora take turns. Of the large ones, one is JSON lines with documents of 2 KB, the other a tree of files of 12 KB, of
which each is looked at. The tokens are there from a first run, in which a stand-in for the tokenizer made them: what is
measured is that they are not made again.

    python benchmarks/start.py --size-mb 1000 --pairs 5
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

LIMIT = 0.5
"""Seconds of processor time more than with the small corpus."""
FORMS = ("small", "lines", "files")
SMALL_MB = 0.2


def write_corpus(form: str, folder: Path, size_mb: float) -> None:
    """Text of about so many megabytes: slices of this interpreter's own modules, no two documents the same."""
    pool = "".join(path.read_text(errors="ignore") for path in sorted(Path(os.__file__).parent.glob("*.py")))
    draw = random.Random(0)
    length = 12_000 if form == "files" else 2_000
    lines: list[str] = []
    for number in range(int(size_mb * 1e6 / length)):
        start = draw.randrange(len(pool) - length)
        text = f"# {number}\n{pool[start : start + length]}"
        if form == "files":
            place = folder / f"{number // 1000}" / f"{number // 50 % 20}"
            place.mkdir(parents=True, exist_ok=True)
            (place / f"{number}.py").write_text(text)
        else:
            lines.append(json.dumps({"text": text}))
    if lines:
        folder.mkdir()
        (folder / "texts.jsonl").write_text("\n".join(lines) + "\n")


def command(folder: Path, form: str) -> list[str]:
    """The options of a run of one step."""
    tokenizer = ["--tokenizer", str(folder / "tokenizer.json")]
    how = "--steps 1 --batch-size 1 --sequence-length 512 --threads 1 --sample-tokens 0 --val-batches 1 --save-every 0"
    model = ["--arch", "llama370m", "--preset", "tiny", *tokenizer]
    return [*model, "--data", str(folder / form), "--out", str(folder / "runs"), *how.split()]


def write_tokenizer(path: Path) -> None:
    """A byte-level tokenizer of the tiny preset's size; it is never asked for ids."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    made = Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    words = [path.read_text(errors="ignore") for path in sorted(Path(json.__file__).parent.glob("*.py"))]
    trainer = trainers.BpeTrainer(vocab_size=1024, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet)
    made.train_from_iterator(words, trainer)
    made.save(str(path))


def worker(options: list[str], *, stand_in: bool) -> None:
    """One run in this process."""
    from apr_train.cli import main

    if stand_in:
        put_stand_in()
    sys.argv = ["apr-train", *options]
    main()
    sys.exit(0)


def put_stand_in() -> None:
    """Let pairs of bytes be tokens."""
    import numpy as np
    from apr_train.data.encoding import TextEncoder

    def encode(self: object, documents: object, writer: object, *, done: object) -> None:
        for document in documents:  # type: ignore[attr-defined]
            raw = np.frombuffer(bytes(document.utf8), np.uint8)
            writer.append(raw[::2].astype(np.int64) + 1, text_bytes=len(raw))  # type: ignore[attr-defined]
            writer.end_document(0)  # type: ignore[attr-defined]
            done(len(raw))  # type: ignore[operator]

    TextEncoder.encode = encode  # type: ignore[assignment, method-assign]


def run(folder: Path, form: str, *, stand_in: bool = False) -> float:
    """Seconds of processor time of one run."""
    words = [sys.executable, __file__, "--stand-in" if stand_in else "--run", *command(folder, form)]
    before = os.times()
    subprocess.run(words, check=True, capture_output=True, env={**os.environ, "APR_TRAIN_CACHE": str(folder / "cache")})
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


def compare(size_mb: float, pairs: int) -> bool:
    """Print what each form takes more than the small corpus; true when all are within the limit."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_tokenizer(folder / "tokenizer.json")
        for form in FORMS:
            write_corpus(form, folder / form, SMALL_MB if form == "small" else size_mb)
        for form in FORMS:
            run(folder, form, stand_in=True)
            run(folder, form)
        taken: dict[str, list[float]] = {form: [] for form in FORMS}
        for number in range(pairs):
            for form in FORMS if number % 2 == 0 else FORMS[::-1]:
                taken[form].append(run(folder, form))
    print(f"corpora of {size_mb:.0f} MB, {pairs} interleaved pairs, seconds of processor, medians (lowest to highest)")
    print(f"small: {statistics.median(taken['small']):.2f} in all")
    good = True
    for form in FORMS[1:]:
        more = [mine - small for mine, small in zip(taken[form], taken["small"], strict=True)]
        within = statistics.median(more) <= LIMIT
        good &= within
        verdict = "ok" if within else "MISSED"
        print(f"{form}: {statistics.median(more):.2f} ({min(more):.2f}–{max(more):.2f}) more  limit {LIMIT}: {verdict}")
    return good


def main() -> int:
    """Parse the options and run."""
    if sys.argv[1:2] in (["--run"], ["--stand-in"]):
        worker(sys.argv[2:], stand_in=sys.argv[1] == "--stand-in")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size-mb", type=float, default=1000)
    parser.add_argument("--pairs", type=int, default=5)
    options = parser.parse_args()
    return 0 if compare(options.size_mb, options.pairs) else 1


if __name__ == "__main__":
    sys.exit(main())
