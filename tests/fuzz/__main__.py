"""Change small right files in the places that matter, and run commands on them, each in a process of its own.

The property is one: the right answer or an error of apr-train's, within 5 seconds of a processor and 200 MB, in less than 4 kB
of message, with no raw control in it. The exit status is 1 when one input breaks it; it is kept, and `--only KIND:NUMBER`
does it again. The table is that of docs/results.md.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from tests.fuzz.inputs import KINDS
from tests.fuzz.seeds import make_seeds
from tests.fuzz.trial import WITH_TORCH, Outcome, Share, share_of_work, try_out


def main() -> int:
    """Run what the command line asks for."""
    options = _options().parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as temporary:
        seeds = Path(temporary, "seeds")
        make_seeds(seeds)
        if options.only:
            kind, _, number = options.only.rpartition(":")
            outcomes = [try_out(seeds, kind, int(number), options.seed, keep=options.keep, aloud=True)]
        else:
            outcomes = _all(seeds, options, time.monotonic() + options.seconds)
    print("\n".join(_table(outcomes)))
    faults = [outcome for outcome in outcomes if outcome.verdict == "fault"]
    for outcome in faults[:50]:
        print(f"\n{outcome.kind}:{outcome.number}  {outcome.what}\n{outcome.said}", file=sys.stderr)
    print(f"{len(outcomes):,} inputs, {time.monotonic() - started:.0f} s, seed {options.seed}", file=sys.stderr)
    return int(bool(faults) or not outcomes)


def _options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--seconds", type=float, default=300, metavar="S", help="how long, once the files are made (default: 300)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="which inputs (default: 0)")
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="processes (default: 2)")
    parser.add_argument("--kind", action="append", choices=list(KINDS), help="try a kind only; may be given several times")
    parser.add_argument("--only", metavar="KIND:NUMBER", help="one input, with what it prints")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="keep the input of every fault there")
    return parser


def _all(seeds: Path, options: argparse.Namespace, deadline: float) -> list[Outcome]:
    jobs = [
        Share(seeds, kinds, options.seed, number, step, deadline, options.keep)
        for kinds, number, step in _shares(options.kind or list(KINDS), options.jobs)
    ]
    with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn")) as pool:
        return [outcome for share in pool.map(share_of_work, jobs) for outcome in share]


def _shares(kinds: list[str], jobs: int) -> list[tuple[list[str], int, int]]:
    """Kinds, first number and step of each process; what needs torch goes to half of them, where it is imported."""
    heavy, light = [kind for kind in kinds if kind in WITH_TORCH], [kind for kind in kinds if kind not in WITH_TORCH]
    if not heavy or not light or jobs == 1:
        return [(kinds, number, jobs) for number in range(jobs)]
    half = jobs // 2
    return [
        *((light, number, jobs - half) for number in range(jobs - half)),
        *((heavy, number, half) for number in range(half)),
    ]


def _table(outcomes: list[Outcome]) -> list[str]:
    rows = ["| files | inputs | clean | refused | faults | slowest | most memory |", "|---|---|---|---|---|---|---|"]
    for kind in dict.fromkeys(outcome.kind for outcome in outcomes):
        mine = [outcome for outcome in outcomes if outcome.kind == kind]
        counts = Counter(outcome.verdict for outcome in mine)
        seconds, memory = max(item.seconds for item in mine), max(item.memory for item in mine)
        numbers = " | ".join(f"{number:,}" for number in (len(mine), counts["clean"], counts["refused"], counts["fault"]))
        rows.append(f"| {KINDS[kind].title} | {numbers} | {seconds:.1f} s | {memory / 1e6:.0f} MB |")
    return rows


if __name__ == "__main__":
    sys.exit(main())
