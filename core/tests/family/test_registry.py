"""The registry as a value: what is imported when, whose fault a failure is, and whose a file is."""

import sys

import attrs
import pytest
from apr_train.checkpoint.header import Header, TensorInfo
from apr_train.errors import PluginError
from apr_train.family.discovery import Discovery
from apr_train.family.registry import Registry


def header(**values):
    return Header(path="x.apr", format="apr", **values)


def tensors(*names):
    return {name: TensorInfo(name, "F32", (1,), 4) for name in names}


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


def test_an_unknown_family_lists_what_is_installed_what_is_broken_and_the_closest_name(make_registry):
    registry = make_registry({"alpha": {}, "beta": "raise RuntimeError('gone')"})
    with pytest.raises(PluginError) as caught:
        registry.family("alpa")
    message = str(caught.value)
    assert "installed families: alpha" in message
    assert "beta (dist-beta 2.1 [beta]: the import of" in message
    assert "gone" in message
    assert message.endswith("found alpa. did you mean alpha?")


def test_only_the_named_familys_hooks_are_called(make_registry):
    registry = make_registry({"one": {}, "two": {"attention_impl": "return ['eager']"}})
    one, two = registry.family("one"), registry.family("two")
    assert one.attention_impl(one.build_config(preset="tiny")) == ["sdpa", "eager"]
    assert two.attention_impl(two.build_config(preset="tiny")) == ["eager"]


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
