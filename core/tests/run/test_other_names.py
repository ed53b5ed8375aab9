"""Names and values of other trainers lead to ours."""

import string

import attrs
import pytest
from apr_train.model.attention import BACKEND_NAMES
from apr_train.run.option import flag
from apr_train.run.other_names import NOT_HERE, OTHER_NAMES, OTHER_VALUES, advice, meant_value, plain, settings_called
from apr_train.run.settings import GROUPS

SETTINGS = {item.name: item.metadata for cls in GROUPS.values() for item in attrs.fields(cls)}
ADVICE = [*NOT_HERE.values(), *(text for values in OTHER_VALUES.values() for text in values.values() if " " in text)]


def test_every_other_name_leads_to_one_place_and_is_no_setting():
    names = [name for others in OTHER_NAMES.values() for name in others]
    assert len(names) == len(set(names))
    assert not {*names, *NOT_HERE} & SETTINGS.keys()
    assert not set(names) & NOT_HERE.keys()
    assert all(name == plain(name) for name in (*names, *NOT_HERE))


def test_what_they_lead_to_exists():
    assert OTHER_NAMES.keys() | OTHER_VALUES.keys() <= SETTINGS.keys()
    fields = {field for text in ADVICE for _, field, _, _ in string.Formatter().parse(text) if field is not None}
    assert fields <= SETTINGS.keys()
    for setting, values in OTHER_VALUES.items():
        ours = SETTINGS[setting]["choices"] or {"device": ("cpu", "cuda"), "attention": BACKEND_NAMES}[setting]
        assert not set(values) & set(ours)
        assert {value for value in values.values() if " " not in value} <= set(ours)


@pytest.mark.parametrize(
    ("name", "setting"),
    [
        ("--learning-rate", "lr"),
        ("learning_rate", "lr"),
        ("--max-steps", "steps"),
        ("--per-device-train-batch-size", "batch_size"),
        ("--gradient-accumulation-steps", "accumulate"),
        ("--model", "init"),
        ("--model-name-or-path", "init"),
        ("--output-dir", "out"),
        ("--max-seq-length", "sequence_length"),
        ("--block-size", "sequence_length"),
        ("--dataset", "data"),
        ("--train-file", "data"),
        ("--gradient-checkpointing", "recompute"),
        ("--Max-Grad-Norm", "clip_norm"),
    ],
)
def test_a_setting_is_found_by_what_others_call_it(name, setting):
    assert settings_called(name) == [setting]


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("--epochs", "counted in --steps"),
        ("num_train_epochs", "(--batch-size × --accumulate × --sequence-length)"),
        ("--lora-r", "--lora-rank"),
        ("--lora-modules-to-save", "Adapters are asked for by their rank: --lora-rank 16"),
        ("--qlora", "A base is not quantised for training: --lora-rank 16 with --precision bf16-weights"),
        ("--bf16", "--precision bf16"),
        ("--fp16", "There is no float16"),
        ("--warmup-ratio", "--warmup-steps"),
    ],
)
def test_what_a_run_does_not_have_is_told_with_what_to_do(name, part):
    text = advice(name, flag)
    assert part in text
    assert text.endswith(".")


def test_nothing_is_made_up_for_other_names():
    assert settings_called("--nonsense") == []
    assert advice("--nonsense", flag) is None
    assert meant_value("precision", "nonsense", flag) is None
    assert meant_value("seed", "gpu", flag) is None
