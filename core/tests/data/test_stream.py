import json
from collections import Counter
from fractions import Fraction

import attrs
import numpy as np
import pytest
import torch
from apr_train.data.batch import IGNORED
from apr_train.data.objectives import OBJECTIVES
from apr_train.data.stream import BatchStream, StreamSource, row_counts, validation_batches
from apr_train.data.tokens import TokenFile
from apr_train.errors import ConfigError, DataError, RunError, TokenizerError
from hypothesis import given, settings
from hypothesis import strategies as st

CAUSAL, MASKED = OBJECTIVES["causal-lm"], OBJECTIVES["masked-lm"]
EOS = 258


@pytest.fixture
def stream_of(tokenizer, tokens_of):
    def make(lengths=(50, 70, 30), **options):
        values = {"objective": CAUSAL, "sequence_length": 8, "batch_size": 3, "seed": 5, "tokenizer": tokenizer}
        return BatchStream(tokens_of(lengths), **{**values, **options})

    return make


def equal(a, b):
    pairs = [(a.tokens, b.tokens), (a.targets, b.targets), (a.document_ids, b.document_ids), (a.keep, b.keep)]
    pairs.append((a.positions, b.positions))
    same = all((x is None and y is None) or torch.equal(x, y) for x, y in pairs)
    return same and (a.target_count, a.document_lengths) == (b.target_count, b.document_lengths)


VARIANTS = [
    {"objective": CAUSAL},
    {"objective": CAUSAL, "document_mask": True},
    {"objective": CAUSAL, "packing": "best-fit"},
    {"objective": MASKED},
    {"objective": MASKED, "document_mask": True},
]


def test_an_epoch_has_every_row_once_and_targets_follow_their_tokens(stream_of, tokens_of):
    stream = stream_of(batch_size=1)
    ids = tokens_of((50, 70, 30)).ids.astype(np.int64)
    seen = []
    for _ in range((150 - 1) // 8):
        batch = stream.next_batch()
        seen.append((batch.tokens[0].tolist(), batch.targets[0].tolist()))
        assert batch.target_count == 8
        assert (batch.keep, batch.document_ids) == (None, None)
    expected = [(ids[begin : begin + 8].tolist(), ids[begin + 1 : begin + 9].tolist()) for begin in range(0, 18 * 8, 8)]
    assert sorted(seen) == sorted(expected)
    assert seen != expected


@pytest.mark.rule("INV-TRAIN-011")
def test_an_exhausted_stream_cycles_visibly_in_another_order(stream_of):
    epochs = []
    stream = stream_of(batch_size=18, on_epoch=epochs.append)
    first, second = stream.next_batch(), stream.next_batch()
    assert epochs == [1, 2]
    assert stream.epoch == 2
    assert not torch.equal(first.tokens, second.tokens)
    assert sorted(first.tokens.tolist()) == sorted(second.tokens.tolist())


@pytest.mark.rule("INV-TRAIN-011")
def test_a_batch_larger_than_the_corpus_goes_through_it_more_than_once(stream_of):
    epochs = []
    stream = stream_of(lengths=(20,), batch_size=7, on_epoch=epochs.append)
    batch = stream.next_batch()
    assert batch.tokens.shape == (7, 8)
    assert epochs == [1, 2, 3]
    assert stream.state_dict()["index"] == 1


@pytest.mark.rule("INV-TRAIN-011")
@pytest.mark.parametrize("objective", [CAUSAL, MASKED])
def test_a_corpus_too_small_for_one_row_is_an_error(stream_of, objective):
    with pytest.raises(DataError, match="too small for one row"):
        stream_of(lengths=(5,), objective=objective)


def test_the_error_of_a_small_corpus_names_the_options_and_not_the_cache(stream_of, tokens_of, tokenizer, tmp_path):
    tokens = attrs.evolve(tokens_of((5,)), path=tmp_path / "0123.tokens")
    shared = {"objective": CAUSAL, "sequence_length": 8, "batch_size": 1, "tokenizer": tokenizer}
    with pytest.raises(DataError, match="too small for one row") as caught:
        BatchStream(tokens, seed=0, **shared)
    assert caught.value.finding.where == "--data"
    assert "--sequence-length" in caught.value.finding.hint


@pytest.mark.parametrize("variant", VARIANTS)
@settings(max_examples=15, deadline=None)
@given(position=st.integers(0, 40), size=st.integers(1, 5))
def test_a_restored_position_continues_bit_for_bit_with_any_batch_size(byte_tokenizer, tokens_of, variant, position, size):
    def make(batch_size):
        tokens = tokens_of((50, 70, 30, 3, 90))
        shared = {"sequence_length": 8, "seed": 5, "tokenizer": byte_tokenizer()}
        return BatchStream(tokens, batch_size=batch_size, **shared, **variant)

    whole, rest = make(1), make(size)
    for _ in range(position):
        whole.next_batch()
    rest.load_state_dict(json.loads(json.dumps(whole.state_dict())))
    for _ in range(3):
        batch = rest.next_batch()
        rows = [whole.next_batch() for _ in range(size)]
        assert torch.equal(batch.tokens, torch.cat([row.tokens for row in rows]))
        assert torch.equal(batch.targets, torch.cat([row.targets for row in rows]))
        assert batch.target_count == sum(row.target_count for row in rows)
    assert rest.state_dict() == whole.state_dict()


def test_the_seed_decides_the_order(stream_of):
    assert equal(stream_of(seed=1).next_batch(), stream_of(seed=1).next_batch())
    assert not equal(stream_of(seed=1).next_batch(), stream_of(seed=2).next_batch())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("sequence_length", 9),
        ("seed", 6),
        ("corpus", "other"),
        ("rows", 3),
        ("objective", "masked-lm"),
        ("document_mask", True),
        ("packing", "best-fit"),
    ],
)
def test_a_position_in_another_stream_is_refused_by_name(stream_of, name, value):
    stream = stream_of()
    with pytest.raises(RunError, match=f"data.{name}"):
        stream.load_state_dict({**stream.state_dict(), name: value})


@pytest.mark.parametrize(
    "place", [{"epoch": -1}, {"index": 18}, {"index": "3"}, {"epoch": None}, {"index": True}, {"index": -1}]
)
def test_an_impossible_position_is_refused(stream_of, place):
    stream = stream_of()
    with pytest.raises(RunError, match="not a position"):
        stream.load_state_dict({**stream.state_dict(), **place})


@pytest.mark.parametrize("options", [{"batch_size": 0}, {"seed": -1}, {"sequence_length": 0}, {"seed": 1 << 63}])
def test_impossible_options_are_errors(stream_of, options):
    with pytest.raises(ConfigError):
        stream_of(**options)


def test_packing_is_told_and_every_document_is_in_an_epoch(stream_of):
    stream = stream_of(lengths=(9, 5, 4, 30), packing="best-fit", batch_size=6)
    assert (stream.told, stream_of().told) == ("best-fit: 8.3 % padding", None)
    assert stream.next_batch().target_count == 8 + 4 + 3 + 29
    assert stream.epoch == 1


def test_a_text_shorter_than_a_row_can_be_packed_and_one_without_a_target_not(stream_of):
    assert stream_of(lengths=(3,), packing="best-fit", batch_size=1).next_batch().target_count == 2
    with pytest.raises(DataError, match="no row of the corpus has anything to learn"):
        stream_of(lengths=(1, 1), packing="best-fit")
    with pytest.raises(DataError, match="too small for one row, expected more than 1 tokens, found 1"):
        stream_of(lengths=(1,), packing="best-fit")


@pytest.mark.parametrize("packing", ["concatenate", "best-fit"])
def test_a_corpus_of_which_nothing_is_a_target_is_an_error(tokens_of, tokenizer, packing):
    tokens = attrs.evolve(tokens_of((30, 20)), learn=np.zeros(50, np.bool_))
    shared = {"objective": CAUSAL, "sequence_length": 8, "batch_size": 1, "tokenizer": tokenizer, "packing": packing}
    for make in (lambda: BatchStream(tokens, seed=0, **shared), lambda: validation_batches(tokens, **shared)):
        with pytest.raises(DataError, match="no row of the corpus has anything to learn"):
            make()


def test_masked_lm_does_not_pack_what_it_cannot_keep_apart(stream_of):
    with pytest.raises(ConfigError, match="packing: this packing is not for this objective, expected concatenate"):
        stream_of(objective=MASKED, packing="best-fit")


def test_masked_lm_needs_room_for_a_token_between_bos_and_eos(stream_of):
    with pytest.raises(ConfigError, match="at least 3"):
        stream_of(objective=MASKED, sequence_length=2)


@pytest.mark.parametrize("name", ["bos", "eos", "pad", "mask"])
def test_masked_lm_needs_its_special_tokens(stream_of, tokenizer, name):
    assert name in MASKED.special_tokens
    del tokenizer.special_ids[name]
    with pytest.raises(TokenizerError, match=f"no {name} token"):
        stream_of(objective=MASKED)


@pytest.mark.parametrize("variant", VARIANTS)
def test_validation_batches_are_the_same_each_time(variant, tokenizer, tokens_of):
    tokens = tokens_of((50, 70, 30))
    shared = {"sequence_length": 8, "batch_size": 4, "tokenizer": tokenizer, **variant}
    first, second = list(validation_batches(tokens, **shared)), list(validation_batches(tokens, **shared))
    assert all(equal(a, b) for a, b in zip(first, second, strict=True))


def test_a_few_validation_rows_are_spread_over_all_of_them(tokenizer, tokens_of):
    tokens = tokens_of((200,))
    shared = {"objective": CAUSAL, "sequence_length": 8, "batch_size": 4, "tokenizer": tokenizer}
    rows = torch.cat([batch.tokens for batch in validation_batches(tokens, **shared)])
    few = list(validation_batches(tokens, max_rows=6, **shared))
    assert [len(batch.tokens) for batch in few] == [4, 2]
    assert torch.equal(torch.cat([batch.tokens for batch in few]), rows[[number * len(rows) // 6 for number in range(6)]])


def test_a_short_validation_side_is_padded_and_an_empty_one_is_an_error(tokenizer, tokens_of):
    shared = {"objective": CAUSAL, "sequence_length": 8, "batch_size": 4, "tokenizer": tokenizer}
    (batch,) = validation_batches(tokens_of((3,)), **shared)
    assert batch.targets.tolist() == [[1, EOS] + [IGNORED] * 6]
    for lengths in ((1,), ()):
        with pytest.raises(DataError):
            validation_batches(tokens_of(lengths), **shared)


@pytest.mark.parametrize("options", [{"batch_size": 0}, {"max_rows": 0}])
def test_impossible_validation_options_are_errors(tokenizer, tokens_of, options):
    shared = {"objective": CAUSAL, "sequence_length": 8, "batch_size": 4, "tokenizer": tokenizer}
    with pytest.raises(ConfigError):
        validation_batches(tokens_of((30,)), **{**shared, **options})


def test_rows_come_from_a_read_only_map_without_torch_complaining(tokenizer):
    ids = np.arange(100, dtype=np.uint16)
    ids.flags.writeable = False
    tokens = TokenFile(ids=ids, starts=np.array([0], np.uint64), max_token_id=99, text_bytes=0, key="k")
    stream = BatchStream(
        tokens, objective=CAUSAL, sequence_length=8, batch_size=2, seed=0, tokenizer=tokenizer, document_mask=True
    )
    batch = stream.next_batch()
    assert batch.tokens.dtype == batch.targets.dtype == torch.int64
    assert equal(batch, batch.to("cpu"))


@pytest.fixture
def mixed(tokenizer, tokens_of):
    """A stream of sources whose rows are told apart by their ids: `code` counts from 0, `docs` from 110."""

    def make(sources=(("code", "0.7", None), ("docs", "0.3", None)), **options):
        given = []
        for place, (name, weight, epochs) in enumerate(sources):
            tokens = tokens_of((50 + 20 * place, 70, 30), key=name)
            tokens = attrs.evolve(tokens, ids=(tokens.ids % 100 + 110 * place).astype(np.uint32))
            weight = None if weight is None else Fraction(weight)
            given.append(StreamSource(name=name, tokens=tokens, weight=weight, max_epochs=epochs))
        values = {"objective": CAUSAL, "sequence_length": 8, "batch_size": 4, "seed": 5, "tokenizer": tokenizer}
        return BatchStream(given, **{**values, **options})

    return make


def owners(stream, rows):
    """Whose the next rows are, of a stream whose batches are rows."""
    return ["code" if int(stream.next_batch().tokens[0, 0]) < 105 else "docs" for _ in range(rows)]


def test_any_window_of_a_thousand_rows_has_the_shares(mixed):
    order = owners(mixed(batch_size=1), 2500)
    for begin in range(0, 1500, 7):
        assert Counter(order[begin : begin + 1000]) == {"code": 700, "docs": 300}


def test_without_weights_the_shares_are_those_of_the_rows(mixed):
    stream = mixed((("code", None, None), ("docs", None, None)), batch_size=1)
    assert stream.shares == {"code": 18 / 39, "docs": 21 / 39}
    assert Counter(owners(stream, 39)) == {"code": 18, "docs": 21}


def test_each_source_has_every_row_once_an_epoch_in_an_order_of_its_own(mixed):
    stream = mixed(batch_size=1)
    rows = {"code": [], "docs": []}
    for _ in range(200):
        (row,) = stream.next_batch().tokens.tolist()
        rows["code" if row[0] < 105 else "docs"].append(tuple(row))
    for name, count in (("code", 18), ("docs", 21)):
        epochs = [rows[name][begin : begin + count] for begin in range(0, len(rows[name]) - count + 1, count)]
        assert len(epochs) >= 2
        assert len(set(epochs[0])) == count
        assert sorted(epochs[0]) == sorted(epochs[1])
        assert epochs[0] != epochs[1]


def test_the_order_of_a_source_depends_on_its_name_and_not_on_the_others(mixed):
    def rows_of_code(*sources):
        stream = mixed(sources, batch_size=1)
        rows = [stream.next_batch().tokens[0].tolist() for _ in range(120)]
        return [row for row in rows if row[0] < 105][:18]

    assert rows_of_code(("code", "0.7", None), ("docs", "0.3", None)) == rows_of_code(("code", "0.4", None), ("more", "0.6", 9))
    assert rows_of_code(("code", "1", None)) != rows_of_code(("edoc", "1", None))


def test_a_batch_of_several_sources_has_its_rows_in_their_order(mixed):
    for variant in VARIANTS:
        one, many = mixed(batch_size=1, **variant), mixed(batch_size=7, **variant)
        for _ in range(9):
            rows, batch = [one.next_batch() for _ in range(7)], many.next_batch()
            assert torch.equal(batch.tokens, torch.cat([row.tokens for row in rows]))
            assert torch.equal(batch.targets, torch.cat([row.targets for row in rows]))
            assert batch.target_count == sum(row.target_count for row in rows)
            if batch.document_ids is not None:
                assert torch.equal(batch.document_ids, torch.cat([row.document_ids for row in rows]))
                assert batch.document_lengths == tuple(length for row in rows for length in row.document_lengths)
            if batch.keep is not None:
                kept = [torch.ones(1, 8, dtype=torch.bool) if row.keep is None else row.keep for row in rows]
                assert torch.equal(batch.keep, torch.cat(kept))


@settings(max_examples=25, deadline=None)
@given(position=st.integers(0, 140), size=st.integers(1, 5), epochs=st.none() | st.integers(1, 3))
def test_a_mixture_goes_on_bit_for_bit_with_any_batch_size(byte_tokenizer, tokens_of, position, size, epochs):
    def make(batch_size):
        given = [("code", (50, 70, 30), epochs), ("docs", (90, 31), None), ("more", (40,), None)]
        sources = [
            StreamSource(name=name, tokens=tokens_of(lengths, key=name), weight=Fraction(place, 7), max_epochs=most)
            for place, (name, lengths, most) in enumerate(given, 1)
        ]
        shared = {"sequence_length": 8, "seed": 5, "tokenizer": byte_tokenizer(), "objective": MASKED}
        return BatchStream(sources, batch_size=batch_size, **shared)

    whole, rest = make(1), make(size)
    for _ in range(position):
        whole.next_batch()
    rest.load_state_dict(json.loads(json.dumps(whole.state_dict())))
    assert rest.tokens_read == whole.tokens_read
    for _ in range(3):
        batch = rest.next_batch()
        rows = [whole.next_batch() for _ in range(size)]
        assert torch.equal(batch.tokens, torch.cat([row.tokens for row in rows]))
        assert torch.equal(batch.targets, torch.cat([row.targets for row in rows]))
    assert rest.state_dict() == whole.state_dict()


@pytest.mark.parametrize(
    ("sources", "where"),
    [
        ((("code", "0.6", None), ("docs", "0.3", None)), "data.sources.code.weight"),
        ((("code", "0.7", 2), ("docs", "0.3", None)), "data.sources.code.max_epochs"),
        ((("code", "0.7", None), ("text", "0.3", None)), "data.sources"),
        ((("code", "0.7", None),), "data.sources"),
    ],
)
def test_a_position_in_another_mixture_is_refused_by_name(mixed, sources, where):
    state = mixed().state_dict()
    with pytest.raises(RunError) as caught:
        mixed(sources).load_state_dict(state)
    assert caught.value.finding.where == where


def test_a_position_of_one_pool_is_none_of_a_mixture(mixed, stream_of):
    with pytest.raises(RunError, match="other sources"):
        mixed().load_state_dict(stream_of(batch_size=4).state_dict())


@pytest.mark.parametrize("change", [{"since": 99}, {"since": "x"}, {"index": 18}, {"epoch": -1}])
def test_what_is_no_position_of_a_source_is_refused(mixed, change):
    state = mixed().state_dict()
    state["sources"]["code"] |= change
    with pytest.raises(RunError, match="not a position"):
        mixed().load_state_dict(state)


@pytest.mark.rule("PREFLIGHT-041")
def test_a_source_that_ends_is_told_and_the_others_share_its_part(mixed):
    told = []
    sources = (("code", "0.7", 2), ("docs", "0.3", None))
    stream = mixed(sources, batch_size=1, on_source=lambda *told_of: told.append(told_of))
    (end,) = stream.ends_until(1000)
    order = owners(stream, 80)
    assert Counter(order)["code"] == 36
    assert (end.name, order[end.row - 1], set(order[end.row :])) == ("code", "code", {"docs"})
    assert [item for item in told if item[0] == "code"] == [("code", 1, False), ("code", 2, True)]
    assert stream.rows is None


@pytest.mark.rule("PREFLIGHT-041")
def test_a_stream_whose_sources_all_end_has_so_many_rows(mixed):
    stream = mixed((("code", "0.7", 2), ("docs", "0.3", 1)), batch_size=1)
    assert stream.rows == 2 * 18 + 21
    owners(stream, stream.rows)
    with pytest.raises(DataError, match=r"every source has ended, found 57 rows\. Give more text"):
        stream.next_batch()


def test_a_source_without_a_row_is_named(mixed):
    with pytest.raises(DataError, match="too small for one row") as caught:
        mixed(sequence_length=160)
    assert caught.value.finding.where == "--data [code]"


@given(st.lists(st.integers(1, 50), min_size=1, max_size=6), st.integers(1, 400))
def test_rows_to_measure_are_shared_out_by_weight(weights, total):
    weights = {f"s{place}": Fraction(weight) for place, weight in enumerate(weights)}
    counts = row_counts(dict.fromkeys(weights, 1000), weights, total)
    assert min(counts.values()) >= 1
    whole = sum(weights.values())
    if all(total * weight >= whole for weight in weights.values()):
        assert sum(counts.values()) == total
        assert all(abs(counts[name] - total * weight / whole) < 1 for name, weight in weights.items())
    assert row_counts(dict.fromkeys(weights, 1), weights, total) == dict.fromkeys(weights, 1)


def test_each_batch_of_a_validation_is_of_one_source_which_it_names(tokenizer, tokens_of):
    shared = {"objective": CAUSAL, "sequence_length": 8, "batch_size": 4, "tokenizer": tokenizer}
    sources = [
        StreamSource(name=name, tokens=tokens_of((200,), key=name), weight=Fraction(weight))
        for name, weight in (("a", 3), ("b", 1))
    ]
    batches = list(validation_batches(sources, max_rows=16, **shared))
    assert [(batch.source, len(batch.tokens)) for batch in batches] == [("a", 4), ("a", 4), ("a", 4), ("b", 4)]
    (alone,) = {batch.source for batch in validation_batches(tokens_of((200,)), max_rows=16, **shared)}
    assert alone is None
