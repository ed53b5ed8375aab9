"""A start compares loaded weights with the reference loss that their file holds: defects that the limit of 6.0 lets pass."""

import json
import shutil

import numpy as np
import pytest
from apr_train.checkpoint.apr import AprWriter, TensorSpec
from apr_train.checkpoint.open import open_checkpoint
from apr_train.checkpoint.reference import KEY, reference_of

PRECISE = ("--precision", "fp32", "--batch-size", "2", "--lr", "3e-4")


def edited(source, target, *, metadata=None, zero=None):
    """A copy of an `.apr` file with other metadata, or with one tensor of zeros."""
    with open_checkpoint(source) as checkpoint:
        arrays = {name: np.array(checkpoint.read(name).data) for name in checkpoint.header.tensors}
        values = {**checkpoint.raw_metadata, **(metadata or {})}
    specs = [TensorSpec(name, "F32", array.shape) for name, array in arrays.items()]
    with AprWriter(target, values, specs) as writer:
        for name, array in arrays.items():
            writer.write(name, np.zeros_like(array) if name == zero else array)
    return target


@pytest.fixture
def stamped(place, taught):
    path = place.folder / "stamped.apr"
    shutil.copy(taught, path)
    place("eval", path, "--reference", "--no-write")
    place("eval", path, "--reference")
    return path


def without_reference(path):
    return edited(path, path.with_name("bare.apr"), metadata={KEY: None})


@pytest.mark.rule("REFERENCE-001")
def test_weights_that_have_the_files_loss_start_and_nothing_of_the_run_changes(place, taught, stamped):
    out = place.train("--init", stamped, "--steps", "2", "--run", "x", *PRECISE)
    assert "REFERENCE-001: reference loss" in out
    assert "REFERENCE" not in place.train("--init", taught, "--steps", "2", "--run", "y", *PRECISE)
    place.assert_same_end("x", "y", step=2)  # the file's hash too: a measurement does not make it another model


@pytest.mark.rule("FALSIFY-APR-PRETRAIN-INIT-006", "REFERENCE-001")
def test_weights_that_have_their_loss_may_be_bad_at_this_text(place):
    """A model that has learnt next to nothing is told from one whose weights did not arrive."""
    place.train("--arch", "llama370m", "--preset", "tiny", "--steps", "1", "--run", "young", *PRECISE)
    young = place.folder / "young.apr"
    shutil.copy(place.run("young") / "model.apr", young)
    out = place.train("--init", young, "--steps", "1", "--run", "x", *PRECISE, code=1)
    assert "INIT-006" in out
    assert "warning" not in out.partition("INIT-006")[0].splitlines()[-1]
    place("eval", young, "--reference")
    out = place.train("--init", young, "--steps", "1", "--run", "y", *PRECISE)
    assert "they have their reference loss, so this text is new to them" in out


@pytest.mark.rule("REFERENCE-001")
@pytest.mark.parametrize("defect", ["theta", "layer"])
def test_a_defect_that_the_limit_lets_pass_stops_the_run(place, stamped, defect):
    changed = {"theta": {"metadata": {"rope_theta": 40.0}}, "layer": {"zero": "model.layers.1.self_attn.q_proj.weight"}}[defect]
    broken = edited(stamped, place.folder / "broken.apr", **changed)
    place.train("--init", without_reference(broken), "--steps", "1", "--run", "unseen", *PRECISE)
    assert place.curve("unseen")[0]["val_loss"] < 3.9  # ln(1024) - 3: INIT-006 has nothing against it
    out = place.train("--init", broken, "--steps", "1", "--run", "x", *PRECISE, code=1)
    held = json.loads(place("inspect", broken, "--json"))["reference"]
    assert "REFERENCE-001" in out
    assert f"expected {held['loss']:.6f} ± " in out
    assert "eval FILE --reference --write" in out
    assert not place.run("x").exists()
    out = place.train("--init", broken, "--steps", "1", "--run", "x", *PRECISE, "--allow-cold-init")
    assert "REFERENCE-001" in out
    assert "Going on, as --allow-cold-init says" in out


@pytest.mark.rule("REFERENCE-001")
@pytest.mark.parametrize("precision", ["bf16", "bf16-weights"])
def test_another_precision_is_within_its_tolerance(place, stamped, precision):
    out = place.train("--init", stamped, "--steps", "1", "--run", "x", *PRECISE[2:], "--precision", precision)
    assert "REFERENCE-001: reference loss" in out


@pytest.mark.rule("REFERENCE-001")
@pytest.mark.parametrize(
    ("precision", "tensor"), [("bf16", "model.layers.1.self_attn.q_proj.weight"), ("bf16-weights", "model.norm.weight")]
)
def test_a_defect_is_seen_in_bf16_too(place, stamped, precision, tensor):
    """Float32 weights are compared in float32, so that a small defect is seen; bfloat16 weights need a larger one."""
    broken = edited(stamped, place.folder / "broken.apr", zero=tensor)
    out = place.train("--init", broken, "--steps", "1", "--run", "x", *PRECISE[2:], "--precision", precision, code=1)
    assert "REFERENCE-001" in out
    assert f" in {'fp32' if precision == 'bf16' else precision} on cpu, found" in out


@pytest.fixture
def exchanged(place, stamped):
    """tokenizer.json of the file with two letters exchanged."""
    place("export", stamped, "-o", place.folder / "hf")
    content = json.loads((place.folder / "hf" / "tokenizer.json").read_text())
    vocabulary = content["model"]["vocab"]
    vocabulary["e"], vocabulary["a"] = vocabulary["a"], vocabulary["e"]
    path = place.folder / "hf" / "tokenizer.json"
    path.write_text(json.dumps(content))
    return path


@pytest.mark.rule("REFERENCE-002")
def test_a_files_own_tokenizer_that_gives_other_ids_is_an_error(place, stamped, exchanged):
    with open_checkpoint(stamped) as checkpoint:
        held = reference_of(checkpoint.header.extra, stamped)
    out = place.train("--init", exchanged.parent, "--steps", "1", "--run", "x", *PRECISE, code=3)
    assert "REFERENCE-002" in out
    assert f"expected {held.ids}, found " in out
    out = place.train("--init", exchanged.parent, "--steps", "1", "--run", "x", *PRECISE, "--dry-run", "--allow-cold-init")
    assert "REFERENCE-002" in out


@pytest.mark.rule("REFERENCE-002")
def test_another_tokenizer_that_the_user_gives_is_a_warning(place, stamped, exchanged):
    args = ("--tokenizer", exchanged, "--steps", "1", "--run", "x", *PRECISE)
    out = place.train("--init", stamped, *args, "--dry-run")
    assert "warning" in out
    assert "REFERENCE-002" in out
    assert "REFERENCE-001" not in out


@pytest.mark.rule("REFERENCE-002")
@pytest.mark.parametrize(
    ("change", "code", "message"),
    [
        ({"text": "0" * 64}, 0, "measured on another text"),
        ({"sequence_length": 64}, 0, "another length of rows"),
        ({"loss": "low"}, 3, "cannot be read, expected a number, found 'low'"),
        ({"ids": None}, 3, "expected a SHA-256 in lower-case hex"),
        (None, 3, "expected an object, found 7"),
    ],
)
def test_a_note_that_cannot_be_compared_is_said(place, stamped, change, code, message):
    with open_checkpoint(stamped) as checkpoint:
        held = dict(checkpoint.raw_metadata[KEY])
    path = edited(stamped, place.folder / "noted.apr", metadata={KEY: 7 if change is None else held | change})
    out = place.train("--init", path, "--steps", "1", "--run", "x", *PRECISE, code=code)
    assert "REFERENCE-002" in out
    assert message in out
    assert "REFERENCE-001" not in out


def test_a_trained_model_does_not_inherit_the_number(place, stamped):
    place.train("--init", stamped, "--steps", "2", "--save-every", "1", "--run", "x", *PRECISE)
    files = [place.run("x") / "model.apr", *place.run("x").glob("step-*/model.apr")]
    assert len(files) == 3
    for path in files:
        with open_checkpoint(path) as checkpoint:
            assert KEY not in checkpoint.raw_metadata


def test_a_resume_does_not_mind_that_its_files_were_measured_meanwhile(place, taught, stamped):
    bare = place.folder / "init.apr"
    shutil.copy(taught, bare)
    place.train("--init", bare, "--steps", "2", "--save-every", "1", "--run", "x", *PRECISE)
    place.train("--init", bare, "--steps", "4", "--save-every", "1", "--run", "whole", *PRECISE)
    place("eval", bare, "--reference")
    place("eval", place.run("x") / "step-000002", "--reference")
    place("eval", place.run("x"), "--reference")
    out = place("--resume", place.run("x"), "--steps", "4")
    assert "REFERENCE" not in out
    with open_checkpoint(place.run("x") / "model.apr") as checkpoint:
        assert KEY not in checkpoint.raw_metadata  # it was the number of step 2
