"""Compilation and activation checkpointing together: the same gradients, and one graph for all blocks, not none."""

import pytest
import torch
from apr_train.family.decoder_config import DecoderConfig
from apr_train.model.acceleration import compile_blocks
from apr_train.model.attention import Causal, load_backend
from apr_train.model.build import recompute_activations
from apr_train.model.decoder import Decoder

CONFIG = DecoderConfig(
    vocab_size=61,
    hidden_size=48,
    num_hidden_layers=4,
    num_attention_heads=6,
    num_key_value_heads=2,
    intermediate_size=40,
    max_position_embeddings=64,
    rope_theta=1e6,
    rms_norm_eps=1e-5,
    tie_word_embeddings=True,
)


def gradients(change):
    """Gradients by name of a model that `change` went over before it ran."""
    model = Decoder(CONFIG, load_backend("sdpa"))
    model.initialize(torch.Generator().manual_seed(0))
    change(model)
    tokens = torch.arange(80).reshape(2, 40) % 61
    model(tokens, mask=Causal()).square().mean().backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def compile_and_recompute(model):
    compile_blocks(model)
    recompute_activations(model)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # torch.compile's own, of itself
def test_recomputed_blocks_are_compiled_once_for_all_layers_and_agree():
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    with torch._dynamo.config.patch(error_on_recompile=True):
        ours = gradients(compile_and_recompute)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1  # none would be a block that is left alone
    theirs = gradients(lambda model: None)
    assert list(ours) == list(theirs)
    for name, grad in ours.items():
        assert ((grad - theirs[name]).norm() / theirs[name].norm()).item() < 1e-5, name
