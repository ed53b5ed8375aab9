"""Evaluations in the run: what `--eval` asks of the model at each validation, the same questions each time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import cast

from attrs import Factory, frozen
from torch import nn

from apr_train.data.corpus import held_out_documents
from apr_train.data.documents import Document
from apr_train.data.fim_tokens import FimTokens, fim_tokens
from apr_train.data.special_tokens import ending_ids
from apr_train.data.tokenizer import Tokenizer
from apr_train.errors import DataError
from apr_train.model.attention import Choice, Request
from apr_train.model.device import PRECISIONS, Precision
from apr_train.model.protocol import LanguageModel
from apr_train.run.evaluation_names import FLAG, EvaluationName, parse_evaluations
from apr_train.run.events import Say
from apr_train.training.examinee import Examinee, examined
from apr_train.training.fim_eval import Question, fill, questions
from apr_train.training.inputs import Inputs
from apr_train.training.run import Evaluate
from apr_train.training.syntax import Prompt, complete, completion_length, prompts

Values = Mapping[str, float | None]
"""Field of `Metrics` → what was measured."""


@frozen(kw_only=True)
class Material:
    """What evaluations make their questions of."""

    documents: Sequence[Document]
    """Held out, in the order of their keys."""
    tokenizer: Tokenizer
    positions: int
    """Tokens of a text that the model takes, at most."""
    row: int
    """Tokens in a row of the training."""
    fim_tokens: Mapping[str, str] = Factory(dict)
    """The family's."""
    fim_setting: str | None = None
    """The user's."""
    parse_special: bool = False


@frozen(kw_only=True)
class HiddenLines:
    """Lines that the model is asked to write anew."""

    questions: tuple[Question, ...]
    tokens: FimTokens

    @classmethod
    def of(cls, count: int, material: Material) -> HiddenLines:
        """The first `count` lines to hide."""
        tokenizer = material.tokenizer
        tokens = fim_tokens(tokenizer, card=material.fim_tokens, setting=material.fim_setting, where="tokenizer")
        shape = {"row": material.row, "positions": material.positions}
        return cls(questions=questions(tokenizer, material.documents, tokens, count=count, **shape), tokens=tokens)

    def __len__(self) -> int:
        return len(self.questions)

    def ask(self, examinee: Examinee) -> Values:
        """Loss, share that comes back, share that is Python."""
        report = fill(examinee, self.questions, self.tokens, count=len(self.questions))
        return {
            "eval_fim_loss": report.loss,
            "eval_fim_exact": report.exact_rate,
            "eval_fim_parsed": report.parsed_rate,
        }


@frozen(kw_only=True)
class Functions:
    """Functions that the model is asked to complete."""

    prompts: tuple[Prompt, ...]
    length: int

    @classmethod
    def of(cls, count: int, material: Material) -> Functions:
        """The first `count` signatures."""
        length, special = completion_length(material.positions), material.parse_special
        room = material.positions - length
        found = prompts(material.tokenizer, material.documents, count=count, room=room, parse_special=special)
        return cls(prompts=found, length=length)

    def __len__(self) -> int:
        return len(self.prompts)

    def ask(self, examinee: Examinee) -> Values:
        """The share that is Python."""
        return {"eval_syntax": complete(examinee, self.prompts, count=len(self.prompts), length=self.length).rate}


EVALUATIONS: Mapping[EvaluationName, Callable[[int, Material], HiddenLines | Functions]] = {
    "fim": HiddenLines.of,
    "syntax": Functions.of,
}
"""Name → how many and of what → the questions."""


@frozen
class Evaluations:
    """All that a run asks its model; called with the model, gives fields of `Metrics`."""

    asked: tuple[HiddenLines | Functions, ...]
    examinee: Callable[[LanguageModel], Examinee]
    """The model as one that writes."""

    def __call__(self, model: nn.Module) -> Values:
        """Ask, in evaluation mode; the model is in training mode afterwards if it was before."""
        with examined(model):
            examinee = self.examinee(cast(LanguageModel, model))
            return {name: value for item in self.asked for name, value in item.ask(examinee).items()}


def make_questions(asked: Mapping[EvaluationName, int], material: Material) -> dict[EvaluationName, HiddenLines | Functions]:
    """The questions of each evaluation.

    Raises:
        DataError: when the held-out text has nothing to ask about; it names the evaluation.
    """
    made = {}
    for name, count in asked.items():
        try:
            made[name] = EVALUATIONS[name](count, material)
        except DataError as error:
            raise error.amend(subject=f"{FLAG} {name}") from error
    return made


def make_evaluations(inputs: Inputs, choice: Choice, say: Say) -> Evaluate | None:
    """What the run is asked for with `--eval`, the same questions at each validation; None for nothing.

    Raises:
        DataError: when the held-out text has nothing to ask about.
    """
    decided, cleared, header = inputs.decided, inputs.cleared, inputs.header
    asked = parse_evaluations(decided.settings.run.eval)
    if not asked:
        return None
    data = decided.settings.data
    material = Material(
        documents=held_out_documents(data, cleared.objective),
        tokenizer=inputs.tokenizer,
        positions=cleared.config.usable_positions,
        row=decided.sequence_length,
        fim_tokens=cleared.family.info.fim_tokens,
        fim_setting=data.fim_tokens,
        parse_special=data.parse_special,
    )
    ends = ending_ids(inputs.tokenizer, {} if header is None else header.config)
    precision = exact_precision(inputs, choice)  # autocast would convert all weights for every token

    def examinee(model: LanguageModel) -> Examinee:
        return Examinee(
            model=model,
            tokenizer=material.tokenizer,
            positions=material.positions,
            precision=precision,
            device=decided.device,
            ends=ends,
        )

    made = make_questions(asked, material)
    for name, found in made.items():
        if len(found) < asked[name]:
            say(f"--eval {name}: the held-out text has {len(found)} that fit, not {asked[name]}")
    return Evaluations(tuple(made.values()), examinee)


def exact_precision(inputs: Inputs, choice: Choice) -> Precision:
    """float32, as in the file, where weights and attention can: products in bfloat16 hide small defects.

    Several processes gather the matrices in the type of the run's products, and compute nothing in another.
    """
    decided, config, objective = inputs.decided, inputs.cleared.config, inputs.cleared.objective
    exact, mask = PRECISIONS["fp32"], objective.mask_kind(document_mask=False)
    request = Request.for_config(config, device=decided.device.type, dtype=exact.kernel_dtype, mask=mask, training=False)
    gathered = inputs.processes.several and decided.precision.autocast is not None
    possible = not gathered and decided.precision.weights == exact.weights and choice.backend.supports(request) is None
    return exact if possible else decided.precision
