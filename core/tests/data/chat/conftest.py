import json
from datetime import date

import pytest
import tokenizers
from apr_train.checkpoint.tokenizer_json import spec_from_json
from apr_train.data.chat.template import template_of
from apr_train.data.documents import Document
from apr_train.data.tokenizer import build_tokenizer
from attrs import evolve
from tokenizers import decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

DATE = "2026-03-04"
TURNS = """{%- for message in messages -%}
{{ '<|open|>' + message.role + '\n' }}{{ message.content + '<|close|>' }}{{ '\n' }}
{%- endfor -%}
{%- if add_generation_prompt %}{{ '<|open|>assistant\n' }}{% endif -%}
"""
"""A template as short as they come, of our own: each turn between two control tokens."""
SPECIAL = ("<|open|>", "<|close|>", "<|end|>", "<|pad|>")


def byte_level(texts=(), special=SPECIAL):
    """A byte-level BPE with a few merges and control tokens."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=list(special),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator([*texts, "the answer is the question, user and assistant and system say hello"], trainer)
    return backend


class Kit:
    """A tokenizer of ours with a template, and transformers' of the same."""

    date = DATE
    template = TURNS

    def spec(self, template=TURNS, special=SPECIAL, **roles):
        content = json.loads(byte_level(special=special).to_str())
        ids = {name: special.index(token) for name, token in {"eos": "<|end|>", "pad": "<|pad|>"}.items() if token in special}
        return spec_from_json(content, "kit", special_ids=ids | roles, chat_template=template)

    def ours(self, template=TURNS, **options):
        return build_tokenizer(self.spec(template, **options))

    def template_of(self, tokenizer, text=None):
        found = template_of(tokenizer, DATE)
        return found if text is None else evolve(found, text=text)

    def theirs(self, tokenizer, template):
        """transformers' tokenizer with the same backend, of a marked template as a rule."""
        backend = tokenizers.Tokenizer.from_str(tokenizer.backend.to_str())
        named = {f"{role}_token": tokenizer.token(index) for role, index in tokenizer.special_ids.items()}
        return PreTrainedTokenizerFast(tokenizer_object=backend, chat_template=template, **named)

    def explain(self, encoder, conversation):
        """Each token of a conversation as text, and whether it is learnt."""
        kept = Kept()
        encoder.encode([Document("chats.jsonl:1", conversation.to_bytes())], kept, done=lambda size: None)
        return [(encoder.tokenizer.decode([index]), learn) for index, learn in zip(kept.ids, kept.learn, strict=True)]


class Kept:
    """Stands in for a token file: what an encoder appends, in memory."""

    def __init__(self):
        self.ids, self.learn = [], []

    def append(self, ids, *, learn, text_bytes):
        self.ids += ids
        self.learn += learn

    def end_document(self):
        pass

    def count(self, name, number):
        pass


@pytest.fixture(scope="session")
def kit():
    return Kit()


@pytest.fixture
def fixed_date(monkeypatch):
    """What transformers' templates take for today."""
    from transformers.utils import chat_template_utils

    class Fixed(chat_template_utils.datetime):
        @classmethod
        def now(cls):
            return cls.combine(date.fromisoformat(DATE), cls.min.time())

    monkeypatch.setattr(chat_template_utils, "datetime", Fixed)
