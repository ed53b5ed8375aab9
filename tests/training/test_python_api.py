"""`import apr_train`: the commands as functions, the same to the bit, silent, and leaving nothing behind in the process."""

import ast
import importlib.util
import inspect
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import apr_train
import attrs
import pytest
import torch
from apr_train.api.setting_types import TrainSettings
from apr_train.run.events import hookimpl
from apr_train.run.settings import GROUPS

ROOT = Path(__file__).parents[2]
FRESH = {"arch": "llama370m", "preset": "tiny", "precision": "fp32", "steps": 6, "val_every": 3, "save_every": 2, "keep": 0}
SMALL = {"sequence_length": 32, "val_batches": 2, "attention": "sdpa", "sample_tokens": 4, "threads": 1}


def json_of(output):
    """What a command printed as JSON, behind what it said on standard error."""
    return json.loads(output[output.index("{") :])


def as_options(values):
    return [str(word) for name, value in values.items() for word in (f"--{name.replace('_', '-')}", value)]


@pytest.fixture
def train(place, monkeypatch):
    """`apr_train.train` on the small corpus, which must print nothing."""
    return lambda **settings: apr_train.train(**{"data": place.corpus, **FRESH, **SMALL, **settings})


def test_the_import_takes_milliseconds_and_loads_no_torch():
    code = """
    import sys, time
    begin = time.process_time()
    import apr_train
    seconds = time.process_time() - begin
    assert "torch" not in sys.modules and "numpy" not in sys.modules
    try:
        apr_train.train(archh="x")
    except apr_train.AprTrainError as error:
        assert "did you mean arch?" in str(error)
    assert "torch" not in sys.modules
    apr_train.check, apr_train.load, apr_train.evaluate, apr_train.convert
    assert "torch" not in sys.modules
    print(seconds)
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    times = [float(subprocess.run(command, check=True, capture_output=True, text=True).stdout) for _ in range(3)]
    assert min(times) < 0.05


def test_every_name_comes_from_its_module_and_type_checkers_see_the_same():
    tree = ast.parse(Path(apr_train.__file__).read_text())
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    typed = {alias.name: node.module.removeprefix("apr_train.") for node in block.body for alias in node.names}
    assert typed == apr_train._MODULES
    assert sorted(apr_train.__all__) == sorted(typed)
    assert set(apr_train.__all__) <= set(dir(apr_train))
    for name, module in typed.items():
        assert getattr(apr_train, name).__module__ == f"apr_train.{module}"
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        apr_train.trian  # noqa: B018


def test_the_keywords_of_train_are_the_settings_and_the_types_of_all_are_fresh():
    spec = importlib.util.spec_from_file_location("setting_types", ROOT / "tools" / "setting_types.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    written = ROOT / "core" / "src" / "apr_train" / "api" / "setting_types.py"
    assert ast.dump(ast.parse(written.read_text())) == ast.dump(ast.parse(module.page())), "run `make docs`"
    names = [item.name for cls in GROUPS.values() for item in attrs.fields(cls)]
    assert list(TrainSettings.__annotations__) == names
    for function in (apr_train.train, apr_train.check_run):
        assert not set(inspect.signature(function).parameters) & set(names)


def test_a_run_is_the_command_lines_to_the_bit_and_prints_nothing(place, train, capfd):
    place.train(*as_options({**FRESH, **SMALL, "run": "cli"}))
    capfd.readouterr()
    heard = []
    run = train(run="api", notice=heard.append)
    assert capfd.readouterr() == ("", "")
    place.assert_same_end("cli", "api", step=6)
    assert run.folder == Path("runs/api")
    assert run.path == Path("runs/api/model.apr")
    assert run.card.exists()
    assert [json.loads(line.to_json()) for line in run.metrics] == [
        json.loads(line) for line in (place.run("api") / "metrics.jsonl").read_text().splitlines()
    ]
    assert list(run.val_losses) == [0, 3, 6]
    assert run.sample.step == 6
    assert run.notices == tuple(heard)
    assert any("byte-level BPE" in text for text in heard)
    assert run.model is run.model


def test_nothing_is_drawn_on_a_terminal_unless_it_is_asked_for(train, capfd, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    for stream in (sys.stdout, sys.stderr):
        monkeypatch.setattr(stream, "isatty", lambda: True)
    run = train(steps=2, val_every=1, ema=0.9, keep_best="val_loss", profile="1:2")
    run.model.generate("def ", max_tokens=2)
    assert capfd.readouterr() == ("", "")
    train(steps=1, run="shown", progress=True)
    assert "letting the model write …" in capfd.readouterr().err


def test_a_run_that_ends_early_says_why_and_goes_on(train, monkeypatch):
    point = metadata.EntryPoint(name="ends", value="ends:Ends", group="apr_train.trackers")
    monkeypatch.setattr("apr_train.run.trackers.entry_points", lambda group: ([point], ()))
    told = []

    class Ends:
        @hookimpl
        def run_ended(self, end):
            told.append(end)

    monkeypatch.setitem(sys.modules, "ends", SimpleNamespace(Ends=Ends))
    run = train(tracker="ends", steps=4, val_every=1, early_stop=1, lr=10.0, warmup_steps=0)
    assert (run.metrics[-1].step, run.path.exists()) == (1, True)
    assert run.ended_by.startswith("--early-stop 1: 1 validation without a better validation loss than ")
    whole = apr_train.train(resume=run.folder, early_stop=0)
    early, at_last = told
    assert (early.step, early.result, early.ended_by, early.stopped_by) == (1, run.path, run.ended_by, None)
    assert (at_last.step, at_last.result, at_last.ended_by) == (4, run.path, None)
    assert (whole.metrics[-1].step, whole.ended_by) == (4, None)


def test_progress_draws_what_the_command_line_draws(train, capfd):
    train(steps=1, progress=True)
    assert "step 1/1  loss" in capfd.readouterr().out


def test_settings_come_from_tables_and_names_win(place, train):
    tables = {"run": {"steps": 1, "seed": 3, "run": "a"}, "optimizer": {"lr": 1e-3}}
    run = apr_train.train(config=tables, data=[place.corpus], **{**FRESH, **SMALL, "steps": 2})
    assert run.metrics[-1].step == 2
    (place.folder / "run.toml").write_text('[run]\nseed = 3\nrun = "b"\n[optimizer]\nlr = 1e-3\n')
    other = apr_train.train(config=Path("run.toml"), data=str(place.corpus), **{**FRESH, **SMALL, "steps": 2})
    assert [line.loss for line in run.metrics] == [line.loss for line in other.metrics]


def test_the_tables_of_a_mixture_are_dictionaries(place):
    source = [{"name": "one", "path": place.corpus, "weight": 3}, {"name": "two", "path": [place.corpus], "weight": 1}]
    run = apr_train.train(source=source, **{**FRESH, **SMALL, "steps": 1})
    assert set(run.metrics[-1].source_val_loss) == {"one", "two"}


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"stepz": 3, "batchsize": 4}, ["train [stepz]: no such setting. did you mean steps?", "did you mean batch_size?"]),
        ({"learning_rate": 1e-3}, ["Here that is lr."]),
        ({"batch-size": 2}, ["Write it as batch_size."]),
        ({"epochs": 2}, ["A run is counted in steps."]),
        ({"source": [{"name": "a", "pth": "x"}]}, ["source[0].pth", "did you mean path?"]),
        ({"source": "x"}, ["train [source]: an array of tables is wanted. Give a list of dictionaries."]),
        ({"group": {"pattern": "*norm*"}}, ["train [group]: an array of tables is wanted. Give a list of dictionaries."]),
        ({"steps": "many"}, ["wrong type, expected int, found 'many'"]),
        ({"schedule": "cosin"}, ["no such choice", "did you mean cosine?"]),
        ({"config": {"optimiser": {"lr": 1}}}, ["config [optimiser]: no such table. did you mean optimizer?"]),
        ({"config": "nowhere.toml"}, ["nowhere.toml: cannot be read"]),
        ({"resume": "runs/nothing"}, ["this is no run"]),
        ({"arch": "qwen22"}, ["no installed plugin offers this family", "did you mean qwen2?"]),
        ({"init": "nowhere.apr", "preset": None}, ["nowhere.apr: no such file"]),
        ({"tracker": "wandbb"}, ["TRACKER-001", "did you mean wandb?"]),
    ],
)
def test_what_is_wrong_is_one_error_with_everything_before_anything_is_made(place, train, settings, told):
    with pytest.raises(apr_train.AprTrainError) as caught:
        train(**settings)
    for text in told:
        assert text in str(caught.value)
    assert not (place.folder / "runs").exists()


@pytest.mark.parametrize("at", ["step", "save"])
def test_ctrl_c_leaves_a_whole_folder_and_the_handlers_alone(place, train, monkeypatch, at):
    from apr_train.training import loop

    whole = train(run="whole")
    module, name = (loop, "train_step") if at == "step" else (loop.Run, "save")
    calls, usual, handlers = [], getattr(module, name), []

    def interrupted(*args, **kwargs):
        calls.append(None)
        handlers.append(signal.getsignal(signal.SIGINT))
        if len(calls) == (5 if at == "step" else 2):
            signal.raise_signal(signal.SIGINT)
        return usual(*args, **kwargs)

    monkeypatch.setattr(module, name, interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(run="broken")
    assert set(handlers) == {signal.getsignal(signal.SIGINT)}
    monkeypatch.undo()
    monkeypatch.chdir(place.folder)
    monkeypatch.setenv("APR_TRAIN_CACHE", str(place.corpus.parent / "cache"))
    assert sorted(path.name for path in (place.folder / "runs" / "broken").glob("step-*"))[-1:] != ["step-000006"]
    resumed = apr_train.train(resume="runs/broken")
    place.assert_same_end("whole", "broken", step=6)
    assert [line.loss for line in resumed.metrics] == [line.loss for line in whole.metrics]


def test_a_resume_of_a_finished_run_gives_it_back_as_it_is(place, train):
    run = train(run="a")
    before = {path: path.stat().st_mtime_ns for path in run.folder.rglob("*")}
    again = apr_train.train(resume=run.folder)
    assert again.metrics == run.metrics
    assert {path: path.stat().st_mtime_ns for path in run.folder.rglob("*")} == before
    longer = apr_train.train(resume=Path("runs/a"), steps=8)
    assert longer.metrics[-1].step == 8


def process_state():
    return (
        torch.get_num_threads(),
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.get_rng_state().tolist(),
        os.environ.get("CUBLAS_WORKSPACE_CONFIG"),
        [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)],
        Path.cwd(),
    )


def test_nothing_of_a_run_stays_behind_in_the_process(train):
    torch.set_num_threads(2)
    torch.manual_seed(17)
    before = process_state()
    try:
        train(run="a", deterministic=True, seed=5)
        assert process_state() == before
        with pytest.raises(apr_train.AprTrainError):
            train(run="a", deterministic=True)  # the name is taken
        assert process_state() == before
        apr_train.check_run(**{**FRESH, "deterministic": True, "data": "."})
        assert process_state() == before
    finally:
        torch.set_num_threads(1)


def test_two_runs_in_one_process_and_one_in_another_thread_do_not_see_each_other(place, train):
    runs = [train(run="a"), train(run="b", seed=1)]
    other = threading.Thread(target=lambda: runs.append(train(run="c")))
    other.start()
    other.join()
    losses = [[line.loss for line in run.metrics] for run in runs]
    assert losses[0] == losses[2] != losses[1]


def test_logits_are_those_of_transformers(bases, place):
    from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

    for arch, theirs in (("qwen2", AutoModelForCausalLM), ("codebert", AutoModelForMaskedLM)):
        path, folder = bases[arch]
        model = apr_train.load(path)
        assert model.kind == ("decoder" if arch == "qwen2" else "encoder")
        ids = model.tokenizer.encode("def alpha(beta):\n    return beta", special=True)
        with torch.no_grad():
            expected = theirs.from_pretrained(folder)(torch.tensor([ids])).logits[0]
        torch.testing.assert_close(model("def alpha(beta):\n    return beta"), expected, atol=2e-5, rtol=1e-4)
        torch.testing.assert_close(model(ids), expected, atol=2e-5, rtol=1e-4)


def test_a_model_refuses_what_it_cannot_read_and_what_its_kind_does_not_do(bases, place):
    decoder, encoder = (apr_train.load(bases[arch][0]) for arch in ("qwen2", "codebert"))
    for ids, told in (([], "1 to"), ([1] * (decoder.positions + 1), "1 to"), ([10**6], "an id outside the vocabulary")):
        with pytest.raises(apr_train.AprTrainError, match=told):
            decoder(ids)
    for call, told in (
        (lambda: encoder.generate("x"), "generate is nothing for this model, expected decoder, found encoder"),
        (lambda: encoder.infill("x", "y"), "infill is nothing"),
        (lambda: decoder.fill_mask("x"), "fill_mask is nothing for this model, expected encoder, found decoder"),
        (lambda: decoder.generate("x", max_token=3), r"generate \[max_token\]: no such keyword. did you mean max_tokens\?"),
        (lambda: decoder.generate("x", stop=""), "an empty text is everywhere"),
        (lambda: decoder.generate("x", max_tokens=0), "too small"),
        (lambda: decoder.generate(""), "the prompt is empty"),
        (lambda: apr_train.load(bases["qwen2"][0], devic="cpu"), "did you mean device"),
        (lambda: apr_train.load(bases["qwen2"][0], precision="fp8"), "no such choice"),
        (lambda: apr_train.load("nowhere"), "no such file or folder"),
        (lambda: apr_train.evaluate(bases["qwen2"][0], batches=-1), "too small"),
        (lambda: apr_train.evaluate(bases["qwen2"][0], batch=1), r"did you mean batches\?|did you mean batch_size\?"),
        (lambda: apr_train.convert(bases["qwen2"][0], "y.apr", dtype="f8"), "no such choice"),
        (lambda: apr_train.export(bases["qwen2"][0], "y", dtype="q8_0"), "expected f32, f16, bf16, found q8_0"),
        (lambda: apr_train.export(bases["qwen2"][0], "y.gguf", format="gguf", shard_size=5), "a GGUF is one file"),
        (lambda: apr_train.check("x.apr", preset="tiny"), "for a run from scratch"),
    ):
        with pytest.raises(apr_train.AprTrainError, match=told):
            call()


def test_functions_give_what_the_commands_print(place, taught, capfd):
    shown = json_of(place("eval", taught, "--data", place.corpus, "--sequence-length", 32, "--json"))["results"][0]
    given = apr_train.evaluate(taught, data=place.corpus, sequence_length=32)
    found = json.loads(json.dumps(attrs.asdict(given)))
    assert {**found, "tokens_per_s": 0} == {**shown, "tokens_per_s": 0}

    shown = json_of(place("generate", taught, "--prompt", "def ", "--max-tokens", 6, "--temperature", 0.9, "--json"))
    pieces = []
    made = apr_train.generate(taught, "def ", max_tokens=6, temperature=0.9, emit=pieces.append)
    assert (made.text, list(made.tokens)) == (shown["text"], shown["tokens"])
    assert "".join(pieces) == made.text

    shown = json_of(place("check", taught, "--sequence-length", 9999, "--json", code=3))
    assert json.loads(json.dumps(apr_train.check(taught, sequence_length=9999).to_dict(), default=str)) == shown

    shown = json_of(place("eval", taught, "--data", place.corpus, "--syntax", 3, "--max-tokens", 8, "--json"))["results"][0]
    gate = apr_train.evaluate_syntax(taught, 3, data=place.corpus, max_tokens=8)
    assert [item["completion"] for item in shown["completions"]] == [item.completion for item in gate.completed]
    assert (shown["parsed"], shown["rate"]) == (gate.parsed, gate.rate)
    assert capfd.readouterr() == ("", "")


def test_conversions_write_the_bytes_of_the_commands(place, taught, capfd):
    told = {
        "a": (place("export", taught, "-o", "a"), apr_train.export(taught, "b")),
        "a.gguf": (
            place("export", taught, "-o", "a.gguf", "--format", "gguf"),
            apr_train.export(taught, "b.gguf", format="gguf"),
        ),
        "a.apr": (place("import", "a", "-o", "a.apr", "--dtype", "bf16"), apr_train.convert("a", "b.apr", dtype="bf16")),
    }
    assert capfd.readouterr() == ("", "")
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        assert Path("a", name).read_bytes() == Path("b", name).read_bytes()
    assert Path("a.gguf").read_bytes() == Path("b.gguf").read_bytes()
    for name in ("a", "b"):  # the notes in an .apr hold the time
        apr_train.export(f"{name}.apr", f"{name}-again")
    assert Path("a-again/model.safetensors").read_bytes() == Path("b-again/model.safetensors").read_bytes()
    for shown, given in told.values():
        kinds = ", ".join(f"{count} {name}" for name, count in given.dtypes.items())
        assert f"{sum(given.dtypes.values())} tensors ({kinds})" in shown
    assert told["a.gguf"][1].verified
    assert told["a.apr"][1].keeps_reference


SCRIPT = """
from pathlib import Path
from typing import assert_type

import apr_train
from apr_train.run.metrics import Metrics

run = apr_train.train(arch="qwen2", init=Path("x.apr"), steps=3, lr=1, data=["a", Path("b")], tracker="tensorboard")
assert_type(run, apr_train.FinishedRun)
assert_type(run.metrics, list[Metrics])
assert_type(run.val_losses, dict[int, float])
text: str = run.model.generate("x", max_tokens=3).text
assert_type(apr_train.load("x"), apr_train.LoadedModel)
assert_type(apr_train.export("x", "y"), apr_train.Converted)
assert_type(apr_train.export("x", "y.gguf", format="gguf", dtype="q8_0"), apr_train.Exported)
loss: float = apr_train.evaluate("x", data="src", device="cpu").loss
apr_train.check("x").errors
"""
WRONG = {
    "apr_train.train(stepz=3)": "stepz",
    'apr_train.train(steps="3")': "arg-type",
    'apr_train.train(schedule="cosin")': "arg-type",
    'apr_train.load("x", devic="cpu")': "devic",
    'apr_train.export("x", "y", dtype="q8_0")': "call-overload",
    'apr_train.evaluate("x").los': "attr-defined",
}


@pytest.mark.slow
def test_a_type_checker_sees_the_signatures(tmp_path):
    (tmp_path / "right.py").write_text(SCRIPT)
    (tmp_path / "wrong.py").write_text("import apr_train\n" + "\n".join(WRONG))
    pytest.importorskip("mypy")
    environment = {**os.environ, "MYPYPATH": str(ROOT / "core" / "src")}
    command = [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", "--cache-dir", ROOT / ".mypy_cache"]
    command += ["--config-file", ROOT / "pyproject.toml", "right.py", "wrong.py"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600)
    errors = [line for line in done.stdout.splitlines() if ": error: " in line]
    assert [line for line in errors if not line.startswith("wrong.py")] == [], done.stdout
    for number, (call, told) in enumerate(WRONG.items(), start=2):
        assert any(line.startswith(f"wrong.py:{number}:") and told in line for line in errors), (call, done.stdout)
