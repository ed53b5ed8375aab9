"""Imports point one way, families stay out of the core, and the light modules never reach torch: by the source's own graph."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CORE = ROOT / "core" / "src"

LINE = [
    *("errors", "rules", "atomic", "suggest", "checkpoint", "family", "run", "model", "data", "preflight", "artifact"),
    *("training", "inference", "testing", "cli"),
]
"""The rooms in the way of the data: a module imports from its own room and from those before it, never in a circle."""

TORCH_FREE_ROOMS = set(LINE) - {"model", "training", "inference", "testing"}
"""Importing anything of these loads no torch; what needs it there imports it when it is called."""
TORCH_FREE_MODULES = {
    f"apr_train.model{name}" for name in ("", ".attention", *(f".attention.{n}" for n in ("backend", "choose", "masks")))
}
"""What a check needs of attention: the names and the rules of choice."""
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
    """Absolute names that a file imports; `from package import module` gives the module."""
    tree = ast.parse(path.read_text())
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
    """`apr_train.model.rope` → `nn`."""
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
    assert {unit(name) for name in MODULES} - {""} <= set(LINE)


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


@pytest.mark.parametrize("folder", FAMILIES, ids=lambda folder: folder.name)
def test_a_plugin_imports_only_public_modules_of_the_core_and_no_other_family(folder):
    own = f"apr_train_{folder.name}"
    for path in (folder / "src").rglob("*.py"):
        names = imports_of(path, MODULES)
        foreign = {name for name in names if name.startswith("apr_train_") and name.split(".")[0] != own}
        private = {
            name for name in names if name.startswith("apr_train.") and any(part.startswith("_") for part in name.split("."))
        }
        assert not foreign | private


@pytest.mark.parametrize("folder", FAMILIES, ids=lambda folder: folder.name)
def test_a_plugin_imports_no_heavy_library_when_it_is_imported(folder):
    for path in (folder / "src").rglob("*.py"):
        names = imports_of(path, MODULES, at_import_only=True)
        reached = set().union(*(reached_at_import(name) for name in names)) if names else set()
        assert not {name.split(".")[0] for name in reached} & HEAVY_LIBRARIES
