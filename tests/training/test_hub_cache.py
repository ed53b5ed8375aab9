"""What starts from the Hub's cache, where files are links to hashes, is called as the user calls the model."""

import pytest
from apr_train.checkpoint.open import open_checkpoint

HASH = "4d7a214614ab2935c943f9e0ff69d22eadbb8f32"


@pytest.fixture
def snapshot(place, taught):
    """A model as huggingface_hub keeps it: models--ORGANISATION--NAME/snapshots/HASH, links into blobs/."""
    cached = place.folder / "hub" / "models--Org--Tiny-Coder"
    (cached / "blobs").mkdir(parents=True)
    folder = cached / "snapshots" / HASH
    folder.mkdir(parents=True)
    place("export", taught, "-o", place.folder / "plain")
    for number, path in enumerate(sorted((place.folder / "plain").iterdir())):
        path.rename(cached / "blobs" / f"{number:064x}")
        (folder / path.name).symlink_to(f"../../blobs/{number:064x}")
    return folder


def source_of(path):
    with open_checkpoint(path) as checkpoint:
        return checkpoint.header.provenance["source"]


def test_a_run_its_card_and_an_import_are_called_after_the_model(place, snapshot):
    out = place.train("--init", snapshot, "--steps", "1", "--precision", "fp32")
    assert "runs/llama370m-Tiny-Coder" in out
    card = (place.run("llama370m-Tiny-Coder") / "MODEL_CARD.md").read_text()
    assert "| started from | Tiny-Coder |" in card
    assert HASH not in card
    place("import", snapshot, "-o", "m.apr")
    assert source_of("m.apr") == "Tiny-Coder"
    assert "the same model" in place("diff", snapshot, "m.apr")


def test_a_file_of_the_cache_has_its_own_name_and_not_that_of_its_blob(place, snapshot):
    (snapshot / "tiny-f32.safetensors").symlink_to((snapshot / "model.safetensors").readlink())
    place("import", snapshot / "tiny-f32.safetensors", "-o", "m.apr")
    assert source_of("m.apr") == "tiny-f32.safetensors"
    out = place.train("--init", snapshot / "tiny-f32.safetensors", "--steps", "0", "--precision", "fp32")
    assert "runs/llama370m-tiny-f32" in out


def test_the_cache_is_not_written_over_through_its_links(place, snapshot):
    blobs = snapshot.parent.parent / "blobs"
    before = {path.name: path.read_bytes() for path in blobs.iterdir()}
    for target in (snapshot / "model.safetensors", blobs / (snapshot / "model.safetensors").readlink().name):
        assert "WRITE-001" in place("import", snapshot, "-o", target, code=1)
    assert "the folder holds the source" in place("export", snapshot, "-o", blobs, code=1)
    assert {path.name: path.read_bytes() for path in blobs.iterdir()} == before
