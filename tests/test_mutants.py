"""The seeded defects of tests/mutants: they still fit the sources, and a sample of them is caught; `make mutants` tries all."""

import inspect
import os
import re
from pathlib import Path

import pytest
import torch
from apr_train.model.norms import RMSNorm
from apr_train.testing import installed_family

from tests.mutants.apply import BadDefect, applied, families_installed
from tests.mutants.catalogue import AREAS, LEAST, cases, sampled
from tests.mutants.defect import Defect, core, plugin
from tests.mutants.run import compared, control, try_out

torch.set_num_threads(1)
SEED = int(os.environ.get("MUTANTS_SEED", "0"))
SAMPLE = int(os.environ.get("MUTANTS_SAMPLE", "8"))
"""Cases of the sample, each of another area: as many as 45 seconds on two cores allow."""
KNOWN = (
    ("q and k exchanged in Hugging Face's names", "qwen2"),
    ("gate and up exchanged in Hugging Face's names", "qwen2"),
    ("the two norms of a block exchanged in Hugging Face's names", "llama370m"),
    ("the row permutation of a GGUF Llama dropped on the way in", "llama370m"),
    ("the row permutation in the wrong direction on the way in", "llama370m"),
    ("the rows of a GGUF Qwen2 permuted", "qwen2"),
    ("theta 10,000 for 1,000,000 read from files", "qwen2"),
    ("eps 1e-5 for 1e-6 read from files", "qwen2"),
    ("kv heads interleaved, not in blocks", "qwen2"),
    ("a tied head that is a copy: its gradient does not reach the embedding", "qwen2"),
    ("the head loaded as a second matrix", "qwen2"),
    ("the head tied in an untied model", "qwen2"),
    ("a square matrix transposed on the way in", "qwen2"),
    ("the bias of q dropped", "qwen2"),
    ("the bias of k dropped", "qwen2"),
    ("the bias of v dropped", "qwen2"),
    ("all biases left in the file", "qwen2"),
    ("a query sees the next token", "qwen2"),
    ("a query does not see its own token", "qwen2"),
    ("an encoder's positions counted from zero", "codebert"),
    ("padding is seen", "codebert"),
    ("GELU's tanh form for the exact one", "codebert"),
    ("LayerNorm eps 1e-12 for 1e-5 read from files", "codebert"),
)
"""Defects known from the field: the comparison is tried on each of them whenever the tests run."""
CLEAN = (
    ("qwen2", {}),
    ("qwen2", {"num_key_value_heads": 8}),
    ("qwen2", {"tie_word_embeddings": False}),
    ("olmo2", {"rms_norm_eps": 1e-6}),
    ("llama370m", {}),
    ("codebert", {}),
)
"""Families without a defect, with what the references of defects change."""


@pytest.fixture(scope="module")
def families():
    with families_installed():
        yield


def case_of(name, family):
    return next(defect for _, defect, other in cases() if (defect.name, other) == (name, family))


@pytest.mark.rule("FALSIFY-APR-PRETRAIN-ARCH-004")
@pytest.mark.parametrize(("name", "family"), KNOWN, ids=[f"{family}: {name}" for name, family in KNOWN])
def test_comparison_catches(name, family, families):
    assert compared(case_of(name, family), family)


@pytest.mark.parametrize(("family", "changes"), CLEAN)
def test_comparison_passes_without_a_defect(family, changes, families):
    assert compared(Defect("none", family, (), reference=changes), family) is None


def test_a_sample_is_caught_as_the_table_says(families):
    published = published_table()
    wrong = []
    for area, defect, family in sampled(SEED, SAMPLE):
        outcome = try_out(area, defect, family)
        kit, comparison = published[defect.name, family]
        if (kit and not outcome.kit) or (comparison and not outcome.comparison):
            wrong.append(f"{defect.name} [{family}]: seen by {outcome.killed_by}, docs/results.md says more")
    assert not wrong, f"MUTANTS_SEED={SEED} MUTANTS_SAMPLE={SAMPLE}: " + "; ".join(wrong)


def test_a_family_of_the_sample_passes_without_a_defect(families):
    _, _, family = sampled(SEED, 1)[0]
    assert control(family).killed_by == "nothing"


def published_table():
    """(defect, family) → whether the kit and whether the comparison catches it, by the rows of docs/results.md."""
    text = (Path(__file__).parents[1] / "docs" / "results.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([^|]+) \| (\w+) \| ([^|]+) \| ([^|]+) \|$", text.split("## Kill rate")[1], re.MULTILINE)
    rows = [row for row in rows if row[1] != "family"]
    return {(defect, family): (kit != "–", comparison != "–") for defect, family, kit, comparison in rows}


def test_the_table_has_every_case_and_no_survivor():
    published = published_table()
    assert set(published) == {(defect.name, family) for _, defect, family in cases()}
    assert (False, False) not in published.values()


def test_nine_in_ten_are_caught_by_the_kit_alone():
    found = list(published_table().values())
    assert sum(kit for kit, _ in found) >= 0.9 * len(found)


def test_defects_are_spread_over_areas_and_families():
    assert {area: len(defects) >= LEAST[area] for area, defects in AREAS.items()} == dict.fromkeys(AREAS, True)
    assert {"llama370m", "qwen2", "codebert", "qwen3", "olmo2", "gemma2", "mixtral"} <= {family for _, _, family in cases()}
    names = [defect.name for defects in AREAS.values() for defect in defects]
    assert len(names) == len(set(names)) >= 60


def test_every_defect_fits_the_sources_and_is_taken_out_again(families):
    forward = inspect.unwrap(RMSNorm.forward)
    code = forward.__code__
    for _, defect, family in cases():
        with applied(defect, family):
            pass
    assert forward.__code__ is code


def test_a_defect_is_in_the_plugin_that_is_installed(families):
    defect = Defect("more layers", "qwen3", plugin("num_hidden_layers=28", "num_hidden_layers=29"))
    with applied(defect, "qwen3"):
        assert installed_family("qwen3").build_config(preset="0.6b").num_hidden_layers == 29
    assert installed_family("qwen3").build_config(preset="0.6b").num_hidden_layers == 28


def test_a_defect_is_in_the_function_itself(families):
    norm, x = RMSNorm(2, 1e-6), torch.tensor([3.0, 4.0])
    right = norm(x)
    with applied(Defect("no root", "qwen3", core("model.norms:RMSNorm.forward", "torch.rsqrt(", "(")), "qwen3"):
        assert not torch.equal(norm(x), right)
    assert torch.equal(norm(x), right)


@pytest.mark.parametrize(
    "edit",
    [
        core("model.norms:RMSNorm.forward", "no such text", ""),
        core("model.norms:RMSNorm.forward", "self.eps", "self.eps ("),
        core("model.norms:RMSNorm.backward", "self.eps", "0"),
        plugin("FAMILY", "OTHER"),
    ],
)
def test_a_defect_that_does_not_fit_is_refused(edit, families):
    with pytest.raises(BadDefect), applied(Defect("bad", "qwen3", edit), "qwen3"):
        pass
