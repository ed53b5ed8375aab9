"""Defects put in and taken out again: plugins from a folder of copies, functions of the core by their code."""

from __future__ import annotations

import ast
import importlib
import inspect
import os
import sys
import tempfile
import tomllib
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

from tests.mutants.defect import PLUGIN, Defect, Edit

ROOT = Path(__file__).parents[2]
PROJECTS = {path.parent.name: path for group in ("docs/families", "plugins") for path in ROOT.glob(f"{group}/*/pyproject.toml")}
"""Family → its pyproject.toml: the plugins of this repository and the examples of the documentation."""


class BadDefect(Exception):
    """A defect that is none: its old text is not there, or the new one is no code."""


def module_of(family: str) -> str:
    """The name of a family's module."""
    project = tomllib.loads(PROJECTS[family].read_text())["project"]
    return str(project["entry-points"]["apr_train.families"][family])


def source_of(family: str) -> Path:
    """The one file of a family's module."""
    module, folder = module_of(family), PROJECTS[family].parent
    return next(path for path in (folder / f"{module}.py", folder / "src" / module / "__init__.py") if path.exists())


@contextmanager
def families_installed() -> Iterator[None]:
    """Every family of `PROJECTS` installed, in this process and those that it starts, from its source in the repository."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for family, path in PROJECTS.items():
            (folder / f"{module_of(family)}.py").write_text(source_of(family).read_text(encoding="utf-8"), encoding="utf-8")
            project = tomllib.loads(path.read_text())["project"]
            info = folder / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
            info.mkdir()
            (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
            (info / "entry_points.txt").write_text(f"[apr_train.families]\n{family} = {module_of(family)}\n")
        with _first_on_the_path(folder, map(module_of, PROJECTS)):
            yield


@contextmanager
def _first_on_the_path(folder: Path, modules: Iterable[str]) -> Iterator[None]:
    """The modules imported anew, from `folder` where it has them; afterwards everything as it was."""
    modules = list(modules)
    path, variable, bytecode = list(sys.path), os.environ.get("PYTHONPATH"), sys.dont_write_bytecode
    before = {name: sys.modules.pop(name) for name in modules if name in sys.modules}
    sys.path.insert(0, str(folder))
    sys.dont_write_bytecode = True
    os.environ["PYTHONPATH"] = os.pathsep.join([str(folder), *([variable] if variable else [])])
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path[:], sys.dont_write_bytecode = path, bytecode
        os.environ.pop("PYTHONPATH")
        if variable is not None:
            os.environ["PYTHONPATH"] = variable
        for name in modules:
            sys.modules.pop(name, None)
        sys.modules.update(before)
        importlib.invalidate_caches()


@contextmanager
def applied(defect: Defect, family: str) -> Iterator[None]:
    """A defect in one family, within `families_installed`.

    Raises:
        BadDefect: the defect's old text is not where it should be, or the changed code does not compile.
    """
    places: dict[str, list[Edit]] = defaultdict(list)
    for edit in defect.edits:
        places[edit.where].append(edit)
    with ExitStack() as stack:
        for where, edits in places.items():
            stack.enter_context(_changed_plugin(family, edits) if where == PLUGIN else _changed_function(where, edits))
        yield


def _changed(text: str, edits: list[Edit]) -> str:
    for edit in edits:
        if text.count(edit.old) != 1:
            raise BadDefect(f"{edit.where} has {edit.old!r} {text.count(edit.old)} times")
        text = text.replace(edit.old, edit.new)
    return text


@contextmanager
def _changed_plugin(family: str, edits: list[Edit]) -> Iterator[None]:
    text = _changed(source_of(family).read_text(encoding="utf-8"), edits)
    _compile(text, family)
    with tempfile.TemporaryDirectory() as name:
        (Path(name) / f"{module_of(family)}.py").write_text(text, encoding="utf-8")
        with _first_on_the_path(Path(name), [module_of(family)]):
            yield


@contextmanager
def _changed_function(where: str, edits: list[Edit]) -> Iterator[None]:
    """Give the function itself other code: whoever imported it has the defect, too."""
    module, _, path = where.partition(":")
    function = _function(importlib.import_module(module), path)
    source = Path(function.__code__.co_filename).read_text(encoding="utf-8")
    first, last = _lines(ast.parse(source), path.split("."), where)
    lines = source.splitlines(keepends=True)
    changed = _changed("".join(lines[first:last]), edits)
    text = "".join([*lines[:first], changed, *lines[last:]])
    code = next(_codes(_compile(text, function.__code__.co_filename), path), None)
    if code is None or code.co_freevars != function.__code__.co_freevars:
        raise BadDefect(f"{where}: another function came of it")
    right, function.__code__ = function.__code__, code
    try:
        yield
    finally:
        function.__code__ = right


def _function(found: Any, path: str) -> FunctionType:
    for name in path.split("."):
        found = inspect.getattr_static(found, name, None)
    found = found.fget if isinstance(found, property) else getattr(found, "__func__", found)
    function = inspect.unwrap(found) if callable(found) else None
    if not isinstance(function, FunctionType):
        raise BadDefect(f"{path} is no function")
    return function


def _lines(tree: ast.AST, path: list[str], where: str) -> tuple[int, int]:
    """The lines of a function or method, counted from zero, the last one excluded."""
    node = tree
    for name in path:
        inside = [item for item in ast.iter_child_nodes(node) if getattr(item, "name", None) == name]
        if not inside:
            raise BadDefect(f"{where} is not there")
        node = inside[0]
    assert isinstance(node, ast.FunctionDef)
    return node.lineno - 1, node.end_lineno or node.lineno


def _codes(code: CodeType, path: str) -> Iterator[CodeType]:
    for item in code.co_consts:
        if isinstance(item, CodeType):
            if item.co_qualname == path:
                yield item
            yield from _codes(item, path)


def _compile(text: str, where: str) -> CodeType:
    try:
        return compile(text, where, "exec", dont_inherit=True)
    except SyntaxError as error:
        raise BadDefect(f"{where}: {error}") from error
