"""Supervised fine-tuning: conversations by the tokenizer's chat template, of which the assistant's turns are learnt."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, ClassVar

import attrs
from attrs import field, frozen

from apr_train import rules
from apr_train.data.chat.encode import EncodedChat, encode_chats
from apr_train.data.chat.renderer import Renderer, Rendering
from apr_train.data.chat.template import ChatTemplate, template_of
from apr_train.data.conversations import Conversation
from apr_train.data.documents import Document
from apr_train.data.encoding import EncodeOptions, Encoder, in_batches
from apr_train.data.objectives.causal_lm import CausalLM
from apr_train.data.special_tokens import separator_id
from apr_train.data.tokenizer import Tokenizer
from apr_train.data.tokens import TokenWriter
from apr_train.errors import DataError, Finding, TokenizerError
from apr_train.run.objective_names import Packing, SourceKind, TrainingObjective, TrainOn

_BATCH_BYTES, _BATCH = 1 << 16, 64
"""Conversations that are rendered at once: so many bytes of them, or so many."""
CONVERSATIONS, CUT = "conversations", "conversations cut"
"""Counts of a token file: conversations that are kept, and those of them whose last turns are not."""
CONTROL = "control tokens spelt"
"""Count: control tokens that messages spell and that became just that."""
SILENT, TOO_LONG, UNCLEAR = "without a turn of the assistant", "longer than a row", "with turns that cannot be told apart"
"""Counts: conversations that are left out, by the reason."""
_REASONS = (SILENT, TOO_LONG, UNCLEAR)


@frozen
class SFT(CausalLM):
    """The objective of decoders that learn to answer: the next token, in the assistant's turns only."""

    name: ClassVar[TrainingObjective] = "sft"
    source_kinds: ClassVar[tuple[SourceKind, ...]] = ("chat", "text")
    packing: ClassVar[Packing] = "best-fit"
    measures_bits_per_byte: ClassVar[bool] = False

    def encoder(self, kind: SourceKind, options: EncodeOptions) -> Encoder:
        """Conversations by the template; of texts, which keep alive what a model knew, every token is learnt.

        Raises:
            TokenizerError: CHAT-001, when the tokenizer has no chat template.
        """
        return ChatEncoder.of(options) if kind == "chat" else super().encoder(kind, options)


@frozen(kw_only=True)
class ChatEncoder:
    """Conversations as ids: what transformers makes of them, and no token more where the template ends a turn with one."""

    tokenizer: Tokenizer = field(repr=False)
    template: ChatTemplate = field(repr=False)
    train_on: TrainOn
    parse_special: bool
    longest: int
    """Ids of the longest conversation that a row has room for."""

    @classmethod
    def of(cls, options: EncodeOptions) -> ChatEncoder:
        """The encoder of a run.

        Raises:
            TokenizerError: CHAT-001, when the tokenizer has no chat template.
            ConfigError: for a `chat_date` that is no date.
        """
        if not isinstance(options.tokenizer, Tokenizer):
            raise TokenizerError("a tokenizer without a chat template", expected="one that was read from a file")
        return cls(
            tokenizer=options.tokenizer,
            template=template_of(options.tokenizer, options.settings.chat_date),
            train_on=options.settings.train_on,
            parse_special=options.settings.parse_special,
            longest=options.sequence_length + 1,  # the last one is no input
        )

    @property
    def fingerprint(self) -> Mapping[str, Any]:
        """The template with all that it is given, what is learnt, and what a row has room for."""
        template = self.template
        return {
            "template": hashlib.sha256(template.text.encode("utf-8", "surrogatepass")).hexdigest(),
            "special_tokens": dict(template.special_tokens),
            "date": template.date.isoformat(),
            "train_on": self.train_on,
            "parse_special": self.parse_special,
            "longest": self.longest,
        }

    def encode(self, documents: Iterable[Document], writer: TokenWriter, *, done: Callable[[int], None]) -> None:
        """Append conversations to a token file; what is cut or left out is counted there.

        Raises:
            DataError: for a conversation that the template raises for, naming it, and where none is left.
        """
        with Renderer(self.template) as renderer:
            encoding = _Encoding(self, renderer)
            for batch in _batches(documents):
                for chat, text_bytes in encoding.kept(batch):
                    writer.append(chat.ids, learn=chat.learn, text_bytes=text_bytes)
                    writer.end_document()
                done(sum(len(document.utf8) for document in batch))
        for name, number in encoding.told.items():
            writer.count(name, number)
        require_some(encoding.told)

    def counts(self, documents: Iterable[Document]) -> Mapping[str, int]:
        """What happens to conversations, without keeping any.

        Raises:
            DataError: for a conversation that the template raises for, naming it.
        """
        with Renderer(self.template) as renderer:
            encoding = _Encoding(self, renderer)
            for batch in _batches(documents):
                for _ in encoding.kept(batch):
                    pass
        return encoding.told

    def findings(self, counts: Mapping[str, int]) -> list[Finding]:
        """What was cut, left out, or became control tokens, as warnings."""
        return [*_cut_finding(counts), *_left_out_finding(counts), *_control_finding(counts, self.parse_special)]


class _Encoding:
    """One pass over conversations, with what happened to them.

    Raises:
        TemplateFault: when turns are learnt, and the template does not tell them apart.
    """

    def __init__(self, encoder: ChatEncoder, renderer: Renderer) -> None:
        if encoder.train_on != "all":
            renderer.require_turns()
        self.told: Counter[str] = Counter()
        self._encoder, self._renderer = encoder, renderer

    def kept(self, batch: list[Document]) -> Iterator[tuple[EncodedChat, int]]:
        """The conversations of a batch that are learnt, each with the bytes of its document."""
        chats = [Conversation.from_bytes(document.utf8) for document in batch]
        renderings = list(self._renderer.render(chats, where=[document.source for document in batch]))
        for document, chat, rendering, whole in zip(batch, chats, renderings, self.ids(renderings), strict=True):
            found = self._fitting(chat, rendering, whole, document.source)
            if isinstance(found, str):
                self.told[found] += 1
                continue
            self.told.update({CONVERSATIONS: 1, CUT: int(found is not whole), CONTROL: found.control})
            yield found, len(document.utf8)

    def ids(self, renderings: list[Rendering]) -> list[EncodedChat]:
        """Conversations as ids; where no control token ends the last turn, the end of text does, learnt as the turn is."""
        encoder, control = self._encoder, self._encoder.template.control
        chats = encode_chats(renderings, encoder.tokenizer, train_on=encoder.train_on, parse_special=encoder.parse_special)
        for rendering, chat in zip(renderings, chats, strict=True):
            if not rendering.text.rstrip().endswith(control):
                chat.ids.append(separator_id(encoder.tokenizer))
                chat.learn.extend(chat.learn[-1:])
        return chats

    def _fitting(self, chat: Conversation, rendering: Rendering, whole: EncodedChat, where: str) -> EncodedChat | str:
        """A conversation as it is or cut, or the reason why it is left out."""
        if rendering.unclear and self._encoder.train_on != "all":
            return UNCLEAR
        if not any(whole.learn):
            return SILENT
        if len(whole.ids) <= self._encoder.longest:
            return whole
        return self._cut(chat, whole, where) or TOO_LONG

    def _cut(self, chat: Conversation, whole: EncodedChat, where: str) -> EncodedChat | None:
        """The longest beginning of a conversation that ends with a turn of the assistant and has room in a row.

        It is rendered anew: a template may write the last turn in another way than one that is followed. Where the last
        turn is the only one that is learnt, there is none.
        """
        longest = self._encoder.longest
        turns = chat.turns if self._encoder.train_on != "completion" else []
        if len(whole.turn_ends) == len(turns):
            turns = [turn for turn, end in zip(turns, whole.turn_ends, strict=True) if end <= longest]
        for turn in reversed(turns):
            (fitting,) = self.ids(list(self._renderer.render([chat.first(turn + 1)], where=[where])))
            if len(fitting.ids) <= longest and any(fitting.learn):
                return fitting
        return None


def left_out(counts: Mapping[str, int]) -> dict[str, Any]:
    """Counts as a report has them: how many there are, are kept, are cut, and are left out for which reason."""
    reasons = {reason: counts[reason] for reason in _REASONS if counts.get(reason)}
    kept = counts.get(CONVERSATIONS, 0)
    return {"looked_at": kept + sum(reasons.values()), "kept": kept, "cut": counts.get(CUT, 0), "left_out": reasons}


def require_some(counts: Mapping[str, int]) -> None:
    """Refuse documents of which none is left.

    Raises:
        DataError: CHAT-005, with the reasons.
    """
    if counts and not counts.get(CONVERSATIONS):
        raise DataError(
            "no conversation is left to learn from",
            where="--data",
            rule=rules.CHAT_005,
            found=_list(counts, _REASONS),
            hint="docs/chat.md says what is left out; longer rows: --sequence-length.",
        )


def _batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    return in_batches(documents, lambda document: len(document.utf8), _BATCH_BYTES, count=_BATCH)


def _cut_finding(counts: Mapping[str, int]) -> list[Finding]:
    if not counts.get(CUT):
        return []
    kept = f"{counts[CUT]:,} of {counts.get(CONVERSATIONS, 0):,}"
    hint = "Longer rows, with --sequence-length, keep more."
    return [_told("conversations are longer than a row, and lose their last turns", kept, hint)]


def _left_out_finding(counts: Mapping[str, int]) -> list[Finding]:
    left_out = sum(counts.get(reason, 0) for reason in _REASONS)
    if not left_out:
        return []
    found = f"{left_out:,} of {left_out + counts.get(CONVERSATIONS, 0):,}: {_list(counts, _REASONS)}"
    return [_told("conversations are left out", found, "docs/chat.md says what can be done about each.")]


def _control_finding(counts: Mapping[str, int], parse_special: bool) -> list[Finding]:
    if not counts.get(CONTROL):
        return []
    finding = _told(
        "messages spell control tokens of the tokenizer",
        f"{counts[CONTROL]:,} of them, learnt as control tokens",
        "Leave --parse-special out." if parse_special else "Template and tokenizer do not tell them from the template's own.",
    )
    return [attrs.evolve(finding, rule=rules.PREFLIGHT_023)]


def _told(problem: str, found: str, hint: str) -> Finding:
    return Finding(rule=rules.CHAT_005, subject="--data", problem=problem, found=found, hint=hint, severity="warning")


def _list(counts: Mapping[str, int], names: Iterable[str]) -> str:
    return ", ".join(f"{counts[name]:,} {name}" for name in names if counts.get(name))
