"""A byte-level BPE tokenizer of exactly the wanted size, trained on the corpus once: for runs from scratch."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from apr_train.checkpoint.files import json_value, read_text
from apr_train.checkpoint.header import TokenizerSpec
from apr_train.data.cache import cache_folder, cache_key, cached_file
from apr_train.data.chunks import chunks
from apr_train.data.corpus import hash_of, scanned
from apr_train.data.formats.utf8 import PIECE
from apr_train.data.objectives import Objective
from apr_train.data.protocols import Boundary
from apr_train.data.scan import Scan
from apr_train.data.special_tokens import END_OF_TEXT
from apr_train.data.split import NOTHING, SPLIT_RULE
from apr_train.data.tokenizer import boundary
from apr_train.errors import ConfigError, DataError
from apr_train.run.events import Say
from apr_train.run.settings import DataSettings

DECODER_SPECIALS = {"eos": END_OF_TEXT[0]}
ENCODER_SPECIALS = {"bos": "<s>", "pad": "<pad>", "eos": "</s>", "unk": "<unk>", "mask": "<mask>"}
"""In RoBERTa's order, so that pad is 1, as its position ids want it."""
LARGEST_SAMPLE = 1 << 28
"""Characters that are learnt from; merges hardly change beyond it, while memory grows."""
LARGEST_WORDS = 1 << 22
"""Characters of text without the end of a word that are learnt from: a trainer holds every distinct word in memory."""
LONGEST_WORD = 1000
"""Characters into which such text is cut: a trainer's time grows with the square of a word's length."""
_ALPHABET = 256
_VERSION = 2
_log = logging.getLogger(__name__)


def train_bpe(
    settings: DataSettings,
    vocabulary_size: int,
    *,
    objective: Objective | None = None,
    encoder: bool = False,
    cache_dir: Path | None = None,
    believe: bool = True,
    notice: Say | None = None,
) -> TokenizerSpec:
    """The tokenizer of a corpus's training side, from the cache when it was made before.

    A corpus too small for that many merges is filled up with reserved tokens, and `notice` says so.

    Args:
        settings: which text; of several sources each is a part of the sample.
        vocabulary_size: entries of the tokenizer.
        objective: says which kinds of sources there are; the default one without it.
        encoder: whether it is for an encoder, which needs more special tokens.
        cache_dir: instead of `cache_folder()`.
        believe: whether files that look unchanged need not be read again.
        notice: told of reserved tokens and of samples; a log warning otherwise.

    Raises:
        ConfigError: when the size has no room for all bytes and the special tokens.
        DataError: when the corpus cannot be read, or the cache cannot be written.
    """
    notice = notice or _log.warning
    specials = ENCODER_SPECIALS if encoder else DECODER_SPECIALS
    contents = tuple(dict.fromkeys((*specials.values(), END_OF_TEXT[0])))
    least = _ALPHABET + len(contents)
    if vocabulary_size < least:
        expected = f"at least {least}: every byte and {len(contents)} special tokens"
        raise ConfigError("too small for a byte-level BPE", where="vocab_size", expected=expected, found=vocabulary_size)
    scans = _texts(settings, objective, cache_dir=cache_dir, believe=believe)
    path = (cache_dir or cache_folder()) / "tokenizers" / f"{_key(settings, scans, vocabulary_size, contents)}.json"
    cached = _read(path, vocabulary_size, contents, notice)
    if cached is None:
        tokenizer = _train(scans, vocabulary_size, contents, notice)
        cached = json.loads(tokenizer.to_str())
        with cached_file(path) as file:
            file.write(tokenizer.to_str(pretty=True).encode("utf-8"))
    return TokenizerSpec(
        json=cached,
        special_ids={name: contents.index(content) for name, content in specials.items()},
        size=vocabulary_size,
        origin=f"byte-level BPE trained on the corpus ({path})",
    )


def _texts(settings: DataSettings, objective: Objective | None, *, cache_dir: Path | None, believe: bool) -> list[Scan]:
    """The scans of what is learnt, but for token ids that somebody else made.

    Raises:
        DataError: when there is no text among the sources.
    """
    texts = scanned(settings, objective, cache_dir=cache_dir, believe=believe)
    if not texts:
        hint = "Give the tokenizer that the ids are of with --tokenizer."
        raise DataError("no text to make a tokenizer from", where="--data", found="token ids only", hint=hint)
    return texts


def _key(settings: DataSettings, scans: Sequence[Scan], size: int, specials: tuple[str, ...]) -> str:
    fraction = 0 if scans[0].split == NOTHING else settings.validation_fraction
    elsewhere = {"elsewhere": [sorted(scan.elsewhere) for scan in scans]} if any(scan.elsewhere for scan in scans) else {}
    sides = {"fraction": fraction, "split": SPLIT_RULE, **elsewhere}
    return cache_key(version=_VERSION, corpus=hash_of(scans), **sides, size=size, specials=specials)


class _Words:
    """Where the pre-tokenizer cuts; not asked of the tokenizer in training, which is locked while it takes text."""

    def __init__(self) -> None:
        self._tokenizer = _untrained()

    def boundary(self, left: str, right: str, *, parse_special: bool) -> Boundary | None:
        """What ends between two texts: there are no tokens yet to compare, only words."""
        return boundary(self._tokenizer, left, right)


def _untrained() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _train(scans: Sequence[Scan], size: int, specials: tuple[str, ...], notice: Say) -> Tokenizer:
    """Train on the training side only, so that validation text stays unseen."""
    tokenizer = _untrained()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        min_frequency=2,
        special_tokens=list(specials),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_sample(scans, notice), trainer)
    return _fill(tokenizer, size, notice)


def _sample(scans: Sequence[Scan], notice: Say) -> Iterator[str]:
    """The text to learn merges from, in chunks that have the words of the whole; of several sources as much of each."""
    for scan in scans:
        yield from _sample_of(scan, LARGEST_SAMPLE // len(scans), notice)


def _sample_of(scan: Scan, most: int, notice: Say) -> Iterator[str]:
    words = _Words()
    seen = endless = 0
    for document in scan.train():
        for chunk in chunks(document.pieces(), words, parse_special=False):
            if len(chunk.text) <= 3 * PIECE:
                yield chunk.text
            elif (endless := endless + len(chunk.text)) <= LARGEST_WORDS:
                yield from (chunk.text[begin : begin + LONGEST_WORD] for begin in range(0, len(chunk.text), LONGEST_WORD))
            seen += len(chunk.text)
            if seen >= most:
                of = "the corpus" if scan.name is None else f"the source {scan.name}"
                notice(f"the tokenizer is trained on the first {seen:,} characters of {of}, not on all of it")
                return


def _fill(tokenizer: Tokenizer, size: int, notice: Say) -> Tokenizer:
    """The tokenizer with entries up to its size that no merge leads to, and so no text.

    They are the model's own: an added token takes six times the room in a file, and a text could spell it.
    """
    learnt = tokenizer.get_vocab_size()
    if learnt == size:
        return tokenizer
    content = json.loads(tokenizer.to_str())
    content["model"]["vocab"] |= {f"<|reserved_{number}|>": learnt + number for number in range(size - learnt)}
    notice(f"the corpus is too small for a vocabulary of {size:,}: {learnt:,} tokens learnt, {size - learnt:,} reserved")
    return Tokenizer.from_str(json.dumps(content))


def _read(path: Path, size: int, specials: tuple[str, ...], notice: Say) -> dict[str, Any] | None:
    """A cached tokenizer, or None when there is none that can be used."""
    try:
        if not path.exists():
            return None
        text = read_text(path)
        values: dict[str, Any] = json_value(text, path)
        tokenizer = Tokenizer.from_str(text)
    except Exception as error:  # tokenizers raises Exception itself for what it cannot parse
        notice(f"{path}: the cached tokenizer is damaged ({error}); it is trained again")
        return None
    if tokenizer.get_vocab_size() != size or [tokenizer.token_to_id(token) for token in specials] != list(range(len(specials))):
        notice(f"{path}: the cached tokenizer is another one; it is trained again")
        return None
    return values
