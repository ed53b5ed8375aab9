"""docs/chat.md: the shapes that it shows are taken, and its table is what is learnt."""

import json
import re
from pathlib import Path

import pytest
from apr_train.checkpoint.tokenizer_json import spec_from_json
from apr_train.data.conversations import Conversations, conversation_of
from apr_train.data.encoding import EncodeOptions
from apr_train.data.objectives.sft import ChatEncoder
from apr_train.data.tokenizer import build_tokenizer
from apr_train.run.settings import DataSettings

WORDS = ("user", "assistant")


@pytest.fixture(scope="module")
def page(repository):
    return (Path(repository) / "docs" / "chat.md").read_text()


def records(page):
    (block,) = re.findall(r"```json\n(.*?)```", page, re.DOTALL)
    return [json.loads(line) for line in block.splitlines()]


def test_every_shape_that_is_shown_is_taken(page):
    found = [json.loads(Conversations()(record, "chat.md"))["messages"] for record in records(page)]
    assert [message["role"] for messages in found for message in messages] == ["user", "assistant"] * 4
    assert found[0] == found[1] == found[2]
    assert found[3][0]["content"] == "Add the numbers.\n\n1 and 1"


def test_the_table_is_what_is_learnt(kit, page):
    content = json.loads(kit.ours().backend.to_str())
    vocabulary, merges = content["model"]["vocab"], []
    for word in WORDS:  # a token each, as in a large vocabulary
        for size in range(2, len(word) + 1):
            vocabulary.setdefault(word[:size], len(vocabulary))
            merges.append([word[: size - 1], word[size - 1]])
    content["model"]["merges"] = merges
    tokenizer = build_tokenizer(spec_from_json(content, "kit", special_ids={"eos": 2}, chat_template=kit.template))
    options = EncodeOptions(tokenizer=tokenizer, settings=DataSettings(), sequence_length=64, seed=0, side="train")
    told = kit.explain(ChatEncoder.of(options), conversation_of(records(page)[0], "chat.md"))
    rows = re.findall(r"^\| `(.+?)` \| (yes|no) \|$", page, re.MULTILINE)
    assert rows == [(token.replace("|", "\\|").replace("\n", "⏎"), "yes" if learn else "no") for token, learn in told]
