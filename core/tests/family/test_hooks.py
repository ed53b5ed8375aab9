"""The contract's text: every hook has its rules in the docstring and its signature in docs/hooks.md."""

import ast
import doctest
import inspect
import re
from pathlib import Path

import pytest
from apr_train.family import hooks
from apr_train.family.hooks import MANDATORY
from apr_train.family.plugin_module import spec_arguments

PAGE = (Path(__file__).parents[3] / "docs" / "hooks.md").read_text()
SOURCE = ast.parse(Path(hooks.__file__).read_text())
SPECS = {node.name: node for node in SOURCE.body if isinstance(node, ast.FunctionDef)}


def test_two_hooks_are_mandatory_and_the_others_say_that_they_are_not():
    assert MANDATORY == ("build_config", "map_tensor_names")
    optional = {name for name in SPECS if inspect.getdoc(getattr(hooks, name)).startswith("Optional: ")}
    assert optional == {"validate_family", "attention_impl", "build_model"}
    assert set(SPECS) == optional | set(MANDATORY)
    assert set(spec_arguments()) == set(SPECS)


@pytest.mark.parametrize("hook", SPECS)
def test_the_docs_have_the_signature_word_for_word(hook):
    node = SPECS[hook]
    signature = f"def {hook}({ast.unparse(node.args)}) -> {ast.unparse(node.returns)}"
    section = PAGE.split(f"\n## {hook}\n")[1].split("\n## ")[0]
    assert f"```python\n{signature}\n```" in section


def test_the_docs_describe_no_hook_that_does_not_exist():
    assert set(re.findall(r"^def (\w+)\(.*\) -> ", PAGE, re.MULTILINE)) == set(SPECS)


@pytest.mark.parametrize("hook", SPECS)
def test_every_argument_and_the_answer_are_typed(hook):
    node = SPECS[hook]
    assert node.returns is not None
    assert all(argument.annotation is not None for argument in node.args.args)
    assert tuple(argument.arg for argument in node.args.args) == spec_arguments()[hook]


@pytest.mark.parametrize("hook", SPECS)
def test_a_docstring_says_who_calls_it_what_it_must_not_do_and_shows_an_example(hook):
    text = inspect.getdoc(getattr(hooks, hook))
    assert "Called " in text
    assert re.search(r"[Mm]ust (not|be|allocate|name)", text)
    (example,) = doctest.DocTestParser().get_examples(text)
    (function,) = ast.parse(example.source).body
    assert function.name == hook
    assert tuple(argument.arg for argument in function.args.args) == spec_arguments()[hook]


@pytest.mark.parametrize("hook", SPECS)
def test_the_example_in_the_docs_is_the_one_in_the_docstring(hook):
    (example,) = doctest.DocTestParser().get_examples(inspect.getdoc(getattr(hooks, hook)))
    assert f"```python\n{example.source.rstrip()}\n```" in PAGE
