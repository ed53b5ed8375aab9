"""`apr-train eval` on real runs: the training's own numbers, other rows, the syntax gate, and what it refuses."""

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from apr_train.checkpoint.apr import AprWriter, TensorSpec
from apr_train.checkpoint.open import open_checkpoint
from apr_train.data.corpus import load_corpus
from apr_train.data.tokenizer import build_tokenizer
from apr_train.run.settings import DataSettings


@pytest.mark.parametrize("kind", ["decoder", "encoder"])
def test_a_run_gets_the_loss_that_its_metrics_have(apr, models, kind):
    run = getattr(models, kind)
    (found,) = apr("eval", run, "--json").json["results"]
    last = models.metrics(run)[-1]
    assert found["loss"] == pytest.approx(last["val_loss"], rel=1e-6)
    assert found["perplexity"] == pytest.approx(last["perplexity"], rel=1e-5)
    assert found["accuracy"] == pytest.approx(last["val_accuracy"]) if kind == "encoder" else found["accuracy"] is None
    assert (found["sequence_length"], found["batch_size"], found["batches"]) == (64, 8, 2)
    assert (found["bits_per_byte"] is None) == (kind == "encoder")


def test_a_step_of_a_run_is_measured_like_the_run(apr, models):
    step, whole = (apr("eval", path, "--json").json["results"][0] for path in (models.decoder / "step-000060", models.decoder))
    assert step["corpus_hash"] == whole["corpus_hash"]
    assert step["targets"] == whole["targets"]
    assert step["loss"] > whole["loss"]


def test_a_run_of_another_rule_of_holding_out_is_measured_with_a_warning(apr, models, tmp_path):
    assert "warning" not in apr("eval", models.decoder, "--json").stderr
    run = tmp_path / "old"
    shutil.copytree(models.decoder, run)
    noted = json.loads((run / "identity.json").read_text())
    del noted["split"]
    (run / "identity.json").write_text(json.dumps(noted))
    assert f"warning: {run} held out other text" in apr("eval", run, "--json").stderr


def test_from_scratch_knows_nothing_on_the_same_rows(apr, models):
    trained, fresh = (apr("eval", models.decoder, *more, "--json").json["results"][0] for more in ((), ("--from-scratch",)))
    assert fresh["loss"] == pytest.approx(models.metrics(models.decoder)[0]["val_loss"], rel=1e-6)  # the run's own start
    assert (fresh["from_scratch"], trained["from_scratch"]) == (True, False)
    assert fresh["targets"] == trained["targets"]
    assert fresh["loss"] > trained["loss"] + 1


def test_the_whole_held_out_text_is_counted_to_the_byte(apr, models):
    (found,) = apr("eval", models.decoder, "--batches", 0, "--json").json["results"]
    with open_checkpoint(models.decoder / "model.apr") as checkpoint:
        tokenizer = build_tokenizer(checkpoint.header.tokenizer)
    held_out = load_corpus(DataSettings(data=(str(models.corpus),)), tokenizer).validation
    first = len(tokenizer.decode([int(held_out.ids[0])]))
    assert found["text_bytes"] == held_out.text_bytes - first
    assert found["targets"] == len(held_out) - 1 == found["held_out_tokens"] - 1
    nats = found["loss"] * found["targets"]  # end-of-text included, so a little more than the text alone
    assert found["bits_per_byte"] == pytest.approx(nats / math.log(2) / found["text_bytes"], rel=0.2)
    assert found["bits_per_byte"] < nats / math.log(2) / found["text_bytes"]


def test_several_files_are_measured_on_the_rows_of_the_first_that_is_a_runs(apr, models, tmp_path):
    loose = tmp_path / "loose.apr"
    loose.write_bytes((models.decoder / "step-000060" / "model.apr").read_bytes())
    answer = apr("eval", loose, models.decoder, "--json")
    before, after = answer.json["results"]
    assert "rows as in" in answer.stderr
    assert before["corpus_hash"] == after["corpus_hash"]
    assert before["targets"] == after["targets"]
    assert before["loss"] > after["loss"]
    table = apr("eval", loose, models.decoder).stdout.splitlines()
    assert table[0].split()[:3] == ["file", "loss", "perplexity"]
    assert f"{after['loss']:.4f} nats" in table[2]


def test_a_config_that_is_no_runs_is_left_alone(apr, models, tmp_path):
    (tmp_path / "config.toml").write_text("[somebody]\nelse = true\n")
    (tmp_path / "loose.apr").write_bytes((models.decoder / "model.apr").read_bytes())
    answer = apr("eval", "loose.apr", "--data", models.corpus, "--json")
    assert "rows as in" not in answer.stderr


def test_a_loose_file_is_measured_as_a_new_run_would_be(apr, models, tmp_path):
    loose = tmp_path / "loose.apr"
    loose.write_bytes((models.decoder / "model.apr").read_bytes())
    (found,) = apr("eval", loose, "--data", models.corpus, "--precision", "fp32", "--json").json["results"]
    assert (found["sequence_length"], found["batch_size"], found["batches"]) == (512, 2, 8)
    assert found["corpus"] == str(models.corpus)


def test_options_win_over_the_run(apr, models):
    options = ("--sequence-length", 32, "--batch-size", 3, "--batches", 1, "--document-mask", "--attention", "eager")
    (found,) = apr("eval", models.decoder, *options, "--json").json["results"]
    assert (found["sequence_length"], found["batch_size"], found["batches"]) == (32, 3, 1)
    assert (found["document_mask"], found["attention"]) == (True, "eager")
    assert 0 < found["targets"] <= 96


@pytest.mark.rule("PREFLIGHT-029")
def test_packed_rows_are_masked_and_an_encoders_are_refused(apr, models):
    options = ("--sequence-length", 32, "--batches", 0, "--packing", "best-fit", "--json")
    (found,) = apr("eval", models.decoder, *options).json["results"]
    assert (found["packing"], found["document_mask"]) == ("best-fit", True)
    (cut,) = apr("eval", models.decoder, *options[:4], "--document-mask", "--json").json["results"]
    assert (cut["packing"], cut["targets"]) == ("concatenate", found["targets"])
    assert found["loss"] != cut["loss"]
    answer = apr("eval", models.encoder, "--packing", "best-fit", code=3)
    assert "PREFLIGHT-029" in answer.stderr


def test_the_text_for_people_has_the_same_numbers(apr, models):
    (found,) = apr("eval", models.decoder, "--json").json["results"]
    text = apr("eval", models.decoder).stdout
    assert f"{found['loss']:.4f} nats" in text
    assert f"{found['bits_per_byte']:.4f}" in text
    assert "accuracy" not in text


def test_training_teaches_syntax_and_the_gate_sees_it(apr, models, tmp_path):
    scratch = ("--arch", "llama370m", "--preset", "tiny", "--data", models.corpus, "--steps", 0, "--sample-tokens", 0)
    apr(*scratch, "--run", "fresh")
    fresh = tmp_path / "runs" / "fresh"
    before, after = apr("eval", fresh, models.decoder, "--syntax", 5, "--max-tokens", 32, "--json").json["results"]
    assert (before["asked"], before["completed"], before["parsed"], before["rate"]) == (5, 5, 0, 0.0)
    assert after["parsed"] >= 3
    assert after["rate"] == after["parsed"] / 5
    assert [item["prompt"] for item in before["completions"]] == [item["prompt"] for item in after["completions"]]
    for item in after["completions"]:
        compiles = True
        try:
            compile(item["prompt"] + item["completion"], "completion", "exec")
        except SyntaxError:
            compiles = False
        assert (item["error"] is None) >= compiles
    table = apr("eval", models.decoder, "--syntax", 5, "--max-tokens", 32).stdout
    assert f"{after['parsed']} of 5" in table


def test_weights_that_are_no_numbers_are_said_and_the_json_stays_json(apr, models, tmp_path):
    with open_checkpoint(models.decoder / "model.apr") as checkpoint:
        arrays = {name: np.array(checkpoint.read(name).data) for name in checkpoint.header.tensors}
        specs = [TensorSpec(name, "F32", array.shape) for name, array in arrays.items()]
        with AprWriter(tmp_path / "nan.apr", checkpoint.raw_metadata, specs) as writer:
            for name, array in arrays.items():
                writer.write(name, np.full_like(array, np.nan) if name == "model.norm.weight" else array)
    answer = apr("eval", tmp_path / "nan.apr", "--data", models.corpus, "--seq-len", 32, "--batches", 1, "--json")
    assert "NaN" not in answer.stdout
    assert (answer.json["results"][0]["loss"], answer.json["results"][0]["bits_per_byte"]) == (None, None)
    assert "the loss is not a number" in answer.stderr


def test_the_gate_gives_the_same_answer_twice(apr, models):
    answers = [apr("eval", models.decoder, "--syntax", 3, "--json").stdout for _ in range(2)]
    assert answers[0] == answers[1]


RARE = ("--fim-tokens", "Ā,ā,Ă")
"""Entries of the byte-level vocabulary that no source code has, in place of tokens that this model has none of."""


def test_hidden_lines_are_the_same_for_every_model_and_every_time(apr, models, tmp_path):
    scratch = ("--arch", "llama370m", "--preset", "tiny", "--data", models.corpus, "--steps", 0, "--sample-tokens", 0)
    apr(*scratch, "--run", "fresh")
    fresh = tmp_path / "runs" / "fresh"
    command = ("eval", fresh, models.decoder, "--data", models.corpus, "--seq-len", 64, "--fim", 2, *RARE)
    before, after = apr(*command, "--json").json["results"]
    assert [item["middle"] for item in before["filled"]] == [item["middle"] for item in after["filled"]]
    assert after["loss"] < before["loss"]
    assert (before["asked"], before["lines"], before["exact"]) == (2, 2, 0)
    assert before["exact_interval"] == pytest.approx([0.0, 0.6576], abs=1e-4)  # no one of two, by Wilson's formula
    assert apr(*command, "--json").json["results"] == [before, after]
    for item in after["filled"]:
        path, line = item["source"].rsplit(":", 1)
        assert Path(path).read_text().split("\n")[int(line) - 1] == item["middle"]
    table = apr(*command).stdout
    assert "0 of 2" in table
    assert "nats" in table


def test_fewer_lines_than_asked_are_said_and_one_gate_is_asked_at_a_time(apr, models):
    answer = apr("eval", models.decoder, "--fim", 500, *RARE, "--json")
    (found,) = answer.json["results"]
    assert found["lines"] < found["asked"] == 500
    assert f"has {found['lines']} documents with a line that fits, not 500" in answer.stderr
    assert "one at a time" in apr("eval", models.decoder, "--fim", 5, "--syntax", 5, code=2).stderr
    assert "only with --fim" in apr("eval", models.decoder, *RARE, code=2).stderr
    assert "FIM-001" in apr("eval", models.decoder, "--fim", 5, code=1).stderr


def test_fewer_functions_than_asked_are_said(apr, models):
    answer = apr("eval", models.decoder, "--syntax", 500, "--max-tokens", 2, "--json")
    (found,) = answer.json["results"]
    assert found["completed"] < found["asked"] == 500
    assert f"has {found['completed']} functions that fit, not 500" in answer.stderr


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--syntax", "5"], 1, "an encoder) does not continue a text"),
        (["--syntax", "5"], 1, "eval without --syntax"),
        (["--sequence-length", "300"], 3, "1 to 256 usable positions"),
        (["--attention", "nonsense"], 1, "no such attention backend"),
        (["--data", "nowhere"], 1, "no such file"),
        (["--device", "tpu"], 1, "no such device"),
        (["--arch", "qwen2"], 3, "Encoder checkpoint in the decoder-only causal trainer"),
        (["--validation-fraction", "1.5"], 1, "--validation-fraction"),
        (["--max-tokens", "5"], 2, "only with --syntax"),
    ],
)
def test_what_cannot_be_is_refused_in_one_message(apr, models, options, code, message):
    answer = apr("eval", models.encoder, *options, code=code)
    assert message in answer.stderr
    assert answer.stdout == ""


def test_a_missing_file_and_no_file_are_errors(apr):
    assert "no such file" in apr("eval", "nothing.apr", code=3).stderr
    assert "Missing argument" in apr("eval", code=2).stderr


def test_help_has_an_example(apr):
    text = apr("eval", "--help").stdout
    assert "apr-train eval runs/NAME" in text


def test_it_runs_as_a_process_of_its_own(models):
    command = (
        [sys.executable, "-m", "apr_train.cli"] if False else [sys.executable, "-c", "from apr_train.cli import main; main()"]
    )
    done = subprocess.run(
        [*command, "eval", str(models.decoder), "--json"],
        check=True,
        capture_output=True,
        text=True,
        timeout=120,
        cwd=models.folder,
    )
    assert json.loads(done.stdout)["schema_version"] == 1


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # torch.compile's own, of itself
def test_compiled_blocks_measure_the_same(apr, models):
    """The last batch is shorter than the others, and runs as it is written."""
    how = ("eval", models.decoder, "--batch-size", 3, "--batches", 0, "--json")
    written, compiled = (apr(*how, *options).json["results"][0] for options in ((), ("--compile",)))
    assert compiled["loss"] == pytest.approx(written["loss"], rel=1e-6)
    assert compiled["targets"] == written["targets"]


@pytest.mark.parametrize("options", [("--syntax", 2), ("--fim", 2), ("--reference",)])
def test_only_a_loss_on_held_out_rows_is_compiled(apr, models, options):
    found = apr("eval", models.decoder, *options, "--compile", code=2)
    assert "--compile is only for the loss on held-out rows" in found.stderr
