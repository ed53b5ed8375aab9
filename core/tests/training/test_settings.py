"""Settings: limits, TOML there and back, unknown names, what a resume may change."""

import json
import os
import tomllib

import attrs
import pytest
import torch
from apr_train.data.sources import find_files
from apr_train.errors import ConfigError, DataError, RunError
from apr_train.run.asked import stated
from apr_train.run.changes import Change, at_first, differences, last_change, read_changes, settings_at, write_changes
from apr_train.run.data_argument import DataArgument
from apr_train.run.option import DECIDES, FIXED, MAY_CHANGE, MAY_MOVE, flag, options_of
from apr_train.run.settings import GROUPS, Settings, SourceSettings, run_stem
from apr_train.run.settings_file import check_resume, from_tables, read_toml, to_toml, with_values
from apr_train.run.settings_paths import absolute_paths
from hypothesis import given
from hypothesis import strategies as st

TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)


def test_defaults_survive_the_file(tmp_path):
    (tmp_path / "run.toml").write_text(to_toml(Settings()), encoding="utf-8")
    assert read_toml(tmp_path / "run.toml") == Settings()


@given(
    arch=TEXT,
    data=st.lists(TEXT, max_size=3),
    lr=st.floats(min_value=1e-300, max_value=1e300),
    steps=st.integers(0, 2**31 - 1),
    compile=st.booleans(),
)
def test_any_values_survive_the_file(arch, data, lr, steps, compile):
    settings = with_values(Settings(), {"arch": arch, "data": data, "lr": lr, "steps": steps, "compile": compile})
    assert from_tables(tomllib.loads(to_toml(settings)), where="test") == settings


def test_the_command_line_wins_over_the_file(tmp_path):
    (tmp_path / "run.toml").write_text("[run]\nsteps = 7\nseed = 3\n")
    settings = with_values(read_toml(tmp_path / "run.toml"), {"steps": 9})
    assert (settings.run.steps, settings.run.seed) == (9, 3)


def test_every_unknown_key_is_told_what_to_write_all_at_once():
    tables = {
        "run": {"stpes": 3, "save-every": 1, "lr": 1.0, "wat": 0},
        "optimiser": {},
        "optimizer": {"learning_rate": 1.0},
        "data": {"batch_sise": 2},
        "training": {"num_train_epochs": 3, "max_steps": 5},
        "lr": 1.0,
        "model": 3,
    }
    with pytest.raises(ConfigError) as caught:
        from_tables(tables, where="run.toml")
    told = {finding.field: finding for finding in caught.value.findings}
    assert {finding.subject for finding in caught.value.findings} == {"run.toml"}
    hints = {
        "run.stpes": "did you mean run.steps?",
        "run.save-every": "Write it as run.save_every.",
        "run.lr": "Write it as optimizer.lr.",
        "lr": "Write it as optimizer.lr.",
        "optimiser": "did you mean optimizer?",
        "optimizer.learning_rate": "Here that is optimizer.lr.",
        "data.batch_sise": "did you mean data.batch_size?",
        "training": "The tables: [model], [data], [optimizer], [lora], [run], [processes].",
        "training.max_steps": "Here that is run.steps.",
        "model": "Write [model], and its settings below.",
    }
    assert {field: told[field].hint for field in hints} == hints
    assert "counted in run.steps" in told["training.num_train_epochs"].hint
    own = sorted(item.name for item in attrs.fields(GROUPS["run"]))
    assert told["run.wat"].hint == f"Known here: {', '.join(own)}."
    assert told.keys() == {*hints, "training.num_train_epochs", "run.wat"}


def test_a_file_that_begins_with_a_byte_order_mark_is_read(tmp_path):
    (tmp_path / "run.toml").write_bytes(b"\xef\xbb\xbf[run]\r\nsteps = 7\r\n")
    assert read_toml(tmp_path / "run.toml").run.steps == stated(tmp_path / "run.toml")["steps"] == 7
    (tmp_path / "run.toml").write_bytes("[run]\nsteps = 7\n".encode("utf-16"))
    with pytest.raises(ConfigError, match="Save it as UTF-8"):
        read_toml(tmp_path / "run.toml")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"steps": -1}, r"steps \(--steps\): too small, expected at least 0, found -1"),
        ({"steps": True}, "wrong type, expected int, found True"),
        ({"steps": 1.5}, "wrong type"),
        ({"lr": 0.0}, "more than 0"),
        ({"lr": float("nan")}, "not a finite number"),
        ({"precision": "bf61"}, "did you mean bf16"),
        ({"precision": "bfloat16"}, "Here that is bf16"),
        ({"schedule": "constant_with_warmup"}, "Here that is constant"),
        ({"compile": "yes"}, "wrong type, expected bool"),
        ({"data": ["a", 3]}, "wrong type, expected str, found 3"),
        ({"mask_probability": 0.95}, "too large"),
        ({"validation_fraction": 0}, "more than 0"),
        ({"validation_fraction": 1.0}, "too large"),
        ({"objective": "prefix-lm"}, "no such choice, expected causal-lm, sft, fim, masked-lm, found prefix-lm"),
        ({"data": "src"}, r"data \(--data\): wrong type, expected a list of str, found 'src'"),
        ({"data": 3}, "expected a list of str, found 3"),
        ({"data": ["src", ""]}, r"data \(--data\): empty"),
        ({"init": ""}, r"init \(--init\): empty"),
        ({"run": ""}, r"run \(--run\): empty"),
        ({"prompt": ""}, r"prompt \(--prompt\): empty"),
        ({"seed": 2**63}, "too large"),
        ({"ema": 1.0}, "too large, expected at most 0.99999"),
        ({"max_time": "soon"}, r"max_time \(--max-time\): not a length of time, expected 90s, 30m or 1h30m, found 'soon'"),
        ({"keep_best": "loss"}, "no such choice, expected none, val_loss, fim, syntax"),
    ],
)
def test_bad_values_name_the_option(values, message):
    with pytest.raises(ConfigError, match=message):
        with_values(Settings(), values)


@pytest.mark.parametrize("data", ['"src"', "3"])
def test_a_list_in_the_file_is_a_list(tmp_path, data):
    (tmp_path / "run.toml").write_text(f"[data]\ndata = {data}\n")
    with pytest.raises(ConfigError, match=r"run\.toml \[data \(--data\)\].*a list of str"):
        read_toml(tmp_path / "run.toml")


def test_the_largest_seed_is_one_that_everything_takes():
    largest = with_values(Settings(), {"seed": 2**63 - 1})
    assert from_tables(tomllib.loads(to_toml(largest)), where="test") == largest
    torch.Generator().manual_seed(largest.run.seed)


@pytest.mark.parametrize("content", [b"steps = ", b"\xff\xfe", b"run = 3"])
def test_a_bad_file_is_an_error_with_its_name(tmp_path, content):
    (tmp_path / "run.toml").write_bytes(content)
    with pytest.raises(ConfigError, match=r"run\.toml"):
        read_toml(tmp_path / "run.toml")


def test_a_missing_file_is_an_error_with_its_name(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.toml.*cannot be read"):
        read_toml(tmp_path / "none.toml")


def test_every_setting_has_a_text_and_a_unique_name():
    names = [item.name for cls in GROUPS.values() for item in options_of(cls)]
    assert len(names) == len(set(names))
    assert all(item.metadata["text"].endswith(".") for cls in GROUPS.values() for item in options_of(cls))


def test_a_resume_names_every_setting_that_must_not_change():
    wanted = with_values(Settings(), {"seed": 1, "sequence_length": 64, "batch_size": 4, "steps": 99})
    with pytest.raises(RunError) as caught:
        check_resume(Settings(), wanted)
    told = {finding.subject: finding for finding in caught.value.findings}
    assert told.keys() == {"--seed", "--sequence-length"}
    assert (told["--seed"].expected, told["--seed"].found) == ("0", "1")
    assert (told["--sequence-length"].expected, told["--sequence-length"].found) == ("nothing", "64")


OPTIONS = [(group, item) for group, cls in GROUPS.items() for item in options_of(cls)]


def another(group, item):
    """Settings that differ from the default ones in this alone."""
    meta = item.metadata
    if meta["kind"] is bool:
        value = not item.default
    elif meta["choices"]:
        value = next(choice for choice in meta["choices"] if choice != item.default)
    elif meta["kind"] is str:
        value = "5" if item.name == "max_time" else "other"
    else:
        least = next(limit for limit in (meta["minimum"], meta["above"], 0) if limit is not None)
        value = least + 3 if meta["kind"] is int else least + 0.7 * ((meta["maximum"] or 1.0) - least)
    value = (value,) if meta["many"] else value
    assert value != item.default
    return with_values(Settings(), {item.name: value})


@pytest.mark.parametrize(("group", "item"), OPTIONS, ids=[item.name for _, item in OPTIONS])
def test_a_setting_may_change_or_move_at_a_resume_or_says_why_it_may_not(group, item):
    meta = item.metadata
    assert [bool(meta[rule]) for rule in (MAY_CHANGE, MAY_MOVE, FIXED)].count(True) == 1
    started, wanted = Settings(), another(group, item)
    if meta[MAY_MOVE]:  # from nothing to something: that is another input, not another place
        started, wanted = wanted, with_values(wanted, {item.name: (("else",) if meta["many"] else "else")})
    if not meta[FIXED]:
        check_resume(started, wanted)
        changed = list(differences(started, wanted, 5))
        assert [change.setting for change in changed] == ([f"{group}.{item.name}"] if meta[MAY_CHANGE] else [])
        return
    with pytest.raises(RunError) as caught:
        check_resume(started, wanted)
    (finding,) = caught.value.findings
    assert finding.subject == flag(item.name)
    assert finding.problem == f"a resume cannot change this: {meta[FIXED]}"


def test_parts_of_a_mixture_say_why_they_may_not_change():
    kept = [item for item in attrs.fields(SourceSettings) if not item.metadata[MAY_MOVE]]
    assert all(item.metadata[FIXED] and not item.metadata[MAY_CHANGE] for item in kept)


def changed(step, setting, before, after):
    return Change(step=step, setting=setting, before=before, after=after)


def test_changes_come_back_from_the_file_and_are_undone_from_a_step_on(tmp_path):
    changes = [
        changed(10, "data.batch_size", 2, 4),
        changed(10, "model.attention", None, "eager"),
        changed(30, "data.batch_size", 4, 8),
        changed(30, "run.gone", 1, 2),
        changed(30, "gone.run", 1, 2),
        changed(30, "data.source", 1, 2),
    ]
    write_changes(tmp_path / "changes.jsonl", [])
    assert not (tmp_path / "changes.jsonl").exists()
    write_changes(tmp_path / "changes.jsonl", changes)
    assert read_changes(tmp_path / "changes.jsonl") == changes
    now = with_values(Settings(), {"batch_size": 8, "attention": "eager"})
    sizes = {step: settings_at(now, changes, step).data.batch_size for step in (31, 30, 11, 10, 0)}
    assert sizes == {31: 8, 30: 4, 11: 4, 10: 2, 0: 2}
    assert settings_at(now, changes, 10).model.attention is None
    assert at_first(changes, "data.batch_size", 8) == 2
    assert at_first(changes, "run.steps", 7) == 7
    assert last_change(changes, "data.batch_size", "run.steps") == 30
    assert last_change(changes, "run.steps") == -1
    assert str(changes[1]) == "--attention left open → eager from step 11 on"
    assert (
        str(changed(3, "run.tracker", (), ["wandb", "tensorboard"])) == "--tracker nothing → wandb, tensorboard from step 4 on"
    )
    assert str(changed(3, "run.compile", False, True)) == "--compile false → true from step 4 on"


@pytest.mark.parametrize(("setting", "before"), [("run.precision", "x"), ("data.batch_size", [1]), ("run.tracker", 3)])
def test_a_change_from_a_value_that_the_setting_cannot_have_names_file_and_line(tmp_path, setting, before):
    line = {"step": 1, "setting": setting, "before": before, "after": 2}
    (tmp_path / "changes.jsonl").write_text(json.dumps(line) + "\n")
    with pytest.raises(RunError, match=rf"changes.jsonl \[{setting}\]: line 1 has a value that the setting cannot have had"):
        read_changes(tmp_path / "changes.jsonl")


@pytest.mark.parametrize("line", ["3", "{}", '{"step": "1", "setting": "a", "before": 1, "after": 2}'])
def test_a_damaged_change_gives_its_line(tmp_path, line):
    (tmp_path / "changes.jsonl").write_text(line + "\n")
    with pytest.raises(RunError, match=r"changes.jsonl: line 1 is no change of a setting"):
        read_changes(tmp_path / "changes.jsonl")


@pytest.mark.parametrize(
    ("init", "name"),
    [
        ("Qwen2.5-Coder-0.5B", "Qwen2.5-Coder-0.5B"),
        ("Qwen2.5-Coder-0.5B/", "Qwen2.5-Coder-0.5B"),
        ("smollm2-v1.5.apr", "smollm2-v1.5"),
        ("smollm2.Q8_0.GGUF", "smollm2.Q8_0"),
        ("other.safetensors", "other"),
        ("Qwen2.5-Coder-0.5B/model.safetensors", "Qwen2.5-Coder-0.5B"),
        ("gone-0.5B", "gone-0.5B"),
    ],
)
def test_a_run_is_named_after_its_init(tmp_path, monkeypatch, init, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "Qwen2.5-Coder-0.5B").mkdir()
    settings = with_values(Settings(), {"arch": "qwen2", "init": init})
    for asked in (settings, absolute_paths(settings)):
        assert run_stem(asked) == f"qwen2-{name}"


def test_a_run_from_a_folder_called_like_a_file_keeps_its_whole_name(tmp_path):
    (tmp_path / "x.apr").mkdir()
    assert run_stem(with_values(Settings(), {"arch": "qwen2", "init": str(tmp_path / "x.apr")})) == "qwen2-x.apr"


@pytest.mark.parametrize("pattern", ["*.py", "a.py", "none/*.py"])
def test_a_pattern_is_what_the_user_wrote_and_not_where_he_stands(tmp_path, monkeypatch, pattern):
    here = tmp_path / "code [old]"
    here.mkdir()
    (here / "a.py").write_text("one")
    monkeypatch.chdir(here)
    (found,) = absolute_paths(with_values(Settings(), {"data": [pattern]})).data.data
    assert os.path.isabs(found)  # noqa: PTH117  # the setting is a string
    if pattern == "none/*.py":
        with pytest.raises(DataError, match="nothing matches this glob") as caught:
            find_files([found], notice=print)
        assert f"The folder {here} is there" in caught.value.finding.hint
    else:
        assert find_files([found], notice=print) == [here / "a.py"]


def test_what_does_not_decide_a_run_is_where_it_was_and_how_it_was_watched():
    """model.apr tells the rest, and equal runs in two places give equal bytes."""
    place = {item.name for cls in GROUPS.values() for item in attrs.fields(cls) if not item.metadata[DECIDES]}
    watched = {"eval", "rehash", "val_batches", "val_every", "save_every", "keep", "log_every", "prompt", "sample_tokens"}
    watched |= {"max_time", "early_stop", "keep_best", "peak_tflops", "profile", "tracker", "async_save"}
    assert place == watched | {
        "init",
        "tokenizer",
        "add_tokens",
        "rope_layout",
        "chat_template",
        "data",
        "source",
        "val_data",
        "gitignore",
        "run",
        "out",
        "device",
        "threads",
        "allow_cold_init",
        "shard",
        "replicate",
        "timeout",
        "offload",
    }


SOURCES = """
[[data.source]]
name = "code"
path = "src"
weight = 0.7

[[data.source]]
name = "docs"
path = ["a", "b"]
weight = 0.3
max_epochs = 2
"""


def test_sources_survive_the_file(tmp_path):
    (tmp_path / "run.toml").write_text(SOURCES)
    settings = read_toml(tmp_path / "run.toml")
    code, docs = settings.data.source
    assert (code.path, code.weight, docs.path, docs.max_epochs) == (("src",), 0.7, ("a", "b"), 2)
    assert from_tables(tomllib.loads(to_toml(settings)), where="test") == settings


def test_data_of_the_command_line_stands_for_the_sources_of_the_file(tmp_path):
    (tmp_path / "run.toml").write_text(SOURCES)
    settings = with_values(read_toml(tmp_path / "run.toml"), {"data": ("other",)})
    assert (settings.data.data, settings.data.source) == (("other",), ())


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("weight = inf", r"\[data.source\[0\].weight\]: not a finite number, found inf"),
        ('weight = "half"', r"\[data.source\[0\].weight\]: wrong type, expected float, found 'half'"),
        ("max_epochs = 0", r"\[data.source\[0\].max_epochs\]: too small, expected at least 1, found 0"),
        ('kind = "texts"', r"\[data.source\[0\].kind\]: no such choice, .* found texts. did you mean text\?"),
        ("path = 3", r"\[data.source\[0\].path\]: wrong type, expected a list of str, found 3"),
        ('text_feild = "x"', r"\[data.source\[0\].text_feild\]: no such setting. did you mean text_field\?"),
    ],
)
def test_a_bad_value_of_a_source_names_the_table_and_the_key(tmp_path, line, told):
    (tmp_path / "run.toml").write_text(f'[[data.source]]\nname = "a"\n{line}\n')
    with pytest.raises(ConfigError, match=rf"run\.toml \[?.*{told}"):
        read_toml(tmp_path / "run.toml")


def test_unknown_keys_of_a_source_are_told_in_their_order(tmp_path):
    keys = [f"key{number}" for number in range(9)]
    (tmp_path / "run.toml").write_text("[[data.source]]\n" + "".join(f"{key} = 1\n" for key in keys))
    with pytest.raises(ConfigError) as caught:
        read_toml(tmp_path / "run.toml")
    assert [finding.field for finding in caught.value.findings] == [f"data.source[0].{key}" for key in keys]


@pytest.mark.parametrize(
    ("text", "name", "path", "weight"),
    [
        ("code=src:0.7", "code", "src", "0.7"),
        ("code=src", "code", "src", None),
        ("code=C:x/y:1e-3", "code", "C:x/y", "1e-3"),
        ("code=src:-1", "code", "src", "-1"),
        ("code=src:nan", "code", "src", "nan"),
        ("src:0.7", None, "src:0.7", None),
        ("1code=src", None, "1code=src", None),
    ],
)
def test_an_argument_of_data_is_a_path_or_has_a_name(text, name, path, weight):
    found = DataArgument.parse(text)
    assert (found.name, found.path, found.weight) == (name, path, weight)
    assert str(found) == text


def test_a_path_that_is_there_is_no_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a=b").write_text("text")
    assert DataArgument.parse("a=b").name is None


def test_the_paths_of_sources_are_made_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    (tmp_path / "run.toml").write_text(SOURCES.replace('"b"', '"~/b"'))
    data = absolute_paths(with_values(read_toml(tmp_path / "run.toml"), {"val_data": ("code=held:2",)})).data
    assert [item.path for item in data.source] == [(str(tmp_path / "src"),), (str(tmp_path / "a"), "/home/me/b")]
    assert data.val_data == (f"code={tmp_path}/held:2",)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (("0.7", "0.8"), [("code.weight", "0.7", "0.8")]),
        (("max_epochs = 2", "max_epochs = 3"), [("docs.max_epochs", "2", "3")]),
        (('name = "code"', 'name = "more"'), [("code", "code", "nothing"), ("more", "nothing", "more")]),
    ],
)
def test_a_resume_changes_no_part_of_a_mixture(tmp_path, change, told):
    (tmp_path / "a.toml").write_text(SOURCES)
    (tmp_path / "b.toml").write_text(SOURCES.replace(*change))
    with pytest.raises(RunError) as caught:
        check_resume(read_toml(tmp_path / "a.toml"), read_toml(tmp_path / "b.toml"))
    assert [(item.field, item.expected, item.found) for item in caught.value.findings] == told
    moved = SOURCES.replace('"src"', '"elsewhere"')
    (tmp_path / "b.toml").write_text(moved)
    check_resume(read_toml(tmp_path / "a.toml"), read_toml(tmp_path / "b.toml"))


@pytest.mark.parametrize(("name", "most"), [("threads", 1024), ("val_batches", 2**31 - 1), ("steps", 2**31 - 1)])
@pytest.mark.parametrize("value", [100_000_000_000, 10**21])
def test_numbers_that_no_machine_has_room_for_are_refused(name, most, value):
    with pytest.raises(ConfigError, match=f"{name} .*: too large, expected at most {most}, found {value}"):
        with_values(Settings(), {name: value})


def test_a_number_where_a_text_is_wanted_is_told_to_stand_in_quotes(tmp_path):
    (tmp_path / "run.toml").write_text("[run]\nmax_time = 30\n")
    with pytest.raises(ConfigError, match=r'expected str, found 30. Write it in quotes: "30"'):
        read_toml(tmp_path / "run.toml")
