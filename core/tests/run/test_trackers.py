"""Trackers: found, judged, told of a run, and unable to stop it."""

import importlib
import logging
import sys
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest
from apr_train.errors import PluginError
from apr_train.run.events import RunEnd, RunStart, hookimpl
from apr_train.run.metrics import Metrics
from apr_train.run.trackers import BUILT_IN, GROUP, Trackers, make_tracker, tracker_findings, tracker_names

STEP = Metrics(step=3, loss=2.5, lr=1e-3, source_tokens={"code": 7})
BOTH = Metrics(step=4, loss=2.25, val_loss=2.0, perplexity=7.4)
START = Metrics(step=0, val_loss=6.9)


def start(name):
    return RunStart(
        name="a", folder=Path("runs/a"), own=Path("runs/a/trackers", name), settings={}, paths=frozenset(), done=0, say=print
    )


HEAD = "from apr_train.run.events import hookimpl\nfrom apr_train.family import hookimpl as of_a_family\ncalls = []\n"
SOURCES = {
    "good": "class T:\n    @hookimpl\n    def run_started(self, run): calls.append(('started', run.own.name))\n"
    "    @hookimpl\n    def step_done(self, line): calls.append(('step', line.step))\n"
    "    @hookimpl\n    def validated(self, line): calls.append(('validated', line.val_loss))\n"
    "    @hookimpl\n    def run_ended(self, end): calls.append(('ended', end.result))\n",
    "failing": "class T:\n    @hookimpl\n    def step_done(self, line): calls.append(line.step); raise ValueError('no disk')\n"
    "    @hookimpl\n    def run_ended(self, end): calls.append('ended'); raise OSError('still no disk')\n",
    "leaving": "import sys\nclass T:\n    @hookimpl\n    def run_started(self): sys.exit(3)\n",
    "wandering": "import os\nclass T:\n    @hookimpl\n    def run_started(self): os.chdir('/')\n",
    "misspelt": "class T:\n    @hookimpl\n    def step_don(self, line): pass\n",
    "argument": "class T:\n    @hookimpl\n    def step_done(self, metrics): pass\n",
    "defaulted": "class T:\n    @hookimpl\n    def step_done(self, line=None): pass\n",
    "unmarked": "class T:\n    def step_done(self, line): pass\n",
    "a_family_s": "class T:\n    @of_a_family\n    def step_done(self, line): pass\n",
    "raising": "class T:\n    def __init__(self): raise KeyError('token')\n",
    "no_class": "T = 3\n",
    "importing": "import nothing_of_this_name\n",
}
BROKEN = {
    "misspelt": "hook step_don: there is no such hook. did you mean step_done?",
    "argument": "hook step_done: unknown argument metrics, expected arguments among (line)",
    "defaulted": "hook step_done: argument line has a default",
    "unmarked": "hook step_done: a function has the hook's name and is not marked with @hookimpl",
    "a_family_s": "hook step_done: a function has the hook's name and is not marked with @hookimpl",
    "raising": "KeyError: 'token'",
    "no_class": "the entry point does not name a class",
    "importing": "the import of tracker_importing:T failed: ModuleNotFoundError: No module named 'nothing_of_this_name'",
}


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Offer trackers as entry points; returns the module of one."""
    monkeypatch.syspath_prepend(tmp_path)
    points = []
    monkeypatch.setattr("apr_train.run.trackers.entry_points", lambda group: (points if group == GROUP else [], ()))

    def offer(source, *, name=None):
        (tmp_path / f"tracker_{source}.py").write_text(HEAD + SOURCES[source])
        monkeypatch.delitem(sys.modules, f"tracker_{source}", raising=False)
        importlib.invalidate_caches()
        points.append(metadata.EntryPoint(name=name or source, value=f"tracker_{source}:T", group=GROUP))
        return lambda: sys.modules[f"tracker_{source}"]

    return offer


def test_a_tracker_is_told_of_start_steps_validations_and_end(installed):
    module = installed("good")
    trackers = Trackers.named(["good", "good"], print)
    trackers.start(start)
    for line in (START, STEP, BOTH):
        trackers.line(line)
    trackers.end(RunEnd(step=4, result=Path("m")))
    steps = [("step", 3), ("step", 4), ("validated", 2.0)]
    assert module().calls == [("started", "good"), ("validated", 6.9), *steps, ("ended", Path("m"))]


def test_one_that_fails_is_told_once_and_keeps_nobody_from_being_told(installed, caplog):
    failing, good = installed("failing"), installed("good")
    said = []
    trackers = Trackers.named(["failing", "good"], said.append)
    trackers.start(start)
    with caplog.at_level(logging.DEBUG, "apr_train"):
        trackers.line(STEP)
        trackers.line(BOTH)
        trackers.end(RunEnd(step=4))
    assert said == ["warning: tracker failing failed in step_done (ValueError: no disk): the run goes on without it"]
    assert failing().calls == [3, "ended"]
    assert ("step", 4) in good().calls
    assert ("ended", None) in good().calls
    assert any(record.exc_info and "no disk" in str(record.exc_info[1]) for record in caplog.records)


def test_one_that_leaves_the_process_does_not(installed):
    installed("leaving")
    said = []
    Trackers.named(["leaving"], said.append).start(start)
    assert said == ["warning: tracker leaving failed in run_started (it called sys.exit(3)): the run goes on without it"]


def test_one_that_goes_elsewhere_leaves_the_run_where_it_is(installed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    installed("wandering")
    Trackers.named(["wandering"], print).start(start)
    assert Path.cwd() == tmp_path


def test_an_interrupt_in_a_tracker_is_the_users(installed):
    module = installed("good")
    trackers = Trackers.named(["good"], print)
    module().calls = type("Interrupting", (), {"append": lambda *_: (_ for _ in ()).throw(KeyboardInterrupt)})()
    with pytest.raises(KeyboardInterrupt):
        trackers.line(STEP)


@pytest.mark.rule("TRACKER-001")
def test_an_unknown_tracker_gets_the_closest_name(installed):
    installed("good")
    (first, second) = tracker_findings(["wandbb", "xyz", "good", "wandbb"])
    assert (first.rule, first.found, first.hint) == ("TRACKER-001", "wandbb", "did you mean wandb?")
    assert second.hint == "known: good, tensorboard, wandb"


@pytest.mark.rule("TRACKER-001")
@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_tracker_is_named_with_its_reason(installed, name):
    installed(name)
    (found,) = tracker_findings([name])
    assert found.rule == "TRACKER-001"
    assert BROKEN[name] in str(found)


@pytest.mark.rule("TRACKER-001")
def test_a_name_that_is_offered_twice_is_nobodys(installed):
    installed("good", name="tensorboard")
    with pytest.raises(
        PluginError, match="several distributions offer tensorboard, so none is used, found apr-train and an unk"
    ):
        make_tracker("tensorboard")


@pytest.mark.rule("TRACKER-002")
@pytest.mark.parametrize("name", BUILT_IN)
def test_a_tracker_without_its_package_names_the_extra(name, monkeypatch):
    monkeypatch.setattr("apr_train.run.trackers.util", SimpleNamespace(find_spec=lambda package: None))
    (found,) = tracker_findings([name])
    assert (found.rule, found.hint) == ("TRACKER-002", f"pip install 'apr-train[{name}]'")


def test_only_the_distributions_that_are_to_be_loaded_offer_trackers(installed, monkeypatch):
    installed("good")
    assert "good" in tracker_names()
    monkeypatch.setenv("APR_TRAIN_PLUGINS", "some-family")
    assert tracker_names() == sorted(BUILT_IN)
    (found,) = tracker_findings(["good"])
    assert "Only the distributions in APR_TRAIN_PLUGINS are loaded." in found.hint


def test_the_numbers_of_a_line_have_the_names_of_metrics():
    assert STEP.numbers() == {"loss": 2.5, "lr": 1e-3, "source_tokens/code": 7}
    assert START.numbers() == {"val_loss": 6.9}


def test_the_marks_of_trackers_and_families_are_two():
    from apr_train.family import hookimpl as of_a_family

    assert hookimpl.project_name != of_a_family.project_name
