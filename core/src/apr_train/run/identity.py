"""What a run was started on, by hash: a resume on anything else is refused."""

from __future__ import annotations

import json
from pathlib import Path

import attrs
from attrs import frozen

from apr_train.atomic import write_file
from apr_train.errors import RunError
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
    try:
        return RunIdentity(**json.loads((folder / IDENTITY).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise RunError("the run does not say what it was started on", where=folder / IDENTITY, found=error) from error


def check_identity(started: RunIdentity, now: RunIdentity, *, folder: Path) -> None:
    """Compare, field by field.

    Raises:
        RunError: naming everything that is not what it was.
    """
    words = {"corpus": "the text of --data", "tokenizer": "the tokenizer", "init": "the file of --init"}
    words["split"] = "which text is held out (another version of apr-train chose it otherwise)"
    changed = [text for name, text in words.items() if getattr(started, name) != getattr(now, name)]
    if changed:
        hint = "Put back what it was, or start a new run."
        raise RunError(f"a resume needs the same inputs; changed: {', '.join(changed)}", where=folder, hint=hint)
