"""A certificate holds what was measured, and nothing that is wrong gets one."""

import attrs
import pytest
import torch
from apr_train.errors import PluginError
from apr_train.family.certificate import Certificate, code_sha256
from apr_train.testing import ConformanceError, installed_family
from apr_train.testing import verify as module
from apr_train.testing.verify import STEPS, compare_training, library_of, reference_of, smallest, verify

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
