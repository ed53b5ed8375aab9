"""Names, rows and counts that the kit holds against something which is not the family's own."""

import attrs
import numpy as np
import pytest
from apr_train.errors import PluginError
from apr_train.family.card import FamilyInfo
from apr_train.family.name_rules import FillRule
from apr_train.family.operations import AddOffset, Identity, RopeRowPermutation
from apr_train.testing import ConformanceError, check_family, installed_family
from apr_train.testing.conformance import check_parameter_count
from apr_train.testing.models import meta_model
from apr_train.testing.names_of_gguf import check_gguf_names, check_gguf_rows, check_gguf_values
from apr_train.testing.report import NotCheckedError

CARD = 'model_type="toy",'
QWEN3 = 'model_type="toy", gguf_architectures=("qwen3",), never_permuted=True, fixed={"qk_norm": "head"},'


def qwen3(toy, gguf):
    family = toy(CARD, QWEN3)
    import toy_family

    rules = toy_family.decoder_rules
    toy_family.decoder_rules = lambda config, layout: rules(config, layout, gguf=gguf)
    return family, attrs.evolve(family.build_config(preset="tiny"), qk_norm="head")


def test_names_of_the_converter_pass(toy):
    assert check_gguf_names(*qwen3(toy, {})) == "24 names"


def test_norms_of_q_and_k_exchanged_in_gguf_names_alone_are_caught(toy):
    names = {"self_attn.q_norm": "attn_k_norm", "self_attn.k_norm": "attn_q_norm"}
    with pytest.raises(ConformanceError) as caught:
        check_gguf_names(*qwen3(toy, names))
    problems = [finding.problem for finding in caught.value.findings]
    norm, wanted, found = "model.layers.0.self_attn.q_norm.weight", "blk.0.attn_q_norm.weight", "blk.0.attn_k_norm.weight"
    assert f"{norm} is {wanted} in a GGUF of qwen3, and here {found}" in problems
    assert len(problems) == 4


def test_name_that_no_gguf_of_the_architecture_has_is_caught(toy):
    with pytest.raises(ConformanceError, match=r"blk\.0\.attn_norm_2\.weight is no tensor of qwen3"):
        check_gguf_names(*qwen3(toy, {"input_layernorm": "attn_norm_2"}))


def test_check_family_names_the_check(toy, monkeypatch):
    family = toy(CARD, 'model_type="toy", gguf_architectures=("llama",),')
    import toy_family

    rules = toy_family.decoder_rules
    swapped = {"mlp.gate_proj": "ffn_up", "mlp.up_proj": "ffn_gate"}
    monkeypatch.setattr(toy_family, "decoder_rules", lambda config, layout: rules(config, layout, gguf=swapped))
    with pytest.raises(ConformanceError, match=r"toy GGUF names, tiny: .*gate_proj\.weight is blk\.0\.ffn_gate"):
        check_family(family)


def test_architecture_that_the_package_does_not_know_is_told(toy):
    family = toy(CARD, 'model_type="toy", gguf_architectures=("toy",),')
    with pytest.raises(NotCheckedError, match="the installed gguf package knows no architecture toy"):
        check_gguf_names(family, family.build_config(preset="tiny"))


def permuted(weights, heads):
    """The reordering of llama.cpp's conversion, in the form that the files of docs/families were made with."""
    return weights.reshape(heads, 2, weights.shape[0] // heads // 2, *weights.shape[1:]).swapaxes(1, 2).reshape(weights.shape)


@pytest.mark.parametrize("heads", [1, 3])
def test_rows_are_permuted_as_the_converter_does(heads):
    from apr_train.testing import names_of_gguf

    weights = np.random.default_rng(0).normal(size=(heads * 8, 5))
    assert np.array_equal(names_of_gguf._permuted(weights, heads), permuted(weights, heads))


@pytest.mark.parametrize("wrong", ["not at all", "the other way"])
def test_rows_that_are_not_put_back_are_caught(monkeypatch, wrong):
    family = installed_family("llama370m")
    config = family.build_config(preset="tiny")
    assert check_gguf_rows(family, config) == "8 tensors"
    other = RopeRowPermutation.to_checkpoint if wrong == "the other way" else (lambda self, tensor: tensor)
    monkeypatch.setattr(RopeRowPermutation, "to_parameter", other)
    with pytest.raises(ConformanceError, match=r"blk\.0\.attn_q\.weight: the converter's permutation of rows is not undone"):
        check_gguf_rows(family, config)


def test_number_of_parameters_is_held_against_the_cards(toy):
    with pytest.raises(ConformanceError, match="toy parameter count, tiny: 11,264 parameters, the card says 11,105"):
        check_family(toy(CARD, CARD + ' parameter_counts={"tiny": 11_105},'))


@pytest.mark.parametrize("name", ["llama370m", "qwen2", "codebert"])
def test_every_preset_of_the_plugins_has_its_number(name):
    family = installed_family(name)
    for preset in family.info.presets:
        assert check_parameter_count(family, preset, meta_model(family, family.build_config(preset=preset)))


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ({"huge": 5}, "only presets: tiny"),
        ({"tiny": 0}, "an integer > 0 for tiny"),
        ({"tiny": True}, "an integer > 0 for tiny"),
        ({"tiny": "5"}, "an integer > 0 for tiny"),
        ([("tiny", 5)], "an object"),
    ],
)
def test_counts_on_a_card_are_numbers_of_its_presets(counts, message):
    with pytest.raises(PluginError, match=rf"FAMILY\.parameter_counts is wrong.*{message}"):
        FamilyInfo(
            name="toy", api_version="1.0", kind="decoder", objectives=("causal-lm",), hf_classes=("Toy",), model_type="toy",
            presets=("tiny",), default_preset="tiny", parameter_counts=counts,
        )  # fmt: skip


def spoiled(monkeypatch, old, new, *, names):
    """The rules of the installed llama370m, with one name for another in files of one kind."""
    import apr_train_llama370m as module

    rules = module.decoder_rules

    def changed(config, layout):
        if layout.names != names:
            return rules(config, layout)
        return [attrs.evolve(rule, checkpoint=swap(rule.checkpoint)) for rule in rules(config, layout)]

    def swap(name):
        return name.replace(old, "?").replace(new, old).replace("?", new)

    monkeypatch.setattr(module, "decoder_rules", changed)
    family = installed_family("llama370m")
    return family, family.build_config(preset="tiny")


def test_names_exchanged_in_hugging_faces_files_alone_are_caught(monkeypatch):
    with pytest.raises(ConformanceError, match=r"gate_proj\.weight is blk\.0\.ffn_gate\.weight in a GGUF of llama"):
        check_gguf_names(*spoiled(monkeypatch, "gate_proj", "up_proj", names="hf"))


def test_names_of_an_encoder_are_looked_up_for_a_bert(monkeypatch):
    import apr_train_codebert as module

    family = installed_family("codebert")
    config = family.build_config(preset="tiny")
    assert check_gguf_names(family, config) == "37 names, 5 that the package's table does not have"
    linears = [(theirs, ours.replace("q_proj", "k_proj") if "q_proj" in ours else ours.replace("k_proj", "q_proj"), *shape)
               for theirs, ours, *shape in module._LINEARS]  # fmt: skip
    monkeypatch.setattr(module, "_LINEARS", linears)
    with pytest.raises(ConformanceError, match=r"self\.query\.weight is blk\.0\.attn_q\.weight in a GGUF of bert"):
        check_gguf_names(family, config)


@pytest.mark.parametrize("operation", ["AddOffset", "nothing"])
def test_numbers_that_differ_in_a_gguf_are_caught(toy, operation):
    family, config = qwen3(toy, {})
    config = attrs.evolve(config, norm_offset=1.0)
    assert check_gguf_values(family, config) == "24 tensors"
    import toy_family

    rules = toy_family.decoder_rules

    def spoil(rule, layout):
        if layout.names != "gguf" or not isinstance(rule, FillRule):
            return rule
        if operation == "nothing":
            return attrs.evolve(rule, operation=Identity())
        return attrs.evolve(rule, operation=AddOffset(2.0)) if rule.checkpoint == "output_norm.weight" else rule

    toy_family.decoder_rules = lambda config, layout: [spoil(rule, layout) for rule in rules(config, layout)]
    with pytest.raises(ConformanceError, match=r"output_norm\.weight has other numbers than model\.norm\.weight"):
        check_gguf_values(family, config)
