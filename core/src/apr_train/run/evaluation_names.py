"""What a run may evaluate at each validation: `--eval fim:50,syntax:20`; `training/evaluations.py` says what the names mean."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

from apr_train import rules
from apr_train.errors import ConfigError, Finding
from apr_train.suggest import did_you_mean

EvaluationName = Literal["fim", "syntax"]
"""A line of code is hidden and written anew; a function is completed."""
NAMES: tuple[EvaluationName, ...] = get_args(EvaluationName)
HOLES: EvaluationName = "fim"
"""The one that needs the tokens around a hole."""
FLAG = "--eval"
MOST = 1_000_000


def parse_evaluations(text: str | None) -> Mapping[EvaluationName, int]:
    """Name → how many times it is asked, in the order of `NAMES`; nothing for None.

    Raises:
        ConfigError: EVAL-001, with every part that is no evaluation.
    """
    parts = [] if text is None else [part.strip() for part in text.split(",")]
    found: dict[str, int] = {}
    findings = []
    for part in parts:
        name, _, count = part.partition(":")
        fault = _fault(name, count, found)
        if fault is None:
            found[name] = int(count)
        else:
            findings.append(fault)
    if findings:
        raise ConfigError.of(findings)
    return {name: found[name] for name in NAMES if name in found}


def _fault(name: str, count: str, before: Mapping[str, int]) -> Finding | None:
    if name not in NAMES:
        hint = did_you_mean(name, NAMES) or ""
        return _finding("no such evaluation", f"one of {', '.join(NAMES)}", repr(name), hint)
    if name in before:
        return _finding(f"{name} is asked twice", "each evaluation once", name)
    if not (count.isascii() and count.isdigit() and 1 <= int(count) <= MOST):
        return _finding(f"{name} without how many", f"{name}:COUNT, such as {name}:50", repr(count))
    return None


def _finding(problem: str, expected: str, found: str, hint: str = "") -> Finding:
    return Finding(rule=rules.EVAL_001, subject=FLAG, problem=problem, expected=expected, found=found, hint=hint)
