"""The end of a run: model.apr, the sample, the card."""

from __future__ import annotations

from apr_train.atomic import replace_file
from apr_train.train.card import model_card
from apr_train.train.metrics import FILE as METRICS
from apr_train.train.metrics import Metrics, read_metrics
from apr_train.train.prepare import Prepared
from apr_train.train.run_folder import CARD, MODEL
from apr_train.train.sample import DEFAULT_PROMPT, greedy


def finish(prepared: Prepared) -> tuple[list[Metrics], tuple[str, str] | None]:
    """Write model.apr and MODEL_CARD.md; returns all metrics, and prompt and continuation if there is a sample."""
    run = prepared.run
    prepared.write_model(run.folder / MODEL, run.model, step=run.step)
    lines = read_metrics(run.folder / METRICS)
    sample = _sample(prepared)
    with replace_file(run.folder / CARD) as file:
        file.write(model_card(prepared, lines, sample).encode("utf-8"))
    return lines, sample


def _sample(prepared: Prepared) -> tuple[str, str] | None:
    run = prepared.run
    wanted = run.settings.run
    if run.objective != "causal-lm" or not wanted.sample_tokens:
        return None
    prompt = wanted.prompt or DEFAULT_PROMPT
    said = greedy(run.model, prepared.tokenizer, prompt, length=wanted.sample_tokens, precision=run.precision)
    return prompt, said
