"""Look a preset up by name, with an error that lists what there is. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from apr_train.errors import ConfigError
from apr_train.family.config import ModelConfig
from apr_train.suggest import did_you_mean

C = TypeVar("C", bound=ModelConfig)


def choose_preset(presets: Mapping[str, C], name: str | None, *, family: str) -> C:
    """Return the config of that name.

    Raises:
        ConfigError: naming the family, the unknown preset and the nearest one.
    """
    if name is None or name not in presets:
        found = "nothing" if name is None else name
        raise ConfigError("no such preset", where=f"{family} preset", found=found, hint=did_you_mean(str(name), presets))
    return presets[name]
