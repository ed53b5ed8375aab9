"""The end of a run: model.apr, the sample, the card."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import takewhile
from typing import cast

from torch import Tensor, nn

from apr_train.atomic import write_file
from apr_train.data.special_tokens import ending_ids, ids_of_prompt
from apr_train.errors import DataError
from apr_train.model.acceleration import uncompiled
from apr_train.model.device import Precision
from apr_train.model.generation import generate_tokens
from apr_train.model.protocol import LanguageModel
from apr_train.run.folder import CARD, METRICS, MODEL
from apr_train.run.metrics import Metrics, read_metrics
from apr_train.training.card import model_card
from apr_train.training.setup import Prepared

DEFAULT_PROMPT = 'def fibonacci(n: int) -> int:\n    """Return the n-th Fibonacci number."""'


def greedy(model: nn.Module, prompt: Sequence[int], *, length: int, ends: Collection[int], precision: Precision) -> list[int]:
    """The most likely tokens after the ids of a prompt, as many as `length` and the model's positions allow.

    Of a prompt that leaves too few positions, only the end is read. Nothing comes from the first of `ends` on.
    """
    language_model, device = cast(LanguageModel, model), next(model.parameters()).device
    positions = language_model.config.usable_positions
    length = min(length, positions - 1)
    tokens = generate_tokens(
        language_model, prompt[length - positions :], length=length, choose=_most_likely, precision=precision, device=device
    )
    training = model.training
    model.eval()
    try:
        with uncompiled():
            return list(takewhile(lambda index: index not in ends, tokens))
    finally:
        model.train(training)


def _most_likely(logits: Tensor) -> int:
    return int(logits.argmax(-1))


def finish(prepared: Prepared) -> tuple[list[Metrics], tuple[str, str] | None]:
    """Write model.apr and MODEL_CARD.md; returns all metrics, and prompt and continuation if there is a sample."""
    run = prepared.run
    run.write_model(run.folder / MODEL, run.model, step=run.step)
    lines = read_metrics(run.folder / METRICS)
    sample = _sample(prepared)
    write_file(run.folder / CARD, model_card(prepared, lines, sample).encode("utf-8"))
    return lines, sample


def _sample(prepared: Prepared) -> tuple[str, str] | None:
    run = prepared.run
    wanted = run.settings.run
    if run.objective.kind != "decoder" or not wanted.sample_tokens:
        return None
    prompt = DEFAULT_PROMPT if wanted.prompt is None else wanted.prompt
    tokenizer, header = prepared.inputs.tokenizer, prepared.inputs.header
    try:
        ids = ids_of_prompt(tokenizer, prompt)
    except DataError as error:  # the training is done: a run is not lost to its sample
        run.display.say(f"no sample: {error}")
        return None
    ends = ending_ids(tokenizer, {} if header is None else header.config)
    made = greedy(run.model, ids, length=wanted.sample_tokens, ends=ends, precision=run.precision)
    return prompt, tokenizer.decode(made)
