"""The processes that share a run, as the launcher that started them says; without one, this process alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from apr_train.run.launch import Launch
from apr_train.training.processes import Processes


@contextmanager
def launched(environ: Mapping[str, str]) -> Iterator[Processes]:
    """This process and those that the launcher has started with it, if the environment tells of one.

    Raises:
        RunError: when the launch is not told whole, or the processes do not come together, or one is gone.
        ToldElsewhereError: on all but one, when there is something to tell.
    """
    launch = Launch.of(environ)
    if launch is None:
        yield Processes()
        return
    from apr_train.training.process_group import several  # imports torch

    with several(launch) as processes:
        yield processes
