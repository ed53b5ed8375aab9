"""Where adapters can be put, of every kind of edge that a name map has."""

import numpy as np
import pytest
from apr_train.family.adapter_sites import short_names, sites_of
from apr_train.family.name_map import NameMap
from apr_train.family.name_rules import apply, concatenate, ignored, rename, rope_rows, split, stack, tie, transpose

SIZES = {"hidden": 8, "rows": 12, "num_experts": 4, "one": 1, "head_dim": 4, "heads": 2, "vocab": 32, "total": 24}


class Doubled:
    """An operation of a family's own, which looks at values."""

    def to_parameter(self, tensor):
        return tensor / 2

    def to_checkpoint(self, tensor):
        return tensor * 2


RULES = (
    rename("model.embed.weight", "embed.weight", "vocab", "hidden"),
    tie("lm_head.weight", "embed.weight", "vocab", "hidden"),
    rename("model.h.{layer}.norm.weight", "layers.{layer}.norm.weight", "hidden"),
    rename("model.h.{layer}.attn.o.weight", "layers.{layer}.self_attn.o_proj.weight", "hidden", "hidden"),
    rope_rows("model.h.{layer}.attn.q.weight", "layers.{layer}.self_attn.q_proj.weight", "hidden", "hidden", heads="heads"),
    transpose("model.h.{layer}.mlp.fc.weight", "layers.{layer}.mlp.up_proj.weight", "rows", "hidden"),
    *split("model.h.{layer}.kv.weight", [(f"layers.{{layer}}.self_attn.{n}_proj.weight", "hidden") for n in "kv"], "hidden"),
    *concatenate([(f"model.h.{{layer}}.{n}.weight", "rows") for n in "ab"], "layers.{layer}.mlp.ab.weight", "hidden"),
    stack("model.h.{layer}.experts.{expert}.weight", "layers.{layer}.mlp.experts.down", "hidden", "rows"),
    rename("model.h.{layer}.mlp.gate.weight", "layers.{layer}.mlp.gate.weight", "num_experts", "hidden"),
    rename("model.h.{layer}.mlp.shared_gate.weight", "layers.{layer}.mlp.shared_gate.weight", "one", "hidden"),
    apply(Doubled(), "model.h.{layer}.x.weight", "layers.{layer}.x.weight", "hidden", "hidden"),
    rename("model.h.{layer}.bare", "layers.{layer}.bare", "hidden", "hidden"),
    ignored("model.pool.o.weight", "not used"),
)


@pytest.fixture(scope="module")
def name_map():
    return NameMap(rules=RULES, sizes=SIZES, num_layers=2)


@pytest.fixture(scope="module")
def sites(name_map):
    return sites_of(name_map)


def modules(chosen):
    return [site.module for site in chosen]


def test_by_default_all_matrices_of_the_blocks_have_one_but_routers(sites):
    plain = ["self_attn.o_proj", "self_attn.q_proj", "mlp.up_proj"]
    assert modules(sites.chosen(())) == [f"layers.{layer}.{name}" for layer in (0, 1) for name in plain]
    assert modules(sites.chosen(["mlp.gate"])) == ["layers.0.mlp.gate", "layers.1.mlp.gate"]
    assert sites.routers == {f"layers.{layer}.mlp.{name}" for layer in (0, 1) for name in ("gate", "shared_gate")}


@pytest.mark.parametrize(
    ("target", "found"),
    [
        ("q_proj", ["layers.0.self_attn.q_proj", "layers.1.self_attn.q_proj"]),
        ("attn.q", ["layers.0.self_attn.q_proj", "layers.1.self_attn.q_proj"]),
        ("layers.1.self_attn.q_proj", ["layers.1.self_attn.q_proj"]),
        ("model.h.1.mlp.fc", ["layers.1.mlp.up_proj"]),
        ("proj", []),
        ("", []),
    ],
)
def test_a_target_is_the_end_of_a_name_here_or_in_transformers(sites, target, found):
    assert modules(sites.chosen([target])) == found


@pytest.mark.rule("ADAPTER-001")
@pytest.mark.parametrize(
    ("target", "found", "hint"),
    [
        ("q_porj", "q_porj", "did you mean q_proj?"),
        ("fcc", "fcc", "did you mean fc?"),
        ("embed", "embed", "known: "),
        ("k_proj", "a part of model.h.{layer}.kv.weight in transformers", ""),
        ("ab", "transformers has it as 2 layers", ""),
        ("experts.down", "a stack of experts, which is no linear layer", ""),
        ("x", "goes through Doubled", ""),
        ("bare", "no weight of a linear layer", ""),
    ],
)
def test_what_has_no_adapter_is_told_with_the_reason(sites, target, found, hint):
    (finding,) = sites.findings([target, "o_proj"], "--lora-target")
    assert (finding.rule, finding.subject, finding.field) == ("ADAPTER-001", "--lora-target", target)
    assert found.format(layer=0) in finding.found
    assert finding.hint.startswith(hint)


def test_rows_of_b_follow_the_rows_of_the_matrix(sites):
    """W + B·A in the model is W' + B'·A in the file, whatever lies between the two."""
    draw = np.random.default_rng(0)
    for name in ("q_proj", "up_proj", "o_proj"):
        site = sites.chosen([name])[0]
        rows, columns = site.edge.parameter_shape
        w, b, a = draw.normal(size=(rows, columns)), draw.normal(size=(rows, 3)), draw.normal(size=(3, columns))
        filed, product = site.edge.to_checkpoint(w + b @ a), site.rows_to_file(b) @ a
        np.testing.assert_allclose(filed, site.edge.to_checkpoint(w) + (product.T if site.is_transposed else product))
        np.testing.assert_array_equal(site.rows_to_model(site.rows_to_file(b)), b)
        assert site.size(3) == b.size + a.size
    assert not np.array_equal(sites.chosen(["q_proj"])[0].rows_to_file(np.eye(8)), np.eye(8))


@pytest.mark.parametrize(
    ("targets", "short"),
    [
        (["o_proj"], ["attn.o"]),
        (["q_proj", "up_proj"], ["fc", "q"]),
        (["layers.1.self_attn.q_proj"], ["model.h.1.attn.q"]),
    ],
)
def test_target_modules_are_ends_that_match_just_the_chosen(sites, name_map, targets, short):
    """`o` alone would match the pooler, too."""
    assert short_names(sites.chosen(targets), name_map) == short
