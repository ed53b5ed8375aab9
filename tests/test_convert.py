"""`import` and `export` through the command line, against transformers' models and llama.cpp's own file writer."""

import json
import os
import subprocess
import sys

import gguf
import numpy as np
import pytest
import torch
from apr_train.checkpoint.open import open_checkpoint
from apr_train.cli import cli
from click.testing import CliRunner
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    RobertaConfig,
    RobertaForMaskedLM,
    RobertaModel,
)

KINDS = gguf.GGMLQuantizationType
SIZES = {
    "vocab_size": 96,
    "hidden_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 512,
    "max_position_embeddings": 64,
}
DECODERS = {"llama": (LlamaConfig, LlamaForCausalLM), "qwen2": (Qwen2Config, Qwen2ForCausalLM)}


def decoder(kind, *, tied=True):
    config_class, model_class = DECODERS[kind]
    torch.manual_seed(0)
    model = model_class(config_class(**SIZES, tie_word_embeddings=tied, rms_norm_eps=1e-5)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.05)
    return model


def invoke(*arguments, exit_code=0):
    result = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    assert result.exit_code == exit_code, result.output
    return result.output


def tensors_of(path):
    with open_checkpoint(path) as checkpoint:
        return {name: checkpoint.read(name).data.copy() for name in checkpoint.header.tensors}


def state_of(model):
    tied = model.config.tie_word_embeddings
    return {
        name: tensor.numpy()
        for name, tensor in model.state_dict().items()
        if not (tied and name in ("lm_head.weight", "lm_head.decoder.weight", "lm_head.decoder.bias"))
    }


def check_equal(found, expected):
    assert set(found) == set(expected)
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)


def a_tokenizer(folder):
    vocabulary = {token: index for index, token in enumerate(["<|end|>", *sorted(pre_tokenizers.ByteLevel.alphabet())[:90]])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|end|>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|end|>", "chat_template": "{{ m }}"}))
    return tokenizer


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", DECODERS)
def test_hugging_face_to_apr_and_back_is_bit_exact_and_loads_in_transformers(kind, tied, tmp_path):
    model = decoder(kind, tied=tied)
    model.save_pretrained(tmp_path / "hf")
    tokenizer = a_tokenizer(tmp_path / "hf")
    (tmp_path / "hf" / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    invoke("import", tmp_path / "hf", "-o", tmp_path / "m.apr")
    check_equal(tensors_of(tmp_path / "m.apr"), state_of(model))
    invoke("export", tmp_path / "m.apr", "-o", tmp_path / "back")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "back").eval()
    assert type(loaded) is type(model)
    tokens = torch.arange(32)[None] % 96
    with torch.no_grad():
        assert torch.equal(loaded(tokens).logits, model(tokens).logits)
    theirs = AutoTokenizer.from_pretrained(tmp_path / "back")
    assert theirs("!x<|end|>")["input_ids"] == tokenizer.encode("!x<|end|>").ids
    assert (theirs.eos_token, theirs.chat_template) == ("<|end|>", "{{ m }}")


def metadata_of(path):
    with open_checkpoint(path) as checkpoint:
        return checkpoint.raw_metadata


def test_metadata_of_an_import_says_where_it_came_from_and_how_its_rows_lie(tmp_path):
    decoder("llama").save_pretrained(tmp_path / "hf")
    (tmp_path / "hf" / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    invoke("import", tmp_path / "hf", "-o", tmp_path / "m.apr")
    found = metadata_of(tmp_path / "m.apr")
    expected = {
        "license": "apache-2.0",
        "source": "hf",
        "original_format": "safetensors",
        "hf_architecture": "LlamaForCausalLM",
        "architecture": "llama",
        "rope_type": 2,
        "num_layers": 2,
        "num_kv_heads": 2,
        "tie_word_embeddings": True,
    }
    assert expected.items() <= found.items()
    assert found["param_count"] == sum(array.size for array in tensors_of(tmp_path / "m.apr").values())
    assert found["total_size"] == 4 * found["param_count"]
    assert not {"created_at", "num_hidden_layers", "dtype"} & set(found)


def test_two_imports_are_the_same_file_and_the_clock_is_asked_only_by_the_environment(tmp_path, monkeypatch):
    monkeypatch.delenv("SOURCE_DATE_EPOCH", raising=False)
    decoder("llama").save_pretrained(tmp_path / "hf")
    for name in ("a.apr", "b.apr"):
        invoke("import", tmp_path / "hf", "-o", tmp_path / name)
    assert (tmp_path / "a.apr").read_bytes() == (tmp_path / "b.apr").read_bytes()
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "86400")
    invoke("import", tmp_path / "hf", "-o", tmp_path / "c.apr")
    assert metadata_of(tmp_path / "c.apr")["created_at"] == "1970-01-02T00:00:00Z"


GGUF_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def gguf_name(name):
    """As llama.cpp's converter names it; written out here so that the name map has something to be compared with."""
    stem, kind = name.rsplit(".", 1)
    if stem.startswith("model.layers."):
        _, _, layer, rest = stem.split(".", 3)
        return f"blk.{layer}.{GGUF_NAMES[rest]}.{kind}"
    return f"{GGUF_NAMES[stem]}.{kind}"


def permuted(weights, heads):
    """`LlamaModel.permute` of llama.cpp's convert_hf_to_gguf.py."""
    shape = weights.shape
    return weights.reshape(heads, 2, shape[0] // heads // 2, *shape[1:]).swapaxes(1, 2).reshape(shape)


def write_gguf(path, model, kind, *, convert=lambda name, data: (data, None), more=lambda writer: None, extra=()):
    """A GGUF file as llama.cpp's converter would write it."""
    writer = gguf.GGUFWriter(path, kind)
    writer.add_block_count(2)
    writer.add_context_length(64)
    writer.add_embedding_length(256)
    writer.add_feed_forward_length(512)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    more(writer)
    for name, data in [*state_of(model).items(), *extra]:
        if kind == "llama" and ("q_proj" in name or "k_proj" in name):
            data = permuted(data, 4 if "q_proj" in name else 2)
        written, raw = convert(name, data)
        writer.add_tensor(gguf_name(name), written, raw_dtype=raw)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", DECODERS)
def test_gguf_to_apr_gives_the_hugging_face_tensors_in_their_order(kind, tied, tmp_path):
    model = decoder(kind, tied=tied)
    write_gguf(tmp_path / "m.gguf", model, kind)
    output = invoke("import", tmp_path / "m.gguf", "-o", tmp_path / "m.apr")
    check_equal(tensors_of(tmp_path / "m.apr"), state_of(model))
    assert f"rows of q and k: split-half; {4 if kind == 'llama' else 0} tensors were reordered" in output
    found = metadata_of(tmp_path / "m.apr")
    assert (found["rope_type"], found["original_format"], found["source"]) == (2, "gguf", "m.gguf")
    assert found["tie_word_embeddings"] is tied


def blocks(kind):
    """Matrices as blocks of `kind` made of random bytes, everything else as float32."""

    def convert(name, data):
        if data.ndim == 1:
            return data, None
        block, size = gguf.GGML_QUANT_SIZES[kind]
        random = np.random.default_rng(len(name))
        return random.integers(0, 60, (data.shape[0], data.shape[1] // block * size)).astype(np.uint8), kind

    return convert


def dequantised(path):
    with np.errstate(all="ignore"):
        return {tensor.name: gguf.dequantize(tensor.data, tensor.tensor_type) for tensor in gguf.GGUFReader(path).tensors}


def check_against_gguf(found, path, model):
    """What `gguf` itself reads, with llama.cpp's permutation undone by its inverse written out here."""
    for name in state_of(model):
        expected = dequantised(path)[gguf_name(name)]
        heads = {"q_proj": 4, "k_proj": 2}.get(name.split(".")[-2])
        if heads:
            rows = expected.shape[0]
            order = permuted(np.arange(rows), heads)
            expected = expected[np.argsort(order)]
        assert found[name].astype(np.float32).tobytes() == np.ascontiguousarray(expected, np.float32).tobytes(), name


@pytest.mark.parametrize("kind", [KINDS.Q4_1, KINDS.Q8_0, KINDS.Q4_K, KINDS.Q6_K], ids=lambda kind: kind.name)
def test_blocks_become_exact_float32_by_default(kind, tmp_path):
    model = decoder("llama")
    path = write_gguf(tmp_path / "m.gguf", model, "llama", convert=blocks(kind))
    invoke("import", path, "-o", tmp_path / "m.apr")
    check_against_gguf(tensors_of(tmp_path / "m.apr"), path, model)


@pytest.mark.parametrize("kind", [KINDS.Q4_K, KINDS.Q6_K], ids=lambda kind: kind.name)
def test_keep_reorders_whole_rows_of_blocks(kind, tmp_path):
    model = decoder("llama")
    path = write_gguf(tmp_path / "m.gguf", model, "llama", convert=blocks(kind))
    invoke("import", path, "-o", tmp_path / "m.apr", "--dtype", "keep")
    with open_checkpoint(tmp_path / "m.apr") as checkpoint:
        assert checkpoint.header.tensors["model.layers.0.self_attn.q_proj.weight"].dtype == kind.name
    check_against_gguf(tensors_of(tmp_path / "m.apr"), path, model)


def test_keep_refuses_a_type_that_apr_has_no_id_for_by_name(tmp_path):
    path = write_gguf(tmp_path / "m.gguf", decoder("llama"), "llama", convert=blocks(KINDS.Q4_1))
    output = invoke("import", path, "-o", tmp_path / "m.apr", "--dtype", "keep", exit_code=1)
    assert "Q4_1 cannot be kept" in output
    assert not (tmp_path / "m.apr").exists()


@pytest.mark.parametrize(("dtype", "torch_dtype"), [("f16", torch.float16), ("bf16", torch.bfloat16)])
def test_dtype_rounds_as_torch_does(dtype, torch_dtype, tmp_path):
    model = decoder("qwen2")
    model.save_pretrained(tmp_path / "hf")
    invoke("import", tmp_path / "hf", "-o", tmp_path / "m.apr", "--dtype", dtype)
    invoke("export", tmp_path / "m.apr", "-o", tmp_path / "back")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "back", dtype="auto")
    assert loaded.dtype == torch_dtype
    for (name, found), expected in zip(loaded.state_dict().items(), model.state_dict().values(), strict=True):
        assert torch.equal(found, expected.to(torch_dtype)), name


def test_half_precision_sources_stay_as_they_are(tmp_path):
    decoder("llama").to(torch.bfloat16).save_pretrained(tmp_path / "hf")
    assert "(20 BF16)" in invoke("import", tmp_path / "hf", "-o", tmp_path / "m.apr")


def test_a_head_that_is_the_embedding_stored_twice_is_left_out_and_that_is_said(tmp_path):
    model = decoder("llama")
    head = ("lm_head.weight", model.lm_head.weight.detach().numpy())
    write_gguf(tmp_path / "m.gguf", model, "llama", extra=[head])
    output = invoke("import", tmp_path / "m.gguf", "-o", tmp_path / "m.apr")
    assert "tied (lm_head equal to the embedding)" in output
    assert "left out: output.weight" in output
    check_equal(tensors_of(tmp_path / "m.apr"), state_of(model))


def hf_with(tmp_path, change, *, tied=True):
    """A folder whose tensors and config went through `change(tensors, config)`."""
    model = decoder("llama", tied=tied)
    tensors = {name: np.array(array) for name, array in state_of(model).items()}
    config = json.loads(model.config.to_json_string(use_diff=False))
    config["architectures"] = ["LlamaForCausalLM"]
    change(tensors, config)
    folder = tmp_path / "changed"
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
    return folder


FAULTS = {
    "a tensor too many": (lambda t, c: t.update({"model.extra.weight": np.zeros(3, np.float32)}), "model.extra.weight", 3),
    "a tensor too few": (lambda t, c: t.pop("model.layers.1.mlp.up_proj.weight"), "model.layers.1.mlp.up_proj.weight", 3),
    "a misshapen tensor": (lambda t, c: t.update({"model.norm.weight": np.zeros(3, np.float32)}), "wrong shape", 3),
    "a missing field": (lambda t, c: c.pop("intermediate_size"), "intermediate_size", 3),
    "another family": (lambda t, c: c.update(architectures=["GPTNeoXForCausalLM"], model_type="gpt_neox"), "no installed", 3),
    "mathematics": (lambda t, c: c.update(is_causal=False), "attention to later tokens", 3),
    "an integer weight": (lambda t, c: t.update({"model.norm.weight": np.zeros(256, np.int32)}), "I32", 3),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_source_is_refused_and_nothing_is_written(fault, tmp_path):
    change, words, exit_code = FAULTS[fault]
    folder = hf_with(tmp_path, change)
    assert words in invoke("import", folder, "-o", tmp_path / "m.apr", exit_code=exit_code)
    assert not (tmp_path / "m.apr").exists()


def test_an_import_tells_keys_that_nobody_knows(tmp_path):
    folder = hf_with(tmp_path, lambda t, c: c.update(flux_capacitor=88))
    assert "PREFLIGHT-004" in (said := invoke("import", folder, "-o", tmp_path / "m.apr"))
    assert "flux_capacitor" in said


def test_a_tied_flag_beside_a_head_of_its_own_is_refused(tmp_path):
    folder = hf_with(tmp_path, lambda t, c: t.update({"lm_head.weight": t["model.embed_tokens.weight"] + 1}))
    assert "other values" in invoke("import", folder, "-o", tmp_path / "m.apr", exit_code=1)


def test_a_failed_import_leaves_the_old_file_whole(tmp_path):
    decoder("llama").save_pretrained(tmp_path / "hf")
    invoke("import", tmp_path / "hf", "-o", tmp_path / "m.apr")
    before = (tmp_path / "m.apr").read_bytes()
    path = write_gguf(tmp_path / "m.gguf", decoder("llama"), "llama", convert=lambda n, d: (d * 1e30, None))
    assert "too large" in invoke("import", path, "-o", tmp_path / "m.apr", "--dtype", "f16", exit_code=1)
    assert (tmp_path / "m.apr").read_bytes() == before
    assert sorted(item.name for item in tmp_path.iterdir()) == ["hf", "m.apr", "m.gguf"]


def test_unknown_row_order_asks_for_rope_layout(tmp_path):
    from apr_train.checkpoint.apr import AprWriter, TensorSpec

    model = decoder("llama")
    model.save_pretrained(tmp_path / "hf")
    invoke("import", tmp_path / "hf", "-o", tmp_path / "m.apr")
    metadata = {**metadata_of(tmp_path / "m.apr")}
    del metadata["rope_type"], metadata["original_format"]
    tensors = tensors_of(tmp_path / "m.apr")
    for name in tensors:
        if "q_proj" in name or "k_proj" in name:
            tensors[name] = permuted(tensors[name], 4 if "q_proj" in name else 2)
    with AprWriter(tmp_path / "old.apr", metadata, [TensorSpec(n, "F32", a.shape) for n, a in tensors.items()]) as writer:
        for name, array in tensors.items():
            writer.write(name, array)
    assert "--rope-layout" in invoke("import", tmp_path / "old.apr", "-o", tmp_path / "new.apr", exit_code=3)
    invoke("import", tmp_path / "old.apr", "-o", tmp_path / "new.apr", "--rope-layout", "adjacent")
    check_equal(tensors_of(tmp_path / "new.apr"), state_of(model))


def roberta():
    torch.manual_seed(0)
    sizes = {"vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    return RobertaConfig(**sizes, max_position_embeddings=66, type_vocab_size=1, layer_norm_eps=1e-5)


def test_an_encoder_goes_to_apr_and_back(tmp_path):
    model = RobertaForMaskedLM(roberta()).eval()
    model.save_pretrained(tmp_path / "hf")
    invoke("import", tmp_path / "hf", "-o", tmp_path / "m.apr")
    found = metadata_of(tmp_path / "m.apr")
    assert found["rms_norm_eps"] == 1e-5
    assert (found["type_vocab_size"], found["pad_token_id"]) == (1, 1)
    assert not {"layer_norm_eps", "rope_type"} & set(found)
    invoke("export", tmp_path / "m.apr", "-o", tmp_path / "back")
    loaded = AutoModelForMaskedLM.from_pretrained(tmp_path / "back").eval()
    tokens = torch.arange(5, 25)[None]
    with torch.no_grad():
        assert torch.equal(loaded(tokens).logits, model(tokens).logits)


def test_a_base_encoder_stays_bare_and_says_what_is_left_out_and_fresh(tmp_path):
    model = RobertaModel(roberta())
    model.save_pretrained(tmp_path / "hf")
    output = invoke("import", tmp_path / "hf", "-o", tmp_path / "m.apr")
    assert "left out: pooler.dense.weight" in output
    assert "not in the source: lm_head" in output
    expected = {name: tensor.numpy() for name, tensor in model.state_dict().items() if "pooler" not in name}
    check_equal(tensors_of(tmp_path / "m.apr"), expected)
    assert metadata_of(tmp_path / "m.apr")["hf_architecture"] == "RobertaModel"


def test_a_large_export_is_sharded_and_loads(tmp_path):
    model = decoder("llama")
    model.save_pretrained(tmp_path / "hf")
    invoke("export", tmp_path / "hf", "-o", tmp_path / "back", "--shard-size", 1_000_000)
    assert len(list((tmp_path / "back").glob("model-*-of-*.safetensors"))) > 3
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "back")
    check_equal(state_of(loaded), state_of(model))


def test_an_export_replaces_an_earlier_one_and_nothing_else(tmp_path):
    decoder("llama").save_pretrained(tmp_path / "hf")
    for _ in range(2):
        invoke("export", tmp_path / "hf", "-o", tmp_path / "back")
    (tmp_path / "back" / "notes.txt").write_text("mine")
    assert "notes.txt" in invoke("export", tmp_path / "hf", "-o", tmp_path / "back", exit_code=1)
    assert (tmp_path / "back" / "notes.txt").read_text() == "mine"


def test_skipping_the_checksum_is_said(tmp_path):
    decoder("llama").save_pretrained(tmp_path / "hf")
    invoke("import", tmp_path / "hf", "-o", tmp_path / "m.apr")
    raw = bytearray((tmp_path / "m.apr").read_bytes())
    raw[-5] ^= 1
    (tmp_path / "m.apr").write_bytes(raw)
    invoke("export", tmp_path / "m.apr", "-o", tmp_path / "back", exit_code=1)
    assert "not checked (--no-verify)" in invoke("export", tmp_path / "m.apr", "-o", tmp_path / "back", "--no-verify")


def test_import_export_and_inspect_need_no_torch(tmp_path):
    write_gguf(tmp_path / "m.gguf", decoder("llama"), "llama")
    a_tokenizer(tmp_path)
    code = (
        "import sys\n"
        "from click.testing import CliRunner\n"
        "from apr_train.cli import cli\n"
        "folder = sys.argv[1]\n"
        "for line in (['import', f'{folder}/m.gguf', '-o', f'{folder}/m.apr'], ['inspect', f'{folder}/m.apr', '--json'],\n"
        "             ['export', f'{folder}/m.apr', '-o', f'{folder}/out'], ['inspect', f'{folder}/out', '--tensors']):\n"
        "    result = CliRunner().invoke(cli, line)\n"
        "    assert result.exit_code == 0, result.output\n"
        "loaded = {'torch', 'transformers'} & set(sys.modules)\n"
        "assert not loaded, loaded\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path], check=False, capture_output=True, text=True, env={**os.environ}, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "tokenizer.json").exists()
