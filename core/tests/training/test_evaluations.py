"""Evaluations in the run: in evaluation mode, without a trace in what is learnt, and shown where a validation is."""

import pytest
import torch
from apr_train.artifact.report.curves import QUANTITIES
from apr_train.run.folder import METRICS
from apr_train.run.metrics import Metrics, read_metrics
from apr_train.training.display import step_line
from apr_train.training.examinee import examined
from apr_train.training.loop import train

MEASURED = {"eval_fim_loss": 1.25, "eval_fim_exact": 0.1, "eval_fim_parsed": 0.75, "eval_syntax": 0.4}


class Evaluate:
    """An evaluation that draws random numbers, and notes the mode of the model."""

    def __init__(self, fails=False):
        self.modes, self.fails = [], fails

    def __call__(self, model):
        with examined(model):
            self.modes.append((model.training, torch.is_grad_enabled()))
            torch.rand(7)
            if self.fails:
                raise ValueError("no answer")
            return dict(MEASURED)


def learnt(run):
    """The weights, and the metrics of the steps."""
    steps = [(line.step, line.loss, line.val_loss) for line in read_metrics(run.folder / METRICS)]
    return {name: value.clone() for name, value in run.model.state_dict().items()}, steps


def test_evaluations_come_with_each_validation_and_leave_no_trace(make_run):
    plain = make_run("plain", val_every=2)
    train(plain)
    run = make_run("evaluated", val_every=2)
    run.evaluate = Evaluate()
    before = torch.get_rng_state()
    train(run)
    assert torch.equal(torch.get_rng_state(), before)
    assert run.evaluate.modes == [(False, False)] * 4
    assert run.model.training
    lines = read_metrics(run.folder / METRICS)
    assert [line.step for line in lines if line.eval_syntax is not None] == [0, 2, 4, 6]
    assert all(line.eval_syntax is None for line in lines if line.val_loss is None)
    assert {name: getattr(lines[-1], name) for name in MEASURED} == MEASURED
    (weights, steps), (others, other_steps) = learnt(run), learnt(plain)
    assert steps == other_steps
    assert all(torch.equal(value, others[name]) for name, value in weights.items())


def test_a_model_is_in_its_mode_again_when_an_evaluation_fails(make_run):
    run = make_run()
    run.evaluate = Evaluate(fails=True)
    state = torch.get_rng_state()
    with pytest.raises(ValueError, match="no answer"):
        run.validated(Metrics(step=0))
    assert run.model.training
    assert torch.equal(torch.get_rng_state(), state)


def test_a_step_line_shows_what_was_measured():
    text = step_line(Metrics(step=3, val_loss=2.0, perplexity=7.39, **MEASURED), 9)
    assert text.endswith("val 2.0000 (perplexity 7.39)  fim 1.2500 (10.0% exact, 75.0% parse)  syntax 40.0%")
    text = step_line(Metrics(step=3, eval_fim_loss=1.0, eval_fim_exact=0.0), 9)
    assert text.endswith("fim 1.0000 (0.0% exact)")


def test_every_number_has_a_curve_in_the_report():
    assert set(MEASURED) <= {quantity.name for quantity in QUANTITIES}
