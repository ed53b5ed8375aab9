"""What a user may see: a finding is one fault as data, and every error carries findings; and text of files, made printable."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, ClassVar, Literal, Self

import attrs
from attrs import frozen

Severity = Literal["error", "warning"]
LONGEST_PART = 1500
"""Characters of one part of a finding: what a file says may have megabytes."""
LONGEST_MESSAGE = 4000
"""Bytes of an error's text, all of its findings together."""
UNPRINTABLE = re.compile(
    "[\x00-\x1f\x7f-\x9f"  # controls, with which escape sequences begin; a line of its own is one, too
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # what turns the direction of the text around it
    "\u200b\u2028\u2029\u2060-\u2065\ufeff\ufff9-\ufffb\U000e0000-\U000e007f"  # what takes no room, and other ends of lines
    "\ud800-\udfff]"  # halves of a pair, which no terminal and no file takes
)
"""What a terminal does not get from a file: the text around it would change, or it cannot be sent at all."""
_BYTES = range(0xDC80, 0xDD00)
"""How Python has the bytes of a file's name that are not UTF-8."""


def printable(text: str, *, lines: bool = False, most: int | None = None) -> str:
    r"""Text of a file, or about one, as a terminal may have it: what is not to be printed is spelt `\x1b` or `\u202e`.

    Args:
        text: any text.
        lines: keep the ends of lines and the tabs, of a text that has several lines.
        most: characters at most; the end of a longer text is cut off, and how long it was is said.
    """
    if most is not None and len(text) > most:
        text = f"{text[:most]}… ({len(text):,} characters)"
    return UNPRINTABLE.sub(lambda found: found[0] if lines and found[0] in "\n\t" else _spelt(ord(found[0])), text)


def _spelt(code: int) -> str:
    if code in _BYTES:
        code -= 0xDC00
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _part(value: object) -> str:
    """A part of a finding, cut where it is longer than anybody reads; one that was cut before is as long as may be."""
    text = text_of(value)
    return text if len(text) <= LONGEST_PART + 40 else f"{text[:LONGEST_PART]}… ({len(text):,} characters)"


def text_of(value: object) -> str:
    """What a value says of itself; of None nothing, and of one that cannot be shown its type."""
    try:
        return "" if value is None else str(value)
    except Exception as error:  # what somebody else wrote need not be printable: an exception, an integer of 5,000 digits
        return f"a value of type {type(value).__name__} that cannot be shown ({type(error).__name__})"


@frozen(kw_only=True)
class Finding:
    """One fault (or one remark, as a warning) with everything that is needed to mend it."""

    problem: str = attrs.field(converter=_part)
    """What is wrong, one sentence without a full stop."""
    rule: str = ""
    """An id of `apr_train.rules`; empty for a fault that no rule is about."""
    subject: str = attrs.field(default="", converter=_part)
    """The file, folder, option or object that is wrong."""
    field: str = attrs.field(default="", converter=_part)
    """The part of the subject: a tensor, a metadata key, a field of a config."""
    expected: str = attrs.field(default="", converter=_part)
    """What would have been right."""
    found: str = attrs.field(default="", converter=_part)
    """What was there."""
    hint: str = attrs.field(default="", converter=_part)
    """What to do next."""
    severity: Severity = "error"
    """An error stops the run before the first step; a warning is printed and recorded."""

    @property
    def where(self) -> str:
        """`subject [field]`, for people."""
        return f"{self.subject} [{self.field}]" if self.subject and self.field else self.subject or self.field

    def to_dict(self) -> dict[str, str]:
        """The JSON form that docs/preflight.md describes."""
        return {
            "id": self.rule,
            "where": self.where,
            "problem": self.problem,
            "expected": self.expected,
            "found": self.found,
            "hint": self.hint,
            "severity": self.severity,
        }

    def __str__(self) -> str:
        problem, hint = (printable(part, lines=True) for part in (self.problem, self.hint))
        text = ": ".join(part for part in (self.rule, printable(self.where), problem) if part)
        if self.expected:
            text += f", expected {printable(self.expected)}"
        if self.found:
            text += f", found {printable(self.found)}"
        return f"{text}. {hint}" if hint else text


class AprTrainError(Exception):
    """Base of every error that the user can mend; the command line prints it without a traceback.

    Its text ends at `longest` bytes, for what it quotes may be a file's; `findings` has everything.

    Args:
        problem: what is wrong, one sentence without a full stop.
        where: the file, the option or the object that is wrong.
        field: the part of it.
        rule: the id of the rule that is broken, if it is one's.
        expected: what would have been right.
        found: what was there.
        hint: what to do next.
    """

    exit_code = 1
    longest: ClassVar[int] = LONGEST_MESSAGE
    findings: tuple[Finding, ...]
    """At least one."""

    def __init__(
        self,
        problem: str,
        *,
        where: object = None,
        field: str | None = None,
        rule: str = "",
        expected: object = None,
        found: object = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(problem)
        self.findings = (
            Finding(
                problem=problem,
                rule=rule,
                subject=text_of(where),
                field=field or "",
                expected=text_of(expected),
                found=text_of(found),
                hint=hint or "",
            ),
        )

    @classmethod
    def of(cls, findings: Iterable[Finding]) -> Self:
        """One error for several faults; `findings` has at least one."""
        found = tuple(findings)
        error = cls.__new__(cls, found[0].problem)  # subclasses want other arguments than a problem
        error.findings = found
        return error

    @property
    def finding(self) -> Finding:
        """The first finding; of most errors the only one."""
        return self.findings[0]

    def amend(self, **changes: Any) -> Self:
        """Change fields of the first finding, where a caller knows more than whoever raised; returns the error itself."""
        self.findings = (attrs.evolve(self.finding, **changes), *self.findings[1:])
        return self

    def under(self, rule: str, subject: str = "") -> Finding:
        """The first finding as that rule's, unless it has a rule already; `subject` stands in where the error names none."""
        return attrs.evolve(self.finding, rule=self.finding.rule or rule, subject=self.finding.subject or subject)

    def __str__(self) -> str:
        told = [str(finding) for finding in self.findings if finding.severity == "error"]
        return "\n".join(_within(told, self.longest))


def _within(lines: list[str], limit: int) -> list[str]:
    """The first lines, of so many bytes together; the first one is cut if it must be, and how many are left out is said."""
    room = limit - 100  # for what is said of the rest
    kept: list[str] = []
    for line in lines:
        raw = line.encode()
        if len(raw) > room and kept:
            return [*kept, f"and {len(lines) - len(kept)} more faults"]
        kept.append(line if len(raw) <= room else f"{raw[:room].decode(errors='ignore')}… ({len(line):,} characters)")
        room = max(0, room - len(raw) - 1)
    return kept


class FormatError(AprTrainError):
    """A file that is not what it says it is: wrong magic, lying sizes, bad checksum, unsupported version.

    `path` is the file, `field` the part of it that is wrong.
    """

    def __init__(
        self,
        problem: str,
        *,
        path: object,
        field: str | None = None,
        rule: str = "",
        expected: object = None,
        found: object = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(problem, where=path, field=field, rule=rule, expected=expected, found=found, hint=hint)


class OutputError(AprTrainError):
    """Something that could not be written: a full disk, no permission, an interrupted or incomplete write."""


class ConfigError(AprTrainError):
    """A model config that cannot be: a bad value, an unknown key, or fields that a file does not have."""


class NameMapError(AprTrainError):
    """A name map that there is not: the family's files never have the layout that was asked for."""


class WrongMapError(NameMapError):
    """A name map that is wrong in itself, whatever the file: a name twice, a parameter unmapped, a place left out."""


class PluginError(AprTrainError):
    """A family plugin that is absent, broken, or answers a hook with something else than it should.

    `distribution`, `version` and `hook` say whose fault it is, as far as that is known; what the plugin itself
    raised is the `__cause__`.
    """

    distribution: str | None = None
    version: str | None = None
    hook: str | None = None

    def __init__(
        self,
        problem: str,
        *,
        distribution: str | None = None,
        version: str | None = None,
        hook: str | None = None,
        where: object = None,
        field: str | None = None,
        expected: object = None,
        found: object = None,
        hint: str | None = None,
    ) -> None:
        self.distribution = distribution
        self.version = version
        self.hook = hook
        super().__init__(problem, where=where, field=field, expected=expected, found=found, hint=hint)


class PreflightError(AprTrainError):
    """At least one finding of severity error; `findings` has them all, warnings included."""

    exit_code = 3

    def __init__(self, findings: Iterable[Finding]) -> None:
        found = tuple(findings)
        super().__init__("the preflight found faults")
        self.findings = found


class AttentionError(AprTrainError):
    """No attention backend can run here, or the one that was asked for cannot."""


class TokenizerError(AprTrainError):
    """A tokenizer that is missing, unsupported, or does not fit."""


class DataError(AprTrainError):
    """A corpus that cannot be read, is empty, or is too small for what is asked of it."""


class RunError(AprTrainError):
    """A training run that cannot start, go on, or be resumed."""
