"""Matching a map against a file: everything that does not fit is a finding, by name."""

import pytest
from apr_train import rules
from apr_train.checkpoint.header import TensorInfo
from apr_train.family.load_plan import plan_load
from apr_train.family.name_map import Ignored, NameMap, ignored, rename, tie
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
