"""What a run decides about its data where the user said nothing: for a training, and for whoever makes its tokens before."""

from __future__ import annotations

from datetime import date

from attrs import evolve

from apr_train.data.objectives import Objective
from apr_train.data.packing import with_packing
from apr_train.run.settings import DataSettings

ROW = {"cpu": 512, "cuda": 1024}
"""Tokens of a row by the kind of device."""


def default_row(device: str) -> int:
    """Tokens of a row on a device, by its name, for a model that can hold as many."""
    return ROW.get(device.partition(":")[0], ROW["cpu"])


def decided_data(data: DataSettings, objective: Objective, *, device: str, positions: int | None) -> DataSettings:
    """The settings with packing, length of a row and date decided.

    Args:
        data: as the user gave them.
        objective: decides where the user has not.
        device: by name, for the length of a row.
        positions: that the model can hold; None: not known.
    """
    row = default_row(device)
    length = data.sequence_length or (row if positions is None else min(row, positions))
    today = data.chat_date or date.today().isoformat()
    return evolve(
        with_packing(data, objective.packing),
        sequence_length=length,
        chat_date=today if "chat" in objective.source_kinds else data.chat_date,
    )
