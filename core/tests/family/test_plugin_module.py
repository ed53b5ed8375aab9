"""A plugin's module is checked before it is used; tests/test_plugins_cli.py has the faults of really installed ones."""

import importlib.metadata

import attrs
import pytest
from apr_train.errors import PluginError
from apr_train.family.discovery import FAMILIES, Discovery
from apr_train.family.registry import Registry


def test_a_wrapper_is_refused(make_registry):
    registry = make_registry({"one": {"mark": "(wrapper=True)", "attention_impl": "return (yield)"}})
    with pytest.raises(PluginError, match="hook attention_impl: marked as a wrapper, but a family answers each hook itself"):
        registry.family("one")


def test_an_entry_point_that_names_no_module_is_refused(make_registry):
    registry = make_registry({"one": {}})
    (plugin,) = registry._discovery.plugins
    point = importlib.metadata.EntryPoint("one", f"{plugin.entry_point.value}:FAMILY", FAMILIES)
    registry = Registry(Discovery(plugins=(attrs.evolve(plugin, entry_point=point),)))
    with pytest.raises(PluginError, match="does not name a module"):
        registry.family("one")
