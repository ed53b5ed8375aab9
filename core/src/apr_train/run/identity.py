"""What a run was started on, by hash: a resume on anything else is refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import attrs
from attrs import frozen

from apr_train import rules
from apr_train.atomic import write_file
from apr_train.checkpoint.files import parse_json
from apr_train.errors import Finding, FormatError, RunError
from apr_train.run.folder import IDENTITY


@frozen(kw_only=True)
class RunIdentity:
    """The inputs of a run."""

    corpus: str
    """Of the texts."""
    tokenizer: str
    """Of all that decides how text becomes ids."""
    init: str | None
    """Of the checkpoint's content; None for a run from scratch."""
    split: str = "document-share"
    """By which rule text is held out; the default is that of runs that do not say."""


def write_identity(folder: Path, identity: RunIdentity) -> None:
    """Note the inputs in the run's folder.

    Raises:
        OutputError: when that cannot be written.
    """
    write_file(folder / IDENTITY, (json.dumps(attrs.asdict(identity), indent=1) + "\n").encode("utf-8"))


def read_identity(folder: Path) -> RunIdentity:
    """What `write_identity` noted.

    Raises:
        RunError: when it is not there or is something else.
    """
    path = folder / IDENTITY
    try:
        values = parse_json(path)
    except FormatError as error:
        raise RunError("the run does not say what it was started on", where=path, found=error.finding.problem) from error
    fields = attrs.fields_dict(RunIdentity)
    missing = [name for name, item in fields.items() if item.default is attrs.NOTHING and name not in values]
    strange = [name for name in values if name not in fields]
    wrong = [name for name in values if not isinstance(values[name], str) and (name, values[name]) != ("init", None)]
    if missing or strange or wrong:
        found = ", ".join([*(f"no {name}" for name in missing), *dict.fromkeys([*strange, *wrong])])
        expected = f"texts for {', '.join(fields)}"
        raise RunError("the run does not say what it was started on", where=path, expected=expected, found=found)
    return RunIdentity(**values)


_INPUTS = {
    "corpus": ("--data", "the text"),
    "tokenizer": ("--tokenizer", "the tokenizer"),
    "init": ("--init", "the checkpoint"),
    "split": ("--validation-fraction", "the rule by which text is held out"),
}
_SHOWN = 12


def check_identity(started: RunIdentity, now: RunIdentity, *, named: Mapping[str, str]) -> None:
    """Compare, field by field.

    Args:
        started: of the run at its start.
        now: of the resume.
        named: where each input lies now, for the message.

    Raises:
        RunError: PREFLIGHT-028 for everything that is not what it was.
    """
    changed = [name for name in _INPUTS if getattr(started, name) != getattr(now, name)]
    if changed:
        raise RunError.of(_changed(name, started, now, named.get(name, "")) for name in changed)


def _changed(name: str, started: RunIdentity, now: RunIdentity, where: str) -> Finding:
    option, what = _INPUTS[name]
    if name == "split":
        return _other_split(started, now)
    before, after = (f"hash {(getattr(side, name) or 'of nothing')[:_SHOWN]}" for side in (started, now))
    return Finding(
        rule=rules.PREFLIGHT_028,
        subject=option,
        field=where,
        problem=f"not {what} that the run was started on",
        expected=before,
        found=after,
        hint=f"Say with {option} where that is now, or start a new run.",
    )


def _other_split(started: RunIdentity, now: RunIdentity) -> Finding:
    return Finding(
        rule=rules.PREFLIGHT_028,
        subject="--validation-fraction",
        problem="another version of apr-train chose otherwise which text is held out",
        expected=started.split,
        found=now.split,
        hint="Go on with the version that the run was started with, or start a new run from its model.apr.",
    )
