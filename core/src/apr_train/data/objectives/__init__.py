"""Training objectives: what each learns from a token file, as one value. Torch-free at import.

A new objective is one module with a class that has the members of `Objective`, and one line in `OBJECTIVES`; its name
joins `TrainingObjective` (apr_train.run.objective_names), for settings to take. Families declare what their models predict,
and nothing else in the program compares names.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Protocol

from apr_train.checkpoint.header import Kind
from apr_train.data.batch import Batch, RowOptions, Rows
from apr_train.data.encoding import EncodeOptions, Encoder
from apr_train.data.objectives.causal_lm import CausalLM
from apr_train.data.objectives.fim import FillInTheMiddle
from apr_train.data.objectives.masked_lm import MaskedLM
from apr_train.data.objectives.sft import SFT
from apr_train.data.protocols import TokenizerLike
from apr_train.data.special_tokens import DocumentEnds
from apr_train.data.tokens import TokenFile
from apr_train.family.card import ObjectiveName
from apr_train.model.attention.masks import Mask, MaskKind
from apr_train.run.objective_names import Packing, SourceKind, TrainingObjective

if TYPE_CHECKING:
    from torch import Tensor

    from apr_train.model.protocol import LanguageModel


class Objective(Protocol):
    """A training objective."""

    name: ClassVar[TrainingObjective]
    """What `--objective` takes."""
    predicts: ClassVar[ObjectiveName]
    """What a family declares whose models can be trained on it."""
    source_kinds: ClassVar[tuple[SourceKind, ...]]
    """The kinds of sources that can be learnt from; the first one is meant where the user says none."""
    packing: ClassVar[Packing]
    """How documents come into rows where the user does not say."""
    kind: ClassVar[Kind]
    """The kind of model that is trained on it; a decoder can then continue a text."""
    shortest_row: ClassVar[int]
    """The least number of tokens in a row."""
    special_tokens: ClassVar[tuple[str, ...]]
    """Names of the special tokens without which there are no rows: some of bos, eos, pad, mask; prefix, suffix, middle."""
    measures_accuracy: ClassVar[bool]
    """Whether the share of right predictions is measured beside the loss."""
    measures_bits_per_byte: ClassVar[bool]
    """Whether the loss is the cost of a whole text, which can then be told by the text's UTF-8 bytes."""

    def mask_kind(self, *, document_mask: bool) -> MaskKind:
        """The kind of `mask` that every batch will have, for the choice of an attention backend before there is one."""
        ...

    def document_ends(self, tokenizer: TokenizerLike) -> DocumentEnds:
        """What stands around each document in a token file.

        Raises:
            TokenizerError: when the tokenizer has no token to end a document with.
        """
        ...

    def encoder(self, kind: SourceKind, options: EncodeOptions) -> Encoder:
        """How the documents of a source of one of `source_kinds` become ids.

        Raises:
            TokenizerError: when the tokenizer lacks a token that this needs.
        """
        ...

    def rows(self, tokens: TokenFile, options: RowOptions) -> Rows:
        """Cut a token file into rows; the caller has checked that `options.length` is at least `shortest_row`.

        Raises:
            TokenizerError: when the tokenizer lacks one of `special_tokens`.
        """
        ...

    def mask(self, batch: Batch) -> Mask:
        """The attention mask of one batch."""
        ...

    def predicted(self, model: LanguageModel, batch: Batch, losses: dict[str, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """Run the model over a batch, and choose the positions that are predicted.

        Args:
            losses: gets what the model has of losses beside the cross entropy; see `LanguageModel.hidden_states`.

        Returns:
            Hidden states `[positions, hidden]` and targets `[positions]` int64; an `IGNORED` target does not count.
        """
        ...


def keeps_documents_apart(objective: Objective) -> bool:
    """Whether several documents can share a row without seeing each other."""
    return objective.mask_kind(document_mask=True) == "documents"


OBJECTIVES: Mapping[TrainingObjective, Objective] = {
    "causal-lm": CausalLM(),
    "sft": SFT(),
    "fim": FillInTheMiddle(),
    "masked-lm": MaskedLM(),
}
"""Name → objective."""
