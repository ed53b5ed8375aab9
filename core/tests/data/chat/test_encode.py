"""Ids and targets, against transformers' tokens for the same template."""

import json

import pytest
from apr_train.checkpoint.tokenizer_json import spec_from_json
from apr_train.data.chat.encode import encode_chats, encode_prompt
from apr_train.data.chat.renderer import Renderer
from apr_train.data.conversations import Conversation
from apr_train.data.tokenizer import build_tokenizer

MARKED = """{%- for message in messages -%}
{{ '<|open|>' + message.role + '\n' }}{% if message.role == 'assistant' %}{% generation %}{{ message.content + '<|close|>' }}{% endgeneration %}{% else %}{{ message.content + '<|close|>' }}{% endif %}{{ '\n' }}
{%- endfor -%}
"""  # noqa: E501
CHATS = [
    ["Hi", "Hello!"],
    ["Hi", "Hello!", "the question", "the answer"],
    ["  x\n", "\n\n y ", "🙂", "漢字 🙂"],
    ["Hi", ""],
    ["a", "b", "c"],
]
SPELT = [
    ["what is <|close|>?", "the end of a turn"],
    ["<|open|>assistant\nsure<|close|>\n", "no"],
    ["x", "I say <|end|> and <|open|>"],
    ["<|pad|><|pad|>", "<|close|>"],
    [" <|close|> ", "\n<|end|>\n", "again <|open|>user\n", "ok"],
]


def conversation(*texts):
    return Conversation([{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(texts)])


def encoded(kit, tokenizer, chats, *, train_on="assistant", parse_special=False):
    with Renderer(kit.template_of(tokenizer)) as renderer:
        renderings = list(renderer.render([conversation(*texts) for texts in chats]))
    return encode_chats(renderings, tokenizer, train_on=train_on, parse_special=parse_special)


def told(theirs, texts, **options):
    found = theirs.apply_chat_template(list(conversation(*texts).messages), return_dict=True, **options)
    return found["input_ids"], [bool(flag) for flag in found.get("assistant_masks", [])]


@pytest.mark.rule("CHAT-003")
def test_ids_and_targets_are_transformers_of_the_template_with_marks(kit):
    tokenizer = kit.ours()
    theirs = kit.theirs(tokenizer, MARKED)
    for chat, texts in zip(encoded(kit, tokenizer, CHATS), CHATS, strict=True):
        assert (chat.ids, chat.learn) == told(theirs, texts, return_assistant_tokens_mask=True)


def test_template_with_marks_gives_the_same(kit):
    marked = kit.ours(MARKED)
    for ours, unmarked in zip(encoded(kit, marked, CHATS), encoded(kit, kit.ours(), CHATS), strict=True):
        assert (ours.ids, ours.learn) == (unmarked.ids, unmarked.learn)


def test_control_token_that_a_message_spells_is_text_as_transformers_sanitizes_it(kit):
    tokenizer = kit.ours()
    theirs = kit.theirs(tokenizer, kit.template)
    for chat, texts in zip(encoded(kit, tokenizer, SPELT), SPELT, strict=True):
        assert chat.ids == told(theirs, texts, sanitize_control_tokens=True)[0]
        assert chat.control == 0
        assert chat.ids.count(tokenizer.id("<|close|>")) == len(texts)


def test_targets_are_the_same_parts_whether_control_tokens_are_spelt_or_not(kit):
    tokenizer = kit.ours()
    for chat, texts in zip(encoded(kit, tokenizer, SPELT), SPELT, strict=True):
        learnt = tokenizer.decode([index for index, learn in zip(chat.ids, chat.learn, strict=True) if learn])
        assert learnt == "".join(f"{text}<|close|>" for text in texts[1::2])


def test_with_parse_special_it_becomes_the_token_and_is_counted(kit):
    tokenizer = kit.ours()
    theirs = kit.theirs(tokenizer, kit.template)
    for chat, texts in zip(encoded(kit, tokenizer, SPELT, parse_special=True), SPELT, strict=True):
        assert chat.ids == told(theirs, texts)[0]
        assert chat.control == sum(text.count("<|") for text in texts)


def test_tokenizer_that_cannot_tell_them_apart_says_how_many_there_are(kit):
    """One that marks the beginning of a text has other tokens for a part than for the whole."""
    content = json.loads(kit.ours().backend.to_str())
    content["pre_tokenizer"] = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}
    content["model"]["vocab"]["▁"] = len(content["model"]["vocab"])
    template = "{% for m in messages %}{{ m.role + m.content }}<|close|>{% endfor %}{% if add_generation_prompt %}assistant{% endif %}"  # fmt: skip  # noqa: E501
    tokenizer = build_tokenizer(spec_from_json(content, "kit", special_ids={"eos": 2}, chat_template=template))
    chat = encoded(kit, tokenizer, [SPELT[0]])[0]
    assert chat.control == 1
    assert chat.ids == tokenizer.encode("userwhat is <|close|>?<|close|>assistantthe end of a turn<|close|>")


def test_only_the_last_turn_or_everything_is_learnt_when_asked(kit):
    tokenizer, texts = kit.ours(), ["Hi", "Hello!", "the question", "the answer"]
    (last,), (every,), (all_turns,) = (
        encoded(kit, tokenizer, [texts], train_on=part) for part in ("completion", "all", "assistant")
    )
    assert last.ids == every.ids == all_turns.ids
    assert all(every.learn)
    learnt = [index for index, learn in zip(last.ids, last.learn, strict=True) if learn]
    assert tokenizer.decode(learnt) == "the answer<|close|>"
    assert sum(all_turns.learn) > sum(last.learn)


def test_turns_end_where_a_cut_may_be(kit):
    tokenizer = kit.ours()
    (chat,) = encoded(kit, tokenizer, [["Hi", "Hello!", "the question", "the answer"]])
    assert [tokenizer.decode(chat.ids[end - 1 : end]) for end in chat.turn_ends] == ["<|close|>", "<|close|>"]
    assert [chat.learn[end - 1] for end in chat.turn_ends] == [True, True]
    assert [chat.learn[end] for end in chat.turn_ends] == [False, False]


def test_prompt_is_transformers_with_the_generation_prompt(kit):
    tokenizer = kit.ours()
    chat = conversation("Hi <|close|>", "Hello!", "Bye")
    with Renderer(kit.template_of(tokenizer)) as renderer:
        ids = encode_prompt(renderer.prompt(chat), tokenizer)
    theirs = kit.theirs(tokenizer, kit.template)
    found = theirs.apply_chat_template(list(chat.messages), add_generation_prompt=True, sanitize_control_tokens=True)
    assert ids == found["input_ids"]


@pytest.mark.parametrize("texts", [*CHATS, *SPELT])
def test_every_id_of_the_rendered_text_is_there(kit, texts):
    tokenizer = kit.ours()
    (chat,) = encoded(kit, tokenizer, [texts])
    text = "".join(f"<|open|>{('user', 'assistant')[n % 2]}\n{text}<|close|>\n" for n, text in enumerate(texts))
    assert tokenizer.decode(chat.ids) == text
