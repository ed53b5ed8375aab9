"""A plugin's module is checked before it is used; tests/test_plugins_cli.py has the faults of really installed ones."""

import importlib.metadata

import attrs
import pytest
from apr_train.errors import PluginError
from apr_train.family.discovery import FAMILIES, Discovery
from apr_train.family.registry import Registry


def test_a_wrapper_is_refused(make_registry):
    registry = make_registry({"one": {"mark": "(wrapper=True)", "attention_impl": "return (yield)"}})
    with pytest.raises(PluginError, match="hook attention_impl: marked as a wrapper, but a plugin answers each hook itself"):
        registry.family("one")


@pytest.mark.parametrize("hook", ["validate_family", "attention_impl", "build_model"])
def test_a_hook_with_a_default_may_be_left_out(make_registry, without, hook):
    family = make_registry({"one": without(hook)}).family("one")
    config = family.build_config(preset="tiny")
    defaults = {"validate_family": [], "attention_impl": ["xformers", "sdpa", "eager"], "build_model": None}
    arguments = {"validate_family": (None, "causal-lm"), "attention_impl": (config,), "build_model": (config, None)}
    assert getattr(family, hook)(*arguments[hook]) == defaults[hook]


@pytest.mark.parametrize("hook", ["build_config", "map_tensor_names"])
def test_the_others_are_mandatory(make_registry, without, hook):
    with pytest.raises(PluginError, match=f"hook {hook}: a mandatory hook is not implemented"):
        make_registry({"one": without(hook)}).family("one")


@pytest.mark.parametrize("hook", ["build_config", "map_tensor_names", "validate_family", "attention_impl", "build_model"])
def test_a_hook_without_its_mark_is_refused(make_registry, without, hook):
    text = without(hook) + f"\ndef {hook}({ARGUMENTS[hook]}):\n    return None\n"
    with pytest.raises(PluginError, match=rf"hook {hook}: a function has the hook's name and is not marked with @hookimpl"):
        make_registry({"one": text}).family("one")


def test_a_function_of_the_core_with_a_hooks_name_is_no_forgotten_hook(make_registry, without):
    text = without("build_model") + "\nfrom apr_train.model.build import build_model\n"
    assert make_registry({"one": text}).family("one").build_model(None, None) is None


ARGUMENTS = {
    "build_config": "preset, header",
    "map_tensor_names": "config, layout",
    "validate_family": "header, objective",
    "attention_impl": "config",
    "build_model": "config, attention",
}


def test_an_entry_point_that_names_no_module_is_refused(make_registry):
    registry = make_registry({"one": {}})
    (plugin,) = registry._discovery.plugins
    point = importlib.metadata.EntryPoint("one", f"{plugin.entry_point.value}:FAMILY", FAMILIES)
    registry = Registry(Discovery(plugins=(attrs.evolve(plugin, entry_point=point),)))
    with pytest.raises(PluginError, match="does not name a module"):
        registry.family("one")
