"""A corpus: read, split by document, and tokenised once."""

from __future__ import annotations

from pathlib import Path

from attrs import frozen

from apr_train.data.documents import Document
from apr_train.data.protocols import Notice, Progress, TokenizerLike
from apr_train.data.settings import DataSettings
from apr_train.data.tokens import TokenFile


@frozen(kw_only=True)
class Corpus:
    """Both sides of a tokenised corpus."""

    train: TokenFile
    validation: TokenFile
    hash: str
    """Hex digest of the texts in their order; independent of where they lie and of the tokenizer."""
    description: str
    """Where the text comes from, for the model card."""
    max_token_id: int
    """The largest id on either side; must be below the model's vocabulary."""
    bytes_per_token: float
    """Of the validation side; nats per token / ln 2 / this = bits per byte."""


def load_corpus(
    settings: DataSettings,
    tokenizer: TokenizerLike,
    *,
    cache_dir: Path | None = None,
    progress: Progress | None = None,
    notice: Notice | None = None,
) -> Corpus:
    """Open the tokens of a corpus, making them first if they are not in the cache."""
    raise NotImplementedError


def held_out_documents(settings: DataSettings, *, limit: int | None = None) -> list[Document]:
    """The documents of the validation side, in the order of their tokens."""
    raise NotImplementedError
