"""Discovery end to end: really installed plugins, in processes of their own."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BROKEN = {
    "broken": "the import of bad_broken failed: RuntimeError: no such luck",
    "exiting": "it called sys.exit(3)",
    "panicking": "the import of bad_panicking failed: Panic: out of cheese",
    "lazy": "the module cannot be examined: RuntimeError: cannot load FAMILY",
    "number_presets": "FAMILY.presets is wrong, expected a tuple of strings, found (1, 2)",
    "misspelt": "hook build_confg: there is no such hook. did you mean build_config?",
    "wrong_argument": "hook validate_family: unknown argument goal, expected arguments among (header, objective)",
    "defaulted": "hook build_config: argument preset, header has a default",
    "unmarked": "hook attention_impl: a function has the hook's name and is not marked with @hookimpl",
    "wrong_type": "hook attention_impl: the answer is of the wrong type, expected a list, found str 'sdpa'",
    "raising": "hook attention_impl: the hook raised ZeroDivisionError: one over none",
    "wrong_version": "api_version 2.0, this core speaks 1.",
    "no_version": "missing 1 required keyword-only argument: 'api_version'",
    "no_card": "bad_no_card has no FAMILY",
    "other_name": "FAMILY.name differs from the entry point's name, expected other_name, found another",
}


@pytest.fixture(scope="module")
def site(make_site):
    """Good families, one of which prints, every kind of bad plugin, and one name that two distributions offer."""
    bad = [(name, f"bad-{name.replace('_', '-')}") for name in BROKEN]
    good = [("good", "good-plugin"), ("chatty", "chatty-plugin")]
    return make_site(*good, ("twice", "twice-one"), ("twice", "twice-two"), *bad)


@pytest.fixture(scope="module")
def listed(site):
    return site.plugins()


def test_a_working_family_is_listed_among_the_broken_ones(listed):
    family = next(item for item in listed["families"] if item["name"] == "good")
    assert family["distribution"] == "good-plugin"
    assert family["version"] == "0.3.1"
    assert family["api_version"] == "1.0"
    assert family["presets"] == ["tiny", "small"]
    assert family["objectives"] == ["causal-lm"]
    assert family["attention"] == ["sdpa", "eager"]


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_plugin_is_named_with_its_reason(listed, name):
    fault = next(item for item in listed["broken"] if item["name"] == name)
    assert BROKEN[name] in fault["reason"]
    assert fault["distribution"] == f"bad-{name.replace('_', '-')}"
    assert fault["version"] == "0.3.1"
    assert name not in {item["name"] for item in listed["families"]}


@pytest.mark.parametrize(("name", "line"), [("broken", 'raise RuntimeError("no such luck")'), ("exiting", "sys.exit(3)")])
def test_a_failed_import_keeps_its_traceback(listed, name, line):
    fault = next(item for item in listed["broken"] if item["name"] == name)
    assert line in fault["traceback"]


def test_a_name_offered_twice_names_both_distributions_and_is_not_used(listed):
    faults = [item for item in listed["broken"] if item["name"] == "twice"]
    assert {item["distribution"] for item in faults} == {"twice-one", "twice-two"}
    assert all("twice-one 0.3.1 and twice-two 0.3.1" in item["reason"] for item in faults)
    assert "twice" not in {item["name"] for item in listed["families"]}


def test_naming_one_distribution_in_the_environment_settles_a_duplicate(site):
    listed = site.plugins(APR_TRAIN_PLUGINS="twice_two")
    assert [item["name"] for item in listed["families"]] == ["twice"]
    assert listed["broken"] == []


def test_the_environment_restricts_what_is_loaded_and_names_what_is_not_there(site):
    listed = site.plugins(APR_TRAIN_PLUGINS="good-plugin, no-such-plugin")
    assert [item["name"] for item in listed["families"]] == ["good"]
    assert [item["distribution"] for item in listed["broken"]] == ["no-such-plugin"]


def test_an_empty_environment_variable_loads_nothing(site):
    assert site.plugins(APR_TRAIN_PLUGINS="") == {"families": [], "broken": []}


def test_the_list_for_people_names_each_distribution_that_is_not_there_and_what_is_left_out(site):
    done = site.cli("plugins", APR_TRAIN_PLUGINS="good-plugn,nonsense")
    assert "found good-plugn. did you mean good-plugin?" in done.stdout
    assert "found nonsense. known: " in done.stdout
    assert "APR_TRAIN_PLUGINS leaves out" in done.stdout
    assert "pip install" not in done.stdout


def test_asking_for_a_family_that_the_environment_leaves_out_says_so(site):
    done = site.cli("check", "--arch", "good", APR_TRAIN_PLUGINS="chatty-plugin")
    assert done.returncode == 3
    assert (
        "good-plugin 0.3.1 offers it, but is not among the distributions to load: see APR_TRAIN_PLUGINS."
        in done.stdout + done.stderr
    )


def test_what_a_plugin_prints_at_import_stays_out_of_the_json(site, listed):
    assert "chatty" in {item["name"] for item in listed["families"]}
    assert "thank you" in site.cli("plugins", "--json", APR_TRAIN_PLUGINS="chatty-plugin").stderr


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--arch", "goood"), 3, "installed families: good, found goood. did you mean good?"),
        (("check", "--arch", "good", "--preset", "tinny"), 3, "expected one of tiny, small, found tinny. did you mean tiny?"),
        (("plguins",), 2, "Did you mean 'plugins'?"),
    ],
)
def test_what_is_mistyped_on_the_command_line_is_answered_with_the_closest_name(site, arguments, code, message):
    done = site.cli(*arguments, APR_TRAIN_PLUGINS="good-plugin")
    assert done.returncode == code
    assert message in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_debug_shows_what_the_plugin_itself_raised(site):
    quiet, loud = (site.cli(*more, "check", "--arch", "broken", APR_TRAIN_PLUGINS="bad-broken") for more in ([], ["--debug"]))
    assert quiet.returncode == loud.returncode == 3
    assert BROKEN["broken"] in quiet.stdout + quiet.stderr
    assert "Traceback" not in quiet.stderr
    assert 'raise RuntimeError("no such luck")' in loud.stderr


def test_debug_shows_every_call_of_a_familys_hooks(site):
    quiet, loud = (site.cli(*more, "plugins", APR_TRAIN_PLUGINS="good-plugin") for more in ([], ["--debug"]))
    assert quiet.stdout == loud.stdout
    assert quiet.stderr == ""
    assert "good-plugin 0.3.1 [good], hook build_config(preset, header): DecoderConfig, " in loud.stderr
    assert "good-plugin 0.3.1 [good], hook attention_impl(config): list, " in loud.stderr


def test_the_table_for_people_has_the_family_and_the_reasons(site):
    done = site.cli("plugins", "--tracebacks")
    assert done.returncode == 0
    assert "good-plugin" in done.stdout
    assert "broken: bad-misspelt 0.3.1 [misspelt], hook build_confg: there is no such hook" in done.stdout
    assert 'raise RuntimeError("no such luck")' in done.stdout


LOADED = """
import sys
from apr_train.family.registry import Registry
Registry.discover().family("good")
print(sorted(name for name in sys.modules if name.startswith(("bad_", "twice_", "good_", "apr_train_"))))
"""


def test_asking_for_one_family_imports_no_other(site):
    done = site.run("-c", LOADED, APR_TRAIN_PLUGINS="good-plugin,bad-broken,bad-exiting,twice-one")
    assert done.stdout.strip() == "['good_plugin']"


@pytest.mark.parametrize("name", ["broken", "exiting", "misspelt", "twice"])
def test_asking_for_a_broken_family_fails_with_its_reason(site, name):
    done = site.run("-c", f"from apr_train.family.registry import Registry; Registry.discover().family({name!r})")
    reason = BROKEN.get(name, "several distributions offer twice, so none is used")
    assert done.returncode == 1
    assert f"PluginError: {'twice' if name == 'twice' else 'bad-' + name}" in done.stderr
    assert reason in done.stderr


HEAVY = """
import sys
sys.argv = ["apr-train", *{arguments!r}]
from apr_train.cli import main
try:
    main()
except SystemExit as end:
    code = end.code
heavy = sorted({{"torch", "numpy", "gguf", "tokenizers", "transformers", "xformers", "rich"}} & set(sys.modules))
print("loaded:", code, heavy, file=sys.stderr)
"""


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["plugins"], ["plugins", "--json"]])
def test_the_light_commands_load_no_heavy_library(arguments):
    code = HEAVY.format(arguments=arguments)
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=120)
    assert done.stderr.splitlines()[-1] == "loaded: 0 []"


def test_the_installed_script_runs():
    script = Path(sys.executable).parent / "apr-train"
    done = subprocess.run([script, "plugins", "--json"], check=True, capture_output=True, text=True, timeout=120)
    assert json.loads(done.stdout)["broken"] == []
