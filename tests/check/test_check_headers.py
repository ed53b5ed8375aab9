"""The preflight on made-up headers: claims of several families, broken plugins, and metadata that nobody would write."""

import json

import attrs
import pytest
from apr_train.checkpoint.header import TensorInfo
from apr_train.errors import Finding, NameMapError, PluginError, PreflightError
from apr_train.family.decoder_config import DecoderConfig
from apr_train.family.registry import BrokenPlugin
from apr_train.preflight import PreflightInput, preflight
from apr_train.preflight.report import Cleared
from apr_train.testing.conformance import header_from
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st


@pytest.fixture(scope="module")
def family(registry):
    return registry.family("qwen2")


@pytest.fixture(scope="module")
def header(family):
    return header_from(family, family.build_config(preset="tiny"))


class Families:
    """A registry of given families, one of them perhaps broken."""

    def __init__(self, claimants, broken=()):
        self._claimants, self._broken = list(claimants), list(broken)

    def names(self):
        return [family.name for family in self._claimants]

    def families(self):
        return self._claimants

    def claimants(self, header):
        return self._claimants

    def broken(self):
        return self._broken

    def family(self, name):
        raise PluginError("no such family", where="--arch", found=name)


def ids(report):
    return [finding.rule for finding in report.errors]


@pytest.mark.rule("PREFLIGHT-001")
def test_two_claimants_are_an_error_that_names_both(registry, header):
    other = attrs.evolve(registry.family("qwen2"), info=attrs.evolve(registry.family("qwen2").info, name="rival"))
    report = preflight(PreflightInput(registry=Families([registry.family("qwen2"), other]), header=header))
    assert ids(report) == ["PREFLIGHT-001"]
    assert "qwen2: mine; rival: mine" in report.errors[0].found
    assert "--arch" in report.errors[0].hint
    assert report.family is None


@pytest.mark.rule("PREFLIGHT-001")
def test_broken_plugin_is_named_with_its_reason(header):
    broken = BrokenPlugin(
        name="qwen2",
        group="apr_train.families",
        distribution="d",
        version="1",
        hook=None,
        reason="no module named torhc",
        traceback="",
    )
    report = preflight(PreflightInput(registry=Families([], [broken]), header=header))
    assert "qwen2: broken (no module named torhc)" in report.errors[0].found


def test_without_a_file_and_a_family_there_is_nothing_to_go_by(registry):
    report = preflight(PreflightInput(registry=registry))
    assert ids(report) == ["PREFLIGHT-001"]
    assert report.skipped


def test_familys_own_findings_are_in_the_report(family, registry, header, monkeypatch):
    own = Finding(rule="PREFLIGHT-005", subject="here", problem="odd")
    monkeypatch.setattr(type(family), "validate_family", lambda self, header, objective: [own])
    assert own in preflight(PreflightInput(registry=registry, header=header)).findings


def test_family_that_fails_in_its_hook_is_a_finding(family, registry, header, monkeypatch):
    def fail(self, header, objective):
        raise PluginError("the hook raised", where="qwen2")

    monkeypatch.setattr(type(family), "validate_family", fail)
    assert ids(preflight(PreflightInput(registry=registry, header=header))) == ["PREFLIGHT-001"]


def test_every_fault_of_a_name_map_is_a_finding(family, registry, header, monkeypatch):
    def fail(self, config, layout):
        raise NameMapError.of([Finding(problem="a has 2 rules"), Finding(problem="x is filled by 2 rules")])

    monkeypatch.setattr(type(family), "map_tensor_names", fail)
    report = preflight(PreflightInput(registry=registry, header=header))
    faults = [finding for finding in report.errors if finding.rule == "FALSIFY-APR-PRETRAIN-INIT-007"]
    assert [finding.problem for finding in faults] == ["a has 2 rules", "x is filled by 2 rules"]
    assert {finding.where for finding in faults} == {"<qwen2> [tensor names]"}


def test_errors_come_first_and_stop_the_run(registry, header):
    report = preflight(PreflightInput(registry=registry, header=header, sequence_length=10**6))
    assert [finding.severity for finding in report.findings] == ["error", "warning"]
    with pytest.raises(PreflightError, match="PREFLIGHT-009") as caught:
        report.cleared()
    assert caught.value.exit_code == 3
    assert caught.value.findings == report.findings


def test_report_hands_the_run_what_it_found_out(registry, header, family):
    report = preflight(PreflightInput(registry=registry, header=header))
    cleared = report.cleared_file()
    assert isinstance(cleared.config, DecoderConfig)
    assert (cleared.family.name, cleared.objective.name) == ("qwen2", "causal-lm")
    assert [entry.checkpoint for entry in cleared.plan.loads] == list(header.tensors)
    assert cleared.tokenizer == header.tokenizer


def test_a_run_from_scratch_is_cleared_without_a_file(registry):
    report = preflight(PreflightInput(registry=registry, arch="qwen2", preset="tiny"))
    assert type(report.cleared()) is Cleared
    with pytest.raises(PreflightError):
        report.cleared_file()


def test_width_that_is_wrong_alone_explains_every_shape(registry, header):
    wrong = attrs.evolve(header, config={key: value for key, value in header.config.items() if key != "head_dim"})
    wrong = attrs.evolve(wrong, config={**wrong.config, "hidden_size": 224})
    report = preflight(PreflightInput(registry=registry, header=wrong))
    assert [finding.where for finding in report.errors] == ["<qwen2> [hidden_size]"]
    assert all(finding.rule == "FALSIFY-APR-PRETRAIN-INIT-005" for finding in report.explained)
    assert len(report.explained) > 20


def test_one_odd_tensor_is_told_beside_the_wrong_field(registry, header):
    tensors = {**header.tensors, "model.norm.weight": TensorInfo("model.norm.weight", "F32", (7,), 28)}
    wrong = attrs.evolve(header, tensors=tensors, config={**header.config, "intermediate_size": 600})
    where = {finding.where for finding in preflight(PreflightInput(registry=registry, header=wrong)).errors}
    assert where == {"<qwen2> [intermediate_size]", "<qwen2> [model.norm.weight]"}


KEYS = st.sampled_from(
    [
        *("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim"),
        *("intermediate_size", "max_position_embeddings", "rope_theta", "rms_norm_eps", "tie_word_embeddings"),
        *("rope_scaling", "layer_types", "sliding_window", "use_sliding_window", "max_window_layers", "no_rope_layers"),
        *("attention_multiplier", "query_pre_attn_scalar", "hidden_act", "attention_bias", "eos_token_id", "num_experts"),
        *("initializer_range", "hidden_activation", "quantization_config", "what_is_this"),
    ]
)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
JSON = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    values=st.dictionaries(KEYS, JSON, max_size=4),
    drop=st.sets(KEYS, max_size=2),
    arch=st.sampled_from([None, "qwen2", "codebert"]),
)
def test_no_metadata_makes_the_preflight_raise(registry, header, values, drop, arch):
    config = {key: value for key, value in {**header.config, **values}.items() if key not in drop}
    report = preflight(PreflightInput(registry=registry, header=attrs.evolve(header, config=config), arch=arch))
    json.dumps(report.to_dict())
    assert report.family is not None


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_no_tensor_index_makes_the_preflight_raise(registry, header, data):
    names = data.draw(st.lists(st.sampled_from(sorted(header.tensors)), max_size=6))
    shapes = data.draw(st.lists(st.lists(st.integers(0, 4), max_size=4).map(tuple), min_size=6, max_size=6))
    extra = data.draw(st.lists(st.text(min_size=1, max_size=20), max_size=3))
    tensors = {
        name: TensorInfo(name, "F32", shape, 0) for name, shape in zip([*names, *extra], [*shapes, *shapes], strict=False)
    }
    for others in ({}, header.tensors):
        report = preflight(PreflightInput(registry=registry, header=attrs.evolve(header, tensors={**others, **tensors})))
        json.dumps(report.to_dict())
