"""Files that the reference implementation wrote: what they mean when they are read, and that writing them gives their bytes."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from apr_train.checkpoint.apr import AprWriter, Flags, TensorSpec, open_apr, rewrite
from apr_train.checkpoint.apr.keys import TYPED
from apr_train.checkpoint.tie import resolve_tie, tie_contradiction
from apr_train.checkpoint.tokenizer_metadata import spec_from_apr, spec_to_apr
from apr_train.data.tokenizer import build_tokenizer
from apr_train.errors import FormatError
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

CORPUS = Path(__file__).parent / "corpus"
FILES = sorted(CORPUS.glob("*.apr"))
PLACEHOLDERS = ("llama-tied-placeholder.apr", "qwen2-tied-placeholder-bf16.apr")


def metadata_of(raw):
    size, start = struct.unpack_from("<I", raw, 20)[0], struct.unpack_from("<Q", raw, 12)[0]
    return json.loads(raw[start : start + size])


def written_again(path, target):
    """The same metadata and tensors through our writer."""
    with open_apr(path) as reader:
        specs = [
            TensorSpec(name, entry.dtype.name, entry.shape, placeholder=entry.is_placeholder)
            for name, entry in reader.entries.items()
        ]
        with AprWriter(target, metadata_of(path.read_bytes()), specs) as writer:
            for name in reader.entries:
                writer.write(name, bytes(reader.read_raw(name)))
    return target.read_bytes()


def custom_keys(path):
    return [key for key in metadata_of(path.read_bytes()) if key not in TYPED]


def test_the_corpus_is_there():
    assert len(FILES) == 12


@pytest.mark.parametrize("path", [path for path in FILES if len(custom_keys(path)) <= 1], ids=lambda path: path.name)
def test_the_same_metadata_and_tensors_give_the_reference_writers_bytes(path, tmp_path):
    assert written_again(path, tmp_path / "again.apr") == path.read_bytes()


@pytest.mark.parametrize("path", [path for path in FILES if len(custom_keys(path)) > 1], ids=lambda path: path.name)
def test_with_more_custom_keys_only_their_order_and_the_vocabulary_flag_differ(path, tmp_path):
    """The reference writer takes them out of a hash map; ours are sorted."""
    again, raw = written_again(path, tmp_path / "again.apr"), path.read_bytes()
    assert list(metadata_of(again)) == [*(key for key in metadata_of(raw) if key in TYPED), *sorted(custom_keys(path))]
    size = struct.unpack_from("<I", raw, 20)[0]
    assert sorted(again[64 : 64 + size]) == sorted(raw[64 : 64 + size])
    assert (again[:6], again[8:40], again[64 + size : -4]) == (raw[:6], raw[8:40], raw[64 + size : -4])
    flags = Flags.ROW_MAJOR | (Flags.VOCABULARY if "tokenizer.vocabulary" in custom_keys(path) else 0)
    assert struct.unpack_from("<H", again, 6)[0] == flags


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_new_metadata_in_a_reference_file_leaves_its_tensors_and_index_as_they_are(path, tmp_path):
    with open_apr(path) as reader:
        rewrite(reader, tmp_path / "x.apr", metadata_of(path.read_bytes()) | {"license": "MIT"})
        with open_apr(tmp_path / "x.apr") as again:
            assert again.entries == reader.entries
            assert [bytes(again.read_raw(name)) for name in again.entries] == [
                bytes(reader.read_raw(name)) for name in reader.entries
            ]


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("llama-tied-placeholder.apr", True, "lm_head.weight declared tied, 0 bytes"),
        ("qwen2-tied-placeholder-bf16.apr", True, "lm_head.weight declared tied, 0 bytes"),
        ("llama-tied-absent.apr", True, "lm_head absent"),
        ("llama-tied-copy.apr", True, "lm_head equal to the embedding"),
        ("trainer-checkpoint.apr", False, "lm_head differs"),
    ],
)
def test_the_tie_says_in_which_of_the_four_spellings_it_was(name, value, reason):
    with open_apr(CORPUS / name) as reader:
        tie = resolve_tie(reader).tie
    assert (tie.value, tie.reason) == (value, reason)


@pytest.mark.parametrize("name", PLACEHOLDERS)
def test_a_declared_head_is_no_tensor_of_the_model(name):
    with open_apr(CORPUS / name) as reader:
        assert "lm_head.weight" not in reader.header.tensors
        assert len(reader.header.tensors) == len(reader.entries) - 1
        reader.verify()


def test_a_model_with_a_declared_head_is_the_one_without_it():
    with open_apr(CORPUS / PLACEHOLDERS[0]) as declared, open_apr(CORPUS / "llama-tied-absent.apr") as absent:
        assert declared.raw_metadata == absent.raw_metadata
        assert declared.header.tensors == absent.header.tensors
        assert declared.header.config == absent.header.config


def placeholder_file(path, *, name="lm_head.weight", metadata=None, shape=(5, 2), embedding=(5, 2)):
    specs = [TensorSpec(name, "F32", shape, placeholder=True), TensorSpec("model.embed_tokens.weight", "F32", embedding)]
    with AprWriter(path, metadata or {}, specs) as writer:
        writer.write("model.embed_tokens.weight", np.zeros(embedding, np.float32))
    return path


def test_the_other_name_of_a_head_can_be_declared_too(tmp_path):
    with open_apr(placeholder_file(tmp_path / "x.apr", name="output.weight")) as reader:
        assert reader.header.tie.reason == "output.weight declared tied, 0 bytes"


def test_a_declared_tie_that_the_flag_denies_is_a_contradiction(tmp_path):
    with open_apr(placeholder_file(tmp_path / "x.apr", metadata={"tie_word_embeddings": False})) as reader:
        assert "no output head" in tie_contradiction(reader.header)


def test_a_declared_head_of_another_shape_than_the_embedding_is_refused(tmp_path):
    with pytest.raises(FormatError, match="another shape") as caught:
        open_apr(placeholder_file(tmp_path / "x.apr", shape=(6, 2)))
    assert (caught.value.finding.expected, caught.value.finding.found) == ("[5, 2]", "[6, 2]")


@pytest.mark.parametrize(("name", "dtype"), [("model.norm.weight", "F32"), ("lm_head.weight", "BF16")])
def test_only_an_f32_head_is_written_without_data(name, dtype, tmp_path):
    with pytest.raises(FormatError, match="only an output head"):
        AprWriter(tmp_path / "x.apr", {}, [TensorSpec(name, dtype, (2,), placeholder=True)])


@pytest.mark.parametrize("change", ["name", "dtype"])
def test_any_other_tensor_of_no_bytes_stays_an_error(change, tmp_path, reseal):
    raw = (CORPUS / PLACEHOLDERS[0]).read_bytes()
    at = raw.index(b"lm_head.weight")
    edited = raw[:at] + (b"lm_head.weighs" if change == "name" else b"lm_head.weight") + raw[at + 14 :]
    if change == "dtype":
        edited = edited[: at + 14] + bytes([30]) + edited[at + 15 :]
    (tmp_path / "x.apr").write_bytes(reseal(edited))
    with pytest.raises(FormatError, match="the size does not fit"):
        open_apr(tmp_path / "x.apr")


def test_a_declared_head_may_lie_in_another_shard_than_the_embedding(tmp_path):
    names = ["m-00001-of-00002.apr", "m-00002-of-00002.apr"]
    specs = [
        TensorSpec("lm_head.weight", "F32", (5, 2), placeholder=True),
        TensorSpec("model.embed_tokens.weight", "F32", (5, 2)),
    ]
    for index, (name, spec) in enumerate(zip(names, specs, strict=True)):
        sharding = {"shard_count": 2, "shard_index": index, "total_size": 40}
        with AprWriter(tmp_path / name, {"sharding": sharding}, [spec], flags=Flags.SHARDED) as writer:
            writer.write(spec.name, np.zeros(spec.nbytes // 4, np.float32))
    weight_map = {spec.name: index for index, spec in enumerate(specs)}
    manifest = {"shard_count": 2, "tensor_count": 2, "shards": [{"filename": name} for name in names], "weight_map": weight_map}
    (tmp_path / "m.json").write_text(json.dumps(manifest))
    with open_apr(tmp_path / "m.json") as reader:
        assert reader.header.tie.reason == "lm_head.weight declared tied, 0 bytes"
        assert list(reader.header.tensors) == ["model.embed_tokens.weight"]
        assert reader.read("model.embed_tokens.weight").data.shape == (5, 2)


@pytest.mark.parametrize("name", ["trainer-checkpoint.apr", "trainer-checkpoint-bare.apr", "trainer-checkpoint-state.apr"])
def test_a_trainers_checkpoint_names_its_class_and_has_split_halves(name):
    with open_apr(CORPUS / name) as reader:
        header = reader.header
    assert (header.hf_class, header.architecture, header.rope_rows) == ("LlamaForCausalLM", None, "split-half")
    assert "format" not in header.config


@pytest.mark.rule("PREFLIGHT-022")
def test_a_trainers_own_state_is_left_out_and_said():
    with open_apr(CORPUS / "trainer-checkpoint-state.apr") as state, open_apr(CORPUS / "trainer-checkpoint.apr") as plain:
        assert list(state.header.tensors) == list(plain.header.tensors)
        assert plain.header.findings == ()
        (note,) = state.header.findings
    assert (note.rule, note.severity, note.field) == ("PREFLIGHT-022", "warning", "__training__.*")
    assert "(2 tensors)" in note.problem
    assert note.found == "__training__.optimizer.m.0, __training__.step"


@pytest.mark.rule("PREFLIGHT-022")
def test_a_bias_of_one_row_is_read_as_a_vector_and_said():
    name = "model.layers.0.self_attn.q_proj.bias"
    path = CORPUS / "trainer-bias-1xN.apr"
    with open_apr(path) as reader:
        assert reader.entries[name].shape == (1, 8)
        assert reader.header.tensors[name].shape == (8,)
        assert reader.read(name).data.tolist() == np.frombuffer(reader.read_raw(name), "<f4").tolist()
        (note,) = reader.header.findings
    assert (note.rule, note.field, note.expected, note.found) == ("PREFLIGHT-022", name, "[8]", "[1, 8]")


@pytest.mark.parametrize(
    ("metadata", "name", "shape"),
    [
        ({}, "a.bias", (1, 8)),
        ({"format": "entrenar-checkpoint"}, "a.bias", (8, 1)),
        ({"format": "entrenar-checkpoint"}, "a.bias", (1, 1, 8)),
        ({"format": "entrenar-checkpoint"}, "a.weight", (1, 8)),
    ],
)
def test_no_other_shape_is_read_as_another_one(metadata, name, shape, tmp_path):
    with AprWriter(tmp_path / "x.apr", metadata, [TensorSpec(name, "F32", shape)]) as writer:
        writer.write(name, np.zeros(8, np.float32))
    with open_apr(tmp_path / "x.apr") as reader:
        assert (reader.header.tensors[name].shape, reader.header.findings) == (shape, ())


CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 8, "num_hidden_layers": 1,
    "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 40, "intermediate_size": 16,
    "max_position_embeddings": 32, "rms_norm_eps": 1e-6, "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
}  # fmt: skip


@pytest.fixture
def bare(tmp_path):
    return Path(shutil.copy(CORPUS / "trainer-checkpoint-bare.apr", tmp_path))


@pytest.mark.rule("PREFLIGHT-022")
def test_a_config_json_beside_a_file_without_dimensions_is_read_and_said(bare):
    (bare.parent / "config.json").write_text(json.dumps(CONFIG))
    with open_apr(bare) as reader, open_apr(CORPUS / "trainer-checkpoint.apr") as whole:
        assert reader.header.config == whole.header.config
        assert reader.header.architecture == "llama"
        (note,) = reader.header.findings
    assert (note.rule, note.severity, note.found) == ("PREFLIGHT-022", "warning", str(bare.parent / "config.json"))


def test_a_config_json_beside_a_file_with_dimensions_is_not_looked_at(tmp_path):
    path = Path(shutil.copy(CORPUS / "trainer-checkpoint.apr", tmp_path))
    (tmp_path / "config.json").write_text("{")
    with open_apr(path) as reader:
        assert reader.header.config["hidden_size"] == 8


@pytest.mark.rule("FALSIFY-APR-PRETRAIN-INIT-005")
def test_a_config_json_of_another_class_is_refused(bare):
    (bare.parent / "config.json").write_text(json.dumps(CONFIG | {"architectures": ["Qwen2ForCausalLM"]}))
    with pytest.raises(FormatError, match="another model's") as caught:
        open_apr(bare)
    assert (caught.value.finding.rule, caught.value.finding.field) == ("FALSIFY-APR-PRETRAIN-INIT-005", "architectures")


TEXTS = ["ab c", "abc<|im_start|>cd<|im_end|> a b", "<|endoftext|>[PAD] ab", "0 1 2[PAD", "xyz<|im_start|", ""]


def reference_tokenizer(metadata, *, special):
    """The library's own tokenizer with the same vocabulary and added tokens, cut as Qwen2's."""
    vocabulary = {token: index for index, token in enumerate(metadata["tokenizer.vocabulary"])}
    merges = [tuple(merge.split(" ")) for merge in metadata["tokenizer.merges"]]
    tokenizer = tokenizers.Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.normalizer = normalizers.NFC()
    words = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    cut = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(words), "isolated"), cut])
    tokenizer.decoder = decoders.ByteLevel()
    for token, kind in zip(metadata["tokenizer.vocabulary"], metadata["tokenizer.token_type"], strict=True):
        if kind in (3, 4):
            tokenizer.add_tokens([AddedToken(token, special=kind == special, normalized=False)])
    return tokenizer


@pytest.mark.parametrize("user_defined", [None, 34])
def test_a_tokenizer_with_ggufs_token_types_encodes_as_the_library_does(user_defined):
    metadata = metadata_of((CORPUS / "tokenizer-gguf-keys.apr").read_bytes())
    if user_defined is not None:
        metadata["tokenizer.token_type"][user_defined] = 4
    reference = reference_tokenizer(metadata, special=3)
    spec = spec_from_apr("x.apr", metadata)
    built = build_tokenizer(spec)
    fast = PreTrainedTokenizerFast(tokenizer_object=reference, eos_token="<|endoftext|>", pad_token="[PAD]")
    for text in TEXTS:
        expected = reference.encode(text, add_special_tokens=False).ids
        assert built.encode(text) == expected == fast.encode(text, add_special_tokens=False), text
        assert built.decode(expected, skip_special=True) == reference.decode(expected, skip_special_tokens=True)
    assert {token.id for token in spec.added_tokens} == {33, 34, 35, 36}
    assert [token.id for token in spec.added_tokens if not token.special] == ([] if user_defined is None else [user_defined])


def test_ggufs_tokenizer_keys_are_read():
    with open_apr(CORPUS / "tokenizer-gguf-keys.apr") as reader:
        spec = reader.header.tokenizer
    assert spec.special_ids == {"bos": 33, "eos": 33, "pad": 36}
    assert spec.chat_template == "{% for m in messages %}{{ m.content }}{% endfor %}"
    assert (spec.model, spec.pre_type, spec.add_bos, spec.notes) == ("bpe", "qwen2", True, ())


def test_ggufs_tokenizer_keys_are_written_again():
    metadata = metadata_of((CORPUS / "tokenizer-gguf-keys.apr").read_bytes())
    spec = spec_from_apr("x.apr", metadata)
    written = spec_to_apr(spec)
    keys = {key: value for key, value in metadata.items() if key.startswith("tokenizer.")}
    assert written.items() >= keys.items()
    again = spec_from_apr("x.apr", json.loads(json.dumps(written)))
    assert again == spec


def test_a_tokenizer_that_the_metadata_calls_something_else_than_a_bpe_is_no_bpe():
    metadata = metadata_of((CORPUS / "tokenizer-gguf-keys.apr").read_bytes()) | {"tokenizer.model": "llama"}
    assert spec_from_apr("absent/x.apr", metadata).model == "sentencepiece"


def test_token_types_that_are_not_one_a_token_are_left_out_and_said():
    metadata = metadata_of((CORPUS / "tokenizer-gguf-keys.apr").read_bytes()) | {"tokenizer.token_type": [3]}
    spec = spec_from_apr("x.apr", metadata)
    assert any("tokenizer.token_type" in note for note in spec.notes)
    assert spec.kept["tokenizer.token_type"] == [3]


@pytest.mark.parametrize("flags", [0, int(Flags.SHARDED)])
def test_the_vocabulary_flag_is_set_when_the_metadata_has_one(flags, tmp_path):
    for vocabulary, flag in (({}, 0), ({"tokenizer.vocabulary": []}, 0), ({"tokenizer.vocabulary": ["a"]}, 1 << 9)):
        with AprWriter(tmp_path / "x.apr", vocabulary, [], flags=flags):
            pass
        assert struct.unpack_from("<H", (tmp_path / "x.apr").read_bytes(), 6)[0] == flags | flag | 1 << 10


NUMPY = {"f64": "<f8", "i32": "<i4", "i64": "<i8", "i8": "i1", "u8": "u1", "f32": "<f4", "f16": "<f2", "bf16": "<u2"}


@pytest.mark.parametrize("dtype", NUMPY)
def test_every_plain_type_is_read(dtype):
    with open_apr(CORPUS / "dtypes.apr") as reader:
        view = reader.read(dtype)
        assert (view.dtype, view.data.size) == (dtype.upper(), 15 if dtype in ("f32", "f16", "bf16") else 2)
        assert view.data.dtype == np.dtype(NUMPY[dtype])


def test_floats_of_both_widths_are_read():
    with open_apr(CORPUS / "floats.apr") as reader:
        config = reader.header.config
    assert (config["rope_theta"], config["rms_norm_eps"], config["a_custom"], config["e_custom"]) == (
        500000.0,
        1e-5,
        1e-6,
        1e17,
    )


def test_nested_objects_and_text_are_read():
    with open_apr(CORPUS / "nested.apr") as reader:
        assert reader.header.config["zeta"] == {"a": {"c": None, "d": [1, 2]}, "b": 1}
        assert reader.header.provenance["description"] == 'größe 模型 "quoted" \n line'
