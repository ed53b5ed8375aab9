"""Muon: its step against the published iteration in float64 and against torch, and which parameters are its."""

import copy

import pytest
import torch
from apr_train.family.adapter_sites import sites_of
from apr_train.family.card import Layout
from apr_train.family.decoder_config import DecoderConfig
from apr_train.family.decoder_names import decoder_rules
from apr_train.family.name_map import NameMap
from apr_train.model.attention import load_backend
from apr_train.model.build import build_model
from apr_train.preflight.optimizer_rules import ParameterGroups
from apr_train.run.settings import OptimizerSettings
from apr_train.training.optimizer.make import make_optimizer
from torch import nn

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of Keller Jordan's page, https://kellerjordan.github.io/posts/muon/."""
RATE, DECAY, MOMENTUM = 0.01, 0.1, 0.95


class OneBlock(nn.Module):
    """A model of one matrix in a block, and one outside."""

    def __init__(self, shape):
        super().__init__()
        self.blocks = nn.ModuleList([nn.Module()])
        draw = torch.Generator().manual_seed(3)
        self.blocks[0].weight = nn.Parameter(torch.randn(shape, generator=draw))
        self.embedding = nn.Parameter(torch.randn(5, 4, generator=draw))


def orthogonalized(matrix):
    """Newton and Schulz's iteration as published, five times, in float64."""
    a, b, c = COEFFICIENTS
    x = matrix / matrix.norm()
    if x.shape[0] > x.shape[1]:
        x = x.T
    for _ in range(5):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if matrix.shape[0] > matrix.shape[1] else x


def adjusted(shape, how):
    """What the rate is multiplied by."""
    rows, columns = shape
    return 0.2 * max(rows, columns) ** 0.5 if how == "match-rms-adamw" else max(1.0, rows / columns) ** 0.5


@pytest.mark.parametrize("how", ["match-rms-adamw", "original"])
@pytest.mark.parametrize("shape", [(48, 32), (32, 48), (40, 40)])
def test_three_steps_are_those_of_the_published_iteration_in_float64(shape, how):
    model = OneBlock(shape)
    settings = OptimizerSettings(optimizer="muon", weight_decay=DECAY, muon_adjust_lr=how)
    optimizer = make_optimizer(model, settings, lr=RATE)
    weight = model.blocks[0].weight
    exact, momentum = weight.detach().double(), torch.zeros(shape, dtype=torch.float64)
    draw = torch.Generator().manual_seed(4)
    for _ in range(3):
        gradient = torch.randn(shape, generator=draw)
        weight.grad, model.embedding.grad = gradient, torch.ones_like(model.embedding)
        before = weight.detach().clone()
        optimizer.step()
        momentum = MOMENTUM * momentum + (1 - MOMENTUM) * gradient.double()
        nesterov = (1 - MOMENTUM) * gradient.double() + MOMENTUM * momentum
        update = adjusted(shape, how) * orthogonalized(nesterov)
        exact = before.double() * (1 - RATE * DECAY) - RATE * update
        apart = (weight.detach().double() - exact).norm() / (RATE * update).norm()
        assert apart < 0.03  # torch iterates in bfloat16
    # what the adjustment is for: an update of AdamW's usual size
    if how == "match-rms-adamw":
        assert float(update.square().mean().sqrt()) == pytest.approx(0.2, rel=0.25)


def test_a_decoder_is_torchs_muon_on_matrices_of_blocks_and_adamw_on_the_rest(make_run):
    model = make_run().model
    theirs = copy.deepcopy(model)
    settings = OptimizerSettings(optimizer="muon", muon_lr=2e-3)
    ours = make_optimizer(model, settings, lr=1e-3)
    hidden = {name for name, item in theirs.named_parameters() if name.startswith("layers.") and item.ndim == 2}
    parameters = dict(theirs.named_parameters())
    rest = [parameters[name] for name in parameters if name not in hidden]
    decayed = {"params": [item for item in rest if item.ndim == 2]}
    plain = {"params": [item for item in rest if item.ndim == 1], "weight_decay": 0.0}
    muon = torch.optim.Muon([parameters[name] for name in hidden], lr=2e-3, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW([decayed, plain], lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    for step in range(3):
        for one, other in zip(model.parameters(), theirs.parameters(), strict=True):
            one.grad = torch.randn(one.shape, generator=torch.Generator().manual_seed(step))
            other.grad = one.grad.clone()
        ours.step()
        muon.step()
        adamw.step()
    assert len(hidden) == 14
    assert all(torch.equal(one, other) for one, other in zip(model.parameters(), theirs.parameters(), strict=True))


def test_routers_and_stacks_of_experts_are_adamws():
    config = DecoderConfig(
        vocab_size=61,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=24,
        max_position_embeddings=64,
        tie_word_embeddings=False,
        rms_norm_eps=1e-5,
        rope_theta=1e4,
        num_experts=4,
        num_experts_per_tok=2,
    )
    model = build_model(None, config, load_backend("sdpa")).to_empty(device="cpu")
    routers = sites_of(NameMap.for_config(config, decoder_rules(config, Layout()))).routers
    optimizer = make_optimizer(model, OptimizerSettings(optimizer="muon"), lr=1e-3, groups=ParameterGroups(routers=routers))
    muon = next(part for part in optimizer.parts if type(part) is torch.optim.Muon)
    mine = {id(item) for group in muon.param_groups for item in group["params"]}
    names = {name for name, item in model.named_parameters() if id(item) in mine}
    assert routers
    assert {name.rpartition(".self_attn.")[2] for name in names} == {f"{part}_proj.weight" for part in "qkvo"}
