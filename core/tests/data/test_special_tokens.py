"""What stands around a document, by transformers' own tokenizers; and text that spells a special token."""

import json

import pytest
from apr_train.checkpoint.huggingface import tokenizer_of
from apr_train.data.objectives import OBJECTIVES
from apr_train.data.special_tokens import SpelledTokens, decoder_ends, ids_of_prompt
from apr_train.data.tokenizer import build_tokenizer
from apr_train.errors import TokenizerError
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer

TEXT = 'def f(x): return "é"'
LLAMA3 = ["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"]
QWEN2 = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
ROBERTA = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
PUBLISHED = {
    "gpt-2": ({"special": ["<|endoftext|>"]}, {"bos": "<|endoftext|>", "eos": "<|endoftext|>"}, "<|endoftext|>"),
    "qwen2 base": ({"special": QWEN2}, {"eos": "<|endoftext|>"}, "<|endoftext|>"),
    "qwen2 instruct": ({"special": QWEN2}, {"eos": "<|im_end|>"}, "<|endoftext|>"),
    "smollm instruct": ({"special": QWEN2}, {"bos": "<|im_start|>", "eos": "<|im_end|>"}, "<|endoftext|>"),
    "llama 3": ({"special": LLAMA3, "first": LLAMA3[0]}, {"bos": LLAMA3[0], "eos": LLAMA3[1]}, "<|end_of_text|>"),
    "llama 3 instruct": ({"special": LLAMA3, "first": LLAMA3[0]}, {"bos": LLAMA3[0], "eos": LLAMA3[2]}, "<|end_of_text|>"),
    "llama 2": ({"special": ["<unk>", "<s>", "</s>"], "first": "<s>"}, {"bos": "<s>", "eos": "</s>"}, "</s>"),
    "end of text is a word": ({"special": ["</s>"], "words": ["<|endoftext|>"]}, {"eos": "</s>"}, "</s>"),
}
"""Special tokens and post-processor as in the published tokenizer, the roles that its tokenizer_config.json names, and the
token that ends its documents."""


def write_tokenizer(folder, roles, *, special, words=(), first=None, last=None):
    """A folder with a byte-level BPE: `words` are in its vocabulary, and mean nothing to anyone."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=290, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator([TEXT] * 9, trainer)
    content = json.loads(backend.to_str())
    content["model"]["vocab"] |= {word: backend.get_vocab_size() + place for place, word in enumerate(words)}
    backend = Tokenizer.from_str(json.dumps(content))
    backend.add_tokens([AddedToken("<tool_call>", normalized=False)])
    if first or last:
        around = [token for token in (first, last) if token]
        ids = [(token, backend.token_to_id(token)) for token in around]
        backend.post_processor = processors.TemplateProcessing(" ".join(filter(None, (first, "$A", last))), None, ids)
    folder.mkdir()
    (folder / "tokenizer.json").write_text(backend.to_str())
    named = {f"{role}_token": token for role, token in roles.items()}
    (folder / "tokenizer_config.json").write_text(json.dumps(named | {"tokenizer_class": "PreTrainedTokenizerFast"}))
    return build_tokenizer(tokenizer_of(folder, {}))


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_document_begins_as_transformers_begins_it_and_ends_as_in_pretraining(tmp_path, name):
    made, roles, separator = PUBLISHED[name]
    tokenizer = write_tokenizer(tmp_path / "model", roles, **made)
    ends = OBJECTIVES["causal-lm"].document_ends(tokenizer)
    theirs = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert [*ends.start, *tokenizer.encode(TEXT)] == theirs(TEXT).input_ids
    assert ends.end == theirs.convert_tokens_to_ids(separator)
    assert ids_of_prompt(tokenizer, TEXT) == theirs(TEXT).input_ids


def test_an_encoder_s_documents_end_in_its_eos_and_its_rows_bring_the_bos(tmp_path):
    roles = {"bos": "<s>", "eos": "</s>", "pad": "<pad>", "mask": "<mask>", "sep": "</s>", "cls": "<s>"}
    special = [*ROBERTA, "<|endoftext|>"]  # as ModernBERT's: special, and not what ends an encoder's document
    tokenizer = write_tokenizer(tmp_path / "model", roles, special=special, first="<s>", last="</s>")
    ends = OBJECTIVES["masked-lm"].document_ends(tokenizer)
    theirs = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert (ends.start, ends.end) == ((), theirs.eos_token_id)
    assert [0, *tokenizer.encode(TEXT), ends.end] == theirs(TEXT).input_ids


def test_roberta_s_untrained_entry_ends_no_document(tmp_path):
    roles = {"bos": "<s>", "eos": "</s>", "pad": "<pad>", "mask": "<mask>"}
    tokenizer = write_tokenizer(tmp_path / "model", roles, special=ROBERTA, words=["<|endoftext|>"])
    assert tokenizer.id("<|endoftext|>") is not None
    assert OBJECTIVES["masked-lm"].document_ends(tokenizer).end == tokenizer.id("</s>")
    assert decoder_ends(tokenizer).end == tokenizer.id("</s>")


def test_bert_s_names_for_both_ends_are_known(tmp_path):
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    roles = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
    tokenizer = write_tokenizer(tmp_path / "model", roles, special=special)
    assert OBJECTIVES["masked-lm"].document_ends(tokenizer).end == 3
    del tokenizer.spec.special_ids["sep"]
    with pytest.raises(TokenizerError, match="no eos token"):
        OBJECTIVES["masked-lm"].document_ends(tokenizer)


def test_the_eos_of_generation_config_counts_where_nothing_else_names_one(tmp_path):
    write_tokenizer(tmp_path / "model", {}, special=["<s>", "</s>"])
    (tmp_path / "model" / "generation_config.json").write_text('{"eos_token_id": [1, 0]}')
    assert tokenizer_of(tmp_path / "model", {}).special_ids == {"eos": 1}
    assert tokenizer_of(tmp_path / "model", {"eos_token_id": 0}).special_ids == {"eos": 0}


@pytest.mark.parametrize("parse_special", [False, True])
def test_text_that_spells_a_special_token_is_what_transformers_makes_of_it(tmp_path, parse_special):
    tokenizer = write_tokenizer(tmp_path / "model", {"eos": "<|im_end|>"}, special=QWEN2)
    theirs = AutoTokenizer.from_pretrained(tmp_path / "model")
    for text in ('eos = "<|endoftext|>"', "<|im_start|><|im_end|>", "<tool_call>x", "<|endoftext", "plain"):
        expected = theirs(text, split_special_tokens=not parse_special).input_ids
        assert tokenizer.encode_batch([text], parse_special=parse_special) == [expected]
        assert tokenizer.encode(text, parse_special=parse_special) == expected
        assert bool(set(expected) & set(range(3))) == (parse_special and "|>" in text)
    assert tokenizer.id("<tool_call>") in tokenizer.encode("<tool_call>x", parse_special=False)


def test_a_prompt_may_spell_special_tokens_and_a_prompt_from_a_corpus_does_not(tmp_path):
    tokenizer = write_tokenizer(tmp_path / "model", {"eos": "<|im_end|>"}, special=QWEN2)
    assert ids_of_prompt(tokenizer, "<|im_start|>user")[0] == 1
    assert 1 not in ids_of_prompt(tokenizer, "<|im_start|>user", parse_special=False)


def test_special_tokens_are_counted_as_the_library_finds_them(tmp_path):
    special = ["<|a|>", "<|a|>b", "</s>", "<s>", "[MASK]", "<|"]
    tokenizer = write_tokenizer(tmp_path / "model", {}, special=special)
    spelled = SpelledTokens(tokenizer.special_tokens)
    for text in ("", "none < here", "<|a|>b<|a|></s><s>[MASK]<|x", "<<s>></s", "<tool_call>"):
        found = [index for index in tokenizer.encode(text) if index in tokenizer.special_tokens.values()]
        assert spelled.count(text) == len(found)
