"""Fill in the middle: where a text is cut, in which order it is put, and that nothing but the text decides it."""

import math
from collections import Counter
from itertools import pairwise

import pytest
from apr_train.data.documents import Document
from apr_train.data.fim_tokens import FimTokens
from apr_train.data.objectives.fim import FimEncoder, Part, Parts, arranged, cut
from apr_train.data.special_tokens import DocumentEnds
from apr_train.data.split import split_key
from apr_train.data.tokens import TokenFile, TokenWriter

PRE, SUF, MID, EOS = 256, 257, 258, 259
TOKENS = FimTokens(prefix=PRE, suffix=SUF, middle=MID, texts=("<PRE>", "<SUF>", "<MID>"))
KEY = "00" * 32
LITERAL = [None, None, None, ("PSM", "0123456", "789", ""), None, ("SPM", "012345", "6789", "")]
TEXT = "def größe(x):\n    return x * 2\n"


class Bytes:
    """A token a byte; the three tokens are found in a text unless it is cut, as added tokens that are not special are."""

    size, special_tokens, special_ids, start_ids, fingerprint = 260, {}, {}, (), "bytes"

    def __init__(self, *, finds=True):
        self.finds = finds

    def encode_batch(self, texts, *, parse_special=False):
        return [self._one(text) for text in texts]

    def _one(self, text):
        ids = list(text.encode())
        for name, index in zip(TOKENS.texts, (PRE, SUF, MID), strict=True):
            spelt = list(name.encode())
            while self.finds and spelt in (windows := [ids[at : at + 5] for at in range(len(ids))]):
                at = windows.index(spelt)
                ids[at : at + 5] = [index]
        return ids


def encoder(*, length=64, seed=0, rate=1.0, spm_rate=0.5, tokenizer=None, tokens=TOKENS, start=()):
    ends = DocumentEnds(start=start, end=EOS)
    chosen = tokenizer or Bytes()
    return FimEncoder(
        tokenizer=chosen, tokens=tokens, ends=ends, length=length, seed=seed, rate=rate, spm_rate=spm_rate, parse_special=False
    )


def encoded(tmp_path, texts, **how):
    """The parts in the token file, ends included."""
    told = []
    path = tmp_path / "x.tokens"
    with TokenWriter(path, key=KEY, size=260) as writer:
        encoder(**how).encode([Document("x", text) for text in texts], writer, done=told.append)
        writer.finish()
    tokens = TokenFile.open(path, key=KEY, size=260)
    assert tokens.text_bytes == sum(told) == sum(len(text.encode()) for text in texts)
    edges = [*tokens.starts.tolist(), len(tokens)]
    return [tokens.ids[begin:end].tolist() for begin, end in pairwise(edges)]


def text_of(ids, *, start=0):
    """The text that a part was made of, read back by the tokens around the hole; None for a part that does not end."""
    ids = ids[start:]
    assert ids[-1] == EOS
    ids = ids[:-1]
    if PRE not in ids:
        return bytes(ids).decode()
    if ids[:2] == [PRE, SUF]:
        middle = ids.index(MID)
        return bytes(ids[middle + 1 :] + ids[2:middle]).decode()
    suffix, middle = ids.index(SUF), ids.index(MID)
    return bytes(ids[1:suffix] + ids[middle + 1 :] + ids[suffix + 1 : middle]).decode()


def test_the_orders_are_those_of_the_paper():
    """PSM, and SPM in its second variant: the suffix alone between its token and the middle's."""
    prefix, middle, suffix = [1, 2], [3], [4, 5]
    assert arranged(TOKENS, "PSM", prefix, middle, suffix) == [PRE, 1, 2, SUF, 4, 5, MID, 3]
    assert arranged(TOKENS, "SPM", prefix, middle, suffix) == [PRE, SUF, 4, 5, MID, 1, 2, 3]


def test_the_cut_of_a_seed_is_the_same_for_ever():
    """Literal values: another hash, or another reading of it, would make other tokens of a run that goes on."""
    holes = [cut("0123456789", seed=seed, key=7, begin=0, rate=0.5, spm_rate=0.5) for seed in range(6)]
    assert [None if hole is None else (hole.order, *hole.texts) for hole in holes] == LITERAL


def test_three_parts_are_the_text_and_both_cuts_are_uniform():
    """Two independent uniform cuts among n+1 places: each place is the first cut with a known probability."""
    draws, size = 20_000, 4
    firsts, lasts = Counter(), Counter()
    for key in range(draws):
        hole = cut("abcd", seed=3, key=key, begin=0, rate=1.0, spm_rate=0.5)
        assert "".join(hole.texts) == "abcd"
        firsts[len(hole.prefix)] += 1
        lasts[len(hole.prefix) + len(hole.middle)] += 1
    places = size + 1
    for place in range(places):
        share = (2 * (places - place) - 1) / places**2  # P(min of two uniform draws = place)
        assert firsts[place] / draws == pytest.approx(share, abs=5 * math.sqrt(share / draws))
        assert lasts[size - place] / draws == pytest.approx(share, abs=5 * math.sqrt(share / draws))


@pytest.mark.parametrize("rate", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("spm_rate", [0.0, 0.7, 1.0])
def test_the_shares_are_those_that_are_asked_for(rate, spm_rate):
    draws = 4000
    holes = [cut("abcd", seed=0, key=key, begin=0, rate=rate, spm_rate=spm_rate) for key in range(draws)]
    made = [hole for hole in holes if hole is not None]
    assert len(made) / draws == pytest.approx(rate, abs=0.04)
    if made:
        assert sum(hole.order == "SPM" for hole in made) / len(made) == pytest.approx(spm_rate, abs=0.06)


def test_seed_document_and_place_decide_and_nothing_else():
    base = {"seed": 1, "key": 2, "begin": 0, "rate": 1.0, "spm_rate": 0.5}
    hole = cut(TEXT * 40, **base)
    assert hole == cut(TEXT * 40, **base)
    for change in ({"seed": 2}, {"key": 3}, {"begin": 1}):
        assert cut(TEXT * 40, **{**base, **change}) != hole


def test_every_text_can_be_read_back_and_ends_with_the_end_of_text(tmp_path):
    texts = [f"def f{number}(x):\n    return '{'ü' * (number % 7)}{number}'\n" for number in range(60)]
    found = encoded(tmp_path, texts, length=128)
    assert [text_of(ids) for ids in found] == texts
    orders = Counter("SPM" if ids[:2] == [PRE, SUF] else "PSM" for ids in found)
    assert min(orders["SPM"], orders["PSM"]) > 15


def test_without_holes_a_document_is_encoded_as_it_stands(tmp_path):
    (ids,) = encoded(tmp_path, [TEXT], rate=0.0)
    assert ids == [*TEXT.encode(), EOS]


def test_neither_order_nor_neighbours_change_what_becomes_of_a_document(tmp_path):
    texts = [f"value_{number} = {number}\n" for number in range(30)]
    one = {tuple(ids) for ids in encoded(tmp_path, texts)}
    assert {tuple(ids) for ids in encoded(tmp_path, texts[::-1])} == one
    assert tuple(encoded(tmp_path, texts[7:8])[0]) in one
    assert {tuple(ids) for ids in encoded(tmp_path, texts, seed=1)} != one


def test_what_begins_a_text_stands_in_front_of_every_part(tmp_path):
    found = encoded(tmp_path, [TEXT * 6], start=(1,), length=64)
    assert len(found) > 2
    assert all(ids[0] == 1 for ids in found)
    assert "".join(text_of(ids, start=1) for ids in found) == TEXT * 6


def test_a_hole_ends_with_the_models_own_end_where_it_has_one(tmp_path):
    own = FimTokens(prefix=PRE, suffix=SUF, middle=MID, end=255)
    (ids,) = encoded(tmp_path, [TEXT], tokens=own, tokenizer=Bytes(finds=False))
    assert ids[-1] == 255
    (ids,) = encoded(tmp_path, [TEXT], tokens=own, rate=0.0, tokenizer=Bytes(finds=False))
    assert ids[-1] == EOS


def test_a_long_document_is_cut_at_line_ends_into_parts_that_fit_a_row(tmp_path):
    lines = [f"line {number} = '{'x' * (number % 23)}'\n" for number in range(300)]
    text = "".join(lines)
    found = encoded(tmp_path, [text, "short\n"], length=96)
    assert all(len(ids) <= 96 for ids in found)
    parts = [text_of(ids) for ids in found]
    assert "".join(parts) == text + "short\n"
    assert all(part.endswith("\n") for part in parts)
    assert len(found) < 2 * len(text) / 96  # rows that are more than half full


def test_a_line_longer_than_a_row_is_cut_inside_and_no_character_is_lost(tmp_path):
    text = "x = '" + "数é🎈" * 400 + "'\ny = 1\n"
    found = encoded(tmp_path, [text], length=48)
    assert all(len(ids) <= 48 for ids in found)
    assert "".join(text_of(ids) for ids in found) == text


def test_a_part_that_its_cuts_make_too_long_is_halved(tmp_path):
    class Pairs(Bytes):
        """A token for two equal bytes, so that a cut between them makes one more."""

        def encode_batch(self, texts, *, parse_special=False):
            return [list(text.encode()[::2]) for text in texts]

    found = encoded(tmp_path, ["aa" * 400], tokenizer=Pairs(), length=16)
    assert all(len(ids) <= 16 for ids in found)


def test_text_that_spells_a_token_of_the_form_stays_text(tmp_path):
    text = "a = '<PRE> <SUF><MID>'\n<<PRE>>"
    for rate in (0.0, 1.0):
        (ids,) = encoded(tmp_path, [text], rate=rate)
        assert text_of(ids) == text
        assert Counter(index for index in ids if index in (PRE, SUF, MID)) == ({} if rate == 0 else {PRE: 1, SUF: 1, MID: 1})


def test_halves_are_cut_at_the_line_end_nearest_to_the_middle():
    one, other = Part(5, 10, "abc\ndefgh\ni\n").halves()
    assert (one.text, other.text, one.begin, other.begin) == ("abc\n", "defgh\ni\n", 10, 14)
    one, other = Part(5, 0, "abcdef\n").halves()
    assert (one.text, other.text) == ("abc", "def\n")


def test_a_long_document_is_not_held_in_memory_as_parts():
    """A hundred thousand lines: the first part comes before the second piece of the text is read."""
    read = []

    class Watched(Document):
        def pieces(self, size=1 << 16):
            for piece in super().pieces(size):
                read.append(len(piece))
                yield piece

    document = Watched("x", "some line of code\n" * 100_000)
    key = split_key(document)
    read.clear()
    parts = Parts(Bytes(finds=False), 128, parse_special=False).of([document])
    first = next(parts)
    assert sum(read) > 2 * len(document.utf8) * 0.5  # the key reads all of it, once
    assert (first.key, first.begin) == (key, 0)
    assert sum(read) - len(document.utf8) < 1 << 19
