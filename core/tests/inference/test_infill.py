"""Holes filled on their own: what is asked, where it ends, and that the loss of a line is transformers'."""

from types import SimpleNamespace

import attrs
import pytest
import torch
from apr_train import rules
from apr_train.data.documents import Document
from apr_train.data.fim_tokens import FimTokens, fim_tokens
from apr_train.errors import ConfigError, DataError, PreflightError, TokenizerError
from apr_train.inference.generate import Ends, Sampling, ends_of_text, examinee_of
from apr_train.inference.infill import infill, tokens_for
from apr_train.training import fim_eval
from apr_train.training.fim_eval import fim_gate, middle_loss, questions
from torch.nn import functional as F

RARE = "Ā,ā,Ă"
"""The bytes 0, 1 and 2 in the byte-level alphabet: entries that no source code has."""


@pytest.fixture
def tokens(tokenizer):
    return fim_tokens(tokenizer, card={}, setting=RARE, where="made here")


def filled(ready, tokens, prefix="def ", suffix=":\n", length=8, **ends):
    return infill(ready, prefix, suffix, tokens=tokens, sampling=Sampling(), ends=Ends(max_tokens=length, **ends))


def test_the_loss_of_a_middle_is_transformers(make_ready, transformers_llama, tokens, in_float64):
    ready = make_ready(precision=in_float64)
    encode = ready.tokenizer.encode
    prompt = tokens.question(encode("def alpha("), encode("):\n    return value + 1\n"))
    middle = encode("value, items, alpha")
    assert len(middle) > 3
    ids = torch.tensor([[*prompt, *middle, 0]])
    with torch.no_grad():
        logits = transformers_llama(ready)(ids).logits[0, len(prompt) - 1 : -1]
    expected = F.cross_entropy(logits, ids[0, len(prompt) :], reduction="none")
    loss, end_loss = middle_loss(examinee_of(ready), prompt, middle, 0)
    assert loss == pytest.approx(float(expected[:-1].sum()), rel=1e-5)  # transformers has its rotary tables in float32
    assert end_loss == pytest.approx(float(expected[-1]), rel=1e-5)


def test_greedy_infill_gives_transformers_tokens(make_ready, transformers_llama, tokens):
    ready = make_ready()
    encode = ready.tokenizer.encode
    ids = [tokens.prefix, *encode("def "), tokens.suffix, *encode(":\n"), tokens.middle]
    mask = torch.ones(1, len(ids))
    expected = transformers_llama(ready).generate(
        torch.tensor([ids]), attention_mask=mask, max_new_tokens=8, do_sample=False, pad_token_id=3
    )
    made = filled(ready, tokens)
    assert list(made.tokens) == expected[0, len(ids) :].tolist()
    assert made.prompt_tokens == len(ids)


def test_it_ends_at_the_end_of_text_and_at_any_token_around_a_hole(scripted, tokens):
    ready = scripted("items\n", "items\x01 more", "one two")
    made = infill(ready, "a", "b", tokens=tokens, sampling=Sampling(), ends=Ends(tokens=ends_of_text(ready)))
    assert (made.text, made.stopped_by) == ("items\n", "end of text")
    made = infill(ready, "a", "b", tokens=tokens, sampling=Sampling(), ends=Ends(tokens=ends_of_text(ready)))
    assert (made.text, made.stopped_by) == ("items", "end of text")
    made = infill(ready, "a", "b", tokens=tokens, sampling=Sampling(), ends=Ends(stop=(" two",)))
    assert (made.text, made.stopped_by) == ("one", "stop string")


def test_what_a_text_spells_is_text(make_ready, tokenizer):
    """`<mask>` is a special token of this tokenizer: in a prompt it is meant, around a hole it is text, as in training."""
    ready = make_ready()
    tokens = FimTokens(prefix=4, suffix=3, middle=2, texts=("<mask>", "<pad>", "</s>"))
    made = filled(ready, tokens, prefix="<mask>", suffix="</s>")
    assert made.prompt_tokens == 3 + len(tokenizer.encode("<mask>", parse_special=False)) + len(
        tokenizer.encode("</s>", parse_special=False)
    )


@pytest.mark.parametrize(("prefix", "suffix"), [("", ""), ("\ud800", "x"), ("x", "\ud800")])
def test_a_hole_with_nothing_around_it_or_no_text_is_refused(make_ready, tokens, prefix, suffix):
    with pytest.raises(DataError, match=r"nothing stands around|no UTF-8"):
        filled(make_ready(), tokens, prefix, suffix)


def test_more_than_the_positions_is_refused(make_ready, tokens):
    with pytest.raises(ConfigError, match="more tokens than the model has positions"):
        filled(make_ready(), tokens, prefix="x" * 100)


def test_the_tokens_are_the_users_the_familys_or_refused(make_ready):
    ready = attrs.evolve(make_ready(), family=SimpleNamespace(info=SimpleNamespace(fim_tokens={})))
    assert tokens_for(ready, RARE).told_by == "--fim-tokens"
    with pytest.raises(TokenizerError, match="no tokens around a hole"):
        tokens_for(ready)
    card = {"prefix": "<mask>", "suffix": "<pad>", "middle": "</s>"}
    ready = attrs.evolve(ready, family=SimpleNamespace(info=SimpleNamespace(fim_tokens=card)))
    assert tokens_for(ready).prefix == 4
    with pytest.raises(PreflightError) as caught:
        tokens_for(attrs.evolve(ready, config=attrs.evolve(ready.config, vocab_size=3)))
    assert {finding.rule for finding in caught.value.findings} == {rules.FIM_002}


def gate(monkeypatch, ready, tokens, sources, **how):
    monkeypatch.setattr(fim_eval, "middle_loss", lambda *_: (3.0, 0.5))
    documents = [Document(f"{number}.py", source) for number, source in enumerate(sources)]
    return fim_gate(examinee_of(ready), documents, tokens, **{"count": len(sources), "row": 256, **how})


def test_lines_that_come_back_are_counted_and_the_whole_is_parsed(scripted, tokens, monkeypatch):
    sources = ["a = 1 + 2\n"] * 5 + ["let a = 1;\n"]
    sources = [f"{source}# {number}\n" for number, source in enumerate(sources)]
    written = (
        "a = 1 + 2",
        "a = 2",
        "a = (",
        "a = 1 + 2\nb = 3",
        "a = 1 + 2 + 3 + 4 + 5 + 6 + 7 + 8 + 9 + 10 + 11",
        "let a = 1;",
    )
    ready = scripted(*written, max_position_embeddings=256)
    told = []
    report = gate(monkeypatch, ready, tokens, sources, done=told.append)
    assert [item.exact for item in report.filled] == [True, False, False, False, False, True]
    assert [item.error is None for item in report.filled] == [True, True, False, True, True, False]
    assert [item.stopped_by for item in report.filled] == [*["end of text"] * 4, "length", "end of text"]
    assert (report.exact, report.judged, report.parsed, report.parsed_rate) == (2, 5, 4, 0.8)
    assert (report.asked, sum(told)) == (6, 6)
    tokens_of_all = sum(item.tokens for item in report.filled)
    assert report.loss == pytest.approx(18.0 / tokens_of_all)
    assert (report.line_loss, report.end_loss) == (3.0, 0.5)
    assert report.exact_interval == pytest.approx((0.0968, 0.7000), abs=5e-4)


def test_a_share_of_nothing_that_is_python_is_none(scripted, tokens, monkeypatch):
    report = gate(monkeypatch, scripted("x", max_position_embeddings=256), tokens, ["let a = 1;\n"])
    assert (report.judged, report.parsed_rate) == (0, None)


def test_as_much_is_shown_around_a_line_as_a_row_holds(tokenizer, tokens):
    lines = [f"value_{number} = {number} * index_{number}\n" for number in range(80)]
    (question,) = questions(tokenizer, [Document("x", "".join(lines))], tokens, count=1, row=200, positions=220)
    assert 196 <= len(question.prompt) + len(question.middle) < 200
    assert len(question.prompt) + question.length <= 220
    suffix, middle = question.prompt.index(tokens.suffix), question.prompt.index(tokens.middle)
    before, behind = question.prompt[1:suffix], question.prompt[suffix + 1 : middle]
    assert question.line.prefix.endswith(tokenizer.decode(before))
    assert question.line.suffix.startswith(tokenizer.decode(behind))
    assert (len(before), len(behind)) > (20, 20)
    assert tokenizer.decode(question.middle) == question.line.middle


def test_no_line_that_fits_is_an_error(tokenizer, tokens):
    for text in ("just words\n", f"value = {'x' * 500}\n"):
        with pytest.raises(DataError, match="no line to hide"):
            questions(tokenizer, [Document("x", text)], tokens, count=3, row=24, positions=64)
