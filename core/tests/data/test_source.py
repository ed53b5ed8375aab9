"""What the settings say of sources, and every way in which they are no mixture."""

from fractions import Fraction

import pytest
from apr_train.data.look import look_at
from apr_train.data.objectives import OBJECTIVES
from apr_train.data.source import read_sources, sources_of
from apr_train.errors import ConfigError
from apr_train.run.settings import DataSettings, SourceSettings

CAUSAL = OBJECTIVES["causal-lm"]


def tables(*items):
    return DataSettings(source=tuple(SourceSettings(**item) for item in items))


def findings(data, objective=CAUSAL):
    return read_sources(data, objective)[1]


def test_without_names_there_is_one_pool():
    (pool,) = sources_of(DataSettings(data=("a", "b")), CAUSAL).learnt
    assert (pool.name, pool.paths, pool.kind, pool.weight, pool.max_epochs) == (None, ("a", "b"), "text", None, None)
    (nothing,) = sources_of(DataSettings(), CAUSAL).learnt
    assert (nothing.name, nothing.paths) == (None, ())


def test_arguments_and_tables_say_the_same():
    said = sources_of(DataSettings(data=("code=src:0.7", "docs=docs:0.3")), CAUSAL)
    items = [{"name": "code", "path": "src", "weight": 0.7}, {"name": "docs", "path": ["docs"], "weight": 0.3}]
    assert said == sources_of(tables(*items), CAUSAL)
    assert [source.weight for source in said.learnt] == [Fraction(7, 10), Fraction(3, 10)]


def test_a_table_says_more():
    item = {"name": "code", "path": ["a", "b"], "weight": 1.0, "max_epochs": 3, "text_field": "body"}
    (source,) = sources_of(tables(item), CAUSAL).learnt
    assert (source.paths, source.max_epochs, source.take.fingerprint) == (("a", "b"), 3, "text:body")


def test_shards_say_themselves_what_they_are():
    sources = sources_of(DataSettings(data=("a=x/*.bin:1", "b=text:2"), val_data=("a=v.bin",)), CAUSAL)
    assert [source.kind for source in (*sources.learnt, *sources.held_out)] == ["tokens", "text", "tokens"]


def test_a_held_out_source_is_read_and_weighed_as_the_one_of_its_name():
    item = {"name": "code", "path": "a", "weight": 2.0, "text_field": "body"}
    data = DataSettings(source=(SourceSettings(**item),), val_data=("code=v", "more=w"))
    code, more = sources_of(data, CAUSAL).held_out
    assert (code.take.fingerprint, code.weight) == ("text:body", 2)
    assert (more.take.fingerprint, more.weight) == ("text", None)


BAD = {
    "no name": (DataSettings(data=("a=x", "y")), "", "a source without a name beside others", "a name for each", "y"),
    "table without a name": (tables({"path": "x"}), "", "a source without a name beside others", "a name for each", "x"),
    "twice": (DataSettings(data=("a=x:1", "a=y:1")), "a", "two sources of one name", "each name once", "2 times"),
    "form": (
        tables({"name": "a b", "path": "x"}),
        "",
        "not a name for a source",
        "a letter, then letters, digits, _ and -",
        "'a b'",
    ),
    "some weights": (DataSettings(data=("a=x:1", "b=y")), "", "weights for some sources only", "all or none", "none for b"),
    "nothing": (DataSettings(data=("a=x:0", "b=y:0.0")), "", "the weights sum to nothing", "a sum above 0", "a 0, b 0"),
    "zero": (DataSettings(data=("a=x:0", "b=y:1")), "a", "a weight that is no share", "more than 0", "0"),
    "negative": (DataSettings(data=("a=x:-1", "b=y:1")), "a", "a weight that is no share", "more than 0", "-1"),
    "nan": (DataSettings(data=("a=x:nan", "b=y")), "a", "a weight that is no finite number", "such as 0.3", "nan"),
    "inf": (DataSettings(data=("a=x:inf", "b=y")), "a", "a weight that is no finite number", "such as 0.3", "inf"),
    "dots": (DataSettings(data=("a=x:1.2.3", "b=y")), "a", "a weight that is no finite number", "such as 0.3", "1.2.3"),
    "no path": (tables({"name": "a"}), "a", "a source without a path", "path", "nothing"),
    "kind": (
        tables({"name": "a", "path": "x", "kind": "chat"}),
        "a",
        "the objective causal-lm does not learn from a source of this kind",
        "text or tokens",
        "chat",
    ),
    "two kinds": (
        DataSettings(data=("x.bin", "y.txt")),
        "",
        "shards of token ids and texts in one source",
        "one of the two",
        "x.bin and y.txt",
    ),
    "held out twice": (DataSettings(val_data=("a=x", "a=y")), "a", "two sources of one name", "each name once", "2 times"),
}


@pytest.mark.rule("PREFLIGHT-040")
@pytest.mark.parametrize("name", BAD)
def test_what_is_no_mixture_is_said_with_what_would_be_one(name):
    data, field, problem, expected, found = BAD[name]
    (finding,) = findings(data)
    assert (finding.rule, finding.field, finding.problem) == ("PREFLIGHT-040", field, problem)
    assert (finding.expected, finding.found) == (expected, found)
    with pytest.raises(ConfigError, match=problem):
        sources_of(data, CAUSAL)


@pytest.mark.rule("PREFLIGHT-040")
def test_a_weight_that_is_no_number_is_refused_and_not_missed_as_well():
    told = [finding.problem for finding in findings(DataSettings(data=("a=x:1", "b=y:nan")))]
    assert told == ["a weight that is no finite number"]


@pytest.mark.parametrize("weight", ["0", "-1", "nan"])
def test_a_weight_of_held_out_text_must_be_a_share_too(weight):
    (finding,) = findings(DataSettings(data=("a=x:1", "b=y:1"), val_data=(f"a=v:{weight}", "b=w:1")))
    assert (finding.rule, finding.subject, finding.field, finding.found) == ("PREFLIGHT-040", "--val-data", "a", weight)


def test_a_text_field_of_a_source_without_texts_is_refused():
    (finding,) = findings(tables({"name": "a", "path": "x.bin", "text_field": "body"}))
    assert (finding.field, finding.problem, finding.found) == ("a", "a text field of a source that has no texts", "tokens")
    held = DataSettings(source=(SourceSettings(name="a", path="x", text_field="body"),), val_data=("a=v.bin",))
    assert findings(held) == []


@pytest.mark.rule("PREFLIGHT-040")
def test_an_encoder_takes_no_ids_and_the_file_that_says_so_is_named():
    (finding,) = findings(DataSettings(data=("x.bin",)), OBJECTIVES["masked-lm"])
    assert (finding.expected, finding.found) == ("text", "tokens, as x.bin is one")


@pytest.mark.rule("PREFLIGHT-040")
def test_sources_are_said_in_one_way():
    data = DataSettings(data=("a=x",), source=(SourceSettings(name="b", path="y"),))
    (finding,) = findings(data)
    assert finding.problem == "sources are named twice"


@pytest.mark.rule("PREFLIGHT-040")
def test_a_look_has_all_of_it_at_once_and_the_texts_as_well(tmp_path):
    (tmp_path / "y.txt").write_bytes(b"caf\xe9")
    data = DataSettings(data=(f"a={tmp_path}/none:1", f"a={tmp_path}/y.txt", f"b={tmp_path}/y.txt:-1"))
    found = look_at(data)
    assert [finding.rule for finding in found.findings] == ["PREFLIGHT-040"] * 3 + [
        "PREFLIGHT-019",
        "PREFLIGHT-025",
        "PREFLIGHT-025",
    ]
    assert found.learnt == ()


def test_a_source_without_a_text_is_named(tmp_path):
    (tmp_path / "blank.txt").write_text("\n\n")
    (tmp_path / "text.txt").write_text("some text\n" * 20)
    data = DataSettings(data=(f"code={tmp_path}/text.txt:1", f"nothing={tmp_path}/blank.txt:1"))
    (finding,) = look_at(data).findings
    assert (finding.problem, finding.field, finding.found) == (
        "the corpus is empty",
        "nothing",
        f"none in {tmp_path}/blank.txt",
    )


@pytest.mark.parametrize("argument", ["{}:0.7", "code={}:o.7", "code={}:70%"])
def test_a_weight_that_cannot_be_one_is_told_from_a_path(tmp_path, argument):
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "a.txt").write_text("some text\n" * 20)
    (finding,) = look_at(DataSettings(data=(argument.format(tmp_path / "src"),))).findings
    weight = argument.rpartition(":")[2]
    assert finding.rule == "PREFLIGHT-019"
    assert f"{tmp_path}/src is there: if {weight!r} is a weight, it must be a number, and needs a name" in finding.hint


def test_a_text_field_of_files_without_fields_is_said(tmp_path):
    (tmp_path / "a.txt").write_text("some text\n" * 20)
    (tmp_path / "b.csv").write_text("body\nsome other text\n")
    path, by_column = str(tmp_path), ".csv and .tsv files: 1 taken as text as they stand, not by column"
    told = look_at(DataSettings(data=(path,), text_field="body")).notes
    assert f"{path}: the text field 'body' means nothing here: all files are texts as they stand" in told
    assert any(note.startswith(by_column) for note in told)
    (tmp_path / "c.jsonl").write_text('{"body": "a third text"}\n')
    assert not any("means nothing" in note for note in look_at(DataSettings(data=(path,), text_field="body")).notes)
