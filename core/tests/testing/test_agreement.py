"""Relative errors, and the comparison of two models: it passes equals and fails everything else."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from apr_train.family.card import Layout
from apr_train.model.attention import Bidirectional, Causal, load_backend
from apr_train.model.decoder import Decoder
from apr_train.testing import (
    FLOAT32,
    FLOAT64,
    ConformanceError,
    check_agreement,
    compare_models,
    compute_in_float64,
    meta_model,
    model_from_tensors,
    random_tensors,
    randomize,
    reference_config,
    relative_error,
    relative_errors,
)
from torch import nn


class Reference(nn.Module):
    """Another implementation's face: Hugging Face's names, and an answer with `.logits`."""

    def __init__(self, config, spoil=0.0):
        super().__init__()
        self.model = Decoder(config, load_backend("sdpa"))
        self.config = SimpleNamespace(to_dict=config.to_dict)
        self.spoil = spoil

    def forward(self, input_ids, attention_mask=None):
        logits = self.model(input_ids, mask=Causal())
        return SimpleNamespace(logits=logits + self.spoil * logits.sin())


@pytest.fixture
def family(toy):
    return toy()


@pytest.fixture
def config(family):
    return family.build_config(preset="tiny")


TOKENS = torch.arange(24).reshape(2, 12) % 11


def test_error_is_the_norm_of_the_difference_by_the_references():
    assert relative_error(np.array([3.0, 4.0]), np.array([3.0, 0.0])) == pytest.approx(4 / 3)
    assert relative_error(torch.tensor([1.0]), np.array([1.0])) == 0.0


def test_error_against_zeros_is_absolute():
    assert relative_error(np.array([0.5]), np.array([0.0])) == 0.5


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_numbers_that_are_none_never_agree(bad):
    assert relative_error(np.array([bad]), np.array([bad])) == float("inf")
    assert relative_error(np.array([1.0]), np.array([bad])) == float("inf")


def test_shapes_must_be_equal_even_if_they_broadcast():
    assert relative_error(np.ones((2, 1)), np.ones((2, 2))) == float("inf")


def test_tensor_of_one_side_only_never_agrees():
    errors = relative_errors({"a": np.ones(1), "b": np.ones(1)}, {"a": np.ones(1), "c": np.ones(1)})
    assert errors == {"a": 0.0, "b": float("inf"), "c": float("inf")}


def test_disagreement_lists_every_tensor():
    with pytest.raises(ConformanceError, match=r"x: a differs by 1.*\nx: b differs by 1"):
        check_agreement({"a": np.zeros(1), "b": np.zeros(1)}, {"a": np.ones(1), "b": np.ones(1)}, tolerance=0.5, where="x")


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, FLOAT32), (torch.float64, FLOAT64)])
def test_equal_models_agree(family, config, dtype, tolerance):
    reference = randomize(Reference(config)).to(dtype)
    agreement = compare_models(family, config, reference, TOKENS, precision="weights")
    assert agreement.tolerance == tolerance
    assert agreement.logits <= tolerance
    assert agreement.gradients <= tolerance


def test_config_is_read_from_the_reference(family, config):
    assert reference_config(family, Reference(config)) == config


def test_wrong_logits_are_caught(family, config):
    with pytest.raises(ConformanceError, match="logits differs"):
        compare_models(family, config, randomize(Reference(config, spoil=1e-3)), TOKENS)


def test_wrong_gradients_are_caught_where_the_logits_agree(family, config):
    reference = randomize(Reference(config))
    reference.model.layers[0].mlp.up_proj.weight.register_hook(lambda grad: grad * 1.001)
    with pytest.raises(ConformanceError, match=r"gradients: layers\.0\.mlp\.up_proj\.weight differs by 0\.00(1|0999)"):
        compare_models(family, config, reference, TOKENS, precision="weights")


def test_gradient_that_is_said_to_vanish_must(family, config):
    with pytest.raises(ConformanceError, match="should have no gradient"):
        compare_models(family, config, randomize(Reference(config)), TOKENS, vanishing=("q_proj.weight",))


def test_only_real_tokens_are_compared(family, config):
    keep = torch.arange(12) < torch.tensor([[12], [7]])
    compare_models(family, config, randomize(Reference(config)), TOKENS, keep=keep)


def test_model_is_filled_from_checkpoint_tensors_and_nothing_may_be_left(family, config):
    tensors = {
        name: torch.from_numpy(array) for name, array in random_tensors(family.map_tensor_names(config, Layout())).items()
    }
    model = model_from_tensors(family, config, tensors)
    assert torch.equal(model.embed_tokens.weight, tensors["model.embed_tokens.weight"])
    with pytest.raises(ConformanceError, match="not used by the model"):
        model_from_tensors(family, config, tensors | {"model.extra": torch.zeros(1)})
    del tensors["model.norm.weight"]
    with pytest.raises(ConformanceError, match="missing from the file"):
        model_from_tensors(family, config, tensors)


def test_meta_model_takes_no_memory(family, config):
    assert {parameter.device.type for parameter in meta_model(family, config).parameters()} == {"meta"}


def test_randomized_models_have_neither_zero_biases_nor_unit_norms(config):
    model = randomize(Reference(config))
    assert all(parameter.std() > 0.05 for parameter in model.parameters())


def test_masks_of_the_comparison_follow_the_kind(family, config):
    """A decoder must never be compared under a mask that shows it the future."""
    model = randomize(Reference(config)).model
    causal = model(TOKENS, mask=Causal())
    assert relative_error(model(TOKENS, mask=Bidirectional(None)), causal) > 0.01


class Casts(nn.Module):
    """A reference with every cast to float32 that transformers' models have, and a table made while it is built."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.weight = nn.Parameter(torch.full((6,), 0.1))
        self.table = nn.Buffer(torch.arange(6, dtype=torch.float) / 7, persistent=False)
        self.scale = nn.Buffer(torch.tensor(2**0.5), persistent=False)

    def forward(self, x):
        wide = x.float() * self.table.to(device=x.device, dtype=torch.float) * self.scale.to(self.weight.dtype)
        wide = wide.to(torch.float32) * self.weight.type(torch.float32)
        wide = nn.functional.softmax(wide, dim=-1, dtype=torch.float32).to(x.dtype)
        return torch.softmax(wide, -1, dtype=torch.float) + torch.ones(6, dtype=torch.float32) / 3


def test_no_cast_to_float32_is_left_in_a_lifted_reference():
    reference = Casts(SimpleNamespace()).eval()
    reference.weight.data.copy_(torch.linspace(-1, 1, 6))
    lifted = compute_in_float64(reference)
    x = torch.linspace(0, 1, 6, dtype=torch.float64)
    weight = reference.weight.double()
    inner = (x * (torch.arange(6, dtype=torch.float64) / 7) * 2**0.5 * weight).softmax(-1)
    expected = inner.softmax(-1) + 1 / 3
    torch.testing.assert_close(lifted(x), expected, rtol=1e-15, atol=1e-15)
    assert (reference(x) - expected).abs().max() > 1e-9
    assert not lifted.training
    assert torch.get_default_dtype() is torch.float32


def test_reference_that_cannot_be_made_again_is_refused():
    reference = Casts(SimpleNamespace())
    del reference.config
    with pytest.raises(ConformanceError, match="Casts: no config"):
        compute_in_float64(reference)
    reference = Casts(SimpleNamespace())
    reference.more = nn.Parameter(torch.zeros(2))
    with pytest.raises(ConformanceError, match=r"(?s)Casts: made again from its config.*more"):
        compute_in_float64(reference)
