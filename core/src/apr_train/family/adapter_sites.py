"""Where adapters can be put: the matrices of a model's blocks, under their names here and under Hugging Face's. Torch-free."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from attrs import frozen

from apr_train import rules
from apr_train.errors import Finding
from apr_train.family.name_map import Fill, NameMap
from apr_train.family.name_rules import EXPERT, EXPERTS, LAYER, FillRule
from apr_train.family.operations import Transpose, moves_rows_only
from apr_train.suggest import did_you_mean

WEIGHT = ".weight"
ADAPTER_NAME = "default"
"""What peft calls the one adapter of a model, in the names of its parameters."""
SIDES = ("lora_A", "lora_B")


def is_of_adapter(parameter: str) -> bool:
    """Whether a parameter is of an adapter, by its name in the model."""
    return any(f".{side}.{ADAPTER_NAME}." in parameter for side in SIDES)


@frozen(kw_only=True)
class Site:
    """A matrix that can have an adapter: alone one tensor of a Hugging Face file, with its rows in some order."""

    edge: Fill
    """Between the tensor and the parameter."""

    @property
    def module(self) -> str:
        """The linear layer's name in the model here."""
        return self.edge.parameter.removesuffix(WEIGHT)

    @property
    def hf_module(self) -> str:
        """Its name in transformers' model."""
        return self.edge.checkpoint.removesuffix(WEIGHT)

    @property
    def is_transposed(self) -> bool:
        """Whether the file has the matrix as `[in, out]`; an adapter's two are the same all the same."""
        return isinstance(self.edge.operation, Transpose)

    def rows_to_file(self, matrix: Any) -> Any:
        """`[out, rank]` with the rows in the file's order."""
        return matrix if self.is_transposed else self.edge.operation.to_checkpoint(matrix)

    def rows_to_model(self, matrix: Any) -> Any:
        """`[out, rank]` with the rows in the model's order."""
        return matrix if self.is_transposed else self.edge.operation.to_parameter(matrix)

    @property
    def adapter_names(self) -> dict[str, str]:
        """The adapter's two parameters in the model → their names in a file of peft's."""
        return {f"{self.module}.{side}.{ADAPTER_NAME}.weight": f"{self.hf_module}.{side}.weight" for side in SIDES}

    def size(self, rank: int) -> int:
        """Numbers in an adapter of that rank."""
        return rank * sum(self.edge.parameter_shape)


@frozen(kw_only=True)
class Sites:
    """The matrices of all blocks, and those parameters of blocks that have several axes and cannot have an adapter."""

    sites: tuple[Site, ...]
    obstacles: dict[str, str]
    """Name of the module → why not."""
    routers: frozenset[str]
    """Modules that choose or weigh experts: they get an adapter only where they are named."""

    def chosen(self, targets: Sequence[str]) -> tuple[Site, ...]:
        """Those whose module's name, here or in transformers, is a target or ends in one; without targets all but routers."""
        if not targets:
            return tuple(site for site in self.sites if site.module not in self.routers)
        return tuple(site for site in self.sites if any(_is_called(site, target) for target in targets))

    def findings(self, targets: Iterable[str], option: str) -> list[Finding]:
        """ADAPTER-001 for each target that matches nothing, or what has no adapter."""
        return [found for target in targets if (found := self._finding(target, option)) is not None]

    def _finding(self, target: str, option: str) -> Finding | None:
        if any(_is_called(site, target) for site in self.sites):
            return None
        blocked = next((name for name in self.obstacles if _ends(name, target)), None)
        ends = {_tail(name) for site in self.sites for name in (site.module, site.hf_module)}
        return Finding(
            rule=rules.ADAPTER_001,
            subject=option,
            field=target,
            problem="no matrix of a block is called so" if blocked is None else "it cannot have an adapter",
            expected=f"the end of a name: {', '.join(sorted({_tail(site.module) for site in self.sites}))}",
            found=target if blocked is None else f"{blocked}: {self.obstacles[blocked]}",
            hint=did_you_mean(target, ends | {end.rpartition(".")[2] for end in ends}) if blocked is None else "",
        )


def _is_called(site: Site, target: str) -> bool:
    return _ends(site.module, target) or _ends(site.hf_module, target)


def _ends(name: str, end: str) -> bool:
    return name == end or name.endswith(f".{end}")


def _tail(name: str) -> str:
    """A module's name behind the number of its block."""
    parts = name.split(".")
    numbers = [place for place, part in enumerate(parts) if part.isdecimal()]
    return ".".join(parts[numbers[-1] + 1 :] if numbers else parts)


def sites_of(name_map: NameMap) -> Sites:
    """Every parameter of the blocks that has more than one axis, sorted out; `name_map` is for Hugging Face's names."""
    sites, obstacles, routers = [], {}, set()
    experts = name_map.sizes.get(EXPERTS, 0)
    for parameter in _of_blocks(name_map):
        edges = name_map.fills[parameter]
        module, shape = parameter.removesuffix(WEIGHT), edges[0].parameter_shape
        if len(shape) < 2:
            continue
        if reason := _obstacle(parameter, edges):
            obstacles[module] = reason
            continue
        sites.append(Site(edge=edges[0]))
        if shape[0] == 1 or (experts and shape[0] == experts):
            routers.add(module)
    return Sites(sites=tuple(sites), obstacles=obstacles, routers=frozenset(routers))


def _of_blocks(name_map: NameMap) -> list[str]:
    templates = [rule.parameter for rule in name_map.rules if isinstance(rule, FillRule) and LAYER in rule.parameter]
    layers = range(name_map.num_layers)
    names = [template.replace(LAYER, str(layer)) for layer in layers for template in templates if EXPERT not in template]
    return [name for name in dict.fromkeys(names) if name in name_map.fills]


def _obstacle(parameter: str, edges: tuple[Fill, ...]) -> str:
    """Why a parameter cannot have an adapter that a Hugging Face file has a name for; empty when it can."""
    edge = edges[0]
    if len(edge.parameter_shape) > 2:
        return "a stack of experts, which is no linear layer"
    if len(edges) > 1 or edge.parameter_part is not None:
        return f"transformers has it as {len(edges)} layers, and one adapter is not theirs"
    if edge.checkpoint_part is not None:
        return f"a part of {edge.checkpoint} in transformers, whose adapter would be another"
    if not parameter.endswith(WEIGHT) or not edge.checkpoint.endswith(WEIGHT):
        return "no weight of a linear layer"
    if not isinstance(edge.operation, Transpose) and not moves_rows_only(edge.operation):
        return f"it goes through {type(edge.operation).__name__}, which is no order of rows"
    return ""


def short_names(chosen: Sequence[Site], name_map: NameMap) -> list[str]:
    """Transformers' names of the chosen modules as PEFT's `target_modules`: ends that match just these, else all in full."""
    wanted = {site.hf_module for site in chosen}
    modules = {name.rpartition(".")[0] for name in name_map.by_checkpoint}
    ends = {_shortest(_tail(name), wanted, modules) for name in wanted}
    matched = {name for name in modules if any(_ends(name, end) for end in ends)}
    return sorted(ends if matched == wanted else wanted)


def _shortest(tail: str, wanted: set[str], modules: set[str]) -> str:
    """The shortest end of a module's name that is no unwanted module's; the tail where there is none."""
    words = tail.split(".")
    ends = (".".join(words[-count:]) for count in range(1, len(words) + 1))
    return next((end for end in ends if {name for name in modules if _ends(name, end)} <= wanted), tail)
