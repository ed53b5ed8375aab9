"""model.apr of a model whose parameters are stacks or parts of the file's tensors: written as files have them."""

import attrs
import numpy as np
import pytest
import torch
from apr_train.checkpoint.apr import open_apr
from apr_train.checkpoint.header import TokenizerSpec
from apr_train.errors import FormatError
from apr_train.family.card import FamilyInfo, Layout
from apr_train.family.decoder_config import DecoderConfig
from apr_train.family.decoder_names import decoder_rules
from apr_train.family.name_map import NameMap, to_checkpoint
from apr_train.family.name_rules import split
from apr_train.training.checkpoint import Weights
from apr_train.training.model_file import ModelFile
from torch import nn

INFO = FamilyInfo(
    name="moe", api_version="1.0", kind="decoder", objectives=("causal-lm",), hf_classes=("MoeForCausalLM",),
    model_type="moe", presets=("tiny",), default_preset="tiny",
)  # fmt: skip
CONFIG = DecoderConfig(
    vocab_size=11,
    hidden_size=24,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    intermediate_size=40,
    max_position_embeddings=64,
    rope_theta=1e4,
    rms_norm_eps=1e-5,
    tie_word_embeddings=True,
)
MOE = attrs.evolve(CONFIG, num_experts=3, num_experts_per_tok=2)


def fused(config, layout):
    parts = [(f"layers.{{layer}}.mlp.{name}_proj.weight", "intermediate_size") for name in ("gate", "up")]
    added = split("model.layers.{layer}.mlp.gate_up_proj.weight", parts, "hidden_size")
    return decoder_rules(config, layout, drop=["mlp.gate_proj", "mlp.up_proj"], add=[added])


def module(shapes, dtype):
    """A module with these parameters under these names."""
    model = nn.Module()
    for name, shape in shapes.items():
        *path, leaf = name.split(".")
        owner = model
        for part in path:
            if part not in owner._modules:
                owner.add_module(part, nn.Module())
            owner = owner.get_submodule(part)
        owner.register_parameter(leaf, nn.Parameter(torch.randn(shape).to(dtype)))
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("config", "rules"), [(MOE, decoder_rules), (CONFIG, fused)], ids=["experts", "fused"])
def test_a_model_is_written_as_its_files_are(tmp_path, config, rules, dtype):
    name_map = NameMap.for_config(config, rules(config, Layout()))
    model = module(name_map.parameters, dtype)
    vocabulary = TokenizerSpec(vocabulary=tuple("abcdefghijk"), merges=("a b",), size=11)
    write = ModelFile(info=INFO, config=config, name_map=name_map, header=None, tokenizer=vocabulary, origin={})
    write(tmp_path / "model.apr", Weights.of(model), step=1)
    expected = to_checkpoint(name_map, dict(model.named_parameters()))
    with open_apr(tmp_path / "model.apr") as reader:
        assert {name: info.shape for name, info in reader.header.tensors.items()} == name_map.tensors
        for name, tensor in expected.items():
            bits = reader.read(name).data.view(np.int16 if dtype is torch.bfloat16 else np.int32)
            assert torch.equal(torch.from_numpy(bits.copy()).view(dtype), tensor.detach().contiguous()), name
        assert reader.raw_metadata["param_count"] == sum(tensor.numel() for tensor in model.parameters())
        assert reader.raw_metadata["total_size"] == sum(tensor.nbytes for tensor in model.parameters())


def reserved(size, *, added):
    """A tokenizer whose entries are reserved: as added tokens, or as the model's own."""
    names = {f"<|reserved_{number}|>": number for number in range(size)}
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    entries = [{"id": number, "content": name, **flags} for name, number in names.items()] if added else []
    model = {"type": "BPE", "vocab": {} if added else names, "merges": []}
    return TokenizerSpec(json={"added_tokens": entries, "model": model}, size=size, origin="reserved")


def test_metadata_that_no_file_can_hold_is_known_before_there_is_a_model():
    """151,936 entries, as a run from scratch with a preset of Qwen2's has them."""
    name_map = NameMap.for_config(CONFIG, decoder_rules(CONFIG, Layout()))
    writer = ModelFile(
        info=INFO, config=CONFIG, name_map=name_map, header=None, tokenizer=reserved(151_936, added=False), origin={}
    )
    writer.require_writable()
    with pytest.raises(FormatError, match=r"model.apr \[metadata\]: .* too large, expected at most 16777216 bytes"):
        attrs.evolve(writer, tokenizer=reserved(151_936, added=True)).require_writable()
