"""What a run is about to be, before anything of it is made; and what it reads and writes, made from that."""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

import torch
from attrs import frozen

from apr_train.checkpoint.header import Header
from apr_train.data.batch import Batch
from apr_train.data.corpus import Corpus
from apr_train.data.stream import BatchStream, validation_batches
from apr_train.data.tokenizer import Tokenizer
from apr_train.family.card import Layout, Objective
from apr_train.family.config import ModelConfig
from apr_train.family.plugin import Family
from apr_train.preflight import Report
from apr_train.run.events import Say
from apr_train.run.identity import Identity
from apr_train.run.provenance import origin_of
from apr_train.run.settings import Settings
from apr_train.training.model_file import ModelFile
from apr_train.training.run import HeldOut


@frozen(kw_only=True)
class Inputs:
    """What is known before anything of the run is on disk or in memory."""

    settings: Settings
    device: torch.device
    header: Header | None
    report: Report
    family: Family
    config: ModelConfig
    objective: Objective
    tokenizer: Tokenizer
    corpus: Corpus
    identity: Identity


def model_file(inputs: Inputs) -> ModelFile:
    """Writes the run's model.apr."""
    return ModelFile(
        info=inputs.family.info,
        config=inputs.config,
        name_map=inputs.family.map_tensor_names(inputs.config, Layout()),
        header=inputs.header,
        tokenizer=inputs.tokenizer.spec,
        origin=origin_of(inputs.settings, inputs.identity, inputs.family, torch=str(torch.__version__)),
    )


def training_stream(inputs: Inputs, say: Say) -> BatchStream:
    """The training batches, from the first one on; `say` is told when an epoch ends.

    Raises:
        DataError: when the corpus is too small for one row.
    """
    data = inputs.settings.data
    return BatchStream(
        inputs.corpus.train,
        objective=inputs.objective,
        sequence_length=cast(int, data.sequence_length),
        batch_size=cast(int, data.batch_size),
        seed=inputs.settings.run.seed,
        tokenizer=inputs.tokenizer,
        document_mask=data.document_mask,
        mask_probability=data.mask_probability,
        on_epoch=lambda epochs: say(f"epoch {epochs} done: the corpus starts again in a new order"),
    )


def held_out(inputs: Inputs) -> HeldOut:
    """Gives the validation batches."""
    data = inputs.settings.data
    batch_size = cast(int, data.batch_size)

    def batches() -> Iterable[Batch]:
        return validation_batches(
            inputs.corpus.validation,
            objective=inputs.objective,
            sequence_length=cast(int, data.sequence_length),
            batch_size=batch_size,
            tokenizer=inputs.tokenizer,
            document_mask=data.document_mask,
            mask_probability=data.mask_probability,
            max_rows=data.val_batches * batch_size,
        )

    return batches
