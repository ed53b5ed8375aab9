"""What an adapter makes of its base's tensors, by Hugging Face's names: LoRA in numpy, peft's other kinds by peft itself.

LoRA is W + s·B·A with s = alpha / rank, or alpha / √rank (Hu et al. 2021; Kalajdzievski 2023); DoRA gives each row of that a
length of its own (Liu et al. 2024). Tensors that peft saves whole (`modules_to_save`, biases) take the base's place.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from apr_train import rules
from apr_train.checkpoint.adapter_files import Adapter
from apr_train.checkpoint.dtypes import Array
from apr_train.errors import Finding, PreflightError
from apr_train.family.name_map import Fill, Ignored, NameMap, Tied
from apr_train.family.operations import Transpose
from apr_train.suggest import ClosestTensor

LORA = "LORA"
_WEIGHT = ".weight"
_PARTS = {
    "lora_A.weight": "A",
    "lora_B.weight": "B",
    "lora_embedding_A": "A",
    "lora_embedding_B": "B",
    "lora_magnitude_vector": "magnitude",
    "lora_magnitude_vector.weight": "magnitude",
}
"""How the name of a tensor of LoRA ends, behind its module's → which part it is."""
_KNOWN = frozenset({
    "alpha_pattern", "auto_mapping", "base_model_name_or_path", "bias", "corda_config", "ensure_weight_tying",
    "eva_config", "exclude_modules", "fan_in_fan_out", "inference_mode", "init_lora_weights", "layers_pattern",
    "layers_to_transform", "loftq_config", "lora_alpha", "lora_dropout", "lora_ga_config", "megatron_core",
    "modules_to_save", "peft_type", "peft_version", "qalora_group_size", "r", "rank_pattern", "revision",
    "runtime_config", "target_modules", "task_type", "use_dora", "use_rslora",
})  # fmt: skip
"""Keys of a LoRA's config that are understood, or say nothing of the weights; another one that is set is refused."""
_PLAIN_INITS = (None, True, False, "true", "gaussian", "eva")
"""`init_lora_weights` that leave the base as it was; the others subtract from it what A and B begin with."""
_PATTERN = re.compile(r"[\w.^$\\]+")
"""Patterns of modules that are looked for: names, whole or their ends; an expression from a file is not run."""


class AdaptedWeights:
    """The tensors of a base that an adapter changes, and their new values."""

    def __init__(self, adapter: Adapter, names: NameMap, *, subject: str) -> None:
        """Match every tensor of the adapter with the base's.

        Raises:
            PreflightError: ADAPTER-002 for everything that does not fit.
        """
        self._adapter, self._names, self._subject = adapter, names, subject
        self._config = adapter.config
        self._lora = self._config.get("peft_type") == LORA
        self._tied = {entry.parameter for entry in names.entries if isinstance(entry, Tied)}
        self._replaced: dict[str, str] = {}
        self._parts: dict[str, dict[str, str]] = defaultdict(dict)
        findings = [*self._of_config(), *self._sorted()]
        if self._lora and not findings:
            findings = [found for module in self._parts for found in self._of_module(module)]
        if findings:
            raise PreflightError(findings)

    @property
    def changed(self) -> frozenset[str]:
        """Hugging Face's names of the tensors that are not as in the base."""
        return frozenset({*self._replaced, *(module + _WEIGHT for module in self._parts)})

    def change(self, name: str, whole: Array, edge: Fill) -> Array:
        """The new values of a tensor.

        Args:
            name: one of `changed`.
            whole: its values in the base, float32.
            edge: one of its edges to the model, which says whether a matrix lies there as its transpose.
        """
        if name in self._replaced:
            return self._adapter.read(self._replaced[name]).astype(np.float32)
        module = name.removesuffix(_WEIGHT)
        flipped = isinstance(edge.operation, Transpose) or "lora_embedding_A" in self._of(module)
        weight = whole.T if flipped else whole
        merged = self._merged(module, weight) if self._lora else self._by_peft(module, weight)
        return merged.T if flipped else merged

    def _of(self, module: str) -> Mapping[str, str]:
        """End of the name of each of a module's tensors → its name."""
        return {name.removeprefix(f"{module}."): name for name in self._parts[module].values()}

    def _merged(self, module: str, weight: Array) -> Array:
        """W + s·B·A, `[out, in]` as is the weight."""
        a, b = (self._adapter.read(self._parts[module][part]).astype(np.float32) for part in "AB")
        whole: Array = weight + np.float32(self._scale(module)) * (b @ a)
        if "magnitude" not in self._parts[module]:
            return whole
        lengths = np.linalg.norm(whole, axis=1)
        wanted = self._adapter.read(self._parts[module]["magnitude"]).astype(np.float32).reshape(-1)
        longer: Array = whole * (wanted / lengths)[:, None]
        return longer

    def _scale(self, module: str) -> float:
        rank = self._rank(module)
        alpha = self._of_pattern("alpha_pattern", module, self._config["lora_alpha"])
        return float(alpha / (rank**0.5 if self._config.get("use_rslora") else rank))

    def _rank(self, module: str) -> int:
        rank: int = self._of_pattern("rank_pattern", module, self._config["r"])
        return rank

    def _of_pattern(self, key: str, module: str, otherwise: Any) -> Any:
        patterns = self._config.get(key) or {}
        found = next((item for item in patterns if re.match(rf"(.*\.)?({item})$", module)), None)
        return otherwise if found is None else patterns[found]

    def _by_peft(self, module: str, weight: Array) -> Array:
        from apr_train.model.adapters import merged_by_peft  # brings torch and peft

        tensors = {name: self._adapter.read(name) for name in self._parts[module].values()}
        return merged_by_peft(self._config, module, weight, tensors, where=self._subject)

    def _of_config(self) -> Iterator[Finding]:
        """What of a LoRA's config is not understood; another kind's is peft's."""
        if not isinstance(self._config.get("peft_type"), str):
            yield self._finding("peft_type", "the config does not say which kind of adapter it is", expected="LORA")
        if not self._lora:
            return
        wanted: dict[str, tuple[type[int] | type[float], ...]] = {"r": (int,), "lora_alpha": (int, float)}
        for key, kinds in wanted.items():
            value = self._config.get(key)
            if not isinstance(value, kinds) or isinstance(value, bool) or value <= 0:
                yield self._finding(key, "not a number that an adapter can have", expected="a number > 0", found=repr(value))
        if self._config.get("init_lora_weights", True) not in _PLAIN_INITS:
            found = f"{self._config['init_lora_weights']!r:.80}"
            yield self._not_merged("init_lora_weights", "the adapter has changed its base, too", found)
        for key in sorted(set(self._config) - _KNOWN):
            if self._config[key] not in (None, False, {}, []) and not key.startswith("megatron"):
                yield self._not_merged(key, "a variant of LoRA that is not merged here", f"{self._config[key]!r:.80}")
        yield from self._of_patterns()

    def _of_patterns(self) -> Iterator[Finding]:
        for key in ("rank_pattern", "alpha_pattern"):
            patterns = self._config.get(key) or {}
            if not isinstance(patterns, dict):
                yield self._finding(key, "no table of modules", expected="{module: number}", found=f"{patterns!r:.80}")
                continue
            for name, value in patterns.items():
                if not _PATTERN.fullmatch(name) or not isinstance(value, int | float) or isinstance(value, bool) or value <= 0:
                    found = f"{name!r:.60}: {value!r:.20}"
                    yield self._finding(key, "not the name of modules and a number", expected="name: number > 0", found=found)

    def _not_merged(self, key: str, problem: str, found: str) -> Finding:
        hint = "Merge it in peft: PeftModel.from_pretrained(base, ADAPTER).merge_and_unload().save_pretrained(NEW_FOLDER)."
        return self._finding(key, problem, expected="plain LoRA", found=found, hint=hint)

    def _sorted(self) -> Iterator[Finding]:
        """Sort the adapter's tensors by module; a finding for each that the base has no place for."""
        modules = {name.removesuffix(_WEIGHT) for name in self._names.by_checkpoint if name.endswith(_WEIGHT)}
        nearest = ClosestTensor(modules)
        strange: dict[str, str] = {}
        for name in self._adapter.tensors:
            whole = name.replace(".base_layer.", ".")
            if whole in self._names.by_checkpoint:
                self._replaced[whole] = name
                yield from self._of_whole(whole, name)
                yield from self._of_tied(whole, name)
                continue
            module, part = self._module_of(name, modules)
            if part is not None and module in modules:
                yield from self._of_tied(module + _WEIGHT, name) if not self._parts[module] else ()
                self._parts[module][part] = name
            else:
                strange.setdefault(module, name)
        for module, name in strange.items():
            near = nearest(module)
            yield self._finding(
                name,
                "the base has no such module",
                expected=f"closest: {near}" if near else "a module of the base",
                found=module,
                hint="The adapter is of another base, or of a part that the family does not use.",
            )

    def _module_of(self, name: str, modules: set[str]) -> tuple[str, str | None]:
        """A tensor's module, and which part of it it is; of another kind than LoRA the part is the rest of the name."""
        if self._lora:
            for end, part in _PARTS.items():
                if name.endswith(f".{end}"):
                    return name.removesuffix(f".{end}"), part
            return name, None
        words = name.split(".")
        for count in range(len(words) - 1, 0, -1):
            if (module := ".".join(words[:count])) in modules:
                return module, ".".join(words[count:])
        return name, None

    def _of_tied(self, tensor: str, name: str) -> Iterator[Finding]:
        """Of a matrix that is embedding and head at once: an adapter that changes one of the two cannot be merged."""
        entry = self._names.by_checkpoint[tensor][0]
        if isinstance(entry, Fill | Tied) and entry.parameter in self._tied:
            hint = "Untie them in peft first, or train without a target that is tied."
            problem, expected = (
                "the head is the embedding, and the adapter changes one of them",
                "a base with a head of its own",
            )
            yield self._finding(name, problem, expected=expected, found="a tied head", hint=hint)
        elif isinstance(entry, Ignored):
            problem, expected = "the family does not use this tensor", "a tensor that the model has"
            yield self._finding(name, problem, expected=expected, found=entry.reason)

    def _of_whole(self, whole: str, name: str) -> Iterator[Finding]:
        """Of a tensor that takes the base's place: it has the same shape."""
        entry = self._names.by_checkpoint[whole][0]
        expected = getattr(entry, "checkpoint_shape", None)
        found = self._adapter.tensors[name].shape
        if expected is not None and expected != found:
            yield self._finding(name, "another shape than the base's", expected=str(list(expected)), found=str(list(found)))

    def _of_module(self, module: str) -> Iterator[Finding]:
        """Of a LoRA: both matrices, of the rank that the config says and the sizes of the base."""
        parts, rank = self._parts[module], self._rank(module)
        if not {"A", "B"} <= set(parts):
            yield self._finding(
                module, "one of the adapter's two matrices is missing", expected="A and B", found=", ".join(parts)
            )
            return
        edge = self._names.by_checkpoint[module + _WEIGHT][0]
        shape: tuple[int, ...] = getattr(edge, "checkpoint_shape", ())
        if len(shape) != 2:
            yield self._finding(module, "no matrix in the base", expected="two axes", found=str(list(shape)))
            return
        flipped = "lora_embedding_A" in self._of(module) or isinstance(getattr(edge, "operation", None), Transpose)
        rows, columns = (shape[1], shape[0]) if flipped else (shape[0], shape[1])
        shapes = {part: self._adapter.tensors[name].shape for part, name in parts.items()}
        wanted = {"A": (rank, columns), "B": (rows, rank)}
        for part, expected in wanted.items():
            if shapes[part] == expected:
                continue
            other_rank = shapes[part] == tuple(shapes["A"][0] if size == rank else size for size in expected)
            yield self._finding(
                parts[part],
                "another rank than the config says" if other_rank else "sizes of another base",
                expected=str(list(expected)),
                found=str(list(shapes[part])),
            )
        if "magnitude" in shapes and int(np.prod(shapes["magnitude"])) != rows:
            yield self._finding(
                parts["magnitude"], "sizes of another base", expected=f"{rows} numbers", found=str(list(shapes["magnitude"]))
            )

    def _finding(self, field: str, problem: str, *, expected: str, found: str = "nothing", hint: str = "") -> Finding:
        return Finding(
            rule=rules.ADAPTER_002,
            subject=self._subject,
            field=field,
            problem=problem,
            expected=expected,
            found=found,
            hint=hint,
        )
