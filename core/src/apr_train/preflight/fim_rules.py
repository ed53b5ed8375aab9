"""The tokens around a hole: that a tokenizer has them, that the embedding has their rows, and whether those were trained."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from apr_train import rules
from apr_train.checkpoint.checkpoint import Checkpoint
from apr_train.checkpoint.dtypes import DTYPES, Array, plain_view, values_of
from apr_train.checkpoint.grown import Grown
from apr_train.checkpoint.quantization import dequantize
from apr_train.checkpoint.tie import embedding_name
from apr_train.data.fim_tokens import FimTokens, fim_tokens
from apr_train.data.special_tokens import separator_id
from apr_train.data.tokenizer import Tokenizer
from apr_train.errors import AprTrainError, Finding
from apr_train.family.card import FamilyInfo

_PEERS = 1024
"""Rows of other tokens that are looked at, evenly over the vocabulary."""
_TWINS = 1024
"""Added tokens that are looked at, at most: rows that were never trained together are alike."""
_FACTOR = 2.0
"""How far outside the range of its peers, of which the outermost hundredth does not count, a norm must be."""
_ALIKE = 0.9999
"""Cosine from which on two rows are the same."""


def fim_findings(
    tokenizer: Tokenizer, info: FamilyInfo, *, setting: str | None, rows: int, checkpoint: Checkpoint | None
) -> list[Finding]:
    """All about the tokens around a hole; what of their rows looks untrained is a warning.

    Args:
        setting: `--fim-tokens`.
        rows: of the embedding.
        checkpoint: that weights come from; None: they are fresh, or those of a run that goes on.
    """
    subject = tokenizer.spec.origin or "tokenizer"
    try:
        tokens = fim_tokens(tokenizer, card=info.fim_tokens, setting=setting, where=subject)
    except AprTrainError as error:
        return list(error.findings)
    findings = [*outside_findings(tokens, rows, subject), *_end_findings(tokens, tokenizer, subject)]
    return findings if findings or checkpoint is None else untrained_findings(tokens, tokenizer, checkpoint)


def no_tokenizer_yet() -> Finding:
    """A tokenizer that is only made of the corpus has no tokens around a hole."""
    return Finding(
        rule=rules.FIM_001,
        subject="tokenizer",
        problem="no tokenizer is given, and one that is made of the corpus has no tokens around a hole",
        expected="a tokenizer that has them",
        found="nothing",
        hint="Give a tokenizer.json with --tokenizer, or name rare entries with --fim-tokens.",
    )


def outside_findings(tokens: FimTokens, rows: int, subject: str) -> list[Finding]:
    """Every token has a row in the embedding."""
    return [
        Finding(
            rule=rules.FIM_002,
            subject=subject,
            field=role,
            problem="a token around a hole has no row in the embedding",
            expected=f"0 to {rows - 1}",
            found=str(index),
        )
        for role, index in tokens.roles.items()
        if index >= rows
    ]


def _end_findings(tokens: FimTokens, tokenizer: Tokenizer, subject: str) -> list[Finding]:
    """The end of text, which is learnt behind every hole, is none of the tokens in front of one."""
    try:
        end = separator_id(tokenizer)
    except AprTrainError:
        return []  # the preflight of a run says so of every objective
    shared = [role for role, index in tokens.roles.items() if index == end and role != "end"]
    return [
        Finding(
            rule=rules.FIM_002,
            subject=subject,
            field=role,
            problem="a token around a hole is the end of text, which says that a hole is full",
            expected="an id of its own",
            found=str(end),
        )
        for role in shared
    ]


def untrained_findings(tokens: FimTokens, tokenizer: Tokenizer, checkpoint: Checkpoint) -> list[Finding]:
    """FIM-003 for rows of the embedding that look as if nothing was ever learnt in them.

    Such a row has a norm far from all others', or is the same as another added token's, which was not trained either. Only
    these rows are read, and a sample of the others. The rows of tokens that the run adds are new: nothing is to be said.
    """
    new: frozenset[int] = frozenset()
    if isinstance(checkpoint, Grown):
        new, checkpoint = checkpoint.growth.ids, checkpoint.base
    name = embedding_name(checkpoint.header.tensors)
    if name is None:
        return []
    size = min(checkpoint.header.tensors[name].shape[0], tokenizer.size)
    peers = _rows(checkpoint, name, np.linspace(0, size - 1, num=min(size, _PEERS)).astype(int).tolist())
    low, high = np.percentile(np.linalg.norm(peers, axis=1), (1, 99))
    added = [index for index in sorted(tokenizer.backend.get_added_tokens_decoder()) if index < size and index not in new]
    added = added[:_TWINS]
    others = dict(zip(added, _rows(checkpoint, name, added), strict=True))
    findings = []
    for role, index in tokens.roles.items():
        if index in new:
            continue
        (row,) = _rows(checkpoint, name, [index])
        found = _strange(float(np.linalg.norm(row)), float(low), float(high)) or _twin(index, row, others, tokenizer)
        if found:
            findings.append(_untrained(tokens, role, index, tokenizer, f"{checkpoint.header.path} [{name}]", found))
    return findings


def _untrained(tokens: FimTokens, role: str, index: int, tokenizer: Tokenizer, where: str, found: str) -> Finding:
    return Finding(
        rule=rules.FIM_003,
        subject=where,
        field=f"row {index}",
        problem=f"the row of {tokenizer.token(index)!r}, the {role} token of {tokens.told_by}, looks untrained",
        expected="a row that the model was trained with, as other tokens have",
        found=found,
        hint="Training learns it from nothing, which takes more steps than a model needs that knows these tokens.",
        severity="warning",
    )


def _strange(norm: float, low: float, high: float) -> str:
    far = norm < low / _FACTOR or norm > high * _FACTOR
    return f"a norm of {norm:.4g} where other rows have {low:.4g} to {high:.4g}" if far else ""


def _twin(index: int, row: Array, others: dict[int, Array], tokenizer: Tokenizer) -> str:
    """The added token that has the same row."""
    for other, values in others.items():
        scale = float(np.linalg.norm(row) * np.linalg.norm(values))
        if other != index and scale > 0 and float(row @ values) >= _ALIKE * scale:
            return f"the same row as {tokenizer.token(other)!r}"
    return ""


def _rows(checkpoint: Checkpoint, name: str, indices: Sequence[int]) -> Array:
    """`[rows, width]` float32: rows of a matrix, of which no other is read or decoded.

    Of a type whose rows do not stand apart (aprender's own eight bits), the whole matrix is decoded.
    """
    tensor = checkpoint.header.tensors[name]
    dtype = DTYPES.get(tensor.dtype)
    if dtype is None or not dtype.has_whole_rows(tensor.shape):
        view = checkpoint.read(name)
        return np.stack([values_of(view.data[index], view.dtype) for index in indices]).astype(np.float32)
    width, raw = tensor.shape[1], checkpoint.read_raw(name)
    size = dtype.nbytes(width)
    taken = memoryview(b"".join(raw[index * size : (index + 1) * size] for index in indices))
    shape = (len(indices), width)
    if dtype.quantized:
        return dequantize(dtype, taken, shape[0] * width, path=checkpoint.header.path, name=name).reshape(shape)
    return values_of(plain_view(tensor.dtype, shape, taken).data, tensor.dtype).astype(np.float32)
