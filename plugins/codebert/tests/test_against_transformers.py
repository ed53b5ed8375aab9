"""The CodeBERT family against transformers' RobertaForMaskedLM, on the same random weights, with padded batches."""

import json

import apr_train_codebert
import pytest
import torch
from apr_train.cli import cli
from apr_train.family.card import Layout
from apr_train.family.name_map import to_checkpoint
from apr_train.model.attention import Bidirectional
from apr_train.testing import (
    FLOAT32,
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
from safetensors.torch import save_file
from transformers import RobertaConfig, RobertaForMaskedLM, RobertaModel

torch.set_num_threads(1)
# A constant added to every key changes no softmax, so the gradient of the keys' bias is zero but for rounding.
NO_GRADIENT = ("k_proj.bias",)


@pytest.fixture(scope="module")
def family():
    return installed_family("codebert")


def reference(*, tied=True, positions=130, seed=0):
    config = RobertaConfig(
        vocab_size=61,
        hidden_size=32,
        intermediate_size=80,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=positions,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
        tie_word_embeddings=tied,
        attn_implementation="sdpa",
    )
    return randomize(RobertaForMaskedLM(config), seed=seed).eval()


def padded(lengths=(24, 17, 3), seed=1):
    """Tokens `[batch, length]` padded with 1 behind the real ones, and which are real."""
    tokens = torch.randint(4, 61, (len(lengths), max(lengths)), generator=torch.Generator().manual_seed(seed))
    keep = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return tokens.masked_fill(~keep, 1), keep


def test_family_keeps_the_contract(family):
    check_family(family)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_logits_and_gradients_agree_on_padded_batches(family, tied, dtype, attention):
    model = reference(tied=tied).to(getattr(torch, dtype))
    tokens, keep = padded()
    config = reference_config(family, model)
    assert config.tie_word_embeddings is tied
    compare_models(family, config, model, tokens, keep=keep, precision="weights", attention=attention, vanishing=NO_GRADIENT)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_agreement_holds_up_to_the_last_usable_position(family, dtype):
    model = reference(positions=514).to(getattr(torch, dtype))
    tokens, keep = padded((512, 300))
    config = reference_config(family, model)
    assert config.usable_positions == 512
    compare_models(family, config, model, tokens, keep=keep, precision="weights", vanishing=NO_GRADIENT)


def test_padding_changes_nothing_for_the_real_tokens(family):
    model = reference()
    ours = model_from_tensors(family, reference_config(family, model), model.state_dict())
    tokens, keep = padded()
    alone = our_logits(family, ours, tokens[1:2, :17])
    together = our_logits(family, ours, tokens, keep)[1:2, :17]
    check_agreement({"l": together}, {"l": alone}, tolerance=FLOAT32, where="padding")


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_our_file_loads_in_transformers(family, tmp_path, tied):
    source = reference(tied=tied)
    config = reference_config(family, source)
    ours = randomize(model_from_tensors(family, config, source.state_dict()), seed=7)
    name_map = family.map_tensor_names(config, Layout())
    save_file(to_checkpoint(name_map, ours.state_dict()), tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text(json.dumps(source.config.to_dict() | {"architectures": ["RobertaForMaskedLM"]}))
    theirs, info = RobertaForMaskedLM.from_pretrained(tmp_path, output_loading_info=True)
    assert set(info["missing_keys"]) == (set() if tied else {"lm_head.bias"})  # untied, transformers has it and never reads it
    assert not any(info[key] for key in ("unexpected_keys", "mismatched_keys"))
    tokens, keep = padded()
    reference_logits = theirs(tokens, attention_mask=keep.long()).logits[keep]
    logits = our_logits(family, ours, tokens, keep)[keep]
    check_agreement({"l": logits}, {"l": reference_logits}, tolerance=FLOAT32, where="file")


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_their_masked_lm_file_loads_here(family, tmp_path, tied):
    source = reference(tied=tied)
    assert torch.equal(source.lm_head.bias, source.lm_head.decoder.bias) is tied
    source.save_pretrained(tmp_path)
    ours, report = model_from_file(family, tmp_path)
    assert report.fresh == ()
    assert [name for name, _ in report.ignored] == ([] if tied else ["lm_head.bias"])
    tokens, keep = padded()
    theirs = source(tokens, attention_mask=keep.long()).logits[keep]
    check_agreement({"l": our_logits(family, ours, tokens, keep)[keep]}, {"l": theirs}, tolerance=FLOAT32, where="file")


def test_their_bare_file_loads_here_pooler_ignored_and_head_fresh(family, tmp_path):
    bare = randomize(RobertaModel(reference().config)).eval()
    bare.save_pretrained(tmp_path)
    ours, report = model_from_file(family, tmp_path)
    assert [name for name, _ in report.ignored] == ["pooler.dense.weight", "pooler.dense.bias"]
    tokens, keep = padded()
    theirs = bare(tokens, attention_mask=keep.long()).last_hidden_state[keep]
    hidden = ours.hidden_states(tokens, mask=Bidirectional(keep))[keep]
    check_agreement({"h": hidden}, {"h": theirs}, tolerance=FLOAT32, where="bare")
    head = {name: value for name, value in ours.named_parameters() if name.startswith("lm_head.")}
    assert set(head) == {
        "lm_head.dense.weight",
        "lm_head.dense.bias",
        "lm_head.norm.weight",
        "lm_head.norm.bias",
        "lm_head.bias",
    }
    assert torch.equal(head["lm_head.norm.weight"], torch.ones(32))
    assert torch.equal(head["lm_head.bias"], torch.zeros(61))
    assert 0.01 < head["lm_head.dense.weight"].std() < 0.03


def test_import_and_export_keep_the_logits(family, tmp_path):
    """Theirs → `.apr` → our model, and → a Hugging Face folder → theirs again, through the commands."""
    source = reference()
    source.save_pretrained(tmp_path / "source")
    convert("import", tmp_path / "source", tmp_path / "model.apr")
    convert("export", tmp_path / "model.apr", tmp_path / "back")
    ours, report = model_from_file(family, tmp_path / "model.apr")
    assert (report.fresh, report.ignored, report.verified) == ((), (), True)
    theirs, info = RobertaForMaskedLM.from_pretrained(tmp_path / "back", output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    tokens, keep = padded()
    logits = {
        "ours": our_logits(family, ours, tokens, keep)[keep],
        "theirs": theirs(tokens, attention_mask=keep.long()).logits[keep],
    }
    expected = source(tokens, attention_mask=keep.long()).logits[keep]
    check_agreement(logits, dict.fromkeys(logits, expected), tolerance=FLOAT32, where="import, export")


def convert(command, source, target):
    result = CliRunner().invoke(cli, [command, str(source), "-o", str(target)])
    assert result.exit_code == 0, result.output


def test_base_is_transformers_model_of_that_config_in_names_and_shapes(family):
    config = apr_train_codebert.PRESETS["base"]
    with torch.device("meta"):
        theirs = RobertaForMaskedLM(RobertaConfig(**config.to_dict()))
    shapes = {name: tuple(parameter.shape) for name, parameter in theirs.named_parameters()}
    assert shapes == family.map_tensor_names(config, Layout()).tensors
    assert sum(parameter.numel() for parameter in meta_model(family, config).parameters()) == sum(
        parameter.numel() for parameter in theirs.parameters()
    )
