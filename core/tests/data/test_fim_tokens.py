"""Which of a tokenizer's entries stand around a hole: the user's, the card's, or a known spelling's."""

import pytest
from apr_train import rules
from apr_train.data.fim_tokens import FimTokens, fim_tokens, parse_names
from apr_train.errors import ConfigError, TokenizerError

CARD = {"prefix": "<|fim_prefix|>", "suffix": "<|fim_suffix|>", "middle": "<|fim_middle|>", "pad": "<|fim_pad|>"}


class Vocabulary:
    """Entries by name; any other text is a token a character, 1000 and up."""

    def __init__(self, **entries):
        self.entries = entries

    def id(self, token):
        return self.entries.get(token)

    def encode_batch(self, texts, *, parse_special=False):
        return [[self.entries[text]] if text in self.entries else [1000 + ord(sign) for sign in text] for text in texts]


def found_in(entries, *, card=CARD, setting=None):
    return fim_tokens(Vocabulary(**entries), card=card, setting=setting, where="tokenizer.json")


def test_the_card_names_the_tokens():
    entries = {"<|fim_prefix|>": 7, "<|fim_middle|>": 8, "<|fim_suffix|>": 9, "<|fim_pad|>": 10}
    found = found_in(entries)
    assert (found.prefix, found.middle, found.suffix, found.pad, found.end) == (7, 8, 9, 10, None)
    assert found.told_by == "the family's card"
    assert found.ids == {7, 8, 9, 10}


@pytest.mark.parametrize(
    ("entries", "ids"),
    [
        ({"<fim_prefix>": 1, "<fim_middle>": 2, "<fim_suffix>": 3, "<fim_pad>": 4}, (1, 3, 2, None)),
        ({"<fim-prefix>": 1, "<fim-middle>": 2, "<fim-suffix>": 3}, (1, 3, 2, None)),
        # what stands behind the hole's place begins at `hole`, the middle behind `end`
        ({"<｜fim▁hole｜>": 32015, "<｜fim▁begin｜>": 32016, "<｜fim▁end｜>": 32017}, (32016, 32015, 32017, None)),
        ({"▁<PRE>": 32007, "▁<SUF>": 32008, "▁<MID>": 32009, "▁<EOT>": 32010}, (32007, 32008, 32009, 32010)),
    ],
)
def test_published_spellings_are_known_where_the_card_says_nothing_that_is_there(entries, ids):
    for card in (CARD, {}):
        found = found_in(entries, card=card)
        assert (found.prefix, found.suffix, found.middle, found.end) == ids
        assert found.told_by == "a known spelling"


def test_the_users_names_win_and_may_be_texts_of_one_token():
    entries = {"<fim_prefix>": 1, "<fim_middle>": 2, "<fim_suffix>": 3, "<a>": 4, "<b>": 5, "c": 6}
    found = found_in(entries, setting="<a>,<b>,c")
    assert (found.prefix, found.suffix, found.middle, found.told_by) == (4, 5, 6, "--fim-tokens")
    assert found_in(entries, setting="<a>,<b>,d").middle == 1000 + ord("d")


@pytest.mark.rule("FIM-001")
def test_a_tokenizer_without_any_is_refused_with_what_was_looked_for():
    with pytest.raises(TokenizerError, match=r"no tokens around a hole.*<\|fim_prefix\|>.*--fim-tokens") as caught:
        found_in({"<|fim_prefix|>": 1, "<|fim_suffix|>": 2})
    assert caught.value.finding.rule == rules.FIM_001


@pytest.mark.rule("FIM-002")
def test_a_name_of_several_tokens_and_two_roles_with_one_are_all_told_at_once():
    with pytest.raises(TokenizerError) as caught:
        found_in({"<a>": 4}, setting="<a>,<a>,<b>")
    several, same = caught.value.findings
    assert {several.rule, same.rule} == {rules.FIM_002}
    assert several.found.startswith("3 ids")
    assert "prefix and suffix are the same" in same.problem
    assert several.hint


@pytest.mark.parametrize("setting", ["<a>,<b>", "a,b,c,d", "a,,c", ""])
def test_a_setting_that_is_not_three_names_is_refused(setting):
    with pytest.raises(ConfigError, match="not three names"):
        parse_names(setting)


def test_a_missing_token_that_nobody_needs_is_left_out():
    assert found_in({"▁<PRE>": 1, "▁<SUF>": 2, "▁<MID>": 3}).end is None
    assert FimTokens(prefix=1, suffix=2, middle=3).roles == {"prefix": 1, "suffix": 2, "middle": 3}
