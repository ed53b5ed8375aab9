"""Folders of Hugging Face's libraries: laid out as datasets 4 saves them to disk, and as the hub has them."""

import json

import pyarrow
import pyarrow.parquet
import pytest
from apr_train.data.documents import read_documents
from apr_train.data.sources import find_files
from apr_train.errors import DataError

STATE = {
    "_fingerprint": "9b75ae5e907a0737",
    "_format_columns": None,
    "_format_kwargs": {},
    "_format_type": None,
    "_output_all_columns": False,
    "_split": None,
}


def texts_of(name, shard):
    return [f"{name} {shard} {row}" for row in range(5)]


def save(folder, name, *, shards=2, state=None):
    """As Dataset.save_to_disk leaves it: Arrow streams, and two files that describe them."""
    folder.mkdir(parents=True)
    files = [f"data-{shard:05}-of-{shards:05}.arrow" for shard in range(shards)]
    for shard, file in enumerate(files):
        table = pyarrow.table({"text": texts_of(name, shard)})
        with pyarrow.ipc.new_stream(folder / file, table.schema) as writer:
            writer.write_table(table)
    content = STATE | {"_data_files": [{"filename": file} for file in files]} | (state or {})
    (folder / "state.json").write_text(json.dumps(content, indent=2))
    (folder / "dataset_info.json").write_text(json.dumps({"features": {"text": {"dtype": "string", "_type": "Value"}}}))
    return files


def save_splits(folder, names):
    """As DatasetDict.save_to_disk leaves it."""
    for name in names:
        save(folder / name, name, shards=1)
    (folder / "dataset_dict.json").write_text(json.dumps({"splits": list(names)}))


def find(*arguments, notices=None):
    return find_files(map(str, arguments), notice=(notices if notices is not None else []).append)


def texts(files):
    return [document.text for document in read_documents(files)]


def test_a_saved_data_set_is_its_data_files(tmp_path, notices):
    files = save(tmp_path / "set", "a")
    (tmp_path / "set" / "cache-0123456789abcdef.arrow").write_bytes(b"what map() leaves beside them")
    found = find(tmp_path / "set", notices=notices)
    assert found == [tmp_path / "set" / file for file in files]
    assert texts(found) == texts_of("a", 0) + texts_of("a", 1)
    (notice,) = notices
    assert "what describes a data set: 3 (" in notice


@pytest.mark.parametrize("argument", ["", "*", "**", "**/*", "set", "set/*", "set/**/*.arrow", "s*"])
def test_however_it_is_reached_nothing_but_its_data_is_text(tmp_path, argument):
    files = save(tmp_path / "set", "a")
    assert find(tmp_path / argument) == [tmp_path / "set" / file for file in files]


def test_of_a_data_set_with_splits_train_is_taken_with_a_notice(tmp_path, notices):
    save_splits(tmp_path / "set", ["train", "test", "validation"])
    assert texts(find(tmp_path / "set", notices=notices)) == texts_of("train", 0)
    (notice,) = notices
    test, validation = tmp_path / "set" / "test", tmp_path / "set" / "validation"
    assert f"splits of a data set that are not train: 2 ({test}, {validation})" in notice
    assert texts(find(test)) == texts_of("test", 0)  # one that is named is taken


@pytest.mark.rule("PREFLIGHT-025")
def test_splits_without_train_are_refused_by_their_names(tmp_path):
    save_splits(tmp_path / "set", ["a", "b"])
    with pytest.raises(DataError, match="without a split to train on") as caught:
        find(tmp_path / "set")
    finding = caught.value.finding
    assert (finding.rule, finding.subject, finding.found) == ("PREFLIGHT-025", str(tmp_path / "set"), "a, b")
    assert str(tmp_path / "set" / "a") in finding.hint


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda folder: (folder / "data-00001-of-00002.arrow").unlink(), "data-00001-of-00002.arrow"),
        (lambda folder: (folder / "state.json").write_text("{oops"), "damaged data set"),
        (lambda folder: (folder / "state.json").write_text("[]"), "an object"),
        (lambda folder: (folder / "state.json").write_text("{}"), "names of the data files"),
        (lambda folder: (folder / "state.json").write_text('{"_data_files": [3]}'), "names of the data files"),
        (lambda folder: (folder / "state.json").write_text('{"_data_files": [{"filename": "../x.arrow"}]}'), "no such file"),
    ],
)
def test_a_saved_data_set_that_is_not_whole_is_refused(tmp_path, damage, problem):
    save(tmp_path / "set", "a")
    damage(tmp_path / "set")
    with pytest.raises(DataError) as caught:
        find(tmp_path / "set")
    assert problem in str(caught.value)
    assert caught.value.finding.subject.startswith(str(tmp_path / "set"))


def test_rows_that_a_list_chooses_are_refused(tmp_path):
    save(tmp_path / "set", "a", state={"_indices_data_files": [{"filename": "indices.arrow"}]})
    with pytest.raises(DataError, match="rows chosen by a list beside them") as caught:
        find(tmp_path / "set")
    assert "flatten_indices" in caught.value.finding.hint


def hub(folder, names):
    """A data set as `hf download` leaves it: a card, perhaps a loading script, and Parquet by split."""
    (folder / "data").mkdir(parents=True)
    for name in names:
        table = pyarrow.table({"text": [f"of {name}"]})
        pyarrow.parquet.write_table(table, folder / "data" / name)
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# A data set\n")
    (folder / f"{folder.name}.py").write_text("raise SystemExit('a loading script ran')\n")
    (folder / "dataset_infos.json").write_text("{}")
    (folder / ".gitattributes").write_text("*.parquet filter=lfs\n")


def test_a_data_set_of_the_hub_is_its_parquet_of_the_split_to_train_on(tmp_path, notices):
    names = ["train-00000-of-00002.parquet", "train-00001-of-00002.parquet", "test-00000-of-00001.parquet"]
    hub(tmp_path / "set", [*names, "validation-00000-of-00001-0123456789abcdef.parquet"])
    found = find(tmp_path / "set", notices=notices)
    assert found == [tmp_path / "set" / "data" / name for name in names[:2]]
    assert texts(found) == [f"of {name}" for name in names[:2]]
    (notice,) = notices
    assert "what describes a data set: 3 (" in notice
    assert "splits of a data set that are not train: 2 (" in notice
    assert texts(find(tmp_path / "set" / "data" / "test-*.parquet")) == [f"of {names[2]}"]


def test_a_data_set_of_the_hub_without_a_split_to_train_on_is_taken_as_it_is(tmp_path):
    names = ["test-00000-of-00001.parquet", "whole.parquet"]
    hub(tmp_path / "set", names)
    assert [path.name for path in find(tmp_path / "set")] == names


@pytest.mark.parametrize("held_out", ["test", "validation", "val", "dev", "eval_small", "Test"])
def test_splits_in_folders_of_their_own_are_known_by_their_names(tmp_path, notices, held_out):
    for split in ("train", held_out):
        (tmp_path / "set" / "default" / split).mkdir(parents=True)
        table = pyarrow.table({"text": [f"of {split}"]})
        pyarrow.parquet.write_table(table, tmp_path / "set" / "default" / split / "0000.parquet")
    assert texts(find(tmp_path / "set", notices=notices)) == ["of train"]
    (notice,) = notices
    assert f"splits of a data set that are not train: 1 ({tmp_path / 'set' / 'default' / held_out})" in notice
    assert texts(find(tmp_path / "set" / "default" / held_out)) == [f"of {held_out}"]


def test_splits_in_files_of_their_own_are_known_by_their_names(tmp_path, notices):
    names = ("train.jsonl", "test.jsonl", "validation.jsonl.gz", "values.jsonl", "developers.jsonl", "testimonials.json")
    for name in names:
        (tmp_path / name).write_text(json.dumps({"text": name}))
    found = find(tmp_path, notices=notices)
    assert {path.name for path in found} == {"train.jsonl", "values.jsonl", "developers.jsonl", "testimonials.json"}
    assert "splits of a data set that are not train: 2 (" in notices[0]


def test_a_folder_of_tests_beside_code_is_text(tmp_path):
    for name in ("train/a.py", "test/b.py", "test.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}")
    assert len(find(tmp_path)) == 3


def test_a_readme_and_a_script_beside_no_columns_are_text(tmp_path):
    for name in ("README.md", "state.json", "train-00000-of-00001.txt", "test-00000-of-00001.txt", f"{tmp_path.name}.py"):
        (tmp_path / name).write_text("---\ntext")
    assert len(find(tmp_path)) == 5
