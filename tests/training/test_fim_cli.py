"""Fill in the middle through the command line: what is refused, that it is learnt, and that it goes on bit for bit."""

import itertools
import json
from collections import Counter

import pytest
from apr_train.checkpoint.open import open_checkpoint
from apr_train.data.corpus import EncodingWanted, load_corpus
from apr_train.data.objectives import OBJECTIVES
from apr_train.data.tokenizer import build_tokenizer
from apr_train.run.settings import DataSettings
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

SPECIAL = ("<|endoftext|>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>")
SIZE = 300
SHAPE = ("--arch", "llama370m", "--preset", "tiny", "--vocab-size", SIZE, "--precision", "fp32")
EVAL = ("fim_loss", "fim_exact", "fim_parsed", "syntax")


@pytest.fixture(scope="session")
def tokenizer_file(shared):
    """A byte-level BPE of the small corpus, with the tokens around a hole."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    how = {"vocab_size": SIZE, "special_tokens": list(SPECIAL), "initial_alphabet": alphabet, "show_progress": False}
    backend.train_from_iterator(
        [path.read_text() for path in sorted((shared / "corpus").iterdir())], trainers.BpeTrainer(**how)
    )
    folder = shared / "tokenizer"
    folder.mkdir()
    backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|endoftext|>"}))
    return folder


@pytest.fixture
def fim(place, tokenizer_file):
    """Train on holes."""

    def train(*args, code=0):
        return place.train(*SHAPE, "--tokenizer", tokenizer_file, "--objective", "fim", *args, code=code)

    return train


def answer(output):
    """The JSON of a command, behind what it says on standard error."""
    return json.loads(output[output.index("{\n") :])


def test_a_run_on_holes_goes_on_bit_for_bit_and_its_evaluations_change_nothing(place, fim):
    """Evaluations at every validation, stopped in between; beside it the same run without any."""
    often = ("--val-every", "4", "--save-every", "3")
    asked = ("--eval", "fim:3,syntax:2")
    fim("--run", "whole", "--steps", "10", *often, *asked)
    fim("--run", "parts", "--steps", "10", *often, *asked)
    for folder in place.run("parts").glob("step-00001*"):
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()
    (place.run("parts") / "model.apr").unlink()
    place("--resume", place.run("parts"))
    place.assert_same_end("whole", "parts", step=10)
    measured = [line for line in place.curve("whole") if "val_loss" in line]
    assert [line["step"] for line in measured] == [0, 4, 8, 10]
    assert all(f"eval_{name}" in line for line in measured for name in EVAL)
    fim("--run", "plain", "--steps", "10", *often)
    plain = [{name: value for name, value in line.items() if "eval" not in name} for line in place.curve("whole")]
    assert place.curve("plain") == plain


def test_a_rate_of_another_run_is_not_gone_on_with(place, fim):
    fim("--run", "x", "--steps", "2", "--save-every", "1")
    output = place("--resume", place.run("x"), "--fim-rate", "0.9", "--steps", "4", code=1)
    assert "--fim-rate: a resume cannot change this" in output


def test_holes_are_learnt_and_the_evaluation_sees_it(place, fim):
    fim("--run", "x", "--steps", "120", "--lr", "3e-3", "--batch-size", "8", "--val-every", "60", "--eval", "fim:2")
    first, *_, last = (line for line in place.curve("x") if "val_loss" in line)
    assert last["val_loss"] < 0.6 * first["val_loss"]
    assert last["eval_fim_loss"] < 0.6 * first["eval_fim_loss"]
    (found,) = answer(place("eval", place.run("x"), "--fim", "2", "--json"))["results"]
    assert found["loss"] == pytest.approx(last["eval_fim_loss"], rel=1e-5)
    assert found["exact_rate"] == last["eval_fim_exact"]
    assert found["parsed_rate"] == last["eval_fim_parsed"]
    made = json.loads(
        place("generate", place.run("x"), "--prefix", "def alpha_", "--suffix", ":\n", "--max-tokens", "8", "--json")
    )
    assert (made["prefix"], made["suffix"]) == ("def alpha_", ":\n")
    assert not set(made["tokens"][:-1]) & {1, 2, 3, 4}


def documents_of(tokens):
    edges = [*tokens.starts.tolist(), len(tokens)]
    return [tokens.ids[begin:end].tolist() for begin, end in itertools.pairwise(edges)]


def test_the_tokens_of_a_run_are_its_texts_rearranged(place, fim):
    """The run's own token file, read back by hand: every text is there once, every document ends, half have a hole."""
    fim("--run", "x", "--steps", "0")
    with open_checkpoint(place.run("x") / "model.apr") as checkpoint:
        tokenizer = build_tokenizer(checkpoint.header.tokenizer)
    end, prefix, middle, suffix = (tokenizer.id(name) for name in SPECIAL[:4])
    settings = DataSettings(data=(str(place.corpus),), sequence_length=32)
    wanted = EncodingWanted(sequence_length=32, seed=0)
    corpus = load_corpus(settings, tokenizer, objective=OBJECTIVES["fim"], options=wanted)
    texts, orders = [], Counter()
    for side in (corpus.train, corpus.validation):
        assert side.learn is None
        for ids in documents_of(side):
            assert ids[-1] == end
            assert len(ids) <= 32
            orders["SPM" if ids[:2] == [prefix, suffix] else "PSM" if ids[0] == prefix else "plain"] += 1
            texts.append(tokenizer.decode(as_it_was(ids[:-1], prefix, middle, suffix)))
        assert side.counts["fim_psm"] + side.counts["fim_spm"] < side.counts["fim_parts"]
    assert "".join(sorted("".join(texts))) == "".join(sorted("".join(path.read_text() for path in place.corpus.iterdir())))
    share = 1 - orders["plain"] / orders.total()
    assert share == pytest.approx(0.5, abs=0.15)
    assert orders["SPM"] / (orders.total() - orders["plain"]) == pytest.approx(0.5, abs=0.2)


def as_it_was(ids, prefix, middle, suffix):
    if prefix not in ids:
        return ids
    at, end = ids.index(suffix), ids.index(middle)
    if at == 1:
        return ids[end + 1 :] + ids[2:end]
    return ids[1:at] + ids[end + 1 :] + ids[at + 1 : end]


@pytest.mark.rule("FIM-001")
def test_a_tokenizer_without_the_tokens_is_refused_before_anything(place, taught):
    for option in (("--objective", "fim"), ("--eval", "fim:5")):
        output = place.train("--init", taught, "--arch", "llama370m", "--run", "x", "--steps", "1", *option, code=3)
        assert "FIM-001" in output
        assert "<|fim_prefix|>" in output
        output = place.train(*SHAPE, "--run", "x", "--steps", "1", *option, code=3)
        assert "no tokenizer is given" in output
    assert not place.run("x").exists()


def test_rare_entries_of_the_vocabulary_can_be_named(place, taught):
    names = ("--fim-tokens", "Ā,ā,Ă")
    run = ("--init", taught, "--arch", "llama370m", "--objective", "fim", "--run", "x", "--steps", "2", "--eval", "fim:2")
    place.train(*run, *names, "--allow-cold-init")  # a tiny model that never saw these tokens
    assert "eval_fim_loss" in place.curve("x")[-1]
    before, after = answer(place("eval", taught, place.run("x"), "--fim", "2", *names, "--json"))["results"]
    assert [item["source"] for item in before["filled"]] == [item["source"] for item in after["filled"]]
    assert place("eval", place.run("x"), "--fim", "2").count("nats") == 2


@pytest.mark.rule("EVAL-001")
def test_evaluations_that_cannot_be_are_refused_before_anything(place, tmp_path):
    run = ("--run", "x", "--steps", "1", "--arch")
    output = place.train(*run, "codebert", "--preset", "tiny", "--eval", "fim:5,syntax:5", code=3)
    assert output.count("EVAL-001") == 2
    output = place.train(*run, "llama370m", "--preset", "tiny", "--eval", "sintax:5,fim", code=3)
    assert output.count("EVAL-001") == 2
    assert "did you mean syntax" in output
    chats = tmp_path / "chats.jsonl"
    chats.write_text('{"prompt": "1+1?", "completion": "2"}\n{"prompt": "2+2?", "completion": "4"}\n')
    output = place("--data", chats, *run, "llama370m", "--objective", "sft", "--eval", "fim:5,syntax:5", code=3)
    assert output.count("EVAL-001") == 2
    assert "kind chat" in output
    assert not place.run("x").exists()


def test_a_family_that_cannot_learn_an_objective_is_not_asked_for_what_that_needs(place, tmp_path):
    chats = tmp_path / "chats.jsonl"
    chats.write_text('{"prompt": "1+1?", "completion": "2"}\n{"prompt": "2+2?", "completion": "4"}\n')
    for objective in ("fim", "sft"):
        output = place("--data", chats, "--arch", "codebert", "--preset", "tiny", "--objective", objective, "--dry-run", code=3)
        assert "PREFLIGHT-002" in output
        assert "FIM-001" not in output
        assert "CHAT-001" not in output


def test_held_out_text_without_a_line_to_hide_is_said(place, tokenizer_file, tmp_path):
    words = tmp_path / "words"
    words.mkdir()
    for number in range(60):
        (words / f"{number}.txt").write_text("\n".join(f"word{number}{line}" for line in range(20)))
    shape = (*SHAPE, "--tokenizer", tokenizer_file, "--sequence-length", "32", "--threads", "1", "--steps", "1", "--run", "x")
    for name in ("fim", "syntax"):
        output = place("--data", words, *shape, "--eval", f"{name}:3", code=1)
        assert f"--eval {name}" in output
    assert not place.run("x").exists()
