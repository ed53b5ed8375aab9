"""Imports point one way, families stay out of the core, and the light modules never reach torch: by the source's own graph."""

import ast
import importlib
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CORE = ROOT / "core" / "src"

LINE = [
    *("errors", "rules", "atomic", "suggest", "checkpoint", "family", "run", "model", "data", "preflight", "artifact"),
    *("training", "inference", "testing", "api", "cli"),
]
"""The rooms in the way of the data: a module imports from its own room and from those before it, never in a circle."""

TORCH_FREE_ROOMS = set(LINE) - {"model", "training", "inference", "testing"}
"""Importing anything of these loads no torch; what needs it there imports it when it is called."""
TORCH_FREE_MODULES = {
    f"apr_train.model{name}" for name in ("", ".attention", *(f".attention.{n}" for n in ("backend", "choose", "masks")))
}
"""What a check needs of attention: the names and the rules of choice."""
FAMILY_DOOR, MODEL_DOOR = "apr_train.family", "apr_train.model"
"""A plugin's imports of the core: the first anywhere, the second inside functions, since it brings torch."""
HEAVY_LIBRARIES = {"torch", "transformers", "xformers"}

NAMES_ALLOWED = {
    "checkpoint/pre_tokenizers.py": "GGUF's names of tokenizers, which outlive the models they come from",
    "checkpoint/rope_rows.py": "GGUF's architectures with split-half rows: a fact of the format",
}


def module_name(path, source):
    parts = path.relative_to(source).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path, CORE): path for path in sorted(CORE.rglob("*.py"))}
FAMILIES = sorted(path for path in (ROOT / "plugins").iterdir() if (path / "pyproject.toml").exists())


def for_types_only(tree):
    """Nodes under `if TYPE_CHECKING:`: names for annotations, no import at run time."""
    blocks = [node for node in ast.walk(tree) if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    return {id(node) for block in blocks for node in ast.walk(block)}


def inside_functions(tree):
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    return {id(node) for function in functions for node in ast.walk(function)}


def imports_of(path, known=(), *, at_import_only=False):
    return imports_in(path.read_text(), known, at_import_only=at_import_only)


def imports_in(text, known=(), *, at_import_only=False):
    """Absolute names that a source imports; `from package import module` gives the module."""
    tree = ast.parse(text)
    skipped = for_types_only(tree) | (inside_functions(tree) if at_import_only else set())
    found = set()
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            full = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in known else node.module for name in full}
    return found


GRAPH = {name: imports_of(path, MODULES) & MODULES.keys() for name, path in MODULES.items()}
AT_IMPORT = {name: imports_of(path, MODULES, at_import_only=True) for name, path in MODULES.items()}


def unit(module):
    """`apr_train.model.decoder` → `model`."""
    return module.split(".")[1] if "." in module else ""


def room(module):
    """A module's room; one that is not in the line comes last, so that it cannot be imported from anywhere."""
    return LINE.index(unit(module)) if unit(module) in LINE else len(LINE)


def light_modules():
    return sorted(name for name in MODULES if unit(name) in TORCH_FREE_ROOMS or name in TORCH_FREE_MODULES)


def reached_at_import(module):
    """Every module that importing `module` imports, packages on the way included."""
    seen, waiting = set(), [module]
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        waiting += AT_IMPORT.get(name, ())
        waiting += [name.rsplit(".", 1)[0]] if "." in name else []
    return seen


def test_every_module_is_in_a_room_of_the_line():
    assert {unit(name) for name in MODULES} - {"", "__main__"} <= set(LINE)


@pytest.mark.parametrize("name", LINE)
def test_a_room_imports_only_from_the_rooms_before_it(name):
    pairs = [(module, other) for module in MODULES if unit(module) == name for other in GRAPH[module] if unit(other)]
    assert [f"{module} imports {other}" for module, other in pairs if room(other) > room(module)] == []


def test_no_import_goes_round_in_a_circle():
    graph = {name: set(others) - {name} for name, others in GRAPH.items()}
    while free := {name for name, others in graph.items() if not others}:
        graph = {name: others - free for name, others in graph.items() if name not in free}
    assert graph == {}


@pytest.mark.parametrize("module", light_modules())
def test_a_light_module_reaches_no_torch_when_it_is_imported(module):
    libraries = {name.split(".")[0] for name in reached_at_import(module)} - {"apr_train"}
    assert not libraries & HEAVY_LIBRARIES


def test_the_graph_tells_a_heavy_module_from_a_light_one():
    assert "torch" in {name.split(".")[0] for name in reached_at_import("apr_train.model.decoder")}
    assert "torch" in imports_of(MODULES["apr_train.family.plugin"])


def test_importing_all_light_modules_really_loads_no_torch():
    code = f"import importlib, sys\nfor name in {light_modules()!r}: importlib.import_module(name)\n"
    code += f"print(sorted({HEAVY_LIBRARIES!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "[]"


def family_words():
    """Entry-point names, distributions and modules of the families beside the core."""
    words = set()
    for folder in FAMILIES:
        project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
        words |= {project["name"], *project["entry-points"]["apr_train.families"].items()}
    return {word for item in words for word in ([item] if isinstance(item, str) else item)}


def strings_and_names(tree):
    """What the program says, docstrings left out: an example in one names no dependency."""
    prose = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose:
            yield node.value
        elif isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.alias):
            yield node.name


def families_named_in(path):
    said = " ".join(strings_and_names(ast.parse(path.read_text()))).lower()
    return [word for word in sorted(family_words()) if word.lower() in said]


@pytest.mark.parametrize("module", sorted(MODULES))
def test_the_core_names_no_family(module):
    path = MODULES[module]
    allowed = str(path.relative_to(CORE / "apr_train")) in NAMES_ALLOWED
    assert bool(families_named_in(path)) == allowed  # an exception that is no longer needed goes, too


def past_the_doors(text):
    """What a plugin's source imports of the core, and of other families, by any way but the two doors."""
    ours = {name for name in imports_in(text) if name.startswith("apr_train")}
    at_import = {name for name in imports_in(text, at_import_only=True) if name.startswith("apr_train")}
    return (at_import - {FAMILY_DOOR}) | (ours - {FAMILY_DOOR, MODEL_DOOR})


def plugin_sources():
    """Name → source: the families beside the core, the tests' own plugins, the code in the tutorial and the hooks' page."""
    found = {path.stem: path.read_text() for path in (ROOT / "tests" / "plugins").glob("*.py")}
    for folder in FAMILIES:
        found |= {f"{folder.name} {path.name}": path.read_text() for path in (folder / "src").rglob("*.py")}
    for page in ("tutorial", "hooks"):
        blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / f"{page}.md").read_text(), re.DOTALL)
        plugins = [block for block in blocks if not block.startswith("# test_") and "->" not in block]
        found |= {f"{page} {number}": block for number, block in enumerate(plugins)}
    return found


PLUGIN_SOURCES = plugin_sources()


@pytest.mark.parametrize("name", sorted(PLUGIN_SOURCES))
def test_a_plugin_comes_in_through_the_doors(name):
    assert past_the_doors(PLUGIN_SOURCES[name]) == set()


def test_the_tutorials_own_plugin_uses_both_doors():
    used = set().union(*(imports_in(text) for name, text in PLUGIN_SOURCES.items() if name.startswith("tutorial")))
    assert {FAMILY_DOOR, MODEL_DOOR} <= used


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("from apr_train.family.card import FamilyInfo", {"apr_train.family.card"}),
        ("from apr_train import rules", {"apr_train"}),
        ("from apr_train.model import Decoder", {"apr_train.model"}),
        ("def build_model():\n    from apr_train.model import Decoder", set()),
        ("def build_model():\n    from apr_train.model.decoder import Decoder", {"apr_train.model.decoder"}),
        ("import apr_train_other", {"apr_train_other"}),
    ],
)
def test_another_way_in_is_seen(text, found):
    assert past_the_doors(text) == found


@pytest.mark.parametrize("door", [FAMILY_DOOR, MODEL_DOOR])
def test_the_doors_are_for_plugins_and_the_core_imports_from_the_defining_modules(door):
    assert [name for name in MODULES if door in GRAPH[name]] == []


def test_every_name_of_the_doors_resolves():
    for name in (FAMILY_DOOR, MODEL_DOOR):
        door = importlib.import_module(name)
        assert [item for item in door.__all__ if not hasattr(door, item)] == []
        assert set(door.__all__) <= set(dir(door))
        assert not hasattr(door, "no_such_name")


def test_the_model_door_has_each_name_from_its_module_and_shows_the_same_to_type_checkers():
    from apr_train import model

    tree = ast.parse(MODULES[MODEL_DOOR].read_text())
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    typed = {alias.name: node.module.removeprefix(f"{MODEL_DOOR}.") for node in block.body for alias in node.names}
    assert typed == model._MODULES
    assert sorted(model.__all__) == sorted(model._MODULES)


@pytest.mark.parametrize("folder", FAMILIES, ids=lambda folder: folder.name)
def test_a_plugin_imports_no_heavy_library_when_it_is_imported(folder):
    for path in (folder / "src").rglob("*.py"):
        names = imports_of(path, MODULES, at_import_only=True)
        reached = set().union(*(reached_at_import(name) for name in names)) if names else set()
        assert not {name.split(".")[0] for name in reached} & HEAVY_LIBRARIES
