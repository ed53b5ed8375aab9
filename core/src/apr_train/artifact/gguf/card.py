"""The card beside a GGUF file: where it came from, which types it holds, and how it was compared with its source."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from attrs import field, frozen

from apr_train import rules
from apr_train.artifact.card import Card, Use, markdown
from apr_train.artifact.gguf.k_quants import K_QUANTS
from apr_train.artifact.gguf.plan import GgufPlan
from apr_train.artifact.gguf.reopened import Comparison
from apr_train.artifact.targets import check_file
from apr_train.errors import OutputError
from apr_train.run.units import size

KEY = "apr_train.gguf"
"""The key of the front matter under which what was measured stands, and by which a card is known as one of ours."""
_MOST = 1 << 16
_CARRIED = {"license": "licence", "author": "author", "data_source": "training data", "data_license": "licence of the data"}


@frozen(kw_only=True)
class CardFacts:
    """What is known once the file is written."""

    name: str
    dtype: str | None
    """What was asked for."""
    nbytes: int
    comparison: Comparison | None
    proof: Mapping[str, Any] | None = field(repr=False)


def card_beside(target: Path) -> Path:
    """Where the card of a file lies: `x.gguf.md`."""
    return target.with_name(f"{target.name}.md")


def check_card(path: Path, sources: Iterable[Path]) -> None:
    """Refuse to write a card over a source, or over a file that is no such card.

    Raises:
        OutputError: WRITE-001 or WRITE-003.
    """
    check_file(path, sources, suffix=".md")
    if not path.is_file():
        return
    with path.open("rb") as file:
        there = file.read(_MOST)
    if there and not (there.startswith(b"---\n") and f"\n{KEY}:".encode() in there):
        raise OutputError(
            "the file is there, and is no card of a GGUF",
            where=path,
            rule=rules.WRITE_003,
            expected=f"a card with {KEY} in its front matter, or none",
            found="another text",
            hint="Give another name to -o, or move away what is there: the card is written beside the GGUF.",
        )


def card_text(plan: GgufPlan, facts: CardFacts) -> str:
    """The card as Markdown with front matter."""
    provenance = plan.conversion.header.provenance
    front = {key: provenance[key] for key in ("license", "author") if provenance.get(key)}
    front[KEY] = {"dtype": facts.dtype or "as stored", **_measured(facts)}
    about = {
        "architecture": plan.architecture,
        "family": f"{plan.conversion.family.name} of {plan.conversion.family.distribution} {plan.conversion.family.version}",
        "parameters": f"{sum(tensor.elements for tensor in plan.tensors):,}",
        "size": size(facts.nbytes),
        "tensors": _types(plan, facts),
        "made from": str(provenance.get("source") or plan.conversion.header.path.rpartition("/")[2]),
        **{name: str(provenance[key]) for key, name in _CARRIED.items() if provenance.get(key)},
        "compared with its source": "; ".join(sentences(facts.comparison, facts.proof)),
    }
    python = f'from llama_cpp import Llama\n\nmodel = Llama("{facts.name}")\nprint(model("def main():", max_tokens=32))'
    use = Use(python=python, command=f"apr-train generate {facts.name} --prompt 'def main():'")
    return markdown(Card(title=str(plan.metadata["general.name"]), front_matter=front, about=about, use=use))


def _types(plan: GgufPlan, facts: CardFacts) -> str:
    """Number and type of the tensors; which types llama.cpp gave them is only known of a file that was opened again."""
    if facts.comparison is None and facts.dtype in K_QUANTS:
        return f"{len(plan.tensors)}, types not looked at"
    found = facts.comparison.types if facts.comparison else Counter(tensor.dtype for tensor in plan.tensors)
    return ", ".join(f"{count} {name}" for name, count in sorted(found.items()))


def _measured(facts: CardFacts) -> dict[str, Any]:
    if facts.comparison is None:
        return {"compared": False}
    return {"compared": True, "identical_tensors": facts.comparison.identical, **(facts.proof or {})}


def sentences(comparison: Comparison | None, proof: Mapping[str, Any] | None) -> list[str]:
    """What the comparison found, for people."""
    if comparison is None:
        return ["not at all (--no-verify)"]
    total = sum(comparison.types.values())
    found = [f"{comparison.identical} of {total} tensors are identical"]
    if comparison.quantised:
        worst = f"{comparison.largest_error:.2%} ({comparison.largest_at})"
        found.append(f"{comparison.quantised} are quantised, with a relative error of at most {worst}")
    if proof:
        change = proof["perplexity"] / proof["source_perplexity"] - 1
        found.append(
            f"perplexity {proof['source_perplexity']:.4f} → {proof['perplexity']:.4f} ({change:+.2%}), the same most likely "
            f"token at {proof['top1_agreement']:.2%} of {proof['targets']:,} positions"
        )
    return found
