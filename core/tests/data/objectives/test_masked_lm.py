import numpy as np
import pytest
import torch
from apr_train.data.batch import IGNORED
from apr_train.data.objectives import OBJECTIVES
from apr_train.data.objectives.masked_lm import Masking
from apr_train.data.stream import validation_batches
from hypothesis import given, settings
from hypothesis import strategies as st

MASKED = OBJECTIVES["masked-lm"]
SPECIAL = [256, 257, 258, 259, 260]
BOS, PAD, EOS, MASK = 256, 257, 258, 260


@pytest.fixture
def masking(tokenizer):
    return Masking.for_tokenizer(tokenizer, probability=0.15, seed=3)


def test_masking_is_15_percent_of_which_80_10_10(masking):
    tokens = np.random.default_rng(0).integers(0, 256, 400_000)
    inputs, targets = masking.apply(tokens, epoch=0, row=0)
    chosen = targets != IGNORED
    changed_to_mask = chosen & (inputs == MASK)
    kept = chosen & (inputs == tokens)
    random = chosen & ~changed_to_mask & ~kept
    assert chosen.mean() == pytest.approx(0.15, abs=0.003)
    assert changed_to_mask.sum() / chosen.sum() == pytest.approx(0.8, abs=0.008)
    assert kept.sum() / chosen.sum() == pytest.approx(0.1 + 0.1 / 256, abs=0.006)
    assert random.sum() / chosen.sum() == pytest.approx(0.1 * 255 / 256, abs=0.006)
    counts = np.bincount(inputs[random], minlength=256)
    assert counts[:256].min() > 0
    assert counts.argmax() < 256
    assert np.array_equal(targets[chosen], tokens[chosen])
    assert np.array_equal(inputs[~chosen], tokens[~chosen])


@settings(deadline=None)
@given(st.lists(st.integers(0, 260), min_size=1, max_size=60), st.integers(0, 9), st.integers(0, 99))
def test_special_tokens_are_never_chosen_nor_drawn_and_a_row_has_a_target(byte_tokenizer, tokens, epoch, row):
    masking = Masking.for_tokenizer(byte_tokenizer(), probability=0.15, seed=0)
    tokens = np.array(tokens)
    inputs, targets = masking.apply(tokens, epoch=epoch, row=row)
    special = np.isin(tokens, SPECIAL)
    assert (targets[special] == IGNORED).all()
    assert np.array_equal(inputs[special], tokens[special])
    assert not np.isin(inputs[~special], [256, 257, 258, 259]).any()
    assert (targets != IGNORED).any() == (~special).any()


def test_a_token_that_is_marked_as_special_is_never_masked_even_when_no_role_names_it(tokenizer):
    tokenizer.special_tokens = {"<|endoftext|>": 17}
    masking = Masking.for_tokenizer(tokenizer, probability=0.99, seed=0)
    _, targets = masking.apply(np.full(100, 17), epoch=0, row=0)
    assert (targets == IGNORED).all()
    assert 17 not in masking.ordinary


def test_masks_are_new_in_each_epoch_row_and_seed_and_otherwise_the_same(masking, tokenizer):
    tokens = np.arange(200)

    def targets(masking, epoch, row):
        return masking.apply(tokens, epoch=epoch, row=row)[1].tolist()

    other = Masking.for_tokenizer(tokenizer, probability=0.15, seed=4)
    variants = [targets(masking, 0, 0), targets(masking, 1, 0), targets(masking, 0, 1), targets(other, 0, 0)]
    assert len({tuple(variant) for variant in variants}) == 4
    assert targets(masking, 0, 0) == variants[0]


def test_masks_do_not_change_between_versions(masking):
    _, targets = masking.apply(np.arange(40), epoch=2, row=7)
    assert np.flatnonzero(targets != IGNORED).tolist() == [3, 11, 20]


def unmasked(batch):
    return torch.where(batch.targets == IGNORED, batch.tokens, batch.targets)


def test_packed_rows_of_an_encoder_are_pieces_of_the_stream_between_bos_and_eos(tokenizer, tokens_of):
    tokens = tokens_of((10, 7))
    shared = {"objective": MASKED, "sequence_length": 8, "batch_size": 9, "tokenizer": tokenizer}
    (batch,) = validation_batches(tokens, **shared)
    ids = tokens.ids.tolist()
    rows = [[BOS, *ids[:6], EOS], [BOS, *ids[6:12], EOS], [BOS, *ids[12:], EOS, PAD]]
    assert unmasked(batch).tolist() == rows
    assert batch.keep.tolist() == [[True] * 8, [True] * 8, [True] * 7 + [False]]
    (whole,) = validation_batches(tokens, max_rows=2, **shared)
    assert whole.keep is None


def test_with_the_document_mask_no_row_of_an_encoder_holds_two_documents(tokenizer, tokens_of):
    tokens = tokens_of((10, 1, 4))
    shared = {"objective": MASKED, "sequence_length": 8, "batch_size": 9, "tokenizer": tokenizer}
    (batch,) = validation_batches(tokens, document_mask=True, **shared)
    rows = [[BOS, 0, 1, 2, 3, 4, 5, EOS], [BOS, 6, 7, 8, EOS, PAD, PAD, PAD], [BOS, 9, 10, 11, EOS, PAD, PAD, PAD]]
    assert unmasked(batch).tolist() == rows
    assert torch.equal(batch.keep, torch.tensor(rows) != PAD)
