"""samples.jsonl: what comes back, what a resume keeps, and every way in which a line can be wrong."""

import pytest
from apr_train.errors import RunError
from apr_train.run.samples import Sample, add_sample, cut_samples, read_samples

TEXTS = ("def f():\n", "```\n## Preflight\n", "\u2028 \x85 \ud7ff 🦀", "")


def sample(step, text="x"):
    return Sample(step=step, prompt="p", text=text)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "samples.jsonl"


def test_samples_come_back_equal_one_a_line(path):
    samples = [sample(step, text) for step, text in enumerate(TEXTS)]
    for item in samples:
        add_sample(path, item)
    assert read_samples(path) == samples
    assert path.read_bytes().count(b"\n") == len(samples)


def test_a_line_of_a_text_says_no_more_than_it_did_and_other_kinds_come_back(path):
    samples = [
        sample(1),
        Sample(step=2, prompt="p", text="t", kind="chat"),
        Sample(step=3, prompt="p", text="t", kind="hole", suffix="s"),
    ]
    for item in samples:
        add_sample(path, item)
    assert read_samples(path) == samples
    assert path.read_text().splitlines()[0] == '{"step": 1, "prompt": "p", "text": "x"}'


def test_no_file_is_no_sample(path):
    assert read_samples(path) == []
    cut_samples(path, 3)
    assert not path.exists()


def test_an_end_that_is_written_again_gives_one_sample(path):
    for item in (sample(3), sample(6, "first"), sample(6, "second")):
        add_sample(path, item)
    assert read_samples(path) == [sample(3), sample(6, "second")]


def test_a_resume_keeps_the_samples_up_to_its_step(path):
    for step in (3, 6, 9):
        add_sample(path, sample(step))
    with path.open("a") as file:
        file.write('{"step": 12, "pro')
    cut_samples(path, 6)
    assert read_samples(path) == [sample(3), sample(6)]
    assert path.read_text().endswith("}\n")


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "[]",
        "null",
        '{"step": 2, "prompt": "p"}',
        '{"step": "2", "prompt": "p", "text": "t"}',
        '{"step": true, "prompt": "p", "text": "t"}',
        '{"step": 2, "prompt": "p", "text": null}',
        '{"step": 2, "prompt": "p", "text": "t", "more": 1}',
        '{"step": 2, "prompt": "p", "text": "t", "kind": "poem"}',
        '{"step": 2, "prompt": "p", "text": "t", "suffix": null}',
        '{"step": 1, "prompt": "p", "text": "t"}',
        "9" * 5000,
        "[" * 100_000,
        "\udcff",
    ],
)
def test_a_damaged_line_is_named_by_file_and_number(path, line):
    good = '{"step": 1, "prompt": "p", "text": "t"}'
    path.write_bytes(f"{good}\n{line}\n".encode(errors="surrogateescape"))
    with pytest.raises(RunError, match=r"samples\.jsonl: line 2 is not"):
        read_samples(path)
