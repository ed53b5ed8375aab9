"""Fail unless exactly the named families are installed, and work."""

import sys

from apr_train.family.registry import Registry

registry = Registry.discover()
found = [family.name for family in registry.families()]
if found != sys.argv[1:] or registry.broken():
    sys.exit(f"expected only {sys.argv[1:]}, found {found}, broken {registry.broken()}")
