"""The kit passes a sound family, and names the fault of every other."""

import pytest
from apr_train.errors import NameMapError
from apr_train.family.card import Layout
from apr_train.family.operations import RopeRowPermutation
from apr_train.testing import ConformanceError, check_family, installed_family
from apr_train.testing.conformance import ALL_LAYOUTS, supported_layouts

FAULTS = {
    "torch at import": ("import attrs", "import attrs, torch", "loads torch"),
    "objective of the other kind": ('("causal-lm",)', '("masked-lm",)', "masked-lm does not fit kind decoder"),
    "another config from the header": (
        "DecoderConfig.from_header(header)",
        "attrs.evolve(DecoderConfig.from_header(header), rope_theta=5.0)",
        "the config read from its own header is another one",
    ),
    "a field that is guessed": (
        "DecoderConfig.from_header(header)",
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


def test_map_that_leaves_a_parameter_out_is_named(toy):
    family = toy("decoder_rules(config, layout)", "[r for r in decoder_rules(config, layout) if 'v_proj' not in r.checkpoint]")
    with pytest.raises(NameMapError, match=r"no rule fills layers\.0\.self_attn\.v_proj\.weight"):
        check_family(family)


def test_operation_that_is_not_its_own_inverse_is_named(toy, monkeypatch):
    monkeypatch.setattr(RopeRowPermutation, "to_checkpoint", RopeRowPermutation.to_parameter)
    with pytest.raises(ConformanceError, match=r"q_proj\.weight comes back changed"):
        check_family(toy())


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
