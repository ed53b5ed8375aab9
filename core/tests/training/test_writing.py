"""Checkpoints that are written while the loop goes on: the bytes of those that it waits for, whole or not there."""

import threading

import pytest
from apr_train.errors import OutputError
from apr_train.run.folder import METRICS, checkpoints
from apr_train.run.metrics import read_metrics
from apr_train.training import writing
from apr_train.training.averaging import AveragedWeights
from apr_train.training.loop import train

WAYS = {
    "fp32": {},
    "bf16-weights": {"precision": "bf16-weights"},
    "averaged": {"ema": 0.5},
    "best": {"keep_best": "val_loss", "val_every": 1, "keep": 2, "save_every": 3, "lr": 0.3},
}


def made(make_run, folder, **values):
    run = make_run(folder, **{"steps": 9, "save_every": 2, "keep": 0, "lr": 1e-2, **values})
    if run.settings.run.ema is not None:
        run.averaged = AveragedWeights(run.model, run.settings.run.ema)
    return run


def held_up(run, *, steps):
    """Let the writer of a checkpoint begin only when so many more steps are done, where the loop does not wait for it."""
    write, reached = run.write_model, {number: threading.Event() for number in range(run.settings.run.steps + steps + 1)}
    usual = run.display.step

    def step(line):
        usual(line)
        reached[line.step].set()

    def late(path, weights, *, step):
        behind = threading.current_thread() is not threading.main_thread()
        assert not behind or reached[step + steps].wait(30)
        write(path, weights, step=step)

    run.display.step, run.write_model = step, late


def contents(run):
    return {path.relative_to(run.folder): path.read_bytes() for path in run.folder.rglob("step-*/*")}


@pytest.mark.parametrize("way", WAYS)
def test_a_checkpoint_that_is_written_later_has_the_bytes_of_its_step(make_run, way):
    waiting = made(make_run, "waiting", **WAYS[way], async_save="off")
    train(waiting)
    going_on = made(make_run, "going on", **WAYS[way], async_save="on")
    held_up(going_on, steps=1)
    train(going_on)
    assert contents(going_on) == contents(waiting)
    assert len(checkpoints(waiting.folder)) >= 2


def test_steps_go_on_while_a_checkpoint_is_written(make_run):
    run = made(make_run, "run", steps=12, save_every=4, async_save="on")
    held_up(run, steps=3)
    train(run)  # a writer that finds the loop waiting for it fails
    assert [item.step for item in checkpoints(run.folder)] == [4, 8, 12]


def test_a_checkpoint_that_cannot_be_written_ends_the_run_at_the_next_step(make_run):
    run = made(make_run, "run", keep=1, async_save="on")
    write = run.write_model

    def full(path, weights, *, step):
        if step == 4:
            raise OutputError("cannot be written (No space left on device)", where=path)
        write(path, weights, step=step)

    run.write_model = full
    with pytest.raises(OutputError, match="No space left"):
        train(run)
    assert [item.step for item in checkpoints(run.folder)] == [2]
    assert read_metrics(run.folder / METRICS)[-1].step in (5, 6)
    assert not list(run.folder.glob("*.part"))


def test_a_fault_of_the_loop_leaves_a_whole_checkpoint(make_run):
    run = made(make_run, "run", async_save="on")
    held_up(run, steps=0)
    usual = run.display.step

    def step(line):
        usual(line)
        if line.step == 3:
            raise KeyboardInterrupt  # as a program around the run sees it, whose handlers stay

    run.display.step = step
    with pytest.raises(KeyboardInterrupt):
        train(run, signals=())
    assert [item.step for item in checkpoints(run.folder)] == [2]
    assert not run.writing or run.writing.is_over


def test_without_memory_for_a_copy_steps_wait_and_that_is_said_once(make_run, monkeypatch, capsys):
    monkeypatch.setattr(writing, "free_memory", lambda device: 1000)
    run = made(make_run, "run")
    begun = []
    monkeypatch.setattr(run.processes, "write_behind", lambda *arguments: begun.append(arguments))
    train(run)
    assert not begun
    assert capsys.readouterr().out.count("steps wait for checkpoints") == 1
    assert [item.step for item in checkpoints(run.folder)] == [2, 4, 6, 8, 9]


def test_a_copy_has_every_tensor_that_changes_once(make_run):
    run = made(make_run, "run", ema=0.5)
    run.model.embed_tokens.requires_grad_(requires_grad=False)
    parameters = list(run.model.parameters())
    copies = writing.copied_pieces([*parameters, parameters[1].detach()])
    assert copies[0].data_ptr() == parameters[0].data_ptr()  # frozen
    assert copies[1].data_ptr() not in {parameter.data_ptr() for parameter in parameters}
    assert copies[1].data_ptr() == copies[-1].data_ptr()
    trained = sum(parameter.nbytes for parameter in parameters[1:])
    assert writing.bytes_to_copy([*parameters, parameters[1].detach()]) == trained
