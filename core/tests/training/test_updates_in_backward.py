"""Updates in the backward pass: the same numbers as behind it, gradients that are never all there, and what stops them."""

import pytest
import torch
from apr_train.data.objectives import OBJECTIVES
from apr_train.model.attention import load_backend
from apr_train.model.build import build_model, recompute_activations
from apr_train.model.device import PRECISIONS
from apr_train.model.tied_rows import add_rows_apart
from apr_train.run.folder import METRICS, checkpoints
from apr_train.run.metrics import read_metrics
from apr_train.run.settings import OptimizerSettings
from apr_train.training.loop import train
from apr_train.training.optimizer.make import make_optimizer
from apr_train.training.step import NonFiniteError, train_step

from core.tests.training.conftest import tiny_config


def model_of(precision, **changes):
    model = build_model(None, tiny_config(num_hidden_layers=3, **changes), load_backend("sdpa"))
    model.to_empty(device="cpu").to(PRECISIONS[precision].weights)
    model.initialize(torch.Generator().manual_seed(0))
    return model.train()


def batches_of(run, count):
    return [run.stream.next_batch() for _ in range(count)]


def steps(model, optimizer, batches, precision, judge=None):
    options = {"objective": OBJECTIVES["causal-lm"], "precision": PRECISIONS[precision], "clip_norm": 0.0, "judge": judge}
    return [train_step(model, optimizer, [batch], step=step, **options) for step, batch in enumerate(batches, 1)]


@pytest.mark.parametrize("rows", [False, True])
@pytest.mark.parametrize(
    ("precision", "settings", "changes"),
    [
        ("fp32", {}, {}),
        ("fp32", {}, {"tie_word_embeddings": False}),
        ("fp32", {"optimizer": "muon"}, {}),
        ("bf16-weights", {}, {}),
        ("bf16-weights", {"bf16_update": "master"}, {"attention_bias": True}),
        ("fp32", {}, {"num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 16}),
    ],
)
def test_updates_are_those_behind_the_pass_to_the_bit(make_run, precision, settings, changes, rows):
    batches, ends = batches_of(make_run(), 4), []
    for judge in (None, lambda loss, norm: None):  # whoever judges a step has to see all of its gradients
        model = model_of(precision, **changes)
        if rows:
            add_rows_apart(model)
        optimizer = make_optimizer(model, OptimizerSettings(**settings), lr=1e-3)
        results = steps(model, optimizer, batches, precision, judge)
        ends.append((results, list(model.parameters())))
        assert all((item.grad is None) == (judge is None) for item in model.parameters())
    (ours, mine), (plain, theirs) = ends
    assert ours == plain
    assert all(torch.equal(one, other) for one, other in zip(mine, theirs, strict=True))


def test_recomputed_activations_are_of_the_weights_of_the_step(make_run):
    batches, ends = batches_of(make_run(), 3), []
    for recompute in (False, True):
        model = model_of("fp32")
        if recompute:
            recompute_activations(model)
        steps(model, make_optimizer(model, OptimizerSettings(), lr=1e-3), batches, "fp32")
        ends.append(list(model.parameters()))
    assert all(torch.equal(one, other) for one, other in zip(*ends, strict=True))


def test_the_gradients_of_two_blocks_are_never_there_at_once(make_run):
    model = model_of("fp32")
    seen = []

    def note(_):
        seen.append(
            {number for number, block in enumerate(model.blocks) if any(p.grad is not None for p in block.parameters())}
        )

    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(note)
    steps(model, make_optimizer(model, OptimizerSettings(), lr=1e-3), batches_of(make_run(), 2), "fp32")
    assert {0} in seen
    assert {2} in seen
    assert max(map(len, seen)) == 1


@pytest.mark.rule("INV-TRAIN-007")
def test_a_gradient_that_is_not_finite_stops_before_its_block_and_keeps_the_last_checkpoint(make_run):
    run = make_run(steps=6, clip_norm=0.0, save_every=2)
    blocks = run.model.layers
    broken = blocks[0].mlp.gate_proj.weight
    broken.register_hook(lambda gradient: gradient * float("inf") if run.step == 3 else gradient)
    before = {}
    run.optimizer.parts[0].register_step_pre_hook(lambda *_: before.update(it={run.step: broken.detach().clone()}))
    with pytest.raises(NonFiniteError, match=r"^INV-TRAIN-007: step 4: a gradient is not finite") as caught:
        train(run)
    assert caught.value.changed
    assert "layers.0.mlp.gate_proj.weight" in str(caught.value)
    assert "layers.1" not in str(caught.value)
    assert torch.equal(broken.detach(), before["it"][3])
    assert [item.step for item in checkpoints(run.folder)] == [2]
    assert f"--init {run.folder}/step-000002/model.apr" in caught.value.finding.hint


@pytest.mark.rule("INV-TRAIN-007")
def test_a_loss_that_is_not_finite_stops_before_anything_is_updated(make_run):
    run = make_run(steps=6, clip_norm=0.0)
    run.model.norm.register_forward_hook(lambda *args: args[2] * float("nan") if run.model.training and run.step == 3 else None)
    with pytest.raises(NonFiniteError, match=r"^INV-TRAIN-007: step 4: the loss is not finite, found loss nan") as caught:
        train(run)
    assert not caught.value.changed
    assert [item.step for item in checkpoints(run.folder)] == [3]
    whole = make_run("whole", steps=6, clip_norm=0.0)
    train(whole)
    run = make_run(resume=True, steps=6, clip_norm=0.0)
    train(run)
    ends = [[(line.step, line.loss) for line in read_metrics(item.folder / METRICS)] for item in (run, whole)]
    assert ends[0] == ends[1]


@pytest.mark.rule("TRAIN-001")
def test_a_parameter_without_a_gradient_is_found(make_run):
    run = make_run(clip_norm=0.0)
    run.model.layers[1].idle = torch.nn.Parameter(torch.ones(2))
    run.optimizer = make_optimizer(run.model, OptimizerSettings(), lr=1e-3)
    with pytest.raises(Exception, match=r"TRAIN-001.*layers\.1\.idle"):
        train(run)
