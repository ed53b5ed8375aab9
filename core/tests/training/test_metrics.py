"""metrics.jsonl: its schema, and the cut back to a step."""

import json
from pathlib import Path

import attrs
import pytest
from apr_train.errors import OutputError, RunError
from apr_train.run.metrics import Metrics, MetricsFile, cut_back, mean_speed, perplexity, read_metrics


def write(path, steps):
    with MetricsFile(path) as file:
        for step in steps:
            file.write(Metrics(step=step, loss=1 / (step + 1), lr=1e-3))
        file.sync()


def test_lines_come_back_equal(tmp_path):
    path = tmp_path / "metrics.jsonl"
    line = Metrics(step=3, loss=0.1 + 0.2, lr=1e-5, grad_norm=1.25, val_loss=2.0, perplexity=perplexity(2.0))
    with MetricsFile(path) as file:
        file.write(line)
    assert read_metrics(path) == [line]


def test_fields_that_do_not_apply_are_left_out():
    assert json.loads(Metrics(step=0, val_loss=2.5).to_json()) == {"step": 0, "val_loss": 2.5}


def test_cut_back_forgets_later_steps_and_a_half_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write(path, range(6))
    with path.open("a") as file:
        file.write('{"step": 6, "lo')
    kept = cut_back(path, 3)
    assert [line.step for line in kept] == [0, 1, 2, 3]
    assert [line.step for line in read_metrics(path)] == [0, 1, 2, 3]
    write(path, [4])
    assert [line.step for line in read_metrics(path)] == [0, 1, 2, 3, 4]
    assert list(tmp_path.iterdir()) == [path]


def test_at_step_0_nothing_is_kept_for_the_start_is_measured_again(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write(path, range(3))
    assert cut_back(path, 0) == []
    assert path.read_text() == ""


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_no_line_holds_what_is_not_json(value):
    with pytest.raises(ValueError, match="JSON"):
        Metrics(step=1, loss=value).to_json()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full")
def test_a_full_disk_is_an_error_with_the_path():
    with (
        MetricsFile(Path("/dev/full")) as file,
        pytest.raises(OutputError, match=r"^/dev/full: cannot be written \(No space left"),
    ):
        file.write(Metrics(step=1))


@pytest.mark.parametrize("line", ["[]", '{"loss": 1}', '{"step": 1, "colour": 2}', "{"])
def test_a_foreign_line_is_an_error_that_names_it(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{{"step": 1}}\n{line}\n{{"step": 2}}\n')
    with pytest.raises(RunError, match="line 2"):
        read_metrics(path)


def test_perplexity_of_an_exploded_loss_is_left_out():
    assert perplexity(1e4) is None


def test_the_documented_schema_is_the_written_one(repository):
    documented = (repository / "docs" / "metrics.md").read_text(encoding="utf-8")
    for item in attrs.fields(Metrics):
        unit = item.metadata["unit"] or "–"
        assert f"| `{item.name}` | {unit} | {item.metadata['text']} |" in documented


def test_the_speed_of_a_run_is_tokens_by_time_and_leaves_out_the_first_step_where_there_is_another():
    lines = [Metrics(step=0, val_loss=3.0)]
    assert mean_speed(lines) is None
    lines.append(Metrics(step=1, tokens_per_s=10.0, step_time=4.0))
    assert mean_speed(lines) == 10.0
    lines += [Metrics(step=2, tokens_per_s=100.0, step_time=1.0), Metrics(step=3, tokens_per_s=50.0, step_time=2.0)]
    assert mean_speed(lines) == pytest.approx(200 / 3)
