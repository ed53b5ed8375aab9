"""The Qwen2 family against transformers' Qwen2ForCausalLM, on the same random weights."""

import json

import apr_train_qwen2
import attrs
import pytest
import torch
from apr_train.cli import cli
from apr_train.family.card import Layout
from apr_train.family.name_map import to_checkpoint
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
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen2Model

torch.set_num_threads(1)
HEADS = {"1:1": (4, 4), "2:1": (4, 2), "4:1": (8, 2), "7:1": (14, 2), "8:1": (16, 2), "mqa": (6, 1)}


@pytest.fixture(scope="module")
def family():
    return installed_family("qwen2")


def reference(ratio="7:1", *, tied=True, seed=0, **more):
    heads, kv_heads = HEADS[ratio]
    config = {
        "vocab_size": 61,
        "hidden_size": 8 * heads,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0},
        "tie_word_embeddings": tied,
        "attn_implementation": "sdpa",
    }
    return randomize(Qwen2ForCausalLM(Qwen2Config(**config | more)), seed=seed).eval()


def tokens(batch=2, length=24, seed=1):
    return torch.randint(0, 61, (batch, length), generator=torch.Generator().manual_seed(seed))


def gguf_file(path, model):
    """Write the model as llama.cpp's converter would: its names, its metadata."""
    config = model.config
    writer = GGUFWriter(path, "qwen2")
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    names = get_tensor_name_map(MODEL_ARCH.QWEN2, config.num_hidden_layers)
    for name, parameter in model.named_parameters():
        writer.add_tensor(names.get_name(name, (".weight", ".bias")), parameter.detach().numpy())
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
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("ratio", HEADS)
def test_logits_and_gradients_agree(family, ratio, tied, precision):
    compare_models(family, None, reference(ratio, tied=tied), tokens(), precision=precision)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_agrees_as_well_as_rounding_lets_it(family, dtype):
    compare_models(family, None, reference().to(dtype), tokens(), precision="weights")


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_agreement_holds_at_long_range(family, attention):
    compare_models(family, None, reference("4:1"), tokens(1, 1500), attention=attention)


def test_agreement_holds_at_long_range_in_float32(family):
    compare_models(family, None, reference("7:1"), tokens(1, 900), attention="sdpa", precision="weights")


def test_wrong_theta_does_not_pass(family):
    model = reference("7:1")
    wrong = attrs.evolve(reference_config(family, model), rope_theta=10_000.0)
    with pytest.raises(ConformanceError, match="logits differs"):
        compare_models(family, wrong, model, tokens(1, 300), tolerance=FLOAT32)


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_our_file_loads_in_transformers(family, tmp_path, tied):
    source = reference("7:1", tied=tied)
    config = reference_config(family, source)
    ours = randomize(model_from_tensors(family, config, source.state_dict()), seed=7)
    name_map = family.map_tensor_names(config, Layout())
    save_file(to_checkpoint(name_map, ours.state_dict()), tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text(json.dumps(source.config.to_dict() | {"architectures": ["Qwen2ForCausalLM"]}))
    theirs, info = Qwen2ForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    check_agreement({"l": our_logits(family, ours, tokens())}, {"l": theirs(tokens()).logits}, tolerance=FLOAT32, where="file")


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_their_file_loads_here(family, tmp_path, tied):
    source = reference("7:1", tied=tied)
    source.save_pretrained(tmp_path, max_shard_size="30KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    ours, report = model_from_file(family, tmp_path)
    assert (report.fresh, report.ignored) == ((), ())
    check_agreement({"l": our_logits(family, ours, tokens())}, {"l": source(tokens()).logits}, tolerance=FLOAT32, where="file")


def test_bare_file_gives_the_same_logits(family, tmp_path):
    source = reference("7:1")
    bare = Qwen2Model(source.config)
    bare.load_state_dict(source.model.state_dict())
    bare.save_pretrained(tmp_path)
    ours, _ = model_from_file(family, tmp_path)
    check_agreement({"l": our_logits(family, ours, tokens())}, {"l": source(tokens()).logits}, tolerance=FLOAT32, where="bare")


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_gguf_file_gives_the_logits_of_the_model_it_was_made_from(family, tmp_path, tied):
    source = reference("7:1", tied=tied)
    ours, report = model_from_file(family, gguf_file(tmp_path / "model.gguf", source))
    assert (report.fresh, report.ignored) == ((), ())
    check_agreement({"l": our_logits(family, ours, tokens())}, {"l": source(tokens()).logits}, tolerance=FLOAT32, where="gguf")


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_import_and_export_keep_the_logits(family, tmp_path, tied):
    """Theirs → `.apr` → our model, and → a Hugging Face folder → theirs again, through the commands."""
    source = reference("7:1", tied=tied)
    source.save_pretrained(tmp_path / "source")
    convert("import", tmp_path / "source", tmp_path / "model.apr")
    convert("export", tmp_path / "model.apr", tmp_path / "back")
    ours, report = model_from_file(family, tmp_path / "model.apr")
    assert (report.fresh, report.ignored, report.verified) == ((), (), True)
    theirs, info = Qwen2ForCausalLM.from_pretrained(tmp_path / "back", output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    logits = {"ours": our_logits(family, ours, tokens()), "theirs": theirs(tokens()).logits}
    check_agreement(logits, dict.fromkeys(logits, source(tokens()).logits), tolerance=FLOAT32, where="import, export")


def test_smallest_preset_has_the_published_number_of_parameters(family):
    model = meta_model(family, apr_train_qwen2.PRESETS["0.5b"])
    assert sum(parameter.numel() for parameter in model.parameters()) == 494_032_768


@pytest.mark.rule("FALSIFY-APR-PRETRAIN-ARCH-001")
@pytest.mark.parametrize("preset", apr_train_qwen2.FAMILY.presets)
def test_preset_is_transformers_model_of_that_config_in_names_and_shapes(family, preset):
    config = apr_train_qwen2.PRESETS[preset]
    fields = {key: value for key, value in config.to_dict().items() if key != "rope_scaling"}
    with torch.device("meta"):
        theirs = Qwen2ForCausalLM(Qwen2Config(**fields))
    shapes = {name: tuple(parameter.shape) for name, parameter in theirs.named_parameters()}
    assert shapes == family.map_tensor_names(config, Layout()).tensors
    assert ("lm_head.weight" in shapes) is not config.tie_word_embeddings
