"""The rows of several processes together are those of one, in the same order."""

from fractions import Fraction

import pytest
import torch
from apr_train.data.batch import IGNORED, Share
from apr_train.data.objectives import OBJECTIVES
from apr_train.data.stream import BatchStream, StreamSource
from apr_train.data.tokens import TokenFile
from attrs import Factory, frozen

FIELDS = ("tokens", "targets", "document_ids", "keep")


@frozen
class Vocabulary:
    """What rows ask of a tokenizer."""

    size: int = 70
    special_ids: dict = Factory(lambda: {"bos": 64, "eos": 65, "pad": 66, "mask": 67})
    special_tokens: dict = Factory(dict)
    fingerprint: str = "none"


def file_of(seed, key):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(5, 30, (40,), generator=generator).tolist()
    documents = [[*torch.randint(0, 63, (length,), generator=generator).tolist(), 65] for length in lengths]
    return TokenFile.from_documents(documents, key=key)


def stream(objective, share, rows=5):
    sources = [
        StreamSource(name="a", tokens=file_of(1, "a"), weight=Fraction(2, 3)),
        StreamSource(name="b", tokens=file_of(2, "b"), weight=Fraction(1, 3)),
    ]
    how = {"objective": OBJECTIVES[objective], "sequence_length": 16, "batch_size": rows, "seed": 3, "tokenizer": Vocabulary()}
    return BatchStream(sources, document_mask=objective == "causal-lm", share=share, **how)


@pytest.mark.parametrize("objective", ["causal-lm", "masked-lm"])
@pytest.mark.parametrize("of", [2, 3, 5])
def test_shares_of_every_batch_are_the_batch(objective, of):
    whole, parts = stream(objective, None), [stream(objective, Share(number=number, of=of)) for number in range(of)]
    for _ in range(12):
        batch, pieces = whole.next_batch(), [part.next_batch() for part in parts]
        assert sum(piece.target_count for piece in pieces) == batch.target_count
        for name in FIELDS[:3] if batch.keep is None else FIELDS:
            tensors = [getattr(piece, name) for piece in pieces]
            if name == "keep":
                pairs = zip(tensors, pieces, strict=True)
                tensors = [torch.ones_like(item.tokens, dtype=torch.bool) if keep is None else keep for keep, item in pairs]
            if getattr(batch, name) is not None:
                assert torch.equal(torch.cat(tensors), getattr(batch, name))
        if batch.document_lengths is not None:
            assert sum((piece.document_lengths for piece in pieces), ()) == batch.document_lengths
        assert all(part.state_dict() == whole.state_dict() for part in parts)


def test_a_batch_is_cut_as_a_stream_gives_it():
    whole, part = stream("causal-lm", None).next_batch(), stream("causal-lm", Share(number=1, of=2)).next_batch()
    cut = whole.part(Share(number=1, of=2))
    assert torch.equal(cut.tokens, part.tokens)
    assert (cut.target_count, cut.document_lengths) == (part.target_count, part.document_lengths)


def test_who_has_no_row_of_a_batch_gets_one_without_targets():
    batch = stream("causal-lm", None, rows=2).next_batch()
    shares = [batch.part(Share(number=number, of=3)) for number in range(3)]
    assert [share.target_count for share in shares].count(0) == 1
    assert sum(share.target_count for share in shares) == batch.target_count
    (empty,) = (share for share in shares if not share.target_count)
    assert empty.tokens.shape == (1, 16)
    assert bool((empty.targets == IGNORED).all())
