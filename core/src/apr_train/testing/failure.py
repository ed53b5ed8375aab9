"""The one error of the conformance kit."""

from __future__ import annotations

from collections.abc import Iterable

from apr_train.errors import AprTrainError


class ConformanceError(AprTrainError):
    """A family that breaks the contract; a test that calls the kit fails with this message."""


def fail_on(faults: Iterable[str], *, where: str) -> None:
    """Raise with all faults in one message; do nothing when there are none.

    Raises:
        ConformanceError: when `faults` has any.
    """
    found = list(faults)
    if found:
        raise ConformanceError("; ".join(found), where=where)
