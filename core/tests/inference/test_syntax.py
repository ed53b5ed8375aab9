"""The gate on syntax: prompts, where a completion ends, what counts."""

import ast

import pytest
from apr_train.data.documents import Document
from apr_train.data.python_text import cut_body, function_end, signatures
from apr_train.errors import DataError
from apr_train.inference.generate import examinee_of
from apr_train.training.syntax import syntax_gate

SOURCE = '''import os


def plain(a, b=1) -> int:
    """Doc."""
    return a


class Thing:
    def method(self):
        return self


@decorator
async def several(
    first,
    *rest: int,
) -> None:  # why

    # a comment in front of the body
    @decorated
    def inner(): return 1
    return inner


def on_one_line(): pass
'''


def test_prompts_are_signatures_of_top_level_functions_without_bodies():
    found = list(signatures([Document("x.py", SOURCE)]))
    assert found == [
        ("x.py:4", "def plain(a, b=1) -> int:"),
        ("x.py:15", "async def several(\n    first,\n    *rest: int,\n) -> None:  # why"),
    ]


def test_a_signature_alone_is_never_python():
    for _, prompt in signatures([Document("x.py", SOURCE)]):
        with pytest.raises(SyntaxError):
            ast.parse(prompt)


def test_prompts_come_from_every_document_in_turn_and_only_once():
    one = "def a():\n  pass\ndef b():\n  pass\n"
    other = "def c():\n  pass\ndef a():\n  pass\ndef d():\n  pass\n"
    documents = [Document("1", one), Document("2", "no python here"), Document("3", other)]
    assert [prompt for _, prompt in signatures(documents)] == ["def a():", "def c():", "def b():", "def d():"]


def test_lines_are_counted_as_python_counts_them():
    text = "x = 1\r\n\x0cdef f(a):\r\n    '''\u2028'''\r\n    return a\r\n\r\ndef g():\r\n    pass\r\n"
    assert [prompt for _, prompt in signatures([Document("x", text)])] == ["def f(a):", "def g():"]


def test_no_more_documents_are_read_than_are_needed():
    def documents():
        yield Document("1", "def a():\n  pass\ndef b():\n  pass\n")
        raise AssertionError("read on")

    assert next(signatures(documents())) == ("1:1", "def a():")


@pytest.mark.parametrize(
    ("text", "end"),
    [
        ("\n    return 1\n", None),
        ("\n    return 1\n\n\n", None),
        ("\n    return 1\ndef g", 14),
        ("\n\n    return 1\n\n# comment", 16),
        (" pass\nx", 6),
        ("\n", None),
        ("\nx", 1),
    ],
)
def test_a_function_ends_at_the_first_line_that_is_not_indented(text, end):
    assert function_end(text) == end


def test_an_unfinished_last_line_is_left_out_only_at_the_limit():
    assert cut_body("\n    a = 1\n    b = (", limited=True) == ("\n    a = 1\n", None)
    assert cut_body("\n    a = 1\n    b = 2", limited=False) == ("\n    a = 1\n    b = 2", None)
    assert cut_body("\n    a = 1\nprint(", limited=True) == ("\n    a = 1\n", "end of function")


def gate(ready, texts, count=4, **more):
    documents = [Document(f"{name}.py", f"def {name}():\n    pass\n") for name in texts]
    return syntax_gate(examinee_of(ready), documents, count=count, **more)


def test_completions_are_judged_by_pythons_parser(scripted):
    ready = scripted(
        "\n    return 1\n\nprint(", "\n    return (\n", "\n    x = '\\d'\n    return x", "", max_position_embeddings=256
    )
    told = []
    report = gate(ready, "abcd", done=told.append)
    assert [item.error is None for item in report.completed] == [True, False, True, False]
    assert [item.stopped_by for item in report.completed] == ["end of function", "end of text", "end of text", "end of text"]
    assert report.completed[0].completion == "\n    return 1\n\n"
    assert (report.parsed, report.rate, report.asked, sum(told)) == (2, 0.5, 4, 4)
    assert "SyntaxError" in report.completed[1].error


def test_half_a_line_at_the_token_limit_is_not_judged(scripted, tokenizer):
    length = len(tokenizer.encode("\n    return 1\n    return foo("))
    report = gate(scripted("\n    return 1\n    return foo(bar, baz)", max_position_embeddings=256), "a", length=length)
    (item,) = report.completed
    assert (item.stopped_by, item.error) == ("length", None)
    assert item.completion == "\n    return 1\n"


def test_nesting_that_breaks_the_parser_is_a_failure_not_a_crash(scripted):
    (item,) = gate(scripted("\n    " + "(" * 300 + "\n", max_position_embeddings=1024), "a", length=400).completed
    assert item.error is not None


def test_prompts_that_do_not_fit_are_passed_over(scripted):
    long = Document("long.py", f"def {'x' * 300}():\n    pass\n")
    ready = scripted("\n    pass\n")
    report = syntax_gate(examinee_of(ready), [long, Document("short.py", "def s():\n    pass\n")], count=2, length=20)
    assert [item.source for item in report.completed] == ["short.py:1"]
    assert report.asked == 2


def test_no_function_at_all_is_an_error(scripted):
    with pytest.raises(DataError, match="no function signature"):
        syntax_gate(examinee_of(scripted()), [Document("x", "plain words")], count=3)
