"""Every field of a decoder's config against the transformers class that has it: logits, gradients, cache, packing."""

import re
from collections.abc import Callable
from typing import Any

import attrs
import pytest
import torch
import transformers
from apr_train.errors import ConfigError
from apr_train.family.config import QUIET
from apr_train.family.decoder_config import DecoderConfig
from apr_train.model.acceleration import compile_blocks
from apr_train.model.attention import Causal, Documents, Request, load_backend
from apr_train.model.build import recompute_activations
from apr_train.model.cache import KeyValueCache
from apr_train.model.decoder import Decoder
from apr_train.testing import FLOAT32, FLOAT64, check_agreement, compute_in_float64, randomize
from torch.nn import functional as F

LENGTH, WINDOW, ORIGINAL = 48, 16, 32
HIDDEN, HEADS, KV_HEADS, HEAD_DIM = 64, 4, 2, 16
SIZES = {
    "vocab_size": 61,
    "hidden_size": HIDDEN,
    "num_hidden_layers": 3,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "intermediate_size": 72,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
}
LAYER_TYPES = ["sliding_attention", "full_attention", "sliding_attention"]
YARN = {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": ORIGINAL, "beta_fast": 4.0, "beta_slow": 0.5}
LONGROPE = {
    "rope_type": "longrope",
    "short_factor": [1.0 + 0.1 * i for i in range(4)],
    "long_factor": [1.5 + i for i in range(4)],
    "original_max_position_embeddings": ORIGINAL,
}
Tensors = dict[str, torch.Tensor]


def swap(*pairs: tuple[str, str]) -> Callable[[Tensors], Tensors]:
    """Replace parts of names, in order."""

    def translate(tensors: Tensors) -> Tensors:
        for theirs, ours in (("model.", ""), *pairs):
            tensors = {name.replace(theirs, ours): tensor for name, tensor in tensors.items()}
        return tensors

    return translate


def split(tensors: Tensors, fused: str, sizes: dict[str, int], *, dim: int = 0) -> Tensors:
    """Cut each tensor that has `fused` in its name into the named pieces along `dim`."""
    out = {}
    for name, tensor in tensors.items():
        if fused in name:
            pieces = tensor.split(list(sizes.values()), dim=dim)
            out |= {name.replace(fused, piece): part for piece, part in zip(sizes, pieces, strict=True)}
        else:
            out[name] = tensor
    return out


def from_gpt2(tensors: Tensors) -> Tensors:
    tensors = {
        name: tensor.T if re.search(r"(c_attn|c_proj|c_fc)\.weight", name) else tensor for name, tensor in tensors.items()
    }
    pairs = [("transformer.h.", "layers."), ("transformer.wte", "embed_tokens"), ("transformer.wpe", "embed_positions")]
    pairs += [("transformer.ln_f", "norm"), ("ln_1", "input_layernorm"), ("ln_2", "post_attention_layernorm")]
    pairs += [("mlp.c_fc", "mlp.up_proj"), ("mlp.c_proj", "mlp.down_proj"), ("attn.c_proj", "self_attn.o_proj")]
    tensors = swap(*pairs)(tensors)
    names = (f"self_attn.{x}_proj" for x in "qkv")
    return split(tensors, "attn.c_attn", dict.fromkeys(names, HIDDEN))


def from_phi3(tensors: Tensors) -> Tensors:
    tensors = split(swap()(tensors), "qkv_proj", {"q_proj": HIDDEN, "k_proj": 32, "v_proj": 32})
    return split(tensors, "gate_up_proj", {"gate_proj": 72, "up_proj": 72})


def from_cohere(tensors: Tensors) -> Tensors:
    """Its rotation pairs neighbours; rows in another order make them halves."""
    return {
        name: tensor.unflatten(0, (-1, HEAD_DIM // 2, 2)).transpose(1, 2).flatten(0, 2)
        if re.search("[qk]_proj", name)
        else tensor
        for name, tensor in swap()(tensors).items()
    }


def experts(width: int, *pairs: tuple[str, str]) -> Callable[[Tensors], Tensors]:
    def translate(tensors: Tensors) -> Tensors:
        return split(
            swap(*pairs)(tensors), "experts.gate_up_proj", {"experts.gate_proj": width, "experts.up_proj": width}, dim=1
        )

    return translate


def from_granite_moe(tensors: Tensors) -> Tensors:
    pairs = [("block_sparse_moe.router", "mlp.gate"), ("block_sparse_moe.experts", "mlp.experts")]
    pairs += [("shared_mlp.output_linear", "mlp.shared_expert.down_proj")]
    tensors = experts(72, *pairs)(tensors)
    names = {f"mlp.shared_expert.{x}_proj": 40 for x in ("gate", "up")}
    return split(tensors, "shared_mlp.input_linear", names)


@attrs.frozen
class Case:
    """A transformers class, its config, and ours; what is in both is given once."""

    model: str
    ours: dict[str, Any]
    theirs: dict[str, Any]
    translate: Callable[[Tensors], Tensors] = attrs.field(factory=swap)
    drop: tuple[str, ...] = ()
    """Arguments of `SIZES` that the class does not have."""
    add_one: bool = False
    """Whether norms hold the difference from one, where our config has no offset for it."""
    vanishing: tuple[str, ...] = ()
    """Endings of names whose gradient is zero by mathematics."""

    def reference(self) -> torch.nn.Module:
        made = getattr(transformers, self.model)
        sizes = {name: value for name, value in SIZES.items() if name not in self.drop}
        config = made.config_class(**(sizes | self.theirs))
        config._attn_implementation = "eager"
        return randomize(made(config)).eval()

    def config(self) -> DecoderConfig:
        return DecoderConfig(**(SIZES | {"rms_norm_eps": None if self.ours.get("norm") == "layer" else 1e-5} | self.ours))


def rope(theta: float = 1e4, **scaling: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": "default", "rope_theta": theta} | scaling}


EPS = {"rms_norm_eps": 1e-5}
LLAMA = EPS | rope()
LAYER = {"norm": "layer", "layer_norm_eps": 1e-5, "rope_theta": 1e4}
BIASES = {"attention_bias": True, "attention_output_bias": True, "mlp_bias": True}
ROPE = {"rope_theta": 1e4}


def llama(ours: dict[str, Any], theirs: dict[str, Any]) -> Case:
    return Case("LlamaForCausalLM", ROPE | ours, LLAMA | theirs)


def scaled(scaling: dict[str, Any]) -> Case:
    return llama({"rope_scaling": scaling}, rope(**scaling))


GRANITE = {
    "embedding_multiplier": 3.0,
    "residual_multiplier": 0.4,
    "logits_scaling": 2.5,
    "attention_multiplier": 0.11,
}
GEMMA = {
    "hidden_act": "gelu_pytorch_tanh",
    "norm_offset": 1.0,
    "norm_position": "both",
    "scale_embedding": True,
    "query_pre_attn_scalar": 24,
    "sliding_window": WINDOW,
    "layer_types": LAYER_TYPES,
    "tie_word_embeddings": True,
}
GEMMA_THEIRS = EPS | {
    "head_dim": HEAD_DIM,
    "hidden_activation": "gelu_pytorch_tanh",
    **{name: GEMMA[name] for name in ("query_pre_attn_scalar", "sliding_window", "layer_types", "tie_word_embeddings")},
}
CAPS = {"attn_logit_softcapping": 1.5, "final_logit_softcapping": 2.0}
LINEAR = {"rope_type": "linear", "factor": 4.0}
PHI3_ROPE = rope(partial_rotary_factor=0.5, **LONGROPE)
QWEN_MOE = {
    "num_experts": 6,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "shared_expert_intermediate_size": 40,
    "norm_topk_prob": False,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [1],
    "router_aux_loss_coef": 0.01,
}

CASES = {
    "qwen3": Case("Qwen3ForCausalLM", ROPE | {"head_dim": 24, "qk_norm": "head"}, LLAMA | {"head_dim": 24}),
    "olmo2": Case("Olmo2ForCausalLM", ROPE | {"qk_norm": "projection", "norm_position": "post"}, LLAMA | {"pad_token_id": 0}),
    "gemma2": Case("Gemma2ForCausalLM", ROPE | GEMMA | CAPS, rope() | GEMMA_THEIRS | CAPS),
    "gemma3": Case(
        "Gemma3ForCausalLM",
        GEMMA | {"rope_theta": 1e6, "rope_local_base_freq": 100.0, "rope_scaling": LINEAR, "qk_norm": "head"},
        GEMMA_THEIRS
        | {
            "rope_parameters": {
                "full_attention": {"rope_theta": 1e6, **LINEAR},
                "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
            }
        },
    ),
    "mistral": Case(
        "MistralForCausalLM",
        ROPE | {"sliding_window": WINDOW, "layer_types": ["sliding_attention"] * 3},
        LLAMA | {"sliding_window": WINDOW},
    ),
    "phi": Case(
        "PhiForCausalLM",
        LAYER
        | BIASES
        | {"hidden_act": "gelu_new", "gated_mlp": False, "parallel_residual": True, "lm_head_bias": True}
        | {"partial_rotary_factor": 0.5},
        {"layer_norm_eps": 1e-5} | rope(partial_rotary_factor=0.5),
        swap(("dense", "o_proj"), ("fc1", "up_proj"), ("fc2", "down_proj"), ("final_layernorm", "norm")),
    ),
    "gpt2": Case(
        "GPT2LMHeadModel",
        LAYER
        | BIASES
        | {"hidden_act": "gelu_new", "gated_mlp": False, "learned_positions": True, "rope_theta": None}
        | {"tie_word_embeddings": True, "num_key_value_heads": HEADS},
        {"n_embd": HIDDEN, "n_layer": 3, "n_head": HEADS, "n_inner": 72, "n_positions": 64, "tie_word_embeddings": True},
        from_gpt2,
        drop=("hidden_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings", "num_key_value_heads"),
        vanishing=("k_proj.bias",),
    ),
    "starcoder2": Case(
        "Starcoder2ForCausalLM",
        LAYER
        | BIASES
        | {"hidden_act": "gelu_pytorch_tanh", "gated_mlp": False}
        | {"sliding_window": WINDOW, "layer_types": ["sliding_attention"] * 3},
        {"norm_epsilon": 1e-5, "use_bias": True, "sliding_window": WINDOW} | rope(),
        swap(("c_fc", "up_proj"), ("c_proj", "down_proj")),
    ),
    "granite": Case("GraniteForCausalLM", ROPE | GRANITE, LLAMA | GRANITE),
    "cohere": Case(
        "CohereForCausalLM",
        LAYER | {"norm_bias": False, "parallel_residual": True, "logit_scale": 0.3, "tie_word_embeddings": True},
        {"layer_norm_eps": 1e-5, "logit_scale": 0.3, "tie_word_embeddings": True} | rope(),
        from_cohere,
    ),
    "smollm3": Case(
        "SmolLM3ForCausalLM",
        ROPE | {"no_rope_layers": [1, 0, 1]},
        LLAMA | {"no_rope_layers": [1, 0, 1], "pad_token_id": 0},
    ),
    "nemotron": Case(
        "NemotronForCausalLM",
        LAYER | {"hidden_act": "relu2", "gated_mlp": False, "partial_rotary_factor": 0.5},
        {"norm_eps": 1e-5} | rope(partial_rotary_factor=0.5),
        add_one=True,
    ),
    "phi3": Case(
        "Phi3ForCausalLM",
        ROPE | {"partial_rotary_factor": 0.5, "rope_scaling": LONGROPE},
        EPS | {"original_max_position_embeddings": ORIGINAL, "pad_token_id": 0} | PHI3_ROPE,
        from_phi3,
    ),
    "mixtral": Case(
        "MixtralForCausalLM",
        ROPE | {"num_experts": 4, "num_experts_per_tok": 2},
        LLAMA | {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None},
        experts(72),
    ),
    "qwen2-moe": Case("Qwen2MoeForCausalLM", ROPE | QWEN_MOE | {"attention_bias": True}, LLAMA | QWEN_MOE, experts(24)),
    "qwen2-moe, every second layer": Case(
        "Qwen2MoeForCausalLM",
        ROPE | QWEN_MOE | {"attention_bias": True, "decoder_sparse_step": 2, "mlp_only_layers": []},
        LLAMA | QWEN_MOE | {"decoder_sparse_step": 2, "mlp_only_layers": []},
        experts(24),
    ),
    "granite-moe": Case(
        "GraniteMoeSharedForCausalLM",
        ROPE
        | GRANITE
        | {"num_experts": 4, "num_experts_per_tok": 3, "shared_expert_intermediate_size": 40, "shared_expert_gate": False},
        LLAMA | GRANITE | {"num_local_experts": 4, "num_experts_per_tok": 3, "shared_intermediate_size": 40},
        from_granite_moe,
    ),
    "linear": scaled({"rope_type": "linear", "factor": 3.0}),
    "yarn": scaled(YARN),
    "yarn, its factor given": scaled(YARN | {"attention_factor": 1.3, "truncate": False}),
    "yarn, of two mscales": scaled(YARN | {"mscale": 1.5, "mscale_all_dim": 0.7}),
    "yarn, a ramp of no width": scaled(YARN | {"beta_fast": 1e-3, "beta_slow": 1e-3}),
    "longrope, its factor given": scaled(
        LONGROPE | {"short_factor": [1.0] * 8, "long_factor": [1.0 + i for i in range(8)], "factor": 8.0}
    ),
    **{name: llama({"hidden_act": name}, {"hidden_act": name}) for name in ("gelu", "relu", "relu2", "gelu_new")},
}


def test_every_field_of_an_architecture_is_in_some_case():
    configs = [case.config() for case in CASES.values()]
    quiet = [item for item in attrs.fields(DecoderConfig) if item.metadata.get(QUIET)]
    assert [item.name for item in quiet if all(getattr(config, item.name) == item.default for config in configs)] == []


def tokens(length: int = LENGTH, batch: int = 2) -> torch.Tensor:
    return torch.randint(1, 61, (batch, length), generator=torch.Generator().manual_seed(1))


def decoder(case: Case, reference: torch.nn.Module, backend: str = "eager") -> Decoder:
    """Ours with the reference's weights, none left over and none missing."""
    model = Decoder(case.config(), load_backend(backend))
    state = case.translate(dict(reference.named_parameters()))
    if case.add_one:
        state = {name: tensor + 1 if "norm.weight" in name else tensor for name, tensor in state.items()}
    model.to(next(reference.parameters()).dtype).load_state_dict(state)
    return model.eval()


def gradients(model: torch.nn.Module, logits: torch.Tensor, ids: torch.Tensor, extra: Any = 0.0) -> Tensors:
    loss = F.cross_entropy(logits.flatten(0, 1), ids.roll(-2, 1).flatten()) + extra
    named = dict(model.named_parameters())
    return dict(zip(named, torch.autograd.grad(loss, list(named.values())), strict=True))


def compare(case: Case, reference: torch.nn.Module, ids: torch.Tensor, tolerance: float, backend: str = "eager") -> None:
    model = decoder(case, reference, backend)
    ours, theirs = model(ids, mask=Causal()), reference(input_ids=ids).logits
    check_agreement({"logits": ours}, {"logits": theirs}, tolerance=tolerance, where=case.model)
    mine, other = gradients(model, ours, ids), case.translate(gradients(reference, theirs, ids))
    for name in [name for name in mine if name.endswith(case.vanishing or ("nothing",))]:
        assert max(mine.pop(name).abs().max(), other.pop(name).abs().max()) < tolerance
    check_agreement(mine, other, tolerance=tolerance, where=f"{case.model}, gradients")


@pytest.mark.parametrize("name", CASES)
def test_logits_and_gradients_equal_transformers_in_float64(name):
    reference = compute_in_float64(CASES[name].reference())
    for length in (LENGTH, ORIGINAL - 2):
        compare(CASES[name], reference, tokens(length), FLOAT64)


@pytest.mark.parametrize("name", CASES)
def test_logits_and_gradients_equal_transformers_in_float32(name):
    case, config = CASES[name], CASES[name].config()
    request = Request.for_config(config, device="cpu", dtype="F32", mask="causal")
    backends = [backend for backend in ("eager", "sdpa") if load_backend(backend).supports(request) is None]
    assert "eager" in backends
    reference = case.reference()
    for backend in backends:
        compare(case, reference, tokens(), FLOAT32, backend)


@pytest.mark.parametrize("name", CASES)
def test_cached_pieces_give_the_logits_of_the_whole(name):
    model = decoder(CASES[name], CASES[name].reference()).double()
    expected = model(tokens(), mask=Causal())
    cache, pieces = KeyValueCache(3, LENGTH), []
    with torch.no_grad():
        for piece in tokens().split([ORIGINAL - 11, 1, 1, 14, 11], dim=1):
            pieces.append(model(piece, mask=Causal(cache.length), cache=cache))
    torch.testing.assert_close(torch.cat(pieces, 1), expected.detach(), rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("name", CASES)
def test_packed_documents_give_the_logits_of_each_alone(name):
    model = decoder(CASES[name], CASES[name].reference()).double()
    ids = tokens(64, batch=1)
    lengths = (20, 44)  # both past the window, the first within LongRoPE's original context, the second not
    numbers = torch.tensor([[0] * 20 + [1] * 44], dtype=torch.int32)
    positions = torch.tensor([[*range(20), *range(44)]])
    packed = model(ids, mask=Documents(numbers, (lengths,)), positions=positions)
    alone = [model(part, mask=Causal()) for part in ids.split(list(lengths), dim=1)]
    torch.testing.assert_close(packed, torch.cat(alone, 1), rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("name", CASES)
def test_recomputed_activations_give_the_same_gradients(name):
    case = CASES[name]
    plain, saving = (decoder(case, case.reference()) for _ in range(2))
    recompute_activations(saving)
    first, second = (gradients(model, model(tokens(), mask=Causal()), tokens()) for model in (plain, saving))
    assert all(torch.equal(second[name], grad) for name, grad in first.items())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # torch.compile's own, of itself
@pytest.mark.parametrize("name", ["gemma3", "qwen2-moe"])
def test_compiled_blocks_compute_the_same(name):
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    case = CASES[name]
    plain, compiled = (decoder(case, case.reference(), "sdpa") for _ in range(2))
    compile_blocks(compiled)
    first, second = (gradients(model, model(tokens(), mask=Causal()), tokens()) for model in (plain, compiled))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 1
    check_agreement(second, first, tolerance=FLOAT32, where=name)


def test_longrope_keeps_its_frequencies_through_a_generation():
    """The list is chosen for all that the cache can hold: keys of a short beginning fit queries beyond the context."""
    case = CASES["phi3"]
    model = decoder(case, case.reference()).double()
    ids = tokens(ORIGINAL + 1)
    start = ids[:, :8]
    with torch.no_grad():
        short, long = (model(start, mask=Causal(), cache=KeyValueCache(3, limit)) for limit in (ORIGINAL, ORIGINAL + 1))
        assert torch.equal(short, model(start, mask=Causal()))
        assert (short - long).abs().max() > 1e-3
        whole = model(ids, mask=Causal())
    torch.testing.assert_close(long, whole[:, :8], rtol=1e-10, atol=1e-11)


def test_longrope_is_chosen_by_the_longest_position_of_a_batch():
    model = decoder(CASES["phi3"], CASES["phi3"].reference()).double()
    ids = tokens(4, batch=1)
    short, long = (model(ids, mask=Causal(), positions=torch.tensor([[0, 1, 2, last]])) for last in (31, 32))
    assert (short[:, :3] - long[:, :3]).abs().max() > 1e-3


def test_learned_positions_end():
    model = decoder(CASES["gpt2"], CASES["gpt2"].reference())
    assert model(tokens(64), mask=Causal()).shape == (2, 64, 61)
    with pytest.raises(ConfigError, match="longer than the position table, expected at most 64 tokens, found 65"):
        model(tokens(65), mask=Causal())
    with pytest.raises(ConfigError, match="found 71"):
        model(tokens(3), mask=Causal(), positions=torch.tensor([[0, 1, 70]]))


def test_gemmas_factor_on_embeddings_is_rounded_to_their_dtype():
    case = CASES["gemma2"]
    reference = case.reference().bfloat16()
    model = decoder(case, reference)
    model.config = attrs.evolve(model.config, hidden_size=3072, head_dim=HEAD_DIM)  # √3072 is no bfloat16
    reference.model.embed_tokens.embed_scale.fill_(3072**0.5)
    ours = model._embed(tokens(), torch.arange(LENGTH)[None])
    assert torch.equal(ours, reference.model.embed_tokens(tokens()))
    assert torch.equal(ours, reference.model.embed_tokens.weight[tokens()] * 55.5)
