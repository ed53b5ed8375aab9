"""Fill in the middle: a share of the documents is rearranged, so that a decoder learns to write what stands in a hole.

Source: Bavarian et al. 2022 (arXiv:2207.14255). A text is cut at two characters into prefix, middle and suffix, and becomes

    PSM    PRE prefix SUF suffix MID middle end
    SPM    PRE SUF suffix MID prefix middle end        (their SPMv2, which published trainers use)

The three are encoded apart, as they are when a hole is filled. All tokens are targets, those of the prefix and of the suffix
too, so that what is learnt of writing forward is not less (their section 3); so is the end, which says that the hole is full.
A document that is longer than a row is cut at line ends first, into parts that fit a row together with what stands around
them ("context-level", their section 3.2: rearranged before it is cut, a document would often show a hole without its text).

What is drawn for a part depends on the seed, on its document's key and on the character where it begins, alone: neither the
order of the documents nor a resume changes it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from hashlib import blake2b
from itertools import chain, groupby
from typing import Any, ClassVar, Literal, NamedTuple

from attrs import asdict, field, frozen

from apr_train import rules
from apr_train.data.documents import Document
from apr_train.data.encoding import SPELLED, EncodeOptions, in_batches, spelled_findings
from apr_train.data.fim_tokens import NEEDED, FimTokens, encode_texts, fim_tokens
from apr_train.data.formats.utf8 import PIECE
from apr_train.data.objectives.causal_lm import CausalLM
from apr_train.data.protocols import TokenizerLike
from apr_train.data.special_tokens import DocumentEnds, SpelledTokens
from apr_train.data.split import split_key
from apr_train.data.tokens import TokenWriter
from apr_train.errors import ConfigError, Finding
from apr_train.run.objective_names import SourceKind, TrainingObjective

Order = Literal["PSM", "SPM"]
PARTS, PSM, SPM, IN_TEXT = "fim_parts", "fim_psm", "fim_spm", "fim_in_text"
"""Counts of a token file: parts, those with a hole in either order, and tokens around a hole that the text itself has."""
RULE = "fim-1"
"""The rule of this module by name: another one makes other tokens of the same text."""
VALIDATION_SEED = 0
"""What is held out gets the same holes in every run."""
_WORD = 1 << 64
_BATCH_CHARACTERS = 1 << 18
"""Text whose lines are counted at once."""
_ENCODED_AT_ONCE = 1 << 20
"""Characters of the parts that are encoded at once."""
_ADDED = 8
"""Tokens that two cuts inside words add to a text, at most as a rule."""


@frozen
class Hole:
    """A text cut in three."""

    order: Order
    prefix: str
    middle: str
    suffix: str

    @property
    def texts(self) -> tuple[str, str, str]:
        """What is encoded, each apart."""
        return self.prefix, self.middle, self.suffix


def cut(text: str, *, seed: int, key: int, begin: int, rate: float, spm_rate: float) -> Hole | None:
    """The hole that is drawn for a part of a document; None: it stays as it is.

    The two cuts are independent and uniform over all places of the text, both ends included, so that any of the three may
    be empty. The draw is a hash, so that it is the same on every machine and with every version of every library.

    Args:
        text: of the part.
        seed: of the run.
        key: the document's `split_key`.
        begin: the character of the document where the part begins.
        rate: share of the parts that get a hole.
        spm_rate: share of those in the order SPM.
    """
    words = blake2b(f"{seed}/{key}/{begin}".encode(), digest_size=32, person=b"apr-fim").digest()
    chance, order, one, other = (int.from_bytes(words[place : place + 8], "little") for place in range(0, 32, 8))
    if chance >= int(rate * _WORD):
        return None
    first, last = sorted(number * (len(text) + 1) // _WORD for number in (one, other))
    return Hole("SPM" if order < int(spm_rate * _WORD) else "PSM", text[:first], text[first:last], text[last:])


def arranged(tokens: FimTokens, order: Order, prefix: Sequence[int], middle: Sequence[int], suffix: Sequence[int]) -> list[int]:
    """The ids of a text with a hole, without what stands around a document."""
    if order == "SPM":
        return [tokens.prefix, tokens.suffix, *suffix, tokens.middle, *prefix, *middle]
    return [*tokens.question(prefix, suffix), *middle]


@frozen
class Part:
    """A stretch of a document's lines."""

    key: int
    """The document's `split_key`."""
    begin: int
    """The character of the document where it begins."""
    text: str

    def halves(self) -> tuple[Part, Part]:
        """Two parts, cut behind the line end that is nearest to the middle, else in the middle."""
        middle = len(self.text) // 2
        ends = (self.text.rfind("\n", 0, middle) + 1, self.text.find("\n", middle, -1) + 1)
        place = min((end for end in ends if end), key=lambda end: abs(end - middle), default=middle)
        return Part(self.key, self.begin, self.text[:place]), Part(self.key, self.begin + place, self.text[place:])


class _Line(NamedTuple):  # made for every line of a corpus: an attrs class takes twice as long
    """A line of a document, its end included; or a piece of one."""

    document: int
    """The document's place in the stream."""
    key: int
    """The document's `split_key`."""
    text: str
    tokens: int
    """How many it comes to; 0 before that is known."""


class Parts:
    """Cuts documents into parts of at most `room` tokens, at line ends; a line that is longer is cut inside."""

    def __init__(self, tokenizer: TokenizerLike, room: int, *, parse_special: bool) -> None:
        self._tokenizer, self._room, self._parse_special = tokenizer, room, parse_special

    def of(self, documents: Iterable[Document]) -> Iterator[Part]:
        """The parts of each document, some lines in memory at a time; those of one document together are its text."""
        for _, lines in groupby(self._counted(documents), key=lambda line: line.document):
            yield from self._joined(lines)

    def _joined(self, lines: Iterable[_Line]) -> Iterator[Part]:
        """The parts of one document, each of as many lines as fit."""
        held: list[str] = []
        begin = tokens = key = 0
        for line in lines:
            if held and tokens + line.tokens > self._room:
                yield (part := Part(key, begin, "".join(held)))
                begin, held, tokens = begin + len(part.text), [], 0
            held.append(line.text)
            key, tokens = line.key, tokens + line.tokens
        yield Part(key, begin, "".join(held))

    def _counted(self, documents: Iterable[Document]) -> Iterator[_Line]:
        """Lines with their numbers of tokens, counted for many documents at once; of one that does not fit, its pieces."""
        for lines in in_batches(self._uncounted(documents), lambda line: len(line.text), _BATCH_CHARACTERS):
            counts = map(len, self._encoded([line.text for line in lines if not line.tokens]))
            for line in lines:
                yield from [line] if line.tokens else self._fitting(line, next(counts))

    def _uncounted(self, documents: Iterable[Document]) -> Iterator[_Line]:
        """Lines whose tokens are not counted yet; a document that fits as it is comes as one line, by its bytes."""
        for number, document in enumerate(documents):
            key, size = split_key(document), len(document.utf8)
            if size <= self._room:  # a token is a byte at least
                yield _Line(number, key, document.text, max(size, 1))
            else:
                yield from (_Line(number, key, line, 0) for line in _lines(document.pieces()))

    def _fitting(self, line: _Line, count: int) -> Iterator[_Line]:
        text = line.text
        if count <= self._room or len(text) == 1:
            yield line._replace(tokens=count)
            return
        size = max(1, len(text) * self._room // (2 * count))
        pieces = [text[begin : begin + size] for begin in range(0, len(text), size)]
        for piece, ids in zip(pieces, self._encoded(pieces), strict=True):
            yield from self._fitting(line._replace(text=piece), len(ids))

    def _encoded(self, texts: list[str]) -> list[list[int]]:
        return self._tokenizer.encode_batch(texts, parse_special=self._parse_special)


def _lines(pieces: Iterable[str]) -> Iterator[str]:
    """Lines with their ends; one that is longer than a piece, in pieces."""
    rest = ""
    for piece in pieces:
        *whole, rest = (rest + piece).split("\n")
        yield from (f"{line}\n" for line in whole)
        if len(rest) >= PIECE:
            yield rest
            rest = ""
    if rest:
        yield rest


@frozen
class FillInTheMiddle(CausalLM):
    """The objective of decoders that write what stands in a hole; most of it is causal language modelling."""

    name: ClassVar[TrainingObjective] = "fim"
    shortest_row: ClassVar[int] = 8
    special_tokens: ClassVar[tuple[str, ...]] = NEEDED
    measures_bits_per_byte: ClassVar[bool] = False

    def encoder(self, kind: SourceKind, options: EncodeOptions) -> FimEncoder:
        """Texts, a share of them with a hole.

        Raises:
            ConfigError: for a setting of tokens that is not three names, and for rows too short for a hole.
            TokenizerError: FIM-001 or FIM-002, and when the tokenizer has no end of text.
        """
        data, length = options.settings, options.sequence_length
        if length < self.shortest_row:
            expected = f"at least {self.shortest_row}"
            raise ConfigError("the rows are too short", where="sequence_length", expected=expected, found=length)
        tokens = fim_tokens(options.tokenizer, card=options.fim_tokens, setting=data.fim_tokens, where="tokenizer")
        return FimEncoder(
            tokenizer=options.tokenizer,
            tokens=tokens,
            ends=self.document_ends(options.tokenizer),
            length=length,
            seed=options.seed if options.side == "train" else VALIDATION_SEED,
            rate=data.fim_rate,
            spm_rate=data.fim_spm_rate,
            parse_special=data.parse_special,
        )


@frozen(kw_only=True)
class FimEncoder:
    """Documents to ids, a share of them with a hole; each part of a document is a document of the token file."""

    tokenizer: TokenizerLike = field(repr=False)
    tokens: FimTokens
    ends: DocumentEnds
    length: int
    """Tokens in a row, which no part is longer than."""
    seed: int
    rate: float
    spm_rate: float
    parse_special: bool

    @property
    def fingerprint(self) -> Mapping[str, Any]:
        """The rule, the tokens, the ends, the row, the draw, and how special tokens are read."""
        plain = asdict(self, filter=lambda item, _: item.name != "tokenizer")
        return {"rule": RULE, **plain}

    def encode(self, documents: Iterable[Document], writer: TokenWriter, *, done: Callable[[int], None]) -> None:
        """Append the documents to a token file; `done` is told of the bytes of text encoded."""
        spelled = SpelledTokens(self.tokenizer.special_tokens)
        for batch in in_batches(self._parts().of(documents), lambda part: len(part.text), _ENCODED_AT_ONCE):
            for part, order, ids in self._encoded(batch):
                size = len(part.text.encode("utf-8"))
                writer.append(ids, text_bytes=size)
                writer.end_document(self._end(order))
                self._count(writer, part, order, ids)
                writer.count(SPELLED, spelled.count(part.text))
                done(size)

    def findings(self, counts: Mapping[str, int]) -> list[Finding]:
        """What of the text is read otherwise than one may think."""
        return [*spelled_findings(counts.get(SPELLED, 0), self.parse_special), *_in_text(counts.get(IN_TEXT, 0))]

    def _count(self, writer: TokenWriter, part: Part, order: Order | None, ids: Sequence[int]) -> None:
        writer.count(PARTS)
        if order is not None:
            writer.count(PSM if order == "PSM" else SPM)
        around = 0 if order is None else len(NEEDED)
        writer.count(IN_TEXT, sum(map(self.tokens.ids.__contains__, ids)) - around)

    def _parts(self) -> Parts:
        """The cutter, for rows with room for what stands around a part, and for what two cuts may add to it."""
        around = len(self.ends.start) + len(self.tokens.roles) + 1
        room = self.length - around - min(_ADDED, self.length // 16)
        return Parts(self.tokenizer, max(1, room), parse_special=self.parse_special)

    def _end(self, order: Order | None) -> int:
        return self.ends.end if order is None or self.tokens.end is None else self.tokens.end

    def _encoded(self, parts: Sequence[Part]) -> Iterator[tuple[Part, Order | None, list[int]]]:
        """Each part's ids without its end, and the order of its hole; a part that turns out too long for a row, in two."""
        holes = [self._hole(part) for part in parts]
        texts = [(part.text,) if hole is None else hole.texts for part, hole in zip(parts, holes, strict=True)]
        flat = list(chain.from_iterable(texts))
        ids = iter(encode_texts(self.tokenizer, flat, self.tokens, parse_special=self.parse_special))
        for part, hole, pieces in zip(parts, holes, texts, strict=True):
            found = [next(ids) for _ in pieces]
            whole = [*self.ends.start, *(found[0] if hole is None else arranged(self.tokens, hole.order, *found))]
            if len(whole) >= self.length and len(part.text) > 1:
                yield from self._encoded(part.halves())
            else:
                yield part, None if hole is None else hole.order, whole

    def _hole(self, part: Part) -> Hole | None:
        return cut(part.text, seed=self.seed, key=part.key, begin=part.begin, rate=self.rate, spm_rate=self.spm_rate)


def _in_text(number: int) -> list[Finding]:
    if not number:
        return []
    return [
        Finding(
            rule=rules.PREFLIGHT_023,
            subject="--data",
            problem="the text itself has tokens that stand around a hole",
            expected="tokens that no text has, so that they mean one thing",
            found=f"{number:,} of them",
            hint="Name others with --fim-tokens, or leave --parse-special out.",
            severity="warning",
        )
    ]
