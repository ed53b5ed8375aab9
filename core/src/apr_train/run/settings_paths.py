"""The paths in settings: without `~`, and absolute, so that they mean the same from any folder."""

from __future__ import annotations

import glob
import os
from pathlib import Path
from typing import Any

import attrs

from apr_train.checkpoint.given import is_address
from apr_train.run.data_argument import of_argument
from apr_train.run.option import PATH
from apr_train.run.paths import user_path
from apr_train.run.settings import GROUPS, DataSettings, Settings


def absolute_paths(settings: Settings, *, absent: bool = False) -> Settings:
    """The paths of inputs made absolute, so that the run's settings mean the same from any folder; no `~` in any path.

    A model or tokenizer that is not there stays as it was typed, unless `absent`, as for a resume, whose files may be gone:
    it may be a name on the Hub, and is refused as that.

    Raises:
        ConfigError: for a `~` where there is no home folder.
    """
    settings = _without_tilde(settings)
    model = settings.model
    init, tokenizer, template, tokens = (
        str(Path(path).absolute()) if path is not None and (absent or os.path.lexists(path)) else path
        for path in (model.init, model.tokenizer, model.chat_template, model.add_tokens)
    )
    return attrs.evolve(
        settings,
        model=attrs.evolve(model, init=init, tokenizer=tokenizer, chat_template=template, add_tokens=tokens),
        data=_absolute_data(settings.data),
    )


def _absolute_data(data: DataSettings) -> DataSettings:
    sources = tuple(attrs.evolve(item, path=tuple(_absolute(user_path(path)) for path in item.path)) for item in data.source)
    named, val = (tuple(of_argument(item, _absolute) for item in paths) for paths in (data.data, data.val_data))
    return attrs.evolve(data, data=named, val_data=val, source=sources)


def _without_tilde(settings: Settings) -> Settings:
    groups = {}
    for name, cls in GROUPS.items():
        group = getattr(settings, name)
        paths = [item.name for item in attrs.fields(cls) if item.metadata[PATH]]
        groups[name] = attrs.evolve(group, **{path: expanded(getattr(group, path)) for path in paths})
    return Settings(**groups)


def expanded(value: Any) -> Any:
    """A path setting's value, one or several, as `user_path` gives it; None stays."""
    if value is None:
        return None
    return tuple(of_argument(item, user_path) for item in value) if isinstance(value, tuple) else user_path(value)


def _absolute(item: str) -> str:
    """A path, or a glob, in which nothing but what the user wrote is a pattern; an address is refused as it was typed."""
    if is_address(item):
        return item
    here = str(Path.cwd())
    there = os.path.exists(item)  # noqa: PTH110  # Path's raises for a name that is too long
    return str(Path(here if there else glob.escape(here), item))
