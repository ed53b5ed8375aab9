"""The steps that a run is to trace are steps that it takes."""

from __future__ import annotations

from apr_train import rules
from apr_train.errors import ConfigError, Finding
from apr_train.run.profile_window import FLAG, ProfileWindow
from apr_train.run.resume import Resume
from apr_train.run.settings import RunSettings


def profile_findings(run: RunSettings, resume: Resume | None) -> list[Finding]:
    """PROFILE-001, of a window that the run does not have.

    Of a run that goes on, the window of its beginning may be over: that one asks for nothing any more.
    """
    if run.profile is None or (resume is not None and "profile" not in resume.stated):
        return []
    try:
        window = ProfileWindow.parse(run.profile)
    except ConfigError as error:
        return list(error.findings)
    done = 0 if resume is None else resume.step
    if done < window.first and window.last <= run.steps:
        return []
    return [
        Finding(
            rule=rules.PROFILE_001,
            subject=FLAG,
            problem="the run does not take the steps that are to be traced",
            expected=f"steps from {done + 1} to {run.steps}" if done < run.steps else "a run that takes a step",
            found=run.profile,
            hint="Name steps that it takes, or give it more with --steps.",
        )
    ]
