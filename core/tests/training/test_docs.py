"""docs/training.md tells every setting as it is."""

from types import SimpleNamespace

import attrs
import pytest
import torch
from apr_train.data.objectives import OBJECTIVES
from apr_train.run.option import FIXED, MAY_CHANGE, MAY_MOVE, flag, options_of
from apr_train.run.settings import GROUPS, OptimizerSettings, Settings, SourceSettings
from apr_train.training.defaults import decide


def rows(repository, group):
    """Option → the cells of its line."""
    text = (repository / "docs" / "training.md").read_text(encoding="utf-8")
    section = text.partition(f"### [{group}]\n")[2].partition("\n#")[0]
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line.startswith("| `--")]
    return {option.strip("`"): cells for option, *cells in lines}


@pytest.fixture(scope="module")
def resolved():
    family = SimpleNamespace(name="some", default_preset="tiny")
    config = SimpleNamespace(usable_positions=64, num_hidden_layers=0)
    return decide(
        Settings(), family=family, config=config, objective=OBJECTIVES["causal-lm"], device=torch.device("cpu")
    ).settings


@pytest.mark.parametrize("group", GROUPS)
def test_every_setting_is_documented_in_its_table(repository, resolved, group):
    told = rows(repository, group)
    assert list(told) == [flag(item.name) for item in options_of(GROUPS[group])]
    for item in options_of(GROUPS[group]):
        default, resume, meaning = told[flag(item.name)]
        assert default == default_of(item, getattr(getattr(resolved, group), item.name))
        meta = item.metadata
        assert resume == ("may change" if meta[MAY_CHANGE] else "may move" if meta[MAY_MOVE] else "fixed")
        assert meaning.startswith(item.metadata["text"])


def default_of(item, resolved):
    """What the page calls it: a value, what the run decides, or nothing at all."""
    if item.default in (None, ()):
        return "none" if resolved in (None, ()) else "decided by the run"
    return str(item.default).lower() if isinstance(item.default, bool) else str(item.default)


def test_every_reason_against_a_change_is_in_the_table(repository):
    text = (repository / "docs" / "training.md").read_text(encoding="utf-8")
    told = {}
    for line in text.partition("| may not change | because |\n")[2].partition("\n\n")[0].splitlines()[1:]:
        names, reason = (cell.strip() for cell in line.strip("|").split("|"))
        told |= dict.fromkeys(names.split(", "), reason)
    options = {f"`{flag(item.name)}`": item for cls in GROUPS.values() for item in options_of(cls)}
    options |= {f"`{item.name}` of a source": item for item in attrs.fields(SourceSettings)}
    options |= {"`[[optimizer.group]]`": attrs.fields(OptimizerSettings).group}
    assert told == {name: item.metadata[FIXED] for name, item in options.items() if item.metadata[FIXED]}
