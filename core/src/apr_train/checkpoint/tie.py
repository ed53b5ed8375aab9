"""The tie: whether the output head is the embedding matrix, as far as a header tells, and the comparison that settles it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

from apr_train import rules
from apr_train.checkpoint.checkpoint import Checkpoint
from apr_train.checkpoint.header import Header, TensorInfo, Tie
from apr_train.errors import FormatError

HEAD_NAMES = ("lm_head.weight", "lm_head.decoder.weight", "output.weight")
EMBEDDING_SUFFIXES = ("embed_tokens.weight", "embeddings.word_embeddings.weight", "token_embd.weight")
CHUNK = 1 << 24


def head_name(tensors: Mapping[str, TensorInfo]) -> str | None:
    """The stored output head, if the file has one."""
    return next((name for name in HEAD_NAMES if name in tensors), None)


def embedding_name(tensors: Mapping[str, TensorInfo]) -> str | None:
    """The token embedding matrix, if the file has one."""
    return next((name for suffix in EMBEDDING_SUFFIXES for name in tensors if name.endswith(suffix)), None)


def tie_from_index(config: Mapping[str, Any], tensors: Mapping[str, TensorInfo], declared: str | None = None) -> Tie:
    """The tie as metadata and the tensor index have it; its `value` is None when only the tensors' bytes can tell.

    `declared` is the head that an `.apr` has in its index without bytes.
    """
    flag = config.get("tie_word_embeddings")
    head, embedding = head_name(tensors), embedding_name(tensors)
    if isinstance(flag, bool):
        return Tie(flag, "metadata")
    if declared is not None:
        return Tie(True, f"{declared} declared tied, 0 bytes")
    if head is None:
        return Tie(True, "lm_head absent")
    if embedding is not None and _surely_differ(tensors[head], tensors[embedding]):
        return Tie(False, "lm_head differs")
    return Tie(None, "decided at load")


def _surely_differ(head: TensorInfo, embedding: TensorInfo) -> bool:
    return (head.dtype, head.shape, head.nbytes) != (embedding.dtype, embedding.shape, embedding.nbytes)


def tie_contradiction(header: Header) -> str | None:
    """The problem, in words, of a metadata flag that contradicts the tensor index; None when there is none.

    A flag that says tied beside a stored head of other bytes is found by `resolve_tie`.
    """
    if header.tie.reason != "metadata":
        return None
    head, embedding = head_name(header.tensors), embedding_name(header.tensors)
    if header.tie.value is False and head is None:
        return "tie_word_embeddings is false and the file has no output head"
    if header.tie.value and head and embedding and header.tensors[head].shape != header.tensors[embedding].shape:
        return f"tie_word_embeddings is true and {head} has another shape than {embedding}"
    return None


def resolve_tie(checkpoint: Checkpoint) -> Header:
    """The header with the tie decided, comparing the head with the embedding byte for byte where needed.

    Raises:
        FormatError: when metadata says tied and the file holds a head that differs.
    """
    header = checkpoint.header
    head, embedding = head_name(header.tensors), embedding_name(header.tensors)
    if head is None or embedding is None or header.tie.value is False:
        return header
    equal = _equal(checkpoint, head, embedding)
    if header.tie.value and not equal:
        raise FormatError(
            f"metadata says that the head is tied, and {head} is stored with other values",
            path=header.path,
            field="tie_word_embeddings",
            rule=rules.PREFLIGHT_007,
            expected=f"{head} equal to {embedding}, or tie_word_embeddings false",
            found="a head of its own",
        )
    if header.tie.value is not None:
        return header
    reason = "lm_head equal to the embedding" if equal else "lm_head differs"
    return attrs.evolve(header, tie=Tie(equal, reason))


def _equal(checkpoint: Checkpoint, head: str, embedding: str) -> bool:
    tensors = checkpoint.header.tensors
    if _surely_differ(tensors[head], tensors[embedding]):
        return False
    left, right = checkpoint.read_raw(head), checkpoint.read_raw(embedding)
    return all(left[start : start + CHUNK] == right[start : start + CHUNK] for start in range(0, len(left), CHUNK))
