"""The objective sft: conversations to a token file and to rows; what is cut, left out and counted."""

import json
from datetime import date
from itertools import pairwise
from typing import get_args

import numpy as np
import pytest
import torch
from apr_train.data.chat.renderer import TemplateFault
from apr_train.data.conversations import Conversation
from apr_train.data.documents import Document
from apr_train.data.encoding import EncodeOptions
from apr_train.data.objectives import OBJECTIVES
from apr_train.data.objectives.sft import CONTROL, CONVERSATIONS, CUT, SILENT, TOO_LONG, ChatEncoder
from apr_train.data.packing import PackedRows
from apr_train.data.tokens import TokenFile, TokenWriter
from apr_train.errors import ConfigError, DataError, TokenizerError
from apr_train.family.decoder_config import DecoderConfig
from apr_train.model.attention import Causal, load_backend
from apr_train.model.decoder import Decoder
from apr_train.model.loss import head_loss
from apr_train.run.objective_names import TrainOn
from apr_train.run.settings import DataSettings
from apr_train.testing import randomize
from torch.nn import functional as F

SFT = OBJECTIVES["sft"]
MARKED = """{%- for message in messages -%}
{{ '<|open|>' + message.role + '\n' }}{% if message.role == 'assistant' %}{% generation %}{{ message.content + '<|close|>' }}{% endgeneration %}{% else %}{{ message.content + '<|close|>' }}{% endif %}{{ '\n' }}
{%- endfor -%}
"""  # noqa: E501
CHATS = [["Hi", "Hello!"], ["2+2?", "4", "and 3+3?", "6, the answer"], ["the question", "the answer is long"], ["x", "y"]]
ROLES = ("user", "assistant")


def messages(*texts):
    return [{"role": ROLES[number % 2], "content": text} for number, text in enumerate(texts)]


def document(*texts, where="chats.jsonl:1"):
    return Document(where, Conversation(messages(*texts)).to_bytes())


@pytest.fixture
def encoder_of(kit):
    def make(tokenizer=None, *, kind="chat", length=64, **settings):
        data = DataSettings(chat_date=kit.date, **settings)
        tokenizer = kit.ours() if tokenizer is None else tokenizer
        options = EncodeOptions(tokenizer=tokenizer, settings=data, sequence_length=length, seed=0, side="train")
        return SFT.encoder(kind, options)

    return make


@pytest.fixture
def written(tmp_path, encoder_of):
    """The token file of some documents."""

    def write(documents, **options):
        encoder, path = encoder_of(**options), tmp_path / "x.tokens"
        done = []
        with TokenWriter(path, key="00" * 32, size=encoder.tokenizer.size) as writer:
            encoder.encode(documents, writer, done=done.append)
            writer.finish()
        assert sum(done) == sum(len(item.utf8) for item in documents)
        return TokenFile.open(path, key="00" * 32, size=encoder.tokenizer.size)

    return write


def documents_of(tokens):
    """(ids, learn) of each document."""
    edges = [*tokens.starts.astype(int).tolist(), len(tokens)]
    learn = np.ones(len(tokens), bool) if tokens.learn is None else tokens.learn
    return [(tokens.ids[begin:end].tolist(), learn[begin:end].tolist()) for begin, end in pairwise(edges)]


def test_a_document_is_what_transformers_makes_of_the_conversation_and_no_token_more(kit, written):
    tokenizer = kit.ours()
    theirs = kit.theirs(tokenizer, MARKED)
    found = documents_of(written([document(*texts) for texts in CHATS]))
    for (ids, learn), texts in zip(found, CHATS, strict=True):
        told = theirs.apply_chat_template(messages(*texts), return_assistant_tokens_mask=True, return_dict=True)
        assert ids == told["input_ids"]
        assert learn == [bool(flag) for flag in told["assistant_masks"]]


def test_packed_conversations_have_the_loss_and_gradients_of_each_alone(kit, written):
    """The reference is torch's own cross entropy over transformers' tokens and mask, one conversation at a time."""
    tokenizer = kit.ours()
    sizes = {"vocab_size": tokenizer.size, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes |= {"num_key_value_heads": 2, "intermediate_size": 40, "max_position_embeddings": 128, "tie_word_embeddings": True}
    config = DecoderConfig(**sizes, rms_norm_eps=1e-6, rope_theta=100.0)
    model = randomize(Decoder(config, load_backend("sdpa"))).double()
    rows = PackedRows(written([document(*texts) for texts in CHATS], length=128), 128)
    batch = rows.batch([(0, number) for number in range(len(rows))])
    assert len(rows) < len(CHATS)

    def gradients():
        found = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
        model.zero_grad()
        return found

    loss = head_loss(model, *SFT.predicted(model, batch))
    loss.backward()
    packed = gradients()
    theirs, expected = kit.theirs(tokenizer, MARKED), 0.0
    for texts in CHATS:
        told = theirs.apply_chat_template(messages(*texts), return_assistant_tokens_mask=True, return_dict=True)
        ids, learn = torch.tensor([told["input_ids"]]), torch.tensor(told["assistant_masks"], dtype=torch.bool)
        hidden = model.hidden_states(ids[:, :-1], mask=Causal())
        alone = F.cross_entropy(model.logits(hidden)[0][learn[1:]], ids[0, 1:][learn[1:]], reduction="sum")
        alone.backward()
        expected += alone.item()
    assert loss.item() == pytest.approx(expected, rel=1e-12)
    for name, gradient in gradients().items():
        torch.testing.assert_close(packed[name], gradient, rtol=1e-10, atol=1e-12, msg=name)


def test_a_template_that_ends_no_turn_gets_the_end_of_text_which_is_learnt(kit, written):
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"  # fmt: skip # noqa: E501
    tokenizer = kit.ours(template)
    ((ids, learn),) = documents_of(written([document("a", "b")], tokenizer=tokenizer))
    assert tokenizer.decode(ids) == "user: a\nassistant: b\n<|end|>"
    assert tokenizer.decode([index for index, flag in zip(ids, learn, strict=True) if flag]) == "b\n<|end|>"
    ((ids, learn),) = documents_of(written([document("a", "b", "c")], tokenizer=tokenizer))
    assert tokenizer.decode([index for index, flag in zip(ids, learn, strict=True) if flag]) == "b\n"
    assert ids[-1] == tokenizer.id("<|end|>")


@pytest.mark.parametrize(
    ("train_on", "learnt"),
    [("assistant", "4<|close|>6, the answer<|close|>"), ("completion", "6, the answer<|close|>"), ("all", None)],
)
def test_what_is_learnt_is_what_is_asked_for(kit, written, train_on, learnt):
    tokens = written([document(*CHATS[1])], train_on=train_on)
    ((ids, flags),) = documents_of(tokens)
    found = kit.ours().decode([index for index, flag in zip(ids, flags, strict=True) if flag])
    assert found == (learnt if learnt is not None else kit.ours().decode(ids))
    assert (tokens.learn is None) == (train_on == "all")
    assert train_on in get_args(TrainOn)


@pytest.mark.rule("CHAT-005")
def test_a_conversation_longer_than_a_row_loses_its_last_turns(kit, written):
    texts = ["Hi", "Hello!", "and?", "yes " * 40, "x", "y"]
    tokens = written([document(*texts)], length=40)
    ((ids, _),) = documents_of(tokens)
    assert kit.ours().decode(ids) == "<|open|>user\nHi<|close|>\n<|open|>assistant\nHello!<|close|>\n"
    assert tokens.counts == {CONVERSATIONS: 1, CUT: 1}


@pytest.mark.rule("CHAT-005")
def test_what_cannot_be_learnt_is_left_out_and_counted(written):
    long, silent = document("Hi", "no " * 100), document("Hi")
    tokens = written([long, silent, document(*CHATS[0]), silent], length=40)
    assert tokens.counts == {CONVERSATIONS: 1, TOO_LONG: 1, SILENT: 2}
    assert len(tokens.starts) == 1


def test_of_completions_only_none_is_cut(written):
    chats = [document("Hi", "Hello!", "and?", "yes " * 40), document(*CHATS[0])]
    assert written(chats, length=40, train_on="completion").counts == {CONVERSATIONS: 1, TOO_LONG: 1}


def test_a_row_has_room_for_one_more_id_than_it_is_long(kit, written):
    count = len(kit.theirs(kit.ours(), kit.template).apply_chat_template(messages(*CHATS[0]))["input_ids"])
    assert written([document(*CHATS[0])], length=count - 1).counts == {CONVERSATIONS: 1}
    with pytest.raises(DataError):
        written([document(*CHATS[0])], length=count - 2)


@pytest.mark.rule("CHAT-005")
def test_where_nothing_is_left_that_is_an_error_with_the_reasons(written):
    with pytest.raises(DataError) as caught:
        written([document("Hi"), document("Hi", "no " * 100)], length=40)
    finding = caught.value.finding
    assert finding.rule == "CHAT-005"
    assert finding.found == f"1 {SILENT}, 1 {TOO_LONG}"


@pytest.mark.rule("CHAT-005")
def test_warnings_say_how_many_of_how_many(encoder_of):
    counts = {CONVERSATIONS: 7, CUT: 2, TOO_LONG: 1, SILENT: 2, CONTROL: 3}
    cut, left_out, control = encoder_of().findings(counts)
    assert (cut.found, left_out.found) == ("2 of 7", f"3 of 10: 2 {SILENT}, 1 {TOO_LONG}")
    assert (control.rule, control.severity) == ("PREFLIGHT-023", "warning")
    assert control.found.startswith("3 of them")
    assert encoder_of().findings({CONVERSATIONS: 7}) == []


@pytest.mark.rule("CHAT-002")
def test_the_conversation_that_a_template_raises_for_is_named(kit, written):
    template = "{% if messages[0].content == 'bad' %}{{ raise_exception('roles must alternate') }}{% endif %}" + kit.template
    chats = [document(*CHATS[0], where="a.jsonl:1"), document("bad", "x", where="a.jsonl:2")]
    with pytest.raises(TemplateFault) as caught:
        written(chats, tokenizer=kit.ours(template))
    finding = caught.value.finding
    assert (finding.rule, finding.subject, finding.found) == ("CHAT-002", "a.jsonl:2", "roles must alternate")


@pytest.mark.rule("CHAT-003")
def test_a_template_that_does_not_tell_turns_apart_is_good_for_learning_all(kit, written):
    tokenizer = kit.ours("{% for m in messages %}{{ m.role }}:{{ m.content }}<|close|>{% endfor %}")
    with pytest.raises(TemplateFault) as caught:
        written([document(*CHATS[0])], tokenizer=tokenizer)
    assert caught.value.finding.rule == "CHAT-003"
    assert written([document(*CHATS[0])], tokenizer=tokenizer, train_on="all").counts == {CONVERSATIONS: 1}


@pytest.mark.rule("CHAT-001")
def test_an_encoder_needs_a_template(kit, encoder_of):
    with pytest.raises(TokenizerError) as caught:
        encoder_of(kit.ours(None))
    assert caught.value.finding.rule == "CHAT-001"


def test_texts_beside_conversations_are_learnt_whole(kit, encoder_of, tmp_path):
    encoder, path = encoder_of(kind="text"), tmp_path / "x.tokens"
    with TokenWriter(path, key="00" * 32, size=kit.ours().size) as writer:
        encoder.encode([Document("a", "some <|close|> text")], writer, done=lambda _: None)
        writer.finish()
    tokens = TokenFile.open(path, key="00" * 32, size=kit.ours().size)
    assert tokens.learn is None
    assert kit.ours().decode(tokens.ids.tolist()) == "some <|close|> text<|end|>"


def test_everything_that_decides_the_ids_is_in_the_fingerprint(kit, encoder_of):
    base = encoder_of().fingerprint
    assert json.loads(json.dumps(base)) == base
    others = [
        encoder_of(train_on="all"),
        encoder_of(length=65),
        encoder_of(parse_special=True),
        encoder_of(kit.ours(kit.template + " ")),
    ]
    prints = [json.dumps(item.fingerprint) for item in (encoder_of(), *others)]
    assert len(set(prints)) == len(prints)
    assert base["date"] == kit.date


def test_the_date_of_the_settings_is_the_templates(kit, written):
    template = "{{ strftime_now('%d %b %Y') }}" + kit.template
    ((ids, _),) = documents_of(written([document("a", "b")], tokenizer=kit.ours(template)))
    told = date.fromisoformat(kit.date).strftime("%d %b %Y")
    assert kit.ours().decode(ids).startswith(f"{told}<|open|>")


def test_a_date_that_is_none_is_refused(kit):
    options = EncodeOptions(
        tokenizer=kit.ours(), settings=DataSettings(chat_date="soon"), sequence_length=8, seed=0, side="train"
    )
    with pytest.raises(ConfigError, match="not a date"):
        ChatEncoder.of(options)


def test_a_turn_and_its_end_are_learnt_and_nothing_else_is(kit, encoder_of):
    told = kit.explain(encoder_of(), Conversation(messages("Hi", "ok")))
    assert "".join(token for token, _ in told) == "<|open|>user\nHi<|close|>\n<|open|>assistant\nok<|close|>\n"
    assert "".join(token for token, learn in told if learn) == "ok<|close|>"


def test_many_conversations_come_in_their_order(kit, written):
    chats = [document(f"question {number}", f"answer {number}") for number in range(300)]
    found = [kit.ours().decode(ids) for ids, _ in documents_of(written(chats))]
    assert [text.split("answer ")[1].split("<")[0] for text in found] == [str(number) for number in range(300)]
