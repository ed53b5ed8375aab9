"""What is published: a model whose licence and data are known, and what its run measured."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from attrs import field, frozen

from apr_train.artifact.convert import Conversion
from apr_train.artifact.provenance import spdx_expression
from apr_train.errors import ConfigError
from apr_train.run.folder import MODEL, STATE, run_of
from apr_train.run.record import Record, read_record

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_HUB_DATASET = re.compile(r"https://(?:huggingface\.co|hf\.co)/datasets/([\w.-]+(?:/[\w.-]+)?)/?")
REQUIRED = {"license": "SPDX", "data_source": "TEXT", "data_license": "SPDX"}
"""Metadata keys without which nothing is published, and what `stamp` takes for each."""


@frozen(kw_only=True)
class Wishes:
    """What the file cannot know, in the Hub's words."""

    base_model: str | None = None
    """`organisation/name` on the Hub."""
    datasets: tuple[str, ...] = ()
    languages: tuple[str, ...] = ()

    def __attrs_post_init__(self) -> None:
        named = {"--base-model": (self.base_model,) if self.base_model is not None else (), "--dataset": self.datasets}
        for option, values in named.items():
            for value in values:
                if not HUB_ID.fullmatch(value):
                    raise ConfigError("not a name on the Hub", where=option, expected="organisation/name", found=repr(value))


@frozen(kw_only=True)
class Subject:
    """A model with everything that its card tells."""

    title: str
    artifact: str
    """File name of the `.apr` in the folder."""
    conversion: Conversion = field(repr=False)
    wishes: Wishes
    origin: Mapping[str, Any] = field(repr=False)
    """What the file says of the run that made it; empty if nothing."""
    record: Record | None = field(repr=False)
    """That run, if the file still lies in its folder; without what came after this checkpoint."""
    sample: tuple[str, str] | None = field(default=None, repr=False)

    @property
    def provenance(self) -> Mapping[str, Any]:
        """Licence, data, author and so on."""
        return self.conversion.header.provenance

    @property
    def task(self) -> str:
        """The Hub's pipeline tag."""
        return "text-generation" if self.conversion.family.info.kind == "decoder" else "fill-mask"

    @property
    def datasets(self) -> tuple[str, ...]:
        """Data sets on the Hub: as wished, or the data source itself if it is the address of one."""
        found = _HUB_DATASET.fullmatch(str(self.provenance.get("data_source", "")))
        return self.wishes.datasets or ((found[1],) if found else ())


def check_provenance(provenance: Mapping[str, Any], path: Path) -> None:
    """Refuse a model that does not say whose it is and what it was made of.

    Raises:
        ConfigError: with the command that sets what is missing.
    """
    missing = [key for key in REQUIRED if not str(provenance.get(key) or "").strip()]
    if missing:
        options = " ".join(f"--{key.replace('_', '-')} {REQUIRED[key]}" for key in missing)
        raise ConfigError(
            f"a model without {' and '.join(missing)} is not published",
            where=path,
            hint=f"Set what is missing: apr-train stamp {shlex.quote(str(path))} {options}",
        )
    for key in ("license", "data_license"):
        try:
            spdx_expression(str(provenance[key]), where=f"{path} [{key}]")
        except ConfigError as error:
            again = f"Set it: apr-train stamp {shlex.quote(str(path))} --{key.replace('_', '-')} SPDX"
            raise error.amend(hint=f"{error.finding.hint} {again}".strip()) from error


def record_of(artifact: Path, step: object) -> Record | None:
    """The run whose result or checkpoint this file is, up to its step; None for a file that lies elsewhere.

    Raises:
        RunError: the run's folder is damaged.
    """
    real = artifact.resolve()
    run = run_of(real)
    belongs = real.name == MODEL and (real.parent == run or (real.parent / STATE).is_file())
    if run is None or not belongs or not isinstance(step, int):
        return None
    record = read_record(run)
    lines = tuple(line for line in record.lines if line.step <= step)
    return Record(folder=run, label=record.label, lines=lines, settings=record.settings, card=record.card)
