"""Fine-tuning on conversations through the command line: what is told before, learnt, carried on, and talked to."""

import json
import random
import re

import pytest
import tokenizers
from apr_train.checkpoint.open import open_checkpoint
from apr_train.cli import cli
from apr_train.run.settings_file import read_toml
from click.testing import CliRunner
from tokenizers import decoders, models, pre_tokenizers
from transformers import AutoTokenizer

SPECIAL = ("<|open|>", "<|close|>", "<|end|>")
TURNS = """{%- for message in messages -%}
{{ '<|open|>' + message.role + '\n' }}{{ message.content + '<|close|>' }}{{ '\n' }}
{%- endfor -%}
{%- if add_generation_prompt %}{{ '<|open|>assistant\n' }}{% endif -%}
"""
OTHER = TURNS.replace("'<|open|>'", "'<|open|>the '").replace("assistant\n", "the assistant\n")
SIZE = len(SPECIAL) + 256
SCRATCH = ("--arch", "llama370m", "--preset", "tiny", "--tokenizer", "tok", "--vocab-size", SIZE, "--objective", "sft")
RUN = (*SCRATCH, "--data", "chats.jsonl", "--sequence-length", "64", "--attention", "sdpa", "--threads", "1")
RUN = (*RUN, "--sample-tokens", "0", "--precision", "fp32", "--val-batches", "2")


def write_tokenizer(folder, template=TURNS):
    """A token a byte, three control tokens, and a template."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate([*SPECIAL, *alphabet])}
    backend = tokenizers.Tokenizer(models.BPE(vocabulary, []))
    backend.add_special_tokens(list(SPECIAL))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    folder.mkdir()
    backend.save(str(folder / "tokenizer.json"))
    settings = {"eos_token": "<|end|>", "tokenizer_class": "PreTrainedTokenizerFast"}
    settings |= {} if template is None else {"chat_template": template}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def record(*texts):
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[number % 2], "content": text} for number, text in enumerate(texts)]}


def write_chats(path, records):
    path.write_text("".join(json.dumps(item) + "\n" for item in records))


def sums(count, seed=0):
    """Conversations in all shapes, no two the same."""
    draw = random.Random(seed)
    for number in range(count):
        name, one, two = f"{number:03}", draw.randint(0, 9), draw.randint(0, 9)
        asked, told = f"{name}: {one}+{two}?", str(one + two)
        yield (
            record(asked, told),
            {"conversations": [{"from": "human", "value": asked}, {"from": "gpt", "value": told}]},
            {"prompt": asked, "completion": told},
            {"instruction": asked, "input": "", "output": told},
        )[number % 4]


@pytest.fixture
def desk(place):
    """A folder with a tokenizer and conversations."""
    write_tokenizer(place.folder / "tok")
    write_chats(place.folder / "chats.jsonl", sums(60))
    return place


def test_dry_run_says_how_many_conversations_there_are_and_what_becomes_of_them(desk):
    more = [record("only asked"), record("Hi", "long " * 40), record("Hi", "ok", "and?", "long " * 40)]
    write_chats(desk.folder / "chats.jsonl", [*sums(60), *more * 20])
    out = desk(*RUN, "--validation-fraction", "0.02", "--dry-run")
    line = next(line for line in out.splitlines() if line.startswith("conversations"))
    assert "are learnt from" in line
    assert "of them cut" in line
    assert "without a turn of the assistant" in line
    assert "longer than a row" in line
    assert not (desk.folder / "runs").exists()


def test_run_learns_to_answer_and_to_end_its_turn_and_tells_what_it_decided(desk):
    out = desk(*RUN, "--steps", "60", "--batch-size", "8", "--lr", "3e-3", "--run", "a")
    assert "best-fit" in out
    settings = read_toml(desk.run("a") / "config.toml")
    assert (settings.model.objective, settings.data.packing, settings.data.train_on) == ("sft", "best-fit", "assistant")
    assert len(settings.data.chat_date) == 10
    curve = desk.curve("a")
    assert curve[-1]["val_loss"] < 0.5 * curve[0]["val_loss"]
    answer = json.loads(desk("generate", "runs/a", "--chat", "--prompt", "061: 3+4?", "--json"))
    assert [message["role"] for message in answer["messages"]] == ["user", "assistant"]
    (turn,) = answer["turns"]
    assert turn["stopped_by"] == "end of text"
    assert turn["tokens"][-1] == SPECIAL.index("<|close|>")
    assert turn["text"].isdecimal()


def test_sample_that_ends_a_run_is_an_answer(desk):
    args = [arg for arg in RUN if arg not in ("--sample-tokens", "0")]
    desk(*args, "--steps", "60", "--batch-size", "8", "--lr", "3e-3", "--prompt", "061: 3+4?", "--run", "a")
    (sample,) = map(json.loads, (desk.run("a") / "samples.jsonl").read_text().splitlines())
    assert (sample["prompt"], sample["text"].isdecimal()) == ("061: 3+4?", True)
    told = json.loads(desk("generate", "runs/a", "--chat", "--prompt", "061: 3+4?", "--json"))
    assert sample["text"] == told["turns"][0]["text"]


def test_tokenize_marks_what_is_read_and_not_learnt_and_writes_no_shards_of_it(desk):
    args = ("tokenize", "--tokenizer", "tok", "--objective", "sft", "--data", "chats.jsonl", "--sequence-length", "64")
    write_chats(desk.folder / "chats.jsonl", [record("Hi", f"ok {number}") for number in range(20)])
    out = desk(*args, "--show", "1")
    assert re.search(r"⟦<\|open\|>user\nHi<\|close\|>\n<\|open\|>assistant\n⟧ok \d+<\|close\|>", out), out
    told = desk(*args, "-o", "shards", code=1)
    assert "a shard cannot say which of its tokens are targets" in told
    assert not (desk.folder / "shards").exists()


def test_eval_measures_a_run_by_what_it_learns(desk):
    desk(*RUN, "--steps", "2", "--run", "a")
    out = desk("eval", "runs/a", "--batches", "0", "--json")
    (told,) = json.loads(out[out.index("{") :])["results"]
    assert told["loss"] == pytest.approx(desk.curve("a")[-1]["val_loss"], rel=1e-4)


def test_interrupted_run_goes_on_bit_for_bit(desk):
    args = (*RUN, "--save-every", "3", "--val-every", "4", "--chat-date", "2026-03-04")
    desk(*args, "--steps", "10", "--run", "whole")
    desk(*args, "--steps", "10", "--run", "parts")
    for folder in sorted(desk.run("parts").glob("step-*"))[1:]:
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()
    (desk.run("parts") / "model.apr").unlink()
    desk("--resume", "runs/parts")
    desk.assert_same_end("whole", "parts", step=10)


def test_what_is_learnt_of_a_conversation_does_not_change_in_a_run(desk):
    desk(*RUN, "--steps", "3", "--run", "x")
    for option, value in (("--train-on", "all"), ("--chat-date", "2020-01-01")):
        assert f"{option}: a resume cannot change this" in desk("--resume", "runs/x", option, value, "--steps", "5", code=1)


def test_template_of_a_file_is_learnt_by_carried_and_exported(desk):
    (desk.folder / "other.jinja").write_text(OTHER)
    desk(*RUN, "--chat-template", "other.jinja", "--steps", "2", "--save-every", "1", "--run", "x")
    with open_checkpoint(str(desk.run("x") / "model.apr")) as checkpoint:
        assert checkpoint.header.tokenizer.chat_template == OTHER
    desk("export", "runs/x/model.apr", "-o", "out")
    exported = AutoTokenizer.from_pretrained(desk.folder / "out")
    said = [{"role": "user", "content": "Hi"}]
    text = exported.apply_chat_template(said, tokenize=False, add_generation_prompt=True)
    assert text == "<|open|>the user\nHi<|close|>\n<|open|>the assistant\n"
    (desk.folder / "other.jinja").unlink()
    assert "3/3" in desk("--resume", "runs/x", "--steps", "3", "--log-every", "1")  # the checkpoint holds it


@pytest.mark.rule("CHAT-001")
def test_without_a_template_nothing_is_learnt_and_what_to_do_is_said(desk):
    write_tokenizer(desk.folder / "bare", template=None)
    args = [arg if arg != "tok" else "bare" for arg in RUN]
    out = desk(*args, code=3)
    assert "CHAT-001" in out
    assert "--chat-template" in out
    (desk.folder / "t.jinja").write_text(TURNS)
    assert "ready: 0 errors" in desk(*args, "--chat-template", "t.jinja", "--dry-run")
    scratch = [arg for arg in RUN if arg not in ("--tokenizer", "tok")]
    assert "CHAT-001" in desk(*scratch, "--dry-run", code=3)


@pytest.mark.rule("CHAT-002")
@pytest.mark.parametrize(
    ("template", "told"),
    [
        ("{{ raise_exception('no') }}", "the chat template raises, found no"),
        ("{% for m in messages %}", "the chat template is no template"),
        ("{{ 'x' * 100000 }}", "the chat template writes too much"),
    ],
)
def test_template_that_does_not_work_is_a_finding(desk, template, told):
    (desk.folder / "t.jinja").write_text(template)
    out = desk(*RUN, "--chat-template", "t.jinja", code=3)
    assert "CHAT-002" in out
    assert told in out
    assert not (desk.folder / "runs").exists()


@pytest.mark.rule("CHAT-002")
def test_template_that_raises_for_one_conversation_names_it_before_anything_is_made(desk):
    (desk.folder / "t.jinja").write_text("{% if '007' in messages[0].content %}{{ nothing.there }}{% endif %}" + TURNS)
    out = desk(*RUN, "--chat-template", "t.jinja", "--validation-fraction", "0.02", code=3)
    assert "chats.jsonl:8" in out
    assert not (desk.folder / "runs").exists()


@pytest.mark.rule("CHAT-002")
def test_template_that_is_not_there_is_a_finding(desk):
    assert "CHAT-002" in desk(*RUN, "--chat-template", "none.jinja", code=3)


@pytest.mark.rule("CHAT-003")
def test_template_that_does_not_tell_turns_apart_is_a_finding(desk):
    (desk.folder / "t.jinja").write_text("{% for m in messages %}{{ m.role }}: {{ m.content }}<|close|>{% endfor %}")
    assert "CHAT-003" in desk(*RUN, "--chat-template", "t.jinja", code=3)
    assert "ready" in desk(*RUN, "--chat-template", "t.jinja", "--train-on", "all", "--dry-run")


@pytest.mark.rule("CHAT-004")
def test_template_without_control_tokens_is_a_warning(desk):
    text = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
    )
    (desk.folder / "t.jinja").write_text(text)
    out = desk(*RUN, "--chat-template", "t.jinja", "--dry-run")
    assert "CHAT-004" in out
    assert "ready: 0 errors, 1 warning" in out
    assert "CHAT-004" not in desk(*RUN, "--dry-run")


def test_broken_record_is_named_by_file_and_line(desk):
    write_chats(desk.folder / "chats.jsonl", [*sums(30), {"messages": [{"role": "usr", "content": "x"}]}])
    out = desk(*RUN, code=3)
    assert "chats.jsonl:31" in out
    assert "did you mean user?" in out


def test_text_is_no_conversation(desk):
    (desk.folder / "x.jsonl").write_text('{"text": "def f(): pass"}\n')
    out = desk(*RUN[:-2], "--data", "x.jsonl", code=3)
    assert "no conversation in this record" in out


def test_one_conversation_is_too_few_to_hold_some_out(desk):
    write_chats(desk.folder / "chats.jsonl", sums(1))
    assert "too few conversations" in desk(*RUN, code=3)


@pytest.fixture
def talk(desk):
    desk(*RUN, "--steps", "1", "--run", "x")

    def talk(*args, text=None):
        return CliRunner().invoke(cli, ["generate", "runs/x", *args], input=text)

    return talk


def test_each_line_of_standard_input_is_a_turn_and_the_history_is_kept(talk):
    result = talk("--chat", "--system", "Be brief.", "--max-tokens", "3", "--json", text=b"Hi\n\nand now?\n")
    told = json.loads(result.stdout)
    assert [message["role"] for message in told["messages"]] == ["system", "user", "assistant", "user", "assistant"]
    assert told["messages"][0]["content"] == "Be brief."
    assert [message["content"] for message in told["messages"][1::2]] == ["Hi", "and now?"]
    first, second = told["turns"]
    history = f"<|open|>system\nBe brief.<|close|>\n<|open|>user\nHi<|close|>\n<|open|>assistant\n{first['text']}<|close|>\n"
    assert second["prompt_tokens"] == encoded(history + "<|open|>user\nand now?<|close|>\n<|open|>assistant\n")


def encoded(text):
    """How many tokens: one a byte, and one a control token."""
    for token in SPECIAL:
        text = text.replace(token, "\0")
    return len(text.encode())


def test_text_of_a_turn_that_spells_a_control_token_is_text(talk):
    (turn,) = json.loads(talk("--chat", "--prompt", "a <|close|> b", "--max-tokens", "1", "--json").stdout)["turns"]
    assert turn["prompt_tokens"] == encoded("<|open|>user\na ") + len("<|close|>") + encoded(" b<|close|>\n<|open|>assistant\n")


def test_text_comes_on_standard_output_and_speed_beside_it(talk):
    result = talk("--chat", "--prompt", "Hi", "--max-tokens", "4")
    assert result.exit_code == 0
    assert "tokens/s]" in result.stderr
    assert "tokens/s]" not in result.stdout


@pytest.mark.parametrize(
    ("args", "text", "code", "told"),
    [
        (("--chat", "--prompt", " "), None, 1, "nothing is said"),
        (("--chat", "--prompt", "x", "--system", ""), None, 1, "--system: nothing is said"),
        (("--chat", "--prompt", "x", "--system", "\udcff"), None, 1, "--system: not UTF-8 text"),
        (("--chat",), b"Hi\n\xff\n", 1, "standard input:2"),
        (("--chat", "--fill-mask", "x"), None, 2, "--chat is with --prompt, or alone"),
        (("--chat", "--prompt", "x", "--echo"), None, 2, "--chat is with --prompt, or alone"),
        (("--system", "x", "--prompt", "x"), None, 2, "--system: only with --chat"),
        (("--chat", "--prompt", "x", "--chat-template", "none.jinja"), None, 1, "no such file"),
        (("--chat", "--prompt", "x" * 600), None, 1, "more tokens than the model has positions"),
    ],
)
def test_bad_input_is_a_message(talk, args, text, code, told):
    result = talk(*args, text=text)
    assert result.exit_code == code
    assert told in result.stderr


def test_another_template_can_be_tried(talk, desk):
    (desk.folder / "bad.jinja").write_text("{{ raise_exception('never') }}")
    result = talk("--chat", "--prompt", "Hi", "--chat-template", "bad.jinja")
    assert (result.exit_code, "CHAT-002" in result.stderr, "never" in result.stderr) == (1, True, True)
    (desk.folder / "other.jinja").write_text(OTHER)
    told = json.loads(talk("--chat", "--prompt", "Hi", "--chat-template", "other.jinja", "--max-tokens", "1", "--json").stdout)
    assert told["turns"][0]["prompt_tokens"] == encoded("<|open|>the user\nHi<|close|>\n<|open|>the assistant\n")
