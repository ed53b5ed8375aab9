"""Runs on several sources, on a held-out set of one's own, and on tokens that were made before."""

import json
import random
import re
import shutil
from fractions import Fraction

import numpy as np
import pytest
from apr_train.checkpoint.apr import open_apr
from apr_train.cli import cli
from apr_train.run.settings_file import read_toml
from click.testing import CliRunner

SMALL = ("--sequence-length", "32", "--val-batches", "2", "--attention", "sdpa", "--sample-tokens", "4", "--threads", "1")
SCRATCH = ("--arch", "llama370m", "--preset", "tiny", "--precision", "fp32")


def write_texts(folder, seed):
    """Small Python-like files, no two the same."""
    draw = random.Random(seed)
    folder.mkdir()
    for number in range(30):
        lines = []
        for _ in range(draw.randint(3, 8)):
            one, two = (draw.choice(("alpha", "beta", "count", "index", "items", "name", "path")) for _ in range(2))
            lines += [f"def {one}_{two}(value):", f"    {two} = value + {draw.randint(0, 99)}", f"    return {two}", ""]
        (folder / f"module_{number}.py").write_text("\n".join(lines) + f"# {seed} {number}")


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts")
    for seed, name in enumerate(("code", "docs", "held"), 1):
        write_texts(folder / name, seed)
    return folder


@pytest.fixture
def mixture(texts):
    return ("--data", f"code={texts / 'code'}:0.7", "--data", f"docs={texts / 'docs'}:0.3", *SMALL, "--batch-size", "2")


@pytest.fixture
def tables(texts, place):
    """Writes [[data.source]] and gives the file."""

    def write(**more):
        lines = []
        for name, weight in (("code", 0.7), ("docs", 0.3)):
            values = {"name": name, "path": str(texts / name), "weight": weight} | more.get(name, {})
            lines += ["[[data.source]]", *(f"{key} = {json.dumps(value)}" for key, value in values.items())]
        (place.folder / "mixture.toml").write_text("\n".join(lines) + "\n")
        return place.folder / "mixture.toml"

    return write


def json_of(out):
    """The JSON behind what is said on the way."""
    return json.loads(out[out.index("{") :])


def test_a_mixture_learns_in_its_shares_and_tells_each_source(place, mixture):
    out = place(*mixture, *SCRATCH, "--steps", "50", "--val-every", "25", "--run", "x")
    assert re.search(r"source code +70\.0% of the rows, [\d,]+ tokens\n", out)
    lines = place.curve("x")
    assert lines[-1]["source_tokens"] == {"code": 70 * 32, "docs": 30 * 32}
    assert sum(lines[20]["source_tokens"].values()) == lines[20]["tokens"]
    measured = [line for line in lines if "val_loss" in line]
    assert [sorted(line["source_val_loss"]) for line in measured] == [["code", "docs"]] * 3
    for line in measured:
        low, high = sorted(line["source_val_loss"].values())
        assert low <= line["val_loss"] <= high
    assert re.search(r"step 50/50 .* val \d\.\d{4} \(perplexity [\d.]+\)  code \d\.\d{4}  docs \d\.\d{4}", out)
    card = (place.run("x") / "MODEL_CARD.md").read_text()
    assert "| corpus | code: code; docs: docs |" in card
    assert re.search(r"\| source code \| weight 70\.0%: 2,240 tokens read, which are 70\.0%, [\d.]+ epochs \|", card)
    assert str(place.folder.parent) not in card
    with open_apr(place.run("x") / "model.apr") as checkpoint:
        origin = checkpoint.raw_metadata["apr_train.run"]
    assert origin["mixture"] == [{"name": "code", "weight": 0.7}, {"name": "docs", "weight": 0.3}]


def test_one_pool_tells_nothing_by_source(place):
    place.train(*SCRATCH, "--steps", "1", "--run", "x")
    assert all("source_tokens" not in line and "source_val_loss" not in line for line in place.curve("x"))


@pytest.mark.parametrize("objective", ["causal-lm", "masked-lm"])
def test_a_mixture_goes_on_bit_for_bit_in_the_middle_of_an_epoch(place, mixture, tables, texts, objective):
    arch = SCRATCH if objective == "causal-lm" else ("--arch", "codebert", "--preset", "tiny", "--precision", "fp32")
    args = (
        *mixture[4:],
        "--config",
        tables(docs={"max_epochs": 1, "weight": 2.0}),
        *arch,
        "--steps",
        "150",
        "--save-every",
        "60",
    )
    place(*args, "--run", "whole")
    place(*args, "--run", "cut")
    states = [json.loads((place.run("cut") / f"step-{step:06}" / "state.json").read_text())["data"] for step in (120, 150)]
    code, docs = (states[0]["sources"][name] for name in ("code", "docs"))
    assert (docs["since"], docs["epoch"]) == (None, 1)  # it has ended
    assert 0 < code["index"] < code["rows"]
    shutil.rmtree(place.run("cut") / "step-000150")
    (place.run("cut") / "model.apr").unlink()
    place("--resume", place.run("cut"))
    place.assert_same_end("whole", "cut", step=150)


def test_when_a_source_will_end_is_said_before_and_when_it_does(place, mixture, tables):
    args = (*mixture[4:], "--config", tables(docs={"max_epochs": 1, "weight": 2.0}), *SCRATCH, "--steps", "150", "--run", "x")
    out = place(*args)
    (step,) = re.findall(r"source docs will have ended with step (\d+); the others share its part", out)
    assert out.count("source docs: epoch 1 done: it has ended, and the others share its part") == 1
    read = [line["source_tokens"]["docs"] for line in place.curve("x")[1:]]
    assert read.index(max(read)) + 1 == int(step)
    assert "source code: epoch 1 done: it starts again in a new order" in out
    last = place.curve("x")[-1]
    share = f"{last['source_tokens']['docs'] / last['tokens']:.1%}"
    card = (place.run("x") / "MODEL_CARD.md").read_text()
    assert re.search(rf"source docs \| weight 74\.1%: {max(read):,} tokens read, which are {share}, 1\.00 epochs", card)
    assert share != "74.1%"


@pytest.mark.rule("PREFLIGHT-041")
def test_sources_that_all_end_before_the_run_are_refused_with_the_steps_that_there_are(place, mixture, tables):
    ends = {"max_epochs": 1}
    args = (*mixture[4:], "--config", tables(code=ends, docs=ends), *SCRATCH, "--run", "x")
    out = place(*args, "--steps", "5000", code=3)
    told = (
        "PREFLIGHT-041: --data [max_epochs]: all sources end before the last step, expected 10,000 rows for 5,000 steps, found "
    )
    assert told in out
    (rows, steps, hint) = re.findall(r"found ([\d,]+) rows, which are ([\d,]+) steps\. Take --steps (\d+), ", out)[0]
    assert int(rows.replace(",", "")) // 2 == int(steps.replace(",", "")) == int(hint)
    assert not place.run("x").exists()
    place(*args, "--steps", hint)
    assert place.curve("x")[-1]["step"] == int(hint)


@pytest.mark.rule("PREFLIGHT-040")
def test_every_fault_of_a_mixture_is_in_one_answer(place, texts):
    args = ("--data", f"code={texts / 'code'}:0", "--data", f"docs={texts / 'none'}:0", *SCRATCH, "--dry-run")
    out = place(*args, code=3)
    for told in ("PREFLIGHT-040: --data: the weights sum to nothing", "found code 0, docs 0", "PREFLIGHT-019"):
        assert told in out


@pytest.fixture
def started(place, mixture):
    place(*mixture, *SCRATCH, "--steps", "3", "--run", "x")
    return place


def test_a_resume_may_say_where_one_source_lies_now(started, texts):
    moved = shutil.copytree(texts / "docs", started.folder / "moved")
    started("--resume", started.run("x"), "--steps", "6", "--data", f"docs={moved}")
    sources = read_toml(started.run("x") / "config.toml").data.source
    assert [(item.name, item.path, item.weight) for item in sources] == [
        ("code", (str(texts / "code"),), 0.7),
        ("docs", (str(moved),), 0.3),
    ]
    assert started.curve("x")[-1]["step"] == 6


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (("docs={}/docs:0.5",), "weight of the source 'docs' was 0.3, now 0.5"),
        (("more={}/held:0.5",), "--data had no source 'more'"),
        (("{}/code",), "--data had a source 'code', which is gone"),
    ],
)
def test_a_resume_on_another_mixture_is_refused_by_name(started, texts, data, told):
    given = [part for item in data for part in ("--data", item.format(texts))]
    assert told in started("--resume", started.run("x"), "--steps", "6", *given, code=1)


def test_a_resume_on_other_text_of_a_source_is_refused(started, texts):
    out = started("--resume", started.run("x"), "--steps", "6", "--data", f"docs={texts / 'held'}", code=1)
    assert "PREFLIGHT-028" in out
    assert "not the text that the run was started on" in out


def test_a_held_out_set_of_ones_own_is_measured_alone(place, texts):
    shutil.copy(texts / "held" / "module_0.py", copy := shutil.copytree(texts / "code", place.folder / "code"))
    shutil.copy(texts / "held" / "module_0.py", copy / "of_the_held.py")
    args = (*SMALL, *SCRATCH, "--data", copy, "--val-data", texts / "held", "--val-batches", "100")
    out = place(*args, "--steps", "2", "--run", "x")
    assert "not learnt, for their text is held out in --val-data: 2 documents" in out
    assert f"{copy} · held out: {texts / 'held'}" in out
    assert "\nOn rows of a held-out set of its own:\n" in (place.run("x") / "MODEL_CARD.md").read_text()
    last = place.curve("x")[-1]["val_loss"]
    told = json_of(place("eval", place.run("x"), "--json"))["results"][0]
    assert told["loss"] == pytest.approx(last, abs=1e-6)
    assert place("--resume", place.run("x"), "--steps", "3")


def test_eval_measures_a_held_out_set_and_reads_no_other_text(started, texts):
    model = started.run("x")
    by_name = ("--val-data", f"docs={texts / 'held'}", "--val-data", f"code={texts / 'docs'}")
    shutil.move(texts / "code", texts / "gone")
    try:
        whole = json_of(started("eval", model, *by_name, "--batches", "0", "--json"))["results"][0]
    finally:
        shutil.move(texts / "gone", texts / "code")
    parts = [
        json_of(started("eval", model, "--val-data", texts / name, "--batches", "0", "--json"))["results"][0]
        for name in ("held", "docs")
    ]
    assert whole["held_out_tokens"] == sum(part["held_out_tokens"] for part in parts)
    expected = sum(part["loss"] * part["targets"] for part in parts) / sum(part["targets"] for part in parts)
    assert whole["loss"] == pytest.approx(expected, rel=1e-5)
    assert whole["source_loss"] == pytest.approx({"docs": parts[0]["loss"], "code": parts[1]["loss"]}, rel=1e-5)
    assert parts[0]["source_loss"] == {}
    assert f"loss of code {parts[1]['loss']:.4f} nats" in re.sub(" +", " ", started("eval", model, *by_name, "--batches", "0"))


def test_eval_of_a_mixture_has_the_loss_of_its_metrics(started):
    told = json_of(started("eval", started.run("x"), "--json"))["results"][0]
    last = started.curve("x")[-1]
    assert told["loss"] == pytest.approx(last["val_loss"], abs=1e-6)
    assert told["source_loss"] == pytest.approx(last["source_val_loss"], abs=1e-6)


def test_a_report_has_a_table_and_a_curve_by_source(started):
    started("report", started.run("x"), "-o", "report.html")
    page = (started.folder / "report.html").read_text()
    assert "<h2>Sources</h2>" in page
    for name in ("code", "docs"):
        assert f"Validation loss: {name}" in page
        assert f'data-panel="source_val_loss-{name}"' in page
    lines = started.curve("x")
    rows = re.findall(r"<td>(code|docs)</td><td>([\d,]+)</td><td>([\d.]+)%</td>", page)
    read = lines[-1]["source_tokens"]
    assert [(name, int(tokens.replace(",", ""))) for name, tokens, _ in rows] == list(read.items())
    assert [float(share) for *_, share in rows] == [
        float(round(Fraction(100 * n, sum(read.values())), 1)) for n in read.values()
    ]
    measured = [line["source_val_loss"] for line in lines if "source_val_loss" in line]
    assert len(measured) > 1
    told = re.findall(r"<td>(code|docs)</td>(?:<td>[^<]*</td>){2}<td>([\d.]+)</td><td>([\d.]+)</td>", page)
    assert [name for name, *_ in told] == ["code", "docs"]
    for name, first, last in told:
        assert [float(first), float(last)] == pytest.approx([measured[0][name], measured[-1][name]], abs=1e-3)


def test_a_report_refuses_what_is_no_number_of_a_source(started):
    metrics = started.run("x") / "metrics.jsonl"
    metrics.write_text(metrics.read_text().replace('"source_tokens": {"code": ', '"source_tokens": {"code": "a", "more": ', 1))
    out = started("report", started.run("x"), "-o", "report.html", code=1)
    assert "line 2: source_tokens.code is no number, found 'a'" in out


@pytest.fixture
def no_torch(monkeypatch):
    """Whoever imports torch fails."""
    import sys

    hidden = [name for name in sys.modules if name == "torch" or name.startswith("torch.")]
    for name in hidden:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torch", None)


def test_a_run_encodes_nothing_after_tokenize(place, mixture, started, monkeypatch):
    args = ("--init", place.run("x") / "model.apr", *mixture[:4], "--sequence-length", "32", "--seed", "3")
    monkeypatch.setenv("APR_TRAIN_CACHE", str(place.folder / "cache"))
    told = json_of(place("tokenize", *args, "--json"))
    before = {path: path.stat().st_mtime_ns for path in (place.folder / "cache" / "tokens").iterdir()}
    assert set(map(str, before)) == set(told["token_files"])

    def encodes(*args, **options):
        raise AssertionError("it encodes")

    monkeypatch.setattr("apr_train.data.encoding.TextEncoder.encode", encodes)
    place(*args, *SMALL[2:], "--steps", "1", "--run", "y", "--allow-cold-init", "--precision", "fp32")
    assert {path: path.stat().st_mtime_ns for path in (place.folder / "cache" / "tokens").iterdir()} == before


def test_tokenize_refuses_a_folder_of_others_before_it_reads(started, mixture, texts):
    source = ("--init", started.run("x") / "model.apr")
    out = started("tokenize", *source, "--data", "not-there", "-o", texts / "code", code=1)
    assert "WRITE-002" in out
    assert "not-there" not in out


def test_tokenize_needs_no_torch(started, mixture, no_torch):
    assert "code" in started("tokenize", "--init", started.run("x") / "model.apr", *mixture[:4])


def test_tokenize_tells_each_source(started, mixture, texts):
    rows = json_of(started("tokenize", "--init", started.run("x") / "model.apr", *mixture[:4], "--json"))["sources"]
    assert [(row["source"], row["kind"], row["files"], row["documents"]) for row in rows] == [
        ("code", "text", 30, 30),
        ("docs", "text", 30, 30),
    ]
    for row in rows:
        size = sum(path.stat().st_size for path in (texts / row["source"]).iterdir())
        assert row["bytes_per_token"] * (row["tokens"] + row["held_out"]) == pytest.approx(size, rel=0.02)
        assert row["targets"] == row["tokens"]


def test_tokenize_shows_documents_as_a_model_reads_them(started, mixture, texts):
    args = ("tokenize", "--init", started.run("x") / "model.apr", *mixture[:2], "--show", "2")
    out = started(*args)
    shown = json_of(started(*args, "--json"))["documents"]
    assert [item["number"] for item in shown] == [0, 1]
    texts_of = {path.read_text() for path in (texts / "code").iterdir()}
    for item in shown:
        ((learnt, text),) = item["parts"]
        assert learnt
        assert text.removesuffix("<|endoftext|>") in texts_of
        assert text in out


def test_shards_of_tokenize_make_the_run_that_their_text_makes(started, mixture, texts):
    init = ("--init", started.run("x") / "model.apr")
    held = ("--val-data", f"code={texts / 'held'}")
    out = started("tokenize", *init, *mixture[:4], *held, "-o", "tokens")
    assert (started.folder / "tokens" / "code" / "train" / "00000.bin").exists(), out
    shared = (*init, *SMALL, "--steps", "3", "--allow-cold-init", "--precision", "fp32")
    started(*shared, *mixture[:4], *held, "--run", "text")
    started(*shared, "--config", started.folder / "tokens" / "run.toml", "--run", "shards")
    losses = [[line["loss"] for line in started.curve(name)[1:]] for name in ("text", "shards")]
    assert losses[0] == losses[1]  # what is held out has another order: its keys are of ids
    started("tokenize", *init, *mixture[:4], "-o", "tokens")  # its own folder may be replaced
    (started.folder / "tokens" / "mine.txt").write_text("mine")
    assert "WRITE-002" in started("tokenize", *init, *mixture[:4], "-o", "tokens", code=1)


def test_tokens_that_one_shard_has_no_room_for_are_in_several(started, mixture, monkeypatch):
    args = ("tokenize", "--init", started.run("x") / "model.apr", *mixture[:2], "-o")
    started(*args, "whole")
    monkeypatch.setattr("apr_train.artifact.tokenized.MOST_IDS", 1000)
    started(*args, "parts")
    whole, *parts = (
        np.fromfile(path, "<u2", offset=1024)
        for name in ("whole", "parts")
        for path in sorted((started.folder / name / "code" / "train").iterdir())
    )
    assert len(parts) > 2
    assert all(len(part) <= 1000 for part in parts)
    assert {int(part[0]) for part in parts} == {int(whole[0])}  # the end of text, in front of each document
    assert np.array_equal(np.concatenate(parts), whole)


def test_tokenize_says_what_is_wrong_all_at_once(place, texts):
    (place.folder / "bad.json").write_text("{}")
    args = ("tokenize", "--tokenizer", place.folder / "bad.json", "--data", texts / "code")
    assert "PREFLIGHT-018" in place(*args, code=3)
    out = place("tokenize", "--data", f"a={texts / 'none'}:0", "--data", f"b={texts / 'code'}:1", code=3)
    assert re.findall(r"PREFLIGHT-\d+", out) == ["PREFLIGHT-040", "PREFLIGHT-019", "PREFLIGHT-017"]


def test_a_mixture_of_text_and_shards_is_one_run(started, mixture, texts):
    started("tokenize", "--init", started.run("x") / "model.apr", "--data", f"docs={texts / 'docs'}", "-o", "tokens")
    shard = started.folder / "tokens" / "docs" / "train" / "00000.bin"
    args = ("--init", started.run("x") / "model.apr", *SMALL, "--allow-cold-init", "--steps", "3", "--run", "y")
    out = started(*args, "--data", f"code={texts / 'code'}:0.5", "--data", f"docs={shard}:0.5")
    assert "source docs  50.0% of the rows" in out
    assert "no text to make a tokenizer from" in started(*SMALL, *SCRATCH, "--data", shard, "--steps", "1", code=1)


def test_help_names_the_command():
    assert "tokenize" in CliRunner().invoke(cli, ["--help"]).output
