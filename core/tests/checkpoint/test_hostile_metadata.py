"""Metadata is somebody else's JSON: whatever it holds, the answer is a header or a FormatError."""

import json

import pytest
from apr_train.checkpoint.apr.keys import ALIASES, HF_NAMES, PROVENANCE
from apr_train.checkpoint.apr.metadata import header_from_apr
from apr_train.checkpoint.gguf import header_from_gguf
from apr_train.checkpoint.gguf_keys import KEYS
from apr_train.checkpoint.header import TensorInfo
from apr_train.checkpoint.huggingface import header_from_hf, tokenizer_of
from apr_train.checkpoint.tokenizer_json import spec_from_json
from apr_train.checkpoint.tokenizer_metadata import KEY, spec_to_apr
from apr_train.data.tokenizer import build_tokenizer
from apr_train.errors import FormatError, TokenizerError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

SCALARS = st.none() | st.booleans() | st.integers(-(1 << 70), 1 << 70) | st.floats() | st.text(max_size=6)
WORDS = st.sampled_from(
    ["BPE", "vocab", "a", "a b", "type", "id", "content", "model", "merges", "rope_theta", "default", "[PAD1]"]
)
VALUES = st.recursive(
    SCALARS | WORDS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(WORDS, inner, max_size=4), max_leaves=8
)
TENSORS = {"model.embed_tokens.weight": TensorInfo("model.embed_tokens.weight", "F32", (4, 2), 32)}
RULES = settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
TOKENIZER = ["vocabulary", "merges", "scores", "pre_type", "model_type", "bos_token_id", "eos_token_id", "architecture"]
APR = [*HF_NAMES, *sorted(ALIASES), *PROVENANCE, "architecture", "hf_architecture"]
APR += ["rope_type", "chat_template", "tie_word_embeddings", "rope_scaling", KEY, *(f"tokenizer.{name}" for name in TOKENIZER)]
MERGES = st.lists(st.lists(WORDS | SCALARS, max_size=3) | WORDS | SCALARS, max_size=3) | VALUES
VOCABULARY = st.dictionaries(st.sampled_from(["a", "b", "ab", "[PAD1]"]), st.integers(-1, 5) | VALUES, max_size=4) | VALUES
BPE = st.fixed_dictionaries(
    {"type": st.just("BPE") | VALUES},
    optional={"vocab": VOCABULARY, "merges": MERGES, "continuing_subword_prefix": VALUES, "dropout": VALUES},
)
ADDED = st.lists(
    st.fixed_dictionaries({"id": st.integers(-2, 9) | VALUES, "content": WORDS | VALUES}, optional={"special": VALUES}),
    max_size=3,
)
JSON = st.fixed_dictionaries(
    {"model": BPE | VALUES}, optional={"added_tokens": ADDED, "pre_tokenizer": VALUES, "normalizer": VALUES}
)
IDS = st.lists(st.integers(-2, 9), max_size=3) | VALUES
OURS = st.fixed_dictionaries(
    {},
    optional={"json": JSON | VALUES, "unused": IDS, "added_only": IDS, "added_tokens": ADDED, "special_ids": VALUES},
)


def check(make):
    try:
        spec = make().tokenizer
    except FormatError:
        return
    if spec is not None:
        spec_to_apr(spec)
        try:
            build_tokenizer(spec)
        except TokenizerError as error:
            assert str(error)  # noqa: PT017 - either outcome is right, nothing else is


@RULES
@given(metadata=st.dictionaries(st.sampled_from(APR), VALUES, max_size=6))
def test_any_apr_metadata_gives_a_header_or_a_format_error(metadata):
    check(lambda: header_from_apr("absent/m.apr", metadata, TENSORS))


@RULES
@given(ours=OURS, vocabulary=st.lists(st.text(max_size=3), max_size=4), merges=MERGES)
def test_any_content_of_our_own_key_gives_a_header_or_a_format_error(ours, vocabulary, merges):
    metadata = {KEY: ours, "tokenizer.vocabulary": vocabulary, "tokenizer.merges": merges}
    check(lambda: header_from_apr("absent/m.apr", metadata, TENSORS))


GGUF = [f"x.{key}" for key in KEYS] + [
    "x.rope.dimension_count",
    "x.rope.scaling.type",
    "x.rope.scaling.factor",
    "general.license",
]
GGUF += ["general.name", "tokenizer.ggml.model", "tokenizer.ggml.tokens", "tokenizer.ggml.merges", "tokenizer.ggml.token_type"]
GGUF += ["tokenizer.ggml.pre", "tokenizer.ggml.bos_token_id", "tokenizer.ggml.add_bos_token", "tokenizer.chat_template"]


@RULES
@given(metadata=st.dictionaries(st.sampled_from(GGUF), VALUES, max_size=6))
def test_any_gguf_metadata_gives_a_header_or_a_format_error(metadata):
    check(lambda: header_from_gguf("absent/m.gguf", {"general.architecture": "x", **metadata}, TENSORS))


HF = ["architectures", "model_type", "rope_parameters", "rope_theta", "rope_scaling", "tie_word_embeddings", "hidden_size"]


@RULES
@given(config=st.dictionaries(st.sampled_from(HF), VALUES, max_size=5))
def test_any_config_json_gives_a_header_or_a_format_error(config):
    check(lambda: header_from_hf("p", config, TENSORS))


@RULES
@given(
    content=JSON | BPE.map(lambda model: {"model": model}),
    named=st.dictionaries(WORDS | st.just("bos_token"), VALUES, max_size=3),
)
def test_any_tokenizer_json_gives_a_spec_or_a_format_error(content, named, tmp_path):
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(named))

    class Holder:
        tokenizer = None

    def make():
        Holder.tokenizer = tokenizer_of(tmp_path, named)
        return Holder

    check(make)


@pytest.mark.parametrize("value", [5, "x", {"a": 1}, [None], [-1], [1 << 80]])
def test_lists_of_ids_in_our_key_may_be_anything(value):
    model = {"type": "BPE"}
    ours = {"json": {"model": model}, "unused": value, "added_only": value}
    check(lambda: header_from_apr("m", {KEY: ours, "tokenizer.vocabulary": ["a"], "tokenizer.merges": []}, TENSORS))


@pytest.mark.parametrize("added", [{"a": 1}, "ab", 5, [{"id": True}], [{"id": 0, "content": None}]])
def test_added_tokens_that_are_no_list_of_tokens_are_refused(added):
    with pytest.raises(FormatError, match="added_tokens"):
        spec_from_json({"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}, "added_tokens": added}, "t")
