"""`~` is the home folder wherever a path is written."""

import pwd

import attrs
import pytest
from apr_train.errors import ConfigError
from apr_train.run.option import PATH
from apr_train.run.paths import user_path
from apr_train.run.settings import GROUPS, Settings
from apr_train.run.settings_file import with_values
from apr_train.run.settings_paths import absolute_paths


@pytest.fixture
def homeless(monkeypatch):
    """A process of a user without a name, as in containers."""

    def nobody(number):
        raise KeyError(number)

    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", nobody)


def test_a_leading_tilde_is_the_home_folder_and_no_other(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert user_path("~/a/*.py") == f"{tmp_path}/a/*.py"
    assert user_path("~") == str(tmp_path)
    for path in ("a/~", "./~", "~nobody-of-this-name/x", "/~/x", "a~"):
        assert user_path(path) == path


def test_without_a_home_folder_a_tilde_is_refused_and_nothing_else(homeless):
    with pytest.raises(ConfigError, match=r"~/x: there is no home folder.*Write the whole path"):
        user_path("~/x")
    assert user_path("x/~") == "x/~"


def test_every_path_among_the_settings_may_begin_with_a_tilde(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    paths = [item for cls in GROUPS.values() for item in attrs.fields(cls) if item.metadata[PATH]]
    assert {item.name for item in paths} == {
        "init",
        "add_tokens",
        "tokenizer",
        "chat_template",
        "data",
        "val_data",
        "run",
        "out",
    }
    values = {item.name: ("~/x",) if item.metadata["many"] else "~/x" for item in paths}
    settings = absolute_paths(with_values(Settings(), values | {"prompt": "~/x"}))
    for item in paths:
        (group,) = (getattr(settings, name) for name, cls in GROUPS.items() if item in attrs.fields(cls))
        assert getattr(group, item.name) in (f"{tmp_path}/x", (f"{tmp_path}/x",))
    assert settings.run.prompt == "~/x"
