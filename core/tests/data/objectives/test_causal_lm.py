import torch
from apr_train.data.batch import IGNORED
from apr_train.data.objectives import OBJECTIVES
from apr_train.data.stream import validation_batches
from hypothesis import given, settings
from hypothesis import strategies as st

CAUSAL = OBJECTIVES["causal-lm"]
EOS = 258


def test_the_document_mask_numbers_documents_and_drops_targets_in_the_next_one(tokenizer, tokens_of):
    tokens = tokens_of((5, 3, 9))
    (batch,) = validation_batches(
        tokens, objective=CAUSAL, sequence_length=10, batch_size=9, document_mask=True, tokenizer=tokenizer
    )
    assert batch.tokens.tolist() == [[0, 1, 2, 3, EOS, 4, 5, EOS, 6, 7], [8, 9, 10, 11, 12, 13, 0, 0, 0, 0]]
    x = IGNORED
    assert batch.targets.tolist() == [[1, 2, 3, EOS, x, 5, EOS, x, 7, 8], [9, 10, 11, 12, 13, EOS, x, x, x, x]]
    assert batch.document_ids.tolist() == [[0] * 5 + [1] * 3 + [2] * 2, [0] * 6 + [1] * 4]
    assert batch.document_ids.dtype == torch.int32
    assert batch.document_lengths == ((5, 3, 2), (6, 4))
    assert batch.target_count == 14


@settings(deadline=None)
@given(st.lists(st.integers(1, 12), min_size=1, max_size=12).filter(lambda lengths: sum(lengths) > 1), st.integers(1, 9))
def test_the_document_mask_keeps_exactly_the_targets_inside_documents(byte_tokenizer, tokens_of, lengths, length):
    tokens = tokens_of(lengths)
    shared = {"objective": CAUSAL, "sequence_length": length, "batch_size": 4, "tokenizer": byte_tokenizer()}
    masked = list(validation_batches(tokens, document_mask=True, **shared))
    plain = list(validation_batches(tokens, **shared))
    assert sum(batch.target_count for batch in plain) == len(tokens) - 1
    assert sum(batch.target_count for batch in masked) == sum(size - 1 for size in lengths)
    for batch in masked:
        assert [sum(row) for row in batch.document_lengths] == [length] * len(batch.tokens)
        for ids, sizes in zip(batch.document_ids.tolist(), batch.document_lengths, strict=True):
            assert ids == [number for number, size in enumerate(sizes) for _ in range(size)]
