"""The registry as a value: what is imported when, whose fault a failure is, and whose a file is."""

import importlib.metadata
import logging
import sys

import attrs
import pytest
from apr_train.checkpoint.header import Header, TensorInfo
from apr_train.errors import ConfigError, Finding, PluginError
from apr_train.family.card import Layout
from apr_train.family.decoder_config import DecoderConfig
from apr_train.family.discovery import FAMILIES, Discovery, InstalledPlugin, canonical
from apr_train.family.name_map import NameMap
from apr_train.family.registry import Registry

FAMILY = """
from apr_train.family import ConfigError, DecoderConfig, FamilyInfo, Finding, NameMap, hookimpl, rename

FAMILY = FamilyInfo(
    name="{name}", api_version="1.0", kind="{kind}", objectives=("causal-lm",), hf_classes=("{name}ForCausalLM",),
    model_type="{name}", gguf_architectures=("{name}-gguf",), presets=("tiny", "large"), default_preset="tiny",
)

@hookimpl
def build_config(preset, header):
    {build_config}

@hookimpl
def map_tensor_names(config, layout):
    {map_tensor_names}

@hookimpl
def validate_family(header, objective):
    {validate_family}

@hookimpl
def attention_impl(config):
    {attention_impl}

@hookimpl
def build_model(config, attention):
    {build_model}
"""
CONFIG = (
    "DecoderConfig(vocab_size=8, hidden_size=4, num_hidden_layers=1, num_attention_heads=1, num_key_value_heads=1, "
    "intermediate_size=4, max_position_embeddings=8, rope_theta=1e4, rms_norm_eps=1e-5, tie_word_embeddings=True)"
)
ANSWERS = {
    "kind": "decoder",
    "build_config": f"return {CONFIG} if preset else DecoderConfig.from_header(header)",
    "map_tensor_names": "return NameMap.for_config(config, [rename('n', 'norm.weight', 'hidden_size')])",
    "validate_family": "return [Finding(rule='R-1', subject=header.path, problem=objective)]",
    "attention_impl": "return ['sdpa', 'eager']",
    "build_model": "return None",
}


@pytest.fixture
def make_registry(tmp_path, monkeypatch):
    """Write modules into a fresh folder and make a registry of them; their names are new each time."""
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)

    def write(name, text):
        module = f"reg_{tmp_path.name}_{name}".replace("-", "_")
        (tmp_path / f"{module}.py").write_text(text)
        point = importlib.metadata.EntryPoint(name, module, FAMILIES)
        return InstalledPlugin(name=name, distribution=f"dist-{name}", version="2.1", entry_point=point)

    def make(families):
        plugins = [
            write(name, text if isinstance(text, str) else FAMILY.format(**{**ANSWERS, "name": name, **text}))
            for name, text in families.items()
        ]
        return Registry(Discovery(plugins=tuple(plugins)))

    yield make
    for name in set(sys.modules) - before:
        if name.startswith("reg_"):
            del sys.modules[name]


def header(**values):
    return Header(path="x.apr", format="apr", **values)


def tensors(*names):
    return {name: TensorInfo(name, "F32", (1,), 4) for name in names}


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


def test_nothing_is_imported_before_it_is_asked_for(make_registry):
    registry = make_registry({"one": {}, "two": "raise RuntimeError"})
    assert registry.names() == ["one", "two"]
    assert not [name for name in sys.modules if name.startswith("reg_")]
    registry.family("one")
    assert [name.rsplit("_", 1)[1] for name in sys.modules if name.startswith("reg_")] == ["one"]


def test_two_registries_share_nothing(make_registry):
    registry = make_registry({"one": {}})
    other = Registry(Discovery(plugins=()))
    assert [family.name for family in registry.families()] == ["one"]
    assert other.families() == []
    assert registry.family("one") is registry.family("one")


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


def test_an_unknown_family_lists_what_is_installed_what_is_broken_and_the_closest_name(make_registry):
    registry = make_registry({"alpha": {}, "beta": "raise RuntimeError('gone')"})
    with pytest.raises(PluginError) as caught:
        registry.family("alpa")
    message = str(caught.value)
    assert "installed families: alpha" in message
    assert "beta (dist-beta 2.1 [beta]: the import of" in message
    assert "gone" in message
    assert message.endswith("found alpa. did you mean alpha?")


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


def test_only_the_named_familys_hooks_are_called(make_registry):
    registry = make_registry({"one": {}, "two": {"attention_impl": "return ['eager']"}})
    one, two = registry.family("one"), registry.family("two")
    assert one.attention_impl(one.build_config(preset="tiny")) == ["sdpa", "eager"]
    assert two.attention_impl(two.build_config(preset="tiny")) == ["eager"]


def test_a_wrapper_is_refused_for_it_answers_nothing(make_registry):
    source = FAMILY.format(**{**ANSWERS, "name": "one", "attention_impl": "return (yield)"})
    marked = source.replace("@hookimpl\ndef attention_impl", "@hookimpl(wrapper=True)\ndef attention_impl")
    with pytest.raises(PluginError, match="hook attention_impl: a wrapper answers nothing, expected @hookimpl"):
        make_registry({"one": marked}).family("one")


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


def test_an_entry_point_that_names_no_module_is_refused(make_registry):
    registry = make_registry({"one": {}})
    (plugin,) = registry._discovery.plugins
    point = importlib.metadata.EntryPoint("one", f"{plugin.entry_point.value}:FAMILY", FAMILIES)
    registry = Registry(Discovery(plugins=(attrs.evolve(plugin, entry_point=point),)))
    with pytest.raises(PluginError, match="does not name a module"):
        registry.family("one")


def test_a_duplicate_name_is_disabled_naming_both_and_the_others_work(make_registry):
    registry = make_registry({"one": {}, "two": {}, "three": {}})
    one, two, three = registry._discovery.plugins
    registry = Registry(Discovery(plugins=(three,), clashes=((one, attrs.evolve(two, name="one")),)))
    assert [family.name for family in registry.families()] == ["three"]
    assert registry.names() == ["one", "three"]
    with pytest.raises(PluginError, match=r"found dist-one 2\.1 and dist-two 2\.1"):
        registry.family("one")
    assert {fault.distribution for fault in registry.broken()} == {"dist-one", "dist-two"}


DECODER = tensors("model.layers.0.self_attn.q_proj.weight", "model.norm.weight")
ENCODER = tensors("roberta.encoder.layer.0.attention.self.query.weight")


@pytest.mark.parametrize(
    ("values", "claimed"),
    [
        ({"hf_class": "oneForCausalLM", "tensors": DECODER}, ["one"]),
        ({"hf_class": "oneForCausalLM"}, ["one"]),
        ({"hf_class": "oneForSequenceClassification", "architecture": "one"}, []),
        ({"architecture": "one"}, ["one"]),
        ({"architecture": "two-gguf", "tensors": tensors("blk.0.attn_norm.weight")}, ["two"]),
        ({"hf_class": "oneForCausalLM", "tensors": ENCODER}, []),
        ({"architecture": "enc", "tensors": ENCODER}, ["enc"]),
        ({"architecture": "enc", "tensors": DECODER}, []),
        ({}, []),
    ],
)
def test_class_then_architecture_decide_whose_a_file_is_and_structure_has_a_veto(make_registry, values, claimed):
    registry = make_registry({"one": {}, "two": {}, "enc": {"kind": "encoder"}, "gone": "raise RuntimeError"})
    assert [family.name for family in registry.claimants(header(**values))] == claimed


def test_distributions_are_compared_as_package_tools_do():
    assert canonical("Apr_Train.Thing") == canonical(" apr-train-thing ") == "apr-train-thing"


def test_an_uninstall_that_broke_off_leaves_a_broken_family_not_a_traceback(tmp_path, monkeypatch):
    remains = tmp_path / "half_gone-1.0.dist-info"
    remains.mkdir()
    (remains / "entry_points.txt").write_text("[apr_train.families]\nhalf = half_gone\n")
    monkeypatch.syspath_prepend(tmp_path)
    (fault,) = [fault for fault in Registry.discover().broken() if fault.name == "half"]
    assert fault.reason.startswith("an unknown distribution [half]: the import of half_gone failed")
    assert Registry.discover(only=["no-such"]).names() == []


def test_discovery_of_nothing_is_a_working_registry(monkeypatch):
    monkeypatch.setenv("APR_TRAIN_PLUGINS", "")
    registry = Registry.discover()
    assert (registry.names(), registry.families(), registry.broken()) == ([], [], [])
    with pytest.raises(PluginError, match="installed families: none"):
        registry.family("any")


def test_an_argument_wins_over_the_environment(monkeypatch):
    monkeypatch.setenv("APR_TRAIN_PLUGINS", "nothing-at-all")
    assert Registry.discover(only=[]).broken() == []
    assert [fault.distribution for fault in Registry.discover().broken()] == ["nothing-at-all"]
