"""The assembled decoder and encoder: equality with transformers, cache, packing, checkpointing, meta device, start values."""

import logging
import math

import pytest
import torch
from apr_train.errors import ConfigError, PluginError
from apr_train.family.config import ModelConfig
from apr_train.family.decoder_config import DecoderConfig
from apr_train.family.encoder_config import EncoderConfig
from apr_train.model.attention import Bidirectional, Causal, Documents, load_backend
from apr_train.model.attention_layer import GroupedQueryAttention
from apr_train.model.build import build_model, recompute_activations
from apr_train.model.cache import KeyValueCache
from apr_train.model.decoder import Decoder, DecoderBlock
from apr_train.model.encoder import Encoder, position_ids
from apr_train.model.protocol import LanguageModel
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaConfig, LlamaForCausalLM, RobertaConfig, RobertaForMaskedLM

logging.getLogger("transformers").setLevel(logging.ERROR)
VOCAB, PAD = 61, 1


def decoder_config(**changes):
    values = {
        "vocab_size": VOCAB,
        "hidden_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "intermediate_size": 40,
        "max_position_embeddings": 1024,
        "rope_theta": 1e6,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
    }
    return DecoderConfig(**(values | changes))


def encoder_config(**changes):
    values = {
        "vocab_size": VOCAB,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "max_position_embeddings": 34,
        "type_vocab_size": 1,
        "layer_norm_eps": 1e-5,
        "pad_token_id": PAD,
        "tie_word_embeddings": True,
    }
    return EncoderConfig(**(values | changes))


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def shake(model):
    """Give every parameter, biases and norms too, a value that a mistake would show."""
    generator = seeded(5)
    for parameter in model.parameters():
        parameter.data.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model


def decoder(config, backend="sdpa"):
    model = Decoder(config, load_backend(backend))
    model.initialize(seeded())
    return shake(model)


def relative(ours, theirs):
    return ((ours - theirs).norm() / theirs.norm().clamp(min=1e-30)).item()


def tokens(length, batch=2):
    return torch.randint(2, VOCAB, (batch, length), generator=seeded(1))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("tied", [False, True])
def test_decoder_equals_transformers_llama(tied, bias):
    config = decoder_config(
        tie_word_embeddings=tied, attention_bias=bias, attention_output_bias=bias, mlp_bias=bias, head_dim=16
    )
    model = decoder(config)
    other = LlamaForCausalLM(
        LlamaConfig(
            **{
                name: getattr(config, name)
                for name in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")
            },
            **{name: getattr(config, name) for name in ("num_key_value_heads", "intermediate_size", "head_dim", "mlp_bias")},
            max_position_embeddings=1024,
            rms_norm_eps=config.rms_norm_eps,
            rope_parameters={"rope_theta": 1e6, "rope_type": "default"},
            tie_word_embeddings=tied,
            attention_bias=bias,
        )
    )
    names = {name if name.startswith("lm_head") else f"model.{name}": name for name, _ in model.named_parameters()}
    state = model.state_dict()
    report = other.load_state_dict({theirs: state[ours] for theirs, ours in names.items()}, strict=False)
    assert report.unexpected_keys == []
    assert report.missing_keys == (["lm_head.weight"] if tied else [])
    ids = tokens(700)
    ours, theirs = model(ids, mask=Causal()), other(ids).logits
    assert relative(ours, theirs) < 1e-5
    ours.square().mean().backward()
    theirs.square().mean().backward()
    grads = dict(other.named_parameters())
    worst = {name: relative(model.get_parameter(name).grad, grads[far].grad) for far, name in names.items()}
    assert max(worst.values()) < 2e-5, worst


def roberta(model, tied):
    """transformers' model with the same weights, by an explicit table."""
    config = model.config
    other = RobertaForMaskedLM(
        RobertaConfig(
            **{
                name: getattr(config, name)
                for name in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")
            },
            intermediate_size=config.intermediate_size,
            max_position_embeddings=config.max_position_embeddings,
            type_vocab_size=1,
            layer_norm_eps=config.layer_norm_eps,
            pad_token_id=PAD,
            tie_word_embeddings=tied,
        )
    ).eval()
    table = {name: roberta_name(name) for name, _ in model.named_parameters()}
    theirs = dict(other.named_parameters())
    if not tied:  # transformers then has two head biases, and uses the decoder's
        table["lm_head.bias"] = "lm_head.decoder.bias"
        del theirs["lm_head.bias"]
    for name, far in table.items():
        theirs[far].data.copy_(model.get_parameter(name).data)
    assert set(theirs) == set(table.values())
    return other, table


def roberta_name(name):
    for ours, far in (
        ("embeddings.norm", "roberta.embeddings.LayerNorm"),
        ("lm_head.norm", "lm_head.layer_norm"),
        ("attention_norm", "attention.output.LayerNorm"),
        ("mlp_norm", "output.LayerNorm"),
        ("mlp.up_proj", "intermediate.dense"),
        ("mlp.down_proj", "output.dense"),
        ("attention.q_proj", "attention.self.query"),
        ("attention.k_proj", "attention.self.key"),
        ("attention.v_proj", "attention.self.value"),
        ("attention.o_proj", "attention.output.dense"),
    ):
        name = name.replace(ours, far)
    if name.startswith("layers."):
        name = name.replace("layers.", "roberta.encoder.layer.", 1)
    return name if name.startswith(("roberta.", "lm_head.")) else f"roberta.{name}"


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("backend", ["eager", "sdpa"])
def test_encoder_equals_transformers_roberta_with_padding(backend, tied):
    model = Encoder(encoder_config(tie_word_embeddings=tied), load_backend(backend)).eval()
    model.initialize(seeded())
    shake(model)
    other, table = roberta(model, tied)
    ids = tokens(32)
    ids[1, 20:] = PAD
    keep = ids != PAD
    ours = model(ids, mask=Bidirectional(keep))
    theirs = other(ids, attention_mask=keep.long()).logits
    assert relative(ours[keep], theirs[keep]) < 1e-5
    ours[keep].square().mean().backward()
    theirs[keep].square().mean().backward()
    grads = dict(other.named_parameters())
    # A key bias shifts every score of a query alike: its true gradient is zero, and both are rounding noise.
    names = [name for name in table if not name.endswith("k_proj.bias")]
    worst = {name: relative(model.get_parameter(name).grad, grads[table[name]].grad) for name in names}
    assert max(worst.values()) < 2e-5, worst


def test_positions_skip_padding():
    assert position_ids(torch.tensor([[5, 6, PAD, PAD], [PAD, 7, 8, 9]]), PAD).tolist() == [[2, 3, 1, 1], [1, 2, 3, 4]]


def test_encoder_refuses_more_tokens_than_positions():
    model = Encoder(encoder_config(), load_backend("eager"))
    with pytest.raises(ConfigError, match="expected at most 32 tokens, found 33"):
        model(tokens(33), mask=Bidirectional())


def test_encoder_drops_out_in_training_only():
    model = Encoder(encoder_config(), load_backend("sdpa"))
    model.initialize(seeded())
    ids = tokens(20)
    torch.manual_seed(0)
    assert not torch.equal(model(ids, mask=Bidirectional()), model(ids, mask=Bidirectional()))
    model.eval()
    assert torch.equal(model(ids, mask=Bidirectional()), model(ids, mask=Bidirectional()))


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
def test_cached_generation_gives_the_uncached_logits(backend):
    model = decoder(decoder_config(), backend).double()
    ids = tokens(30)
    expected = model(ids, mask=Causal())
    cache = KeyValueCache(2, 30)
    pieces = []
    with torch.no_grad():
        for piece in ids.split([11, 1, 1, 7, 10], dim=1):
            pieces.append(model(piece, mask=Causal(cache.length), cache=cache))
    assert cache.length == 30
    torch.testing.assert_close(torch.cat(pieces, 1), expected.detach(), rtol=1e-10, atol=1e-12)


def test_a_full_cache_is_an_error():
    with pytest.raises(ConfigError, match="cache is full, expected ≤ 4 tokens, found 5"):
        KeyValueCache(1, 4).append(0, torch.zeros(1, 5, 1, 2), torch.zeros(1, 5, 1, 2))


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
def test_packed_documents_give_the_logits_of_each_alone(backend):
    model = decoder(decoder_config(), backend).double()
    ids = tokens(12, batch=1)
    numbers = torch.tensor([[0] * 5 + [1] * 7], dtype=torch.int32)
    positions = torch.tensor([[*range(5), *range(7)]])
    packed = model(ids, mask=Documents(numbers, ((5, 7),)), positions=positions)
    alone = [model(part, mask=Causal()) for part in ids.split([5, 7], dim=1)]
    torch.testing.assert_close(packed, torch.cat(alone, 1), rtol=1e-10, atol=1e-12)


def test_recomputed_activations_give_the_same_gradients_under_the_same_names():
    plain, saving = (decoder(decoder_config()) for _ in range(2))
    recompute_activations(saving)
    for model in (plain, saving):
        model(tokens(20), mask=Causal()).square().mean().backward()
    theirs = dict(plain.named_parameters())
    assert list(theirs) == [name for name, _ in saving.named_parameters()]
    assert all(torch.equal(parameter.grad, theirs[name].grad) for name, parameter in saving.named_parameters())


def test_tied_head_is_one_parameter_in_one_storage():
    model = decoder(decoder_config())
    assert model.head_weight is model.embed_tokens.weight
    assert not any("lm_head" in name for name, _ in model.named_parameters())
    assert "lm_head.weight" in dict(decoder(decoder_config(tie_word_embeddings=False)).named_parameters())


class Allocations(TorchDispatchMode):
    """Counts the bytes that operations put on real devices."""

    def __init__(self):
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor) and not out.is_meta:
            self.bytes += out.untyped_storage().nbytes()
        return out


def test_a_32b_decoder_is_built_without_memory():
    config = decoder_config(
        vocab_size=152064,
        hidden_size=5120,
        num_hidden_layers=64,
        num_attention_heads=40,
        num_key_value_heads=8,
        intermediate_size=27648,
        attention_bias=True,
        tie_word_embeddings=False,
    )
    with Allocations() as allocations:
        model = build_model(None, config, load_backend("sdpa"))
    assert allocations.bytes == 0
    assert sum(parameter.numel() for parameter in model.parameters()) == 32_763_876_352
    assert list(model.buffers()) == []


@pytest.mark.parametrize("make", [decoder_config, encoder_config])
def test_built_models_satisfy_the_protocol_and_run_after_materialising(make):
    config = make()
    model = build_model(None, config, load_backend("sdpa"))
    assert isinstance(model, LanguageModel)
    model.to_empty(device="cpu")
    model.initialize(seeded())
    mask = Causal() if isinstance(config, DecoderConfig) else Bidirectional()
    assert torch.isfinite(model(tokens(8), mask=mask)).all()
    assert len(model.blocks) == config.num_hidden_layers


def test_start_values_are_those_of_the_papers():
    model = build_model(
        None, decoder_config(hidden_size=192, attention_bias=True, initializer_range=0.03), load_backend("sdpa")
    )
    model.to_empty(device="cpu")
    model.initialize(seeded())
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            assert torch.equal(parameter, torch.zeros_like(parameter)), name
        elif "norm" in name:
            assert torch.equal(parameter, torch.ones_like(parameter)), name
        else:
            assert parameter.std().item() == pytest.approx(0.03, rel=0.05), name


def test_encoders_padding_rows_and_head_bias_start_at_zero():
    model = Encoder(encoder_config(), load_backend("eager"))
    model.initialize(seeded())
    embeddings = model.embeddings
    for table in (embeddings.word_embeddings, embeddings.position_embeddings):
        assert table.weight[PAD].abs().sum() == 0
        assert table.weight[PAD + 1].abs().sum() > 0
    assert model.head_bias.abs().sum() == 0


def test_start_values_depend_on_the_generator_alone():
    first, second, other = (Decoder(decoder_config(), load_backend("eager")) for _ in range(3))
    second.double()
    for model, seed in ((first, 3), (second, 3), (other, 4)):
        model.initialize(seeded(seed))
    theirs = dict(second.named_parameters())
    assert all(torch.equal(parameter.double(), theirs[name]) for name, parameter in first.named_parameters())
    assert not torch.equal(first.embed_tokens.weight, other.embed_tokens.weight)


def test_only_the_named_parameters_are_drawn_anew():
    model = decoder(decoder_config(tie_word_embeddings=False))
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    model.initialize(seeded(9), ["lm_head.weight", "norm.weight"])
    changed = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert changed == {"lm_head.weight", "norm.weight"}
    with pytest.raises(ConfigError, match=r"lm_hed\.weight: no such parameter.*lm_head\.weight"):
        model.initialize(seeded(), ["lm_hed.weight"])


class OwnNorm(torch.nn.Module):
    """A family's norm that is no subclass of any that the core knows."""

    def __init__(self, size):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(size))


class OwnOffsetNorm(OwnNorm):
    def initial_value(self, leaf):
        return {"weight": 0.0}[leaf]


class OwnMatrix(torch.nn.Module):
    """A matrix and a gate of its own: one drawn, one set."""

    def __init__(self):
        super().__init__()
        self.matrix, self.gate = torch.nn.Parameter(torch.zeros(40, 50)), torch.nn.Parameter(torch.zeros(()))

    def initial_value(self, leaf):
        return {"matrix": None, "gate": 0.5}[leaf]


def test_a_foreign_modules_parameters_start_as_it_says_or_not_at_all():
    model = decoder(decoder_config())
    model.norm = OwnNorm(48)
    before = model.embed_tokens.weight.detach().clone()
    with pytest.raises(ConfigError, match=r"norm\.weight: no rule says.*found OwnNorm\.weight.*initial_value\(self, leaf\)"):
        model.initialize(seeded(9))
    assert torch.equal(model.embed_tokens.weight, before)
    model.initialize(seeded(9), ["embed_tokens.weight"])  # what was read from a file needs no rule
    model.norm, model.own = OwnOffsetNorm(48), OwnMatrix()
    torch.nn.init.ones_(model.norm.weight)
    model.initialize(seeded())
    assert model.norm.weight.abs().sum() == 0
    assert model.own.matrix.std().item() == pytest.approx(0.02, rel=0.05)
    assert model.own.gate == 0.5


def test_a_matrix_of_a_foreign_module_is_not_guessed_either():
    model = decoder(decoder_config())
    model.heads_norm = OwnNorm((6, 8))
    with pytest.raises(ConfigError, match="heads_norm"):
        model.initialize(seeded())


@pytest.mark.parametrize("changes", [{"norm_offset": 1.0, "qk_norm": "head"}, {"norm": "layer", "layer_norm_eps": 1e-5}])
def test_norms_multiply_by_one_at_the_start(changes):
    changes = changes | ({"rms_norm_eps": None} if "norm" in changes else {})
    model = Decoder(decoder_config(norm_position="both", **changes), load_backend("eager"))
    for parameter in model.parameters():
        parameter.data.fill_(7.0)
    model.initialize(seeded())
    norms = [(name, p) for name, p in model.named_parameters() if "norm" in name]
    assert len(norms) == {"norm_offset": 2 * 6 + 1, "norm": 2 * (2 * 4 + 1)}[next(iter(changes))]
    for name, parameter in norms:
        offset = 0.0 if name.endswith("bias") else 1.0 - changes.get("norm_offset", 0.0)
        assert torch.equal(parameter, torch.full_like(parameter, offset)), name


class Doubled(GroupedQueryAttention):
    """What a family overrides: q and k before the rotation."""

    def prepare_heads(self, q, k):
        self.shapes = tuple(q.shape), tuple(k.shape)
        return 2 * q, k


class DoubledBlock(DecoderBlock):
    attention_class = Doubled


def test_a_familys_own_attention_and_block_take_the_cores_places():
    config = decoder_config()
    plain, own = Decoder(config, load_backend("eager")), Decoder(config, load_backend("eager"), block=DoubledBlock)
    shake(plain)
    own.load_state_dict(plain.state_dict())
    assert {type(block.self_attn) for block in own.blocks} == {Doubled}
    ours = own(tokens(9), mask=Causal())
    assert own.layers[1].self_attn.shapes == ((2, 9, 6, 8), (2, 9, 2, 8))
    for block in plain.layers:  # twice q is twice the rows of its projection
        block.self_attn.q_proj.weight.data.mul_(2)
    torch.testing.assert_close(ours, plain(tokens(9), mask=Causal()))


class Recorder(torch.nn.Module):
    """A block of a family's own, no subclass: it keeps what it is given."""

    def __init__(self, config, backend, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x, rotary, mask, cache=None):
        self.given = rotary, mask
        return x


def test_every_block_gets_its_layers_tables_and_mask_and_each_kind_is_made_once():
    config = decoder_config(
        num_hidden_layers=4,
        sliding_window=5,
        layer_types=["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
        rope_local_base_freq=100.0,
        no_rope_layers=[1, 1, 1, 0],
    )
    model = Decoder(config, load_backend("eager"), block=Recorder)
    model.initialize(seeded())
    model(tokens(9), mask=Causal())
    (first, near), (second, far), (third, near_too), (none, far_too) = (block.given for block in model.layers)
    assert (near.window, far.window) == (5, None)
    assert near is near_too
    assert far is far_too
    assert first is third
    assert none is None
    assert first[0][0, 3, 0, 1].item() == pytest.approx(math.cos(3 * 100 ** (-2 / 8)), abs=1e-6)
    assert second[0][0, 3, 0, 1].item() == pytest.approx(math.cos(3 * 1e6 ** (-2 / 8)), abs=1e-6)


class NotAModel(torch.nn.Module):
    """Lacks everything."""


def test_a_familys_own_module_is_taken_or_refused_by_what_it_lacks():
    config, backend = decoder_config(), load_backend("eager")
    own = build_model(lambda config, attention: Decoder(config, attention), config, backend)
    assert next(own.parameters()).is_meta
    with pytest.raises(PluginError, match=r"NotAModel without blocks.*head_weight"):
        build_model(lambda config, attention: NotAModel(), config, backend)
    with pytest.raises(PluginError, match="memory was allocated"):
        with_memory = decoder(config)
        build_model(lambda config, attention: with_memory, config, backend)


def test_a_config_that_is_neither_kind_needs_the_familys_module():
    values = {name: getattr(decoder_config(), name) for name in ("vocab_size", "hidden_size", "num_hidden_layers")}
    config = ModelConfig(
        **values, num_attention_heads=2, intermediate_size=4, max_position_embeddings=8, tie_word_embeddings=True
    )
    with pytest.raises(PluginError, match="found ModelConfig"):
        build_model(None, config, load_backend("eager"))
