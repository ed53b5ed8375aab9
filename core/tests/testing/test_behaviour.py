"""Deliberate mistakes in mathematics, masks, cache, loss and start values: each is caught by the check that is named for it."""

import attrs
import pytest
import torch
from apr_train.family.decoder_config import DecoderConfig
from apr_train.model import encoder, init, loss, moe
from apr_train.model.attention import Causal, Documents
from apr_train.model.attention.dense import allowed
from apr_train.model.attention_layer import FullAttention, GroupedQueryAttention
from apr_train.model.cache import KeyValueCache
from apr_train.model.decoder import Decoder, DecoderBlock
from apr_train.model.mlp import MLP
from apr_train.model.norms import RMSNorm
from apr_train.testing import ConformanceError, check_family, installed_family
from apr_train.testing.behaviour import BEHAVIOUR, check_forward
from apr_train.testing.initial import check_seed, check_start
from apr_train.testing.plain import plain_logits
from apr_train.testing.report import Checks, NotCheckedError
from apr_train.testing.subject import Subject
from torch import nn
from torch.nn import functional as F

CHECKS = {name: check for name, check in BEHAVIOUR if name != "compile"} | {"start": check_start, "seed": check_seed}
CONFIG = {
    "qk_norm": "head",
    "sliding_window": 9,
    "layer_types": ("sliding_attention", "full_attention"),
    "attention_bias": True,
    "norm_offset": 1.0,
    "final_logit_softcapping": 20.0,
}


def report(family, config):
    """All checks that run the model, of one config."""
    checks = Checks(family.name)
    subject = Subject(family, config)
    for name, check in ({"forward": check_forward} | CHECKS).items():
        checks.run(name, "tiny", check, subject)
    return checks.report()


def decoder(toy, **changes):
    """The faulty checks of a toy decoder with a window, norms of q and k, offsets, biases and a cap."""
    family = toy()
    return report(family, attrs.evolve(family.build_config(preset="tiny"), **CONFIG | changes))


def masked_lm():
    family = installed_family("codebert")
    return report(family, family.build_config(preset="tiny"))


def mixture(toy):
    return decoder(toy, num_experts=4, num_experts_per_tok=2, router_aux_loss_coef=0.1)


def caught(found):
    return {outcome.check for outcome in found.outcomes if outcome.findings}


def test_sound_models_pass_every_check_and_say_what_was_not_checked(toy):
    whole = decoder(toy)
    assert whole.findings == ()
    assert set(whole.checked) == {*CHECKS, "forward"}
    assert mixture(toy).findings == ()
    encoded = masked_lm()
    assert encoded.findings == ()
    assert {outcome.check for outcome in encoded.not_checked} == {"cache", "prefill", "documents"}
    assert "cache, tiny: not checked: an encoder has no cache" in str(encoded)
    assert "padding, tiny: padded against alone" in str(encoded)


def shift_the_mask(monkeypatch):
    def shifted(mask, *arguments):
        moved = attrs.evolve(mask, offset=mask.offset + 1) if isinstance(mask, Causal) else mask
        return allowed(moved, *arguments)

    monkeypatch.setattr("apr_train.model.attention.eager.allowed", shifted)


def fill_the_cache_in_vain(monkeypatch):
    append = KeyValueCache.append

    def filled(self, layer, k, v):
        append(self, layer, k, v)
        start = self._lengths[layer] - k.shape[1]
        return torch.cat([k.new_zeros(k.shape[0], start, *k.shape[2:]), k], 1), torch.cat(
            [v.new_zeros(v.shape[0], start, *v.shape[2:]), v], 1
        )

    monkeypatch.setattr(KeyValueCache, "append", filled)


def leave_the_cache_empty(monkeypatch):
    monkeypatch.setattr(KeyValueCache, "append", lambda self, layer, k, v: (k, v))


def count_from_zero_behind_a_cache(monkeypatch):
    hidden_states = Decoder.hidden_states

    def counted(self, tokens, *, mask, positions=None, cache=None, losses=None):
        positions = torch.arange(tokens.shape[1])[None] if positions is None else positions
        return hidden_states(self, tokens, mask=mask, positions=positions, cache=cache, losses=losses)

    monkeypatch.setattr(Decoder, "hidden_states", counted)


def ignore_the_window_behind_a_cache(monkeypatch):
    masks = Decoder._masks

    def without(self, mask, queries, keys, device):
        made = masks(self, mask, queries, keys, device)
        return dict.fromkeys(made, made[None]) if queries < keys else made

    monkeypatch.setattr(Decoder, "_masks", without)


def ignore_the_window(monkeypatch):
    monkeypatch.setattr("apr_train.model.decoder.windowed", lambda mask, window: mask)


def ignore_the_documents(monkeypatch):
    masks = Decoder._masks

    def plain(self, mask, *rest):
        return masks(self, Causal() if isinstance(mask, Documents) else mask, *rest)

    monkeypatch.setattr(Decoder, "_masks", plain)


def take_the_first_rows_positions_for_all(monkeypatch):
    hidden_states = Decoder.hidden_states

    def first(self, tokens, *, mask, positions=None, cache=None, losses=None):
        positions = None if positions is None else positions[:1]
        return hidden_states(self, tokens, mask=mask, positions=positions, cache=cache, losses=losses)

    monkeypatch.setattr(Decoder, "hidden_states", first)


def leave_q_unnormed(monkeypatch):
    monkeypatch.setattr(GroupedQueryAttention, "prepare_heads", lambda self, q, k: (q, self.k_norm(k)))


def exchange_the_norms_of_q_and_k(monkeypatch):
    monkeypatch.setattr(GroupedQueryAttention, "prepare_heads", lambda self, q, k: (self.k_norm(q), self.q_norm(k)))


def another_epsilon_in_one_norm(monkeypatch):
    init = Decoder.__init__

    def changed(self, *arguments):
        init(self, *arguments)
        self.norm.eps *= 1.01

    monkeypatch.setattr(Decoder, "__init__", changed)


def forget_the_cap_in_the_loss(monkeypatch):
    step = loss._softmax_step_eager
    monkeypatch.setattr(loss, "_softmax_step_eager", lambda logits, targets, scale, cap: step(logits, targets, scale, None))


def forget_the_second_chunk(monkeypatch):
    add = loss._Gradients.add

    def once(self, rows, *arguments):
        if not self.started:
            add(self, rows, *arguments)
        else:
            self.hidden[rows] = 0

    monkeypatch.setattr(loss._Gradients, "add", once)


def let_the_mean_of_a_row_through(monkeypatch):
    forward = DecoderBlock.forward

    def leaky(self, x, rotary, mask, cache=None):
        return forward(self, x + 1e-4 * x.mean(0, keepdim=True), rotary, mask, cache)

    monkeypatch.setattr(DecoderBlock, "forward", leaky)


def change_with_every_call(monkeypatch):
    forward, calls = DecoderBlock.forward, []

    def counting(self, x, rotary, mask, cache=None):
        calls.append(1)
        return forward(self, x * (1 + 1e-5 * len(calls)), rotary, mask, cache)

    monkeypatch.setattr(DecoderBlock, "forward", counting)


def start_a_norm_at_one_with_an_offset(monkeypatch):
    monkeypatch.setattr(RMSNorm, "initial_value", lambda self, leaf: 1.0)


def start_matrices_with_a_constant(monkeypatch):
    constant = init._constant
    monkeypatch.setattr(init, "_constant", lambda owner, leaf: 0.02 if isinstance(owner, nn.Linear) else constant(owner, leaf))


def start_with_another_deviation(monkeypatch):
    fill = init.initialize
    monkeypatch.setattr("apr_train.model.decoder.initialize", lambda model, std, *rest: fill(model, 2 * std, *rest))


def leave_biases_as_memory_had_them(monkeypatch):
    constant = init._constant

    def other(owner, leaf):
        return 0.5 if leaf == "bias" else constant(owner, leaf)

    monkeypatch.setattr(init, "_constant", other)


def draw_all_matrices_alike(monkeypatch):
    fill = init._fill

    def again(owner, leaf, parameter, std, generator):
        fill(owner, leaf, parameter, std, torch.Generator().manual_seed(generator.initial_seed()))

    monkeypatch.setattr(init, "_fill", again)


def ignore_the_seed(monkeypatch):
    fill = init.initialize
    monkeypatch.setattr(
        "apr_train.model.decoder.initialize",
        lambda model, std, generator, names=None: fill(model, std, torch.Generator().manual_seed(5), names),
    )


def fill_more_than_was_asked_for(monkeypatch):
    fill = init.initialize
    monkeypatch.setattr(
        "apr_train.model.decoder.initialize", lambda model, std, generator, names=None: fill(model, std, generator)
    )


DECODER = {
    "causality": (shift_the_mask, "token 39 changes what comes before it"),
    "cache": (fill_the_cache_in_vain, "differs by .* from the whole row"),
    "cache of nothing": (leave_the_cache_empty, "after 20 tokens the cache holds 0"),
    "cache with positions": (count_from_zero_behind_a_cache, "differs by .* from the whole row"),
    "prefill with a window": (ignore_the_window_behind_a_cache, "differs by .* from the whole row"),
    "mathematics of a window": (ignore_the_window, "differs? by .* from the config's formulas"),
    "mathematics of a norm": (another_epsilon_in_one_norm, "differs by .* from the config's formulas"),
    "mathematics of q and k": (exchange_the_norms_of_q_and_k, "differs by .* from the config's formulas"),
    "documents": (ignore_the_documents, "document 1 of row 0, packed, differs"),
    "documents with positions": (take_the_first_rows_positions_for_all, "of row 1, packed, its positions counted from 0, diff"),
    "gradients": (leave_q_unnormed, r"layers\.0\.self_attn\.q_norm\.weight has no gradient"),
    "padding": (let_the_mean_of_a_row_through, "a padded row differs"),
    "loss": (forget_the_cap_in_the_loss, "loss differs by .* from the cross entropy of logits"),
    "loss in chunks": (forget_the_second_chunk, "gradient of hidden states differs"),
    "recompute": (change_with_every_call, "with recompute, "),
    "start of a norm": (start_a_norm_at_one_with_an_offset, "is no neutral norm"),
    "start of a matrix": (start_matrices_with_a_constant, r"is constant \(0\.02\)"),
    "start with a deviation": (start_with_another_deviation, r"deviation of 0\.0\d+, expected 0\.02"),
    "start of a bias": (leave_biases_as_memory_had_them, "does not start at zero"),
    "start of all alike": (draw_all_matrices_alike, "starts with the numbers of"),
    "seed": (ignore_the_seed, "is the same for another seed"),
    "seed of one parameter": (fill_more_than_was_asked_for, "is filled where"),
}


@pytest.mark.parametrize("name", DECODER)
def test_mistake_in_a_decoder_is_caught_by_its_check(toy, monkeypatch, name):
    spoil, message = DECODER[name]
    spoil(monkeypatch)
    found = decoder(toy)
    check = name.split()[0]
    assert check in caught(found), str(found)
    with pytest.raises(ConformanceError, match=f"toy {check}, tiny: .*{message}"):
        found.raise_faults()


def test_detached_head_is_caught_where_nothing_else_feeds_the_matrix(toy, monkeypatch):
    monkeypatch.setattr(Decoder, "head_weight", property(lambda self: self.lm_head.weight.detach()))
    assert "gradients" in caught(decoder(toy, tie_word_embeddings=False))


def attend_to_padding(monkeypatch):
    monkeypatch.setattr("apr_train.model.attention.eager.allowed", lambda *arguments: None)


def look_back_only(monkeypatch):
    def causal(mask, queries, keys, device):
        return allowed(Causal(), queries, keys, device)

    monkeypatch.setattr("apr_train.model.attention.eager.allowed", causal)


def approximate_the_gelu(monkeypatch):
    monkeypatch.setattr(MLP, "forward", lambda self, x: self.down_proj(F.gelu(self.up_proj(x), approximate="tanh")))


def count_positions_from_zero(monkeypatch):
    monkeypatch.setattr(encoder, "position_ids", lambda tokens, pad: torch.arange(tokens.shape[1])[None])


def drop_no_attention(monkeypatch):
    forward = FullAttention.forward

    def undropped(self, x, mask):
        self.dropout = 0.0
        return forward(self, x, mask)

    monkeypatch.setattr(FullAttention, "forward", undropped)


def draw_the_padding(monkeypatch):
    def drawn(owner, leaf, parameter, std, generator):
        value = init._constant(owner, leaf)
        parameter.normal_(0.0, std, generator=generator) if value is None else parameter.fill_(value)

    monkeypatch.setattr(init, "_fill", drawn)


ENCODER = {
    "start of the padding": (draw_the_padding, "the row of the padding, 1, does not start at zero"),
    "padding": (attend_to_padding, "a padded row differs"),
    "causality": (look_back_only, "changes nothing at some place before it"),
    "mathematics": (approximate_the_gelu, "differs by .* from the config's formulas"),
    "mathematics of positions": (count_positions_from_zero, "differs by .* from the config's formulas"),
    "dropout": (drop_no_attention, "attention_probs_dropout_prob is 0.1, and training is not random"),
}


@pytest.mark.parametrize("name", ENCODER)
def test_mistake_in_an_encoder_is_caught_by_its_check(monkeypatch, name):
    spoil, message = ENCODER[name]
    spoil(monkeypatch)
    with pytest.raises(ConformanceError, match=f"codebert {name.split()[0]}, tiny: .*{message}"):
        masked_lm().raise_faults()


def weigh_experts_without_norming(monkeypatch):
    route = moe.SparseMLP.route

    def raw(self, x):
        weights, experts, probabilities = route(self, x)
        return weights * 0.9, experts, probabilities

    monkeypatch.setattr(moe.SparseMLP, "route", raw)


def balance_by_the_square(monkeypatch):
    balance = moe.load_balancing_loss
    monkeypatch.setattr("apr_train.model.decoder.load_balancing_loss", lambda *arguments: balance(*arguments) ** 2)


@pytest.mark.parametrize("spoil", [weigh_experts_without_norming, balance_by_the_square])
def test_mistake_in_a_mixture_is_caught(toy, monkeypatch, spoil):
    spoil(monkeypatch)
    assert "mathematics" in caught(mixture(toy))


def test_backend_that_forgets_the_window_is_caught(toy, monkeypatch):
    monkeypatch.setattr("apr_train.model.attention.sdpa._is_plain", lambda mask, queries, keys: isinstance(mask, Causal))
    monkeypatch.setattr("apr_train.model.attention.sdpa.hiding_window", lambda mask, queries: None)
    found = decoder(toy, final_logit_softcapping=None)
    assert caught(found) == {"backends"}
    assert "sdpa differs by" in found.findings[0].problem


@pytest.mark.parametrize(
    "changes",
    [
        {"norm": "layer", "layer_norm_eps": 1e-5, "rms_norm_eps": None, "norm_bias": False},
        {"parallel_residual": True},
        {"norm_position": "post", "qk_norm": "projection"},
        {"norm_position": "both", "residual_multiplier": 0.3, "embedding_multiplier": 3.0, "scale_embedding": True},
        {"partial_rotary_factor": 0.5, "query_pre_attn_scalar": 5.0, "attn_logit_softcapping": 2.0},
        {"learned_positions": True, "rope_theta": None, "gated_mlp": False, "mlp_bias": True, "hidden_act": "relu2"},
        {"tie_word_embeddings": False, "lm_head_bias": True, "logit_scale": 0.3, "no_rope_layers": (1, 0)},
        {"num_experts": 4, "num_experts_per_tok": 2, "norm_topk_prob": False, "shared_expert_intermediate_size": 12},
    ],
)
def test_plain_formulas_are_those_of_the_core(toy, changes):
    """Two independent spellings of the same formulas; transformers decides about both in the families' own tests."""
    family = toy()
    config = attrs.evolve(family.build_config(preset="tiny"), **changes)
    assert CHECKS["mathematics"](Subject(family, config))


def test_scaled_positions_are_left_to_the_comparison(toy):
    config = attrs.evolve(toy().build_config(preset="tiny"), rope_scaling={"rope_type": "linear", "factor": 2.0})
    with pytest.raises(NotCheckedError, match="scaled"):
        plain_logits(config, {}, torch.zeros(3, dtype=torch.int64))
    assert isinstance(config, DecoderConfig)


OWN = """
@hookimpl
def build_model(config, attention):
    from torch import nn
    from apr_train.model import Decoder, DecoderBlock, head_logits
    import torch

    class Block(DecoderBlock):
        {block}

    class Own(Decoder):
        {model}

    return Own(config, attention, block=Block)

@hookimpl
def map_tensor_names"""


def own(toy, block="pass", model="pass"):
    return toy("\n@hookimpl\ndef map_tensor_names", OWN.format(block=block, model=model))


def test_a_sound_model_of_a_familys_own_passes(toy):
    whole = check_family(own(toy))
    reasons = {outcome.check: outcome.reason for outcome in whole.not_checked}
    assert "compare_models" in reasons["mathematics"]
    assert "the card has no gguf_architectures" in reasons["GGUF rows"]
    assert "parameter_counts has no number" in reasons["parameter count"]
    assert {"causality", "cache", "documents", "compile"} <= set(whole.checked)


def test_logits_of_a_models_own_are_refused_by_name(toy):
    with pytest.raises(ConformanceError, match=r"toy model, tiny, build_model: Own .*logits is a function of the"):
        check_family(own(toy, model="def logits(self, hidden): return 2 * head_logits(self, hidden)"))


def test_block_that_is_another_when_compiled_is_caught(toy):
    block = (
        "def forward(self, x, *a):\n            return super().forward(x * (1.1 if torch.compiler.is_compiling() else 1), *a)"
    )
    with pytest.raises(ConformanceError, match=r"toy compile, tiny: captured by torch\.compile, loss differs"):
        check_family(own(toy, block=block))


def test_what_a_familys_code_raises_is_a_fault_of_every_check_that_it_stops(toy):
    with pytest.raises(ConformanceError, match="toy forward, tiny: raised ValueError: no") as caught:
        check_family(own(toy, model="def head_input(self, hidden): raise ValueError('no')"))
    assert {finding.subject for finding in caught.value.findings} == {"toy forward, tiny", "toy forward, untied"}


def test_faults_of_all_checks_are_told_together(toy, monkeypatch):
    shift_the_mask(monkeypatch)
    start_matrices_with_a_constant(monkeypatch)
    with pytest.raises(ConformanceError) as caught:
        check_family(toy("rope_theta=1e4", "rope_theta=1e4, hidden_act='gelu'"))
    checks = {finding.subject.split(",")[0] for finding in caught.value.findings}
    assert {"toy causality", "toy start", "toy mathematics"} <= checks
