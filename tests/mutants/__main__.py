"""Apply the seeded defects and print what catches each: the kill rate of docs/results.md.

The kit is `check_family` and nothing else. The comparison is what a family's own tests compare it with: a transformers
model, a GGUF of llama.cpp, the published config.json. The exit status is 1 when a defect survives both, when the kit alone
catches less than nine in ten, or when something fails without a defect.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import chain, groupby
from multiprocessing import get_context

from tests.mutants.catalogue import AREAS, EQUIVALENT, Case, cases, sampled
from tests.mutants.run import Kill, Outcome, share_of_work

WANTED = 0.9
"""Share of the defects that the kit alone must catch."""


def main() -> int:
    """Run what the command line asks for."""
    options = _options().parse_args()
    chosen = sampled(options.seed, options.sample) if options.sample else cases(options.area)
    if options.family:
        chosen = [case for case in chosen if case[2] in options.family]
    started = time.perf_counter()
    outcomes = list(_outcomes(chosen, options.jobs, quiet=options.markdown))
    controls = [outcome for outcome in outcomes if outcome.area == "control"]
    tried = [outcome for outcome in outcomes if outcome.area != "control"]
    print("\n".join(_markdown(tried) if options.markdown else _table(tried)))
    print("\n".join(["", *_summary(tried, controls)]))
    print(f"{time.perf_counter() - started:.0f} s, {options.jobs} processes", file=sys.stderr)
    return int(bool(_faults(tried, controls)))


def _options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.mutants", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sample", type=int, metavar="K", help="try K of the cases only, some of every area")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="which ones (default: 0)")
    parser.add_argument("--area", action="append", choices=AREAS, help="try an area only; may be given several times")
    parser.add_argument("--family", action="append", help="try a family only; may be given several times")
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="processes (default: 2)")
    parser.add_argument("--markdown", action="store_true", help="print the tables of docs/results.md")
    return parser


def _outcomes(chosen: Sequence[Case], jobs: int, *, quiet: bool) -> Iterator[Outcome]:
    """Each case's outcome, and before and after them each family's without a defect."""
    families = sorted({family for _, _, family in chosen})
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        parts = pool.map(share_of_work, [(list(chosen[number::jobs]), families[number::jobs]) for number in range(jobs)])
        for outcome in chain.from_iterable(parts):
            if not quiet and outcome.area == "control" and outcome.killed_by != "nothing":
                print(f"without a defect: {outcome}", file=sys.stderr)
            yield outcome


def _seen_by(kill: Kill | None) -> str:
    return "–" if kill is None else kill.check


def _sorted(tried: Sequence[Outcome]) -> list[Outcome]:
    return sorted(tried, key=lambda outcome: (list(AREAS).index(outcome.area), outcome.defect, outcome.family))


def _table(tried: Sequence[Outcome]) -> Iterator[str]:
    for outcome in _sorted(tried):
        yield f"{outcome.killed_by:<10}  {outcome.area:<14}  {outcome.family:<10}  {outcome.defect}"
        yield f"{'':<12}kit: {_seen_by(outcome.kit)}, comparison: {_seen_by(outcome.comparison)}"


def _markdown(tried: Sequence[Outcome]) -> Iterator[str]:
    yield "| area | defects | cases | kit | comparison | either |"
    yield "|---|---|---|---|---|---|"
    for area, group in groupby(_sorted(tried), key=lambda outcome: outcome.area):
        of_area = list(group)
        counts = [
            sum(map(bool, kills))
            for kills in zip(*((o.kit, o.comparison, o.kit or o.comparison) for o in of_area), strict=True)
        ]
        yield f"| {area} | {len({o.defect for o in of_area})} | {len(of_area)} | {' | '.join(map(str, counts))} |"
    yield ""
    yield "| defect | family | seen by the kit's | by the comparison's |"
    yield "|---|---|---|---|"
    for outcome in _sorted(tried):
        yield f"| {outcome.defect} | {outcome.family} | {_seen_by(outcome.kit)} | {_seen_by(outcome.comparison)} |"


def _summary(tried: Sequence[Outcome], controls: Sequence[Outcome]) -> Iterator[str]:
    total = len(tried)
    for who, count in (
        ("the kit alone", sum(outcome.kit is not None for outcome in tried)),
        ("the comparison alone", sum(outcome.comparison is not None for outcome in tried)),
        ("one of them", sum(outcome.killed_by != "nothing" for outcome in tried)),
    ):
        yield f"{who} catches {count} of {total} ({count / max(total, 1):.1%})"
    distinct, families = {outcome.defect for outcome in tried}, {outcome.family for outcome in tried}
    yield f"{len(distinct)} defects in {len(families)} families; {len(EQUIVALENT)} changes left out: nobody could see them"
    yield from _faults(tried, controls)


def _faults(tried: Sequence[Outcome], controls: Sequence[Outcome]) -> list[str]:
    """What makes the exit status 1."""
    faults = [f"FAILS WITHOUT A DEFECT: {o.family}: {o.kit or o.comparison}" for o in controls if o.killed_by != "nothing"]
    faults += [f"SURVIVES: {o.defect} [{o.family}]" for o in tried if o.killed_by == "nothing"]
    rate = sum(outcome.kit is not None for outcome in tried) / max(len(tried), 1)
    return faults + ([f"THE KIT ALONE CATCHES {rate:.1%}, less than {WANTED:.0%}"] if rate < WANTED else [])


if __name__ == "__main__":
    sys.exit(main())
