"""A new run's folder: whose it may be, and what a start that ended early leaves of it."""

import pytest
from apr_train.errors import ConfigError, OutputError, RunError
from apr_train.run.folder import InUseError, find_checkpoint, locked, new_run_folder, require_unused

STARTED_ON = '{"corpus": "c", "tokenizer": "t", "init": null}'
START = {
    "identity.json": STARTED_ON,
    "preflight.json": "{}",
    "config.toml": "[run]",
    "machine.json": "{}",
    "metrics.jsonl": "",
    ".lock": "",
}
LITTER = (".identity.json.0123456789ab.part", ".preflight.json.0123456789ab.part", ".config.toml.0123456789ab.part")


def fill(folder, **files):
    folder.mkdir()
    for name, text in files.items():
        (folder / name).write_text(text)
    return folder


def start_up_to(count):
    """What a start has written after some of its files, in its order."""
    return {".lock": "", **dict(list(START.items())[:count])}


@pytest.mark.parametrize("files", [{}, *map(start_up_to, range(5)), *({".lock": "", name: "{"} for name in LITTER)])
@pytest.mark.parametrize("name", ["x", None])
def test_what_a_start_left_before_the_first_line_is_free_again(tmp_path, files, name):
    fill(tmp_path / "x", **files)
    with new_run_folder(tmp_path, name, "x") as folder:
        assert folder == tmp_path / "x"


@pytest.mark.parametrize(
    "files",
    [
        START | {"metrics.jsonl": '{"step": 0}\n'},
        START | {"model.apr": ""},
        START | {"samples.jsonl": ""},
        {"config.toml": "[run]"},
        {"preflight.json": "{}"},
        {"identity.json": '{"name": "me"}'},
        START | {"identity.json": "mine"},
        {"notes.txt": ""},
    ],
)
def test_what_holds_anything_else_is_refused_and_left_alone(tmp_path, files):
    folder = fill(tmp_path / "x", **files)
    with pytest.raises(InUseError, match="not empty"), new_run_folder(tmp_path, "x", "stem"):
        pass
    assert {item.name: item.read_text() for item in folder.iterdir()} == files
    with new_run_folder(tmp_path, None, "x") as other:
        assert other == tmp_path / "x-2"


def test_a_checkpoint_is_no_left_over(tmp_path):
    (fill(tmp_path / "x", **START) / "step-000001").mkdir()
    with pytest.raises(InUseError, match="Continue it with --resume"):
        require_unused(tmp_path / "x")


def test_two_new_runs_of_one_name_do_not_share_it(tmp_path):
    with new_run_folder(tmp_path, "x", "stem") as first:
        with pytest.raises(InUseError, match="another process"), new_run_folder(tmp_path, "x", "stem"):
            pass
        with new_run_folder(tmp_path, None, "x") as second:
            assert (first, second) == (tmp_path / "x", tmp_path / "x-2")
    with locked(tmp_path / "x"):
        pass


def test_a_file_of_the_name_is_said(tmp_path):
    (tmp_path / "x").write_text("")
    with pytest.raises(InUseError, match=r"x: the run's folder is a file"), new_run_folder(tmp_path, "x", "stem"):
        pass
    with new_run_folder(tmp_path, None, "x") as folder:
        assert folder == tmp_path / "x-2"


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path):
    (tmp_path / "x").symlink_to(tmp_path / "nowhere")
    with pytest.raises(OutputError, match="cannot be made"), new_run_folder(tmp_path, "x", "stem"):
        pass


def test_the_hint_quotes_a_folder_with_spaces(tmp_path):
    folder = fill(tmp_path / "two words", **START | {"metrics.jsonl": '{"step": 0}\n'})
    with pytest.raises(InUseError, match=f"--resume '{folder}'"):
        require_unused(folder)


def test_what_is_near_a_run_and_none_names_the_run_to_give(tmp_path):
    for name in ("a", "b"):
        fill(tmp_path / name, **START)
        (tmp_path / name / "model.apr").write_bytes(b"")
    step = tmp_path / "a/step-000001"
    fill(step, **{"model.apr": ""})
    fill(tmp_path / "above")
    (tmp_path / "above/runs").mkdir()
    fill(tmp_path / "above/runs/c", **START)
    for given, hint in (
        (tmp_path, f"Give the run: {tmp_path / 'a'}, {tmp_path / 'b'}"),
        (tmp_path / "above", f"Give the run: {tmp_path / 'above/runs/c'}"),
        (tmp_path / "a/model.apr", f"Give the run: {tmp_path / 'a'}"),
        (step / "model.apr", f"Give the run: {tmp_path / 'a'}, or the checkpoint in it: {step}"),
        (tmp_path / "above/nothing", None),
    ):
        with pytest.raises(RunError, match="this is no run") as caught:
            find_checkpoint(given)
        assert (caught.value.finding.hint or None) == hint


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/x", ".."])
def test_a_name_leads_nowhere_else(tmp_path, name):
    with pytest.raises(ConfigError, match=r"--run: the run's name leads out of --out.*Name the folder above it with --out"):
        new_run_folder(tmp_path / "runs", name, "stem").__enter__()
    assert list(tmp_path.iterdir()) == []
