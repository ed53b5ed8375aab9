"""Estimates and limits that need no file."""

import pytest
from apr_train.preflight.machine_rules import (
    disk_findings,
    estimate_memory,
    free_memory,
    memory_findings,
    out_findings,
)
from apr_train.run.settings import OptimizerSettings


def test_memory_of_fp32_is_four_numbers_of_four_bytes_a_parameter():
    memory = estimate_memory(1000, 50, 8, "fp32")
    assert memory == {"weights": 4000, "gradients": 4000, "optimizer": 8000, "logits": 1600}


def test_memory_of_bf16_weights_is_half():
    assert sum(estimate_memory(1000, 1, 0, "bf16-weights").values()) == 8000


def test_memory_of_a_master_copy_is_that_of_fp32_and_what_is_frozen_has_neither_gradient_nor_state():
    kept = OptimizerSettings(bf16_update="master")
    memory = estimate_memory(1000, 1, 0, "bf16-weights", optimizer=kept)
    assert memory == {"weights": 2000, "gradients": 2000, "optimizer": 12000, "logits": 0}
    assert estimate_memory(1000, 1, 0, "fp32", optimizer=kept)["optimizer"] == 8000
    still = estimate_memory(1000, 1, 0, "fp32", frozen=400)
    assert still == {"weights": 4000, "gradients": 2400, "optimizer": 4800, "logits": 0}


def test_logits_are_made_in_chunks_and_so_bounded():
    assert estimate_memory(1, 151_936, 10**6, "fp32")["logits"] == 4 * 64 * 2**20


@pytest.mark.parametrize(("free", "count"), [(None, 0), (400, 0), (399, 1)])
def test_memory_is_a_warning_only_when_it_surely_does_not_suffice(free, count):
    findings = memory_findings({"weights": 400}, "cpu", lambda device: free)
    assert [finding.severity for finding in findings] == ["warning"] * count


def test_this_machine_says_how_much_memory_is_free():
    psutil = pytest.importorskip("psutil")
    assert free_memory("cpu") == pytest.approx(psutil.virtual_memory().available, rel=0.2)


@pytest.mark.rule("PREFLIGHT-014")
@pytest.mark.parametrize(("bytes_each", "checkpoints", "needed"), [(4, 3, 4000), (2, 3, 2000), (4, 0, 400)])
def test_disk_is_counted_with_both_moments_and_the_model_at_the_end(tmp_path, monkeypatch, bytes_each, checkpoints, needed):
    class Usage:
        free = needed

    monkeypatch.setattr("apr_train.preflight.machine_rules.shutil.disk_usage", lambda folder: Usage)
    given = {"bytes_each": bytes_each, "state_each": 2 * bytes_each}
    assert disk_findings(tmp_path, 100, checkpoints, **given) == []
    assert len(disk_findings(tmp_path, 101, checkpoints, **given)) == 1


def test_folder_that_does_not_exist_yet_is_judged_by_the_one_above(tmp_path):
    assert out_findings(tmp_path / "a" / "b") == []
