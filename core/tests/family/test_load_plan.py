"""Matching a map against a file: everything that does not fit is a finding, by name."""

import pytest
from apr_train import rules
from apr_train.checkpoint.header import TensorInfo
from apr_train.family.load_plan import plan_load
from apr_train.family.name_map import Ignored, NameMap
from apr_train.family.name_rules import ignored, rename, split, stack, tie
from hypothesis import given
from hypothesis import strategies as st

RULES = (
    rename("model.embed.weight", "embed.weight", "vocab", "width"),
    rename("model.layers.{layer}.up.weight", "layers.{layer}.up.weight", "width", "width"),
    rename("head.dense.weight", "head.dense.weight", "width", "width", fresh_group="head"),
    rename("head.dense.bias", "head.dense.bias", "width", fresh_group="head"),
    tie("lm_head.weight", "embed.weight", "vocab", "width"),
    ignored("pooler.weight", "not trained"),
)
NAME_MAP = NameMap(rules=RULES, sizes={"vocab": 5, "width": 3}, num_layers=2)
HEAD = {"head.dense.weight", "head.dense.bias"}


def index(**changes):
    """The tensor index that fits exactly; `changes` replace shapes, None leaves a tensor out."""
    shapes = {
        entry.checkpoint: (9,) if isinstance(entry, Ignored) else entry.checkpoint_shape for entry in NAME_MAP.entries
    } | changes
    return {name: TensorInfo(name, "F32", shape, 0) for name, shape in shapes.items() if shape is not None}


def plan(**changes):
    return plan_load(NAME_MAP, index(**changes), where="file.apr")


def test_a_complete_file_has_no_findings_and_every_tensor_has_a_fate():
    found = plan()
    fates = [entry.checkpoint for entry in (*found.loads, *found.duplicates, *found.ignored)]
    assert found.findings == ()
    assert sorted(fates) == sorted(index())
    assert [entry.checkpoint for entry in found.duplicates] == ["lm_head.weight"]
    assert [entry.reason for entry in found.ignored] == ["not trained"]


def test_ties_and_ignored_tensors_may_be_absent():
    assert plan(**{"lm_head.weight": None, "pooler.weight": None}).findings == ()


def test_a_missing_tensor_is_named_with_the_closest_one_that_is_there():
    changes = {"model.layers.1.up.weight": None, "model.layers.1.upp.weight": (3, 3)}
    missing, unused = plan(**changes).findings
    assert (missing.rule, missing.expected) == (rules.INIT_007, "model.layers.1.up.weight")
    assert "model.layers.1.upp.weight" in missing.found
    assert (unused.rule, unused.found) == (rules.INIT_007, "model.layers.1.upp.weight")
    assert "model.layers.1.up.weight" in unused.expected


def test_a_wrong_shape_names_both_shapes():
    (finding,) = plan(**{"model.embed.weight": (3, 5)}).findings
    assert (finding.rule, finding.expected, finding.found) == (rules.INIT_005, "[5, 3]", "[3, 5]")
    assert "file.apr [model.embed.weight]" in finding.where


def test_a_copy_of_a_tied_tensor_in_another_shape_is_a_finding():
    (finding,) = plan(**{"lm_head.weight": (6, 3)}).findings
    assert finding.rule == rules.INIT_005


def test_a_group_that_is_absent_as_a_whole_is_fresh():
    found = plan(**dict.fromkeys(HEAD))
    assert {entry.checkpoint for entry in found.fresh} == HEAD
    assert found.findings == ()


def test_a_group_that_is_there_in_part_is_a_fault():
    found = plan(**{"head.dense.bias": None})
    assert found.fresh == ()
    assert [finding.expected for finding in found.findings] == ["head.dense.bias"]


@given(st.data())
def test_every_missing_and_every_extra_tensor_is_reported(data):
    needed = sorted(set(NAME_MAP.by_checkpoint) - HEAD - {"lm_head.weight", "pooler.weight"})
    gone = data.draw(st.sets(st.sampled_from(needed)))
    extra = data.draw(st.sets(st.sampled_from([f"unheard.{number}.of" for number in range(5)])))
    found = plan(**dict.fromkeys(gone), **dict.fromkeys(extra, (1,)))
    assert {finding.where for finding in found.findings} == {f"file.apr [{name}]" for name in gone | extra}


@pytest.mark.parametrize("shape", [(5,), (5, 3, 1), (15,)])
def test_nothing_is_reshaped_even_if_the_number_of_elements_fits(shape):
    assert [finding.rule for finding in plan(**{"model.embed.weight": shape}).findings] == [rules.INIT_005]


EXPERTS = NameMap(
    rules=(
        stack("l.{layer}.mlp.experts.{expert}.up.weight", "l.{layer}.up", "width", "vocab"),
        rename("gguf.{layer}.ffn_up_exps.weight", "l.{layer}.gate", "num_experts", "width", "vocab"),
        *split("l.{layer}.qkv.weight", [("l.{layer}.q", "width"), ("l.{layer}.k", "width")], "width"),
    ),
    sizes={"vocab": 5, "width": 3, "num_experts": 12},
    num_layers=3,
)


def experts(**changes):
    shapes = EXPERTS.tensors | changes
    tensors = {name: TensorInfo(name, "F32", shape, 0) for name, shape in shapes.items() if shape is not None}
    return plan_load(EXPERTS, tensors, where="file")


def test_a_complete_file_of_stacks_and_fused_tensors_has_no_findings():
    found = experts()
    assert found.findings == ()
    assert (len(found.loaded), len(found.loads), len(found.filled)) == (3 * 14, 3 * 15, 3 * 4)
    assert [edge.parameter for edge in found.loaded["l.1.qkv.weight"]] == ["l.1.q", "l.1.k"]


def test_an_expert_that_is_missing_is_named_with_the_closest_of_its_number():
    name, near = "l.2.mlp.experts.7.up.weight", "l.2.mlp.experts.7.upp.weight"
    missing, unused = experts(**{name: None, near: (3, 5)}).findings
    assert (missing.rule, missing.field, missing.found) == (rules.INIT_007, name, f"unused in the file: {near}")
    assert (unused.field, unused.expected) == (near, f"closest expected name: {name}")


def test_an_expert_too_many_is_named():
    (finding,) = experts(**{"l.0.mlp.experts.12.up.weight": (3, 5)}).findings
    assert (finding.rule, finding.field) == (rules.INIT_007, "l.0.mlp.experts.12.up.weight")
    assert "l.0.mlp.experts." in finding.expected


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("l.1.mlp.experts.11.up.weight", (5, 3), "[3, 5]"),
        ("gguf.0.ffn_up_exps.weight", (11, 3, 5), "[12, 3, 5]"),
        ("l.2.qkv.weight", (5, 3), "[6, 3]"),
    ],
)
def test_a_wrong_shape_of_an_expert_a_stack_or_a_fused_tensor_is_one_finding(name, shape, expected):
    (finding,) = experts(**{name: shape}).findings
    assert (finding.rule, finding.field, finding.expected, finding.found) == (rules.INIT_005, name, expected, str(list(shape)))


def test_a_fused_tensor_that_is_missing_is_one_finding():
    (finding,) = experts(**{"l.1.qkv.weight": None}).findings
    assert finding.field == "l.1.qkv.weight"


def test_a_parameter_of_several_tensors_is_fresh_once():
    table = split("head", [("a", "width"), ("b", "width")], fresh_group="head")
    found = plan_load(NameMap(rules=tuple(table), sizes={"width": 3}, num_layers=1), {}, where="f")
    assert (found.fresh_parameters, found.findings) == (("a", "b"), ())
