"""What one process learns, two and three learn, too: losses, updates, and resumes on another number of them."""

import pytest
from apr_train.run.folder import METRICS, MODEL, OPTIMIZER, STATE, checkpoints
from apr_train.run.metrics import read_metrics

from tests.processes.compared import assert_same_losses, case, cosine, curve, launch, resumed
from tests.processes.runs import run_case

CASES = {
    "llama370m": {"arch": "llama370m", "accumulate": 2, "recompute": True, "recompute_keep": "products"},
    "documents": {"arch": "qwen2", "document_mask": True, "batch_size": 3},
    "masked": {"arch": "codebert", "vocab_size": 340, "recompute": True},
}
OTHERS = {
    "bf16": {"arch": "llama370m", "precision": "bf16", "steps": 8, "accumulate": 2},
    "bf16-weights": {"arch": "llama370m", "precision": "bf16-weights", "steps": 8, "accumulate": 2},
}


@pytest.fixture(scope="module")
def runs(place):
    """Runs of one process here, of two and three under torchrun."""
    for name, values in CASES.items():
        run_case(case(place, name, values, 1))
    two = [case(place, name, values, 2) for name, values in CASES.items()]
    poisoned = {**case(place, "poisoned", CASES["masked"], 2), "poison": 1}
    dropping = {count: {**case(place, "dropping", CASES["masked"], count), "dropout": True} for count in (2, 3)}
    launch(2, [*two, dropping[2], resumed(place, "documents", 2, 2), poisoned], place)
    launch(3, [case(place, "documents", {**CASES["documents"], "shard": "none"}, 3), dropping[3]], place)
    run_case(resumed(place, "documents", 2, 1))
    return place / "runs"


@pytest.fixture(scope="module")
def more_runs(runs, place):
    """With what takes longer: other precisions, another objective on three, and a resume on more."""
    for name, values in OTHERS.items():
        run_case(case(place, name, values, 1))
    two = [case(place, name, values, 2) for name, values in OTHERS.items()]
    launch(2, [*two, resumed(place, "llama370m", 1, 2), resumed(place, "documents", 3, 2)], place)
    launch(3, [case(place, "masked", {**CASES["masked"], "shard": "none"}, 3), resumed(place, "documents", 1, 3)], place)
    launch(4, [case(place, "llama370m", {**CASES["llama370m"], "shard": "hybrid", "replicate": 2}, 4)], place)
    return runs


def assert_parity(runs, name, count):
    one, several = runs / f"{name}-1", runs / f"{name}-{count}"
    assert_same_losses(one, several, {"bf16": 1e-3, "bf16-weights": 2e-2}.get(name, 1e-5))
    if name != "bf16-weights":
        assert cosine(one / "start.apr", one / MODEL, several / MODEL) >= (0.999 if name == "bf16" else 0.9999)


def test_dropout_does_not_depend_on_the_number_of_processes(runs):
    """With blocks that are computed again; without dropout the losses are others."""
    two, three, without = (runs / name for name in ("dropping-2", "dropping-3", "masked-2"))
    assert_same_losses(two, three, 1e-5)
    with pytest.raises(AssertionError):
        assert_same_losses(two, without, 1e-3)


def assert_goes_on(runs, name, before, after):
    whole, half = runs / f"{name}-{before}", runs / f"{name}-{before}-{after}"
    assert_same_losses(whole, half, 1e-5)
    assert cosine(runs / f"{name}-1" / "start.apr", whole / MODEL, half / MODEL) >= 0.9999


@pytest.mark.parametrize(("name", "count"), [*((name, 2) for name in CASES), ("documents", 3)])
def test_several_processes_learn_what_one_learns(runs, name, count):
    assert_parity(runs, name, count)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "count"), [*((name, 2) for name in OTHERS), ("masked", 3), ("llama370m", 4)])
def test_several_processes_learn_what_one_learns_in_other_ways(more_runs, name, count):
    assert_parity(more_runs, name, count)


def test_a_resume_on_as_many_processes_is_exact(runs):
    whole, half = runs / "documents-2", runs / "documents-2-2"
    assert curve(whole) == curve(half)
    for name in (MODEL, f"step-000020/{OPTIMIZER}", f"step-000020/{STATE}"):
        assert (whole / name).read_bytes() == (half / name).read_bytes()


def test_a_run_goes_on_with_one_process(runs):
    assert_goes_on(runs, "documents", 2, 1)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "before", "after"), [("documents", 1, 3), ("documents", 3, 2), ("llama370m", 1, 2)])
def test_a_run_goes_on_with_more_or_fewer_processes(more_runs, name, before, after):
    assert_goes_on(more_runs, name, before, after)


def test_a_value_that_is_not_finite_on_one_process_stops_all_before_the_update(runs):
    """The error names the process; the state of the step before is saved."""
    told = [(runs.parent / f"poisoned-2-{rank}.error").read_text() for rank in range(2)]
    assert told[0] == told[1]
    assert "INV-TRAIN-007: step 3" in told[0]
    assert "the rows of rank 1" in told[0]
    assert "gradients not finite: embeddings" in told[0]
    assert [item.step for item in checkpoints(runs / "poisoned-2")] == [2]
    assert read_metrics(runs / "poisoned-2" / METRICS)[-1].step == 2
