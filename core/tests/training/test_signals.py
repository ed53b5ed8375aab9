"""Signals that ask a run to stop."""

import signal

import pytest
from apr_train.training.signals import StopRequest


@pytest.fixture
def hangup_handler():
    """Set the process's own handler of SIGHUP for the test."""
    before = signal.getsignal(signal.SIGHUP)
    yield lambda handler: signal.signal(signal.SIGHUP, handler)
    signal.signal(signal.SIGHUP, before)


def test_a_hangup_stops_politely_however_often_it_comes(hangup_handler):
    hangup_handler(signal.SIG_DFL)
    with StopRequest() as stop:
        assert not stop
        for _ in range(2):
            signal.raise_signal(signal.SIGHUP)
        assert stop.name == "SIGHUP"
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_DFL


def test_a_hangup_under_nohup_stops_nothing(hangup_handler):
    hangup_handler(signal.SIG_IGN)
    with StopRequest() as stop:
        signal.raise_signal(signal.SIGHUP)
        assert not stop
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN


def test_an_interrupt_after_a_hangup_ends_at_once(hangup_handler):
    hangup_handler(signal.SIG_DFL)
    with StopRequest(), pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGHUP)
        signal.raise_signal(signal.SIGINT)
