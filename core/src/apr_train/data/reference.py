"""The reference text: one text of this package's own, on which every checkpoint has a loss that can be compared.

The text is read as one document, in rows of a fixed length, so that the number depends on nothing but the model, its
tokenizer and the text: no corpus, no split, no setting of a run. An encoder's masks are drawn from a fixed seed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from importlib.resources import files

import numpy as np
from attrs import field, frozen

from apr_train.checkpoint.reference import ReferenceLoss
from apr_train.data.batch import Batch
from apr_train.data.objectives import Objective
from apr_train.data.protocols import TokenizerLike
from apr_train.data.special_tokens import encoder_end
from apr_train.data.stream import validation_batches
from apr_train.data.tokens import TokenFile
from apr_train.errors import DataError

NAME = "reference.txt"
SHA256 = "1a460b487a90583b96d9a9e569a5a37764cf95ad3d77672387579ea9c272d08a"
"""Of the text's bytes. Another text is another reference: numbers of the one say nothing about the other."""
LENGTH = 512
"""Tokens in a row, for a model that has the positions."""
MASK_PROBABILITY = 0.15
OTHER_IDS = "other token ids"
TOLERANCE: Mapping[tuple[str, str], float] = {("cpu", "fp32"): 1e-5, ("cuda", "fp32"): 1e-4}
"""Device and precision of the computation → how far its loss may be from the one in the file; docs/evaluate.md says what was
measured, and why."""
TOLERANCE_BF16 = 3e-3


def reference_text() -> str:
    """The text.

    Raises:
        DataError: its bytes are not those that this version was made with.
    """
    where = files("apr_train.data") / NAME
    try:
        raw = where.read_bytes()
    except OSError as error:
        raise _damaged(where, error.strerror) from error
    if (found := hashlib.sha256(raw).hexdigest()) != SHA256:
        raise _damaged(where, found)
    return raw.decode("utf-8")


def _damaged(where: object, found: str | None) -> DataError:
    hint = "Install apr-train again: every number that was measured on this text means these very bytes."
    return DataError("the reference text is not the one of this version", where=where, expected=SHA256, found=found, hint=hint)


@frozen(kw_only=True)
class ReferenceRows:
    """The reference text as a model and its tokenizer see it."""

    ids: str
    """SHA-256 of the token ids: see `ReferenceLoss.ids`."""
    sequence_length: int
    tokens: TokenFile = field(repr=False)
    objective: Objective
    tokenizer: TokenizerLike = field(repr=False)

    def batches(self) -> Iterator[Batch]:
        """The rows one by one, the same ones each time; the last one is padded."""
        return validation_batches(
            self.tokens,
            objective=self.objective,
            sequence_length=self.sequence_length,
            batch_size=1,
            tokenizer=self.tokenizer,
            mask_probability=MASK_PROBABILITY,
        )

    def result(self, loss: float, *, precision: str) -> ReferenceLoss:
        """What a file holds of a measurement; six decimals, since a sum in another order moves the ones behind."""
        return ReferenceLoss(
            loss=round(loss, 6),
            text=SHA256,
            ids=self.ids,
            sequence_length=self.sequence_length,
            precision=precision,
        )

    def difference(self, held: ReferenceLoss) -> tuple[str, str | int, str | int] | None:
        """Why a number cannot be compared with one of these rows: (what differs, the file's, here); None if it can."""
        pairs: dict[str, tuple[str | int, str | int]] = {
            "another text": (held.text, SHA256),
            OTHER_IDS: (held.ids, self.ids),
            "another length of rows": (held.sequence_length, self.sequence_length),
        }
        return next(((name, theirs, ours) for name, (theirs, ours) in pairs.items() if theirs != ours), None)


def reference_rows(objective: Objective, tokenizer: TokenizerLike, *, positions: int) -> ReferenceRows:
    """Tokenise the reference text for a model of so many usable positions.

    Text that spells a special token would be text; a decoder's ids begin as its tokenizer begins a text, an encoder's stand
    between bos and eos.

    Raises:
        DataError: the text is not the one of this version.
        TokenizerError: the tokenizer lacks a token that the objective needs.
    """
    (ids,) = tokenizer.encode_batch([reference_text()])
    if objective.kind == "encoder":  # each of its rows gets the ends, and the text itself has none
        around = [encoder_end(tokenizer, "bos"), *ids, encoder_end(tokenizer, "eos")]
    else:
        around = ids = [*tokenizer.start_ids, *ids]
    return ReferenceRows(
        ids=hashlib.sha256(np.asarray(around, "<i8").tobytes()).hexdigest(),
        sequence_length=min(positions, LENGTH),
        tokens=TokenFile.from_documents([ids]),
        objective=objective,
        tokenizer=tokenizer,
    )


def most_apart(held: ReferenceLoss, *, device: str, precision: str) -> float:
    """How far a loss that is computed so may be from the one that a file holds, in nats.

    A share of the loss, and of one nat where the loss is less: what rounding does to logits does not shrink with it.
    """
    return TOLERANCE.get((device, precision), TOLERANCE_BF16) * max(1.0, abs(held.loss))
