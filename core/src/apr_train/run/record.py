"""A run's folder read back: metrics, settings, preflight, samples."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
from attrs import field, frozen

from apr_train.checkpoint.given_name import given_name
from apr_train.errors import RunError
from apr_train.run.changes import read_changes
from apr_train.run.course import best_checkpoint, course
from apr_train.run.folder import CHANGES, CONFIG, MACHINE, METRICS, PREFLIGHT, PROFILE, SAMPLES, run_hint, run_of
from apr_train.run.machine import Machine, read_machine
from apr_train.run.metrics import Metrics, read_metrics
from apr_train.run.preflight_file import PreflightRecord, read_preflight
from apr_train.run.profile_file import ITEMS, ProfileRecord, read_profile
from apr_train.run.samples import Sample, read_samples
from apr_train.run.settings_file import read_toml


@frozen(kw_only=True)
class Record:
    """What a run's folder holds, checked."""

    folder: Path
    label: str
    """How the run is called beside the others."""
    lines: tuple[Metrics, ...] = field(repr=False)
    """At least one, by step."""
    settings: Mapping[str, Any] = field(repr=False)
    """`optimizer.lr` → value; what is None is left out."""
    preflight: PreflightRecord | None = field(repr=False)
    """None for a run that was made before runs wrote preflight.json."""
    samples: tuple[Sample, ...] = field(repr=False)
    """By step; a run writes one at its end."""
    told: Mapping[str, str] = field(factory=dict, repr=False)
    """What happened on the way: label → text."""
    machine: Machine | None = None
    """None for a run that was made before runs wrote machine.json."""
    profile: ProfileRecord | None = field(default=None, repr=False)
    """None for a run without `--profile`."""

    @property
    def measured(self) -> tuple[Metrics, ...]:
        """The lines with a validation."""
        return tuple(line for line in self.lines if line.val_loss is not None)


def read_records(paths: Sequence[str | os.PathLike[str]]) -> list[Record]:
    """Read several runs; those of the same name are told apart by their paths.

    Raises:
        RunError: as `read_record`, or a run that is named twice.
    """
    records = [read_record(path) for path in paths]
    folders = Counter(record.folder.resolve() for record in records)
    twice = [str(folder) for folder, count in folders.items() if count > 1]
    if twice:
        raise RunError("a run is named twice", where=", ".join(twice))
    names = Counter(record.label for record in records)
    return [attrs.evolve(item, label=str(item.folder)) if names[item.label] > 1 else item for item in records]


def read_record(path: str | os.PathLike[str]) -> Record:
    """Read one run: its folder, or a checkpoint in it.

    Raises:
        RunError: no such folder, a run without metrics, or a damaged file (by name, and by the number of the line).
        ConfigError: settings that cannot be read.
    """
    given = Path(path)
    folder = (run_of(given) if given.exists() else None) or given
    if not folder.is_dir():
        raise RunError("no such run", where=given, expected=f"a folder with {CONFIG} and {METRICS}")
    lines = _lines(folder / METRICS)
    settings, changes = read_toml(folder / CONFIG), tuple(read_changes(folder / CHANGES))
    groups = attrs.asdict(settings)
    best = best_checkpoint(folder, lines, settings, changes)
    return Record(
        folder=folder,
        label=given_name(folder),
        lines=tuple(lines),
        settings={
            f"{group}.{name}": value for group, values in groups.items() for name, value in values.items() if value is not None
        },
        preflight=read_preflight(folder / PREFLIGHT),
        samples=tuple(read_samples(folder / SAMPLES)),
        told=course(lines, settings, best, changes),
        machine=read_machine(folder / MACHINE),
        profile=read_profile(folder / PROFILE / ITEMS),
    )


def _lines(path: Path) -> list[Metrics]:
    hint = "Give the folder that a training run wrote: runs/NAME."
    if not path.is_file():
        hint = run_hint(path.parent) or hint
        raise RunError("the run has no metrics", where=path.parent, expected=METRICS, found="no such file", hint=hint)
    lines = read_metrics(path)
    if not lines:
        raise RunError("the run has no metrics yet", where=path, found="no line", hint="Wait for its first validation.")
    return lines
