"""A third party's model with parameters that nothing uses, on the command line: the run ends after its first backward pass."""

import json

import pytest
from apr_train.rules import TRAIN_001

UNUSED = [f"layers.{layer}.mlp_gate.weight" for layer in range(2)]
ARGUMENTS = ("--arch", "silent", "--vocab-size", "320", "--device", "cpu", "--precision", "fp32", "--threads", "1")
SMALL = ("--sequence-length", "32", "--batch-size", "2", "--val-batches", "2", "--sample-tokens", "0", "--steps", "3")


@pytest.fixture(scope="module")
def site(make_site):
    return make_site(("silent", "silent-plugin"))


@pytest.mark.rule("TRAIN-001")
@pytest.mark.parametrize("more", [(), ("--save-every", "1")], ids=["saved at the end", "saved at every step"])
def test_a_model_that_leaves_parameters_unused_ends_its_first_step_and_leaves_no_result(site, shared, tmp_path, more):
    out = tmp_path / "runs"
    command = ("train", "--data", shared / "corpus", *ARGUMENTS, *SMALL, *more, "--out", out, "--run", "x")
    done = site.cli(*map(str, command), APR_TRAIN_CACHE=str(tmp_path / "cache"))
    assert done.returncode == 1, done.stdout + done.stderr
    assert f"{TRAIN_001}: step 1: " in done.stderr
    assert f"none for 2 of them: {', '.join(UNUSED)}" in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    left = {item.name for item in (out / "x").iterdir()}
    assert "model.apr" not in left
    assert "MODEL_CARD.md" not in left
    assert not [name for name in left if name.startswith("step-")]
    curve = [json.loads(line) for line in (out / "x" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in curve] == [0]
