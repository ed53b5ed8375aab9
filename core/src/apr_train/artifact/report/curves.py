"""From metrics to what is drawn: series of points, thinned and smoothed, and the range that they share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

from attrs import field, frozen

from apr_train.run.metrics import Metrics
from apr_train.run.record import Record
from apr_train.run.units import number

Point = tuple[int, float]
MOST_POINTS = 1000
"""Of one series; more than a screen shows, few enough for a page that opens at once."""
SMOOTH_FROM = 60
"""Shorter series are drawn as they are."""
_LOG_RATIO = 50
_FLAT = 1e-5
"""Share of the value below which a curve's spread is drawn as a level line: what arithmetic leaves, not what was learnt."""
_MOST_DECIMALS = 6


@frozen(kw_only=True)
class Quantity:
    """A field of the metrics that gets a curve of its own."""

    name: str
    title: str
    unit: str
    smooth: bool = False
    from_zero: bool = False
    may_be_log: bool = False
    source: str = ""
    """Of a field that has a number for each source of a mixture, the source."""

    @property
    def key(self) -> str:
        """Its name in the page."""
        return f"{self.name}-{self.source}" if self.source else self.name

    def value(self, line: Metrics) -> Any:
        """What a line says of it; None for nothing."""
        found = getattr(line, self.name)
        return (found or {}).get(self.source) if self.source else found


QUANTITIES = (
    Quantity(name="loss", title="Training loss", unit="nats per token", smooth=True),
    Quantity(name="val_loss", title="Validation loss", unit="nats per token"),
    Quantity(name="aux_loss", title="Auxiliary loss of the experts' router", unit="without its factor", smooth=True),
    Quantity(name="val_accuracy", title="Validation accuracy", unit="share of masked tokens", from_zero=True),
    Quantity(name="eval_fim_loss", title="Hidden lines: loss", unit="nats per token"),
    Quantity(name="eval_fim_exact", title="Hidden lines given back", unit="share", from_zero=True),
    Quantity(name="eval_fim_parsed", title="Hidden lines: the whole parses", unit="share", from_zero=True),
    Quantity(name="eval_syntax", title="Completed functions that parse", unit="share", from_zero=True),
    Quantity(name="lr", title="Learning rate", unit="per step", from_zero=True),
    Quantity(name="grad_norm", title="Gradient norm", unit="before clipping", smooth=True, may_be_log=True),
    Quantity(name="tokens_per_s", title="Throughput", unit="tokens per second", smooth=True, from_zero=True),
    Quantity(name="mfu", title="Use of the machine", unit="share of its peak (MFU)", smooth=True, from_zero=True),
)


@frozen(kw_only=True)
class Series:
    """One run's values of one quantity."""

    run: int
    """Number of the run in the report."""
    points: tuple[Point, ...] = field(repr=False)
    smoothed: tuple[Point, ...] = field(repr=False)
    """Empty when the points are drawn as they are."""


@frozen(kw_only=True)
class Panel:
    """One quantity of all runs, on common axes."""

    quantity: Quantity
    series: tuple[Series, ...]
    steps: tuple[int, int]
    values: tuple[float, float]
    log: bool

    def x(self, step: float) -> float:
        """Where a step lies, from 0 (left) to 1."""
        first, last = self.steps
        return (step - first) / (last - first) if last > first else 0.5

    def y(self, value: float) -> float:
        """Where a value lies, from 0 (top) to 1 (bottom)."""
        low, high = map(self._scale, self.values)
        return 1 - (self._scale(value) - low) / (high - low)

    def _scale(self, value: float) -> float:
        return math.log10(value) if self.log else value


def panels(records: Sequence[Record]) -> list[Panel]:
    """A panel for every quantity that any of the runs has."""
    made = (_panel(quantity, records) for quantity in (*QUANTITIES, *_by_source(records)))
    return [panel for panel in made if panel is not None]


def sources_in(records: Sequence[Record]) -> list[str]:
    """The sources of mixtures that any of the runs was measured on or has read, by name."""
    lines = [line for record in records for line in record.lines]
    return list(dict.fromkeys(name for line in lines for name in (*(line.source_tokens or {}), *(line.source_val_loss or {}))))


def _by_source(records: Sequence[Record]) -> list[Quantity]:
    return [
        Quantity(name="source_val_loss", title=f"Validation loss: {name}", unit="nats per token", source=name)
        for name in sources_in(records)
    ]


def _panel(quantity: Quantity, records: Sequence[Record]) -> Panel | None:
    series = [item for run, record in enumerate(records) if (item := _series(quantity, run, record)) is not None]
    values = [value for item in series for _, value in item.points]
    if not values:
        return None
    runs = [records[item.run].lines for item in series]  # as long as the longest of them, whatever the other runs are
    steps = min(lines[0].step for lines in runs), max(lines[-1].step for lines in runs)
    low, high = min(values), max(values)
    log = quantity.may_be_log and low > 0 and high / low > _LOG_RATIO
    if log:
        bounds = low / 1.2, high * 1.2
    else:
        low = min(low, 0.0) if quantity.from_zero else low
        flat = high - low <= _FLAT * max(abs(low), abs(high))
        margin = (0.05 * abs(high) or 1.0) if flat else 0.06 * (high - low)
        bounds = (low if quantity.from_zero and low == 0 else low - margin), high + margin
    return Panel(quantity=quantity, series=tuple(series), steps=steps, values=bounds, log=log)


def _series(quantity: Quantity, run: int, record: Record) -> Series | None:
    points: list[Point] = []
    for line in record.lines:
        value = quantity.value(line)
        if value is not None and math.isfinite(value):
            points.append((line.step, float(value)))
    if not points:
        return None
    smoothed = thinned(smooth(points)) if quantity.smooth and len(points) >= SMOOTH_FROM else ()
    return Series(run=run, points=tuple(thinned(points)), smoothed=tuple(smoothed))


def smooth(points: Sequence[Point]) -> list[Point]:
    """The mean of a fortieth of the run around each point; of less at its steep start, so that no curve lags behind."""
    sums = list(accumulate((value for _, value in points), initial=0.0))
    reach = max(2, len(points) // 80)
    made = []
    for index, (step, _) in enumerate(points):
        first = index - min(reach, index)
        last = min(index + min(reach, index), len(points) - 1)
        made.append((step, (sums[last + 1] - sums[first]) / (last + 1 - first)))
    return made


def thinned(points: Sequence[Point], most: int = MOST_POINTS) -> list[Point]:
    """At most `most` points that look the same: of each stretch the lowest and the highest, and both ends."""
    if len(points) <= most:
        return list(points)
    buckets = (most - 2) // 2
    kept = {0, len(points) - 1}
    for bucket in range(buckets):
        stretch = range(bucket * len(points) // buckets, (bucket + 1) * len(points) // buckets)
        kept.add(min(stretch, key=lambda index: points[index][1]))
        kept.add(max(stretch, key=lambda index: points[index][1]))
    return [points[index] for index in sorted(kept)]


def ticks(low: float, high: float, *, log: bool = False, about: int = 6) -> list[float]:
    """Round numbers between two bounds."""
    if log:
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        digits = (1, 2, 5) if len(decades) <= 3 else (1,)
        return [digit * 10.0**decade for decade in decades for digit in digits if low <= digit * 10.0**decade <= high]
    raw = (high - low) / about
    size = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * size for factor in (1, 2, 5, 10) if factor * size >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [number * step for number in range(first, math.floor(high / step + 1e-9) + 1)]


def tick_labels(values: Sequence[float], *, log: bool = False) -> list[str]:
    """What stands at the ticks of an axis: as many digits as their step has, so that no two are alike."""
    if log or len(values) < 2:
        return [number(value, 3) for value in values]
    place = math.floor(math.log10(values[1] - values[0]) + 1e-9)
    if max(map(abs, values)) < 1e9 and -place <= _MOST_DECIMALS:
        return [f"{_plain_zero(value, -place):,.{max(0, -place)}f}" for value in values]
    return [_scientific(_plain_zero(value, -place), place) for value in values]


def step_labels(values: Sequence[float]) -> list[str]:
    """What stands at steps: short where they are round, for many have to stand side by side: `20k`, `1.5M`."""
    for unit, name, least in ((1e6, "M", 1e5), (1e3, "k", 1e2)):
        if max(values, default=0) >= 10 * least and all(value % least == 0 for value in values):
            return [f"{value / unit:g}{name}" if value else "0" for value in values]
    return [f"{int(value):,}" for value in values]


def _plain_zero(value: float, decimals: int) -> float:
    """The value, without the sign of a zero and without what arithmetic left of one."""
    return 0.0 if abs(value) < 0.5 * 10.0**-decimals else value


def _scientific(value: float, place: int) -> str:
    """`1.25e-7`, down to the digit of a power of ten."""
    if value == 0:
        return "0"
    power = math.floor(math.log10(abs(value)) + 1e-9)
    return f"{value / 10.0**power:.{max(0, power - place)}f}e{power}"
