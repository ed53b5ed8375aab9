"""The name of a new family: what it may be, and whether it is taken."""

from __future__ import annotations

import keyword
import re
import sys
from importlib.util import find_spec

from apr_train.artifact.new_family.package import module
from apr_train.errors import ConfigError
from apr_train.family.discovery import discover

LONGEST = 40


def check_name(name: str) -> None:
    """Refuse what cannot be a family's name here.

    Raises:
        ConfigError: no identifier in lower case, a word of Python or of its library, or a name that is installed.
    """
    expected = f"letters a-z, digits and _, a letter first, {LONGEST} at most"
    if not re.fullmatch(rf"[a-z][a-z0-9_]{{0,{LONGEST - 1}}}", name):
        plain = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")[:LONGEST]
        hint = f"Take {plain}." if re.fullmatch(r"[a-z]\w*", plain) else "It becomes a Python module's name and --arch."
        raise ConfigError("not a family's name", where="NAME", expected=expected, found=repr(name)[:100], hint=hint)
    if keyword.iskeyword(name) or keyword.issoftkeyword(name) or name in sys.stdlib_module_names:
        raise ConfigError(
            "the name is one of Python's own", where="NAME", expected="another name", found=name, hint=f"Take {name}_model."
        )
    found = discover()
    plugins = [*found.plugins, *found.left_out, *(plugin for group in found.clashes for plugin in group)]
    owner = next((plugin.where for plugin in plugins if plugin.name == name), None)
    if owner is None and find_spec(module(name)) is not None:
        owner = f"the module {module(name)}"
    if owner is not None:
        raise ConfigError(
            "the name is taken",
            where="NAME",
            expected="a name that no installed family has",
            found=f"{name} of {owner}",
            hint="Take another name, or uninstall that one.",
        )
