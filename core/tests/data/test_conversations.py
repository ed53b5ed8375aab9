import json
import tracemalloc

import pyarrow
import pytest
from apr_train.data.conversations import ROLES, Conversation, Conversations
from apr_train.data.documents import read_documents
from apr_train.errors import DataError
from pyarrow import parquet

TAKE = Conversations()
ASKED, ANSWERED = {"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "2"}
SHAPES = {
    "messages": {"messages": [ASKED, ANSWERED]},
    "conversations": {"conversations": [{"from": "human", "value": "1+1?"}, {"from": "gpt", "value": "2"}]},
    "prompt and completion": {"prompt": "1+1?", "completion": "2"},
    "prompt and completion as messages": {"prompt": [ASKED], "completion": [ANSWERED]},
    "instruction": {"instruction": "1+1?", "input": "", "output": "2"},
    "instruction without input": {"instruction": "1+1?", "output": "2"},
    "parts": {"messages": [{"role": "user", "content": [{"type": "text", "text": "1+"}, {"type": "text", "text": "1?"}]}, ANSWERED]},  # noqa: E501
}  # fmt: skip


def take(record, where="chats.jsonl:3"):
    return json.loads(TAKE(record, where))


def refused(record):
    with pytest.raises(DataError) as caught:
        TAKE(record, "chats.jsonl:3")
    finding = caught.value.finding
    assert finding.subject == "chats.jsonl:3"
    return finding


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_becomes_the_same_conversation(shape):
    assert take(SHAPES[shape]) == {"messages": [ASKED, ANSWERED]}


def test_input_of_an_instruction_follows_it_behind_an_empty_line():
    record = {"instruction": "Add.", "input": "1 and 1", "output": "2", "text": "### Instruction: …"}
    assert take(record)["messages"][0]["content"] == "Add.\n\n1 and 1"


def test_system_beside_turns_comes_first():
    record = SHAPES["conversations"] | {"system": "Be brief."}
    assert take(record)["messages"][0] == {"role": "system", "content": "Be brief."}
    assert take(SHAPES["instruction"] | {"system": " "})["messages"] == [ASKED, ANSWERED]


def test_every_speaker_has_a_role():
    turns = [{"from": name, "value": "x"} for name in ("system", "human", "gpt", "tool", "observation", "user", "assistant")]
    roles = [message["role"] for message in take({"conversations": turns})["messages"]]
    assert roles == ["system", "user", "assistant", "tool", "tool", "user", "assistant"]


def test_what_a_template_may_read_is_kept_and_nulls_are_not():
    call = {"type": "function", "function": {"name": "f", "arguments": {"b": None, "a": 1}}}
    answer = {"role": "assistant", "content": None, "tool_calls": [call], "name": "bot", "reasoning_content": "hm"}
    record = {"messages": [ASKED, answer, {"role": "tool", "content": "3", "tool_call_id": "x"}], "tools": '[{"name": "f"}]'}
    found = TAKE(record, "x").decode()
    assert found == (
        '{"messages":[{"role":"user","content":"1+1?"},{"role":"assistant","tool_calls":[{"type":"function","function":'
        '{"name":"f","arguments":{"b":null,"a":1}}}],"name":"bot","reasoning_content":"hm"},'
        '{"role":"tool","content":"3","tool_call_id":"x"}],"tools":[{"name":"f"}]}'
    )


def test_conversation_is_read_back_from_its_bytes():
    raw = TAKE({"messages": [ASKED, ANSWERED, {"role": "user", "content": "ä🙂"}]}, "x")
    conversation = Conversation.from_bytes(memoryview(raw))
    assert conversation.to_bytes() == raw
    assert conversation.turns == [1]
    assert conversation.first(1).messages == [ASKED]


@pytest.mark.parametrize(
    ("record", "field", "found"),
    [
        ({"question": "?", "answer": "!"}, "", "the fields answer, question"),
        ({"messages": None}, "", "the fields messages"),
        ({}, "", "no fields"),
        (["a"], "", "a list"),
        ({"messages": "hello"}, "messages", "a text"),
        ({"messages": [ASKED, "hello"]}, "messages[1]", "a text"),
        ({"messages": [{"content": "x"}]}, "messages[0]", "the fields content"),
        ({"messages": [{"role": "user"}]}, "messages[0]", "the fields role"),
        ({"messages": [{"role": "user", "content": 3}]}, "messages[0]", "a number"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0]", "a part of the type 'image_url'"),
        ({"messages": [{"role": "user", "content": [7]}]}, "messages[0]", "a part that is a number"),
        ({"messages": [{"role": "asistant", "content": "x"}]}, "messages[0]", "'asistant'"),
        ({"messages": [{"role": ["user"], "content": "x"}]}, "messages[0]", "['user']"),
        ({"conversations": [{"from": "bing", "value": "x"}]}, "conversations[0]", "'bing'"),
        ({"conversations": [{"from": "human", "text": "x"}]}, "conversations[0]", "the fields from, text"),
        ({"prompt": 1, "completion": "x"}, "prompt", "a number"),
        ({"instruction": "x", "output": {"a": 1}}, "output", "an object"),
        ({"messages": [ASKED], "tools": "{"}, "tools", "Expecting property name"),
        ({"messages": [ASKED], "tools": {"a": 1}}, "tools", "an object"),
        ({"messages": [{"role": "user", "content": "\ud83d"}]}, "", "\\ud83d"),
    ],
)
def test_broken_record_is_refused_by_place_and_field(record, field, found):
    finding = refused(record)
    assert finding.field == field
    assert found in finding.found


def test_refusal_says_what_is_expected_and_what_may_be_meant():
    assert all(f'"{name}"' in refused({"a": 1}).expected for name in ("messages", "conversations", "prompt", "instruction"))
    assert 'kind = "text"' in refused({"text": "once"}).hint
    finding = refused({"messages": [{"role": "asistant", "content": "x"}]})
    assert finding.expected == ", ".join(ROLES)
    assert finding.hint == "did you mean assistant?"


def test_a_deep_record_is_no_crash():
    deep = []
    for _ in range(50):
        deep = [deep]
    assert "no text" in refused({"messages": [{"role": "user", "content": deep}]}).problem


def test_taking_a_conversation_needs_little_more_than_its_bytes():
    record = {"messages": [{"role": "user", "content": "x" * 10_000_000}, ANSWERED]}
    tracemalloc.start()
    TAKE(record, "x")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 60_000_000


def test_rows_of_a_parquet_file_are_conversations(tmp_path):
    """Arrow fills what a struct lacks with nulls, which are none of the message's keys."""
    table = {"messages": [[ASKED, ANSWERED | {"name": "bot"}], [ASKED, ANSWERED]], "id": [1, 2]}
    parquet.write_table(pyarrow.table(table), tmp_path / "chats.parquet")
    found = [json.loads(bytes(document.utf8)) for document in read_documents([tmp_path / "chats.parquet"], TAKE)]
    assert found == [{"messages": [ASKED, ANSWERED | {"name": "bot"}]}, {"messages": [ASKED, ANSWERED]}]


def test_lines_and_arrays_of_records_are_conversations(tmp_path):
    record = SHAPES["messages"]
    (tmp_path / "a.jsonl").write_text(json.dumps(record) + "\n" + json.dumps(SHAPES["instruction"]))
    (tmp_path / "b.json").write_text(json.dumps([record, record]))
    found = list(read_documents([tmp_path / "a.jsonl", tmp_path / "b.json"], TAKE))
    assert [json.loads(bytes(document.utf8)) for document in found] == [record] * 4
    assert [document.source for document in found][1::2] == [f"{tmp_path}/a.jsonl:2", f"{tmp_path}/b.json[1]"]


def deep(levels):
    return [deep(levels - 1)] if levels else []


@pytest.mark.parametrize("levels", [130, 900])
def test_what_is_nested_deeper_than_others_read_is_refused(levels):
    """1,500 levels are no JSON any more; of fewer, what is written down again would fail, and what renders it."""
    for record in (
        {"messages": [ASKED, {"role": "assistant", "tool_calls": deep(levels)}]},
        {"messages": [ASKED, ANSWERED], "tools": deep(levels)},
        {"messages": [ASKED, ANSWERED], "tools": json.dumps(deep(levels))},
    ):
        assert refused(record).problem == "nested too deep"


@pytest.mark.parametrize("name", ["x.jsonl", "x.json"])
def test_a_file_nested_1500_deep_is_refused_by_its_place(tmp_path, name):
    record = '{"messages": ' + "[" * 1500 + "]" * 1500 + "}"
    (tmp_path / name).write_text(record if name == "x.jsonl" else f"[{record}]")
    with pytest.raises(DataError, match=rf"{name}"):
        list(read_documents([tmp_path / name], TAKE))
