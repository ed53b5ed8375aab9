"""Adapters through the command line, against peft on transformers' models: saved, opened, merged, resumed."""

import json
import shutil
import socket
import sys
import tomllib
from types import SimpleNamespace

import peft
import pytest
import torch
from apr_train.checkpoint.adapter_files import open_adapter
from apr_train.checkpoint.open import open_checkpoint
from apr_train.family.adapter_sites import sites_of
from apr_train.family.card import Layout
from apr_train.inference.ready import Wanted, make_ready, opened
from apr_train.model.adapters import attach, set_adapter
from apr_train.model.loss import head_loss
from apr_train.testing import installed_family, model_from_file, our_logits
from gguf import MODEL_ARCH, GGMLQuantizationType, GGUFWriter, get_tensor_name_map
from gguf.quants import quantize
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, Qwen2ForCausalLM

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
torch.set_num_threads(1)
ARCHS = ("qwen2", "llama370m", "codebert")
LORA = ("--lora-rank", "4", "--lr", "1e-2", "--steps", "4", "--precision", "fp32", "--allow-cold-init", "--batch-size", "4")
FEW = {"qwen2": ["q_proj", "down_proj"], "llama370m": ["k_proj", "up_proj"], "codebert": ["query", "intermediate.dense"]}
"""Arch → transformers' names of some of its linear layers."""


def transformers_model(arch, folder):
    auto = AutoModelForMaskedLM if arch == "codebert" else AutoModelForCausalLM
    return auto.from_pretrained(folder).eval()


def tokens(batch=2, length=24):
    return torch.randint(5, 1000, (batch, length), generator=torch.Generator().manual_seed(1))


def unmerged(arch, base, adapter, *, alpha=8.0, targets=()):
    """Our model with peft's layers on it, and the adapter's values in them."""
    family = installed_family(arch)
    model, _ = model_from_file(family, base)
    sites = sites_of(family.map_tensor_names(model.config, Layout())).chosen(targets)
    attach(model, sites, rank=4, alpha=alpha, dropout=0.0)
    set_adapter(model, sites, open_adapter(adapter))
    return model.eval()


@torch.no_grad()
def apart(arch, ours, theirs):
    rows = tokens()
    return float((our_logits(installed_family(arch), ours, rows) - theirs(rows).logits).abs().max())


@torch.no_grad()
def randomized(model, *, seed=3):
    """A peft model whose adapter changes something: B is drawn, too."""
    draw = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.add_(torch.randn(parameter.shape, generator=draw) * 0.1)
    return model.eval()


@pytest.mark.parametrize("arch", ARCHS)
def test_a_saved_adapter_opens_in_peft_on_the_exported_base_with_our_logits(place, bases, arch):
    base, folder = bases[arch]
    said = place.train("--init", base, "--run", "l", *LORA)
    assert "adapters   LoRA of rank 4, alpha 8, on all matrices of the blocks" in said
    adapter = place.run("l") / "adapter"
    plain = transformers_model(arch, folder)
    assert apart(arch, model_from_file(installed_family(arch), base)[0], plain) <= 1e-5
    theirs = peft.PeftModel.from_pretrained(plain, adapter).eval()
    assert apart(arch, model_from_file(installed_family(arch), base)[0], theirs) > 0.01  # it has learnt something
    assert apart(arch, unmerged(arch, base, adapter), theirs) <= 1e-5
    place("merge", place.run("l"), "-o", "m.apr")
    merged, _ = model_from_file(installed_family(arch), "m.apr")
    assert apart(arch, merged, theirs) <= 1e-5


@pytest.mark.parametrize("arch", ARCHS)
def test_the_saved_files_are_those_that_peft_saves(place, bases, arch):
    base, folder = bases[arch]
    targets = [word for target in FEW[arch] for word in ("--lora-target", target)]
    place.train("--init", base, "--run", "l", *LORA, *targets)
    mine = place.run("l") / "adapter"
    peft.PeftModel.from_pretrained(transformers_model(arch, folder), mine).save_pretrained(place.folder / "theirs")
    one, other = (load_file(path / "adapter_model.safetensors") for path in (mine, place.folder / "theirs"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    configs = [json.loads((path / "adapter_config.json").read_text()) for path in (mine, place.folder / "theirs")]
    for config in configs:
        config["target_modules"] = sorted(config["target_modules"])
        assert "/" not in str(config.pop("base_model_name_or_path")) or config is configs[1]  # peft's is where its model lay
        config.pop("auto_mapping")
    assert configs[0] == configs[1]
    assert configs[0]["target_modules"] == sorted(FEW[arch])
    assert str(place.folder) not in (mine / "adapter_config.json").read_text()


@pytest.mark.parametrize("arch", ARCHS)
def test_gradients_are_those_of_peft_on_transformers_model(bases, tmp_path, arch):
    base, folder = bases[arch]
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=FEW[arch])
    theirs = randomized(peft.get_peft_model(transformers_model(arch, folder), config))
    theirs.save_pretrained(tmp_path)
    ours = unmerged(arch, base, tmp_path, targets=FEW[arch])
    rows = tokens()
    logits = theirs(rows).logits
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), rows.flatten()).backward()
    family = installed_family(arch)
    mask = {"decoder": "Causal", "encoder": "Bidirectional"}[family.info.kind]
    import apr_train.model

    hidden = ours.hidden_states(rows, mask=getattr(apr_train.model, mask)())
    head_loss(ours, hidden.flatten(0, 1), rows.flatten(), scale=1 / rows.numel()).backward()
    sites = sites_of(family.map_tensor_names(ours.config, Layout())).chosen(FEW[arch])
    wanted = {name.replace(".default", ""): item.grad for name, item in theirs.named_parameters() if item.requires_grad}
    assert len(wanted) == 2 * len(sites) > 0
    for site in sites:
        for side in ("lora_A", "lora_B"):
            mine = getattr(ours.get_submodule(site.module), side)["default"].weight.grad
            other = wanted.pop(f"base_model.model.{site.hf_module}.{side}.weight")
            torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-7)
            assert float(other.abs().max()) > 0
    assert not wanted
    assert all(item.grad is None for item in ours.parameters() if not item.requires_grad)


VARIANTS = {
    "plain": {},
    "rank-stabilised": {"use_rslora": True},
    "dora": {"use_dora": True},
    "ranks and alphas of their own": {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"layers.1.mlp.down_proj": 3}},
    "a norm that is saved whole": {"modules_to_save": ["input_layernorm"]},
    "biases": {"bias": "lora_only"},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_an_adapter_that_peft_trained_merges_here_to_the_same_logits(place, bases, variant):
    base, folder = bases["qwen2"]
    how = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj"], "task_type": "CAUSAL_LM"} | VARIANTS[variant]
    theirs = randomized(peft.get_peft_model(transformers_model("qwen2", folder), peft.LoraConfig(**how)))
    theirs.save_pretrained(place.folder / "ad")
    for source in (base, folder):
        place("merge", "ad", "--base", source, "-o", "m.apr")
        merged, _ = model_from_file(installed_family("qwen2"), "m.apr")
        assert apart("qwen2", merged, theirs) <= 1e-5


def gguf_of(model, path, *, quantised):
    """The model as llama.cpp's converter writes a Llama: rows of q and k in adjacent pairs."""
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
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    names = get_tensor_name_map(MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, parameter in model.named_parameters():
        array, count = parameter.detach().numpy(), heads.get(name.split(".")[-2])
        if count is not None:
            array = array.reshape(count, 2, len(array) // count // 2, -1).swapaxes(1, 2).reshape(array.shape)
        kind = GGMLQuantizationType.Q8_0 if quantised and array.ndim > 1 else None
        data = array if kind is None else quantize(array, kind)
        writer.add_tensor(names.get_name(name, (".weight", ".bias")), data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("quantised", [False, True])
def test_a_gguf_base_is_merged_in_its_own_order_of_rows_and_decoded_as_by_an_import(place, bases, quantised):
    model = transformers_model("llama370m", bases["llama370m"][1])
    path = gguf_of(model, place.folder / "base.gguf", quantised=quantised)
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "k_proj", "down_proj"])
    theirs = randomized(peft.get_peft_model(model, config))
    theirs.save_pretrained(place.folder / "ad")
    place("merge", "ad", "--base", path, "--arch", "llama370m", "-o", "m.apr")
    place("import", path, "--arch", "llama370m", "-o", "base.apr")
    place("merge", "ad", "--base", "base.apr", "-o", "n.apr")
    assert "the same model" in place("diff", "m.apr", "n.apr")
    if not quantised:
        merged, _ = model_from_file(installed_family("llama370m"), "m.apr")
        assert apart("llama370m", merged, theirs) <= 1e-5


@pytest.fixture
def untied(place, bases):
    """qwen2's tiny base with a head of its own, as a folder."""
    model = transformers_model("qwen2", bases["qwen2"][1])
    config = model.config.__class__.from_dict(model.config.to_dict() | {"tie_word_embeddings": False})
    Qwen2ForCausalLM(config).save_pretrained(place.folder / "untied")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(bases["qwen2"][1] / name, place.folder / "untied")
    return place.folder / "untied"


@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`")
@pytest.mark.parametrize(
    "how", [{"target_modules": ["embed_tokens", "lm_head"]}, {"modules_to_save": ["lm_head", "embed_tokens"]}]
)
def test_embedding_and_head_merge_where_they_are_two_matrices_and_are_refused_where_they_are_one(place, bases, untied, how):
    config = peft.LoraConfig(**{"r": 4, "target_modules": ["q_proj"], **how})
    theirs = randomized(peft.get_peft_model(transformers_model("qwen2", untied), config))
    theirs.save_pretrained(place.folder / "ad", save_embedding_layers=False)
    place("merge", "ad", "--base", untied, "-o", "m.apr")
    merged, _ = model_from_file(installed_family("qwen2"), "m.apr")
    assert apart("qwen2", merged, theirs) <= 1e-5
    (place.folder / "m.apr").unlink()
    assert "the head is the embedding, and the adapter changes one of them" in not_merged(
        place, "ad", "--base", bases["qwen2"][0]
    )


@pytest.mark.parametrize(
    "config",
    [
        peft.IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]),
        peft.LoHaConfig(r=4, target_modules=["q_proj"]),
        peft.LoKrConfig(r=4, target_modules=["q_proj", "up_proj"]),
        peft.OFTConfig(r=0, oft_block_size=4, target_modules=["q_proj"]),
    ],
    ids=lambda config: str(config.peft_type.value),
)
def test_another_kind_is_merged_by_peft_itself(place, bases, config):
    base, folder = bases["qwen2"]
    theirs = randomized(peft.get_peft_model(transformers_model("qwen2", folder), config))
    theirs.save_pretrained(place.folder / "ad")
    place("merge", "ad", "--base", base, "-o", "m.apr")
    merged, _ = model_from_file(installed_family("qwen2"), "m.apr")
    assert apart("qwen2", merged, theirs) <= 1e-5


@pytest.mark.parametrize("precision", ["fp32", "bf16", "bf16-weights"])
@pytest.mark.parametrize("arch", ["qwen2", "codebert"])
def test_a_resume_is_the_same_run_bit_for_bit(place, bases, arch, precision):
    args = ("--init", bases[arch][0], *LORA, "--steps", "6", "--precision", precision, "--save-every", "3", "--val-every", "2")
    place.train(*args, "--lora-dropout", "0.1", "--run", "whole", "--keep", "0")
    shutil.copytree(place.run("whole"), place.run("half"))
    place("--resume", place.run("half") / "step-000003")
    assert place.curve("whole") == place.curve("half")
    for file in ("step-000006/adapter_model.safetensors", "step-000006/optimizer.safetensors", "step-000006/state.json"):
        assert (place.run("whole") / file).read_bytes() == (place.run("half") / file).read_bytes()
    for file in ("adapter_model.safetensors", "adapter_config.json"):
        assert (place.run("whole") / "adapter" / file).read_bytes() == (place.run("half") / "adapter" / file).read_bytes()
    assert "all 6 steps are done" in place("--resume", place.run("half"))


def test_optimizer_and_checkpoints_hold_nothing_of_the_base(place, bases):
    place.train("--init", bases["qwen2"][0], *LORA, "--precision", "bf16-weights", "--run", "l")
    step = place.run("l") / "step-000004"
    names = {"adapter_config.json", "adapter_model.safetensors", "optimizer.safetensors", "state.json"}
    assert {path.name for path in step.iterdir()} == names
    assert not (place.run("l") / "model.apr").exists()
    state, adapter = (load_file(step / name) for name in ("optimizer.safetensors", "adapter_model.safetensors"))
    assert {name.partition(".")[0] for name in state} == {"step", "exp_avg", "exp_avg_sq"}
    assert all(".lora_A." in name or ".lora_B." in name for name in state)
    assert len(state) == 3 * len(adapter) == 3 * 2 * 7 * 2
    assert {item.dtype for item in (*state.values(), *adapter.values())} == {torch.float32}


@pytest.mark.parametrize("arch", ["qwen2", "codebert"])
def test_a_run_s_folder_and_its_checkpoints_are_taken_as_a_model(place, bases, arch):
    """eval measures what the run measured; the export and the merged file are that model, too."""
    place.train("--init", bases[arch][0], *LORA, "--save-every", "2", "--run", "l")
    measured = [line["val_loss"] for line in place.curve("l") if "val_loss" in line]
    told = json.loads(place("eval", place.run("l"), "--precision", "fp32", "--json").partition("\n")[2])
    assert told["results"][0]["loss"] == pytest.approx(measured[-1], abs=2e-6)
    if arch == "qwen2":
        assert place("generate", place.run("l"), "--prompt", "def", "--max-tokens", "3")
        assert place("generate", place.run("l") / "step-000002", "--prompt", "def", "--max-tokens", "3")
    place("merge", place.run("l"), "-o", "m.apr")
    place("export", place.run("l"), "-o", "out")
    assert "the same model" in place("diff", "m.apr", "out")
    assert "the same model" in place("diff", "m.apr", place.run("l"))
    assert "tensors differ" in place("diff", "m.apr", place.run("l") / "step-000002", code=1)
    with open_checkpoint("m.apr") as merged, open_checkpoint(bases[arch][0]) as base:
        assert merged.header.tensors.keys() == base.header.tensors.keys()
        assert merged.header.tokenizer.json == base.header.tokenizer.json
        assert merged.header.provenance["source"] == f"{arch} + l"


def test_a_base_in_bfloat16_stays_so_in_a_merged_file_and_is_run_in_float32(place, bases):
    place("import", bases["qwen2"][1], "-o", "half.apr", "--dtype", "bf16")
    place.train("--init", "half.apr", *LORA, "--run", "l")
    place("merge", place.run("l"), "-o", "m.apr")
    with open_checkpoint("m.apr") as merged:
        assert {info.dtype for info in merged.header.tensors.values()} == {"BF16"}
    measured = [line["val_loss"] for line in place.curve("l") if "val_loss" in line]
    told = json.loads(place("eval", place.run("l"), "--precision", "fp32", "--json").partition("\n")[2])
    assert told["results"][0]["loss"] == pytest.approx(measured[-1], abs=2e-6)


def test_adapters_learn_at_a_rate_and_with_a_factor_of_their_own_unless_told(place, bases):
    place.train("--init", bases["qwen2"][0], "--lora-rank", "4", "--steps", "0", "--allow-cold-init", "--run", "l")
    settings = tomllib.loads((place.run("l") / "config.toml").read_text())
    assert settings["optimizer"]["lr"] == 2e-4
    assert (settings["lora"]["lora_alpha"], settings["lora"].get("lora_dropout", 0)) == (8, 0)


def test_the_model_that_a_run_means_is_opened_without_peft(place, bases, monkeypatch):
    place.train("--init", bases["qwen2"][0], *LORA, "--run", "l")
    monkeypatch.setitem(sys.modules, "peft", None)
    with opened(Wanted(path=str(place.run("l"))), say=print) as found:
        ready = make_ready(found, precision="fp32")
    monkeypatch.undo()
    theirs = unmerged("qwen2", bases["qwen2"][0], place.run("l") / "adapter")
    rows = tokens()
    family = installed_family("qwen2")
    with torch.no_grad():
        torch.testing.assert_close(our_logits(family, ready.model, rows), our_logits(family, theirs, rows), rtol=0, atol=1e-5)


def test_an_export_of_a_run_with_adapters_is_called_as_the_run_not_as_its_base(place, bases):
    base = place.folder / "base.apr"
    shutil.copy(bases["qwen2"][0], base)
    place("stamp", base, "--license", "MIT", "--name", "The base", "--data-source", "x", "--data-license", "MIT")
    place.train("--init", base, *LORA, "--run", "l")
    place("export", place.run("l"), "-o", "out")
    assert "\n# l\n" in (place.folder / "out" / "README.md").read_text()
    with opened(Wanted(path=str(place.run("l"))), say=print) as found:
        assert found.header.provenance["name"] == "l"
        assert found.header.provenance["source"] == "base + l"


# What is refused


def refused(place, *args, code=3):
    before = sorted(path for path in place.folder.rglob("*") if path.is_file())
    said = place.train(*args, code=code)
    assert sorted(path for path in place.folder.rglob("*") if path.is_file()) == before
    return said


@pytest.mark.rule("ADAPTER-001")
def test_a_target_that_matches_nothing_is_told_with_the_closest_names(place, bases):
    said = refused(place, "--init", bases["qwen2"][0], "--lora-rank", "4", "--lora-target", "q_porj", "--lora-target", "v_proj")
    assert "ADAPTER-001: --lora-target [q_porj]: no matrix of a block is called so" in said
    assert "did you mean q_proj?" in said
    assert said.count("ADAPTER-001") == 1
    assert "ADAPTER-001" in place.train(
        "--init", bases["qwen2"][0], "--lora-rank", "4", "--lora-target", "x", "--dry-run", code=3
    )
    head = refused(place, "--init", bases["qwen2"][0], "--lora-rank", "4", "--lora-target", "embed_tokens")
    assert "no matrix of a block is called so" in head


@pytest.mark.rule("ADAPTER-001")
@pytest.mark.rule("PREFLIGHT-030")
def test_adapters_without_a_base_and_their_settings_without_a_rank_are_refused(place, bases):
    said = refused(place, "--arch", "qwen2", "--preset", "tiny", "--lora-rank", "4")
    assert "adapters are trained on a base, and there is none" in said
    said = refused(place, "--init", bases["qwen2"][0], "--lora-alpha", "16", "--lora-target", "q_proj")
    assert said.count("this would change nothing, expected a --lora-rank") == 2
    said = refused(place, "--init", bases["qwen2"][0], "--lora-rank", "0", code=1)
    assert "lora_rank (--lora-rank): too small, expected at least 1" in said


@pytest.mark.rule("ADAPTER-001")
def test_without_peft_a_run_says_what_to_install(place, bases, monkeypatch):
    from apr_train.preflight import adapter_rules

    monkeypatch.setattr(adapter_rules, "util", SimpleNamespace(find_spec=lambda name: None))
    said = refused(place, "--init", bases["qwen2"][0], "--lora-rank", "4")
    assert "pip install 'apr-train[lora]'" in said


@pytest.mark.rule("ADAPTER-001")
def test_a_base_without_a_head_is_refused(place, bases):
    folder = place.folder / "bare"
    transformers_model("codebert", bases["codebert"][1]).roberta.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(bases["codebert"][1] / name, folder)
    said = refused(place, "--init", folder, "--lora-rank", "4")
    assert "the base lacks a part that adapters do not train" in said


@pytest.fixture
def trained(place, bases):
    """An adapter of qwen2's tiny base, in a folder of its own."""
    place.train("--init", bases["qwen2"][0], *LORA, "--run", "l")
    return shutil.copytree(place.run("l") / "adapter", place.folder / "ad")


def not_merged(place, *args):
    said = place("merge", *args, "-o", "m.apr", code=3 if "--base" in args else 1)
    assert not (place.folder / "m.apr").exists()
    assert not list(place.folder.glob(".m.apr*"))
    return said


@pytest.mark.rule("ADAPTER-002")
def test_an_adapter_for_another_base_is_refused_by_names_and_by_sizes(place, bases, trained):
    said = not_merged(place, trained, "--base", bases["codebert"][0])
    assert "ADAPTER-002" in said
    assert "the base has no such module" in said
    assert "The adapter is of another base" in said
    place.train("--arch", "llama370m", "--preset", "tiny", "--run", "other", "--steps", "0")
    tensors = load_file(trained / "adapter_model.safetensors")
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    save_file(tensors | {name: torch.ones(4, 80)}, trained / "adapter_model.safetensors", {"format": "pt"})
    said = not_merged(place, trained, "--base", bases["qwen2"][0])
    assert "layers.0.self_attn.q_proj.lora_A.weight]: sizes of another base" in said
    assert said.count("ADAPTER-002") == 1


@pytest.mark.rule("ADAPTER-002")
def test_another_rank_than_the_tensors_have_is_refused(place, bases, trained):
    config = json.loads((trained / "adapter_config.json").read_text())
    (trained / "adapter_config.json").write_text(json.dumps(config | {"r": 8}))
    said = not_merged(place, trained, "--base", bases["qwen2"][0])
    assert "lora_A.weight]: another rank than the config says (2 times, layers 0–1), expected [8, 112], found [4, 112]" in said


@pytest.mark.rule("ADAPTER-002")
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"r": None}, "[r]: not a number that an adapter can have"),
        ({"lora_alpha": "16"}, "[lora_alpha]: not a number"),
        ({"peft_type": None}, "does not say which kind of adapter"),
        ({"init_lora_weights": "pissa"}, "the adapter has changed its base, too"),
        ({"use_qalora": True}, "[use_qalora]: a variant of LoRA that is not merged here"),
        ({"rank_pattern": {"(a+)+$": 4}}, "[rank_pattern]: not the name of modules and a number"),
        ({"alpha_pattern": []}, None),
        ({"alpha_pattern": [4]}, "[alpha_pattern]: no table of modules"),
    ],
)
def test_a_config_that_is_not_understood_is_refused_by_its_key(place, bases, trained, change, words):
    config = json.loads((trained / "adapter_config.json").read_text())
    (trained / "adapter_config.json").write_text(json.dumps(config | change))
    if words is None:
        place("merge", trained, "--base", bases["qwen2"][0], "-o", "m.apr")
    else:
        assert words in not_merged(place, trained, "--base", bases["qwen2"][0])


@pytest.mark.rule("ADAPTER-002")
def test_half_an_adapter_is_refused(place, bases, trained):
    tensors = load_file(trained / "adapter_model.safetensors")
    tensors.pop("base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight")
    save_file(tensors, trained / "adapter_model.safetensors", {"format": "pt"})
    said = not_merged(place, trained, "--base", bases["qwen2"][0])
    assert "one of the adapter's two matrices is missing, expected A and B, found B" in said


@pytest.mark.rule("ADAPTER-002")
def test_a_pickled_adapter_a_missing_config_and_an_unknown_base_are_named(place, bases, trained):
    said = not_merged(place, trained)
    assert "nothing here says where its base lies" in said
    assert f"apr-train merge {trained} --base BASE -o X.apr" in said
    (trained / "adapter_config.json").rename(trained / "x.json")
    assert "an adapter without its config" in not_merged(place, trained)
    (trained / "x.json").rename(trained / "adapter_config.json")
    (trained / "adapter_model.safetensors").rename(trained / "adapter_model.bin")
    assert "a pickled adapter, which is never read" in not_merged(place, trained)


@pytest.mark.rule("ADAPTER-002")
def test_a_base_that_was_moved_or_changed_is_named(place, bases, trained):
    base = shutil.copy(bases["qwen2"][0], place.folder / "base.apr")
    place.train("--init", base, *LORA, "--run", "moved")
    shutil.move(base, place.folder / "there.apr")
    said = place("generate", place.run("moved"), "--prompt", "def", code=3)
    assert "base.apr [the base of the run's adapter]" in said
    assert "--base BASE -o X.apr" in said
    assert "not the checkpoint that the run was started on" not in said
    place.train("--arch", "qwen2", "--preset", "tiny", "--run", "other", "--steps", "0", "--seed", "5", "--precision", "fp32")
    shutil.copy(place.run("other") / "model.apr", base)
    said = place("generate", place.run("moved"), "--prompt", "def", code=3)
    assert "not the checkpoint that the adapter was trained on" in said
    said = place("--resume", place.run("moved"), "--steps", "6", code=1)
    assert "PREFLIGHT-028: --init" in said
    said = place("merge", place.run("moved"), "--base", "there.apr", "-o", "m.apr")
    assert "warning" not in said
    said = place("merge", place.run("moved"), "--base", bases["qwen2"][1], "-o", "m.apr")
    assert "warning ADAPTER-002" in said
    assert "A conversion or an export of that file is as good" in said


@pytest.mark.rule("PREFLIGHT-020")
def test_a_run_that_trained_an_adapter_is_no_base_and_says_how_it_becomes_one(place, bases, trained):
    for path in (place.run("l"), place.run("l") / "step-000004"):
        said = refused(place, "--init", path)
        assert "the run trained an adapter, which is not a whole model" in said
        assert f"apr-train merge {path} -o X.apr" in said
    said = refused(place, "--init", trained)
    assert f"apr-train merge {trained} --base BASE -o X.apr" in said


def test_a_base_that_was_moved_may_be_named_anew_at_a_resume(place, bases):
    base = shutil.copy(bases["qwen2"][0], place.folder / "base.apr")
    place.train("--init", base, *LORA, "--run", "l")
    shutil.move(base, place.folder / "there.apr")
    said = place("--resume", place.run("l"), "--steps", "6", code=3)
    assert "If it was moved, say with --init where it is now: it is compared." in said
    place("--resume", place.run("l"), "--steps", "6", "--init", "there.apr")
    assert place.curve("l")[-1]["step"] == 6
    assert place("generate", place.run("l"), "--prompt", "def", "--max-tokens", "2")


def test_commands_that_want_one_file_say_how_to_make_it(place, bases, trained):
    for command in (("inspect",), ("check",), ("validate",), ("publish", "-o", "out")):
        said = place(command[0], place.run("l"), *command[1:], code=3 if command[0] == "check" else 1)
        assert "apr-train merge" in said, command
    card = (place.run("l") / "MODEL_CARD.md").read_text()
    assert (
        "| adapters | LoRA of rank 4, alpha 8, on all matrices of the blocks: 22,912 parameters trained, 581,456 frozen |"
        in card
    )
    assert "| parameters | 581,456 |" in card


def test_somebody_s_file_in_the_adapter_s_folder_stays_when_the_run_goes_on(place, bases):
    place.train("--init", bases["qwen2"][0], *LORA, "--run", "l")
    note = place.run("l") / "adapter" / "README.md"
    note.write_text("mine")
    before = load_file(place.run("l") / "adapter" / "adapter_model.safetensors")
    place("--resume", place.run("l"), "--steps", "6")
    assert note.read_text() == "mine"
    after = load_file(place.run("l") / "adapter" / "adapter_model.safetensors")
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_a_tokenizer_that_the_base_does_not_have_belongs_to_the_run(place, bases):
    base = shutil.copytree(bases["qwen2"][1], place.folder / "base")
    shutil.move(base / "tokenizer.json", place.folder / "tokenizer.json")
    (base / "tokenizer_config.json").unlink()
    place.train("--init", base, "--tokenizer", "tokenizer.json", *LORA, "--save-every", "2", "--run", "l")
    (place.folder / "tokenizer.json").unlink()
    for path in (place.run("l"), place.run("l") / "step-000002"):
        assert place("generate", path, "--prompt", "def", "--max-tokens", "2")
    place("merge", place.run("l"), "--base", base, "-o", "m.apr")
    with open_checkpoint("m.apr") as merged:
        assert merged.header.tokenizer.size == 1024


def test_nothing_asks_a_hub(place, bases, monkeypatch):
    """Neither a training, nor a merge by PEFT's own code, nor the import of PEFT."""

    def refuse(*_):
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    place.train("--init", bases["qwen2"][0], *LORA, "--run", "l")
    theirs = peft.get_peft_model(
        transformers_model("qwen2", bases["qwen2"][1]), peft.LoHaConfig(r=2, target_modules=["q_proj"])
    )
    monkeypatch.setattr(theirs.peft_config["default"], "base_model_name_or_path", None)
    theirs.save_pretrained(place.folder / "ad")
    config = json.loads((place.folder / "ad" / "adapter_config.json").read_text())
    (place.folder / "ad" / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "Org/Name"}))
    place("merge", "ad", "--base", bases["qwen2"][0], "-o", "m.apr")


def test_a_run_with_recomputed_blocks_learns_the_same(place, bases):
    for name, more in (("plain", ()), ("again", ("--recompute",))):
        place.train("--init", bases["qwen2"][0], *LORA, "--run", name, *more)
    files = [(place.run(name) / "adapter" / "adapter_model.safetensors").read_bytes() for name in ("plain", "again")]
    assert files[0] == files[1]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # torch.compile's own, of itself
def test_a_compiled_run_learns_what_one_without_learns(place, bases):
    for name, more in (("plain", ()), ("compiled", ("--compile",))):
        place.train("--init", bases["qwen2"][0], *LORA, "--val-every", "2", "--run", name, *more)
    plain, compiled = ([line["val_loss"] for line in place.curve(name) if "val_loss" in line] for name in ("plain", "compiled"))
    assert len(compiled) == 3
    assert compiled == pytest.approx(plain, rel=1e-4)
    assert compiled[-1] < compiled[0]
