"""Adapters on families whose files are no list of linear layers: fused and transposed matrices, experts, a GGUF base."""

import json

import pytest

SCRIPT = r"""
import json, sys, warnings
from pathlib import Path

import peft
import torch
from apr_train.artifact.merge import merged_checkpoint
from apr_train.checkpoint.open import open_checkpoint
from apr_train.cli import cli
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, MixtralConfig, MixtralForCausalLM
from transformers import PreTrainedTokenizerFast

arch = sys.argv[1]
warnings.filterwarnings("ignore")
torch.set_num_threads(1)
torch.manual_seed(0)
said = {}


def run(*arguments):
    done = CliRunner().invoke(cli, list(map(str, arguments)))
    return done.exit_code, done.output


SMALL = {"vocab_size": 257, "bos_token_id": 256, "eos_token_id": 256}
if arch == "gpt2":
    config = GPT2Config(**SMALL, n_embd=32, n_layer=2, n_head=4, n_positions=64, attn_pdrop=0, embd_pdrop=0, resid_pdrop=0)
    model = GPT2LMHeadModel(config)
else:
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = MixtralConfig(**SMALL, **sizes, num_key_value_heads=2, num_local_experts=4, max_position_embeddings=64)
    model = MixtralForCausalLM(config)
model.save_pretrained("base")
alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
backend = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate([*alphabet, "<|endoftext|>"])}, merges=[]))
backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|endoftext|>", bos_token="<|endoftext|>").save_pretrained("base")
Path("text.txt").write_text("def f(x):\n    return x + 1\n\n" * 60)

# trained by peft, merged here
targets = {"gpt2": ["c_attn", "c_fc"], "mixtral": ["q_proj", "o_proj"]}[arch]
theirs = peft.get_peft_model(AutoModelForCausalLM.from_pretrained("base"), peft.LoraConfig(r=4, target_modules=targets))
with torch.no_grad():
    for parameter in theirs.parameters():
        if parameter.requires_grad:
            parameter.normal_(std=0.1)
theirs.save_pretrained("ad")
said["merge"] = run("merge", "ad", "--base", "base", "-o", "m.apr")
theirs.merge_and_unload().save_pretrained("theirs")


def furthest(one, other):
    with open_checkpoint(one) as left, open_checkpoint(other) as right:
        names = left.header.tensors.keys() & right.header.tensors.keys()
        pairs = [(torch.tensor(left.read(name).data), torch.tensor(right.read(name).data)) for name in names]
    return [len(names), max(float((a - b).abs().max()) for a, b in pairs)]


run("export", "theirs", "-o", "theirs-here")
run("export", "m.apr", "-o", "ours")
run("export", "base", "-o", "before")
said["apart"] = furthest("ours", "theirs-here")
said["moved"] = furthest("ours", "before")

# of single experts, as peft wrote it while transformers had each of them as linear layers; merged here
if arch == "mixtral":
    draw = torch.Generator().manual_seed(1)
    before, wanted, thin = load_file("base/model.safetensors"), {}, {}
    for module in (f"model.layers.{layer}.block_sparse_moe.experts.{expert}.w2" for layer in (0, 1) for expert in (0, 3)):
        weight = before[f"{module}.weight"]
        a, b = (torch.randn(shape, generator=draw) for shape in ((4, weight.shape[1]), (weight.shape[0], 4)))
        thin |= {f"base_model.model.{module}.lora_A.weight": a, f"base_model.model.{module}.lora_B.weight": b}
        wanted[f"{module}.weight"] = weight + 2 * b @ a
    Path("experts").mkdir()
    save_file(thin, "experts/adapter_model.safetensors")
    Path("experts/adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 8}))
    with merged_checkpoint(Path("experts"), "base") as merged, open_checkpoint("base") as plain:
        found = {name: torch.tensor(merged.read(name).data) for name in merged.header.tensors}
        reads, read = [], merged._base.read
        merged._base.read = lambda name: (reads.append(name), read(name))[1]
        merged.read(next(iter(wanted)))
        said["experts"] = {
            "changed": max(float((found.pop(name) - value).abs().max()) for name, value in wanted.items()),
            "others": all(torch.equal(value, torch.tensor(plain.read(name).data)) for name, value in found.items()),
            "reads": reads,
        }

# trained here, opened by peft
text = ["--data", "text.txt", "--sequence-length", "32", "--batch-size", "2", "--steps", "2", "--lr", "1e-2"]
lora = ["--init", "base", "--lora-rank", "4", "--precision", "fp32", "--sample-tokens", "0", "--allow-cold-init"]
said["refused"] = run("train", *text, *lora, "--lora-target", {"gpt2": "q_proj", "mixtral": "experts.down_proj"}[arch])
said["train"] = run("train", *text, *lora, "--run", "l")
said["config"] = json.loads(Path("runs/l/adapter/adapter_config.json").read_text())
opened = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("base"), "runs/l/adapter").eval()
said["export"] = run("export", "runs/l", "-o", "out")
rows = torch.arange(3, 35)[None]
with torch.no_grad():
    logits = opened(rows).logits
    exported = AutoModelForCausalLM.from_pretrained("out").eval()(rows).logits
    plain = AutoModelForCausalLM.from_pretrained("base").eval()(rows).logits
said["logits"] = [float((logits - exported).abs().max()), float((logits - plain).abs().max())]
print("\n" + json.dumps(said))
"""


@pytest.fixture(scope="module", params=["gpt2", "mixtral"])
def told(request, examples, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    done = examples.run(folder, "-c", SCRIPT, request.param)
    assert done.returncode == 0, done.stderr[-4000:]
    return request.param, json.loads(done.stdout.splitlines()[-1])


def test_an_adapter_of_peft_s_merges_into_fused_and_transposed_matrices(told):
    _, said = told
    assert said["merge"][0] == 0, said["merge"][1]
    compared, apart = said["apart"]
    assert compared > 20
    assert apart <= 1e-6
    assert said["moved"][1] > 0.01


@pytest.mark.parametrize("told", ["mixtral"], indirect=True)
def test_an_adapter_of_single_experts_is_merged_by_reading_no_other_expert(told):
    _, said = told
    assert said["experts"]["changed"] <= 1e-6
    assert said["experts"]["others"]
    assert said["experts"]["reads"] == ["model.layers.0.block_sparse_moe.experts.0.w2.weight"]


def test_what_has_no_adapter_of_its_own_in_transformers_is_refused_by_name(told):
    arch, said = told
    code, text = said["refused"]
    assert code == 3
    reason = {"gpt2": "a part of transformer.h.0.attn.c_attn.weight in transformers", "mixtral": "a stack of experts"}[arch]
    assert reason in text


def test_an_adapter_that_was_trained_here_opens_in_peft(told):
    arch, said = told
    assert said["train"][0] == 0, said["train"][1]
    assert said["export"][0] == 0, said["export"][1]
    merged, learnt = said["logits"]
    assert merged <= 1e-5
    assert learnt > 1e-3
    wanted = {"gpt2": ["c_fc", "c_proj"], "mixtral": ["k_proj", "o_proj", "q_proj", "v_proj"]}[arch]
    assert said["config"]["target_modules"] == wanted
    assert said["config"]["fan_in_fan_out"] is (arch == "gpt2")
