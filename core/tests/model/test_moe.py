"""Mixture of experts: routing, the grouped product, the balancing loss; against transformers and against their definitions."""

import math

import pytest
import torch
from apr_train.family.decoder_config import DecoderConfig
from apr_train.model import moe
from apr_train.model.attention import Causal, load_backend
from apr_train.model.build import recompute_activations
from apr_train.model.decoder import Decoder
from apr_train.model.moe import (
    Losses,
    RouterStatistics,
    SparseMLP,
    grouped_linear,
    grouped_loop,
    has_kernel,
    load_balancing_loss,
)
from apr_train.testing import compute_in_float64, randomize
from transformers import MixtralConfig, MixtralForCausalLM
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

SIZES = {
    "vocab_size": 61,
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 24,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
    "rms_norm_eps": 1e-5,
    "num_experts_per_tok": 2,
}


def config(**changes):
    return DecoderConfig(**(SIZES | {"rope_theta": 1e4, "num_experts": 5} | changes))


def tokens():
    return torch.randint(0, 61, (2, 20), generator=torch.Generator().manual_seed(0))


COUNTS = torch.tensor([3, 0, 9, 4])


def operands(dtype, *, groups=4, out=24, into=16):
    source = torch.Generator().manual_seed(0)
    x = torch.randn(int(COUNTS.sum()), into, generator=source).to(dtype).requires_grad_()
    return x, torch.randn(groups, out, into, generator=source).to(dtype).requires_grad_()


def by_rows(x, weight):
    numbers = torch.repeat_interleave(torch.arange(len(COUNTS)), COUNTS)
    return torch.stack([weight[number] @ row for row, number in zip(x, numbers, strict=True)])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("product", [grouped_linear, grouped_loop])
def test_grouped_product_takes_each_row_through_its_groups_matrix(product, dtype):
    x, weight = operands(dtype)
    out = product(x, weight, COUNTS)
    expected = by_rows(x.double(), weight.double())
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2}[dtype]
    assert out.dtype == dtype
    for ours, theirs in zip(
        (out, *torch.autograd.grad(out.double().square().sum(), (x, weight))),
        (expected, *torch.autograd.grad(expected.square().sum(), (x, weight))),
        strict=True,
    ):
        assert ((ours - theirs).norm() / theirs.norm()).item() < tolerance


def test_kernel_is_used_where_torch_has_one(monkeypatch):
    def refuse(*arguments):
        raise AssertionError("the loop")

    monkeypatch.setattr(moe, "grouped_loop", refuse)
    for dtype in (torch.float32, torch.bfloat16):
        assert has_kernel(*operands(dtype))
        grouped_linear(*operands(dtype), COUNTS)
    for rest in (operands(torch.float64), operands(torch.float32, out=23), operands(torch.bfloat16, into=12)):
        assert not has_kernel(*rest)
        with pytest.raises(AssertionError, match="the loop"):
            grouped_linear(*rest, COUNTS)


def test_rows_that_are_not_aligned_are_computed_all_the_same():
    x, weight = operands(torch.float32, out=23, into=15)
    torch.testing.assert_close(grouped_linear(x, weight, COUNTS), by_rows(x, weight), rtol=1e-5, atol=1e-5)


def test_autocast_reaches_the_experts():
    x, weight = operands(torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = grouped_linear(x, weight, COUNTS)
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, grouped_linear(x.bfloat16(), weight.bfloat16(), COUNTS))
    out.square().sum().backward()
    assert weight.grad.dtype == torch.float32


def test_an_expanded_gradient_is_dense_before_it_reaches_the_kernel():
    layer, x = randomize(SparseMLP(config())), torch.randn(2, 6, 16, requires_grad=True)
    assert has_kernel(x, layer.experts.up_proj)
    layer(x)[0].sum().backward()
    assert torch.isfinite(x.grad).all()


def dense(layer, x):
    """Every expert for every token, weighted: the definition."""
    weights, chosen, _ = layer.route(x)
    out = torch.zeros_like(x)
    for row in range(x.shape[0]):
        for weight, number in zip(weights[row], chosen[row], strict=True):
            gate, up, down = (p[number] for p in (layer.experts.gate_proj, layer.experts.up_proj, layer.experts.down_proj))
            out[row] += weight * (down @ (torch.nn.functional.silu(gate @ x[row]) * (up @ x[row])))
    return out


@pytest.mark.parametrize("normalized", [False, True])
def test_sparse_layer_is_the_weighted_sum_of_chosen_experts(normalized):
    layer = randomize(SparseMLP(config(norm_topk_prob=normalized))).double()
    x = torch.randn(1, 12, 16, dtype=torch.float64)
    out, statistics = layer(x)
    torch.testing.assert_close(out[0], dense(layer, x[0]), rtol=1e-10, atol=1e-12)
    weights, chosen, probabilities = layer.route(x[0])
    logits = x[0] @ layer.gate.weight.T
    torch.testing.assert_close(probabilities, logits.exp() / logits.exp().sum(-1, keepdim=True), rtol=1e-12, atol=0)
    assert bool((weights.sum(-1) - 1).abs().max() < 1e-12) is normalized
    assert statistics.counts.tolist() == [int((chosen == expert).sum()) for expert in range(5)]
    torch.testing.assert_close(statistics.probabilities, probabilities.sum(0))


def test_router_is_computed_in_float32_at_least():
    layer = randomize(SparseMLP(config())).bfloat16()
    weights, _, probabilities = layer.route(torch.randn(7, 16).bfloat16())
    assert (weights.dtype, probabilities.dtype) == (torch.bfloat16, torch.float32)


def test_balancing_loss_is_that_of_transformers():
    logits = tuple(torch.randn(30, 6, dtype=torch.float64) for _ in range(3))
    statistics = []
    for layer in logits:
        probabilities = layer.softmax(-1)
        counts = torch.bincount(probabilities.topk(2).indices.flatten(), minlength=6).double()
        statistics.append(RouterStatistics(counts, probabilities.sum(0)))
    expected = load_balancing_loss_func(logits, 6, 2)
    assert load_balancing_loss(statistics, 2).item() == pytest.approx(expected.item(), rel=1e-6)  # theirs sums in float32


def test_balancing_loss_of_even_and_of_one_sided_routing():
    even = RouterStatistics(torch.full((4,), 6.0), torch.full((4,), 3.0))
    assert load_balancing_loss([even, even], 2).item() == pytest.approx(2.0)
    one = RouterStatistics(torch.tensor([12.0, 0.0, 0.0, 0.0]), torch.tensor([12.0, 0.0, 0.0, 0.0]))
    assert load_balancing_loss([one], 1).item() == pytest.approx(4.0)
    # the sums are added up before they are multiplied: two layers that are one-sided in turn are even together
    other = RouterStatistics(torch.tensor([0.0, 12.0, 0.0, 0.0]), torch.tensor([0.0, 12.0, 0.0, 0.0]))
    assert load_balancing_loss([one, other], 1).item() == pytest.approx(2.0)


def mixtral():
    theirs = MixtralConfig(
        **SIZES,
        num_local_experts=5,
        sliding_window=None,
        output_router_logits=True,
        rope_parameters={"rope_type": "default", "rope_theta": 1e4},
    )
    theirs._attn_implementation = "eager"
    return compute_in_float64(randomize(MixtralForCausalLM(theirs)).eval())


def ours_of(reference):
    model = Decoder(config(), load_backend("eager")).double()
    state = {name.removeprefix("model."): tensor for name, tensor in reference.state_dict().items()}
    for name in [name for name in state if "gate_up_proj" in name]:
        halves = state.pop(name).chunk(2, dim=1)
        state |= {name.replace("gate_up", part): half for part, half in zip(("gate", "up"), halves, strict=True)}
    model.load_state_dict(state)
    return model


@pytest.mark.parametrize("recompute", [False, True])
def test_auxiliary_loss_and_its_gradient_equal_transformers(recompute):
    reference = mixtral()
    model = ours_of(reference)
    if recompute:
        recompute_activations(model)
    losses = {}
    model.hidden_states(tokens(), mask=Causal(), losses=losses)
    theirs = reference(input_ids=tokens(), output_router_logits=True).aux_loss
    assert losses.keys() == {"aux_loss"}
    assert losses["aux_loss"].item() == pytest.approx(theirs.item(), rel=1e-9)
    losses["aux_loss"].backward()
    theirs.backward()
    for layer in range(3):
        mine = model.layers[layer].mlp.gate.weight.grad
        other = reference.model.layers[layer].mlp.gate.weight.grad
        assert ((mine - other).norm() / other.norm()).item() < 1e-9
    embedding = reference.model.embed_tokens.weight.grad
    assert ((model.embed_tokens.weight.grad - embedding).norm() / embedding.norm()).item() < 1e-9


def test_dense_models_have_no_auxiliary_loss():
    losses = {}
    model = Decoder(config(num_experts=0, num_experts_per_tok=0), load_backend("eager"))
    model.initialize(torch.Generator().manual_seed(0))
    model.hidden_states(tokens(), mask=Causal(), losses=losses)
    assert losses == {}


def test_experts_and_router_start_like_matrices():
    model = Decoder(config(hidden_size=64, initializer_range=0.03, shared_expert_intermediate_size=64), load_backend("eager"))
    model.initialize(torch.Generator().manual_seed(0))
    sparse = model.layers[1].mlp
    for parameter in (*sparse.experts.parameters(), sparse.shared_expert.up_proj.weight):
        assert parameter.std().item() == pytest.approx(0.03, rel=0.1)
    assert sparse.gate.weight.std().item() == pytest.approx(0.03, rel=0.2)
    assert dict(sparse.named_parameters())["shared_expert_gate.weight"].shape == (1, 64)


def test_names_and_shapes_of_a_sparse_layer():
    names = {name: tuple(p.shape) for name, p in SparseMLP(config(moe_intermediate_size=8)).named_parameters()}
    assert names == {
        "gate.weight": (5, 16),
        "experts.gate_proj": (5, 8, 16),
        "experts.up_proj": (5, 8, 16),
        "experts.down_proj": (5, 16, 8),
    }


def test_generated_tokens_are_routed_one_by_one():
    """A batch of one token has experts without a single row."""
    layer = randomize(SparseMLP(config()))
    out, statistics = layer(torch.randn(1, 1, 16))
    assert out.shape == (1, 1, 16)
    assert statistics.counts.sum() == 2
    assert math.isfinite(out.sum().item())


def test_processes_that_share_the_rows_balance_over_all_of_them():
    """The loss is that of all rows in each, and the gradients of the parts add up to its gradient."""
    rows = torch.randint(0, 61, (5, 20), generator=torch.Generator().manual_seed(3))

    def balanced(tokens, losses):
        model = randomize(Decoder(config(), load_backend("eager")), seed=2).double()
        model.hidden_states(tokens, mask=Causal(), losses=losses)
        losses["aux_loss"].backward()
        return losses["aux_loss"].detach(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}

    expected, gradient = balanced(rows, {})
    parts, heard = [rows[:2], rows[2:]], []
    for part in parts:
        balanced(part, Losses(lambda sums: heard.append(sums.detach()) or sums))
    found = [
        balanced(part, Losses(lambda sums, other=other: sums + other)) for part, other in zip(parts, heard[::-1], strict=True)
    ]
    for loss, _ in found:
        assert float(loss) == pytest.approx(float(expected), rel=1e-12)
    for name, value in gradient.items():
        torch.testing.assert_close(sum(grads[name] for _, grads in found), value, rtol=1e-9, atol=1e-12)
