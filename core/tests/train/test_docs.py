"""docs/training.md tells every setting as it is."""

import attrs
import pytest
from apr_train.train.option import MAY_CHANGE, flag
from apr_train.train.settings import GROUPS


@pytest.mark.parametrize("group", GROUPS)
def test_every_setting_is_documented_in_its_table(repository, group):
    text = (repository / "docs" / "training.md").read_text(encoding="utf-8")
    _, _, section = text.partition(f"### [{group}]\n")
    section = section.partition("\n#")[0]
    for item in attrs.fields(GROUPS[group]):
        line = next((line for line in section.splitlines() if line.startswith(f"| `{flag(item.name)}` |")), "")
        assert item.metadata["text"] in line
        assert ("may change" if item.metadata[MAY_CHANGE] else "fixed") in line
