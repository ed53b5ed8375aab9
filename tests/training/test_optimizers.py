"""Optimizers and groups of parameters through the command line: told, refused, resumed, with adapters."""

import pytest
import torch
from apr_train.checkpoint.open import open_checkpoint
from apr_train.family.adapter_sites import sites_of
from apr_train.family.card import Layout
from apr_train.model.adapters import attach
from apr_train.preflight.optimizer_rules import parameter_groups
from apr_train.run.settings import LoraSettings, OptimizerSettings, Settings
from apr_train.testing import installed_family, model_from_file
from safetensors.torch import load_file

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
RUN = ("--arch", "qwen2", "--preset", "tiny", "--batch-size", "2", "--schedule", "constant")


def config_file(place, *groups, table=""):
    """A file with these groups, each as TOML's lines."""
    path = place.folder / "run.toml"
    path.write_text("\n".join([f"[optimizer]\n{table}", *(f"[[optimizer.group]]\n{group}" for group in groups)]))
    return path


def refused(place, *groups, args=RUN):
    """What is said of a run with these groups, which leaves nothing behind."""
    said = place.train(*args, "--config", config_file(place, *groups), "--run", "x", "--steps", "1", code=3)
    assert not place.run("x").exists()
    return said


@pytest.mark.rule("OPTIMIZER-001")
@pytest.mark.parametrize(
    ("pattern", "meant"),
    [
        ("*q_porj*", "*q_proj*"),
        ("q_proj", "*q_proj*"),
        ("*self_atn.k_proj.weight", "*self_attn.k_proj.weight"),
        ("model.layers.1.mlp.up_porj.weight", "model.layers.1.mlp.up_proj.weight"),
        ("embed_token.weight", "embed_tokens.weight"),
        ("model.layers.0.self_atn.q_proj*", "model.layers.0.self_attn.q_proj*"),
    ],
)
def test_a_pattern_that_matches_nothing_is_told_with_the_closest_names(place, pattern, meant):
    said = refused(place, f'pattern = "{pattern}"\nweight_decay = 0.0')
    assert "OPTIMIZER-001: [[optimizer.group]] 1 [pattern]: no parameter is called so" in said
    assert f"found {pattern}. did you mean {meant}?" in said
    config = config_file(place, f'pattern = "{meant}"\nweight_decay = 0.0')
    place.train(*RUN, "--config", config, "--dry-run", code=0)


@pytest.mark.rule("OPTIMIZER-001")
def test_all_that_is_wrong_with_groups_is_told_at_once(place):
    said = refused(
        place,
        "lr = 1e-3",
        'pattern = "*.bias"',
        'pattern = "*.mlp.*"\nfrozen = true\nlr = 1e-3',
        'pattern = "*.up_proj.*"\nlr = 1e-3',
        'pattern = "zzz"\nlr = 1e-3',
    )
    assert "1 [pattern]: a group without a pattern" in said
    assert "2: a group that changes nothing" in said
    assert "3 [lr]: what is frozen has no optimizer" in said
    assert "4 [pattern]: all that it matches is of an earlier group" in said
    assert "5 [pattern]: no parameter is called so" in said
    assert said.count("OPTIMIZER-001") == 5


@pytest.mark.rule("OPTIMIZER-001")
def test_a_model_with_nothing_left_to_train_is_refused(place):
    assert "nothing is left to train" in refused(place, 'pattern = "*norm*"\nfrozen = true', 'pattern = "*"\nfrozen = true')


def test_a_key_that_a_group_does_not_have_is_told_with_its_place(place):
    config = config_file(place, 'pattern = "*"\nlr = 1e-3', 'pattern = "*"\nfreeze = true')
    said = place.train(*RUN, "--config", config, code=1)
    assert "optimizer.group[1].freeze" in said
    assert "did you mean frozen?" in said
    config = config_file(place, 'pattern = "*"\nlr = -1.0')
    assert "[optimizer.group[0].lr]: too small" in place.train(*RUN, "--config", config, code=1)


def test_a_tied_head_is_found_by_its_name_in_a_file(place):
    family = installed_family("qwen2")
    config = family.build_config(preset="tiny")
    assert config.tie_word_embeddings
    chosen = Settings(optimizer=OptimizerSettings(group=[{"pattern": "lm_head.weight", "frozen": True}]))
    assert parameter_groups(chosen, family, config).frozen == {"embed_tokens.weight"}


GROUPS = ('pattern = "*.q_proj.weight"\nlr = 3e-3', 'pattern = "model.layers.0.mlp.*"\nfrozen = true')


@pytest.mark.parametrize("precision", ["fp32", "bf16-weights"])
def test_a_run_with_both_optimizers_and_groups_goes_on_bit_for_bit(place, precision):
    config = config_file(place, *GROUPS, table='optimizer = "muon"\nclip_norm = 0.5')
    args = (*RUN, "--config", config, "--precision", precision, "--accumulate", "2", "--val-every", "3")
    said = place.train(*args, "--steps", "6", "--run", "whole", "--save-every", "3")
    for line in (
        "AdamW and Muon, constant from 0.0006, 6 steps",
        "Muon, *.q_proj.weight: 2 tensors of ",
        "frozen     3 tensors",
    ):
        assert line in said
    place.train(*args, "--steps", "3", "--run", "parts")
    place("--resume", "runs/parts", "--steps", "6")
    place.assert_same_end("whole", "parts", step=6)
    state = load_file(place.run("parts") / "step-000006" / "optimizer.safetensors")
    assert not [name for name in state if "layers.0.mlp" in name]
    origin = open_checkpoint(place.run("parts") / "model.apr").raw_metadata["apr_train.run"]
    assert origin["settings"]["optimizer"]["group"][1] == {"pattern": "model.layers.0.mlp.*", "frozen": True}


def test_a_resume_refuses_other_groups_and_another_optimizer(place):
    place.train(*RUN, "--config", config_file(place, *GROUPS), "--steps", "1", "--run", "x")
    said = place("--resume", "runs/x", "--config", config_file(place, GROUPS[0]), "--optimizer", "muon", "--steps", "2", code=1)
    assert "--optimizer: a resume cannot change this: the optimizer's state in the checkpoint is of that kind" in said
    assert "expected adamw, found muon" in said
    assert "[[optimizer.group]]: a resume cannot change this" in said
    assert "{pattern = model.layers.0.mlp.*, frozen = true}" in said


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_groups_of_adapters_go_by_their_names_here_or_in_pefts_file(place, bases, optimizer):
    base = bases["qwen2"][0]
    config = config_file(place, 'pattern = "*.lora_B.weight"\nlr = 5e-3', 'pattern = "layers.1.*"\nfrozen = true')
    lora = ("--init", base, "--lora-rank", "4", "--allow-cold-init", "--schedule", "constant", "--precision", "bf16-weights")
    args = (*lora, "--config", config, "--optimizer", optimizer, "--save-every", "2")
    said = place.train(*args, "--steps", "4", "--run", "whole")
    kind = {"adamw": "AdamW", "muon": "Muon"}[optimizer]
    assert f"{kind}, *.lora_B.weight: 14 tensors" in said
    place.train(*args, "--steps", "2", "--run", "parts")
    place("--resume", "runs/parts", "--steps", "4")
    ends = [load_file(place.run(name) / "adapter" / "adapter_model.safetensors") for name in ("whole", "parts")]
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())
    moved = {name.split(".layers.")[1].split(".")[0] for name, value in ends[0].items() if "lora_B" in name and value.any()}
    assert moved >= {"0"}


def test_names_of_adapters_are_those_that_peft_gives(bases):
    family = installed_family("qwen2")
    model, _ = model_from_file(family, bases["qwen2"][0])
    sites = sites_of(family.map_tensor_names(model.config, Layout())).chosen(())
    attach(model, sites, rank=2, alpha=4, dropout=0.0)
    names = {name for site in sites for name in site.adapter_names}
    assert names == {name for name, item in model.named_parameters() if item.requires_grad}
    chosen = Settings(lora=LoraSettings(lora_rank=2))
    assert parameter_groups(chosen, family, model.config).of == {}
