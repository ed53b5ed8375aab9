"""The closest tensor name, of the same layer and without comparing every name with every other."""

import time

from apr_train.suggest import ClosestTensor, closest

NAMES = [f"model.layers.{layer}.{stem}.weight" for layer in range(64) for stem in ("mlp.up_proj", "self_attn.q_proj")]


def test_misspelling_is_answered_with_the_same_layer():
    assert ClosestTensor(NAMES)("model.layers.37.mlp.up_porj.weight") == "model.layers.37.mlp.up_proj.weight"


def test_layer_that_is_not_there_is_answered_with_another():
    assert ClosestTensor(NAMES)("model.layers.99.mlp.up_proj.weight") in NAMES


def test_nothing_near_is_none():
    assert ClosestTensor(NAMES)("zzz") is None
    assert ClosestTensor([])("model.norm.weight") is None


def test_names_without_a_layer_are_found_as_by_the_plain_search():
    known = ["model.norm.weight", "lm_head.weight"]
    assert ClosestTensor(known)("model.nrom.weight") == closest("model.nrom.weight", known) == "model.norm.weight"


def test_many_wrong_names_cost_what_few_do():
    wrong = [name.replace("proj", "prj") for name in NAMES * 8]
    nearest, start = ClosestTensor(NAMES), time.process_time()
    assert [nearest(name) for name in wrong] == NAMES * 8
    assert time.process_time() - start < 1.0  # 20 s when each name is compared with each
