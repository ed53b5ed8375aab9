"""Models in several files: through the manifest, through a shard, and through neither."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from apr_train.checkpoint.apr import AprWriter, Flags, TensorSpec, open_apr
from apr_train.errors import FormatError

NAMES = ["model-00001-of-00002.apr", "model-00002-of-00002.apr"]
VALUES = {"a": (0, [1.0, 2.0]), "b": (1, [3.0]), "c": (0, [4.0])}


def write_shards(folder: Path) -> Path:
    for number, name in enumerate(NAMES):
        own = {tensor: values for tensor, (shard, values) in VALUES.items() if shard == number}
        metadata = {
            "model_type": "llama",
            "hidden_size": 2,
            "sharding": {"shard_count": 2, "shard_index": number, "total_size": 16, "pattern": None},
        }
        specs = [TensorSpec(tensor, "F32", (len(values),)) for tensor, values in own.items()]
        with AprWriter(folder / name, metadata, specs, flags=Flags.SHARDED) as writer:
            for tensor, values in own.items():
                writer.write(tensor, np.array(values, np.float32))
    manifest = {
        "version": "2.0",
        "shard_count": 2,
        "total_size": 16,
        "tensor_count": 3,
        "shards": [
            {"filename": name, "index": number, "size": (folder / name).stat().st_size, "tensors": []}
            for number, name in enumerate(NAMES)
        ],
        "weight_map": {tensor: shard for tensor, (shard, _) in VALUES.items()},
    }
    path = folder / "model.apr.json"
    path.write_text(json.dumps(manifest))
    return path


def change(manifest: Path, **changes) -> None:
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | changes))


@pytest.mark.parametrize("start", ["model.apr.json", *NAMES])
def test_the_whole_model_is_read_from_the_manifest_and_from_any_shard(tmp_path, start):
    write_shards(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with open_apr(tmp_path / start) as reader:
        assert {name: reader.read(name).data.tolist() for name in reader.header.tensors} == {
            name: values for name, (_, values) in VALUES.items()
        }
        assert reader.header.config["hidden_size"] == 2
        with reader.stream() as stream:
            buffer = bytearray(4)
            stream.read_into("b", memoryview(buffer))
        assert np.frombuffer(buffer, np.float32).tolist() == [3.0]


def test_shards_have_the_content_hash_of_the_whole(tmp_path):
    manifest = write_shards(tmp_path)
    specs = [TensorSpec(name, "F32", (len(values),)) for name, (_, values) in VALUES.items()]
    with AprWriter(tmp_path / "whole.apr", {"model_type": "llama", "hidden_size": 2}, specs) as writer:
        for name, (_, values) in VALUES.items():
            writer.write(name, np.array(values, np.float32))
    with open_apr(manifest) as sharded, open_apr(tmp_path / "whole.apr") as whole:
        assert sharded.content_hash() == whole.content_hash()


@pytest.mark.parametrize("name", ["/etc/passwd", "../model.apr", "a/b.apr", "..", ".", "", "a\\b", "a\0b", 3, None])
def test_names_that_lead_out_of_the_folder_are_refused(tmp_path, name):
    manifest = write_shards(tmp_path)
    shards = json.loads(manifest.read_text())["shards"]
    shards[0]["filename"] = name
    change(manifest, shards=shards)
    with pytest.raises(FormatError, match="file name"):
        open_apr(manifest)


@pytest.mark.parametrize(
    "changes",
    [
        {"shard_count": 3},
        {"tensor_count": 4},
        {"shards": []},
        {"shards": {}},
        {"shards": [1, 2]},
        {"weight_map": []},
        {"weight_map": {"a": 0, "b": 1, "c": 2}},
        {"weight_map": {"a": 0, "b": 1, "c": True}},
        {"weight_map": {"a": 0, "b": 1, "c": 1}},
        {"weight_map": {"a": 0, "b": 1, "d": 0}},
        {"weight_map": {"a": 0, "b": 1}, "tensor_count": 2},
    ],
    ids=str,
)
def test_a_manifest_that_contradicts_itself_or_the_shards_is_refused(tmp_path, changes):
    manifest = write_shards(tmp_path)
    change(manifest, **changes)
    with pytest.raises(FormatError):
        open_apr(manifest)


def test_two_entries_for_one_file_or_one_number_are_refused(tmp_path):
    manifest = write_shards(tmp_path)
    shards = json.loads(manifest.read_text())["shards"]
    change(manifest, shards=[shards[0], shards[0] | {"index": 1}])
    with pytest.raises(FormatError, match="same file"):
        open_apr(manifest)
    change(manifest, shards=[shards[0], shards[1] | {"index": 0}])
    with pytest.raises(FormatError, match="number"):
        open_apr(manifest)


def test_a_missing_shard_is_named(tmp_path):
    manifest = write_shards(tmp_path)
    (tmp_path / NAMES[1]).unlink()
    with pytest.raises(FormatError, match="00002-of-00002"):
        open_apr(manifest)


def test_a_shard_without_a_manifest_asks_for_it(tmp_path):
    write_shards(tmp_path).unlink()
    with pytest.raises(FormatError, match="no manifest"):
        open_apr(tmp_path / NAMES[0])


def test_a_shard_with_two_manifests_asks_which(tmp_path):
    manifest = write_shards(tmp_path)
    (tmp_path / "second.json").write_text(manifest.read_text())
    with pytest.raises(FormatError, match="several manifests"):
        open_apr(tmp_path / NAMES[0])


def test_a_damaged_shard_is_found_by_its_checksum(tmp_path):
    manifest = write_shards(tmp_path)
    raw = (tmp_path / NAMES[1]).read_bytes()
    (tmp_path / NAMES[1]).write_bytes(raw[:-10] + b"\x01" + raw[-9:])
    with open_apr(manifest) as reader:
        assert reader.read("a").data.tolist() == [1.0, 2.0]
        with pytest.raises(FormatError, match=r"00002.*checksum"):
            reader.read("b")
    with pytest.raises(FormatError, match="checksum"), open_apr(manifest) as reader, reader.stream():
        pass


def test_manifests_of_every_byte_flipped_raise_only_format_errors(tmp_path):
    manifest = write_shards(tmp_path)
    raw = manifest.read_bytes()
    for position in range(len(raw)):
        for mask in (0x01, 0x80):
            manifest.write_bytes(raw[:position] + bytes([raw[position] ^ mask]) + raw[position + 1 :])
            try:
                with open_apr(manifest) as reader:
                    assert sorted(reader.header.tensors) == ["a", "b", "c"]
            except FormatError:
                pass
