"""`apr-train generate` on real runs: continuing, drawing, stopping, filling masks, and what it refuses."""

import io
import os
import subprocess
import sys

import pytest
from apr_train.artifact.export import write_tokenizer
from apr_train.checkpoint.open import open_checkpoint

PROMPT = "def alpha_beta(count):"


def test_greedy_text_is_transformers_own(apr, models, tmp_path):
    import torch
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

    apr("export", models.decoder, "-o", "hf")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32).eval()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tmp_path / "hf")
    ids = tokenizer(PROMPT, return_tensors="pt")["input_ids"]
    end = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    expected = theirs.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=40, do_sample=False, eos_token_id=end, pad_token_id=end
    )[0, ids.shape[1] :]
    found = apr("generate", models.decoder, "--prompt", PROMPT, "--max-tokens", 40, "--json").json
    assert found["tokens"] == expected.tolist()
    assert found["text"] == tokenizer.decode(expected, skip_special_tokens=True)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # torch.compile's own, of itself
def test_a_compiled_step_writes_the_same(apr, models):
    how = ("generate", models.decoder, "--prompt", PROMPT, "--max-tokens", 40)
    written, compiled = apr(*how), apr(*how, "--compile")
    assert compiled.stdout == written.stdout
    assert ("decoding is compiled" in written.stderr, "decoding is compiled" in compiled.stderr) == (False, True)


def test_a_compiler_that_does_not_work_is_said_once_and_the_text_comes(apr, models, monkeypatch):
    monkeypatch.setattr("apr_train.model.decoding.compiler_fault", lambda device: "torch.compile does not work here (why)")
    how = ("generate", models.decoder, "--prompt", PROMPT, "--max-tokens", 12)
    found = apr(*how, "--compile")
    assert found.stdout == apr(*how).stdout
    assert found.stderr.count("decoding is not compiled: torch.compile does not work here (why)\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize("answers", [True, False])
@pytest.mark.parametrize(
    ("command", "told"),
    [
        (("generate", "--prompt", PROMPT, "--max-tokens", "4"), "decoding is not compiled"),
        (("eval", "--batches", "1"), "the model is not compiled"),
    ],
)
def test_a_compiler_that_is_there_and_fails_is_no_traceback(models, tmp_path, answers, command, told):
    """A process of its own: torch remembers which compiler it has found, and what it has compiled."""
    broken = tmp_path / "c++"
    broken.write_text("#!/bin/sh\n" + ('[ "$1" = --version ] && exec g++ "$@"\n' if answers else "") + "exit 1\n")
    broken.chmod(0o755)
    own = {"CXX": str(broken), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "compiled")}
    run = [sys.executable, "-m", "apr_train", command[0], str(models.decoder), *command[1:], "--compile"]
    found = subprocess.run(run, env=os.environ | own, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    assert found.stderr.count(f"{told}: torch.compile does not work here (") == 1
    assert "Traceback" not in found.stderr
    assert found.stdout


def test_text_goes_to_stdout_and_the_rest_to_stderr(apr, models):
    answer = apr("generate", models.decoder, "--prompt", PROMPT, "--max-tokens", 12)
    found = apr("generate", models.decoder, "--prompt", PROMPT, "--max-tokens", 12, "--json").json
    assert answer.stdout == found["text"] + "\n"
    assert "12 tokens, stopped by length" in answer.stderr
    assert (
        apr("generate", models.decoder, "--prompt", PROMPT, "--max-tokens", 12, "--echo").stdout
        == PROMPT + found["text"] + "\n"
    )


def test_greedy_and_seeded_texts_come_again(apr, models):
    def text(*options):
        return apr("generate", models.decoder, "--prompt", PROMPT, "--max-tokens", 16, *options).stdout

    assert text() == text()
    drawn = [text("--temperature", 2, "--top-k", 50, "--top-p", 0.95, "--seed", seed) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_the_prompt_can_come_through_a_pipe(apr, models):
    piped = apr("generate", models.decoder, "--prompt", "-", "--max-tokens", 8, stdin=PROMPT)
    assert piped.stdout == apr("generate", models.decoder, "--prompt", PROMPT, "--max-tokens", 8).stdout


def test_a_stop_string_ends_the_text_before_it(apr, models):
    whole = apr("generate", models.decoder, "--prompt", PROMPT, "--max-tokens", 30, "--json").json["text"]
    assert "return" in whole
    found = apr(
        "generate", models.decoder, "--prompt", PROMPT, "--max-tokens", 30, "--stop", "return", "--stop", "zzz", "--json"
    ).json
    assert (found["text"], found["stopped_by"]) == (whole[: whole.index("return")], "stop string")


def test_text_appears_while_the_model_still_writes(apr, models, monkeypatch):
    """Each piece is flushed on its own: the writes of a pipe's other end are counted."""
    from apr_train.cli import generate

    pieces = []
    monkeypatch.setattr(generate, "emit_text", pieces.append)
    apr("generate", models.decoder, "--prompt", PROMPT, "--max-tokens", 12)
    assert len(pieces) > 6


PRINTS = """
import os
from apr_train.cli import main
from apr_train.model.decoder import DecoderBlock

forward = DecoderBlock.forward

def printing(*given, **more):
    print("from the model's code")
    os.write(1, b"by the descriptor")
    return forward(*given, **more)

DecoderBlock.forward = printing
main()
"""


def test_what_a_model_prints_while_it_writes_stays_out_of_the_text(apr, models):
    words = ["generate", str(models.decoder), "--prompt", PROMPT, "--max-tokens", "3"]
    done = subprocess.run([sys.executable, "-c", PRINTS, *words], capture_output=True, text=True, check=True)
    assert done.stdout == apr(*words).stdout
    assert done.stderr.count("from the model's code") == done.stderr.count("by the descriptor") >= 3


def test_fillers_of_a_mask_have_probabilities(apr, models):
    found = apr("generate", models.encoder, "--fill-mask", "def <mask>(x): return <mask>", "--top-k", 3, "--json").json
    assert [len(mask) for mask in found["masks"]] == [3, 3]
    for mask in found["masks"]:
        shares = [filler["probability"] for filler in mask]
        assert shares == sorted(shares, reverse=True)
        assert all(0 < share < 1 for share in shares)
    text = apr("generate", models.encoder, "--fill-mask", "-", stdin="def <mask>(x):").stdout
    assert text.splitlines()[0].split() == ["probability", "token", "id"]
    assert len(text.splitlines()) == 6


@pytest.mark.parametrize(
    ("kind", "options", "code", "message"),
    [
        ("decoder", ["--prompt", ""], 1, "the prompt is empty"),
        ("decoder", ["--fill-mask", "a <mask>"], 1, "a causal language model (a decoder) has no mask to fill"),
        ("encoder", ["--prompt", "x"], 1, "a masked language model (an encoder) does not continue a text"),
        ("encoder", ["--fill-mask", "no mask here"], 1, "a text with <mask> in it"),
        ("encoder", ["--fill-mask", " "], 1, "the text is empty"),
        ("encoder", ["--fill-mask", "--prompt", "a <mask>"], 2, "--fill-mask takes the text itself"),
        ("encoder", ["--fill-mask", "<mask>", "--temperature", "1"], 2, "--temperature: only with --prompt"),
        ("encoder", ["--fill-mask", "<mask>" * 300], 1, "longer than the model's positions"),
        ("decoder", [], 2, "Give --prompt"),
        ("decoder", ["--prompt", "x", "--stop", ""], 2, "--stop: an empty text"),
        ("decoder", ["--prompt", "x", "--fill-mask", "<mask>"], 2, "Give --prompt"),
        ("decoder", ["--prompt", "x", "--top-p", "0.9"], 1, "temperature 0 draws nothing"),
        ("decoder", ["--prompt", "x", "--temperature", "nan"], 1, "--temperature: out of range"),
        ("decoder", ["--prompt", "x", "--max-tokens", "513"], 1, "more tokens than the model has positions"),
        ("decoder", ["--prompt", "x = 1\n" * 400], 1, "Shorten the prompt"),
        ("decoder", ["--prompt", "x", "--attention", "nonsense"], 1, "no such attention backend"),
    ],
)
def test_what_cannot_be_is_refused_in_one_message(apr, models, kind, options, code, message):
    answer = apr("generate", getattr(models, kind), *options, code=code)
    assert message in answer.stderr
    assert answer.stdout == ""


def test_input_that_is_no_text_is_an_error(apr, models, monkeypatch):
    assert "not UTF-8" in apr("generate", models.decoder, "--prompt", "-", code=1, stdin=io.BytesIO(b"\xff\xfe")).stderr
    assert "the prompt is empty" in apr("generate", models.decoder, "--prompt", "-", code=1, stdin="").stderr


def test_a_base_model_without_its_head_fills_no_mask(apr, models, tmp_path):
    from transformers import RobertaForMaskedLM

    apr("export", models.encoder, "-o", "hf")
    RobertaForMaskedLM.from_pretrained(tmp_path / "hf").roberta.save_pretrained(tmp_path / "bare")
    with open_checkpoint(models.encoder) as checkpoint:
        write_tokenizer(tmp_path / "bare", checkpoint.header.tokenizer)
    answer = apr("generate", "bare", "--fill-mask", "<mask>", code=3)
    assert "a base model without the part that predicts tokens" in answer.stderr
    answer = apr("eval", "bare", "--data", models.corpus, "--json")
    assert "random values stand in" in answer.stderr
    assert "lm_head.dense.weight" in answer.json["results"][0]["fresh"]


def test_help_has_an_example(apr):
    assert "--fill-mask" in apr("generate", "--help").stdout.split("Examples:")[1]


def test_a_process_of_its_own_streams_utf8_through_a_pipe(models):
    command = [sys.executable, "-c", "from apr_train.cli import main; main()", "generate", str(models.decoder)]
    options = ["--prompt", "-", "--max-tokens", "6", "--temperature", "5", "--echo"]
    done = subprocess.run([*command, *options], input="naïve 数 =".encode(), check=True, capture_output=True, timeout=120)
    assert done.stdout.decode("utf-8").startswith("naïve 数 =")


RARE = ("--fim-tokens", "Ā,ā,Ă")
"""Entries of the byte-level vocabulary that no source code has, in place of tokens that this model has none of."""
HOLE = ("--prefix", "def alpha_", "--suffix", ":\n    return count\n")


def test_a_hole_is_asked_for_with_the_text_around_it_apart(apr, models):
    """The tokens that come are transformers' for the ids put together by hand, and the text stands in the whole."""
    import torch
    from apr_train.data.tokenizer import build_tokenizer
    from transformers import AutoModelForCausalLM

    apr("export", models.decoder, "-o", "hf")
    theirs = AutoModelForCausalLM.from_pretrained("hf", dtype=torch.float32).eval()
    with open_checkpoint(models.decoder / "model.apr") as checkpoint:
        tokenizer = build_tokenizer(checkpoint.header.tokenizer)
    pre, suf, mid = map(tokenizer.id, "ĀāĂ")
    ids = [pre, *tokenizer.encode(HOLE[1]), suf, *tokenizer.encode(HOLE[3]), mid]
    ends = [tokenizer.id("<|endoftext|>"), pre, suf, mid]
    how = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": ends, "pad_token_id": ends[0]}
    expected = theirs.generate(torch.tensor([ids]), attention_mask=torch.ones(1, len(ids)), **how)[0, len(ids) :].tolist()
    found = apr("generate", models.decoder, *HOLE, *RARE, "--max-tokens", 12, "--json").json
    assert found["tokens"] == expected
    assert (found["prefix"], found["suffix"]) == (HOLE[1], HOLE[3])
    whole = apr("generate", models.decoder, *HOLE, *RARE, "--max-tokens", 12, "--echo").stdout
    assert whole == HOLE[1] + found["text"] + HOLE[3] + "\n"
    assert apr("generate", models.decoder, *HOLE, *RARE, "--max-tokens", 12).stdout == found["text"] + "\n"


def test_one_side_of_a_hole_can_come_through_a_pipe(apr, models):
    told = ("generate", models.decoder, *RARE, "--max-tokens", 4, "--json")
    piped = apr(*told, "--prefix", "-", "--suffix", "b", stdin="a").json
    assert piped["tokens"] == apr(*told, "--prefix", "a", "--suffix", "b").json["tokens"]
    assert piped["prefix"] == "a"


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (("--prefix", "-", "--suffix", "-"), 2, "standard input is one text"),
        (("--prefix", "a", "--prompt", "b"), 2, "Give --prompt"),
        (("--fim-tokens", "a,b,c", "--prompt", "b"), 2, "only with --prefix and --suffix"),
        (("--prefix", "", "--suffix", ""), 1, "nothing stands around the hole"),
        (("--prefix", "a"), 1, "FIM-001"),
        (("--prefix", "a", "--fim-tokens", "a,b"), 1, "not three names"),
        (("--prefix", "a", "--fim-tokens", "a,a,def alpha"), 1, "FIM-002"),
    ],
)
def test_a_hole_that_cannot_be_asked_for_is_refused(apr, models, options, code, message):
    answer = apr("generate", models.decoder, *options, code=code)
    assert message in answer.stderr


def test_an_encoder_fills_no_hole(apr, models):
    answer = apr("generate", models.encoder, *HOLE, code=1)
    assert "does not continue a text" in answer.stderr
