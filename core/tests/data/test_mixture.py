"""Whose turn it is: shares of prefixes and windows, ends, positions."""

import itertools
import random
from collections import Counter
from fractions import Fraction

import pytest
from apr_train.data.mixture import End, Mixture, Turns, whole_weights
from hypothesis import given, settings
from hypothesis import strategies as st

WEIGHTS = st.lists(st.integers(1, 500), min_size=1, max_size=8)


def named(weights):
    return {f"s{place}": weight for place, weight in enumerate(weights)}


@settings(deadline=None, max_examples=150)
@given(WEIGHTS)
def test_every_prefix_is_within_one_row_of_each_share(weights):
    weights = named(weights)
    turns, total = Turns(weights), sum(weights.values())
    had = Counter()
    for rows in range(1, 3001):
        had[turns.next()] += 1
        for name, weight in weights.items():
            assert abs(had[name] - Fraction(weight * rows, total)) < 1


@pytest.mark.parametrize("shares", [("0.7", "0.3"), ("0.5", "0.3", "0.2"), ("0.641", "0.3", "0.05", "0.009"), ("1", "1", "6")])
def test_any_window_of_a_thousand_rows_has_the_exact_shares(shares):
    weights = named(whole_weights([Fraction(share) for share in shares]))
    total = sum(map(Fraction, shares))
    turns = Turns(weights)
    order = [turns.next() for _ in range(5000)]
    for begin in range(4000):
        window = Counter(order[begin : begin + 1000])
        assert {name: window[name] for name in weights} == {
            name: 1000 * Fraction(share) / total for name, share in zip(weights, shares, strict=True)
        }


@given(WEIGHTS, st.integers(0, 2**32))
def test_a_window_of_any_shares_is_within_two_rows(weights, seed):
    weights = named(weights)
    turns, total, begin = Turns(weights), sum(weights.values()), random.Random(seed).randrange(500)
    order = [turns.next() for _ in range(begin + 1000)]
    window = Counter(order[begin:])
    assert all(abs(window[name] - Fraction(1000 * weight, total)) < 2 for name, weight in weights.items())


def test_weights_become_the_smallest_whole_numbers():
    assert whole_weights([Fraction("0.7"), Fraction("0.3")]) == [7, 3]
    assert whole_weights([Fraction(2000), Fraction(500), Fraction(1500)]) == [4, 1, 3]
    assert whole_weights([Fraction("1e-9"), Fraction(1)]) == [1, 10**9]


def test_where_a_source_ends_the_others_share_its_part():
    mixture = Mixture({"a": 2, "b": 1, "c": 1}, {"a": 10, "b": None, "c": None})
    before = []
    while not mixture.ends:
        before.append(mixture.next())
    assert mixture.ends == [End("a", len(before))]
    assert (Counter(before)["a"], before[-1], 18 <= len(before) <= 20) == (10, "a", True)
    assert Counter(mixture.next() for _ in range(1000)) == {"b": 500, "c": 500}
    assert mixture.had == {"a": 10, "b": 500 + before.count("b"), "c": 500 + before.count("c")}


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(1, 30), st.none() | st.integers(1, 200)), min_size=1, max_size=5), st.integers(0, 900))
def test_the_ends_are_known_beforehand(sources, rows):
    weights = named([weight for weight, _ in sources])
    limits = dict(zip(weights, (limit for _, limit in sources), strict=True))
    mixture = Mixture(weights, limits)
    foreseen = mixture.ends_until(rows)
    assert sum(mixture.had.values()) == 0
    for _ in range(rows):
        try:
            mixture.next()
        except IndexError:
            break
    assert mixture.ends == foreseen
    if mixture.rows is not None:
        assert sum(mixture.had.values()) == min(rows, mixture.rows)
    for end in mixture.ends:
        assert mixture.had[end.name] == limits[end.name]


def test_the_ends_of_a_long_run_are_known_at_once():
    mixture = Mixture({"a": 7, "b": 3}, {"a": 700_000_000_001, "b": None})
    (end,) = mixture.ends_until(10**13)
    assert (end.name, abs(end.row - 10**12) <= 3) == ("a", True)


@settings(deadline=None)
@given(st.integers(0, 300), st.lists(st.integers(1, 9), min_size=2, max_size=4), st.integers(1, 60))
def test_a_position_is_gone_on_from(position, weights, limit):
    weights = named(weights)
    limits = {name: limit if name == "s0" else None for name in weights}
    first, second = Mixture(weights, limits), Mixture(weights, limits)
    for _ in range(position):
        first.next()
    second.load(first.had, first.state_dict())
    assert [first.next() for _ in range(100)] == [second.next() for _ in range(100)]


@pytest.mark.parametrize(
    ("had", "since"),
    [({"a": 5, "b": 1}, {"a": 5, "b": 1}), ({"a": 4, "b": 1}, {"a": 4, "b": 1}), ({"a": 1, "b": 1}, {"a": 2, "b": 1})],
)
def test_what_is_no_position_is_refused(had, since):
    with pytest.raises(ValueError, match="position"):
        Mixture({"a": 1, "b": 1}, {"a": 4, "b": None}).load(had, since)


def test_turns_are_the_same_however_they_are_taken():
    turns = Turns({"a": 3, "b": 2, "c": 2})
    assert "".join(itertools.islice(iter(turns.next, None), 14)) == "abcabca" * 2
