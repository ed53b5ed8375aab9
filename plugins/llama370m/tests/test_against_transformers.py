"""The Llama family against transformers' LlamaForCausalLM, on the same random weights."""

import json

import apr_train_llama370m
import pytest
import torch
from apr_train.cli import cli
from apr_train.family.card import Layout
from apr_train.family.name_map import to_checkpoint
from apr_train.model.rope import rotary_tables
from apr_train.testing import (
    FLOAT32,
    ConformanceError,
    check_agreement,
    check_family,
    compare_models,
    installed_family,
    meta_model,
    model_from_file,
    model_from_tensors,
    our_logits,
    randomize,
    reference_config,
)
from click.testing import CliRunner
from gguf import MODEL_ARCH, GGUFWriter, get_tensor_name_map
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM, LlamaModel
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

torch.set_num_threads(1)
HEADS = {"1:1": (4, 4), "2:1": (4, 2), "4:1": (8, 2), "7:1": (14, 2), "8:1": (16, 2), "mqa": (6, 1)}
SCALING = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


@pytest.fixture(scope="module")
def family():
    return installed_family("llama370m")


def reference(ratio="4:1", *, tied=True, bias=False, seed=0, rope=None, **more):
    heads, kv_heads = HEADS[ratio]
    config = {
        "vocab_size": 61,
        "hidden_size": 8 * heads,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0} | (rope or {}),
        "tie_word_embeddings": tied,
        "attention_bias": bias,
        "mlp_bias": bias,
        "attn_implementation": "sdpa",
    }
    return randomize(LlamaForCausalLM(LlamaConfig(**config | more)), seed=seed).eval()


def tokens(batch=2, length=24, seed=1):
    return torch.randint(0, 61, (batch, length), generator=torch.Generator().manual_seed(seed))


def permuted(name, parameter, config):
    """`LlamaModel.permute` of llama.cpp's convert_hf_to_gguf.py, in its own spelling."""
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(name.split(".")[-2])
    array = parameter.detach().numpy()
    if heads is None:
        return array
    return array.reshape(heads, 2, array.shape[0] // heads // 2, *array.shape[1:]).swapaxes(1, 2).reshape(array.shape)


def gguf_file(path, model):
    """Write the model as llama.cpp's converter would: its names, its metadata, and for a Llama its order of rows."""
    config = model.config
    writer = GGUFWriter(path, "llama")
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(config.head_dim)
    names = get_tensor_name_map(MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, parameter in model.named_parameters():
        writer.add_tensor(names.get_name(name, (".weight", ".bias")), permuted(name, parameter, config))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def convert(command, source, target):
    result = CliRunner().invoke(cli, [command, str(source), "-o", str(target)])
    assert result.exit_code == 0, result.output


def test_family_keeps_the_contract(family):
    check_family(family)


@pytest.mark.rule("FALSIFY-APR-PRETRAIN-ARCH-004")
@pytest.mark.parametrize("precision", ["weights", "float64"])
@pytest.mark.parametrize("bias", [False, True], ids=["no-bias", "bias"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("ratio", HEADS)
def test_logits_and_gradients_agree(family, ratio, tied, bias, precision):
    compare_models(family, None, reference(ratio, tied=tied, bias=bias), tokens(), precision=precision)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_agreement_holds_at_long_range(family, attention):
    compare_models(family, None, reference("4:1", rope={"rope_theta": 500_000.0}), tokens(1, 1500), attention=attention)


def test_agreement_holds_at_long_range_in_float32(family):
    compare_models(family, None, reference("7:1"), tokens(1, 900), attention="sdpa", precision="weights")


def test_head_dim_need_not_be_width_by_heads(family):
    model = reference("4:1", head_dim=12, hidden_size=56)
    config = reference_config(family, model)
    assert (config.head_dim, config.hidden_size) == (12, 56)
    compare_models(family, config, model, tokens())


def test_llama3_scaling_agrees_from_the_frequencies_to_the_logits(family):
    model = reference(rope=SCALING | {"rope_theta": 500_000.0, "original_max_position_embeddings": 256}, head_dim=16)
    config = reference_config(family, model)
    assert config.rope_scaling.factor == 8.0
    positions = torch.arange(1024)[None]
    cos, sin = LlamaRotaryEmbedding(model.config)(torch.zeros(1), positions)
    own_cos, own_sin = rotary_tables(config, positions, torch.float32)
    half = config.head_dim // 2
    torch.testing.assert_close(own_cos.squeeze(), cos[0, :, :half], rtol=0, atol=1e-4)  # angles to 1000, float32
    torch.testing.assert_close(own_sin.squeeze(), sin[0, :, :half], rtol=0, atol=1e-4)
    compare_models(family, config, model, tokens(1, 600), precision="weights")


def test_llama3_scaling_agrees_in_float64(family):
    """Long, medium and short wavelengths, far beyond the positions before the stretch."""
    rope = SCALING | {"rope_theta": 500_000.0, "original_max_position_embeddings": 256}
    compare_models(family, None, reference(rope=rope, head_dim=32), tokens(1, 1200))


def test_llama3_scaling_left_out_does_not_pass(family):
    model = reference(rope=SCALING | {"rope_theta": 500_000.0, "original_max_position_embeddings": 256}, head_dim=16)
    plain = reference_config(family, reference(rope={"rope_theta": 500_000.0}, head_dim=16))
    with pytest.raises(ConformanceError, match="logits differs"):
        compare_models(family, plain, model, tokens(1, 600), tolerance=FLOAT32)


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_our_file_loads_in_transformers(family, tmp_path, tied):
    source = reference("4:1", tied=tied, bias=True)
    config = reference_config(family, source)
    ours = model_from_tensors(family, config, source.state_dict())
    randomize(ours, seed=7)
    name_map = family.map_tensor_names(config, Layout())
    save_file(to_checkpoint(name_map, ours.state_dict()), tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text(json.dumps(source.config.to_dict() | {"architectures": ["LlamaForCausalLM"]}))
    theirs, info = LlamaForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    check_agreement({"l": our_logits(family, ours, tokens())}, {"l": theirs(tokens()).logits}, tolerance=FLOAT32, where="file")


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_their_file_loads_here(family, tmp_path, tied):
    source = reference("7:1", tied=tied, bias=True)
    source.save_pretrained(tmp_path, max_shard_size="30KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    ours, report = model_from_file(family, tmp_path)
    assert (report.fresh, report.ignored) == ((), ())
    check_agreement({"l": our_logits(family, ours, tokens())}, {"l": source(tokens()).logits}, tolerance=FLOAT32, where="file")


def test_bare_file_gives_the_same_logits(family, tmp_path):
    source = reference("4:1")
    bare = LlamaModel(source.config)
    bare.load_state_dict(source.model.state_dict())
    bare.save_pretrained(tmp_path)
    ours, _ = model_from_file(family, tmp_path)
    check_agreement({"l": our_logits(family, ours, tokens())}, {"l": source(tokens()).logits}, tolerance=FLOAT32, where="bare")


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_gguf_file_gives_the_logits_of_the_model_it_was_made_from(family, tmp_path, tied):
    source = reference("4:1", tied=tied)
    ours, report = model_from_file(family, gguf_file(tmp_path / "model.gguf", source))
    assert (report.fresh, report.ignored) == ((), ())
    check_agreement({"l": our_logits(family, ours, tokens())}, {"l": source(tokens()).logits}, tolerance=FLOAT32, where="gguf")


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_import_and_export_keep_the_logits(family, tmp_path, tied):
    """Theirs → `.apr` → our model, and → a Hugging Face folder → theirs again, through the commands."""
    source = reference("4:1", tied=tied, bias=True)
    source.save_pretrained(tmp_path / "source")
    convert("import", tmp_path / "source", tmp_path / "model.apr")
    convert("export", tmp_path / "model.apr", tmp_path / "back")
    ours, report = model_from_file(family, tmp_path / "model.apr")
    assert (report.fresh, report.ignored, report.verified) == ((), (), True)
    theirs, info = LlamaForCausalLM.from_pretrained(tmp_path / "back", output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    logits = {"ours": our_logits(family, ours, tokens()), "theirs": theirs(tokens()).logits}
    check_agreement(logits, dict.fromkeys(logits, source(tokens()).logits), tolerance=FLOAT32, where="import, export")


@pytest.mark.rule("INV-ARCH-370M-001")
def test_370m_has_its_parameters_in_the_band(family):
    model = meta_model(family, apr_train_llama370m.PRESETS["370m"])
    stored = sum(parameter.numel() for parameter in model.parameters())
    counted_with_the_head = stored + model.head_weight.numel()
    assert (stored, counted_with_the_head) == (322_045_952, 373_509_120)
    assert 366_000_000 <= counted_with_the_head <= 374_000_000


@pytest.mark.rule("INV-ARCH-370M-004")
def test_370m_head_and_embedding_share_one_storage(family):
    model = meta_model(family, apr_train_llama370m.PRESETS["370m"])
    assert model.head_weight is model.embed_tokens.weight


def test_370m_is_transformers_model_of_that_config_in_names_and_shapes(family):
    config = apr_train_llama370m.PRESETS["370m"]
    with torch.device("meta"):
        theirs = LlamaForCausalLM(
            LlamaConfig(**{key: value for key, value in config.to_dict().items() if key != "rope_scaling"})
        )
    shapes = {name: tuple(parameter.shape) for name, parameter in theirs.named_parameters()}
    assert shapes == family.map_tensor_names(config, Layout()).tensors
