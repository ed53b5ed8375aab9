"""Front matter against a YAML reader of its own."""

import yaml
from apr_train.artifact.front_matter import yaml_text
from hypothesis import given
from hypothesis import strategies as st

TEXT = st.text(st.characters(blacklist_categories=("Cs",)), max_size=12)
SCALARS = TEXT | st.integers(-(10**6), 10**6) | st.floats(allow_nan=False, allow_infinity=False) | st.booleans()
TREES = st.recursive(SCALARS, lambda inner: st.dictionaries(TEXT, inner, max_size=3), max_leaves=8)


@given(st.dictionaries(TEXT, TREES | st.lists(TREES, max_size=3), max_size=4))
def test_yaml_reads_back_what_was_written(data):
    assert same(yaml.safe_load(yaml_text(data)) or {}, data)


def same(found, data):
    """YAML 1.1, which PyYAML speaks, takes a number like 1e300 for text."""
    if isinstance(data, dict):
        return found.keys() == data.keys() and all(same(found[key], value) for key, value in data.items())
    if isinstance(data, list):
        return len(found) == len(data) and all(map(same, found, data))
    return float(found) == data if isinstance(data, float) else found == data


def test_words_that_yaml_would_take_for_something_else_are_text():
    data = {"license": "no", "version": "1.10", "name": "a: b #c", "list": ["- x", "yes"], "empty": ""}
    assert yaml.safe_load(yaml_text(data)) == data


def test_nested_lists_of_mappings_are_block_style():
    data = {"model-index": [{"name": "x", "results": [{"task": {"type": "t"}, "metrics": [{"type": "p", "value": 1.5}]}]}]}
    assert yaml_text(data).splitlines()[:4] == ["model-index:", '- name: "x"', "  results:", "  - task:"]
    assert yaml.safe_load(yaml_text(data)) == data
