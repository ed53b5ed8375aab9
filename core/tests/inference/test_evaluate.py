"""Measurements, against formulas written out from whole logits."""

import math

import pytest
from apr_train.data.batch import IGNORED
from apr_train.data.stream import validation_batches
from apr_train.data.tokens import TokenFile
from apr_train.errors import DataError
from apr_train.inference.evaluate import measure
from apr_train.model.attention.masks import Bidirectional, Causal
from torch.nn import functional as F

DOCUMENTS = ["def größe(x):\n    return x\n", "naïve = '数'\n" * 3, "two words\n", "class A:\n    pass\n" * 4]


def tokens_of(tokenizer, documents=DOCUMENTS):
    size = sum(len(text.encode()) for text in documents)
    return TokenFile.from_documents([[*tokenizer.encode(text), 0] for text in documents], text_bytes=size)


def batches(ready, tokens, **changes):
    shape = {"objective": ready.objective, "sequence_length": 16, "batch_size": 2, "tokenizer": ready.tokenizer}
    return list(validation_batches(tokens, **{**shape, **changes}))


def expected_nats(ready, batch):
    """`[batch, length]`: -log p of each target, zero where there is none."""
    mask = Causal() if ready.objective.kind == "decoder" else Bidirectional(batch.keep)
    logits = ready.model.logits(ready.model.hidden_states(batch.tokens, mask=mask))
    return F.cross_entropy(logits.transpose(1, 2).double(), batch.targets, reduction="none", ignore_index=IGNORED)


def test_loss_and_perplexity_are_the_mean_cross_entropy(make_ready, tokenizer, in_float64):
    ready = make_ready(precision=in_float64)
    rows = batches(ready, tokens_of(tokenizer))
    found = measure(ready, rows)
    count = sum(batch.target_count for batch in rows)
    expected = sum(float(expected_nats(ready, batch).sum()) for batch in rows) / count
    assert found.loss == pytest.approx(expected, rel=1e-12)
    assert found.perplexity == pytest.approx(math.exp(expected), rel=1e-12)
    assert found.targets == count == len(tokens_of(tokenizer)) - 1
    assert found.accuracy is None
    assert found.tokens_per_s > 0


def test_bits_per_byte_are_the_texts_cost_by_the_texts_bytes(make_ready, tokenizer, in_float64):
    ready = make_ready(precision=in_float64)
    rows = batches(ready, tokens_of(tokenizer))
    first = len(tokenizer.decode(tokenizer.encode(DOCUMENTS[0])[:1]).encode())  # the very first token is never predicted
    size = sum(len(text.encode()) for text in DOCUMENTS) - first
    nats = sum(float(expected_nats(ready, batch)[batch.targets > 0].sum()) for batch in rows)  # 0 is end-of-text
    found = measure(ready, rows)
    assert found.text_bytes == size
    assert found.bits_per_byte == pytest.approx(nats / math.log(2) / size, rel=1e-12)


def test_the_text_bytes_of_several_passes_add_up(make_ready, tokenizer):
    ready, tokens = make_ready(), tokens_of(tokenizer)
    assert measure(ready, batches(ready, tokens)).text_bytes == measure(ready, batches(ready, tokens, batch_size=9)).text_bytes


def test_a_uniform_guess_costs_the_same_in_every_cut_of_the_tokens(make_ready, tokenizer):
    """log2(vocabulary) bits a token, whatever the tokens are: bits per byte follow from the count alone."""
    ready = make_ready()
    for parameter in ready.model.parameters():
        parameter.zero_()
    found = measure(ready, batches(ready, tokens_of(tokenizer)))
    assert found.loss == pytest.approx(math.log(320), rel=1e-6)
    text_tokens = found.targets - len(DOCUMENTS)
    assert found.bits_per_byte == pytest.approx(math.log2(320) * text_tokens / found.text_bytes, rel=1e-6)


def test_documents_kept_apart_do_not_predict_across_their_borders(make_ready, tokenizer):
    ready, tokens = make_ready(), tokens_of(tokenizer)
    found = measure(ready, batches(ready, tokens, document_mask=True))
    first = [len(tokenizer.token(tokenizer.encode(text)[0])) for text in DOCUMENTS]  # a character a byte
    assert found.targets == len(tokens) - len(DOCUMENTS)
    assert found.text_bytes == sum(len(text.encode()) for text in DOCUMENTS) - sum(first)


def test_an_encoder_is_measured_at_its_masked_positions(make_ready, tokenizer, in_float64):
    ready = make_ready("encoder", precision=in_float64)
    rows = batches(ready, tokens_of(tokenizer), mask_probability=0.5)
    found = measure(ready, rows)
    count, right, nats = 0, 0, 0.0
    for batch in rows:
        chosen = batch.targets != IGNORED
        logits = ready.model.logits(ready.model.hidden_states(batch.tokens, mask=Bidirectional(batch.keep)))[chosen]
        nats += float(F.cross_entropy(logits, batch.targets[chosen], reduction="sum"))
        right, count = right + int((logits.argmax(-1) == batch.targets[chosen]).sum()), count + int(chosen.sum())
    assert (found.loss, found.accuracy) == (pytest.approx(nats / count, rel=1e-12), right / count)
    assert found.targets == count
    assert (found.bits_per_byte, found.text_bytes) == (None, None)


def test_progress_is_told_of_every_batch(make_ready, tokenizer):
    ready, told = make_ready(), []
    rows = batches(ready, tokens_of(tokenizer))
    measure(ready, rows, done=told.append)
    assert sum(told) == len(rows)


def test_nothing_to_predict_is_an_error(make_ready):
    with pytest.raises(DataError, match="nothing to predict"):
        measure(make_ready(), [])
