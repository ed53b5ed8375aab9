"""A model sharded over a process group of one: where its parameters lie, in which dtype they are gathered, and offloading."""

import pytest
import torch
import torch.distributed as dist
from apr_train.family.decoder_config import DecoderConfig
from apr_train.model.attention import Causal, load_backend
from apr_train.model.decoder import Decoder
from apr_train.model.sharding import computes_on, give_memory, is_sharded, local, make_mesh, shard, whole, whole_gradients

CONFIG = DecoderConfig(
    vocab_size=61,
    hidden_size=48,
    num_hidden_layers=2,
    num_attention_heads=6,
    num_key_value_heads=2,
    intermediate_size=40,
    max_position_embeddings=64,
    rope_theta=1e6,
    rms_norm_eps=1e-5,
    tie_word_embeddings=True,
)


@pytest.fixture
def mesh():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield make_mesh("cpu", replicas=1, processes=1)
    finally:
        dist.destroy_process_group()


def passed(mesh=None, *, products=None, **how):
    """A model after a pass, with what its blocks' parameters were while they ran."""
    with torch.device("meta"):
        model = Decoder(CONFIG, load_backend("sdpa"))
    if mesh is not None:
        shard(model, mesh, products, **how)
    give_memory(model, torch.device("cpu"), offload=how.get("offload", False))
    model.initialize(torch.Generator().manual_seed(0))
    seen = {}
    plain = model.layers[1].forward

    def watched(*arguments):
        seen.update({name: parameter.dtype for name, parameter in model.layers[1].named_parameters()})
        seen["matrix of the head"] = model.head_weight.dtype
        return plain(*arguments)

    model.layers[1].forward = watched
    tokens = torch.arange(40).reshape(2, 20)
    with torch.autocast("cpu", dtype=products, enabled=products is not None):
        hidden = model.hidden_states(tokens, mask=Causal())
    hidden.square().mean().backward()
    gradients = {name: whole(p.grad) for name, p in model.named_parameters() if p.grad is not None}
    return model, seen, hidden.detach(), gradients


def test_under_autocast_the_matrices_of_blocks_are_gathered_in_its_dtype_and_nothing_else_is(mesh):
    model, seen, hidden, gradients = passed(mesh, products=torch.bfloat16)
    expected = {name: torch.bfloat16 if p.ndim > 1 else torch.float32 for name, p in model.layers[1].named_parameters()}
    assert seen == {**expected, "matrix of the head": torch.float32}
    assert all(is_sharded(p) == (p.ndim > 1) for p in model.parameters())
    assert {p.dtype for p in model.parameters()} == {p.grad.dtype for p in model.parameters()} == {torch.float32}
    assert len(whole_gradients(model)) == sum(p.ndim < 2 for p in model.parameters())
    _, _, plain, theirs = passed(products=torch.bfloat16)
    assert hidden.dtype == plain.dtype == torch.float32
    assert torch.equal(hidden, plain)
    assert all(torch.equal(gradients[name], theirs[name]) for name in theirs)


def test_offloaded_pieces_compute_the_same(mesh):
    """On a CPU, where offloading changes nothing but the way."""
    model, _, hidden, gradients = passed(mesh, offload=True)
    _, _, plain, theirs = passed()
    assert torch.equal(hidden, plain)
    assert all(torch.equal(gradients[name], theirs[name]) for name in theirs)
    assert all(local(p).device.type == "cpu" for p in model.parameters())
    assert computes_on(model) == torch.device("cpu")
