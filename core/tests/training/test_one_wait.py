"""What makes a GPU's host wait: once a step. On a CPU the same calls are counted; on CUDA torch counts them itself."""

import warnings

import pytest
import torch
from apr_train.data.objectives import OBJECTIVES
from apr_train.model.device import PRECISIONS
from apr_train.training.step import train_step

WAITS = ("item", "tolist", "__float__", "__int__", "__bool__", "__index__", "nonzero", "cpu", "numpy")


def step_of(run, batches, number=2):
    options = {"objective": OBJECTIVES["causal-lm"], "precision": PRECISIONS["fp32"], "clip_norm": 1e-3, "step": number}
    return train_step(run.model, run.optimizer, batches, **options)


def partly_learnt(batch):
    """The batch with targets that do not count, of which it knows."""
    targets = batch.targets.clone()
    targets[:, ::3] = -100
    return type(batch)(tokens=batch.tokens, targets=targets, target_count=int((targets != -100).sum()))


def test_values_are_read_once_a_step(make_run, monkeypatch):
    run = make_run()
    batches = [run.stream.next_batch(), partly_learnt(run.stream.next_batch())]
    step_of(run, batches)  # the optimizer's state is made
    read = []
    for name in WAITS:
        own = getattr(torch.Tensor, name)
        monkeypatch.setattr(torch.Tensor, name, lambda *args, own=own, name=name, **kw: read.append(name) or own(*args, **kw))
    step_of(run, batches)
    monkeypatch.undo()
    assert read == ["tolist"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_step_on_cuda_waits_once(make_run):
    run = make_run()
    run.model.cuda()
    batches = [run.stream.next_batch().to("cuda"), partly_learnt(run.stream.next_batch()).to("cuda")]
    step_of(run, batches)
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            step_of(run, batches)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len([item for item in seen if "synchroniz" in str(item.message)]) == 1
