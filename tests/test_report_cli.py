"""`apr-train report` on a real run, and its errors."""

import json
import os
import subprocess
import sys

import pytest
from apr_train.cli import cli
from click.testing import CliRunner


def invoke(*arguments):
    return CliRunner().invoke(cli, ["report", *map(str, arguments)])


@pytest.fixture
def run(tmp_path):
    """The smallest folder that a run could leave."""
    folder = tmp_path / "runs" / "r"
    folder.mkdir(parents=True)
    lines = [{"step": 0, "val_loss": 3.0, "perplexity": 20.1}]
    lines += [{"step": step, "loss": 3.0 - step / 10, "lr": 1e-3, "grad_norm": 1.0, "tokens_per_s": 50.0} for step in (1, 2, 3)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "config.toml").write_text("[run]\nsteps = 3\n")
    (folder / "identity.json").write_text('{"corpus": "c", "tokenizer": "t", "init": null}')
    return folder


def test_a_real_run_is_reported_with_its_preflight_and_sample(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("APR_TRAIN_CACHE", str(tmp_path / "cache"))
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for number in range(20):
        (corpus / f"m{number}.py").write_text(f"def f{number}(x):\n    return x + {number}\n" * 5)
    train = ["--arch", "llama370m", "--preset", "tiny", "--data", corpus, "--steps", "3", "--sequence-length", "32"]
    train += ["--batch-size", "2", "--val-batches", "1", "--threads", "1", "--sample-tokens", "4", "--run", "real"]
    trained = CliRunner().invoke(cli, [str(part) for part in train])
    assert trained.exit_code == 0, trained.output
    done = invoke("runs/real", "-o", "report.html")
    assert done.exit_code == 0, done.output
    page = (tmp_path / "report.html").read_text()
    assert "3 of 3 steps" in page
    assert "Samples" in page
    assert "no finding" in page
    assert "<dt>attention</dt>" in page
    (tmp_path / "runs/real/MODEL_CARD.md").write_bytes(b"\xff ## Sample\n```\nnothing that is read back")
    invoke("runs/real", "-o", "again.html")
    assert (tmp_path / "again.html").read_text() == page


def test_a_picture_is_written_and_is_the_same_each_time(run, tmp_path):
    pytest.importorskip("matplotlib")
    pictures = []
    for name in ("a.png", "b.png"):
        done = invoke(run, "--png", tmp_path / name)
        assert done.exit_code == 0, done.output
        pictures.append((tmp_path / name).read_bytes())
    assert pictures[0].startswith(b"\x89PNG")
    assert pictures[0] == pictures[1]


def test_without_matplotlib_the_hint_says_how_to_install_it(run, tmp_path, monkeypatch):
    monkeypatch.setattr("apr_train.artifact.report.png.find_spec", lambda name: None)
    done = invoke(run, "--png", tmp_path / "a.png", "-o", tmp_path / "a.html")
    assert done.exit_code == 1
    assert 'pip install "apr-train[report]"' in done.output
    assert not (tmp_path / "a.html").exists()


def test_a_folder_without_metrics_is_one_clear_line(tmp_path):
    done = invoke(tmp_path, "-o", tmp_path / "a.html")
    assert done.exit_code == 1
    assert "the run has no metrics" in done.output
    assert not (tmp_path / "a.html").exists()


def test_a_damaged_line_is_named(run, tmp_path):
    (run / "metrics.jsonl").write_text('{"step": 0}\n{"step": \n')
    done = invoke(run, "-o", tmp_path / "a.html")
    assert done.exit_code == 1
    assert "line 2 is not JSON" in done.output


def test_half_a_character_in_a_finding_is_no_fault(run, tmp_path):
    texts = dict.fromkeys(("id", "where", "problem", "expected", "found", "hint"), "\ud83d")
    preflight = {"schema": 1, "findings": [texts | {"severity": "warning"}], "facts": {}}
    (run / "preflight.json").write_text(json.dumps(preflight))
    done = invoke(run, "-o", tmp_path / "a.html")
    assert done.exit_code == 0, done.output


def test_nothing_to_write_is_a_usage_error(run):
    assert invoke(run).exit_code == 2


def test_page_and_picture_in_one_file_are_a_usage_error(run, tmp_path):
    assert invoke(run, "-o", tmp_path / "a", "--png", tmp_path / "a").exit_code == 2
    assert not (tmp_path / "a").exists()


@pytest.mark.rule("WRITE-001")
@pytest.mark.parametrize("option", ["-o", "--png"])
@pytest.mark.parametrize("name", ["metrics.jsonl", "config.toml", "MODEL_CARD.md"])
def test_a_report_is_not_written_over_what_a_run_keeps(run, tmp_path, name, option):
    (run / "MODEL_CARD.md").write_text("the card")
    (tmp_path / "link.html").symlink_to(run / name)
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    for target in (run / name, tmp_path / "link.html"):
        done = invoke(run, option, target)
        assert done.exit_code == 1
        assert "WRITE-001" in done.output
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before


OTHERS = [("-o", "x.apr"), ("-o", "v.safetensors"), ("-o", "config.json"), ("-o", "f.py"), ("-o", "x.png")]


@pytest.mark.rule("WRITE-003")
@pytest.mark.parametrize(("option", "name"), [*OTHERS, ("--png", "x.html"), ("--png", "x.apr")])
def test_a_report_is_not_given_the_name_of_another_kind(run, tmp_path, option, name):
    (tmp_path / name).write_text("mine")
    done = invoke(run, option, tmp_path / name)
    assert done.exit_code == 1
    assert "WRITE-003" in done.output
    assert f"expected a name that ends in {'.html' if option == '-o' else '.png'}" in done.output
    assert (tmp_path / name).read_text() == "mine"


@pytest.mark.parametrize("name", ["page.html", "page.HTML", "page"])
def test_a_page_may_have_a_name_without_suffix(run, tmp_path, name):
    assert invoke(run, "-o", tmp_path / name).exit_code == 0


@pytest.mark.rule("WRITE-003")
def test_a_picture_that_cannot_be_written_is_found_before_the_page_is(run, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    done = invoke(run, "-o", tmp_path / "page.html", "--png", tmp_path / "pipe")
    assert "found a named pipe" in done.output
    assert (tmp_path / "pipe").is_fifo()
    assert not (tmp_path / "page.html").exists()


def test_a_report_inside_its_run_may_be_written_again(run):
    for _ in range(2):
        assert invoke(run, "-o", run / "report.html").exit_code == 0


def test_a_run_is_called_by_the_name_of_the_link_that_was_given(run, tmp_path):
    (tmp_path / "latest").symlink_to(run)
    assert invoke(tmp_path / "latest", "-o", tmp_path / "x.html").exit_code == 0
    assert ">latest<" in (tmp_path / "x.html").read_text()


def test_help_has_an_example_and_the_page_needs_no_torch_and_no_matplotlib(run, tmp_path):
    assert "Examples: apr-train report" in invoke("--help").output
    code = "import sys; from apr_train.cli import main\ntry: main()\nfinally: print({'torch', 'matplotlib'} & set(sys.modules))"
    command = [sys.executable, "-c", code, "report", str(run), "-o", str(tmp_path / "a.html")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "set()"
