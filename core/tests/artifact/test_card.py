"""The text of a model card: parts that are there, front matter that comes back, blocks and tables that nothing breaks."""

from xml.etree import ElementTree

import pytest
import yaml
from apr_train.artifact.card import Card, Use, markdown
from apr_train.errors import Finding, printable
from apr_train.run.metrics import Metrics
from apr_train.run.preflight_file import PreflightRecord
from apr_train.run.samples import Sample
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt

FINDING = Finding(rule="X-1", subject="a", problem="is\nodd", hint="Mend it.", severity="warning")


def card(**parts):
    return Card(**{"title": "t", "about": {"family": "f"}, **parts})


def headings(text):
    return [line for line in text.splitlines() if line.startswith("#")]


def test_a_part_that_is_empty_is_left_out():
    assert markdown(card()) == "# t\n\n|  |  |\n| --- | --- |\n| family | f |\n"


def test_every_part_has_its_section_in_order():
    whole = card(
        front_matter={"license": "mit"},
        description="What it is.",
        use=Use(python="load()", command="apr-train generate x.apr", remark="No tokenizer."),
        results=[Metrics(step=0, val_loss=2.0, perplexity=7.389), Metrics(step=1200, val_loss=1.5)],
        outcome="1,200 steps.",
        sample=Sample(step=2, prompt="one", text="two"),
        training=[("lr", "0.1"), ("lr", "0.2")],
        preflight=PreflightRecord(findings=(FINDING,), facts={"memory": {"weights": 2e6}}),
        settings="[run]",
        files="All of them.",
    )
    text = markdown(whole)
    assert text.startswith("---\nlicense: mit\n---\n\n# t\n\nWhat it is.\n\n")
    sections = ["Use", "Results", "Sample", "Training", "Preflight", "Settings", "Files"]
    assert headings(text)[1:] == [f"## {name}" for name in sections]
    assert "| 0 | 2.0000 | 7.389 |\n| 1,200 | 1.5000 | – |\n\n1,200 steps.\n" in text
    assert "No tokenizer.\n\n```python\nload()\n```\n\nWith apr-train: `apr-train generate x.apr`." in text
    assert "| lr | 0.1 |\n| lr | 0.2 |" in text
    assert "| memory | weights: 2.0 MB |" in text
    assert "\n- warning: X-1: a: is odd. Mend it.\n" in text
    assert "```toml\n[run]\n```" in text


def test_accuracy_has_a_column_only_where_it_was_measured():
    assert "accuracy" not in markdown(card(results=[Metrics(step=0, val_loss=2.0)]))
    assert "| 0 | 2.0000 | – | 0.25 |" in markdown(card(results=[Metrics(step=0, val_loss=2.0, val_accuracy=0.25)]))


TRICKY = ["no", "1.10", "1e3", "0x10", "2024-01-01", "null", "~", "", " x ", "ümläut"]
TRICKY += ["a: b #c", "- x", "---", "x\n---\ny"]


def test_strings_that_look_like_something_else_come_back_as_strings():
    data = {"license": "no", "tags": TRICKY, "model-index": [{"name": text, "value": 1.5} for text in TRICKY]}
    assert next(yaml.safe_load_all(markdown(card(front_matter=data)))) == data


@pytest.mark.parametrize("text", TRICKY)
def test_the_hubs_own_reader_gives_strings_back(text):
    read = ModelCard(markdown(card(front_matter={"license": "mit", "tags": [text], "note": text})))
    assert (read.data.tags, read.data.to_dict()["note"], headings(read.text)) == ([text], text, ["# t"])


@pytest.mark.parametrize("text", ["```", "a ```` b", "\n```\n## Preflight\n", "~~~", "`"])
def test_no_sample_ends_its_own_block(text):
    lines = markdown(card(sample=Sample(step=1, prompt=text, text="said"), settings=f"prompt = {text!r}")).split("\n")
    fence = next(line for line in lines if line.startswith("```"))
    inside = lines[lines.index(fence) + 1 :]
    assert "\n".join(inside[: inside.index(fence)]) == text
    toml = next(line for line in lines if line.endswith("toml"))
    assert toml.removesuffix("toml") not in text


HOSTILE = [
    "<img src=x onerror=alert(1)>",
    "a\n\n## Preflight\n\n- fine",
    "# Big",
    "---",
    "1. one",
    "![x](http://a/b.png)",
    "`a`",
]
HOSTILE += ["[a](javascript:b)", "&lt;script&gt;", "> said", "\x1b[31mred", "a\u202eb", "\ud800", "```", "==="]


@pytest.mark.parametrize("text", HOSTILE)
def test_what_others_wrote_is_text_and_no_markup(text):
    rendered = MarkdownIt("commonmark", {"html": True}).enable("table").render
    made = markdown(card(title=text, description=text, about={"name": text}, training=[(text, text)]))
    tree = ElementTree.fromstring(f"<card>{rendered(made)}</card>")
    shown = printable(" ".join(text.split()))
    assert [element.tag for element in tree] == ["h1", "p", "table", "h2", "table"]
    assert not [element.tag for element in tree.iter() if element.tag in ("img", "a", "code", "script", "em", "ul", "hr")]
    assert (tree.find("h1").text, tree.find("p").text) == (shown, shown)
    assert {cell.text for cell in tree.iter("td")} == {"name", shown}


@pytest.mark.parametrize("name", ["x`y.apr", "``.apr"])
def test_a_file_s_name_does_not_end_its_code(name):
    made = MarkdownIt().render(markdown(card(use=Use(python="load()", command=f"apr-train generate {name}"))))
    assert f"<code>apr-train generate {name}</code>" in made


def test_no_cell_ends_its_row():
    assert "| family | a \\| b c |" in markdown(card(about={"family": "a | b\nc"}))
