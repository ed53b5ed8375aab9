"""Groups of parameters: their rates follow the run's, what is frozen has nothing, and everything resumes bit for bit."""

import pytest
import torch
from apr_train.model.acceleration import compile_blocks
from apr_train.preflight.optimizer_rules import ParameterGroups
from apr_train.run.folder import METRICS, MODEL, OPTIMIZER, checkpoints
from apr_train.run.metrics import MEASURED, read_metrics
from apr_train.run.settings import GroupSettings, OptimizerSettings
from apr_train.training.loop import train
from apr_train.training.optimizer.make import make_optimizer
from apr_train.training.optimizer.told import optimizer_lines
from attrs import evolve
from safetensors.torch import load_file

EMBEDDING, FIRST = "embed_tokens.weight", "layers.0.self_attn.q_proj.weight"
SMALL = {"val_every": 0, "steps": 4}


def grouped(run, of, **settings):
    """Give a run an optimizer with groups; what they freeze is frozen."""
    groups = ParameterGroups(of=of)
    for name in groups.frozen:
        run.model.get_parameter(name).requires_grad_(False)
    chosen = OptimizerSettings(lr=1e-3, **settings)
    run.optimizer = make_optimizer(run.model, chosen, lr=1e-3, groups=groups, seed=run.settings.run.seed)
    return run


def test_the_rate_of_a_group_rises_and_falls_as_the_runs_does(make_run):
    run = grouped(
        make_run(), {EMBEDDING: GroupSettings(pattern="e", lr=5e-3), FIRST: GroupSettings(pattern="q", weight_decay=0)}
    )
    run.optimizer.set_learning_rate(2e-4)
    found = {group["name"]: (group["lr"], group["weight_decay"]) for group in run.optimizer.param_groups}
    assert found == {"e": (pytest.approx(1e-3), 0.1), "q": (2e-4, 0), "matrices": (2e-4, 0.1), "vectors": (2e-4, 0.0)}


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_what_is_frozen_has_no_gradient_and_no_state_and_stays(make_run, optimizer):
    still = {EMBEDDING: GroupSettings(pattern="e", frozen=True), FIRST: GroupSettings(pattern="q", frozen=True)}
    run = grouped(make_run(**SMALL), still, optimizer=optimizer)
    before = {name: item.detach().clone() for name, item in run.model.named_parameters()}
    train(run)
    saved = load_file(checkpoints(run.folder)[-1].path / OPTIMIZER)
    for name, item in run.model.named_parameters():
        assert torch.equal(item, before[name]) == (name in still)
        assert (item.grad is None) == (name in still)
        assert any(key.endswith(f".{name}") for key in saved) == (name not in still)


def test_every_group_and_what_is_frozen_stands_in_the_opening_lines(make_run):
    still = {FIRST: GroupSettings(pattern="q", frozen=True), EMBEDDING: GroupSettings(pattern="emb*", lr=2e-3)}
    run = grouped(make_run(), still, optimizer="muon")
    lines = optimizer_lines(run.model, run.optimizer, run.settings)
    assert lines == {
        "optimizer": "AdamW and Muon, cosine from 0.001, 6 steps",
        "group 1": "AdamW, emb*: 1 tensor of 2,048 parameters, lr 0.002, decay 0.1",
        "group 2": "AdamW, vectors: 5 tensors of 160 parameters, lr 0.001, decay 0",
        "group 3": "Muon, matrices: 13 tensors of 14,336 parameters, lr 0.001 (match-rms-adamw), decay 0.1",
        "frozen": "1 tensor of 1,024 parameters",
    }


WAYS = [
    ("adamw", "bf16-weights", "stochastic"),
    ("adamw", "bf16-weights", "master"),
    ("adamw", "bf16-weights", "nearest"),
    ("muon", "fp32", "stochastic"),
    ("muon", "bf16", "stochastic"),
    ("muon", "bf16-weights", "stochastic"),
    ("muon", "bf16-weights", "master"),
    ("muon", "bf16-weights", "nearest"),
]


def written(run):
    """What a run leaves but the time and memory that it took: metrics, weights and the optimizer's state."""
    last = checkpoints(run.folder)[-1].path
    lines = [evolve(line, **dict.fromkeys(MEASURED)) for line in read_metrics(run.folder / METRICS)]
    return lines, load_file(last / MODEL) | load_file(last / OPTIMIZER)


def assert_resumes_exactly(make_run, prepare=lambda run: run, **values):
    """A run, and the same one that ended in the middle and went on, are the same at the end; returns that state."""
    values |= {"schedule": "constant", "save_every": 2, "val_every": 2}
    whole = prepare(make_run("whole", steps=4, **values))
    train(whole)
    train(prepare(make_run("parts", steps=2, **values)))
    parts = prepare(make_run("parts", steps=4, resume=True, **values))
    train(parts)
    (curve, state), (its_curve, its_state) = written(whole), written(parts)
    assert curve == its_curve
    assert state.keys() == its_state.keys()
    for name, value in state.items():
        assert value.dtype == its_state[name].dtype
        assert torch.equal(value, its_state[name]), name
    return load_file(checkpoints(whole.folder)[-1].path / OPTIMIZER)


@pytest.mark.parametrize(("optimizer", "precision", "update"), WAYS)
def test_a_resume_is_exact(make_run, optimizer, precision, update):
    values = {"optimizer": optimizer, "precision": precision, "bf16_update": update, "accumulate": 2, "clip_norm": 0.3}
    state = assert_resumes_exactly(make_run, **values)
    kept = {"exp_avg", "exp_avg_sq", "step"} | ({"momentum_buffer"} if optimizer == "muon" else set())
    kept |= {"master"} if (precision, update) == ("bf16-weights", "master") else set()
    assert {name.partition(".")[0] for name in state} == kept
    moments = {value.dtype for name, value in state.items() if not name.startswith("step.")}
    assert moments == {torch.bfloat16 if precision == "bf16-weights" and update != "master" else torch.float32}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # torch.compile warns about its own tracing and about torch's own modules
@pytest.mark.parametrize(("optimizer", "precision", "update"), [WAYS[0], WAYS[4], WAYS[6]])
def test_a_compiled_resume_is_exact(make_run, optimizer, precision, update):
    def compiled(run):
        compile_blocks(run.model)
        return run

    values = {"optimizer": optimizer, "precision": precision, "bf16_update": update, "compile": True}
    assert_resumes_exactly(make_run, compiled, **values)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_tiny_model_learns(make_run, optimizer):
    run = make_run(optimizer=optimizer, steps=30, lr=3e-3, precision="bf16-weights", val_every=0)
    train(run)
    lines = read_metrics(run.folder / METRICS)
    assert lines[-1].val_loss < lines[0].val_loss - 0.3
