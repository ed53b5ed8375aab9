"""The kit passes a sound family, and names the fault of every other."""

import sys
import time

import attrs
import pytest
from apr_train import rules
from apr_train.family.card import Layout
from apr_train.family.decoder_names import decoder_rules
from apr_train.family.name_map import NameMap
from apr_train.family.name_rules import add_offset
from apr_train.family.operations import RopeRowPermutation
from apr_train.testing import ConformanceError, check_family, installed_family
from apr_train.testing.conformance import ALL_LAYOUTS, check_gguf_config, check_operations, supported_layouts


@pytest.mark.parametrize("name", ["llama370m", "qwen2", "codebert"])
def test_a_family_is_checked_in_15_seconds_of_computing(name):
    """By the processor's time, which other work on the machine does not lengthen; 1 to 4 of them were seen."""
    family, before = installed_family(name), time.process_time()
    report = check_family(family)
    assert time.process_time() - before < 15
    assert len(report.checked) > 20


FAULTS = {
    "torch at import": ("import attrs", "import attrs, torch", "loads torch"),
    "objective of the other kind": ('("causal-lm",)', '("masked-lm",)', "masked-lm does not fit kind decoder"),
    "another config from the header": (
        "DecoderConfig.from_header(header, info=FAMILY)",
        "attrs.evolve(DecoderConfig.from_header(header, info=FAMILY), rope_theta=5.0)",
        "rope_theta is 10000.0, and is read from the config's own header as 5.0",
    ),
    "a field that is guessed": (
        "DecoderConfig.from_header(header, info=FAMILY)",
        "DecoderConfig.from_header(attrs.evolve(header, config={'rope_theta': 1e4, **header.config}))",
        "rope_theta is guessed",
    ),
    "a sound file refused": (
        "return []\n",
        "from apr_train.family import Finding\n    return [Finding(rule='X', subject='file', problem='I refuse')]\n",
        "a sound file is refused: X: file: I refuse",
    ),
    "a layout refused that every family has": (
        "    return NameMap.for_config",
        "    from apr_train.family import NameMapError\n"
        "    if layout.names == 'hf': raise NameMapError('no')\n    return NameMap.for_config",
        "Hugging Face's names are refused",
    ),
}


def test_sound_family_passes(toy):
    check_family(toy())


@pytest.mark.parametrize("fault", FAULTS)
def test_fault_is_named(toy, fault):
    old, new, message = FAULTS[fault]
    with pytest.raises(ConformanceError, match=message):
        check_family(toy(old, new))


def test_an_activation_that_a_gguf_has_no_key_for_is_named(toy):
    """A reader of llama.cpp's file would take the default: another model."""
    with_gguf = 'model_type="toy", gguf_architectures=("toy",),'
    with pytest.raises(
        ConformanceError, match=r"no key for hidden_act, and nothing is guessed: say what is meant in FAMILY\.implied"
    ):
        check_family(toy('model_type="toy",', with_gguf))
    family = toy('model_type="toy",', with_gguf + 'implied={"hidden_act": "silu"},')
    check_family(family)
    with pytest.raises(ConformanceError, match="no key for hidden_act, which is read as 'silu' where it is 'gelu'"):
        check_gguf_config(family, attrs.evolve(toy().build_config(preset="tiny"), hidden_act="gelu"))


def test_map_that_leaves_a_parameter_out_is_named(toy):
    family = toy("decoder_rules(config, layout)", "[r for r in decoder_rules(config, layout) if 'v_proj' not in r.checkpoint]")
    with pytest.raises(ConformanceError, match=r"toy name map, tiny: .*no rule fills layers\.0\.self_attn\.v_proj\.weight"):
        check_family(family)


@pytest.mark.rule("NAMES-001")
def test_operation_that_is_not_its_own_inverse_is_named(toy, monkeypatch):
    monkeypatch.setattr(RopeRowPermutation, "to_checkpoint", RopeRowPermutation.to_parameter)
    with pytest.raises(ConformanceError, match=r"q_proj\.weight comes back changed") as caught:
        check_family(toy())
    first = caught.value.findings[0]
    assert (first.rule, first.field) == (rules.NAMES_001, "model.layers.0.self_attn.q_proj.weight")
    assert "RopeRowPermutation does not give back what went through to_parameter" in first.problem


OWN = """
class Scaled:
    def to_parameter(self, tensor):
        return {there}

    def to_checkpoint(self, tensor):
        return {back}

def changed(rule):
    own = rule.checkpoint == "model.norm.weight"
    return attrs.evolve(rule, operation=Scaled()) if own else rule

@hookimpl
def map_tensor_names"""


@pytest.mark.rule("NAMES-001")
@pytest.mark.parametrize(
    ("there", "back", "problem"),
    [
        ("tensor * 2", "tensor / 2", None),
        ("tensor - 1", "tensor - 1", "Scaled does not give back what went through to_parameter"),
        ("tensor.clip(0)", "tensor", "Scaled does not give back what went through to_parameter"),
        ("tensor[:, None]", "tensor[:, 0]", r"Scaled gives \[32, 1\] by to_parameter, where \[32\] belongs"),
    ],
)
def test_operation_of_a_familys_own_that_is_no_inverse_is_named(toy, there, back, problem):
    family = toy("\n@hookimpl\ndef map_tensor_names", OWN.format(there=there, back=back))
    config = family.build_config(preset="tiny")
    module = sys.modules["toy_family"]
    rules_of = [module.changed(rule) for rule in decoder_rules(config, Layout())]
    name_map = NameMap.for_config(config, rules_of)
    if problem is None:
        check_operations(name_map, where="toy")
        return
    with pytest.raises(ConformanceError, match=problem) as caught:
        check_operations(name_map, where="toy")
    assert [(item.rule, item.field) for item in caught.value.findings] == [(rules.NAMES_001, "model.norm.weight")]


def test_an_offset_comes_back_bit_for_bit():
    name_map = NameMap(rules=(add_offset("n", "n", "size", offset=1.0),), sizes={"size": 10_000}, num_layers=1)
    check_operations(name_map, where="toy")


def test_a_wrong_map_is_told_as_itself_and_not_as_a_refused_layout(toy):
    """It was told as "Hugging Face's names are refused"."""
    family = toy("decoder_rules(config, layout)", "[*decoder_rules(config, layout), *decoder_rules(config, layout)[:1]]")
    with pytest.raises(ConformanceError, match=r"toy layouts, tiny: .*two parameters for one place"):
        check_family(family)


def test_layouts_that_a_family_refuses_are_left_out(toy):
    family = toy(
        "    return NameMap.for_config",
        "    from apr_train.family import NameMapError\n"
        "    if layout.names == 'gguf': raise NameMapError('no')\n    return NameMap.for_config",
    )
    layouts = supported_layouts(family, family.build_config(preset="tiny"))
    assert layouts == [layout for layout in ALL_LAYOUTS if layout.names == "hf" and layout.experts == "separate"]
    assert Layout() in layouts


def test_family_that_is_not_installed_is_an_error():
    with pytest.raises(Exception, match="no installed plugin offers this family"):
        installed_family("no-such-family")
