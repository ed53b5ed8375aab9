"""samples.jsonl: texts that a run's model wrote, one JSON object a line: step, prompt, text, and of another kind more."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, get_args

import attrs
from attrs import frozen

from apr_train.atomic import write_file
from apr_train.errors import RunError
from apr_train.run.json_lines import read_json_lines

_HINT = "Move the file away: the run goes on without it, and the report leaves it out."


SampleKind = Literal["text", "chat", "hole"]
"""What the prompt is: the beginning of a text, a user's turn, or what stands before a hole."""


@frozen(kw_only=True)
class Sample:
    """A prompt, and the text with which the model went on."""

    step: int
    """Optimizer steps done when the model wrote the text."""
    prompt: str
    text: str
    """The continuation, without the prompt."""
    kind: SampleKind = "text"
    suffix: str = ""
    """What stands behind the hole."""


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
    if not isinstance(values, dict):
        return None
    of_other_kinds = {"kind": "text", "suffix": ""}  # a line of a text's beginning leaves them out
    types = {key: type(value) for key, value in (of_other_kinds | values).items()}
    right = types == {"step": int, "prompt": str, "text": str, "kind": str, "suffix": str}
    return Sample(**values) if right and values.get("kind", "text") in get_args(SampleKind) else None


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
    write_file(path, "".join(f"{json.dumps(_told(sample))}\n" for sample in samples).encode("utf-8"))


def _told(sample: Sample) -> dict[str, Any]:
    """The fields of a line: those that are at their default are left out."""
    return attrs.asdict(sample, filter=lambda item, value: item.default is attrs.NOTHING or value != item.default)
