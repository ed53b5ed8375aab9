"""A family's hooks as the core calls them: each answer type-checked, each fault the plugin's, each call logged."""

import logging
from pathlib import Path

import pytest
from apr_train.checkpoint.header import Header
from apr_train.errors import ConfigError, Finding, PluginError
from apr_train.family.card import Layout
from apr_train.family.decoder_config import DecoderConfig
from apr_train.family.name_map import NameMap


def header(**values):
    return Header(path="x.apr", format="apr", **values)


def test_each_hook_answers_of_its_family(make_registry):
    family = make_registry({"one": {}}).family("one")
    config = family.build_config(preset="tiny")
    assert isinstance(config, DecoderConfig)
    assert family.build_config(header=header(config=config.to_dict())) == config
    assert isinstance(family.map_tensor_names(config, Layout()), NameMap)
    assert family.validate_family(header(), "causal-lm") == [Finding(rule="R-1", subject="x.apr", problem="causal-lm")]
    assert family.attention_impl(config) == ["sdpa", "eager"]
    assert family.build_model(config, None) is None
    assert (family.name, family.distribution, family.version, family.info.kind) == ("one", "dist-one", "2.1", "decoder")


def test_a_family_of_its_own_module_returns_it(make_registry):
    from torch import nn

    answers = {"build_model": "from torch import nn; return nn.Linear(1, 1)"}
    family = make_registry({"one": answers}).family("one")
    assert isinstance(family.build_model(family.build_config(preset="tiny"), None), nn.Linear)


def test_a_preset_that_does_not_exist_lists_the_presets(make_registry):
    family = make_registry({"one": {}}).family("one")
    with pytest.raises(ConfigError) as caught:
        family.build_config(preset="tinny")
    assert str(caught.value) == "--preset: one has no such preset, expected one of tiny, large, found tinny. did you mean tiny?"


@pytest.mark.parametrize("both", [True, False])
def test_a_config_comes_from_exactly_one_source(make_registry, both):
    family = make_registry({"one": {}}).family("one")
    with pytest.raises(ConfigError, match="exactly one of preset and header"):
        family.build_config(**({"preset": "tiny", "header": header()} if both else {}))


UNPRINTABLE = "return type('R', (), {'__repr__': lambda self: 1 / 0})()"
WRONG = [
    ("build_config", "return {'hidden_size': 4}", "expected ModelConfig, found dict"),
    ("build_config", "return None", "expected ModelConfig, found None (no answer)"),
    ("map_tensor_names", "return {}", "expected NameMap, found dict"),
    ("validate_family", "return None", "expected a list, found None (no answer)"),
    ("validate_family", "return ['bad']", "expected Finding, found str"),
    ("attention_impl", "return 'sdpa'", "expected a list, found str 'sdpa'"),
    ("attention_impl", "return []", "expected at least one name or attention backend, found an empty list"),
    ("attention_impl", "return ['sdpa', 3]", "expected at least one name or attention backend, found 3"),
    ("build_model", "return 'model'", "expected Module, found str 'model'"),
    ("build_config", UNPRINTABLE, "expected ModelConfig, found R (its repr raised ZeroDivisionError)"),
]


def call_all(family):
    config = family.build_config(preset="tiny")
    family.map_tensor_names(config, Layout())
    family.validate_family(header(), "causal-lm")
    family.attention_impl(config)
    family.build_model(config, None)


@pytest.mark.parametrize(("hook", "answer", "message"), WRONG)
def test_an_answer_of_the_wrong_type_names_plugin_hook_and_types(make_registry, hook, answer, message):
    family = make_registry({"one": {hook: answer}}).family("one")
    with pytest.raises(PluginError) as caught:
        call_all(family)
    assert f"dist-one 2.1 [one], hook {hook}: the answer is of the wrong type, {message}" in str(caught.value)
    assert (caught.value.distribution, caught.value.version, caught.value.hook) == ("dist-one", "2.1", hook)


@pytest.mark.parametrize("hook", ["build_config", "map_tensor_names", "validate_family", "attention_impl", "build_model"])
@pytest.mark.parametrize(
    "raised", ["raise KeyError('k')", "import sys; sys.exit(2)", "raise type('Panic', (BaseException,), {})()"]
)
def test_what_a_hook_raises_becomes_a_plugin_error_with_its_cause(make_registry, hook, raised):
    family = make_registry({"one": {hook: raised}}).family("one")
    with pytest.raises(PluginError) as caught:
        call_all(family)
    assert caught.value.hook == hook
    assert isinstance(caught.value.__cause__, BaseException)
    assert not isinstance(caught.value.__cause__, PluginError)


@pytest.mark.parametrize("hook", ["attention_impl", "build_model"])
def test_an_exception_that_cannot_be_printed_is_told_by_its_type(make_registry, hook):
    bad = "raise type('Bad', (Exception,), {'__str__': lambda self: 1 / 0, '__repr__': lambda self: 1 / 0})()"
    family = make_registry({"one": {hook: bad}}).family("one")
    with pytest.raises(PluginError, match=r"raised Bad: a value of type Bad that cannot be shown \(ZeroDivisionError\)"):
        call_all(family)


def test_a_hook_that_changes_the_working_folder_leaves_the_user_in_it(make_registry, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    leaves = "import os; os.chdir('/'); return ['sdpa']"
    family = make_registry({"one": {"attention_impl": leaves}}).family("one")
    family.attention_impl(family.build_config(preset="tiny"))
    assert Path.cwd() == tmp_path


def test_an_interrupt_is_nobodys_fault(make_registry):
    registry = make_registry({"one": {"attention_impl": "raise KeyboardInterrupt"}, "two": "raise KeyboardInterrupt"})
    family = registry.family("one")
    with pytest.raises(KeyboardInterrupt):
        family.attention_impl(family.build_config(preset="tiny"))
    with pytest.raises(KeyboardInterrupt):
        registry.family("two")


def test_an_error_of_ours_passes_through_as_it_is(make_registry):
    family = make_registry({"one": {"build_config": "raise ConfigError('mine')"}}).family("one")
    with pytest.raises(ConfigError, match=r"^mine$"):
        family.build_config(preset="tiny")


def test_a_backend_object_of_the_familys_own_is_taken(make_registry):
    answer = "return [type('B', (), {'name': 'own', 'supports': lambda *a: None, '__call__': lambda *a: None})()]"
    family = make_registry({"one": {"attention_impl": answer}}).family("one")
    assert [backend.name for backend in family.attention_impl(family.build_config(preset="tiny"))] == ["own"]


def test_every_hook_call_is_logged_for_debugging(make_registry, caplog):
    family = make_registry({"one": {"validate_family": "raise KeyError('k')"}}).family("one")
    with caplog.at_level(logging.DEBUG, logger="apr_train"):
        config = family.build_config(preset="tiny")
        with pytest.raises(PluginError):
            family.validate_family(header(), "causal-lm")
        family.attention_impl(config)
    lines = [record.getMessage() for record in caplog.records if record.levelno == logging.DEBUG]
    calls = [line.removesuffix(" ms").rsplit(", ", 1) for line in lines if line.endswith(" ms")]
    assert [call for call, _ in calls] == [
        "dist-one 2.1 [one], hook build_config(preset, header): DecoderConfig",
        "dist-one 2.1 [one], hook validate_family(header, objective): raised KeyError",
        "dist-one 2.1 [one], hook attention_impl(config): list",
    ]
    assert all(float(milliseconds) >= 0 for _, milliseconds in calls)


def test_nothing_is_logged_above_debug(make_registry, caplog):
    family = make_registry({"one": {}}).family("one")
    with caplog.at_level(logging.INFO, logger="apr_train"):
        family.build_config(preset="tiny")
    assert caplog.records == []
