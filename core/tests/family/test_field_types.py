"""Every field of every config refuses a value of another type than it is annotated with, and names itself."""

import math
import types
import typing

import attrs
import pytest
from apr_train.errors import ConfigError
from apr_train.family.config import ModelConfig
from apr_train.family.decoder_config import DecoderConfig
from apr_train.family.encoder_config import EncoderConfig
from apr_train.family.rope_scaling import LinearScaling

SIZES = {
    "vocab_size": 100,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 32,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
}
CONFIGS = {
    ModelConfig: SIZES,
    DecoderConfig: {**SIZES, "num_key_value_heads": 2, "rope_theta": 10000.0, "rms_norm_eps": 1e-6},
    EncoderConfig: {**SIZES, "type_vocab_size": 1, "layer_norm_eps": 1e-5, "pad_token_id": 1},
}
VALUES = [True, "x", 1.5, 2, [], {}, None, -1, math.nan, math.inf, [True], ["x"], [1.5], [-1], [{}], ("x", 1), b"x", {"x"}]
FIELDS = [(cls, item.name) for cls in CONFIGS for item in attrs.fields(cls)]


def fits(value, kind):
    """Whether a value is of an annotation's type: a whole number is a real one, a list is a tuple, and a truth is no number."""
    if isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union:
        return any(fits(value, part) for part in typing.get_args(kind))
    if typing.get_origin(kind) is typing.Literal:
        return isinstance(value, str)
    if typing.get_origin(kind) is tuple:
        return isinstance(value, list | tuple) and all(fits(item, typing.get_args(kind)[0]) for item in value)
    if kind is float:
        return type(value) in (int, float) and math.isfinite(value)
    return type(value) is kind


def refused(cls, name, value):
    """The findings of a config with that value, none if it was made; the value is then as it was given."""
    try:
        config = cls(**{**CONFIGS[cls], name: value})
    except ConfigError as error:
        return error.findings
    assert getattr(config, name) == (tuple(value) if isinstance(value, list) else value)
    return ()


@pytest.mark.parametrize(("cls", "name"), FIELDS, ids=lambda item: getattr(item, "__name__", item))
def test_a_value_of_another_type_is_refused_by_the_fields_name(cls, name):
    kind = typing.get_type_hints(cls)[name]
    wrong = [value for value in VALUES if not fits(value, kind)]
    if name == "rope_scaling":
        wrong.remove({})  # no scaling, as files say it
        assert cls(**{**CONFIGS[cls], name: {}}).rope_scaling is None
    assert len(wrong) >= len(VALUES) - 6
    for value in wrong:
        findings = refused(cls, name, value)
        assert [finding.field or finding.subject for finding in findings] == [name], value
        assert all(finding.expected and finding.rule == "" for finding in findings), value


@pytest.mark.parametrize(("cls", "name"), FIELDS, ids=lambda item: getattr(item, "__name__", item))
def test_a_value_of_the_right_type_is_taken_or_refused(cls, name):
    kind = typing.get_type_hints(cls)[name]
    right = [value for value in VALUES if fits(value, kind)]
    assert right or name == "rope_scaling"
    for value in right:
        assert all(isinstance(finding.problem, str) for finding in refused(cls, name, value))


def test_the_annotations_of_this_test_are_read():
    assert fits((1, 0), tuple[int, ...] | None)
    assert not fits((True,), tuple[int, ...])
    assert fits(LinearScaling(factor=2.0), LinearScaling | None)
    assert not fits(math.nan, float)


@pytest.mark.parametrize("value", [0, 1, 0.0, 1.0])
def test_an_offset_is_a_number(value):
    assert DecoderConfig(**CONFIGS[DecoderConfig], norm_offset=value).norm_offset == value


@pytest.mark.parametrize(
    ("cls", "changes", "name"),
    [
        (EncoderConfig, {"num_attention_heads": 3}, "num_attention_heads"),
        (EncoderConfig, {"pad_token_id": 100}, "pad_token_id"),
        (EncoderConfig, {"max_position_embeddings": 2}, "max_position_embeddings"),
        (DecoderConfig, {"hidden_size": 18}, "head_dim"),
        (DecoderConfig, {"num_key_value_heads": 3}, "num_key_value_heads"),
    ],
)
def test_sizes_that_do_not_fit_each_other_name_a_field(cls, changes, name):
    with pytest.raises(ConfigError) as caught:
        cls(**{**CONFIGS[cls], **changes})
    assert [finding.field for finding in caught.value.findings] == [name]
