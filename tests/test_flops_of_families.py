"""The operations of a step that each family's config gives are those that torch counts in its model."""

import numpy as np
import pytest
import torch
from apr_train.data.batch import IGNORED, Batch
from apr_train.data.objectives import OBJECTIVES
from apr_train.family.flops import training_flops
from apr_train.family.registry import Registry
from apr_train.model.attention import load_backend
from apr_train.model.build import build_model
from apr_train.model.device import PRECISIONS
from apr_train.training.step import train_step
from torch.utils.flop_counter import FlopCounterMode


class NoOptimizer:
    """Of a step whose operations are counted, nothing but the passes."""

    def zero_grad(self, *, set_to_none): ...

    def step(self): ...


@pytest.mark.parametrize("name", ["llama370m", "qwen2", "codebert"])
def test_the_operations_of_a_step_are_those_that_torch_counts(name):
    family = Registry.discover().family(name)
    config = family.build_config("tiny", None)
    model = build_model(family.build_model, config, load_backend("eager")).to_empty(device="cpu")
    model.initialize(torch.Generator().manual_seed(0))
    tokens = torch.from_numpy(np.random.default_rng(0).integers(4, config.vocab_size, (2, 16)))
    targets = torch.where(torch.arange(16) % 2 == 0, tokens, IGNORED)
    batch = Batch(tokens=tokens, targets=targets, target_count=16)
    how = {"objective": OBJECTIVES[family.info.objectives[0]], "precision": PRECISIONS["fp32"], "clip_norm": 0.0, "step": 1}
    counter = FlopCounterMode(display=False)
    with counter:
        train_step(model, NoOptimizer(), [batch], **how)
    assert training_flops(config, length=16).of_step(32, 16) == counter.get_total_flops()
