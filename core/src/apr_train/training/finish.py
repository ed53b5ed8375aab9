"""The end of a run: model.apr, the sample, the card."""

from __future__ import annotations

from apr_train.atomic import write_file
from apr_train.data.prompt import ending_ids, ids_of_prompt
from apr_train.errors import DataError
from apr_train.run.folder import CARD, MODEL
from apr_train.run.metrics import FILE as METRICS
from apr_train.run.metrics import Metrics, read_metrics
from apr_train.training.card import model_card
from apr_train.training.sample import DEFAULT_PROMPT, greedy
from apr_train.training.setup import Prepared


def finish(prepared: Prepared) -> tuple[list[Metrics], tuple[str, str] | None]:
    """Write model.apr and MODEL_CARD.md; returns all metrics, and prompt and continuation if there is a sample."""
    run = prepared.run
    prepared.write_model(run.folder / MODEL, run.model, step=run.step)
    lines = read_metrics(run.folder / METRICS)
    sample = _sample(prepared)
    write_file(run.folder / CARD, model_card(prepared, lines, sample).encode("utf-8"))
    return lines, sample


def _sample(prepared: Prepared) -> tuple[str, str] | None:
    run = prepared.run
    wanted = run.settings.run
    if run.objective != "causal-lm" or not wanted.sample_tokens:
        return None
    prompt = DEFAULT_PROMPT if wanted.prompt is None else wanted.prompt
    tokenizer, header = prepared.tokenizer, prepared.write_model.header
    try:
        ids = ids_of_prompt(tokenizer, prompt)
    except DataError as error:  # the training is done: a run is not lost to its sample
        run.display.say(f"no sample: {error}")
        return None
    ends = ending_ids(tokenizer, {} if header is None else header.config)
    made = greedy(run.model, ids, length=wanted.sample_tokens, ends=ends, precision=run.precision)
    return prompt, tokenizer.decode(made)
