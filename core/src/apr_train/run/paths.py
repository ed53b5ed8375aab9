"""A path as a user writes it: where a shell does not put the home folder in place of `~`, this does."""

from __future__ import annotations

import os

from apr_train.errors import ConfigError


def user_path(text: str) -> str:
    """The path with the home folder instead of a leading `~` or `~name`; one without is returned as it is.

    Shells leave `--out=~/x` and what is quoted alone, and nothing expands a settings file: a folder named `~` would be made.

    Raises:
        ConfigError: when there is no home folder.
    """
    expanded = os.path.expanduser(text)  # noqa: PTH111  # Path's forgets a trailing slash, and raises for a name of nobody's
    if expanded == text and (text == "~" or text.startswith("~/")):
        raise ConfigError("there is no home folder to put in place of ~", where=text, hint="Write the whole path.")
    return expanded
