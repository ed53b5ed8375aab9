"""What only a GPU can show of a run: the weights of --init arrive there, and a resume goes on bit for bit."""

import pytest
import torch
from apr_train.run.metrics import read_metrics

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


def first_loss(place, taught, device, precision):
    name = f"{device}-{precision}"
    place.train("--init", taught, "--steps", "0", "--device", device, "--precision", precision, "--run", name)
    return read_metrics(place.run(name) / "metrics.jsonl")[0].val_loss


@pytest.mark.rule("FALSIFY-APR-PRETRAIN-INIT-CUDA-001")
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-4), ("bf16", 2e-2), ("bf16-weights", 2e-2)])
def test_the_first_loss_is_the_cpus(place, taught, precision, tolerance):
    expected = first_loss(place, taught, "cpu", precision)
    assert expected < 3  # it was taught: fresh weights are at ln(vocabulary)
    assert first_loss(place, taught, "cuda", precision) == pytest.approx(expected, rel=tolerance)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "bf16-weights"])
def test_a_deterministic_run_that_is_resumed_ends_the_same(place, taught, precision):
    args = ("--init", taught, "--steps", "6", "--save-every", "3", "--accumulate", "2", "--device", "cuda", "--deterministic")
    for name in ("whole", "back"):
        place.train(*args, "--precision", precision, "--run", name)
    place("--resume", "runs/back/step-000003")
    place.assert_same_end("whole", "back", step=6)
