"""A parameter that the loss does not depend on is named before the optimizer has changed anything."""

import pytest
import torch
from apr_train.errors import RunError
from apr_train.run.folder import METRICS, checkpoints
from apr_train.run.metrics import read_metrics
from apr_train.training.loop import train
from torch import nn


def with_unused(run, *, frozen=False):
    """Put a norm of k into each layer, which no forward pass calls."""
    for layer in run.model.layers:
        layer.self_attn.k_norm = nn.LayerNorm(8, bias=False)
        layer.self_attn.k_norm.weight.requires_grad_(not frozen)
    return run


@pytest.mark.rule("TRAIN-001")
def test_parameters_that_nothing_uses_stop_the_first_step_with_all_their_names(make_run):
    run = with_unused(make_run(steps=3))
    before = {name: parameter.clone() for name, parameter in run.model.named_parameters()}
    with pytest.raises(RunError) as caught:
        train(run)
    finding = caught.value.finding
    assert (finding.rule, finding.subject) == ("TRAIN-001", "step 1")
    assert finding.found == "none for 2 of them: layers.0.self_attn.k_norm.weight, layers.1.self_attn.k_norm.weight"
    assert "requires_grad False" in finding.hint
    assert all(torch.equal(parameter, before[name]) for name, parameter in run.model.named_parameters())
    assert checkpoints(run.folder) == []
    assert [line.step for line in read_metrics(run.folder / METRICS)] == [0]


@pytest.mark.rule("TRAIN-001")
def test_a_projection_that_is_left_out_is_named_with_what_it_hides(make_run):
    run = make_run(steps=3)
    attention = run.model.layers[0].self_attn
    attention.forward = lambda x, *rest: x
    with pytest.raises(RunError, match=r"TRAIN-001: step 1: .*none for 4 of them") as caught:
        train(run)
    for name in "qkvo":
        assert f"layers.0.self_attn.{name}_proj.weight" in caught.value.finding.found


@pytest.mark.rule("TRAIN-001")
def test_frozen_parameters_are_left_alone(make_run):
    run = with_unused(make_run(steps=2), frozen=True)
    assert train(run).last.step == 2


@pytest.mark.rule("TRAIN-001")
def test_a_gradient_that_is_zero_is_a_gradient(make_run):
    run = make_run(steps=2)
    run.model.layers[0].mlp.up_proj.weight.register_hook(torch.zeros_like)
    assert train(run).last.step == 2
