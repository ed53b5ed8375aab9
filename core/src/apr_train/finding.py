"""One fault that a check found: plain data, torch-free."""

from __future__ import annotations

from typing import Literal

from attrs import frozen

Severity = Literal["error", "warning"]


@frozen(kw_only=True)
class Finding:
    """One fault (or one remark, as a warning) with everything that is needed to mend it."""

    id: str
    """The rule's id in docs/contract.yaml, such as `FALSIFY-APR-PRETRAIN-ARCH-006`."""
    where: str
    """The file, tensor, metadata key or option that is wrong."""
    problem: str
    """What is wrong, one sentence without a full stop."""
    expected: str = ""
    """What would have been right."""
    found: str = ""
    """What was there."""
    hint: str = ""
    """What to do next."""
    severity: Severity = "error"
    """An error stops the run before the first step; a warning is printed and recorded."""

    def __str__(self) -> str:
        text = f"{self.id}: {self.where}: {self.problem}"
        if self.expected:
            text += f", expected {self.expected}"
        if self.found:
            text += f", found {self.found}"
        return f"{text}. {self.hint}" if self.hint else text
