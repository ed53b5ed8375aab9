"""What a resume changes: said before the first step, and noted in the run's folder."""

from __future__ import annotations

from apr_train.run.changes import Change, write_changes
from apr_train.run.events import Say
from apr_train.run.folder import CHANGES
from apr_train.run.precision import PRECISION_TYPES
from apr_train.run.resume import Resume
from apr_train.run.settings import Settings


def note_changes(resume: Resume, say: Say) -> None:
    """Say what the resume changes, and write changes.jsonl; a run that starts over has none.

    Raises:
        OutputError: when the file cannot be written.
    """
    for change in resume.changed:
        say(f"changed: {change}{_conversion(change, resume.settings)}")
    write_changes(resume.folder / CHANGES, resume.changes)


def _conversion(change: Change, settings: Settings) -> str:
    """What another precision does to the states of a run."""
    if change.setting != "run.precision":
        return ""
    before, after = (PRECISION_TYPES[precision].weights for precision in (change.before, change.after))
    if before == after:
        return "; weights and the optimizer's state stay as they are"
    if settings.lora.lora_rank is not None:
        return f"; the base becomes {after}, adapters and the optimizer's state stay as they are"
    if after == "F32":
        return "; weights and the optimizer's state become F32, exactly"
    if settings.optimizer.bf16_update == "master":
        return f"; weights become {after}, rounded to nearest, and the optimizer's state stays F32"
    return f"; weights and the optimizer's state become {after}, rounded to nearest"
