"""Runs on text in every format that is read: the same documents give the same run, bit for bit."""

import gzip
import json
import shutil

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

SCRATCH = ("--arch", "llama370m", "--preset", "tiny", "--steps", "2", "--precision", "fp32")
SMALL = ("--sequence-length", "32", "--val-batches", "2", "--attention", "sdpa", "--sample-tokens", "4", "--threads", "1")


@pytest.fixture(scope="module")
def texts(shared):
    return [path.read_text() for path in sorted((shared / "corpus").iterdir())]


def lines(texts):
    return "".join(json.dumps({"id": place, "body": text}) + "\n" for place, text in enumerate(texts)).encode()


def table(texts):
    return pyarrow.table({"id": list(range(len(texts))), "body": texts})


def write_stream(path, content):
    with pyarrow.ipc.new_stream(path, content.schema) as writer:
        writer.write_table(content, max_chunksize=15)


def write_saved(folder, texts):
    """As DatasetDict.save_to_disk leaves it, with a split that is not learnt."""
    for split, rows in (("train", texts), ("test", ["not learnt"])):
        (folder / split).mkdir(parents=True)
        write_stream(folder / split / "data-00000-of-00001.arrow", table(rows))
        state = {"_data_files": [{"filename": "data-00000-of-00001.arrow"}], "_split": split}
        (folder / split / "state.json").write_text(json.dumps(state))
        (folder / split / "dataset_info.json").write_text(json.dumps({"features": {"body": {"dtype": "string"}}}))
    (folder / "dataset_dict.json").write_text(json.dumps({"splits": ["train", "test"]}))


def write_hub(folder, texts):
    """As a download of the hub lies on the disk."""
    (folder / "data").mkdir(parents=True)
    half = len(texts) // 2
    for number, rows in enumerate((texts[:half], texts[half:])):
        pyarrow.parquet.write_table(table(rows), folder / "data" / f"train-{number:05}-of-00002.parquet", row_group_size=7)
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")


def write_array(path, texts):
    path.write_bytes(gzip.compress(json.dumps([{"body": text} for text in texts]).encode()))


FORMATS = {
    "a.jsonl.gz": lambda path, texts: path.write_bytes(gzip.compress(lines(texts[:9])) + gzip.compress(lines(texts[9:]))),
    "a.jsonl.zst": lambda path, texts: path.write_bytes(zstandard.compress(lines(texts))),
    "a.json.gz": write_array,
    "a.parquet": lambda path, texts: pyarrow.parquet.write_table(table(texts), path, row_group_size=15),
    "a.arrow": lambda path, texts: write_stream(path, table(texts)),
    "saved": write_saved,
    "hub": write_hub,
}


@pytest.fixture
def plain(place, texts):
    """A run on JSON lines as they stand."""
    path = place.folder / "plain.jsonl"
    path.write_bytes(lines(texts))
    place(*SCRATCH, *SMALL, "--data", path, "--text-field", "body", "--run", "plain")
    return "plain"


@pytest.mark.parametrize("name", FORMATS)
def test_a_run_on_each_format_is_the_run_on_json_lines(place, plain, texts, name):
    path = place.folder / name
    FORMATS[name](path, texts)
    place(*SCRATCH, *SMALL, "--data", path, "--text-field", "body", "--run", "other")
    assert place.curve("other") == place.curve(plain)
    assert (place.run("other") / "model.apr").exists()


@pytest.mark.rule("PREFLIGHT-025")
@pytest.mark.parametrize("dry", [("--dry-run",), ()])
@pytest.mark.parametrize("name", FORMATS)
def test_without_the_field_its_name_is_suggested_before_anything_is_spent(place, texts, name, dry):
    path = place.folder / name
    FORMATS[name](path, texts)
    out = " ".join(place(*SCRATCH, *SMALL, "--data", path, "--run", "x", *dry, code=3).split())
    assert "PREFLIGHT-025" in out
    assert "--text-field body" in out
    assert not place.run("x").exists()


@pytest.mark.rule("PREFLIGHT-025")
@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst", "a.parquet", "a.arrow"])
def test_half_a_file_is_refused_by_its_name_before_anything_is_spent(place, texts, name):
    path = place.folder / name
    FORMATS[name](path, texts)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    out = place(*SCRATCH, *SMALL, "--data", path, "--text-field", "body", "--run", "x", code=3)
    assert "PREFLIGHT-025" in out
    assert name in out
    assert not place.run("x").exists()


def test_a_resume_reads_the_same_format_again(place, texts):
    path = place.folder / "a.parquet"
    FORMATS["a.parquet"](path, texts)
    run = (*SCRATCH, *SMALL, "--data", path, "--text-field", "body", "--save-every", "1")
    for name in ("whole", "halves"):
        place(*run, "--run", name)
    shutil.rmtree(place.run("halves") / "step-000002")
    (place.run("halves") / "model.apr").unlink()
    place("--resume", place.run("halves"))
    place.assert_same_end("whole", "halves", step=2)
