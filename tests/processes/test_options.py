"""What a run can be told beside the usual, on several processes: as one does it, decided by one for all."""

from pathlib import Path

import pytest
from apr_train.checkpoint.open import open_checkpoint
from apr_train.run.folder import AVERAGING, MACHINE, METRICS, MODEL, OPTIMIZER, checkpoints
from apr_train.run.machine import read_machine
from apr_train.run.metrics import read_metrics

from tests.processes.compared import assert_same_losses, case, cosine, curve, launch, resumed, started
from tests.processes.runs import run_case

pytestmark = pytest.mark.slow  # minutes of processes that start
UPDATES = Path(__file__).with_name("updates.py")
FROZEN = {"pattern": "*norm*", "frozen": True}
CASES = {
    "muon": {"arch": "qwen2", "optimizer": "muon", "group": [FROZEN, {"pattern": "*embed*", "lr": 3e-4}], "accumulate": 2},
    "averaged": {"arch": "llama370m", "ema": 0.9, "val_every": 5, "keep_best": "val_loss", "keep": 3, "skip_spikes": 6.0},
    "stopped": {"arch": "codebert", "vocab_size": 340, "early_stop": 2, "val_every": 2, "lr": 0.3},
    "muon-bf16": {"arch": "llama370m", "optimizer": "muon", "precision": "bf16-weights", "steps": 8},
}
BASED = {
    "adapter": {"lora_rank": 2, "steps": 6},
    "grown": {"add_tokens": "tokens.txt", "steps": 6},
}


@pytest.fixture(scope="module")
def runs(place):
    tokens = place / "tokens.txt"
    tokens.write_text("<|one|>\n<|two|>\n<|three|>\n")
    for name, values in CASES.items():
        run_case(case(place, name, values, 1))
    base = {"init": str(place / "runs" / "averaged-1" / MODEL), "arch": "llama370m", "preset": None, "vocab_size": None}
    based = {name: {**base, **values} for name, values in BASED.items()}
    based["grown"]["add_tokens"] = str(tokens)
    for name, values in based.items():
        run_case(case(place, name, values, 1))
    two = [case(place, name, values, 2) for name, values in (CASES | based).items()]
    two.append(case(place, "waiting", {**CASES["averaged"], "async_save": "off"}, 2))
    broken = {**case(place, "broken", {"arch": "llama370m"}, 2), "breaks": 1}
    launch(2, [*two, resumed(place, "muon", 2, 2), resumed(place, "averaged", 2, 2), broken], place)
    run_case(resumed(place, "averaged", 2, 1))
    return place / "runs"


def test_updates_of_pieces_are_those_of_the_whole(tmp_path):
    started(3, tmp_path, UPDATES, timeout=120)


@pytest.mark.parametrize("name", [name for name in (*CASES, *BASED) if name != "stopped"])
def test_several_processes_learn_what_one_learns(runs, name):
    """Muon multiplies in bfloat16, in which the last bits of a gradient that was summed otherwise are seen."""
    one, several = runs / f"{name}-1", runs / f"{name}-2"
    assert_same_losses(one, several, {"muon": 1e-3, "muon-bf16": 2e-2}.get(name, 1e-5))
    if name in ("muon", "averaged"):
        assert cosine(one / "start.apr", one / MODEL, several / MODEL) >= 0.9999


@pytest.mark.parametrize("name", ["muon", "averaged"])
def test_a_resume_on_as_many_processes_is_exact(runs, name):
    whole, half = runs / f"{name}-2", runs / f"{name}-2-2"
    assert curve(whole) == curve(half)
    files = [MODEL, f"step-000020/{OPTIMIZER}", *([f"step-000020/{AVERAGING}"] if name == "averaged" else [])]
    for file in files:
        assert (whole / file).read_bytes() == (half / file).read_bytes()


def test_a_checkpoint_has_the_same_bytes_whether_steps_went_on_or_not(runs):
    going_on, waiting = (
        {path.relative_to(runs / name): path.read_bytes() for path in (runs / name).rglob("step-*/*")}
        for name in ("averaged-2", "waiting-2")
    )
    assert len(going_on) == 4 * len(checkpoints(runs / "averaged-2")) > 4
    assert going_on == waiting


def test_averages_go_on_with_one_process(runs):
    assert_same_losses(runs / "averaged-2", runs / "averaged-2-1", 1e-5)
    assert cosine(runs / "averaged-1" / "start.apr", runs / "averaged-2" / MODEL, runs / "averaged-2-1" / MODEL) >= 0.9999


def test_what_is_frozen_stays(runs):
    with open_checkpoint(runs / "muon-1" / "start.apr") as start, open_checkpoint(runs / "muon-2" / MODEL) as end:
        same = {name for name in start.header.tensors if start.read_raw(name) == end.read_raw(name)}
    assert same == {name for name in start.header.tensors if "norm" in name}


def test_a_run_stops_early_on_all(runs):
    one, several = (read_metrics(runs / f"stopped-{count}" / METRICS)[-1].step for count in (1, 2))
    assert one == several < 20
    assert [item.step for item in checkpoints(runs / "stopped-2")][-1] == several


def test_the_machine_is_all_processes(runs):
    """Its peak is that of all devices, against which the MFU is told."""
    machine = read_machine(runs / "muon-2" / MACHINE)
    line = read_metrics(runs / "muon-2" / METRICS)[-1]
    assert line.processes == 2
    assert line.mfu == pytest.approx(machine.mfu(tokens=2 * 5 * 32, targets=line.targets, seconds=line.step_time))


def test_weights_that_are_not_finite_on_one_process_are_saved_by_none(runs):
    told = [(runs.parent / f"broken-2-{rank}.error").read_text() for rank in range(2)]
    assert told[0] == told[1]
    assert "the weights are not finite" in told[0]
    assert "Weights that are not finite: embed_tokens.weight" in told[0]
    assert not checkpoints(runs / "broken-2")
