"""The optimizer's state as a file: complete, and taken back only where it fits."""

import pytest
import torch
from apr_train.errors import RunError
from apr_train.run.folder import OPTIMIZER, checkpoints
from apr_train.run.settings import OptimizerSettings
from apr_train.training.loop import train
from apr_train.training.optimizer.make import make_optimizer
from apr_train.training.optimizer.state import optimizer_tensors, restore_optimizer
from safetensors.torch import load_file

NORM = "norm.weight"


@pytest.fixture
def saved(make_run):
    """A run after two steps, and what its checkpoint has of the optimizer."""
    run = make_run(steps=2)
    train(run)
    return run, load_file(checkpoints(run.folder)[-1].path / OPTIMIZER)


def put_back(run, tensors, *, step=2):
    fresh = make_optimizer(run.model, run.settings.optimizer, lr=run.schedule.lr)
    restore_optimizer(run.model, fresh, tensors, step=step)
    return fresh


@pytest.mark.parametrize("precision", ["fp32", "bf16-weights"])
def test_a_state_comes_back_bit_for_bit(make_run, precision):
    run = make_run(steps=2, precision=precision)
    train(run)
    tensors = load_file(checkpoints(run.folder)[-1].path / OPTIMIZER)
    again = optimizer_tensors(run.model, put_back(run, tensors))
    live = optimizer_tensors(run.model, run.optimizer)
    assert tensors.keys() == again.keys() == live.keys()
    for name, tensor in live.items():
        assert torch.equal(tensor, tensors[name])
        assert torch.equal(tensor, again[name])
        assert tensor.dtype == tensors[name].dtype == again[name].dtype


@pytest.mark.parametrize("key", ["exp_avg", "exp_avg_sq", "step"])
def test_a_parameter_without_its_state_is_an_error(saved, key):
    run, tensors = saved
    del tensors[f"{key}.{NORM}"]
    with pytest.raises(RunError, match=rf"another model, found no {key}\.norm\.weight"):
        put_back(run, tensors)


def test_no_state_at_all_is_an_error_after_the_first_step(saved):
    run, tensors = saved
    with pytest.raises(RunError, match="another model"):
        put_back(run, {})
    with pytest.raises(RunError, match="has no parameter"):
        put_back(run, tensors, step=0)
    assert not any(part.state for part in put_back(run, {}, step=0).parts)


def test_a_state_of_no_parameter_is_an_error(saved):
    run, tensors = saved
    with pytest.raises(RunError, match=r"exp_avg\.stranger, which has no parameter"):
        put_back(run, tensors | {"exp_avg.stranger": torch.zeros(1)})


@pytest.mark.parametrize(
    ("key", "change"),
    [
        ("exp_avg", torch.Tensor.bfloat16),
        ("exp_avg_sq", torch.Tensor.double),
        ("step", torch.Tensor.double),
        ("exp_avg", lambda tensor: tensor[:-1]),
        ("step", lambda tensor: tensor.reshape(1)),
    ],
)
def test_another_dtype_or_shape_is_an_error(saved, key, change):
    run, tensors = saved
    name = f"{key}.{NORM}"
    with pytest.raises(RunError, match=rf"{key}\.norm\.weight does not fit, expected torch\.float32"):
        put_back(run, tensors | {name: change(tensors[name])})


def test_a_parameter_that_never_had_a_gradient_goes_on_as_if_never_saved():
    settings = OptimizerSettings(lr=1e-2)
    ends = []
    for interrupted in (False, True):
        model = torch.nn.ModuleDict({name: torch.nn.Linear(2, 2, bias=False) for name in ("used", "idle")})
        for parameter in model.parameters():
            torch.nn.init.ones_(parameter)
        optimizer = make_optimizer(model, settings, lr=settings.lr)
        for names in (["used"], ["used", "idle"]):
            optimizer.zero_grad()
            sum(model[name](torch.tensor([1.0, 2.0])).sum() for name in names).backward()
            optimizer.step()
            if interrupted:
                tensors = optimizer_tensors(model, optimizer)
                optimizer = make_optimizer(model, settings, lr=settings.lr)
                restore_optimizer(model, optimizer, tensors, step=1)
        ends.append([parameter.detach().clone() for parameter in model.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*ends, strict=True))


KINDS = [("fp32", "stochastic"), ("bf16-weights", "stochastic"), ("bf16-weights", "master"), ("bf16-weights", "nearest")]


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("after", KINDS)
@pytest.mark.parametrize("before", KINDS)
def test_a_state_of_other_weights_becomes_one_of_these(make_run, optimizer, before, after):
    was, now = (
        make_run(name, steps=2, optimizer=optimizer, precision=precision, bf16_update=update)
        for name, (precision, update) in (("was", before), ("now", after))
    )
    train(was)
    train(now)  # for the state that such a run has
    had, has = (optimizer_tensors(run.model, run.optimizer) for run in (was, now))
    now.model.load_state_dict(was.model.state_dict())
    fresh = make_optimizer(now.model, now.settings.optimizer, lr=now.schedule.lr)
    restore_optimizer(now.model, fresh, had, step=2, convert=True)
    found = optimizer_tensors(now.model, fresh)
    assert {name: tensor.dtype for name, tensor in found.items()} == {name: tensor.dtype for name, tensor in has.items()}
    for name in found.keys() & had.keys():
        assert torch.equal(found[name], had[name].to(found[name].dtype))
    for name, parameter in now.model.named_parameters():
        weight = had.get(f"master.{name}", was.model.state_dict()[name])
        assert torch.equal(parameter, weight.to(parameter.dtype))
        assert f"master.{name}" not in found or torch.equal(
            found[f"master.{name}"], had.get(f"master.{name}", parameter.float())
        )


@pytest.mark.parametrize("damage", ["shape", "integers"])
def test_a_state_that_is_converted_has_to_fit_all_the_same(saved, damage):
    run, tensors = saved
    name = f"exp_avg.{NORM}"
    tensors[name] = tensors[name][:-1] if damage == "shape" else tensors[name].int()
    fresh = make_optimizer(run.model, run.settings.optimizer, lr=run.schedule.lr)
    with pytest.raises(RunError, match="does not fit"):
        restore_optimizer(run.model, fresh, tensors, step=2, convert=True)
