"""The tensors of a model among the entries of an `.apr` index: the reference implementation puts other things there, too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs
from attrs import frozen

from apr_train import rules
from apr_train.checkpoint.apr.keys import FORMAT
from apr_train.checkpoint.apr.layout import is_placeholder
from apr_train.checkpoint.header import TensorInfo
from apr_train.checkpoint.rope_rows import TRAINER_FORMAT
from apr_train.checkpoint.tie import embedding_name
from apr_train.errors import Finding, FormatError

TRAINER_STATE = "__training__."
"""Prefix of the tensors in which aprender's trainers keep their own state: moments of the optimizer, the step."""


@frozen(kw_only=True)
class ModelTensors:
    """An index without what is not of the model, and what there is to say of that."""

    tensors: Mapping[str, TensorInfo]
    tied_head: str | None
    """The entry of no bytes that declares the output head tied to the embedding."""
    notes: tuple[Finding, ...]


def model_tensors(path: str, metadata: Mapping[str, Any], index: Mapping[str, TensorInfo]) -> ModelTensors:
    """Tell a model's tensors from declared ties and trainer's state; read a trainer's biases of one row as vectors."""
    tied_head = next((name for name, tensor in index.items() if is_tied_head(tensor)), None)
    state = [name for name in index if name.startswith(TRAINER_STATE)]
    tensors = {name: tensor for name, tensor in index.items() if name != tied_head and not name.startswith(TRAINER_STATE)}
    rows = []
    if metadata.get(FORMAT) == TRAINER_FORMAT:
        rows = [name for name, tensor in tensors.items() if _is_bias_row(tensor)]
    tensors |= {name: attrs.evolve(tensors[name], shape=tensors[name].shape[1:]) for name in rows}
    notes = (*_state_notes(path, state), *(_row_note(path, index[name]) for name in rows))
    return ModelTensors(tensors=tensors, tied_head=tied_head, notes=notes)


def is_tied_head(tensor: TensorInfo) -> bool:
    """Whether an entry of the index is an output head that is only declared: its shape, and no bytes."""
    return is_placeholder(tensor.name, tensor.dtype, tensor.shape, tensor.nbytes)


def check_tied_head(path: object, index: Mapping[str, TensorInfo]) -> None:
    """Check that a declared output head has the shape of the embedding that it stands for.

    Raises:
        FormatError: for another shape, or when there is no embedding.
    """
    for tensor in index.values():
        if not is_tied_head(tensor):
            continue
        embedding = embedding_name(index)
        shape = None if embedding is None else index[embedding].shape
        if tensor.shape != shape:
            raise FormatError(
                "an output head of 0 bytes declares a tie to an embedding of another shape",
                path=path,
                field=f"tensor {tensor.name}",
                expected="no embedding in the file, so a head with data" if shape is None else str(list(shape)),
                found=list(tensor.shape),
            )


def _is_bias_row(tensor: TensorInfo) -> bool:
    return tensor.name.endswith(".bias") and len(tensor.shape) == 2 and tensor.shape[0] == 1


def _state_notes(path: str, names: list[str]) -> list[Finding]:
    if not names:
        return []
    return [
        Finding(
            rule=rules.PREFLIGHT_022,
            subject=path,
            field=f"{TRAINER_STATE}*",
            problem=f"the state of the trainer that wrote the file is left out ({len(names)} tensors)",
            expected="weights only",
            found=", ".join(names[:4]) + (", …" if len(names) > 4 else ""),
            hint="A run from this file starts with a fresh optimizer.",
            severity="warning",
        )
    ]


def _row_note(path: str, tensor: TensorInfo) -> Finding:
    return Finding(
        rule=rules.PREFLIGHT_022,
        subject=path,
        field=tensor.name,
        problem="a bias that is stored as one row is read as a vector",
        expected=str(list(tensor.shape[1:])),
        found=str(list(tensor.shape)),
        hint="aprender's trainers write them so; the values and their order are the same.",
        severity="warning",
    )
