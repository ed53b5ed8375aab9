"""SPDX licence identifiers and expressions: checked, spelled canonically, and in the Hub's vocabulary."""

from __future__ import annotations

import re
from functools import cache

from license_expression import ExpressionError, ExpressionParseError, Licensing, get_spdx_licensing

from apr_train.errors import ConfigError
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
