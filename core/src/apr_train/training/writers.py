"""Who writes a run's weights: into a model's file, or into an adapter's."""

from __future__ import annotations

import torch

from apr_train.checkpoint.given_name import hub_name
from apr_train.family.card import Layout
from apr_train.preflight.adapter_rules import chosen_sites
from apr_train.run.folder import name_of
from apr_train.run.provenance import origin_of
from apr_train.training.adapter_file import TASKS, AdapterFile
from apr_train.training.inputs import Inputs
from apr_train.training.model_file import ModelFile


def model_file(inputs: Inputs) -> ModelFile:
    """The writer of the run's model.apr."""
    family, config = inputs.cleared.family, inputs.cleared.config
    return ModelFile(
        info=family.info,
        config=config,
        name_map=family.map_tensor_names(config, Layout()),
        header=inputs.header,
        tokenizer=inputs.tokenizer.spec,
        origin=origin_of(inputs.decided.settings, inputs.identity, family, torch=str(torch.__version__), added=inputs.added),
    )


def adapter_file(inputs: Inputs) -> AdapterFile | None:
    """The writer of the run's adapter; None for a run that trains all weights."""
    cleared, settings = inputs.cleared, inputs.decided.settings
    if settings.lora.lora_rank is None or settings.model.init is None:
        return None
    return AdapterFile(
        sites=chosen_sites(settings.lora, cleared.family, cleared.config),
        name_map=cleared.family.map_tensor_names(cleared.config, Layout()),
        base_name=name_of(settings.model.init),
        base_id=hub_name(settings.model.init),
        base_hash=inputs.identity.init or "",
        tokenizer=inputs.tokenizer.spec,
        task=TASKS.get(cleared.objective.kind),
    )
