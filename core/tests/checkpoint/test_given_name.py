"""A checkpoint is called as the user calls it: links are not followed, and a hash of the Hub's cache is no name."""

import pytest
from apr_train.checkpoint.given_name import given_name, given_stem, hub_name

HASH = "4d7a214614ab2935c943f9e0ff69d22eadbb8f32"


@pytest.mark.parametrize(
    ("path", "name", "stem"),
    [
        ("models/x.apr", "x.apr", "x"),
        ("models/x.GGUF", "x.GGUF", "x"),
        ("models/Qwen2.5-Coder-0.5B", "Qwen2.5-Coder-0.5B", "Qwen2.5-Coder-0.5B"),
        ("models/here/..", "models", "models"),
        ("models/x/", "x", "x"),
        (f"hub/models--Org--Na--me/snapshots/{HASH}", "Na--me", "Na--me"),
        (f"hub/models--gpt2/snapshots/{HASH}/", "gpt2", "gpt2"),
        (f"hub/models--Org--Name/snapshots/{HASH}/model-f32.gguf", "model-f32.gguf", "model-f32"),
        (f"hub/models--Org--Tiny-Qwen2.5/snapshots/{HASH}/model.safetensors", "Tiny-Qwen2.5", "Tiny-Qwen2.5"),
        ("models/Qwen2.5-Coder/model.safetensors", "Qwen2.5-Coder", "Qwen2.5-Coder"),
        ("models/x.apr/model.safetensors", "x.apr", "x.apr"),
        ("models/x/other.safetensors", "other.safetensors", "other"),
        ("/model.safetensors", "model.safetensors", "model"),
        (f"other/snapshots/{HASH}", HASH, HASH),
    ],
)
def test_the_name_is_the_one_that_was_given(path, name, stem):
    assert (given_name(path), given_stem(path)) == (name, stem)


def test_a_link_has_its_own_name_and_the_folder_that_one_is_in_has_one(tmp_path, monkeypatch):
    blob = tmp_path / "blobs" / HASH
    blob.parent.mkdir()
    blob.write_bytes(b"")
    (tmp_path / "model-f32.gguf").symlink_to(blob)
    assert given_stem(tmp_path / "model-f32.gguf") == "model-f32"
    (tmp_path / "Qwen2.5.apr").mkdir()  # a folder has no suffix
    assert given_stem(tmp_path / "Qwen2.5.apr") == "Qwen2.5.apr"
    monkeypatch.chdir(tmp_path / "Qwen2.5.apr")
    assert given_name(".") == "Qwen2.5.apr"


@pytest.mark.parametrize(
    ("path", "name"),
    [
        (f"hub/models--Org--Na--me/snapshots/{HASH}", "Org/Na--me"),
        (f"hub/models--Org--Name/snapshots/{HASH}/model.safetensors", "Org/Name"),
        (f"hub/models--gpt2/snapshots/{HASH}", None),
        ("models/Org--Name", None),
        (f"other/snapshots/{HASH}", None),
    ],
)
def test_only_a_snapshot_in_the_hub_s_cache_has_a_name_there(path, name):
    assert hub_name(path) == name
