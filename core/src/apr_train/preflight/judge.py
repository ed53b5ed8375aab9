"""The preflight itself: every rule in turn, each on what the ones before it found out, none stopping the next."""

from __future__ import annotations

from typing import Any

import attrs
from attrs import Factory, define

from apr_train import rules
from apr_train.checkpoint.header import Header, TokenizerSpec, kind_of
from apr_train.data.objectives import OBJECTIVES, Objective
from apr_train.data.packing import implies_document_mask
from apr_train.errors import AprTrainError, Finding
from apr_train.family.card import DEFAULT_OBJECTIVE, Layout
from apr_train.family.config import ModelConfig
from apr_train.family.plugin import Family
from apr_train.model.attention.masks import MaskKind
from apr_train.preflight import (
    adapter_rules,
    config_rules,
    family_rules,
    machine_rules,
    optimizer_rules,
    step_memory,
    token_rules,
)
from apr_train.preflight.config_keys import config_key_findings
from apr_train.preflight.config_rules import bogus_values
from apr_train.preflight.report import (
    Cleared,
    ClearedFile,
    PreflightInput,
    Report,
    Skipped,
    by_severity,
    config_facts,
    file_facts,
    tensor_facts,
)
from apr_train.preflight.tensor_rules import TensorReport, provisional_tie, tensor_report
from apr_train.preflight.wrapped_names import without_wrapper
from apr_train.run.objective_names import TrainingObjective


@define
class _Examination:
    """What is known so far."""

    asked: PreflightInput
    findings: list[Finding] = Factory(list)
    skipped: list[Skipped] = Factory(list)
    facts: dict[str, Any] = Factory(dict)
    family: Family | None = None
    objective: TrainingObjective = DEFAULT_OBJECTIVE
    config: ModelConfig | None = None
    tensors: TensorReport | None = None
    tokenizer: TokenizerSpec | None = None

    def skip(self, what: str, because: str) -> None:
        self.skipped.append(Skipped(what, because))


def preflight(asked: PreflightInput) -> Report:
    """Judge a run before it costs anything: from the header, the family and the settings, without tensor data.

    Imports torch only when a device is asked about. Never raises for a bad file or setting: everything is a finding.
    """
    seen = _Examination(asked)
    header = None if asked.header is None else provisional_tie(asked.header)
    _claims(seen, header)
    if header is None:
        _from_scratch(seen)
    else:
        _from_file(seen, header)
    _tokens(seen)
    _surroundings(seen)
    _machine(seen)
    return _report(seen)


def _claims(seen: _Examination, header: Header | None) -> None:
    asked = seen.asked
    seen.family, findings = family_rules.choose_family(asked.registry, asked.arch, header)
    seen.findings += findings
    seen.objective = asked.objective or (seen.family.info.objectives[0] if seen.family else DEFAULT_OBJECTIVE)
    encoder = [] if header is None else family_rules.encoder_findings(header, seen.family, seen.objective)
    seen.findings += encoder
    if seen.family is not None:
        if not encoder:
            seen.findings += family_rules.objective_findings(seen.family, seen.objective)
            seen.findings += family_rules.packing_findings(OBJECTIVES[seen.objective], asked.packing)
        if header is not None and asked.arch is not None:
            seen.findings += family_rules.identity_findings(header, seen.family.info)


def _from_scratch(seen: _Examination) -> None:
    seen.tokenizer = seen.asked.tokenizer
    if seen.family is None:
        seen.skip("config, tokenizer size, positions", "the family is not known")
        return
    seen.config, findings = config_rules.config_from_preset(seen.family, seen.asked.preset, seen.asked.vocab_size)
    seen.findings += findings
    if seen.config is None:
        seen.skip("tokenizer size, positions, special ids", "there is no config")


def _from_file(seen: _Examination, header: Header) -> None:
    seen.tokenizer = seen.asked.tokenizer or header.tokenizer
    seen.facts |= file_facts(header)
    seen.findings += header.findings
    if seen.tokenizer is None:
        seen.findings.append(token_rules.no_tokenizer(needed=seen.asked.needs_tokenizer))
    family = seen.family
    bogus = bogus_values(header)
    if family is None or kind_of(header) not in (None, family.info.kind):
        because = (
            "the family is not known"
            if family is None
            else f"{family.name} is {family_rules.with_article(family.info.kind)}, the file is not"
        )
        seen.findings += bogus + config_key_findings(header, None)
        seen.skip("config, tensor names and shapes, family's own rules", because)
        return
    unwrapped = without_wrapper(header, family)
    seen.findings += unwrapped.findings
    header = provisional_tie(unwrapped.header)
    _config(seen, family, header, bogus)
    _tensors(seen, family, header, bogus)
    _family(seen, family, header)


def _config(seen: _Examination, family: Family, header: Header, bogus: list[Finding]) -> None:
    config, findings = config_rules.config_from_file(family, header)
    # a config that fails on a value that cannot be says again what bogus_values says of every such value
    seen.findings += [finding for finding in findings if not bogus or finding.rule == rules.ARCH_003]
    seen.findings += config_rules.absent_findings(header, findings)
    seen.config = None if bogus else config
    known, of_keys = set(map(_place, findings)), config_key_findings(header, seen.config, family.info)
    seen.findings += [finding for finding in of_keys if _place(finding) not in known]
    if seen.config is None:
        seen.skip("tensor set both ways, special ids, positions, tokenizer size", "the metadata gives no config")


def _place(finding: Finding) -> tuple[str, str]:
    return finding.subject, finding.field


def _tensors(seen: _Examination, family: Family, header: Header, bogus: list[Finding]) -> None:
    seen.tensors = tensor_report(header, family, seen.config)
    contradicted = set(map(_place, seen.tensors.findings))
    seen.findings += [finding for finding in bogus if _place(finding) not in contradicted]
    seen.findings += seen.tensors.findings


def _family(seen: _Examination, family: Family, header: Header) -> None:
    try:
        seen.findings += family.validate_family(header, OBJECTIVES[seen.objective].predicts)
    except AprTrainError as error:
        seen.findings.append(error.under(rules.PREFLIGHT_001, f"{family.name}: validate_family"))


def _tokens(seen: _Examination) -> None:
    config, header = seen.config, seen.asked.header
    seen.findings += token_rules.mask_findings(header, seen.tokenizer, seen.objective)
    if config is None:
        return
    if seen.tokenizer is not None:
        seen.findings += token_rules.kind_findings(seen.tokenizer)
        seen.findings += token_rules.size_findings(seen.tokenizer, config, from_scratch=header is None)
    seen.findings += token_rules.special_id_findings(header, seen.tokenizer, config)
    if seen.asked.corpus_max_id is not None:
        seen.findings += token_rules.corpus_findings(seen.asked.corpus_max_id, config)


def _surroundings(seen: _Examination) -> None:
    asked = seen.asked
    if asked.sequence_length is not None and seen.config is not None:
        seen.findings += machine_rules.sequence_findings(asked.sequence_length, seen.config)
    if asked.out is None:
        return
    seen.findings += machine_rules.out_findings(asked.out)
    if (parameters := _adapters(seen) or _parameters(seen)) is not None:
        kind = "fp32" if asked.lora.lora_rank else asked.precision
        seen.findings += machine_rules.disk_findings(
            asked.out,
            parameters,
            asked.checkpoints,
            bytes_each=machine_rules.weight_bytes(kind),
            state_each=machine_rules.state_bytes(kind, asked.optimizer),
            averages=asked.averages,
        )


def _machine(seen: _Examination) -> None:
    asked = seen.asked
    if asked.device is None:
        return
    missing = machine_rules.device_findings(asked.device)
    seen.findings += missing
    if missing or seen.family is None or seen.config is None:
        seen.skip("attention backend, memory", "the device is not here" if missing else "there is no config")
        return
    findings, seen.facts["attention"] = machine_rules.backend_findings(
        seen.family,
        seen.config,
        device=asked.device,
        precision=asked.precision,
        mask=_mask_kind(asked, OBJECTIVES[seen.objective]),
        forced=asked.attention,
    )
    seen.findings += findings
    if (parameters := _parameters(seen)) is not None:
        seen.facts["memory"] = memory = _memory(seen, seen.family, seen.config, parameters)
        seen.findings += machine_rules.memory_findings(memory, asked.device)


def _memory(seen: _Examination, family: Family, config: ModelConfig, parameters: int) -> machine_rules.Memory:
    """What a step needs: without activations where there is surely enough for them, or nobody can say how many there are."""
    asked = seen.asked
    length = asked.sequence_length or config.usable_positions
    rows = -(-asked.batch_size // asked.processes)
    memory = machine_rules.estimate_memory(
        parameters,
        config.vocab_size,
        rows * length,
        asked.precision,
        adapters=_adapters(seen),
        frozen=optimizer_rules.frozen_parameters(asked.optimizer.group, family, config),
        optimizer=asked.optimizer,
        averages=asked.averages,
    )
    if asked.processes > 1:  # what is gathered and sent is `apr-train plan`'s to say: it wants a process group of its own
        return {kind: count if kind == "logits" else -(-count // asked.pieces) for kind, count in memory.items()}
    free = None if asked.device is None else machine_rules.free_memory(asked.device)
    objective, mask = OBJECTIVES[seen.objective], _mask_kind(asked, OBJECTIVES[seen.objective])
    if free is None or asked.lora.lora_rank or seen.facts["attention"] is None or objective.kind != family.info.kind:
        return memory
    most = step_memory.most_activations(
        family.map_tensor_names(config, Layout()),
        config,
        tokens=rows * length,
        length=length,
        attention=seen.facts["attention"],
        mask=mask,
    )
    if most is not None and sum(memory.values()) + most <= free:
        return memory
    phases = step_memory.step_memory(
        family,
        config,
        objective,
        rows=rows,
        length=length,
        precision=asked.precision,
        attention=asked.attention,
        mask=mask,
        recompute=asked.recompute,
        keep_products=asked.keep_products,
        chosen=asked.mask_probability,
        frozen=optimizer_rules.frozen_names(asked.optimizer.group, family, config),
    )
    return memory if phases is None else machine_rules.at_the_peak(memory, phases)


def _adapters(seen: _Examination) -> int | None:
    """Numbers in the adapters that would be trained; None where all weights are, or while there is no config."""
    if seen.family is None or seen.config is None:
        return None
    return adapter_rules.trained_parameters(seen.asked.lora, seen.family, seen.config)


def _mask_kind(asked: PreflightInput, objective: Objective) -> MaskKind:
    """The kind of mask that the batches will have, the one included that their packing implies."""
    implied = implies_document_mask(asked.packing or objective.packing)
    return objective.mask_kind(document_mask=asked.document_mask or implied)


def _parameters(seen: _Examination) -> int | None:
    """Parameters of the model; None while there is no name map."""
    if seen.tensors is not None and seen.tensors.name_map is not None:
        return machine_rules.parameter_count(seen.tensors.name_map)
    if seen.family is None or seen.config is None or seen.asked.header is not None:
        return None
    return machine_rules.parameter_count(seen.family.map_tensor_names(seen.config, Layout()))


def _report(seen: _Examination) -> Report:
    tensors = seen.tensors
    facts = seen.facts | config_facts(seen.config, seen.family, seen.tokenizer) | tensor_facts(seen.asked.header, tensors)
    return Report(
        findings=by_severity(seen.findings),
        explained=() if tensors is None else tensors.explained,
        skipped=tuple(seen.skipped),
        facts=facts,
        family=seen.family,
        objective=seen.objective,
        config=seen.config,
        tokenizer=seen.tokenizer,
        settled=_settled(seen),
    )


def _settled(seen: _Examination) -> Cleared | None:
    """What a run would be made from, as soon as all of it is known, whether or not it may begin."""
    if seen.family is None or seen.config is None:
        return None
    settled = Cleared(family=seen.family, objective=OBJECTIVES[seen.objective], config=seen.config, tokenizer=seen.tokenizer)
    if seen.asked.header is None:
        return settled
    plan = None if seen.tensors is None else seen.tensors.plan
    return None if plan is None else ClearedFile(**attrs.asdict(settled, recurse=False), plan=plan)
