"""What is given for the one `.apr` file that `stamp` and `publish` take, and is none."""

import numpy as np
import pytest
from apr_train.artifact.apr_file import open_apr_file
from apr_train.artifact.provenance import stamp
from apr_train.artifact.publish import publish
from apr_train.checkpoint.apr import AprWriter, TensorSpec
from apr_train.errors import FormatError
from apr_train.family.registry import Registry
from safetensors.numpy import save_file


def write_apr(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    with AprWriter(path, {"model_type": "x"}, [TensorSpec("w", "F32", (2,))]) as writer:
        writer.write("w", np.ones(2, np.float32))


@pytest.mark.rule("FALSIFY-APR-PRETRAIN-INIT-003")
@pytest.mark.parametrize(
    "use",
    [
        lambda path: stamp(path, {"license": "MIT"}),
        lambda path: publish(path, path.with_name("out"), Registry({})),
    ],
)
def test_a_name_on_the_hub_is_answered_with_its_download_and_no_errno(use, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FormatError) as caught:
        use(type(tmp_path)("Qwen/Qwen2.5-Coder-0.5B"))
    assert "hf download Qwen/Qwen2.5-Coder-0.5B" in caught.value.finding.hint
    assert caught.value.finding.rule.endswith("INIT-003")
    assert "Errno" not in str(caught.value)


def test_a_folder_names_what_to_give_or_how_to_convert(tmp_path):
    write_apr(tmp_path / "run/model.apr")
    write_apr(tmp_path / "one/x.apr")
    for name in ("hf", "hub/snapshots/abc"):
        (tmp_path / name).mkdir(parents=True)
        save_file({"w": np.ones(2, np.float32)}, tmp_path / name / "model.safetensors")
    for given, hint in (
        ("run", f"Give the file in it: {tmp_path / 'run/model.apr'}"),
        ("one", f"Give the file in it: {tmp_path / 'one/x.apr'}"),
        ("hf", f"Convert it first: apr-train import {tmp_path / 'hf'} -o X.apr."),
        ("hub", f"Convert it first: apr-train import {tmp_path / 'hub/snapshots/abc'} -o X.apr."),
        ("hf/model.safetensors", f"Convert it first: apr-train import {tmp_path / 'hf/model.safetensors'} -o X.apr."),
    ):
        with pytest.raises(FormatError) as caught:
            open_apr_file(tmp_path / given, in_shards="")
        assert caught.value.finding.hint == hint
