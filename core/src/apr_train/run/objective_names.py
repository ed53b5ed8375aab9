"""The words in which a run says what it learns, and from what: names that settings take and `data/` gives a meaning."""

from __future__ import annotations

from typing import Literal

TrainingObjective = Literal["causal-lm", "sft", "fim", "masked-lm"]
"""What `--objective` takes. A family declares what its models predict (`family.card.ObjectiveName`); several objectives may
be trained on the same prediction."""
SourceKind = Literal["text", "chat", "tokens"]
"""What the documents of a source are: texts, conversations, or token ids that somebody else made."""
Packing = Literal["concatenate", "best-fit"]
"""How documents come into rows: one after the other and cut where a row ends, or whole wherever they fit best."""
TrainOn = Literal["assistant", "completion", "all"]
"""Which part of a conversation is a target: every turn of the assistant, its last one, or every token."""
