"""An option that is a run's setting is the same option in every command, and gives what the types say."""

from pathlib import Path
from typing import get_args

import attrs
import click
import pytest
from apr_train.artifact.convert import Dtype
from apr_train.checkpoint.header import RopeRows
from apr_train.cli import cli
from apr_train.cli.options import MODEL, UserPath, dtype_option, output_option, setting
from apr_train.inference.ready import Wanted
from apr_train.run.option import flag, options_of
from apr_train.run.settings import GROUPS
from click.testing import CliRunner

SETTINGS = {item.name: item.metadata for cls in GROUPS.values() for item in options_of(cls)}
ELSEWHERE = {"seed": "generate", "prompt": "generate", "data": "validate"}
"""Options of a setting's name that are something else in a command."""


def options():
    with click.Context(cli) as context:
        for name in cli.list_commands(context):
            for item in cli.get_command(context, name).params:
                if isinstance(item, click.Option) and item.name in SETTINGS and ELSEWHERE.get(item.name) != name:
                    yield name, item


@pytest.mark.parametrize(("command", "option"), [pytest.param(*pair, id=f"{pair[0]}-{pair[1].name}") for pair in options()])
def test_a_setting_has_one_spelling_and_one_set_of_values_in_all_commands(command, option):
    meta = SETTINGS[option.name]
    assert option.opts[0] == flag(option.name)
    assert ("--seq-len" in option.opts) == (option.name == "sequence_length")
    assert tuple(getattr(option.type, "choices", ())) == meta["choices"]
    assert option.multiple == meta["many"]
    assert getattr(option.type, "min", meta["minimum"]) == meta["minimum"]


def test_the_choices_on_the_command_line_are_the_values_of_the_types():
    assert SETTINGS["rope_layout"]["choices"] == get_args(RopeRows)
    assert set(MODEL) < {item.name for item in attrs.fields(Wanted)}


@pytest.mark.parametrize(
    ("arguments", "given"), [((), None), (("--dtype", "bf16"), "BF16"), (("--dtype", "keep"), "keep"), (("--dtype", "BF16"), 2)]
)
def test_a_dtype_reaches_its_command_as_the_type_says(arguments, given):
    taken = []
    command = click.command()(dtype_option("bf16", "keep", text="Of tensors.")(lambda dtype: taken.append(dtype)))
    done = CliRunner().invoke(command, arguments)
    assert ([done.exit_code] if given == 2 else taken) == [given]
    assert given in (None, 2, *get_args(Dtype))


def test_the_limits_of_a_setting_are_wrong_usage_only_where_a_command_asks_for_it():
    taken = []
    for limits in (True, False):
        command = click.command()(setting("batch_size", limits=limits)(lambda batch_size: taken.append(batch_size)))
        assert CliRunner().invoke(command, ["--batch-size", "0"]).exit_code == (2 if limits else 0)
    assert taken == [0]


def test_a_command_may_replace_help_and_type():
    command = click.command()(setting("out", text="Elsewhere.", type=click.Path(path_type=Path))(lambda out: out))
    assert "Elsewhere." in CliRunner().invoke(command, ["--help"]).output
    assert command.main(["--out", "x"], standalone_mode=False) == Path("x")


@pytest.mark.parametrize(
    "option",
    [
        setting("data"),
        setting("tokenizer"),
        setting("out", type=click.Path(path_type=Path)),
        output_option("The folder.", folder=True),
        click.option("--config", type=UserPath(path_type=Path)),
    ],
)
def test_a_tilde_that_the_shell_left_alone_is_the_home_folder_in_every_option_for_a_path(monkeypatch, tmp_path, option):
    monkeypatch.setenv("HOME", str(tmp_path))
    taken = []
    command = click.command()(option(lambda **values: taken.extend(values.values())))
    flag = command.params[0].opts[-1]
    command.main([f"{flag}=~/x"], standalone_mode=False)
    assert taken in ([Path(tmp_path, "x")], [f"{tmp_path}/x"], [(f"{tmp_path}/x",)])


def test_a_tilde_in_a_text_is_a_tilde(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    command = click.command()(setting("prompt")(lambda prompt: prompt))
    assert command.main(["--prompt", "~/x"], standalone_mode=False) == "~/x"
