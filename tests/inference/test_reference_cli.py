"""`apr-train eval --reference`: the number against transformers, where it is written, where it is not, and where it goes."""

import hashlib
import json
import math
import shutil

import numpy as np
import pytest
import torch
import yaml
from apr_train.artifact.provenance import stamp_reference
from apr_train.checkpoint.apr import AprWriter, Flags, TensorSpec, open_apr
from apr_train.checkpoint.open import open_checkpoint
from apr_train.checkpoint.reference import KEY, reference_of
from apr_train.checkpoint.validation import validate
from apr_train.data.batch import IGNORED
from apr_train.data.objectives import OBJECTIVES
from apr_train.data.reference import SHA256, reference_rows, reference_text
from apr_train.data.tokenizer import build_tokenizer
from apr_train.errors import OutputError
from torch.nn import functional as F


@pytest.fixture
def decoder(apr, models, tmp_path):
    return shutil.copy(models.decoder / "model.apr", tmp_path / "m.apr")


def held_by(path):
    with open_checkpoint(path) as checkpoint:
        return reference_of(checkpoint.header.extra, path)


def tensors_of(path):
    with open_apr(path) as reader:
        return {name: bytes(reader.read_raw(name)) for name in reader.header.tensors}


def measured(answer):
    (found,) = answer.json["results"]
    return found


def test_the_loss_is_transformers_loss_on_the_same_ids(apr, decoder, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    found = measured(apr("eval", decoder, "--reference", "--json"))
    apr("export", decoder, "-o", tmp_path / "hf")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32).eval()
    ids = AutoTokenizer.from_pretrained(tmp_path / "hf")(reference_text())["input_ids"]
    assert found["ids_sha256"] == hashlib.sha256(np.array(ids, "<i8").tobytes()).hexdigest()
    length, total = found["sequence_length"], 0.0
    for begin in range(0, len(ids) - 1, length):
        row, after = torch.tensor([ids[begin : begin + length]]), torch.tensor(ids[begin + 1 : begin + length + 1])
        with torch.no_grad():
            total += float(F.cross_entropy(model(row).logits[0, : len(after)].double(), after, reduction="sum"))
    assert found["targets"] == len(ids) - 1
    assert found["loss"] == pytest.approx(total / (len(ids) - 1), rel=1e-5)
    assert found["perplexity"] == pytest.approx(math.exp(found["loss"]))
    size = len(reference_text().encode()) - len("".join(AutoTokenizer.from_pretrained(tmp_path / "hf").decode(ids[:1])))
    assert found["bits_per_byte"] == pytest.approx(total / math.log(2) / size, rel=1e-5)


def test_an_encoders_loss_is_transformers_loss_on_the_same_masks(apr, models, tmp_path):
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    path = shutil.copy(models.encoder / "model.apr", tmp_path / "e.apr")
    one, other = (measured(apr("eval", path, "--reference", "--json")) for _ in range(2))
    assert (one["loss"], one["accuracy"]) == (other["loss"], other["accuracy"])
    assert held_by(path).loss == pytest.approx(one["loss"], abs=5e-7)
    apr("export", path, "-o", tmp_path / "hf")
    model = AutoModelForMaskedLM.from_pretrained(tmp_path / "hf", dtype=torch.float32).eval()
    plain = AutoTokenizer.from_pretrained(tmp_path / "hf")
    ids = plain(reference_text(), add_special_tokens=False)["input_ids"]
    ends = [plain.convert_tokens_to_ids(token) for token in ("<s>", "</s>")]
    assert one["ids_sha256"] == hashlib.sha256(np.array([ends[0], *ids, ends[1]], "<i8").tobytes()).hexdigest()
    with open_checkpoint(path) as checkpoint:
        tokenizer = build_tokenizer(checkpoint.header.tokenizer)
    total = count = 0
    for batch in reference_rows(OBJECTIVES["masked-lm"], tokenizer, positions=one["sequence_length"]).batches():
        with torch.no_grad():
            mask = None if batch.keep is None else batch.keep.long()
            logits = model(batch.tokens, attention_mask=mask).logits[batch.targets != IGNORED]
        chosen = batch.targets[batch.targets != IGNORED]
        total, count = total + float(F.cross_entropy(logits.double(), chosen, reduction="sum")), count + len(chosen)
    assert one["targets"] == count
    assert one["loss"] == pytest.approx(total / count, rel=1e-5)


def test_an_apr_file_gets_the_number_and_keeps_every_tensor(apr, decoder):
    before = tensors_of(decoder)
    answer = apr("eval", decoder, "--reference", "--json")
    found = measured(answer)
    assert (found["written"], found["not_written"], found["file_loss"], found["agrees"]) == (True, None, None, None)
    assert (found["device"], found["precision"], found["text_sha256"]) == ("cpu", "fp32", SHA256)
    held = held_by(decoder)
    assert held.loss == round(found["loss"], 6)
    assert (held.text, held.ids, held.precision) == (SHA256, found["ids_sha256"], "fp32")
    assert tensors_of(decoder) == before
    with open_apr(decoder, verify=False) as reader:
        assert validate(reader) == []
    again, inode = measured(apr("eval", decoder, "--reference", "--json")), decoder.stat().st_ino
    assert (again["written"], again["agrees"], again["file_loss"]) == (True, True, held.loss)
    apr("eval", decoder, "--reference")
    assert decoder.stat().st_ino == inode  # the same number is not written again


def test_the_text_for_people_has_the_numbers(apr, decoder, models):
    text = apr("eval", decoder, "--reference").stdout
    held = held_by(decoder)
    for part in (f"{held.loss:.6f} nats", held.text[:12], held.ids, "bits per byte", "written"):
        assert part in text
    table = apr("eval", decoder, models.encoder, "--reference", "--no-write").stdout.splitlines()
    assert len(table) == 3
    assert f"{held.loss:.6f}" in table[1]
    assert "nothing" in table[2]
    assert json.loads(apr("inspect", decoder, "--json").stdout)["reference"]["loss"] == held.loss
    assert "reference loss" in apr("inspect", decoder).stdout


def test_a_run_and_a_step_of_it_are_written_like_any_file(apr, models, tmp_path):
    run = shutil.copytree(models.decoder, tmp_path / "run")
    apr("eval", run, run / "step-000060", "--reference")
    whole, step = held_by(run / "model.apr"), held_by(run / "step-000060" / "model.apr")
    assert whole.loss != step.loss
    assert whole.ids == step.ids


def other_number(path, **changes):
    with open_apr(path) as reader:
        arrays = {name: np.array(reader.read(name).data) for name in reader.header.tensors}
        metadata = dict(reader.raw_metadata)
    metadata[KEY] = metadata[KEY] | changes
    with AprWriter(path, metadata, [TensorSpec(name, "F32", array.shape) for name, array in arrays.items()]) as writer:
        for name, array in arrays.items():
            writer.write(name, array)


@pytest.mark.rule("REFERENCE-001")
def test_another_number_in_the_file_is_an_error_and_stays_until_it_is_replaced(apr, decoder):
    apr("eval", decoder, "--reference")
    true = held_by(decoder).loss
    other_number(decoder, loss=true + 0.001)
    answer = apr("eval", decoder, "--reference", "--json", code=1)
    found = measured(answer)
    assert "REFERENCE-001" in answer.stderr
    assert f"found {true:.6f}" in answer.stderr
    assert (found["written"], found["agrees"], found["file_loss"]) == (False, False, true + 0.001)
    assert "--write puts this one in its place" in found["not_written"]
    assert "REFERENCE-001" in apr("eval", decoder, "--reference", "--no-write", code=1).stderr
    assert held_by(decoder).loss == true + 0.001
    assert f"written, was {true + 0.001:.6f}" in apr("eval", decoder, "--reference", "--write").stdout
    assert held_by(decoder).loss == true


@pytest.mark.rule("REFERENCE-002")
@pytest.mark.parametrize(("change", "code"), [({"ids": "0" * 64}, 1), ({"text": "0" * 64}, 0)])
def test_a_number_of_other_ids_or_another_text_is_not_compared(apr, decoder, change, code):
    apr("eval", decoder, "--reference")
    other_number(decoder, **change)
    answer = apr("eval", decoder, "--reference", "--json", code=code)
    found = measured(answer)
    assert "REFERENCE-002" in answer.stderr
    assert (found["written"], found["agrees"]) == (False, None)
    apr("eval", decoder, "--reference", "--write")
    assert held_by(decoder).text == SHA256


def test_a_note_that_cannot_be_read_is_said_and_replaced(apr, decoder):
    apr("eval", decoder, "--reference")
    other_number(decoder, loss="low")
    answer = apr("eval", decoder, "--reference")
    assert "cannot be read" in answer.stderr
    assert held_by(decoder).loss > 0


def test_folders_and_other_containers_are_printed_only(apr, decoder, tmp_path):
    apr("export", decoder, "-o", tmp_path / "hf")
    before = {path.name: path.read_bytes() for path in (tmp_path / "hf").iterdir()}
    answer = apr("eval", tmp_path / "hf", "--reference", "--json")
    assert (measured(answer)["written"], measured(answer)["loss"] > 0) == (False, True)
    assert "only an .apr file holds it" in answer.stderr
    assert {path.name: path.read_bytes() for path in (tmp_path / "hf").iterdir()} == before


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--no-write",), "--no-write"),
        (("--precision", "bf16-weights"), "measured in bf16-weights"),
        (("--tokenizer", "t/tokenizer.json"), "with --tokenizer"),
    ],
)
def test_what_is_not_the_files_own_number_is_not_written(apr, decoder, tmp_path, options, reason):
    apr("export", decoder, "-o", tmp_path / "t")
    before = decoder.read_bytes()
    found = measured(apr("eval", decoder, "--reference", *options, "--json"))
    assert reason in found["not_written"]
    assert not found["written"]
    assert decoder.read_bytes() == before


def test_a_signed_file_is_printed_only(apr, decoder, tmp_path):
    with open_apr(decoder) as reader:
        specs = [TensorSpec(name, "F32", info.shape) for name, info in reader.header.tensors.items()]
        with AprWriter(tmp_path / "signed.apr", reader.raw_metadata, specs, flags=int(Flags.SIGNED)) as writer:
            for spec in specs:
                writer.write(spec.name, reader.read_raw(spec.name))
    before = (tmp_path / "signed.apr").read_bytes()
    assert "break its signature" in apr("eval", tmp_path / "signed.apr", "--reference").stderr
    assert (tmp_path / "signed.apr").read_bytes() == before


def test_a_file_that_changed_since_it_was_measured_is_left_alone(apr, decoder):
    apr("eval", decoder, "--reference")
    held, before = held_by(decoder), decoder.read_bytes()
    with open_apr(decoder) as reader:
        identity = reader.identity
    shutil.copy(decoder, decoder.with_name("new.apr"))
    decoder.with_name("new.apr").replace(decoder)
    with pytest.raises(OutputError, match="changed since it was measured"):
        stamp_reference(decoder, held, identity=identity)
    assert decoder.read_bytes() == before


def test_a_place_that_cannot_be_written_is_said_and_the_number_is_there(apr, decoder, monkeypatch):
    def full(*args, **values):
        raise OutputError("cannot be written", where=decoder, hint="Make room.")

    monkeypatch.setattr("apr_train.artifact.provenance.rewrite", full)
    found = measured(apr("eval", decoder, "--reference", "--json"))
    assert found["loss"] > 0
    assert (found["written"], "Make room." in found["not_written"]) == (False, True)


@pytest.mark.parametrize("option", [("--data", "x"), ("--batches", 1), ("--syntax", 2), ("--from-scratch",), ("--seq-len", 8)])
def test_options_that_would_change_the_number_are_wrong_usage(apr, decoder, option):
    assert "leave out" in apr("eval", decoder, "--reference", *option, code=2).stderr


@pytest.mark.parametrize("option", ["--write", "--no-write"])
def test_writing_is_only_for_the_reference(apr, decoder, option):
    assert "only with --reference" in apr("eval", decoder, option, code=2).stderr


def front_matter(path):
    return yaml.safe_load(path.read_text().split("---")[1])


def test_export_import_and_publish_carry_the_number(apr, decoder, tmp_path):
    apr("eval", decoder, "--reference")
    held = held_by(decoder)
    apr("export", decoder, "-o", tmp_path / "hf")
    assert held_by(tmp_path / "hf") == held
    assert front_matter(tmp_path / "hf" / "README.md") == {KEY: held.to_metadata()}
    assert measured(apr("eval", tmp_path / "hf", "--reference", "--json"))["agrees"] is True
    apr("import", tmp_path / "hf", "-o", tmp_path / "back.apr")
    apr("import", decoder, "-o", tmp_path / "again.apr")
    assert held_by(tmp_path / "back.apr") == held_by(tmp_path / "again.apr") == held
    apr("stamp", decoder, "--license", "MIT", "--data-source", "x", "--data-license", "MIT")
    assert held_by(decoder) == held
    apr("publish", decoder, "-o", tmp_path / "published")
    assert held_by(tmp_path / "published" / "m.apr") == held_by(tmp_path / "published") == held
    card = (tmp_path / "published" / "README.md").read_text()
    assert f"| reference loss | {held.loss:.4f} nats a token in fp32, on apr-train's text {SHA256[:12]} |" in card
    assert "the same model" in apr("diff", decoder, tmp_path / "back.apr").stdout


def test_rounded_weights_lose_the_number_and_widened_ones_keep_it(apr, decoder, tmp_path):
    apr("eval", decoder, "--reference")
    answer = apr("import", decoder, "-o", tmp_path / "half.apr", "--dtype", "bf16")
    assert "left out: the reference loss" in answer.stdout
    assert held_by(tmp_path / "half.apr") is None
    apr("eval", tmp_path / "half.apr", "--reference")
    half = held_by(tmp_path / "half.apr")
    assert half is not None
    apr("import", tmp_path / "half.apr", "-o", tmp_path / "wide.apr", "--dtype", "f32")
    assert held_by(tmp_path / "wide.apr") == half
    assert measured(apr("eval", tmp_path / "wide.apr", "--reference", "--json"))["agrees"] is True
    apr("export", decoder, "-o", tmp_path / "hf", "--dtype", "f16")
    assert held_by(tmp_path / "hf") is None
    apr("stamp", decoder, "--license", "MIT", "--data-source", "x", "--data-license", "MIT")
    apr("publish", decoder, "-o", tmp_path / "published", "--dtype", "bf16")
    assert held_by(tmp_path / "published") is None
    assert held_by(tmp_path / "published" / "m.apr") is not None


def test_a_measurement_does_not_make_another_model_of_a_file(apr, decoder):
    def content_hash():
        with open_checkpoint(decoder) as checkpoint:
            return checkpoint.content_hash()

    before = content_hash()
    apr("eval", decoder, "--reference")
    assert content_hash() == before
    apr("stamp", decoder, "--name", "Other")
    assert content_hash() != before
