"""How many checkpoints a run will have on its disk."""

import pytest
from apr_train.preflight.run_rules import checkpoints_to_come
from apr_train.run.folder import checkpoints
from apr_train.run.resume import Resume
from apr_train.run.settings import RunSettings, Settings


@pytest.mark.parametrize(
    ("steps", "save_every", "keep", "expected"),
    [
        (0, 100, 2, 0),
        (30, 100, 2, 1),
        (30, 0, 2, 1),
        (200, 100, 2, 2),
        (250, 100, 2, 3),
        (1000, 100, 2, 3),
        (1000, 100, 0, 10),
        (1001, 100, 0, 11),
    ],
)
def test_a_run_has_as_many_as_it_saves_and_one_more_than_it_keeps(steps, save_every, keep, expected):
    assert checkpoints_to_come(RunSettings(steps=steps, save_every=save_every, keep=keep)) == expected


@pytest.mark.parametrize(
    ("steps", "keep", "expected"), [(200, 2, 0), (201, 2, 1), (1000, 2, 1), (1000, 1, 1), (1000, 5, 4), (1000, 0, 8)]
)
def test_a_resumed_run_asks_for_what_is_not_there_yet(tmp_path, steps, keep, expected):
    for step in (100, 200):
        (tmp_path / f"step-000{step}").mkdir()
    run = RunSettings(steps=steps, save_every=100, keep=keep)
    resume = Resume(path=tmp_path, folder=tmp_path, checkpoint=checkpoints(tmp_path)[-1], settings=Settings(run=run))
    assert checkpoints_to_come(run, resume) == expected
