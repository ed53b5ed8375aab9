"""Settings that another one makes meaningless, and what is enough to give them a meaning."""

import attrs
import pytest
from apr_train.preflight.token_rules import end_findings
from apr_train.preflight.use_rules import use_findings
from apr_train.run.option import USED_WITH, options_of
from apr_train.run.settings import GROUPS, Settings
from apr_train.run.settings_file import with_values


def findings(objective="causal-lm", stated=None, **values):
    return [item.subject for item in use_findings(with_values(Settings(), values), objective, stated=stated)]


@pytest.mark.rule("PREFLIGHT-030")
@pytest.mark.parametrize(
    ("values", "objective", "with_it"),
    [
        ({"fim_rate": 0.3}, "fim", {}),
        ({"fim_spm_rate": 0.3}, "fim", {}),
        ({"fim_tokens": "a,b,c"}, "fim", {}),
        ({"fim_tokens": "a,b,c"}, "causal-lm", {"eval": "fim:3"}),
        ({"mask_probability": 0.3}, "masked-lm", {}),
        ({"train_on": "all"}, "sft", {}),
        ({"chat_date": "2026-01-01"}, "sft", {}),
        ({"lora_alpha": 3.0}, "causal-lm", {"lora_rank": 4}),
        ({"lora_target": ("q_proj",)}, "causal-lm", {"lora_rank": 4}),
        ({"lora_dropout": 0.1}, "causal-lm", {"lora_rank": 4}),
        ({"decay_ratio": 0.3}, "causal-lm", {"schedule": "wsd"}),
        ({"muon_lr": 0.02}, "causal-lm", {"optimizer": "muon"}),
        ({"new_rows": "pieces"}, "causal-lm", {"add_tokens": "x"}),
        ({"rope_layout": "adjacent"}, "causal-lm", {"init": "x"}),
        ({"keep_best": "syntax"}, "causal-lm", {"eval": "syntax:3"}),
        ({"keep_best": "fim"}, "causal-lm", {"eval": "syntax:3,fim:2"}),
    ],
)
def test_what_a_setting_belongs_to_gives_it_a_meaning(values, objective, with_it):
    (name,) = values
    other = "causal-lm" if objective != "causal-lm" or with_it else "fim"
    assert findings(other, **values) == [f"--{name.replace('_', '-')}"]
    assert findings(objective, **values, **with_it) == []


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"schedule": "constant", "min_lr_ratio": 0.5}, ["--min-lr-ratio"]),
        ({"sample_tokens": 0, "prompt": "a"}, ["--prompt"]),
        ({"val_every": 0, "early_stop": 3}, ["--early-stop"]),
        ({"keep_best": "fim", "eval": "nothing"}, []),  # EVAL-001 is about that
        ({}, []),
    ],
)
def test_defaults_and_faults_of_others_are_left_alone(values, told):
    assert findings(**values) == told


def test_nothing_is_said_of_an_objective_that_is_not_known():
    assert findings(None, fim_rate=0.1, lora_alpha=3.0) == ["--lora-alpha"]


def test_a_resume_is_judged_by_what_it_is_given():
    assert findings(stated={"steps"}, fim_rate=0.1, decay_ratio=0.1) == []
    assert findings(stated={"decay_ratio"}, fim_rate=0.1, decay_ratio=0.1) == ["--decay-ratio"]


def test_what_a_setting_belongs_to_is_there():
    options = {item.name: item for cls in GROUPS.values() for item in options_of(cls)}
    for item in options.values():
        for other in item.metadata[USED_WITH]:
            assert set(other.values) <= set(options[other.name].metadata["choices"])
            assert isinstance(options[other.name], attrs.Attribute)


def test_rows_of_steps_that_are_done_may_have_been_of_another_size():
    assert end_findings(100, steps=30, per_step=4, done=10, read=20) == []
    (found,) = end_findings(99, steps=30, per_step=4, done=10, read=20)
    assert (found.expected, found.found) == ("100 rows for 30 steps", "99 rows, which are 29 steps")
    assert "--steps 29" in found.hint
