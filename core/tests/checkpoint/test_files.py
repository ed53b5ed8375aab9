"""Bounded YAML: what a card needs is read, what makes a small document large is a FormatError, and nothing else is raised."""

import contextlib
import time
import tracemalloc

import pytest
from apr_train.checkpoint.companions import readme_facts
from apr_train.checkpoint.files import MAX_YAML_BYTES, MAX_YAML_DEPTH, parse_yaml
from apr_train.errors import FormatError
from hypothesis import example, given, settings
from hypothesis import strategies as st

LAUGHS = "a0: &a0 [ha, ha, ha, ha, ha, ha, ha, ha, ha]\n" + "".join(
    f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 9)}]\n" for level in range(1, 10)
)


def nested(levels):
    return "[" * levels + "]" * levels


def test_a_card_s_front_matter_is_read():
    text = (
        "license: apache-2.0 # SPDX\nlanguage: [en, code]\nmodel-index:\n- results:\n  - metrics: [{type: loss, value: 1.5}]\n"
    )
    assert parse_yaml(text) == {
        "license": "apache-2.0",
        "language": ["en", "code"],
        "model-index": [{"results": [{"metrics": [{"type": "loss", "value": 1.5}]}]}],
    }
    assert parse_yaml("") is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (LAUGHS, "anchors"),
        ("a: *b", "anchors"),
        ("&a [*a]", "anchors"),
        ("!!python/object/apply:os.system [ls]", "tags"),
        ("!!binary aGE=", "tags"),
        (nested(MAX_YAML_DEPTH + 1), "levels"),
        (nested(MAX_YAML_BYTES // 2), "levels"),
        ("{" * 1000, "levels"),
        ("- " * 1000, "levels"),
        ("ä" * (MAX_YAML_BYTES // 2 + 1), "too long"),
        ("a: 1\n---\nb: 2", "single document"),
        ("a: [", "not valid YAML"),
        ("\0", "not valid YAML"),
        ("2024-99-99", "not valid YAML"),
        ("2024-01-01T00:00:00+99:59", "not valid YAML"),
        ("1:" * 400 + "1.0", "not valid YAML"),
        ("9" * 5000, "not valid YAML"),
        ("? [a]\n: b", "not valid YAML"),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_what_is_odd_is_a_format_error_that_costs_nothing(text, message):
    tracemalloc.start()
    start = time.perf_counter()
    with pytest.raises(FormatError, match=message):
        parse_yaml(text, "card")
    took, (_, peak) = time.perf_counter() - start, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert took < 5
    assert peak < 50 * MAX_YAML_BYTES


def test_as_many_levels_as_are_allowed_are_read():
    assert parse_yaml(nested(MAX_YAML_DEPTH)) is not None


@settings(max_examples=1000, deadline=None)
@given(st.text(st.sampled_from("ab01:._-+?&*!|>%@[]{},#'\"\n =~<TZ9"), max_size=30) | st.text(max_size=20))
@example("._")
@example("0b_")
def test_any_text_is_a_value_or_a_format_error(text):
    with contextlib.suppress(FormatError):
        parse_yaml(text)


@pytest.mark.parametrize(
    ("front", "expected"),
    [
        ("license: apache-2.0 # SPDX", "apache-2.0"),
        ("tags: []\nlicense:   'mit'", "mit"),
        ("license: >-\n  mit", "mit"),
        ("license: [mit, isc]", None),
        ("license: ''", None),
        ("license: 3", None),
        ("- license: mit", None),
        ("license: mit\n" + LAUGHS, None),
        ("license: mit\nx: " + nested(100), None),
        ("license: mit\nx: [", None),
        ("license: mit\nx: " + "a" * MAX_YAML_BYTES, None),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_the_readme_s_licence_is_text_or_nothing(tmp_path, front, expected):
    (tmp_path / "README.md").write_text(f"---\n{front}\n---\n# Model\nlicense: isc\n")
    assert readme_facts(tmp_path).get("license") == expected


def test_a_readme_without_front_matter_has_no_licence(tmp_path):
    assert readme_facts(tmp_path) == {}
    (tmp_path / "README.md").write_text("# Model\nlicense: mit\n")
    assert readme_facts(tmp_path) == {}
