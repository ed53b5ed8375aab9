"""Which adapter a path in a run's folder means."""

import json

import numpy as np
import pytest
from apr_train.checkpoint.adapter_files import write_adapter
from apr_train.checkpoint.checkpoint import TensorView
from apr_train.errors import RunError
from apr_train.run.adapted import STEP_NOTE, adapted_run, step_of_adapter
from apr_train.run.folder import is_kept_by_a_run, kept_files, name_of


def lay(folder, step):
    folder.mkdir()
    tensors = {"m.lora_A.weight": TensorView("F32", np.ones((2, 3), np.float32))}
    write_adapter(folder, {"peft_type": "LORA", "r": 2}, tensors, note={STEP_NOTE: str(step)})


@pytest.fixture
def run(tmp_path):
    """A run that trained adapters, with a checkpoint and its end."""
    folder = tmp_path / "runs" / "a"
    folder.mkdir(parents=True)
    (folder / "config.toml").write_text('[model]\narch = "fam"\ninit = "/there/base.apr"\n[lora]\nlora_rank = 2\n')
    (folder / "identity.json").write_text(json.dumps({"corpus": "c", "tokenizer": "t", "init": "h"}))
    lay(folder / "step-000003", 3)
    lay(folder / "adapter", 5)
    return folder


def test_the_run_means_its_end_and_a_checkpoint_itself(run):
    for path, where in (
        (run, "adapter"),
        (run / "adapter", "adapter"),
        (run / "adapter" / "adapter_model.safetensors", "adapter"),
        (run / "step-000003", "step-000003"),
        (str(run / "step-000003" / "adapter_model.safetensors"), "step-000003"),
    ):
        found = adapted_run(path)
        assert (found.adapter, found.run) == (run / where, run)
        assert (found.base, found.base_hash, found.arch, found.tokenizer) == ("/there/base.apr", "h", "fam", None)
    assert step_of_adapter(run) == 5


def test_other_paths_mean_no_adapter(run, tmp_path):
    lay(tmp_path / "alone", 1)
    for path in (tmp_path, tmp_path / "alone", run / "metrics.jsonl", run / "nothing", tmp_path / "nothing", "x" * 300):
        assert adapted_run(path) is None
    assert step_of_adapter(tmp_path) is None


def test_a_run_of_whole_models_is_none_whatever_its_settings_are(run):
    (run / "config.toml").write_text("[")
    for folder in (run, run / "step-000003"):
        (folder / "model.apr").write_bytes(b"APR")
        assert adapted_run(folder) is None


def test_a_run_without_an_end_names_its_last_checkpoint(run):
    for file in (run / "adapter").iterdir():
        file.unlink()
    with pytest.raises(RunError, match=r"no result yet.*step-000003"):
        adapted_run(run)


def test_the_files_are_kept_and_named_by_their_run(run):
    files = [run / folder / "adapter_model.safetensors" for folder in ("adapter", "step-000003")]
    assert all(is_kept_by_a_run(file) and file in kept_files(run) for file in files)
    assert {name_of(path) for path in (run, *files)} == {"a"}
    assert name_of("/x/base.apr") == "base"
    assert (name_of(run / "adapter"), name_of(run / "step-000003")) == ("a", "a")
    assert (name_of(run / "mine.apr"), name_of(run / "for-hf")) == ("mine", "for-hf")  # lies there, and is not the run's
