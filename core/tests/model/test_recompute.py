"""Activation checkpointing of whole blocks, and with the matrix products kept: the same bits, and what is computed again."""

import pytest
import torch
from apr_train.family.decoder_config import DecoderConfig
from apr_train.family.encoder_config import EncoderConfig
from apr_train.model.acceleration import compile_blocks
from apr_train.model.attention import Bidirectional, Causal, load_backend
from apr_train.model.build import recompute_activations
from apr_train.model.decoder import Decoder
from apr_train.model.encoder import Encoder
from torch.utils.flop_counter import FlopCounterMode

SIZES = {
    "vocab_size": 61, "hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 6, "intermediate_size": 40,
    "max_position_embeddings": 64, "tie_word_embeddings": True,
}  # fmt: skip
DECODER = DecoderConfig(**SIZES, num_key_value_heads=2, rope_theta=1e6, rms_norm_eps=1e-5)
SPARSE = DecoderConfig(
    **SIZES,
    num_key_value_heads=2,
    rope_theta=1e6,
    rms_norm_eps=1e-5,
    num_experts=4,
    num_experts_per_tok=2,
    norm_topk_prob=True,
)
ENCODER = EncoderConfig(
    **SIZES,
    type_vocab_size=1,
    layer_norm_eps=1e-5,
    pad_token_id=0,
    hidden_dropout_prob=0.1,
    attention_probs_dropout_prob=0.1,
)


def whole(model):
    recompute_activations(model)


def kept(model):
    recompute_activations(model, keep_products=True)


def trained(config, change, dtype=None):
    """Loss, gradients by name and floating-point operations of products in the backward pass, after `change`."""
    kind, mask = (Encoder, Bidirectional()) if config is ENCODER else (Decoder, Causal())
    model = kind(config, load_backend("sdpa")).train()
    model.initialize(torch.Generator().manual_seed(0))
    change(model)
    tokens = torch.arange(80).reshape(2, 40) % 60 + 1
    torch.manual_seed(4)
    with torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
        loss = model(tokens, mask=mask).square().mean()
    with FlopCounterMode(display=False) as counter:
        loss.backward()
    return loss.detach(), {name: p.grad for name, p in model.named_parameters()}, counter.get_total_flops()


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("config", [DECODER, SPARSE, ENCODER], ids=["decoder", "sparse", "encoder"])
def test_losses_and_gradients_are_the_same_bit_for_bit(config, dtype):
    loss, gradients, _ = trained(config, lambda model: None, dtype)
    for change in (whole, kept):
        ours, found, _ = trained(config, change, dtype)
        assert torch.equal(ours, loss)
        assert all(torch.equal(found[name], gradients[name]) for name in gradients)


def test_no_product_of_a_weight_is_computed_again_where_they_are_kept():
    plain, again, selective = (trained(DECODER, change)[2] for change in (lambda model: None, whole, kept))
    assert selective == plain < again


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # torch.compile's own, of itself
@pytest.mark.parametrize("config", [DECODER, ENCODER], ids=["decoder", "encoder"])
def test_kept_products_and_a_compiler_agree_with_plain_blocks(config):
    def both(model):
        kept(model)
        compile_blocks(model)

    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    with torch._dynamo.config.patch(error_on_recompile=True):
        loss, gradients, _ = trained(config, both)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    expected, theirs, _ = trained(config, lambda model: None)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)
    for name, grad in gradients.items():
        if not name.endswith("k_proj.bias"):  # zero but for rounding
            assert ((grad - theirs[name]).norm() / theirs[name].norm()).item() < 1e-4, name
