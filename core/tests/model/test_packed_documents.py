"""Packed rows against the same documents one by one: losses and gradients in float64, padding included."""

import numpy as np
import pytest
import torch
from apr_train.data.batch import IGNORED, Batch
from apr_train.data.objectives import OBJECTIVES
from apr_train.data.packing import PackedRows
from apr_train.data.tokens import TokenFile
from apr_train.family.decoder_config import DecoderConfig
from apr_train.family.rope_scaling import LongRopeScaling
from apr_train.model.attention import Causal, Documents, load_backend
from apr_train.model.attention.masks import document_sizes
from apr_train.model.attention.sdpa import SdpaAttention
from apr_train.model.decoder import Decoder
from apr_train.model.loss import head_loss
from apr_train.testing import randomize

LENGTH, WINDOW, ORIGINAL = 48, 6, 16
LENGTHS = (30, 20, 17, 9, 9, 5, 2, 49)
"""Documents' tokens: some past the window and LongRoPE's context, some not; the last fills a row; the rest leave padding."""
ROPE = {"rms_norm_eps": 1e-6, "rope_theta": 100.0}
SLIDING = ["sliding_attention", "full_attention"]
FACTORS = {"short_factor": (1.0, 1.1, 1.2, 1.3), "long_factor": (1.5, 2.5, 3.5, 4.5)}
CASES = {
    "rotary": ROPE | {"num_key_value_heads": 4},
    "grouped queries": ROPE | {"num_key_value_heads": 2},
    "sliding windows": ROPE | {"num_key_value_heads": 2, "sliding_window": WINDOW, "layer_types": SLIDING},
    "learned positions": {"norm": "layer", "layer_norm_eps": 1e-5, "learned_positions": True, "rope_theta": None},
    "longrope": ROPE | {"rope_scaling": LongRopeScaling(**FACTORS, original_max_position_embeddings=ORIGINAL)},
}
BACKENDS = {"eager": load_backend("eager"), "sdpa": load_backend("sdpa"), "blocked": SdpaAttention(blocked=True)}
CAUSAL = OBJECTIVES["causal-lm"]


def model_of(case, backend):
    sizes = {"vocab_size": 61, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4}
    sizes |= {"intermediate_size": 40, "max_position_embeddings": 64, "tie_word_embeddings": False}
    return randomize(Decoder(DecoderConfig(**sizes | CASES[case]), backend)).double()


def documents():
    source = np.random.default_rng(0)
    return [source.integers(0, 61, size).tolist() for size in LENGTHS]


def loss_and_gradients(model, batches):
    """Sums over all targets of the batches."""
    model.zero_grad()
    total = 0.0
    for batch in batches:
        hidden, targets = CAUSAL.predicted(model, batch)
        loss = head_loss(model, hidden, targets)
        loss.backward()
        total += loss.item()
    return total, {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def alone(document):
    """A document as a row of its own, nothing said of documents or positions."""
    ids = np.array([document])
    return Batch.from_arrays(ids[:, :-1].copy(), ids[:, 1:].copy())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", CASES)
def test_packed_rows_have_the_loss_and_gradients_of_their_documents_alone(case, backend):
    model = model_of(case, BACKENDS[backend])
    rows = PackedRows(TokenFile.from_documents(documents()), LENGTH)
    assert 0 < rows.padding_share < 0.5
    packed = rows.batch([(0, number) for number in range(len(rows))])
    assert packed.target_count == sum(LENGTHS) - len(LENGTHS)
    loss, gradients = loss_and_gradients(model, [packed])
    expected, others = loss_and_gradients(model, [alone(document) for document in documents()])
    assert loss == pytest.approx(expected, rel=1e-13)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, others[name], rtol=1e-10, atol=1e-12, msg=name)


@pytest.mark.parametrize("case", ["learned positions", "longrope"])
def test_without_positions_these_models_see_where_in_a_row_a_document_is(case):
    """So the test above can fail: what rotary positions give by themselves, these do not."""
    model = model_of(case, BACKENDS["eager"])
    batch = PackedRows(TokenFile.from_documents(documents()[2:7]), LENGTH).batch([(0, 0)])
    mask = Documents(batch.document_ids, batch.document_lengths)
    with torch.no_grad():
        told, untold = (model.hidden_states(batch.tokens, mask=mask, positions=x) for x in (batch.positions, None))
    assert len(batch.document_lengths[0]) > 1
    assert (told - untold).abs().max() > 1e-3


def test_a_document_does_not_see_what_else_is_in_its_row():
    model = model_of("sliding windows", BACKENDS["sdpa"])
    batch = PackedRows(TokenFile.from_documents(documents()), LENGTH).batch([(0, 1)])
    first = batch.document_lengths[0][0]
    mask = CAUSAL.mask(batch)
    other = batch.tokens.clone()
    other[:, first:] = (other[:, first:] + 7) % 61
    with torch.no_grad():
        a, b = (model.hidden_states(x, mask=mask, positions=batch.positions) for x in (batch.tokens, other))
        row = model.hidden_states(batch.tokens[:, :first], mask=Causal())
    assert torch.equal(a[:, :first], b[:, :first])
    torch.testing.assert_close(a[:, :first], row, rtol=1e-10, atol=1e-12)
    assert not torch.equal(a[:, first:], b[:, first:])


def test_padding_is_computed_but_not_learnt_from():
    model = model_of("learned positions", BACKENDS["sdpa"])
    batch = PackedRows(TokenFile.from_documents(documents()[-2:-1]), LENGTH).batch([(0, 0)])
    hidden, targets = CAUSAL.predicted(model, batch)
    assert torch.isfinite(hidden).all()
    assert (targets != IGNORED).tolist() == [True] + [False] * (LENGTH - 1)


def test_the_sizes_of_documents_are_counted_row_by_row():
    ids = torch.tensor([[0, 0, 0, 1, 2, 2], [0, 1, 1, 1, 1, 2]], dtype=torch.int32)
    assert document_sizes(ids).tolist() == [[3, 3, 3, 1, 2, 2], [1, 4, 4, 4, 4, 1]]
