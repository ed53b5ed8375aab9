"""One way from hidden states to logits: a family's scale and cap reach training, evaluation, generation and comparison."""

from types import SimpleNamespace

import attrs
import numpy as np
import pytest
import torch
from apr_train.data.batch import IGNORED, Batch
from apr_train.data.objectives import OBJECTIVES
from apr_train.errors import PluginError
from apr_train.family.decoder_config import DecoderConfig
from apr_train.family.encoder_config import EncoderConfig
from apr_train.model import Bidirectional, Causal, Decoder, Encoder, KeyValueCache, head_logits
from apr_train.model.attention import load_backend
from apr_train.model.build import build_model
from apr_train.model.device import Precision
from apr_train.model.generation import generate_tokens, next_logits
from apr_train.model.loss import right_predictions
from apr_train.testing.agreement import our_logits
from apr_train.training.evaluation import held_out_loss
from apr_train.training.step import train_step
from torch.nn import functional as F

FLOAT64 = Precision(name="fp64", weights=torch.float64, autocast=None, kernel_dtype="F64")
SIZES = {"vocab_size": 61, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
SIZES |= {"max_position_embeddings": 32}
DECODER = DecoderConfig(**SIZES, num_key_value_heads=2, rope_theta=1e4, rms_norm_eps=1e-5, tie_word_embeddings=True)
ENCODER = EncoderConfig(**SIZES, type_vocab_size=1, layer_norm_eps=1e-5, pad_token_id=1, tie_word_embeddings=True)
SCALE, CAP = 0.4, 1.5


class Decoding(Decoder):
    """What a family writes for a head with a scale and a cap."""

    head_scale = SCALE
    head_softcap = CAP


class Encoding(Encoder):
    """The same for an encoder, whose head has a bias and layers in front of its matrix."""

    head_scale = SCALE
    head_softcap = CAP


def made(kind):
    """A float64 model of that kind, without dropout, whose logits reach far beyond the cap."""
    model = Decoding(DECODER, load_backend("eager")) if kind == "decoder" else Encoding(ENCODER, load_backend("eager"))
    model.double().eval().initialize(torch.Generator().manual_seed(0))
    with torch.no_grad():
        model.head_weight.mul_(60)
        if model.head_bias is not None:
            model.head_bias.normal_(generator=torch.Generator().manual_seed(1))
    return model


def batch(seed):
    tokens, targets = np.random.default_rng(seed).integers(2, 61, (2, 3, 10))
    targets[:, ::3] = IGNORED
    return Batch.from_arrays(tokens, targets)


def expected_logits(model, tokens):
    """The formula, from the hidden states; written out with each kind's own layers in front of the matrix."""
    mask = Causal() if isinstance(model, Decoder) else Bidirectional()
    x = model.hidden_states(tokens, mask=mask)
    if isinstance(model, Encoder):
        head = model.lm_head
        x = F.layer_norm(F.gelu(F.linear(x, head.dense.weight, head.dense.bias)), (32,), head.norm.weight, head.norm.bias, 1e-5)
    products = x @ model.head_weight.T + (0 if model.head_bias is None else model.head_bias)
    assert products.abs().max() * SCALE > 2 * CAP
    return CAP * torch.tanh(SCALE * products / CAP)


def cross_entropy(model, given, reduction="mean"):
    return F.cross_entropy(
        expected_logits(model, given.tokens).flatten(0, 1),
        given.targets.flatten(),
        ignore_index=IGNORED,
        reduction=reduction,
    )


@pytest.fixture(params=["decoder", "encoder"])
def kind(request):
    return request.param


@pytest.fixture
def objective(kind):
    return OBJECTIVES["causal-lm" if kind == "decoder" else "masked-lm"]


def test_logits_have_scale_and_cap(kind):
    model, tokens = made(kind), batch(0).tokens
    mask = Causal() if kind == "decoder" else Bidirectional()
    for logits in (model(tokens, mask=mask), our_logits(SimpleNamespace(info=SimpleNamespace(kind=kind)), model, tokens)):
        torch.testing.assert_close(logits, expected_logits(model, tokens), rtol=1e-12, atol=1e-12)


def test_training_has_scale_and_cap(kind, objective):
    model, reference, given = made(kind), made(kind), [batch(0), batch(1)]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    result = train_step(model, optimizer, given, objective=objective, precision=FLOAT64, clip_norm=0.0, step=1)
    loss = sum(cross_entropy(reference, one, "sum") for one in given) / sum(one.target_count for one in given)
    loss.backward()
    assert result.loss == pytest.approx(loss.item(), rel=1e-12)
    theirs = dict(reference.named_parameters())
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, theirs[name].grad, rtol=1e-9, atol=1e-12)


def test_evaluation_has_scale_and_cap(kind, objective):
    model, given = made(kind), batch(0)
    found = held_out_loss(model, [given], objective=objective, precision=FLOAT64)
    assert found.loss == pytest.approx(cross_entropy(model, given).item(), rel=1e-12)
    hidden, _ = objective.predicted(model, given)
    best = expected_logits(model, given.tokens).argmax(-1)
    best = best[given.targets != IGNORED] if kind == "encoder" else best.flatten()
    assert int(right_predictions(model, hidden, best)) == len(hidden)


def test_generation_has_scale_and_cap():
    model, ids, seen = made("decoder"), [7, 3, 11, 3, 60], []

    def best(logits):
        seen.append(logits)
        return int(logits.argmax())

    torch.testing.assert_close(
        next_logits(model, torch.tensor([ids]), KeyValueCache(2, 8)), expected_logits(model, torch.tensor([ids]))[0, -1]
    )
    options = {"precision": FLOAT64, "device": torch.device("cpu")}
    written = list(generate_tokens(model, ids, length=3, choose=best, **options))
    whole = expected_logits(model, torch.tensor([[*ids, *written]]))[0]
    for place, logits in enumerate(seen, len(ids) - 1):
        torch.testing.assert_close(logits, whole[place], rtol=1e-10, atol=1e-12)


def test_a_head_without_either_is_the_product_alone_to_the_last_bit():
    model, hidden = Decoder(DECODER, load_backend("eager")), torch.randn(3, 32)
    model.initialize(torch.Generator().manual_seed(0))
    assert torch.equal(head_logits(model, hidden), F.linear(hidden, model.embed_tokens.weight))


@pytest.mark.parametrize(
    ("values", "formula"),
    [
        ({"logits_scaling": 8.0}, lambda z: z / 8),
        ({"logit_scale": 0.25}, lambda z: z * 0.25),
        ({"final_logit_softcapping": 0.5}, lambda z: torch.tanh(z / 0.5) * 0.5),
        ({"logit_scale": 2.0, "final_logit_softcapping": 0.5}, lambda z: torch.tanh(z * 2 / 0.5) * 0.5),
    ],
)
def test_a_decoders_config_decides_scale_and_cap(values, formula):
    model = Decoder(attrs.evolve(DECODER, **values), load_backend("eager")).double()
    model.initialize(torch.Generator().manual_seed(0))
    hidden = torch.randn(5, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 10
    torch.testing.assert_close(model.logits(hidden), formula(hidden @ model.embed_tokens.weight.T), rtol=1e-12, atol=0)


class OwnLogits(Decoder):
    """A cap where training would not see it."""

    def logits(self, hidden):
        return 30 * torch.tanh(super().logits(hidden) / 30)


class OwnLogitsLater(Decoder):
    """The same, put on the object."""

    def __init__(self, config, attention):
        super().__init__(config, attention)
        self.logits = lambda hidden: 30 * torch.tanh(head_logits(self, hidden) / 30)


@pytest.mark.parametrize("own", [OwnLogits, OwnLogitsLater])
def test_logits_of_a_familys_own_are_refused_with_where_the_cap_belongs(own):
    with pytest.raises(PluginError) as caught:
        build_model(own, DECODER, load_backend("eager"))
    finding = caught.value.finding
    assert (finding.subject, finding.field) == (f"build_model: {own.__name__}", "logits")
    assert finding.expected == "logits = apr_train.model.head_logits"
    for member in ("head_weight", "head_bias", "head_scale", "head_softcap", "head_input"):
        assert member in finding.hint


def test_a_scale_and_a_cap_in_their_place_are_taken():
    assert isinstance(build_model(Decoding, DECODER, load_backend("eager")), Decoding)


class OldSignature(Decoder):
    """Cannot hand over a loss of its own."""

    def hidden_states(self, tokens, *, mask, positions=None, cache=None):
        return super().hidden_states(tokens, mask=mask, positions=positions, cache=cache)


class Passing(Decoder):
    """Passes on whatever comes."""

    def hidden_states(self, tokens, **options):
        return super().hidden_states(tokens, **options)


def test_hidden_states_that_cannot_be_called_as_the_protocol_says_are_refused():
    with pytest.raises(
        PluginError, match=r"build_model: OldSignature \[hidden_states\]: .*'losses'.*cache=None, losses=None\)"
    ):
        build_model(OldSignature, DECODER, load_backend("eager"))
    assert isinstance(build_model(Passing, DECODER, load_backend("eager")), Passing)


@attrs.frozen(kw_only=True)
class WiderDecoder(DecoderConfig):
    """A family's config with an activation that the core does not compute."""

    ACTIVATIONS = (*DecoderConfig.ACTIVATIONS, "swish_of_its_own")


@attrs.frozen(kw_only=True)
class WiderEncoder(EncoderConfig):
    """The same for an encoder."""

    ACTIVATIONS = (*EncoderConfig.ACTIVATIONS, "swish_of_its_own")


@pytest.mark.parametrize(("base", "wider", "model"), [(DECODER, WiderDecoder, Decoder), (ENCODER, WiderEncoder, Encoder)])
def test_a_familys_own_config_widens_the_activations_for_its_own_module_only(base, wider, model):
    values = {item.name: getattr(base, item.name) for item in attrs.fields(type(base))}
    config = wider(**values | {"hidden_act": "swish_of_its_own"})

    class Own(model):
        """Would compute it."""

        def __init__(self, config, attention):
            super().__init__(base, attention)

    assert isinstance(build_model(Own, config, load_backend("eager")), Own)
    message = r"build_model \[hidden_act\]: the core does not compute this activation, .*, found swish_of_its_own"
    with pytest.raises(PluginError, match=message):
        build_model(None, config, load_backend("eager"))
