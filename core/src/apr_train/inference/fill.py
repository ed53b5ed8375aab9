"""An encoder says what could stand where a text has its mask."""

from __future__ import annotations

from typing import cast

import torch
from attrs import frozen

from apr_train.data.special_tokens import encoder_end
from apr_train.errors import ConfigError, DataError
from apr_train.inference.ready import Ready
from apr_train.model.attention.masks import Bidirectional
from apr_train.model.generation import check_logits
from apr_train.model.protocol import LanguageModel
from apr_train.preflight.token_rules import mask_id


@frozen(kw_only=True)
class Filler:
    """One token for one mask."""

    token: str
    """The text that it stands for, a leading space included."""
    id: int
    probability: float
    """Over the whole vocabulary."""


def mask_token(ready: Ready) -> tuple[int, str]:
    """The id of the tokenizer's mask token, and how it is written in a text.

    Raises:
        DataError: when it has none.
    """
    index = mask_id(ready.header, ready.tokenizer.spec)
    token = None if index is None else ready.tokenizer.token(index)
    if index is None or token is None:
        raise DataError(
            "the tokenizer has no mask token", where=ready.path, hint="Give a tokenizer.json that has one with --tokenizer."
        )
    return index, token


@torch.no_grad()
def fill_mask(ready: Ready, text: str, *, count: int) -> list[list[Filler]]:
    """The `count` most probable tokens for each mask of `text`, best first; the text stands alone, between bos and eos.

    Raises:
        DataError: when the text has no mask.
        ConfigError: when it is longer than the model's positions.
        RunError: when the model's output is not a number.
        TokenizerError: when the tokenizer has no bos or eos.
    """
    index, token = mask_token(ready)
    bos, eos = (encoder_end(ready.tokenizer, name) for name in ("bos", "eos"))
    ids = [bos, *ready.tokenizer.encode(text), eos]
    if index not in ids:
        expected, hint = f"a text with {token} in it", "Quote it: the shell reads < and > itself."
        raise DataError("the text has no mask", where="--fill-mask", expected=expected, found=repr(text[:80]), hint=hint)
    if len(ids) > ready.config.usable_positions:
        limit = f"at most {ready.config.usable_positions} tokens"
        raise ConfigError("the text is longer than the model's positions", where="--fill-mask", expected=limit, found=len(ids))
    model, tokens = cast(LanguageModel, ready.model), torch.tensor([ids], device=ready.device)
    with ready.precision.context(ready.device):
        hidden = model.hidden_states(tokens, mask=Bidirectional(None))
        logits = model.logits(hidden[tokens == index])
    check_logits(logits, where="--fill-mask")
    best = logits.float().softmax(-1).topk(min(count, logits.shape[-1]))
    return [
        [_filler(ready, int(place), float(share)) for share, place in zip(shares, places, strict=True)]
        for shares, places in zip(best.values, best.indices, strict=True)
    ]


def _filler(ready: Ready, index: int, probability: float) -> Filler:
    return Filler(token=ready.tokenizer.decode([index]), id=index, probability=probability)
