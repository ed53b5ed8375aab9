"""NaN and infinity after an update: no checkpoint of them, none lost to them, and no line that is not JSON."""

import pytest
import torch
from apr_train.run.folder import METRICS, checkpoints
from apr_train.run.metrics import read_metrics
from apr_train.training.evaluation import Validation
from apr_train.training.loop import train
from apr_train.training.step import NonFiniteError


def break_after(run, step):
    """Make the optimizer's update in `step` break a weight."""

    def poison(*_):
        if run.step == step - 1:
            with torch.no_grad():
                run.model.norm.weight[0] = float("inf")

    run.optimizer.parts[0].register_step_post_hook(poison)


def steps_of(run):
    return [item.step for item in checkpoints(run.folder)]


@pytest.mark.rule("INV-TRAIN-007")
def test_a_broken_update_replaces_no_good_checkpoint(make_run):
    run = make_run(steps=6, save_every=1, keep=1)
    break_after(run, 3)
    with pytest.raises(NonFiniteError, match=r"^INV-TRAIN-007: step 3: the weights are not finite") as caught:
        train(run)
    assert steps_of(run) == [2]
    assert "norm.weight" in caught.value.finding.hint
    assert f"--init {run.folder}/step-000002/model.apr" in caught.value.finding.hint


@pytest.mark.rule("INV-TRAIN-007")
def test_a_broken_last_update_ends_with_an_error(make_run):
    run = make_run(steps=4, save_every=2, keep=1)
    break_after(run, 4)
    with pytest.raises(NonFiniteError, match=r"^INV-TRAIN-007: step 4: the validation loss is not finite, found (nan|inf)"):
        train(run)
    assert steps_of(run) == [2]
    assert [line.step for line in read_metrics(run.folder / METRICS)] == [0, 1, 2, 3]


@pytest.mark.rule("INV-TRAIN-007")
@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
@pytest.mark.parametrize(("steps", "written"), [(0, []), (3, [0, 1, 2])])
def test_a_validation_loss_that_is_none_is_an_error(make_run, monkeypatch, loss, steps, written):
    losses = [4.0, loss] if steps else [loss]
    measured = lambda *_, **__: Validation(loss=losses.pop(0), accuracy=None, targets=1)  # noqa: E731
    monkeypatch.setattr("apr_train.training.run.held_out_loss", measured)
    run = make_run(steps=steps)
    with pytest.raises(NonFiniteError, match=f"^INV-TRAIN-007: step {steps}: the validation loss is not finite"):
        train(run)
    assert steps_of(run) == []
    assert [line.step for line in read_metrics(run.folder / METRICS)] == written


@pytest.mark.rule("INV-TRAIN-007")
def test_a_nan_in_step_1_keeps_the_start_and_a_resume_measures_it_once(make_run):
    whole = make_run("whole", steps=3)
    train(whole)
    run = make_run("broken", steps=3)
    hook = run.model.norm.weight.register_hook(lambda gradient: gradient * float("nan"))
    with pytest.raises(NonFiniteError, match=r"Start a new run with a lower --lr"):
        train(run)
    hook.remove()
    assert steps_of(run) == [0]
    run = make_run("broken", resume=True, steps=3)
    train(run)
    ends = [[(line.step, line.loss, line.val_loss) for line in read_metrics(item.folder / METRICS)] for item in (run, whole)]
    assert ends[0] == ends[1]
