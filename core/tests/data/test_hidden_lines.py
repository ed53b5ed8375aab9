"""Which line of a document is hidden, and what stands around it."""

from apr_train.data.documents import Document
from apr_train.data.hidden_lines import HiddenLine, hidden_lines

SOURCE = """# a comment = of many words

def größe(x):
    // no code = either
    return x * 2
end
"""


def test_a_hidden_line_is_code_of_three_words_and_its_document_is_whole():
    seen = set()
    for number in range(40):
        text = f"{SOURCE}# {number}\n"
        (line,) = hidden_lines([Document("x", text)])
        assert line.filled(line.middle) == text
        seen.add((line.source, line.middle))
    assert seen == {("x:3", "def größe(x):"), ("x:5", "    return x * 2")}


def test_the_choice_depends_on_the_text_alone():
    documents = [Document(f"{number}", f"a = {number}\nb = {number} + 1\nc = b * {number}\n") for number in range(20)]
    one = {line.source.partition(":")[0]: line.middle for line in hidden_lines(documents)}
    other = {line.source.partition(":")[0]: line.middle for line in hidden_lines(documents[::-1])}
    assert one == other
    assert len(one) == 20
    assert {middle[0] for middle in one.values()} == {"a", "b", "c"}


def test_a_document_without_such_a_line_has_none():
    assert list(hidden_lines([Document("x", "one two\n# a b c d\n\n}\n")])) == []


def test_the_carriage_return_belongs_to_the_end_of_the_line():
    (line,) = hidden_lines([Document("x", "a = 1\r\n")])
    assert (line.middle, line.suffix) == ("a = 1", "\r\n")


def test_whether_a_document_is_python_is_noted():
    python, other = hidden_lines([Document("x", "a = 1\n"), Document("y", "let a = 1;\n")])
    assert (python.is_python, other.is_python) == (True, False)


def test_a_document_of_more_than_a_megabyte_is_passed_over():
    assert list(hidden_lines([Document("x", "a = 1\n" * 200_000)])) == []
    assert isinstance(next(hidden_lines([Document("x", "a = 1\n" * 100)])), HiddenLine)
