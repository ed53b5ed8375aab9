"""vocab.json and merges.txt against the tokenizers that transformers builds of the same folders."""

import json

import pytest
import tokenizers
from apr_train.checkpoint.huggingface import tokenizer_of
from apr_train.checkpoint.tokenizer_metadata import spec_from_apr, spec_to_apr
from apr_train.data.tokenizer import build_tokenizer
from apr_train.errors import FormatError, TokenizerError
from tokenizers import decoders, models, pre_tokenizers, trainers
from transformers import AddedToken, AutoTokenizer, RobertaTokenizer

TEXTS = [
    "",
    " ",
    "def f(x):\n\treturn x**2  # it's 12345 and 3.14159\n\n\n    pass\r\n",
    " leading space, Déjà vu — “quotes”… it's we'll I'M",
    "Cafe\u0301 A\u030a (decomposed), ½ ² Ⅷ ١٢٣",
    "日本語のテキスト 한국어 👩‍👩‍👧‍👦",
    "a\u00a0b\u2003c\x00\x1f\ufeff end   \n \t x",
    "<s>text</s> <pad> <unk> <|endoftext|>x <|im_start|>user\nhi<|im_end|> <tool> <extra>",
]
MASKED = ["x = <mask> y", "<mask>", "a<mask>b", "  <mask> \n<mask>"]
ROBERTA = ["<s>", "<pad>", "</s>", "<unk>"]
NAMED = {"bos": "<s>", "eos": "</s>", "unk": "<unk>", "sep": "</s>", "pad": "<pad>", "cls": "<s>", "mask": "<mask>"}
FLAGS = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}


@pytest.fixture(scope="module")
def trained():
    """Special tokens that the vocabulary holds → vocabulary and merges, learnt here."""

    def train(special):
        tokenizer = tokenizers.Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
        tokenizer.train_from_iterator(TEXTS * 9, trainer)
        model = json.loads(tokenizer.to_str())["model"]
        return model["vocab"], model["merges"]

    return train


@pytest.fixture
def make(tmp_path, trained):
    """Writes a folder as the older tokenizers of transformers saved it."""

    def write(special, *, config, **files):
        vocabulary, merges = trained(special)
        lines = ["#version: 0.2", *(" ".join(pair) for pair in merges), ""]
        (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
        (tmp_path / "merges.txt").write_text("\n".join(lines))
        for name, content in {"config": config, **files}.items():
            (tmp_path / f"{name}.json").write_text(json.dumps(content))
        return tmp_path

    return write


def read(folder):
    return tokenizer_of(folder, json.loads((folder / "config.json").read_text()))


def check_same(folder, texts):
    """Ids with and without what is put around a text, the decoded text, and the ids of the special tokens."""
    spec = read(folder)
    ours, theirs = build_tokenizer(spec), AutoTokenizer.from_pretrained(folder)
    for text in texts:
        for special in (False, True):
            expected = theirs(text, add_special_tokens=special)["input_ids"]
            assert ours.encode(text, special=special) == expected, text
        assert ours.decode(expected) == theirs.decode(expected, clean_up_tokenization_spaces=False)
    named = {role: getattr(theirs, f"{role}_token_id") for role in NAMED}
    assert spec.special_ids == {role: index for role, index in named.items() if index is not None}
    assert spec.size == len(theirs)
    through = build_tokenizer(spec_from_apr("m.apr", json.loads(json.dumps(spec_to_apr(spec)))))
    assert [through.encode(text, special=True) for text in texts] == [ours.encode(text, special=True) for text in texts]


MASK = {"content": "<mask>", **FLAGS, "lstrip": True}


@pytest.mark.parametrize(
    "files",
    [
        {"special_tokens_map": {**{f"{role}_token": token for role, token in NAMED.items()}, "mask_token": MASK}},
        {"special_tokens_map": {"mask_token": MASK}, "tokenizer_config": {"add_prefix_space": True}},
        {"tokenizer_config": {"added_tokens_decoder": {"4": {**MASK, "special": True}}, "trim_offsets": False}},
        {
            "special_tokens_map": {"mask_token": MASK, "additional_special_tokens": ["<extra>"]},
            "added_tokens": {"<tool>": 401, "<mask>": 400},
            "tokenizer_config": {"tokenizer_class": "RobertaTokenizer"},
        },
        {"special_tokens_map": {"mask_token": MASK, "tool_token": "<tool>"}},
    ],
)
def test_roberta_s_two_files_encode_as_in_transformers(files, make):
    special = ROBERTA if "added_tokens" in files else [*ROBERTA, "<mask>"]
    check_same(make(special, config={"model_type": "roberta"}, **files), TEXTS + MASKED)


def test_a_mask_without_flags_takes_the_space_before_it_as_in_the_published_roberta(make):
    """transformers 4 has it so, and each tokenizer.json made with it; 5 forgets it where the files give no flags."""
    folder = make([*ROBERTA, "<mask>"], config={"model_type": "roberta"}, special_tokens_map={"mask_token": "<mask>"})
    spec = read(folder)
    mask = AddedToken("<mask>", lstrip=True, special=True, normalized=False)
    theirs, ours = RobertaTokenizer.from_pretrained(folder, mask_token=mask), build_tokenizer(spec)
    for text in TEXTS + MASKED:
        assert ours.encode(text, special=True) == theirs(text)["input_ids"]
    assert any("<mask> takes the space before it" in note for note in spec.notes)


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"tokenizer_config": {"tokenizer_class": "GPT2TokenizerFast", "add_bos_token": True}},
        {"tokenizer_config": {"add_bos_token": True, "add_eos_token": True, "add_prefix_space": True}},
        {"special_tokens_map": {"bos_token": "<s>", "pad_token": {"content": "<pad>", **FLAGS}}},
    ],
)
@pytest.mark.parametrize("special", [["<|endoftext|>"], ["<|endoftext|>", "<s>", "<pad>"]])
def test_gpt2_s_two_files_encode_as_in_transformers(files, special, make):
    check_same(make(special, config={"model_type": "gpt2"}, **files), TEXTS)


DECODER = {
    str(400 + number): {"content": token, **FLAGS, "special": number < 3}
    for number, token in enumerate(["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<tool>"])
}


@pytest.mark.parametrize(
    "files",
    [
        {
            "tokenizer_config": {
                "added_tokens_decoder": DECODER,
                "additional_special_tokens": ["<|im_start|>", "<|im_end|>"],
                "eos_token": "<|im_end|>",
                "bos_token": None,
                "unk_token": None,
                "add_bos_token": False,
                "tokenizer_class": "Qwen2Tokenizer",
            }
        },
        {"added_tokens": {"<|endoftext|>": 400, "<|im_start|>": 401, "<|im_end|>": 402}},
        {"tokenizer_config": {"eos_token": "<|im_end|>"}},
    ],
)
def test_qwen2_s_two_files_encode_as_in_transformers(files, make):
    check_same(make([], config={"model_type": "qwen2"}, **files), TEXTS)


@pytest.mark.parametrize(
    ("config", "settings", "named"),
    [
        ({"model_type": "clip"}, {"tokenizer_class": "CLIPTokenizer"}, "CLIPTokenizer"),
        ({"model_type": "llama"}, {}, "no tokenizer_class"),
    ],
)
def test_a_class_that_is_not_known_is_refused_by_name_with_the_way_to_a_tokenizer_json(config, settings, named, make):
    spec = read(make(["<|endoftext|>"], config=config, tokenizer_config=settings))
    with pytest.raises(TokenizerError, match=rf"merges\.txt.*{named}.*AutoTokenizer.*save_pretrained"):
        build_tokenizer(spec)


@pytest.mark.parametrize("name", ["tokenizer.model", "spiece.model"])
def test_a_sentencepiece_model_is_refused_by_its_file(name, tmp_path):
    (tmp_path / name).write_bytes(b"\n\x0e")
    with pytest.raises(TokenizerError, match=rf"{name}.*sentencepiece.*AutoTokenizer"):
        build_tokenizer(tokenizer_of(tmp_path, {}))


def test_a_tokenizer_json_beside_the_two_files_wins(make, tmp_path):
    folder = make([*ROBERTA, "<mask>"], config={"model_type": "roberta"})
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}}))
    assert read(folder).size == 1


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("merges.txt", "#version: 0.2\na b c\n", "line 2"),
        ("merges.txt", "ab\n", "line 1"),
        ("vocab.json", '{"a": "b"}', "id"),
        ("vocab.json", "[]", "not a JSON object"),
        ("added_tokens.json", "no", "not valid JSON"),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"x": {"content": "y"}}}', "added_tokens_decoder"),
    ],
)
def test_damaged_files_are_named(name, content, words, make):
    folder = make(ROBERTA, config={"model_type": "roberta"})
    (folder / name).write_text(content)
    with pytest.raises(FormatError, match=rf"{name}.*{words}"):
        read(folder)
