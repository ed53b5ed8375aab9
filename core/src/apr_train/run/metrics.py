"""metrics.jsonl: one line a step, readable while the run goes on, cut back at a resume. Schema: docs/metrics.md."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import attrs
from attrs import field, frozen

from apr_train.atomic import write_all, write_file
from apr_train.checkpoint.files import read_bytes
from apr_train.errors import OutputError, RunError
from apr_train.run.json_lines import MAX_LINES_BYTES, read_json_lines
from apr_train.run.option import MOST

BY_SOURCE = ("source_tokens", "source_val_loss")
"""Fields that have a number for each source of a mixture, by its name."""
MEASURED = ("tokens_per_s", "step_time", "step_time_spread", "mfu", "memory")
"""Fields that differ between two runs that are otherwise equal bit for bit."""


def _unit(unit: str, text: str, **arguments: Any) -> Any:
    return field(metadata={"unit": unit, "text": text}, **arguments)


@frozen(kw_only=True)
class Metrics:
    """One line; a field that does not apply is left out."""

    step: int = _unit("steps", "Optimizer steps done; 0 is before the first one and has a validation only.")
    loss: float | None = _unit("nats", "Mean loss per target token over the step, before its update.", default=None)
    aux_loss: float | None = _unit("", "Experts: mean load-balancing loss of the router, without its factor.", default=None)
    lr: float | None = _unit("", "Learning rate of the step.", default=None)
    grad_norm: float | None = _unit("", "Norm of the whole gradient, before clipping.", default=None)
    skipped: int | None = _unit("", "1: the step was a spike, and --skip-spikes left the weights as they were.", default=None)
    targets: int | None = _unit("tokens", "Target tokens of the step: those that the loss counts.", default=None)
    tokens: int | None = _unit("tokens", "Tokens that the model has read since step 0.", default=None)
    tokens_per_s: float | None = _unit("tokens/s", "Tokens read in the step by the time that it took.", default=None)
    step_time: float | None = _unit("s", "Time of the step, without validation and saving.", default=None)
    mfu: float | None = _unit(
        "", "Model FLOPs utilisation: operations that the step needs, by those that the device can do.", default=None
    )
    memory: int | None = _unit("bytes", "Peak so far: resident memory on a CPU, allocated memory on CUDA.", default=None)
    processes: int | None = _unit(
        "", "Processes of the run, where a launcher started them; what else is told is of all.", default=None
    )
    step_time_spread: float | None = _unit(
        "s", "Several processes: the longest less the shortest time of the step.", default=None
    )
    val_loss: float | None = _unit("nats", "Mean loss per target token on the validation batches.", default=None)
    trained_val_loss: float | None = _unit(
        "nats", "With --ema: val_loss of the trained weights; all else in a validation is of the averaged ones.", default=None
    )
    perplexity: float | None = _unit("", "exp(val_loss).", default=None)
    val_accuracy: float | None = _unit("", "Masked-LM: share of masked tokens that are predicted right.", default=None)
    source_tokens: Mapping[str, int] | None = _unit(
        "tokens", "Of a mixture, by source: tokens read since step 0.", default=None
    )
    source_val_loss: Mapping[str, float] | None = _unit(
        "nats", "Of a mixture, by source: mean loss per target token on its validation batches.", default=None
    )
    eval_fim_loss: float | None = _unit("nats", "--eval fim: mean loss per token of the hidden lines.", default=None)
    eval_fim_exact: float | None = _unit("", "--eval fim: share of the hidden lines that come back exactly.", default=None)
    eval_fim_parsed: float | None = _unit(
        "", "--eval fim: of Python documents, share that is Python with what was written.", default=None
    )
    eval_syntax: float | None = _unit("", "--eval syntax: share of the completed functions that are Python.", default=None)

    def to_json(self) -> str:
        """One line without its newline."""
        return json.dumps({name: value for name, value in attrs.asdict(self).items() if value is not None}, allow_nan=False)

    def numbers(self) -> dict[str, float]:
        """Every number of the line but its step; those by source as `source_val_loss/NAME`."""
        found: dict[str, float] = {}
        for name, value in attrs.asdict(self).items():
            if isinstance(value, Mapping):
                found |= {f"{name}/{source}": number for source, number in value.items()}
            elif value is not None and name != "step":
                found[name] = value
        return found


def perplexity(loss: float) -> float | None:
    """`exp(loss)`; None where that is no finite number."""
    return math.exp(loss) if loss < 700 else None


def tokens_per_second(steps: Sequence[tuple[float, float]]) -> float:
    """Mean speed over steps given as (tokens, seconds), without the first one, which warms up.

    Args:
        steps: at least one; a single step counts although it is the first.
    """
    timed = steps[1:] or steps
    return sum(tokens for tokens, _ in timed) / max(1e-9, sum(seconds for _, seconds in timed))


def mean_speed(lines: Iterable[Metrics]) -> float | None:
    """`tokens_per_second` over the lines of steps; None if no line has a time."""
    steps = [(line.tokens_per_s * line.step_time, line.step_time) for line in lines if line.step_time and line.tokens_per_s]
    return tokens_per_second(steps) if steps else None


def mean_mfu(lines: Iterable[Metrics]) -> float | None:
    """The MFU over the time of all steps but the first, which warms up, unless it is the only one; None without any."""
    steps = [(line.mfu, line.step_time) for line in lines if line.mfu is not None and line.step_time]
    timed = steps[1:] or steps
    return sum(mfu * seconds for mfu, seconds in timed) / sum(seconds for _, seconds in timed) if timed else None


class MetricsFile:
    """Appends lines; each is on its way to the disk when `write` returns, and on it after `sync`.

    Raises:
        OutputError: from every method, when the disk is full or fails.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        with self._output_errors():
            self._file = path.open("ab", buffering=0)

    def write(self, metrics: Metrics) -> None:
        """Append one line."""
        with self._output_errors():
            write_all(self._file, f"{metrics.to_json()}\n".encode())

    def sync(self) -> None:
        """Wait for the disk; done before a checkpoint, which must not know more steps than this file."""
        with self._output_errors():
            os.fsync(self._file.fileno())

    @contextmanager
    def _output_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            hint = "Mend that, then go on with --resume."
            raise OutputError(f"cannot be written ({error.strerror})", where=self._path, hint=hint) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._file.close()


def read_metrics(path: Path) -> list[Metrics]:
    """Read the lines back, by step; a last line that was cut off by a crash is left out.

    Raises:
        RunError: for any other line that is not as documented; the message gives its number.
    """
    known = set(attrs.fields_dict(Metrics))
    read: list[Metrics] = []
    for number, values in enumerate(read_json_lines(path), 1):
        if not isinstance(values, dict) or "step" not in values or set(values) - known:
            raise RunError(f"line {number} is not a line of metrics", where=path, expected=f"keys among {sorted(known)}")
        _check_numbers(values, number, path)
        _check_step(values["step"], number, path, above=read[-1].step if read else -1)
        read.append(Metrics(**values))
    return read


def _check_numbers(values: dict[str, Any], number: int, path: Path) -> None:
    for name, value in _parts(values, number, path):
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise RunError(f"line {number}: {name} is no number", where=path, found=f"{value!r:.80}")


def _parts(values: dict[str, Any], number: int, path: Path) -> Iterator[tuple[str, Any]]:
    """What is there of a line's values, those by source one by one."""
    for name, value in values.items():
        if name not in BY_SOURCE and value is not None:
            yield name, value
        elif isinstance(value, dict):
            yield from ((f"{name}.{source}", item) for source, item in value.items())
        elif value is not None:
            raise RunError(f"line {number}: {name} is no object", where=path, found=f"{value!r:.80}")


def _check_step(step: object, number: int, path: Path, *, above: int) -> None:
    if type(step) is not int or not above < step <= MOST:
        expected = f"a whole number above {above}"
        raise RunError(f"line {number}: the step is wrong", where=path, expected=expected, found=f"{step!r:.80}")


def cut_back(path: Path, step: int) -> list[Metrics]:
    """Keep the lines up to `step` and forget later ones, a half-written one included; returns what is kept.

    At step 0 that is nothing: a run that stands there measures its start again.

    Raises:
        OutputError: when the file cannot be written; it is then as it was.
    """
    kept = [line for line in read_metrics(path) if line.step <= step] if step and path.exists() else []
    whole = read_bytes(path, most=MAX_LINES_BYTES).split(b"\n", len(kept))[:-1] if kept else []
    write_file(path, b"".join(line + b"\n" for line in whole))
    return kept
