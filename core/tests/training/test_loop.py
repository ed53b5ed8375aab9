"""The loop on tiny models: learning, exact resume, refusal of what is not finite, ends in order, averages, skipped steps."""

import itertools
import json
import signal

import pytest
import torch
from apr_train.errors import FormatError, RunError
from apr_train.run.course import course
from apr_train.run.folder import AVERAGING, METRICS, MODEL, STATE, checkpoints
from apr_train.run.metrics import MEASURED, read_metrics
from apr_train.training.averaging import AveragedWeights
from apr_train.training.checkpoint import read_state
from apr_train.training.ending import TimeLimit
from apr_train.training.loop import train
from apr_train.training.signals import StopRequest
from apr_train.training.spikes import SpikeGuard
from apr_train.training.step import NonFiniteError
from attrs import evolve
from safetensors.torch import load_file, save_file
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


def curve(run):
    """All metrics but time and memory."""
    return [evolve(line, **dict.fromkeys(MEASURED)) for line in read_metrics(run.folder / METRICS)]


def same_bits(one, other):
    assert one.keys() == other.keys()
    return all(torch.equal(one[name].view(torch.uint8), other[name].view(torch.uint8)) for name in one if one[name].ndim)


def assert_same_end(one, other):
    """Weights, optimizer, position and metrics are equal, bit for bit."""
    assert curve(one) == curve(other)
    last, its_twin = (checkpoints(run.folder)[-1].path for run in (one, other))
    assert (last / STATE).read_bytes() == (its_twin / STATE).read_bytes()
    for file in ("model.apr", "optimizer.safetensors"):
        assert same_bits(load_file(last / file), load_file(its_twin / file))


class Interrupt(Exception):
    """Stands for a kill: nothing of the run catches it."""


def kill_at(run, step, place):
    """Make the run die in a step, before its metrics are written, or in the middle of saving."""
    if place == "metrics":
        usual = run.display.step

        def stop(line):
            if line.step == step:
                raise Interrupt
            usual(line)

        run.display.step = stop
        return

    def half(path, weights, *, step):
        path.write_bytes(b"half a mod")
        if step >= dies_at:
            raise Interrupt
        path.unlink()
        write(path, weights, step=step)

    dies_at, write, run.write_model = step, run.write_model, half


def test_a_run_learns_and_writes_every_step(make_run):
    run = make_run(steps=30, lr=1e-2, val_every=10)
    outcome = train(run)
    lines = read_metrics(run.folder / METRICS)
    assert [line.step for line in lines] == list(range(31))
    assert [line.step for line in lines if line.val_loss is not None] == [0, 10, 20, 30]
    assert outcome.last == lines[-1]
    assert lines[-1].val_loss < lines[0].val_loss - 0.5
    assert lines[-1].tokens == 30 * 2 * 16
    assert lines[1].loss == pytest.approx(torch.log(torch.tensor(64.0)).item(), abs=0.5)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "bf16-weights"])
@pytest.mark.parametrize("place", ["metrics", "saving"])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_killed_run_goes_on_bit_for_bit(make_run, precision, place, accumulate):
    values = {"precision": precision, "accumulate": accumulate, "steps": 9, "save_every": 2, "val_every": 3, "keep": 1}
    whole = make_run("whole", **values)
    train(whole)
    run = make_run("broken", **values)
    kill_at(run, 6 if place == "saving" else 7, place)
    with pytest.raises(Interrupt):
        train(run)
    assert checkpoints(run.folder)[-1].step == (4 if place == "saving" else 6)
    run = make_run("broken", resume=True, **values)
    train(run)
    assert_same_end(whole, run)


def test_a_resume_in_the_second_epoch_is_exact(make_run):
    values = {"steps": 40, "save_every": 32, "batch_size": 3, "document_mask": True}
    whole = make_run("whole", **values)
    train(whole)
    run = make_run("broken", **values)
    kill_at(run, 35, "metrics")
    with pytest.raises(Interrupt):
        train(run)
    run = make_run("broken", resume=True, **values)
    assert run.stream.epoch >= 1
    train(run)
    assert_same_end(whole, run)


def test_a_half_written_checkpoint_is_never_seen_and_is_cleared_away(make_run):
    run = make_run(steps=6, save_every=2)
    kill_at(run, 4, "saving")
    with pytest.raises(Interrupt):
        train(run)
    litter = run.folder / ".step-000004.0123456789ab.part"
    litter.mkdir()
    (litter / "model.apr").write_bytes(b"half a mod")
    assert [item.step for item in checkpoints(run.folder)] == [2]
    run = make_run(resume=True, steps=6, save_every=2)
    train(run)
    assert not litter.exists()


@pytest.mark.parametrize(("keep", "left"), [(1, [6]), (2, [4, 6]), (0, [2, 4, 6])])
def test_the_newest_checkpoints_are_kept(make_run, keep, left):
    run = make_run(steps=6, save_every=2, keep=keep)
    train(run)
    assert [item.step for item in checkpoints(run.folder)] == left


@pytest.mark.rule("INV-TRAIN-007")
def test_a_nan_weight_stops_before_the_optimizer_step(make_run):
    run = make_run(steps=6, save_every=2)
    usual = run.display.step

    def poison(line):
        usual(line)
        if line.step == 3:
            with torch.no_grad():
                run.model.layers[1].mlp.up_proj.weight[0, 0] = float("nan")

            before.update({name: tensor.clone() for name, tensor in run.model.state_dict().items()})

    before = {}
    run.display.step = poison
    with pytest.raises(NonFiniteError, match=r"INV-TRAIN-007: step 4.*layers\.1\.mlp\.up_proj\.weight") as caught:
        train(run)
    assert same_bits(before, run.model.state_dict())
    assert f"--init {run.folder}/step-000002/model.apr" in caught.value.finding.hint
    assert [item.step for item in checkpoints(run.folder)] == [2]
    assert [line.step for line in read_metrics(run.folder / METRICS)] == [0, 1, 2, 3]


@pytest.mark.rule("INV-TRAIN-007")
def test_a_nan_gradient_keeps_the_state_before_the_step(make_run):
    values = {"steps": 6}
    whole = make_run("whole", **values)
    train(whole)
    run = make_run("broken", **values)
    parameter = run.model.layers[0].mlp.gate_proj.weight
    hook = parameter.register_hook(lambda grad: grad * float("inf") if run.step == 3 else grad)
    with pytest.raises(NonFiniteError, match=r"step 4.*gradients not finite: layers\.0\.mlp\.gate_proj\.weight\.") as caught:
        train(run)
    hook.remove()
    assert f"Start a new run with --init {run.folder}/step-000003/model.apr and a lower --lr" in caught.value.finding.hint
    assert [item.step for item in checkpoints(run.folder)] == [3]
    run = make_run("broken", resume=True, **values)
    train(run)
    assert_same_end(whole, run)


@pytest.fixture(params=["SIGTERM", "SIGHUP"])
def polite_signal(request):
    """A signal that nobody ignores, as nohup would make pytest do with SIGHUP."""
    number = signal.Signals[request.param]
    before = signal.signal(number, signal.SIG_DFL)
    yield number
    signal.signal(number, before)


def test_a_signal_finishes_the_step_saves_and_the_rest_is_exact(make_run, polite_signal):
    whole = make_run("whole")
    train(whole)
    run = make_run("stopped")
    usual = run.display.step

    def interrupt(line):
        usual(line)
        if line.step == 2:
            signal.raise_signal(polite_signal)

    run.display.step = interrupt
    outcome = train(run)
    assert outcome.stopped_by == polite_signal.name
    assert [item.step for item in checkpoints(run.folder)] == [2]
    run = make_run("stopped", resume=True)
    assert train(run).stopped_by is None
    assert_same_end(whole, run)


class LateStop(StopRequest):
    """A signal that comes right after the loop has looked for the n-th time."""

    def __init__(self, looks):
        super().__init__()
        self._looks = looks

    def __bool__(self):
        seen = super().__bool__()
        self._looks -= 1
        if self._looks == 0:
            self.name = "SIGTERM"
        return seen


@pytest.mark.parametrize("looks", range(1, 7))
def test_no_moment_for_a_signal_loses_a_step(make_run, monkeypatch, looks):
    monkeypatch.setattr("apr_train.training.loop.StopRequest", lambda _: LateStop(looks))
    run = make_run(steps=6, save_every=4, keep=1)
    outcome = train(run)
    assert outcome.stopped_by == ("SIGTERM" if run.step < 6 else None)
    assert [item.step for item in checkpoints(run.folder)] == [run.step]


def test_a_signal_before_step_1_saves_nothing(make_run):
    run = make_run()
    run.display.step = lambda line: signal.raise_signal(signal.SIGTERM)
    assert train(run).stopped_by == "SIGTERM"
    assert run.step == 0
    assert checkpoints(run.folder) == []


def test_a_second_signal_is_not_held_back(make_run):
    run = make_run("stopped")

    def interrupt(line):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    run.display.step = interrupt
    with pytest.raises(KeyboardInterrupt):
        train(run)
    assert checkpoints(run.folder) == []


@pytest.mark.rule("FALSIFY-APR-PRETRAIN-INIT-006")
def test_weights_that_know_nothing_stop_the_run_before_step_1(make_run):
    run = make_run()
    run.warm = True
    with pytest.raises(RunError, match=r"FALSIFY-APR-PRETRAIN-INIT-006.*at most 1\.159"):
        train(run)
    assert run.step == 0


@pytest.mark.rule("FALSIFY-APR-PRETRAIN-INIT-006")
def test_weights_that_know_something_pass(make_run, capsys):
    taught = make_run(steps=200, lr=1e-2)
    train(taught)
    run = make_run("warm", steps=1)
    run.model.load_state_dict(taught.model.state_dict())
    run.warm = True
    train(run)
    assert "FALSIFY-APR-PRETRAIN-INIT-006: validation loss" in capsys.readouterr().out
    assert run.step == 1


@pytest.mark.rule("FALSIFY-APR-PRETRAIN-INIT-006")
def test_a_cold_start_is_possible_when_asked_for(make_run, capsys):
    run = make_run(steps=1, allow_cold_init=True)
    run.warm = True
    train(run)
    assert "going on, as --allow-cold-init says" in capsys.readouterr().out
    assert run.step == 1


def test_no_steps_only_validate(make_run):
    run = make_run(steps=0)
    before = {name: tensor.clone() for name, tensor in run.model.state_dict().items()}
    assert train(run).last.val_loss is not None
    assert same_bits(before, run.model.state_dict())
    assert [line.step for line in read_metrics(run.folder / METRICS)] == [0]


def test_accumulation_weighs_every_target_token_the_same(make_run):
    """Document masks drop targets, so rows have different counts: a mean of means would be another number."""
    values = {"steps": 3, "document_mask": True, "clip_norm": 0.0}
    together = make_run("together", batch_size=6, **values)
    apart = make_run("apart", batch_size=2, accumulate=3, **values)
    for run in (together, apart):
        train(run)
    for one, other in zip(curve(together)[1:], curve(apart)[1:], strict=True):
        assert one.loss == pytest.approx(other.loss, rel=1e-5)
        assert one.grad_norm == pytest.approx(other.grad_norm, rel=1e-4)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 EiB"), MemoryError(), None])
def test_too_little_memory_is_an_error_that_says_what_to_do(make_run, monkeypatch, error):
    def step(*args, **kwargs):
        if error is not None:
            raise error
        torch.empty(1 << 50, dtype=torch.uint8)  # a petabyte: what torch itself says of a CPU

    monkeypatch.setattr("apr_train.training.loop.train_step", step)
    with pytest.raises(RunError, match=r"^step 1: not enough memory.*--batch-size.*--recompute"):
        train(make_run())


def test_another_fault_of_torch_stays_what_it_is(make_run, monkeypatch):
    def step(*args, **kwargs):
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr("apr_train.training.loop.train_step", step)
    with pytest.raises(RuntimeError, match=r"^shapes do not match$"):
        train(make_run())


@pytest.mark.parametrize("rng", [{}, {"cpu": 3}, {"cpu": "?"}, {"cpu": "AAAA"}])
def test_a_damaged_random_state_is_an_error_with_its_field(make_run, rng):
    run = make_run(steps=1)
    train(run)
    path = checkpoints(run.folder)[-1].path
    (path / STATE).write_text(json.dumps({**read_state(path), "rng": rng}))
    with pytest.raises(FormatError, match=r"state\.json \[rng\.cpu\]"):
        read_state(path)


@pytest.mark.parametrize("content", ["", "[]", '{"version": 2}', '{"version": 1, "step": 1, "tokens": 2, "data": 3}'])
def test_a_damaged_state_is_an_error_with_its_path(tmp_path, content):
    (tmp_path / STATE).write_text(content)
    with pytest.raises(FormatError, match=r"state\.json"):
        read_state(tmp_path)


def measured_as(run, monkeypatch, *losses):
    """The validations of a run give these losses, one after the other, the last one for ever."""
    values = iter([*losses, *itertools.repeat(losses[-1], 99)])
    usual = run._validated
    monkeypatch.setattr(type(run), "_validated", lambda self, line: evolve(usual(line), val_loss=next(values)))


def test_a_run_ends_after_validations_without_a_better_one_and_goes_on(make_run, monkeypatch):
    values = {"steps": 12, "val_every": 2, "early_stop": 2}
    run = make_run(**values)
    with monkeypatch.context() as patch:
        measured_as(run, patch, 3.0, 2.0, 2.5, 2.0, 1.0)
        outcome = train(run)
    assert run.step == 6
    assert outcome.ended_by == "--early-stop 2: 2 validations without a better validation loss than 2.0000"
    assert [item.step for item in checkpoints(run.folder)] == [6]
    run = make_run(resume=True, **values | {"early_stop": 0})
    assert train(run).ended_by is None
    assert run.step == 12


def test_a_run_ends_before_its_time_is_over_with_a_validation_and_goes_on_bit_for_bit(make_run):
    values = {"steps": 6, "val_every": 3}
    whole = make_run("whole", **values)
    train(whole)
    run = make_run("timed", **values, max_time="10s")
    now = itertools.count()
    run.time = TimeLimit(limit=4.5, clock=lambda: float(next(now)))
    outcome = train(run)
    assert 1 <= run.step < 6
    assert outcome.ended_by == "--max-time 10s"
    assert outcome.last.val_loss is not None
    stopped = run.step
    run = make_run("timed", resume=True, **values)
    train(run)
    ends = [checkpoints(item.folder)[-1].path for item in (whole, run)]
    for file in (MODEL, "optimizer.safetensors"):
        assert same_bits(load_file(ends[0] / file), load_file(ends[1] / file))
    measured = [line.step for line in read_metrics(run.folder / METRICS) if line.val_loss is not None]
    assert measured == sorted({0, stopped, 3, 6})


@pytest.mark.parametrize("keep", [1, 2])
def test_the_best_checkpoint_is_kept_besides_the_newest(make_run, monkeypatch, keep):
    run = make_run(steps=8, val_every=1, save_every=2, keep=keep, keep_best="val_loss")
    measured_as(run, monkeypatch, 1.0, 3.0, 2.5, 2.0, 2.1, 2.2, 2.3, 2.4, 2.5)
    train(run)
    assert [item.step for item in checkpoints(run.folder)] == [3, 8] if keep == 1 else [3, 6, 8]
    assert run.best().step == 3
    told = course(read_metrics(run.folder / METRICS), run.settings, run.best(), ())
    assert told == {"best": "step-000003, validation loss 2.0000; the last one, at step 8, is 2.5000"}


def test_without_the_wish_the_best_goes_with_the_oldest(make_run, monkeypatch):
    run = make_run(steps=8, val_every=1, save_every=2, keep=1)
    measured_as(run, monkeypatch, 3.0, 2.0, 1.0, 2.0)
    train(run)
    assert [item.step for item in checkpoints(run.folder)] == [8]
    assert run.best() is None


def test_the_average_is_that_of_torch(make_run):
    run = make_run(steps=5, lr=1e-2)
    run.averaged = AveragedWeights(run.model, 0.8)
    twin = AveragedModel(run.model, multi_avg_fn=get_ema_multi_avg_fn(0.8))
    twin.update_parameters(run.model)  # torch begins with a copy, at the first call
    usual = run.averaged.update

    def update(model):
        usual(model)
        twin.update_parameters(model)

    run.averaged.update = update
    train(run)
    trained = {name: value.detach().clone() for name, value in run.model.named_parameters()}
    with run.result_weights():
        for name, value in twin.module.named_parameters():
            assert torch.equal(value, run.model.get_parameter(name))
            assert not torch.equal(value, trained[name])
    assert all(torch.equal(value, run.model.get_parameter(name)) for name, value in trained.items())


def averaged(run, decay=0.5):
    run.averaged = AveragedWeights(run.model, decay)
    return run


@pytest.mark.parametrize("precision", ["fp32", "bf16-weights"])
def test_an_averaging_run_goes_on_bit_for_bit(make_run, precision):
    values = {"precision": precision, "steps": 9, "save_every": 2, "val_every": 3, "keep": 1, "lr": 1e-2}
    whole = averaged(make_run("whole", **values))
    train(whole)
    run = averaged(make_run("broken", **values))
    kill_at(run, 7, "metrics")
    with pytest.raises(Interrupt):
        train(run)
    run = averaged(make_run("broken", resume=True, **values))
    latest = checkpoints(run.folder)[-1].path
    of_result, kept = load_file(latest / MODEL), load_file(latest / AVERAGING)
    run.averaged.restore(run.model, latest)
    name = "layers.1.mlp.up_proj.weight"
    assert torch.equal(kept[f"averaged.{name}"].to(of_result[name].dtype), of_result[name])
    assert torch.equal(kept[f"trained.{name}"], run.model.get_parameter(name))
    assert kept[f"averaged.{name}"].dtype == torch.float32
    train(run)
    assert_same_end(whole, run)
    ends = [load_file(checkpoints(item.folder)[-1].path / AVERAGING) for item in (whole, run)]
    assert same_bits(*ends)


def test_both_losses_are_measured_and_the_average_is_what_is_judged(make_run):
    run = averaged(make_run(steps=6, lr=2e-2, val_every=3), decay=0.9)
    train(run)
    first, *later = [line for line in read_metrics(run.folder / METRICS) if line.val_loss is not None]
    assert first.trained_val_loss is None
    assert all(line.trained_val_loss != line.val_loss for line in later)
    assert run._held_out().loss == later[-1].trained_val_loss
    with run.result_weights():
        assert run._held_out().loss == later[-1].val_loss


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda tensors: tensors.pop("trained.norm.weight"), "of another model, found no trained.norm.weight"),
        (lambda tensors: tensors.update({"averaged.norm.weight": torch.zeros(3)}), r"averaged.norm.weight does not fit"),
        (lambda tensors: tensors.update({"averaged.more": torch.zeros(3)}), "found averaged.more, which has no parameter"),
        (
            lambda tensors: tensors.update({"trained.norm.weight": torch.zeros(32).bfloat16()}),
            "trained.norm.weight does not fit",
        ),
    ],
)
def test_averages_of_another_model_are_refused_and_change_nothing(make_run, tmp_path, change, problem):
    run = averaged(make_run())
    tensors = {name: value.clone() + 1 for name, value in run.averaged.tensors(run.model).items()}
    change(tensors)
    save_file(tensors, tmp_path / AVERAGING)
    before = {name: value.clone() for name, value in run.model.state_dict().items()}
    with pytest.raises(RunError, match=problem):
        run.averaged.restore(run.model, tmp_path)
    assert same_bits(before, dict(run.model.state_dict()))


def test_a_spike_changes_nothing_but_the_data_goes_on(make_run):
    run = make_run(steps=3)
    told = []
    run.display.say = told.append
    run.spikes = SpikeGuard(6)
    run.averaged = AveragedWeights(run.model, 0.5)
    run.spikes.judge = lambda loss, norm: "loss 9 is odd" if run.step == 1 else None
    seen = []
    usual = run.display.step

    def step(line):
        usual(line)
        states = (run.model.state_dict(), run.averaged.tensors(run.model))
        seen.append([{name: value.clone() for name, value in state.items()} for state in states])

    run.display.step = step
    train(run)
    assert all(same_bits(before, after) for before, after in zip(seen[1], seen[2], strict=True))
    assert not same_bits(seen[2][0], seen[3][0])
    assert next(text for text in told if "skipped" in text) == "step 2 skipped, as --skip-spikes 0 says: loss 9 is odd"
    assert [line.skipped for line in read_metrics(run.folder / METRICS)] == [None, None, 1, None]
    assert run.stream.rows_read == 3 * 2
    assert {int(value["step"]) for part in run.optimizer.parts for value in part.state.values()} == {2}


def test_a_guarded_run_goes_on_bit_for_bit(make_run, monkeypatch):
    monkeypatch.setattr("apr_train.training.spikes.ENOUGH", 3)
    values = {"steps": 14, "save_every": 6, "lr": 1e-2, "skip_spikes": 0.5}
    runs = []
    for name in ("whole", "broken"):
        run = make_run(name, **values)
        run.spikes = SpikeGuard(0.5)
        runs.append(run)
    train(runs[0])
    kill_at(runs[1], 8, "metrics")
    with pytest.raises(Interrupt):
        train(runs[1])
    run = make_run("broken", **values)
    run.spikes = SpikeGuard(0.5)
    make_run.go_on(run)
    train(run)
    assert_same_end(runs[0], run)
    skipped = [line.step for line in read_metrics(run.folder / METRICS) if line.skipped]
    assert any(step > 6 for step in skipped)
    assert '"spikes"' in (checkpoints(run.folder)[-1].path / STATE).read_text()
