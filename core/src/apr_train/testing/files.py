"""A family's model from a real file, the way that a run loads it."""

from __future__ import annotations

import os

import torch
from torch import nn

from apr_train.checkpoint.open import open_checkpoint
from apr_train.checkpoint.tie import resolve_tie
from apr_train.family.load_plan import plan_load
from apr_train.family.plugin import Family
from apr_train.model.load import LoadReport, load_weights
from apr_train.preflight.tensor_rules import layout_of
from apr_train.testing.models import meta_model


def model_from_file(
    family: Family, path: str | os.PathLike[str], *, dtype: torch.dtype | None = None, attention: str = "eager", seed: int = 0
) -> tuple[nn.Module, LoadReport]:
    """Open a checkpoint (any container, file or folder), read the config from it, build, load; in evaluation mode.

    What a bare file lacks is freshly initialised from `seed`.

    Raises:
        AprTrainError: whatever a run would say about the file.
    """
    with open_checkpoint(path) as checkpoint:
        header = resolve_tie(checkpoint)
        config = family.build_config(header=header)
        name_map = family.map_tensor_names(config, layout_of(header, family))
        plan = plan_load(name_map, header.tensors, where=header.path)
        model = meta_model(family, config, attention=attention)
        report = load_weights(model, checkpoint, plan, dtype=dtype, generator=torch.Generator().manual_seed(seed))
    return model.eval(), report
