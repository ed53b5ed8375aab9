"""samples.jsonl: texts that a run's model wrote, one JSON object a line: step, prompt, text."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import attrs
from attrs import frozen

from apr_train.atomic import write_file
from apr_train.errors import RunError
from apr_train.run.json_lines import read_json_lines

_HINT = "Move the file away: the run goes on without it, and the report leaves it out."


@frozen(kw_only=True)
class Sample:
    """A prompt, and the text with which the model went on."""

    step: int
    """Optimizer steps done when the model wrote the text."""
    prompt: str
    text: str
    """The continuation, without the prompt."""


def read_samples(path: Path) -> list[Sample]:
    """Read the samples back, by step; none if there is no file.

    Raises:
        RunError: a line is damaged; the message gives its number.
    """
    try:
        return _checked(path)
    except RunError as error:
        raise error.amend(hint=_HINT) from error


def _checked(path: Path) -> list[Sample]:
    samples: list[Sample] = []
    for number, values in enumerate(read_json_lines(path) if path.exists() else [], 1):
        sample = _sample(values)
        if sample is None or (samples and sample.step <= samples[-1].step):
            expected = "a step above the line before, prompt and text"
            raise RunError(f"line {number} is not a sample", where=path, expected=expected, found=repr(values)[:80])
        samples.append(sample)
    return samples


def _sample(values: Any) -> Sample | None:
    kinds = {"step": int, "prompt": str, "text": str}
    right = isinstance(values, dict) and {key: type(value) for key, value in values.items()} == kinds
    return Sample(**values) if right else None


def add_sample(path: Path, sample: Sample) -> None:
    """Put a sample at the end of the file; an earlier end of the run at the same step gives way.

    Raises:
        OutputError: the file cannot be written; it is then as it was.
        RunError: a line is damaged.
    """
    _write(path, [*(earlier for earlier in read_samples(path) if earlier.step < sample.step), sample])


def cut_samples(path: Path, step: int) -> None:
    """Keep the samples up to `step`; a file that is not there stays so.

    Raises:
        OutputError: the file cannot be written; it is then as it was.
        RunError: a line is damaged.
    """
    if path.exists():
        _write(path, (sample for sample in read_samples(path) if sample.step <= step))


def _write(path: Path, samples: Iterable[Sample]) -> None:
    write_file(path, "".join(f"{json.dumps(attrs.asdict(sample))}\n" for sample in samples).encode("utf-8"))
