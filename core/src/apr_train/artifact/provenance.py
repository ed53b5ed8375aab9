"""The provenance of an `.apr` file: licences checked against SPDX, and the stamp that sets it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from license_expression import ExpressionError, ExpressionParseError, Licensing, get_spdx_licensing

from apr_train.artifact.apr_file import open_apr_file
from apr_train.atomic import lock
from apr_train.checkpoint.apr import AprReader, Flags, rewrite
from apr_train.checkpoint.apr.keys import STAMPED
from apr_train.checkpoint.checkpoint import Progress
from apr_train.checkpoint.reference import KEY as REFERENCE
from apr_train.checkpoint.reference import ReferenceLoss
from apr_train.errors import ConfigError, FormatError, OutputError
from apr_train.suggest import closest

_OWN_TERMS = re.compile(r"LicenseRef-[A-Za-z0-9.-]+")
"""What SPDX leaves to users: terms of their own."""
_SUFFIX = re.compile(r"-(only|or-later)$")
_HUB_LIST = """
    afl-3.0 agpl-3.0 apache-2.0 artistic-2.0 bsd-2-clause bsd-3-clause bsd-3-clause-clear bsl-1.0 cc-by-2.0 cc-by-2.5
    cc-by-3.0 cc-by-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0
    cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cc-by-nd-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc0-1.0 cdla-permissive-1.0
    cdla-permissive-2.0 cdla-sharing-1.0 ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2 gpl-2.0 gpl-3.0 isc lgpl-2.1
    lgpl-3.0 lppl-1.3c mit mpl-2.0 ms-pl ncsa odc-by odbl ofl-1.1 osl-3.0 pddl postgresql unlicense wtfpl zlib
"""
"""Of the identifiers that the Hugging Face Hub knows, those that are an SPDX one in lower case or in `_HUB_NAMES`."""
_HUB_NAMES = {"odc-by-1.0": "odc-by", "odbl-1.0": "odbl", "pddl-1.0": "pddl"}
HUB_LICENSES = frozenset(_HUB_LIST.split())
OTHER = "other"
"""The Hub's word for every licence that is not on its list; `license_name` then says which."""


@cache
def _licensing() -> Licensing:
    return get_spdx_licensing()


def spdx_expression(text: str, *, where: str) -> str:
    """The canonical spelling of an SPDX identifier or expression (`mit or apache-2.0` → `MIT OR Apache-2.0`).

    `LicenseRef-…` names terms of one's own and is accepted as it is.

    Raises:
        ConfigError: no such identifier, with the closest one, or an expression that does not parse.
    """
    try:
        parsed = _licensing().parse(text, strict=True)
        unknown = [] if parsed is None else [key for key in _licensing().unknown_license_keys(parsed) if not _is_own(key)]
    except (ExpressionError, ExpressionParseError) as error:
        raise ConfigError(
            "not an SPDX licence expression", where=where, expected="as in MIT or MIT AND CC-BY-4.0", found=repr(text)
        ) from error
    if parsed is None:
        raise ConfigError("the licence is empty", where=where, expected="an SPDX identifier such as MIT")
    if unknown:
        hint = " ".join(f"{name!r}: {_suggestion(name)}" for name in unknown)
        raise ConfigError("not an SPDX licence identifier", where=where, found=repr(text), hint=hint)
    return str(parsed.render("{symbol.key}"))


def _is_own(key: str) -> bool:
    return _OWN_TERMS.fullmatch(key) is not None


def _suggestion(name: str) -> str:
    known = {key.lower(): key for key in _licensing().known_symbols if not key.startswith("LicenseRef-")}
    near = closest(re.sub(r"[\s_]+", "-", name.strip().lower()), known)
    own = "For terms of your own write LicenseRef-NAME."
    return f"did you mean {known[near]}? {own}" if near else f"see https://spdx.org/licenses. {own}"


def hub_license(expression: str) -> tuple[str, str | None]:
    """(`license`, `license_name`) of a Hub card; the name is given where the Hub's list has no such licence."""
    lower = expression.lower()
    for candidate in (_HUB_NAMES.get(lower, lower), _SUFFIX.sub("", lower)):
        if candidate in HUB_LICENSES:
            return candidate, None
    return OTHER, lower.replace(" ", "-")


def stamp(
    path: str | os.PathLike[str], values: Mapping[str, str], *, progress: Progress | None = None
) -> dict[str, tuple[str | None, str]]:
    """Set provenance keys of an `.apr` file; `values` maps some of `STAMPED` to text, licences as SPDX expressions.

    The file is written anew beside itself, tensors bit for bit the same and its checksum checked on the way, and replaced.
    Other names of the file (hard links) keep what it was.

    Args:
        path: an `.apr` file.
        values: what to set.
        progress: told of bytes of tensors that were copied.

    Returns:
        Key → (before, after), of the keys whose value changed; empty: the file was not written.

    Raises:
        ConfigError: an unknown key, an empty text, or a licence that SPDX does not know.
        FormatError: not an `.apr` file, one shard of several, a signed or a damaged file.
        OutputError: the file cannot be written, or another process stamps it right now; it is then as it was.
    """
    wanted = checked_values(values)
    with _held(path), _open(path) as source:
        before = {key: source.raw_metadata.get(key) for key in wanted}
        changes = {key: (before[key], value) for key, value in wanted.items() if before[key] != value}
        if changes:
            rewrite(source, path, {**source.raw_metadata, **wanted}, progress=progress)
    return changes


def stamp_reference(
    path: str | os.PathLike[str], reference: ReferenceLoss, *, identity: tuple[int, ...], progress: Progress | None = None
) -> bool:
    """Write a reference loss into an `.apr` file, as `stamp` writes licence and name; `progress` is told of bytes copied.

    `identity` is that of the file that was measured: one that took its place meanwhile has other weights.

    Returns:
        Whether the file was written; False: it says so already.

    Raises:
        FormatError: not an `.apr` file, one shard of several, a signed or a damaged file.
        OutputError: the file cannot be written, is another one by now, or is being stamped; it is then as it was.
    """
    with _held(path), _open(path) as source:
        if source.identity != identity:
            raise OutputError("the file was changed since it was measured", where=path, hint="Measure it again.")
        metadata = {**source.raw_metadata, REFERENCE: reference.to_metadata()}
        if metadata == source.raw_metadata:
            return False
        rewrite(source, path, metadata, progress=progress)
        return True


@contextmanager
def _held(path: str | os.PathLike[str]) -> Iterator[None]:
    """Hold the file from its reading to its replacement: of two stamps at once the later one would undo the earlier.

    Raises:
        OutputError: another process holds it, or has replaced it since it was opened; or it cannot be locked.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:  # opening it as a checkpoint says what is wrong
        yield
        return
    try:
        try:
            held = lock(descriptor)  # None: a file system without locks, where the user sees to it
            current = held is not False and os.path.samestat(os.fstat(descriptor), Path(path).stat())
        except FileNotFoundError:
            current = False
        except OSError as error:
            raise OutputError(f"cannot be locked ({error.strerror})", where=path) from error
        if not current:
            raise OutputError("another process is writing it", where=path, hint="Wait for it to end, then stamp again.")
        yield
    finally:
        os.close(descriptor)


def checked_values(values: Mapping[str, str]) -> dict[str, str]:
    """The values as they will be written: stripped, licences in SPDX's own spelling.

    Raises:
        ConfigError: an unknown key, an empty text, or a licence that SPDX does not know.
    """
    checked = {}
    for key, value in values.items():
        if key not in STAMPED:
            raise ConfigError("not a key that a stamp sets", where=key, expected=", ".join(STAMPED))
        text, option = value.strip(), option_of(key)
        if not text:
            raise ConfigError("the value is empty", where=option, hint="Leave the option out to keep what the file says.")
        _check_unicode(text, option)
        checked[key] = spdx_expression(text, where=option) if STAMPED[key].is_license else text
    return checked


def option_of(key: str) -> str:
    """The command-line option of a metadata key."""
    return "--" + key.replace("_", "-")


def _check_unicode(text: str, option: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ConfigError("the value is not valid Unicode", where=option, found=repr(text)) from error


def _open(path: str | os.PathLike[str]) -> AprReader:
    source = open_apr_file(path, in_shards="a model in shards cannot be stamped")
    if not source.flags & Flags.SIGNED:
        return source
    source.close()
    problem = "the file is signed: a stamp would break its signature"
    raise FormatError(problem, path=path, hint="Stamp it before it is signed.")
