"""The files of a family's package, made from a draft, and written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import attrs
import tomli_w

from apr_train.artifact.new_family.draft import ROWS, TINY, Draft
from apr_train.artifact.new_family.literals import WIDTH, Code, call, literal, text
from apr_train.artifact.new_family.templates import (
    FUSED_RULES,
    GGUF_REFUSED,
    HOOKS,
    MODULE,
    OWN_REFERENCE,
    README,
    REFERENCE,
    TEST,
    WORKFLOW,
)
from apr_train.artifact.new_family.tiny import period
from apr_train.atomic import replace_folder, write_file
from apr_train.errors import Finding, OutputError
from apr_train.family.certificate import NAME as CERTIFICATE
from apr_train.family.decoder_config import DecoderConfig

MOST_FINDINGS = 200
_IMPORT = "from apr_train.family import "
CARD = ("gguf_architectures", "config_keys", "config_names", "fixed", "implied", "layer_pattern", "never_permuted")
"""Fields of the card that are written where they say something."""


def distribution(name: str) -> str:
    """The name of the family's distribution."""
    return f"apr-train-{name}"


def module(name: str) -> str:
    """The name of the family's module."""
    return f"apr_train_{name}"


def files_of(draft: Draft) -> dict[str, str]:
    """Path in the package → text."""
    return {
        f"{module(draft.name)}.py": module_source(draft),
        f"test_{draft.name}.py": test_source(draft),
        "pyproject.toml": _project(draft),
        "README.md": _readme(draft),
        ".github/workflows/test.yml": WORKFLOW,
    }


def check_target(target: Path) -> None:
    """Refuse a place that is taken.

    Raises:
        OutputError: a file, or a folder with something in it.
    """
    hint = "Give another folder with --out, or remove this one."
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise OutputError("the target is there, and is no folder", where=target, expected="no such path", hint=hint)
    if target.is_dir() and (inside := sorted(path.name for path in target.iterdir())):
        raise OutputError(
            "the folder is not empty", where=target, expected="an empty folder, or none", found=inside[0], hint=hint
        )
    if not target.parent.is_dir():
        raise OutputError("the folder above it does not exist", where=target.parent, hint="Make it first.")


def write_package(draft: Draft, target: Path) -> list[str]:
    """Write all files, or none where the folder is new; returns their names.

    Raises:
        OutputError: see `check_target`; or it cannot be written.
    """
    check_target(target)
    files = files_of(draft)
    if target.exists():  # a shell may stand in it: it is filled, not exchanged
        _write(files, target)
    else:
        with replace_folder(target) as folder:
            _write(files, folder)
    return sorted(files)


def _write(files: Mapping[str, str], folder: Path) -> None:
    for name, content in files.items():
        try:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"cannot be written ({error.strerror})", where=folder / name) from error
        write_file(folder / name, content.encode("utf-8"))


def module_source(draft: Draft) -> str:
    """The family's module."""
    imports = ["DecoderConfig", "FamilyInfo", "NameMap", "decoder_rules", "hookimpl", "read_config"]
    imports += ["NameMapError"] if not draft.gguf_architectures else []
    imports += ["split"] if draft.fused else []
    ordered = sorted(imports, key=lambda name: (name[0].islower(), name))
    names = ", ".join(ordered)
    if len(f"{_IMPORT}{names}") > WIDTH:
        names = "\n".join(["(", *(f"    {name}," for name in ordered), ")"])
    return MODULE.format(
        title=draft.name,
        imports=names,
        card=call("FAMILY = FamilyInfo", _card(draft)),
        presets=_presets(draft),
        names="".join(_tables(draft)),
        hooks=_hooks(draft),
    )


def _card(draft: Draft) -> dict[str, Any]:
    info = draft.info()
    first = ("name", "api_version", "kind", "objectives", "hf_classes", "model_type")
    values = {name: getattr(info, name) for name in first}
    values |= {"presets": info.presets, "default_preset": info.default_preset}
    values |= {"base_prefix": info.base_prefix} if info.base_prefix != "model." else {}
    return values | {name: value for name in CARD if (value := getattr(info, name))}


def _presets(draft: Draft) -> str:
    lines = ["PRESETS = {"]
    for name, config in draft.presets.items():
        unpacked = ("FAMILY.fixed",) if draft.fixed else ()
        lines.append(f"    {text(name)}: {call('DecoderConfig', _values(draft, config), unpacked=unpacked, indent=4)},")
    return "\n".join([*lines, "}"])


def _values(draft: Draft, config: DecoderConfig) -> dict[str, Any]:
    """The arguments of a config: what is not its default, without what the card fixes."""
    plain = config.num_attention_heads * config.head_dim == config.hidden_size
    values = {}
    for item in attrs.fields(DecoderConfig):
        value = getattr(config, item.name)
        derived = item.name == "head_dim" and plain
        if derived or item.name in draft.fixed or (value == item.default and item.name != "tie_word_embeddings"):
            continue
        values[item.name] = attrs.asdict(value) if attrs.has(type(value)) else value
        if isinstance(value, tuple):
            values[item.name] = _layers(draft, item.name, value)
    if isinstance(scaling := values.get("rope_scaling"), dict):
        values["rope_scaling"] = {key: item for key, item in scaling.items() if item is not None}
    return values


def _layers(draft: Draft, name: str, items: tuple[Any, ...]) -> Any:
    """A list of one item a layer as a repeated pattern, where it is one."""
    step, count = period(items), len(items)
    if step == count or name not in ("layer_types", "no_rope_layers"):
        return items
    pattern = "FAMILY.layer_pattern" if draft.layer_pattern == items[:step] else literal(items[:step])
    whole, rest = divmod(count, step)
    return Code(f"{pattern} * {whole}" if not rest else f"({pattern} * {whole + 1})[:{count}]")


def _tables(draft: Draft) -> Iterator[str]:
    if draft.names:
        yield f"NAMES = {literal(draft.names, column=8)}\n"
    if draft.fused:
        table = {theirs: {stem: ROWS[stem] for stem in stems} for theirs, stems in draft.fused.items()}
        yield f"FUSED = {literal(table, column=8)}\n"


def _hooks(draft: Draft) -> str:
    arguments = ["config", "layout"]
    arguments += ["prefix=FAMILY.base_prefix"] if draft.base_prefix != "model." else []
    arguments += ["names=NAMES"] if draft.names else []
    arguments += ["add=add", "drop=drop"] if draft.fused else []
    blocks = draft.names.get("layers", "layers")
    return HOOKS.format(
        refused="" if draft.gguf_architectures else GGUF_REFUSED,
        fused=FUSED_RULES.format(blocks=text(f"{blocks}.{{layer}}.")) if draft.fused else "",
        answer=_answer(", ".join(arguments)),
    )


def _answer(arguments: str) -> str:
    line = f"    return NameMap.for_config(config, decoder_rules({arguments}))"
    two = f"    rules = decoder_rules({arguments})\n    return NameMap.for_config(config, rules)"
    return line if len(line) <= WIDTH else two


def test_source(draft: Draft) -> str:
    """The family's test."""
    own = draft.reference is None
    values = draft.presets[TINY]
    arguments = _llama_arguments(values) if draft.reference is None else draft.reference
    reference = (OWN_REFERENCE if own else REFERENCE).format(
        config=literal(arguments, column=9), classes=text(draft.hf_classes[0]), name=draft.hf_classes[0]
    )
    return TEST.format(name=text(draft.name), title=draft.name, vocabulary=f"{values.vocab_size:d}", reference=reference)


def _llama_arguments(config: DecoderConfig) -> dict[str, Any]:
    """Of transformers' LlamaConfig, for a family that is one."""
    sizes = (
        "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
        "head_dim", "max_position_embeddings", "rms_norm_eps", "tie_word_embeddings",
    )  # fmt: skip
    values = {name: getattr(config, name) for name in sizes}
    return values | {"rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta}}


def _project(draft: Draft) -> str:
    name = draft.name
    major, minor, *_ = version("apr-train").split(".")
    core = f"apr-train>={major}.{minor},<{major}.{int(minor) + 1}"
    project = {
        "build-system": {"requires": ["hatchling>=1.27"], "build-backend": "hatchling.build"},
        "project": {
            "name": distribution(name),
            "version": "0.1.0",
            "description": f"The {name} family for apr-train.",
            "readme": "README.md",
            "requires-python": ">=3.11",
            "dependencies": [core],
            "optional-dependencies": {"test": ["pytest>=8.3", "transformers>=5"]},
            "entry-points": {"apr_train.families": {name: module(name)}},
        },
        "tool": {
            "hatch": {"build": {"targets": {"wheel": {"include": [f"{module(name)}.py", f"{module(name)}.{CERTIFICATE}"]}}}},
            "ruff": {"line-length": 120, "target-version": "py311"},
        },
    }
    return tomli_w.dumps(project)


def _readme(draft: Draft) -> str:
    todo = left_to_do(draft)
    remarks = [finding for finding in draft.findings if finding not in todo]
    parts = {"## To do": ("- [ ] ", todo), "## Concluded, to be made sure of": ("- ", remarks)}
    lists = [
        "\n".join([f"{title}\n", *(f"{mark}{_span(finding)}" for finding in found[:MOST_FINDINGS]), *_more(found)])
        for title, (mark, found) in parts.items()
        if found
    ]
    return README.format(
        name=draft.name, certificate=f"{module(draft.name)}.{CERTIFICATE}", lists="\n\n".join(lists) + ("\n\n" if lists else "")
    )


def _more(found: list[Finding]) -> list[str]:
    return [f"- and {len(found) - MOST_FINDINGS} more"] if len(found) > MOST_FINDINGS else []


def left_to_do(draft: Draft) -> list[Finding]:
    """The findings without an answer; the others are conclusions."""
    return [finding for finding in draft.findings if finding.severity == "error"]


def _span(finding: Finding) -> str:
    """A finding as a code span: nothing in it is Markdown, whatever names the file has."""
    return f"`{plain(str(finding)).replace('`', chr(39))}`"


def plain(line: str, *, most: int = 600) -> str:
    """A text on one line: what does not print is escaped, what is too long is cut."""
    shown = "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in line[:most])
    return shown + ("…" if len(line) > most else "")
