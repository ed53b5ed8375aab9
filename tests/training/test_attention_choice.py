"""Which attention a run takes: said, logged once, written down; forced, or refused with the reason."""

import logging

import pytest
import torch
from apr_train.model.attention.sdpa import SdpaAttention

RUN = ("--arch", "llama370m", "--preset", "tiny", "--sequence-length", "32", "--val-batches", "1", "--sample-tokens", "0")
REASON = "sdpa (first that can run); not xformers: it has no operator on cpu, only on cuda"


@pytest.fixture
def train(place):
    """Train two steps without SMALL's `--attention`."""
    return lambda *args, code=0: place("--data", place.corpus, *RUN, "--steps", "2", "--run", "x", *args, code=code)


def test_choice_and_reasons_are_said_logged_once_and_in_the_card(place, train, caplog):
    with caplog.at_level(logging.INFO, logger="apr_train"):
        out = train("--device", "cpu")
    assert REASON in " ".join(out.split())
    assert [message for message in caplog.messages if message.startswith("attention:")] == [f"attention: {REASON}"]
    assert REASON in (place.run("x") / "MODEL_CARD.md").read_text()


def test_forced_backend_is_taken(place, train):
    train("--attention", "eager")
    assert "eager (as asked)" in (place.run("x") / "MODEL_CARD.md").read_text()


def test_forced_backend_that_cannot_run_stops_the_run_with_its_reason(place, train):
    out = " ".join(train("--device", "cpu", "--attention", "xformers", code=3).split())
    assert "it has no operator on cpu, only on cuda" in out
    assert not (place.run("x") / "model.apr").exists()


def test_backends_are_tried_out_under_the_determinism_that_the_run_asks_for(train, monkeypatch):
    seen = []
    torch.use_deterministic_algorithms(False)
    monkeypatch.setattr(
        SdpaAttention, "supports", lambda self, request: seen.append(torch.are_deterministic_algorithms_enabled())
    )
    try:
        train("--deterministic", "--attention", "sdpa")
    finally:
        torch.use_deterministic_algorithms(False)
    assert seen[-1] is True
