"""A config's fields as a file of the family names them: the inverse of `apr_train.family.reading`. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

from apr_train.family.card import FamilyInfo
from apr_train.family.config import ModelConfig
from apr_train.family.layer_patterns import SWITCH, reads_windows
from apr_train.family.reading import AUX_LOSS, AUX_SWITCH, QUIET


def said(config: ModelConfig, info: FamilyInfo) -> dict[str, Any]:
    """The fields that a file of the family names, None among them, with transformers' switches of a window and of a router.

    What the architecture decides is left out where a file of a Llama would not mention it; what the family's files decide is
    there at every value, since a class may take another for a key that is absent.
    """
    values, quiet = config.to_dict(), [item for item in attrs.fields(type(config)) if item.metadata.get(QUIET)]
    silent = {item.name for item in quiet if item.name in info.fixed or getattr(config, item.name) == item.default}
    named = {name: value for name, value in values.items() if name not in silent}
    named |= {name: values[name] for name in info.config_keys}
    named |= {"sliding_window": values["sliding_window"]} if info.layer_pattern and "sliding_window" in values else {}
    if "layer_types" not in info.config_keys and info.layer_pattern:
        named.pop("layer_types", None)  # made of the window again, by the class's rule and the card's pattern
    if isinstance(scaling := named.get("rope_scaling"), Mapping):
        named["rope_scaling"] = {key: value for key, value in scaling.items() if value is not None}
    named |= {name: config.stated(name) for name, value in named.items() if value is None}
    _switch(named, "sliding_window", SWITCH, there=SWITCH in info.absent_keys)
    _switch(named, AUX_LOSS, AUX_SWITCH, there=AUX_LOSS in named)
    return {name: list(value) if isinstance(value, tuple) else value for name, value in named.items()}


def _switch(named: dict[str, Any], name: str, switch: str, *, there: bool) -> None:
    """Say whether a number counts; one that is switched off is left to the file that it came from, where it may stand."""
    if not there or name not in named:
        return
    named[switch] = bool(named[name])
    if not named[name]:
        del named[name]


def nulls(config: ModelConfig, info: FamilyInfo) -> dict[str, None]:
    """The keys, by the class's own names, that must say null: an absent one would mean what the card says of it, or nothing."""
    meant = {*info.implied, *info.absent_keys, *info.config_keys, *(("sliding_window",) if reads_windows(info) else ())}
    empty = [name for name, value in said(config, info).items() if value is None and name in meant]
    return {info.config_names.get(name, name): None for name in empty}
