import random
from hashlib import blake2b

import pytest
from apr_train.data.documents import Document
from apr_train.data.split import KeyScan, held_out_of, split_key, train_documents
from apr_train.errors import DataError
from hypothesis import assume, given, settings
from hypothesis import strategies as st

TEXT = st.text(min_size=1, max_size=12).filter(lambda text: text.strip())
FRACTION = st.floats(0.001, 0.999)


def scanned(texts):
    scan = KeyScan()
    for text in texts:
        scan.add(split_key(text), len(text.encode()))
    return scan.texts()


def warnings_of(texts, fraction):
    found = scanned(texts)
    return found.findings(fraction, found.split(fraction))


def split_texts(texts, fraction):
    documents = [Document(str(number), text) for number, text in enumerate(texts)]
    split = scanned(texts).split(fraction)
    train = [document.text for document in train_documents(documents, split)]
    return train, [document.text for document in held_out_of(documents, split)]


@settings(deadline=None)
@given(st.lists(TEXT, min_size=2).filter(lambda texts: len({split_key(text) for text in texts}) > 1), FRACTION)
def test_no_text_is_on_both_sides_nothing_is_lost_and_neither_side_is_empty(texts, fraction):
    assume(scanned(texts).split(fraction).tail is None)
    train, validation = split_texts(texts, fraction)
    assert train
    assert validation
    assert not {" ".join(text.split()) for text in train} & {" ".join(text.split()) for text in validation}
    normal = {" ".join(text.split()) for text in texts}
    assert {" ".join(text.split()) for text in train + validation} == normal
    assert len(validation) == len({split_key(text) for text in validation})


@settings(deadline=None)
@given(st.lists(TEXT, min_size=2, max_size=20), st.randoms(use_true_random=False))
def test_the_order_of_the_documents_does_not_change_their_side(texts, random):
    texts = [*texts, "x", "y"]
    shuffled = random.sample(texts, len(texts))
    assert sorted(split_texts(texts, 0.3)[0]) == sorted(split_texts(shuffled, 0.3)[0])
    assert list(map(split_key, split_texts(texts, 0.3)[1])) == list(map(split_key, split_texts(shuffled, 0.3)[1]))


def sizes(texts):
    return sum(len(text.encode()) for text in texts)


def test_a_new_document_moves_no_other_across():
    texts = [f"document {number}" for number in range(5000)]
    train, validation = split_texts(texts, 0.1)
    more_train, more_validation = split_texts([*texts, "one more"], 0.1)
    assert set(train) <= set(more_train)
    assert set(validation) <= set(more_validation)


@pytest.mark.parametrize("fraction", [0.05, 0.1, 0.3])
@pytest.mark.parametrize("seed", range(8))
def test_the_share_held_out_is_one_of_the_text_however_unequal_the_documents_are(seed, fraction):
    draw = random.Random(seed)
    texts = [f"{seed} {number} " + "x" * int(10 ** draw.uniform(1, 4)) for number in range(200)]
    train, validation = split_texts(texts, fraction)
    share = sizes(validation) / sizes(train + validation)
    assert fraction / 2 <= share <= fraction * 3 / 2


def test_of_two_documents_the_smaller_is_held_out_when_it_is_about_the_share():
    for large, small in (("a" * 900, "b" * 100), ("b" * 900, "a" * 100)):
        assert split_texts([large, small], 0.06) == ([large], [small])
        assert split_texts([small, large], 0.06) == ([large], [small])


def test_a_document_larger_than_the_share_is_never_held_out():
    texts = [f"{number} " * 20 for number in range(60)]
    for seed in range(30):
        large = f"large {seed} " * 2000
        train, validation = split_texts([*texts, large], 0.05)
        assert large in train
        assert 0.025 < sizes(validation) / sizes(train + validation) < 0.1


@pytest.mark.rule("PREFLIGHT-024")
def test_where_no_whole_documents_are_the_share_the_largest_gives_its_tail_with_a_warning():
    one, two = ("".join(f"{name} {number}\n" for number in range(400)) for name in ("a line", "another"))
    train, validation = split_texts([one, two], 0.05)
    (tail,) = validation
    assert train == [one, two.removesuffix(tail)]
    assert two.endswith(tail)
    assert 0.025 < len(tail) / len(one + two) < 0.1
    (warning,) = warnings_of([one, two], 0.05)
    assert (warning.rule, warning.severity) == ("PREFLIGHT-024", "warning")
    assert f"{0.05 * len(one + two):,.0f} of {len(one + two):,} bytes" in warning.expected
    assert warning.found == f"2 texts, the smallest of {len(one):,} bytes"


@pytest.mark.rule("PREFLIGHT-024")
def test_where_even_a_tail_would_be_a_few_words_the_smallest_document_is_held_out_with_a_warning():
    assert split_texts(["one two three", "four"], 0.05) == (["one two three"], ["four"])
    assert "4 bytes" in warnings_of(["one two three", "four"], 0.05)[0].hint


@pytest.mark.parametrize("texts", [["a text " * 100] * 3, [f"text {number} " * 9 for number in range(40)]])
def test_a_single_text_and_many_documents_are_no_reason_to_warn(texts):
    assert warnings_of(texts, 0.05) == []


def test_a_text_of_which_most_of_a_corpus_is_made_is_learnt():
    copied = ["a copy of this " * 10] * 50
    train, validation = split_texts([*copied, *(f"text {number} " * 15 for number in range(50))], 0.05)
    assert copied[0] in train
    assert 0.025 < sizes(validation) / sizes(set(train) | set(validation)) < 0.1


@pytest.mark.parametrize("copies", [2, 10, 100])
def test_a_text_that_is_there_several_times_counts_once(copies):
    texts = [f"text {number:04} " * 10 for number in range(1000)]
    found = scanned(texts * copies)
    assert found.split(0.05) == scanned(texts).split(0.05)
    train, validation = split_texts(texts * copies, 0.05)
    assert 0.045 <= sizes(validation) / sizes(texts) <= 0.055
    assert warnings_of(texts * copies, 0.05) == []
    assert (
        found.left_out(found.split(0.05))
        == len(texts) * copies - len(train) - len(validation)
        == (copies - 1) * len(validation)
    )


def test_the_hash_is_fixed():
    assert split_key("def f():\n    return 1\n") == split_key("def f(): return 1\r\n")
    assert split_key("hello world") == 0xA211D524D299B1BB


@settings(deadline=None)
@given(st.text(alphabet="ab \n\u00a0\x1cé字", max_size=80), st.integers(4, 9))
def test_the_hash_of_a_document_does_not_depend_on_its_pieces(text, size):
    class Pieces:
        def pieces(self):
            return Document("x", text).pieces(size)

    words = " ".join(text.split()).encode()
    expected = int.from_bytes(blake2b(words, digest_size=8, person=b"apr-split").digest(), "little")
    assert split_key(Pieces()) == split_key(text) == expected


@pytest.mark.parametrize("copies", [1, 3])
def test_a_single_text_keeps_its_tail_for_validation(copies):
    text = "".join(f"line {number}\n" for number in range(100))
    train, validation = split_texts([text] * copies, 0.1)
    assert validation == [validation[0]]
    assert train == [train[0]] * copies
    assert train[0] + validation[0] == text
    assert train[0].endswith("\n")
    assert 0.08 < len(validation[0]) / len(text) < 0.13


@settings(deadline=None)
@given(st.text(min_size=40, max_size=200).filter(lambda text: text.strip()), FRACTION)
def test_cutting_a_single_text_loses_nothing_and_leaves_text_on_both_sides(text, fraction):
    try:
        train, validation = split_texts([text], fraction)
    except DataError:
        assume(False)
    assert train[0] + validation[0] == text
    assert train[0].strip()
    assert validation[0].strip()


def test_a_single_text_that_is_too_short_is_an_error():
    with pytest.raises(DataError, match="too short to be split"):
        split_texts(["x"], 0.1)


def test_no_document_at_all_is_an_error():
    with pytest.raises(DataError, match="empty"):
        KeyScan().texts()
