"""A family's certificate: what its author measured of it, shipped beside its code. Read here, measured in apr_train.testing.

It is a self-report: it says what was seen, on which machine, of which code. The hash of that code tells whether the installed
one is still the same; nothing of it is signed. Torch-free, and nothing of the plugin is imported.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from attrs import field, frozen

from apr_train.atomic import write_file
from apr_train.checkpoint.files import parse_json
from apr_train.errors import FormatError
from apr_train.family.discovery import InstalledPlugin

FORMAT = 1
"""The version of the file's keys."""
NAME = "certificate.json"
"""The file's name in a plugin's package; beside a plugin of one module it begins with the module's name."""
SHORT = 12
"""Digits of a hash that people are shown."""
LARGEST = 1 << 20
"""Bytes; what is larger is no certificate."""
SEAL = "sha256"
State = Literal["verified", "changed", "none", "damaged"]
_TEXTS = ("family", "distribution", "version", "api_version", "code")
_TABLES = ("environment", "agreement", "training")


@frozen(kw_only=True)
class Certificate:
    """What was measured of one version of a family."""

    family: str
    distribution: str
    version: str
    """The distribution's version."""
    api_version: str
    """The hook contract that the plugin was written for."""
    code: str
    """SHA-256 of the plugin's files; see `code_sha256`."""
    against: str = ""
    """The library that it was compared with, and its version; empty: with nothing, the kit's checks alone."""
    environment: Mapping[str, str] = field(factory=dict)
    """Versions of Python, torch and the core, and the machine's features."""
    checks: tuple[Mapping[str, Any], ...] = ()
    """One table for each check of the kit: name, outcome, and what was measured or why it was not."""
    agreement: Mapping[str, Mapping[str, float]] = field(factory=dict)
    """Precision and attention backend → largest relative errors: of logits, gradients, and what else was compared."""
    training: Mapping[str, Mapping[str, float]] = field(factory=dict)
    """Precision → the number of optimizer steps, and the largest relative errors of their losses and of the weights then."""

    @property
    def label(self) -> str:
        """What stands in a list: what the family was compared with, or that it was the kit's checks alone."""
        return self.against or "kit only"

    def to_dict(self) -> dict[str, Any]:
        """The file's content, its hash last."""
        content = {
            "format": FORMAT,
            **{name: getattr(self, name) for name in (*_TEXTS, "against")},
            **{name: dict(getattr(self, name)) for name in _TABLES},
            "checks": [dict(check) for check in self.checks],
        }
        return {**content, SEAL: _seal(content)}

    @property
    def sha256(self) -> str:
        """Of the content."""
        return str(self.to_dict()[SEAL])


@frozen(kw_only=True)
class Standing:
    """What an installed plugin's certificate says of the code that is installed."""

    state: State
    certificate: Certificate | None = None
    path: str = ""
    why: str = ""
    """What changed, or how the file is damaged."""

    @property
    def label(self) -> str:
        """The state in a few words: `verified (transformers 5.23.0, 0f3a…)`, `changed since 0.1.0 (…)`, `damaged` or `none`."""
        if self.certificate is None:
            return self.state
        sealed = self.certificate.sha256[:SHORT]
        if self.state == "verified":
            return f"verified ({self.certificate.label}, {sealed})"
        return f"changed since {self.certificate.version} ({sealed})"

    @property
    def sentence(self) -> str:
        """What a model's card says of the family's certificate; empty where there is none to speak of."""
        if self.certificate is None:
            return ""
        seen = f"compared with {self.certificate.against}" if self.certificate.against else "checked by the kit alone"
        now = "" if self.state == "verified" else f", changed since version {self.certificate.version}"
        return f"{seen} by its author, certificate {self.certificate.sha256[:SHORT]}{now}"


def standing(plugin: InstalledPlugin) -> Standing:
    """Compare the certificate that lies beside a plugin's code with that code; nothing of the plugin is imported."""
    path = certificate_path(plugin)
    if path is None or not path.is_file():
        return Standing(state="none")
    try:
        certificate = read_certificate(path)
    except FormatError as error:
        return Standing(state="damaged", path=str(path), why=error.finding.problem)
    try:
        faults = list(_changed(plugin, certificate))
    except OSError as error:
        return Standing(state="damaged", path=str(path), why=f"the plugin's files cannot be read: {error.strerror}")
    return Standing(state="changed" if faults else "verified", certificate=certificate, path=str(path), why="; ".join(faults))


def _changed(plugin: InstalledPlugin, certificate: Certificate) -> Iterator[str]:
    ours = {"family": plugin.name, "distribution": plugin.distribution, "version": plugin.version}
    for name, value in ours.items():
        if (said := getattr(certificate, name)) != value:
            yield f"{name} {value}, certified {said}"
    if code_sha256(plugin) != certificate.code:
        yield "the plugin's files are other ones"


def certificate_path(plugin: InstalledPlugin) -> Path | None:
    """Where a plugin's certificate belongs; None when its module cannot be found."""
    spec = _spec(plugin)
    if spec is None or spec.origin is None:
        return None
    module = Path(spec.origin)
    return module.with_name(NAME if spec.submodule_search_locations else f"{module.stem}.{NAME}")


def code_sha256(plugin: InstalledPlugin) -> str:
    """SHA-256 of the plugin's files, each with its name: its module, or all of its package but compiled and hidden files
    and this certificate.

    Empty when the module cannot be found.
    """
    spec, own = _spec(plugin), certificate_path(plugin)
    if spec is None or spec.origin is None:
        return ""
    module, digest = Path(spec.origin), hashlib.sha256()
    files = sorted(module.parent.rglob("*")) if spec.submodule_search_locations else [module]
    for path in files:
        name = path.relative_to(module.parent)
        if path.is_file() and path != own and not any(part.startswith(".") or part == "__pycache__" for part in name.parts):
            digest.update(b"%d %s %d\n" % (len(str(name.as_posix()).encode()), name.as_posix().encode(), path.stat().st_size))
            with path.open("rb") as file:
                while piece := file.read(_PIECE):
                    digest.update(piece)
    return digest.hexdigest()


_PIECE = 1 << 20


def _spec(plugin: InstalledPlugin) -> ModuleSpec | None:
    """Of the plugin's top-level module, which is not imported."""
    try:
        return find_spec(plugin.entry_point.module.partition(".")[0])
    except (ImportError, ValueError):
        return None


def read_certificate(path: Path) -> Certificate:
    """Read a certificate's file.

    Raises:
        FormatError: it cannot be read, is no certificate, of another format, or its content is not what its hash says.
    """
    try:
        content = parse_json(path, most=LARGEST)
    except FormatError as error:
        raise error.amend(hint="Make it anew: apr-train verify FAMILY -o FILE.") from error
    return _certificate(content, path)


def _certificate(content: Any, path: Path) -> Certificate:
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        found = content.get("format") if isinstance(content, dict) else type(content).__name__
        raise FormatError(
            "not a certificate of this format", path=path, field="format", expected=str(FORMAT), found=repr(found)
        )
    sealed = {name: value for name, value in content.items() if name != SEAL}
    if content.get(SEAL) != _seal(sealed):
        hint = "It was edited or damaged; make it anew: apr-train verify FAMILY -o FILE."
        expected = _seal(sealed)
        raise FormatError("the content is not the one that was sealed", path=path, field=SEAL, expected=expected, hint=hint)
    kinds: dict[str, Callable[[Any], bool]] = {
        **dict.fromkeys((*_TEXTS, "against"), _is_text),
        "environment": _table_of(_is_text),
        "checks": lambda value: isinstance(value, list) and all(map(_table_of(_is_text), value)),
        "agreement": _table_of(_table_of(_is_number)),
        "training": _table_of(_table_of(_is_number)),
    }
    wrong = [name for name, fits in kinds.items() if not fits(sealed.get(name))]
    if wrong:
        raise FormatError("a part of the certificate is missing or of another type", path=path, field=wrong[0])
    values = {name: sealed[name] for name in (*_TEXTS, "against", *_TABLES)}
    return Certificate(**values, checks=tuple(sealed["checks"]))


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _table_of(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, dict) and all(map(fits, value.values()))


def write_certificate(path: Path, certificate: Certificate) -> None:
    """Write a certificate's file, whole or not at all.

    Raises:
        OutputError: it cannot be written.
    """
    write_file(path, (json.dumps(certificate.to_dict(), indent=1, allow_nan=False) + "\n").encode())


def _seal(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
