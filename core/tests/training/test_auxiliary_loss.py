"""A model with a loss of its own beside the cross entropy: its gradient, its weight, and what is told of it."""

import json
from typing import NamedTuple

import numpy as np
import pytest
import torch
from apr_train.data.batch import IGNORED, Batch
from apr_train.data.objectives import OBJECTIVES
from apr_train.errors import PluginError
from apr_train.family.decoder_config import DecoderConfig
from apr_train.model import Decoder, LanguageModel, head_logits, prepare_mask
from apr_train.model.acceleration import compile_blocks
from apr_train.model.attention import Causal, Documents, load_backend
from apr_train.model.build import recompute_activations
from apr_train.model.device import PRECISIONS
from apr_train.run.folder import METRICS
from apr_train.training.display import step_line
from apr_train.training.loop import train
from apr_train.training.optimizer.make import make_optimizer
from apr_train.training.step import NonFiniteError, train_step
from attrs import evolve
from torch import nn
from torch.nn import functional as F

CONFIG = DecoderConfig(
    vocab_size=64,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=4,
    intermediate_size=32,
    max_position_embeddings=64,
    rope_theta=1e4,
    rms_norm_eps=1e-5,
    tie_word_embeddings=True,
    num_experts=3,
    num_experts_per_tok=1,
    router_aux_loss_coef=0.5,
)


class Statistics(NamedTuple):
    """Of one layer, over all tokens: share that each expert got, and mean probability that it was given."""

    load: torch.Tensor
    given: torch.Tensor


class Block(nn.Module):
    """Attention without projections, then one of several experts; returns what its router did, too."""

    def __init__(self, config, backend):
        super().__init__()
        width, self.heads, self.backend = config.hidden_size, config.num_attention_heads, backend
        self.norm = nn.LayerNorm(width)
        self.router = nn.Linear(width, config.num_experts, bias=False)
        self.experts = nn.Parameter(torch.empty(config.num_experts, width, width))

    def forward(self, x, mask):
        heads = self.norm(x).unflatten(-1, (self.heads, -1))
        x = x + self.backend(heads, heads, heads, mask).flatten(2)
        probabilities = self.router(x).softmax(-1)
        chosen = F.one_hot(probabilities.argmax(-1), probabilities.shape[-1]).to(x.dtype)
        out = torch.einsum("ble,eij,blj->bli", chosen * probabilities, self.experts, x)
        return x + out, Statistics(chosen.mean((0, 1)), probabilities.mean((0, 1)))


class Sparse(nn.Module):
    """A family's own mixture of experts."""

    head_bias = None
    head_scale = 1.0
    head_softcap = None

    def __init__(self, config=CONFIG):
        super().__init__()
        self.config, self.attention = config, load_backend("sdpa")
        self.embed = nn.Embedding(config.vocab_size, config.hidden_size)
        self.blocks = nn.ModuleList(Block(config, self.attention) for _ in range(config.num_hidden_layers))

    @property
    def head_weight(self):
        return self.embed.weight

    def hidden_states(self, tokens, *, mask, positions=None, cache=None, losses=None):
        x, length = self.embed(tokens), tokens.shape[1]
        mask = prepare_mask(self.attention, mask, length, length, tokens.device)
        seen = []
        for block in self.blocks:
            x, statistics = block(x, mask)
            seen.append(statistics)
        if losses is not None:
            losses["aux_loss"] = torch.stack([3 * (one.load * one.given).sum() for one in seen]).mean()
        return x

    def head_input(self, hidden):
        return hidden

    logits = head_logits

    def initialize(self, generator, names=None):
        for parameter in self.parameters():
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)


def sparse(**changes):
    model = Sparse(evolve(CONFIG, **changes))
    model.initialize(torch.Generator().manual_seed(0))
    return model


def batches(*rows, length=12):
    """Micro-batches of so many rows each, every third target left out."""
    random = np.random.default_rng(3)
    made = []
    for count in rows:
        tokens, targets = random.integers(0, 64, (2, count, length))
        targets[:, :: 2 + count] = IGNORED
        made.append(Batch.from_arrays(tokens, targets))
    return made


def one_step(model, given, step=1):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    options = {"objective": OBJECTIVES["causal-lm"], "precision": PRECISIONS["fp32"], "clip_norm": 0.0, "step": step}
    return train_step(model, optimizer, given, **options)


def whole_step(model, given):
    """The step's two losses from full logits, each batch's auxiliary loss weighted by its share of the tokens."""
    entropy, auxiliary = torch.zeros(()).double(), torch.zeros(()).double()
    targets, tokens = sum(batch.target_count for batch in given), sum(batch.tokens.numel() for batch in given)
    for batch in given:
        losses = {}
        hidden = model.hidden_states(batch.tokens, mask=Causal(), losses=losses)
        logits = F.linear(hidden, model.head_weight).flatten(0, 1)
        entropy = entropy + F.cross_entropy(logits, batch.targets.flatten(), reduction="sum")
        auxiliary = auxiliary + losses["aux_loss"] * batch.tokens.numel() / tokens
    return entropy / targets, auxiliary


def test_the_fake_model_satisfies_the_protocol():
    assert isinstance(sparse(), LanguageModel)


@pytest.mark.parametrize("coefficient", [0.0, 0.5])
@pytest.mark.parametrize("rows", [(4,), (2, 2, 2), (1, 4, 2)])
def test_a_step_has_the_gradient_of_cross_entropy_and_auxiliary_loss_together(rows, coefficient):
    ours, theirs = (sparse(router_aux_loss_coef=coefficient).double() for _ in range(2))
    given = batches(*rows)
    result = one_step(ours, given)
    entropy, auxiliary = whole_step(theirs, given)
    (entropy + coefficient * auxiliary).backward()
    assert result.loss == pytest.approx(entropy.item(), rel=1e-12)
    assert result.aux_loss == pytest.approx(auxiliary.item(), rel=1e-12)
    expected = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name].grad, rtol=1e-9, atol=1e-12)
    alone = torch.autograd.grad(whole_step(theirs, given)[0], theirs.blocks[0].router.weight)[0]
    assert torch.allclose(ours.blocks[0].router.weight.grad, alone, rtol=1e-6) == (coefficient == 0.0)


def core_decoder(**changes):
    """The core's own mixture of experts: a dense layer, then a sparse one."""
    chosen = {"num_experts_per_tok": 2, "decoder_sparse_step": 2, "shared_expert_intermediate_size": 16}
    model = Decoder(evolve(CONFIG, **chosen, **changes), load_backend("sdpa"))
    model.initialize(torch.Generator().manual_seed(0))
    return model


@pytest.mark.parametrize("coefficient", [0.0, 0.5])
@pytest.mark.parametrize("rows", [(4,), (2, 2, 2)])
def test_a_step_of_the_cores_decoder_has_both_gradients(rows, coefficient):
    ours, theirs = (core_decoder(router_aux_loss_coef=coefficient).double() for _ in range(2))
    given = batches(*rows)
    result = one_step(ours, given)
    entropy, auxiliary = whole_step(theirs, given)
    (entropy + coefficient * auxiliary).backward()
    assert (result.loss, result.aux_loss) == pytest.approx((entropy.item(), auxiliary.item()), rel=1e-12)
    expected = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name].grad, rtol=1e-9, atol=1e-12)


@pytest.mark.rule("TRAIN-001")
def test_an_expert_of_the_cores_decoder_that_no_token_reached_is_not_silent():
    model = core_decoder()
    with torch.no_grad():
        model.layers[1].mlp.gate.weight.zero_()  # equal scores: topk takes the same two for every token
    one_step(model, batches(4))
    sizes = [model.layers[1].mlp.experts.down_proj.grad[expert].norm().item() for expert in range(3)]
    assert sizes.count(0.0) == 1


def test_equal_micro_batches_give_the_mean_of_their_auxiliary_losses():
    model, given = sparse(), batches(2, 2, 2)
    alone = [one_step(model, [batch]).aux_loss for batch in given]
    assert one_step(model, given).aux_loss == pytest.approx(sum(alone) / 3, rel=1e-6)


@pytest.mark.rule("TRAIN-001")
def test_an_expert_that_no_token_reached_is_not_silent():
    model = sparse().double()
    with torch.no_grad():
        model.blocks[0].router.weight[2] = 0
        model.blocks[0].router.weight[:2] *= 50  # one of the two has a positive score, and the third one's is zero
        model.blocks[0].router.weight[1] = -model.blocks[0].router.weight[0]
    assert one_step(model, batches(4)).targets > 0
    assert float(model.blocks[0].experts.grad[2].abs().sum()) == 0.0


class Otherwise(Sparse):
    """Writes what its class says."""

    written = None

    def hidden_states(self, tokens, *, mask, positions=None, cache=None, losses=None):
        hidden = super().hidden_states(tokens, mask=mask, losses=losses)
        if losses is not None:
            auxiliary = losses.pop("aux_loss")
            losses.update({name: auxiliary * torch.tensor(value) for name, value in self.written.items()})
        return hidden


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ({"z_loss": 1.0}, "losses gets one entry at most, expected aux_loss, found z_loss"),
        ({"aux_loss": 1.0, "z_loss": 1.0}, "expected aux_loss, found aux_loss, z_loss"),
        ({"aux_loss": [1.0, 2.0]}, r"aux_loss is no scalar, expected the mean over the batch, found \(2,\)"),
    ],
)
def test_a_loss_that_training_does_not_know_is_refused(written, message):
    model = Otherwise()
    model.initialize(torch.Generator().manual_seed(0))
    model.written = written
    with pytest.raises(PluginError, match=r"Otherwise\.hidden_states: .*" + message):
        one_step(model, batches(2))


def test_a_config_without_the_factor_is_refused():
    model = sparse()
    model.config = object()
    with pytest.raises(PluginError, match="aux_loss without its factor, expected a field router_aux_loss_coef in the config"):
        one_step(model, batches(2))


@pytest.mark.rule("INV-TRAIN-007")
def test_an_auxiliary_loss_that_is_not_finite_stops_the_run_although_it_has_no_weight():
    model = Otherwise(evolve(CONFIG, router_aux_loss_coef=0.0))
    model.initialize(torch.Generator().manual_seed(0))
    model.written = {"aux_loss": float("inf")}
    with pytest.raises(NonFiniteError, match=r"INV-TRAIN-007: step 1.*auxiliary loss inf"):
        one_step(model, batches(2))


def train_sparse(make_run, name, model, **values):
    run = make_run(name, **values)
    run.model = model()
    run.optimizer = make_optimizer(run.model, run.settings.optimizer, lr=1e-2)
    train(run)
    return [json.loads(line) for line in (run.folder / METRICS).read_text().splitlines()]


@pytest.mark.parametrize("model", [sparse, core_decoder])
@pytest.mark.parametrize("document_mask", [False, True])
def test_a_run_writes_the_auxiliary_loss_of_each_step_and_validates_without(make_run, model, document_mask):
    lines = train_sparse(make_run, "sparse", model, steps=8, accumulate=2, val_every=4, document_mask=document_mask)
    assert "aux_loss" not in lines[0]
    assert all(0.9 < line["aux_loss"] <= 3.0 for line in lines[1:])  # 1 where experts are used alike, their number at most
    assert lines[-1]["val_loss"] < lines[0]["val_loss"]
    assert list(lines[1])[:4] == ["step", "loss", "aux_loss", "lr"]


def test_a_model_without_one_has_no_such_field(make_run):
    run = make_run(steps=1)
    outcome = train(run)
    assert "aux_loss" not in outcome.last.to_json()
    assert "aux" not in step_line(outcome.last, 1)
    assert "loss  4.1000  aux  1.250  lr" in step_line(evolve(outcome.last, loss=4.1, aux_loss=1.25), 1)


def gradients(make, change, mask):
    model = make()
    change(model)
    losses = {}
    hidden = model.hidden_states(torch.arange(80).reshape(2, 40) % 64, mask=mask, losses=losses)
    (model.logits(hidden).square().mean() + losses["aux_loss"]).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def compile_and_recompute(model):
    compile_blocks(model)
    recompute_activations(model)


DOCUMENTS = Documents(torch.tensor([[0] * 15 + [1] * 25, [0] * 40], dtype=torch.int32), ((15, 25), (40,)))


@pytest.mark.filterwarnings("ignore")  # torch.compile's own, of itself
@pytest.mark.parametrize(
    "change", [recompute_activations, pytest.param(compile_and_recompute, marks=pytest.mark.slow)], ids=["recompute", "both"]
)
@pytest.mark.parametrize("mask", [Causal(), DOCUMENTS], ids=["causal", "documents"])
@pytest.mark.parametrize("make", [sparse, core_decoder])
def test_blocks_that_return_more_than_a_tensor_are_recomputed_and_compiled(make, change, mask):
    torch._dynamo.reset()
    ours, theirs = gradients(make, change, mask), gradients(make, lambda model: None, mask)
    assert list(ours) == list(theirs)
    for name, grad in ours.items():
        assert ((grad - theirs[name]).norm() / theirs[name].norm()).item() < 1e-5, name
