"""Presets by name."""

import pytest
from apr_train.errors import ConfigError
from apr_train.family.config import choose_preset


def test_preset_is_found_by_name():
    assert choose_preset({"base": "config"}, "base", family="toy") == "config"


@pytest.mark.parametrize(
    ("name", "message"), [("bas", r"toy preset.*found bas\. did you mean base\?"), (None, "found nothing")]
)
def test_unknown_preset_names_family_and_neighbour(name, message):
    with pytest.raises(ConfigError, match=message):
        choose_preset({"base": "config", "tiny": "config"}, name, family="toy")
