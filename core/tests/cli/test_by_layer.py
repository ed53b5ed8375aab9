"""How findings of many layers become one line."""

import attrs
from apr_train.cli.by_layer import by_layer
from apr_train.errors import Finding


def finding(layer, problem="missing"):
    name = f"model.layers.{layer}.mlp.up_proj.weight"
    return Finding(rule="PREFLIGHT-001", subject="x.apr", field=name, problem=problem, expected=name)


def test_findings_of_many_layers_are_one_with_their_numbers():
    (joined,) = by_layer([finding(layer) for layer in (0, 1, 2, 5, 7, 8)])
    assert joined.where == "x.apr [model.layers.{layer}.mlp.up_proj.weight]"
    assert joined.problem == "missing (6 times, layers 0–2, 5, 7–8)"


def test_findings_that_differ_in_more_than_the_layer_stay_apart():
    findings = [finding(0), finding(1, "wrong shape"), attrs.evolve(finding(2), severity="warning", rule="PREFLIGHT-002")]
    assert by_layer(findings) == findings


def test_one_finding_is_left_as_it_is():
    assert by_layer([finding(3)]) == [finding(3)]


def test_findings_of_many_experts_are_one_with_the_numbers_of_both():
    names = [f"model.layers.{layer}.mlp.experts.{expert}.up_proj.weight" for layer in (1, 2) for expert in range(4)]
    (joined,) = by_layer([Finding(rule="R", subject="x.apr", field=name, problem="missing", expected=name) for name in names])
    assert joined.field == joined.expected == "model.layers.{layer}.mlp.experts.{expert}.up_proj.weight"
    assert joined.problem == "missing (8 times, layers 1–2, experts 0–3)"


def test_a_failed_command_tells_many_layers_as_one(capsys):
    import click
    import pytest
    from apr_train.cli.group import _fail
    from apr_train.errors import PreflightError

    with pytest.raises(click.exceptions.Exit):
        _fail(click.Context(click.Command("x")), PreflightError([finding(layer) for layer in range(3)]), 1, debug=False)
    (line,) = capsys.readouterr().err.splitlines()
    assert "missing (3 times, layers 0–2)" in line
