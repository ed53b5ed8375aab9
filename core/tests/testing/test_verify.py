"""A certificate holds what was measured, and nothing that is wrong gets one."""

import attrs
import pytest
import torch
from apr_train.errors import PluginError
from apr_train.family.certificate import Certificate, code_sha256
from apr_train.testing import ConformanceError, installed_family
from apr_train.testing import verify as module
from apr_train.testing.verify import STEPS, check_holds, compare_training, library_of, reference_of, smallest, verify

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def family():
    return installed_family("llama370m")


def test_everything_that_can_be_compared_is_and_is_near(family):
    told = []
    found = verify(family, against="transformers", tell=told.append)
    assert (found.family, found.version, found.code) == ("llama370m", family.version, code_sha256(family.plugin))
    assert found.against.startswith("transformers 5")
    assert set(found.agreement) == {
        f"{dtype}, {by}" for dtype in ("float64", "float32", "bfloat16") for by in ("sdpa", "eager")
    }
    exact = found.agreement["float64, eager"]
    assert {"logits", "gradients", "prefill", "decode", "documents"} <= exact.keys()
    assert max(value for name, value in exact.items() if name != "tolerance") <= 1e-9
    assert found.agreement["float32, eager"]["files"] <= 1e-9
    assert found.training["float64"]["losses"] <= 1e-9
    assert found.training["float32"]["steps"] == STEPS
    kept = {check["check"] for check in found.checks if "not_checked" not in check}
    assert {"causality", "cache", "documents", "loss", "gradients", "parameter count"} <= kept
    assert len(told) >= 9
    assert torch.get_num_threads() == 1


def test_without_a_library_the_certificate_says_that_nothing_was_compared(toy):
    found = verify(toy())
    assert (found.against, found.label, found.agreement) == ("", "kit only", {})
    assert {"check": "comparison", "not_checked": "no library was named"} in found.checks


def test_a_library_without_the_families_class_is_named(toy):
    with pytest.raises(PluginError, match=r"transformers 5\S* has no ToyForCausalLM"):
        verify(toy(), against="transformers")


def test_training_that_differs_gets_no_certificate(family, monkeypatch):
    config = smallest(family)
    reference = reference_of(family, config, "transformers")
    right = module.head_loss
    monkeypatch.setattr(module, "head_loss", lambda *args, **more: right(*args, **more) * 1.001)
    with pytest.raises(ConformanceError, match=r"steps in float64: the loss of step 1 differs by 0\.001"):
        compare_training(family, config, reference, "float64")


def test_an_optimizer_step_on_other_gradients_is_seen_in_the_weights(family, monkeypatch):
    config = smallest(family)
    reference = reference_of(family, config, "transformers")
    reference.model.layers[0].mlp.up_proj.weight.register_hook(torch.neg)
    monkeypatch.setattr(module, "_again", lambda model, dtype: model)
    monkeypatch.setattr(module, "LOSSES", {"float32": 1.0})
    with pytest.raises(ConformanceError, match=r"layers\.0\.mlp\.up_proj\.weight differs"):
        compare_training(family, config, reference, "float32")


def test_a_certificate_of_an_unknown_library_cannot_be_measured_again():
    made = Certificate(family="a", distribution="b", version="1", api_version="1.0", code="c", against="jax 1")
    with pytest.raises(PluginError, match="found jax"):
        library_of(made)
    assert library_of(attrs.evolve(made, against="")) is None
    assert library_of(attrs.evolve(made, against="transformers 5.1")) == "transformers"


SEEN = Certificate(
    family="a",
    distribution="b",
    version="1",
    api_version="1.0",
    code="c",
    against="transformers 5",
    checks=({"check": "cache", "preset": "tiny", "seen": "5 tokens"}, {"check": "compile", "not_checked": "no reason"}),
    agreement={"float64, eager": {"logits": 1e-15, "tolerance": 1e-9}, "bfloat16, sdpa": {"logits": 0.05, "rounding": 0.04}},
    training={"float32": {"steps": 10.0, "losses": 1e-7, "weights": 1e-3}},
)


def test_a_certificate_holds_where_rounding_alone_differs():
    now = {"float64, eager": {"logits": 9e-15, "tolerance": 1e-9}, "bfloat16, sdpa": {"logits": 0.02, "rounding": 0.04}}
    check_holds(SEEN, SEEN)
    check_holds(SEEN, attrs.evolve(SEEN, agreement=now, training={"float32": {"steps": 10.0, "losses": 4e-6, "weights": 1e-6}}))


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"checks": ()}, "the check cache tiny is not kept now"),
        ({"agreement": {"float64, eager": SEEN.agreement["float64, eager"]}}, "bfloat16, sdpa: logits was 0.05, and is None"),
        ({"training": {}}, "float32: losses was 1e-07, and is None"),
        ({"training": {"float32": {"steps": 2.0, "losses": 1e-7, "weights": 1e-3}}}, "float32: steps was 10.0, and is 2.0"),
        (
            {"agreement": {**SEEN.agreement, "float64, eager": {"logits": 1e-10, "tolerance": 1e-9}}},
            "float64, eager: logits was 1e-15, and is 1e-10",
        ),
        (
            {"agreement": {**SEEN.agreement, "float64, eager": {"logits": 1e-15, "tolerance": 1e-3}}},
            "float64, eager: tolerance was 1e-09, and is 0.001",
        ),
        ({"agreement": {**SEEN.agreement, "float16, magic": {"logits": 1.0}}}, "float16, magic: logits was None, and is 1.0"),
    ],
)
def test_what_is_not_seen_again_is_named(changes, fault):
    with pytest.raises(ConformanceError, match="the certificate no longer holds") as caught:
        check_holds(SEEN, attrs.evolve(SEEN, **changes))
    assert fault in [finding.problem for finding in caught.value.findings]
