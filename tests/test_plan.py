"""`apr-train plan`: what it says is what a real step holds and sends; the preflight says the same; bad input is one message."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import apr_train
import attrs
import pytest
import torch
import torch.distributed as dist
from apr_train.cli import cli
from apr_train.family.card import Layout
from apr_train.model.footprint import Ledger, without_values
from apr_train.model.sharding import make_mesh, shard
from apr_train.preflight import PreflightInput, preflight
from apr_train.preflight.step_memory import most_activations
from apr_train.run.asked import asked_run
from apr_train.run.resident import resident_peak
from apr_train.training.averaging import AveragedWeights
from apr_train.training.build import choose_attention, model_without_memory
from apr_train.training.optimizer.make import make_optimizer
from apr_train.training.planning import _decided, estimate, make_plan, take_step
from apr_train.training.step import train_step
from click.testing import CliRunner
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.profiler import ProfilerActivity, profile

ROW = {"sequence_length": 64}
TINY = {"arch": "qwen2", "preset": "tiny", "precision": "fp32", **ROW}


def cleared(values, **config):
    settings, _ = asked_run(None, None, values)
    found = preflight(PreflightInput.of(settings)).cleared()
    return settings, attrs.evolve(found, config=attrs.evolve(found.config, **config))


def decided(values, batch, **config):
    settings, found = cleared(values, **config)
    return found, _decided(settings, found, batch)


def real_batch(objective, decided, rows, vocabulary):
    from apr_train.data.batch import Batch

    tokens = torch.randint(5, vocabulary - 5, (rows, decided.sequence_length))
    targets = (
        torch.where(torch.rand(tokens.shape) < 0.15, tokens, -100) if objective.name == "masked-lm" else tokens.roll(-1, 1)
    )
    return Batch(tokens=tokens, targets=targets, target_count=int((targets != -100).sum()))


def measured_peak(found, decided, rows, mesh=None):
    """Bytes that torch's allocator had given out at most in two real steps, as its profiler counts them."""
    torch.manual_seed(0)
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # read once, by the first profiler of a process: other tests look at stderr
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        model = model_without_memory(found, choose_attention(found, decided), decided)
        if mesh is not None:
            shard(model, mesh, decided.precision.autocast)
        model.to_empty(device="cpu")
        model.initialize(torch.Generator().manual_seed(0))
        ema = decided.settings.run.ema
        averages = None if ema is None else AveragedWeights(model, ema)
        optimizer = make_optimizer(model, decided.settings.optimizer, lr=1e-3)
        for step in (2, 3):
            passes = range(decided.settings.data.accumulate)
            batches = [real_batch(found.objective, decided, rows, found.config.vocab_size) for _ in passes]
            options = {"objective": found.objective, "precision": decided.precision, "clip_norm": 1.0, "step": step}
            train_step(model, optimizer, batches, **options)
            if averages is not None:
                averages.update(model)
            del batches
    held = most = 0
    for event in seen.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    return most


@pytest.mark.parametrize(
    ("more", "within"),
    [
        ({}, 0.002),
        ({"recompute": True, "optimizer": "muon"}, 0.002),
        ({"precision": "bf16-weights", "accumulate": 2, "ema": 0.9}, 0.01),
        ({"precision": "bf16"}, 0.01),
        ({"arch": "codebert"}, 0.02),  # how many tokens are hidden is drawn
        ({"arch": "llama370m"}, 0.002),
    ],
    ids=lambda value: "-".join(map(str, value)) if isinstance(value, dict) else None,
)
def test_a_step_holds_what_torch_counts_in_a_real_one(more, within):
    found, settled = decided(TINY | more, 4)
    planned = take_step(found, settled, 1, 1, 4).largest
    assert planned.total == pytest.approx(measured_peak(found, settled, 4), rel=within)


@pytest.mark.parametrize(("gpus", "more"), [(1, {"recompute": True}), (4, {"precision": "bf16", "accumulate": 2})])
def test_a_few_blocks_tell_of_all(gpus, more):
    found, settled = decided(TINY | more, 2 * gpus, num_hidden_layers=7)
    few, all_of_them = estimate(found, settled, 1, gpus, 2), take_step(found, settled, 1, gpus, 2)
    assert (few.held, few.sent) == (all_of_them.largest.held, pytest.approx(all_of_them.sent))


def test_parameters_in_pieces_and_what_is_sent_for_them():
    """Blocks are gathered forward and back, all other parameters once; gradients are summed once. All in float32 here."""
    found, settled = decided(TINY, 8)
    step = take_step(found, settled, 1, 4, 2)
    name_map = found.family.map_tensor_names(found.config, Layout())
    sizes = {name: 4 * torch.Size(shape).numel() for name, shape in name_map.parameters.items()}
    blocks, all_of_them = sum(size for name, size in sizes.items() if name.startswith("layers.")), sum(sizes.values())
    assert step.sent == pytest.approx(3 / 4 * (2 * blocks + (all_of_them - blocks) + all_of_them), rel=1e-3)
    update = step.phases["optimizer"]
    assert update["weights"] == pytest.approx(all_of_them / 4, rel=0.01)
    assert update["gradients"] == update["weights"]
    assert update["optimizer"] == pytest.approx(2 * update["weights"], rel=0.01)


def test_blocks_are_planned_as_they_are_gathered_under_autocast():
    """In bfloat16, forward and back, and nothing copies them then: what the way back needs does not grow with the weights."""
    found, settled = decided(TINY | {"precision": "bf16", "recompute": True}, 8, num_hidden_layers=7)
    step, alone = take_step(found, settled, 1, 4, 2), take_step(found, settled, 1, 1, 2)
    name_map = found.family.map_tensor_names(found.config, Layout())
    matrices = {name: torch.Size(shape).numel() for name, shape in name_map.parameters.items() if len(shape) > 1}
    blocks = sum(size for name, size in matrices.items() if name.startswith("layers."))
    whole = sum(matrices.values())
    assert step.sent == pytest.approx(3 / 4 * (2 * 2 * blocks + 4 * (whole - blocks) + 4 * whole), rel=1e-3)
    of_all, of_one = (taken.phases["head"]["activations"] for taken in (step, alone))
    assert of_one - of_all >= 2 * blocks  # autocast's copies, of one process


def test_whole_parameters_in_each_are_summed_in_a_ring():
    found, settled = decided(TINY, 8)
    step = take_step(found, settled, 4, 4, 2)
    assert step.sent == pytest.approx(2 * 3 / 4 * 4 * 581_456, rel=1e-3)


def plan(*arguments):
    result = CliRunner().invoke(cli, ["plan", "--arch", "qwen2", *map(str, arguments)])
    return result.exit_code, result.output


def test_a_plan_as_data_and_for_people():
    arguments = (
        "--preset",
        "tiny",
        "--gpus",
        16,
        "--memory",
        "12MB",
        "--seq-len",
        64,
        "--precision",
        "fp32",
        "--shard",
        "hybrid",
    )
    code, text = plan(*arguments, "--json")
    found = json.loads(text)
    assert code == 0
    assert (found["parameters"], found["replicate"], found["room"], found["fits"]) == (581_456, 2, 10_800_000, True)
    assert found["total"] == sum(found["held"].values()) <= found["room"]
    assert found["batch_size"] == 16 * found["ways"][0]["rows"]
    assert [(way["shard"], way["recompute"]) for way in found["ways"]] == [("hybrid", False), ("hybrid", True)]
    code, text = plan(*arguments)
    assert code == 0
    assert "581,456 parameters on 16 GPUs of 12.0 MB" in text
    assert f"with --shard hybrid --batch-size {found['batch_size']}" in text


def test_one_row_more_does_not_fit():
    settings, found = cleared(TINY)
    spread = make_plan(settings, found, gpus=1, per_node=8, memory=16_000_000)
    first = spread.ways[0]
    totals = [estimate(found, _decided(settings, found, rows), 1, 1, rows).total for rows in (first.rows, first.rows + 1)]
    assert totals[0] <= spread.room < totals[1]


def test_what_does_not_fit_is_said():
    code, text = plan("--preset", "0.5b", "--memory", "4GB", "--precision", "fp32", "--seq-len", 64)
    assert code == 0
    assert "does not fit" in text
    assert "--precision bf16-weights" in text


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--preset", "9b"), "--preset: qwen2 has no such preset"),
        (("--preset", "tiny", "--memory", "lots"), "--memory: no amount of memory"),
        (("--preset", "tiny", "--memory", "0GB"), "--memory: no amount of memory"),
        (("--preset", "tiny", "--gpus", 0), "--gpus: no GPUs"),
        (("--preset", "tiny", "--gpus", 12), "--gpus: machines that have not equally many GPUs"),
        (
            ("--preset", "tiny", "--gpus", 8, "--shard", "hybrid", "--replicate", 3),
            "--replicate: the processes cannot be divided so",
        ),
        (("--preset", "tiny", "--gpus", 8, "--batch-size", 3), "--batch-size: fewer rows than GPUs"),
        (("--preset", "tiny", "--attention", "flash9"), "flash9"),
        (("--preset", "tiny", "--lora-rank", 4, "--lora-target", "nothing"), "nothing"),
        (("--init", "gone.apr"), "gone.apr"),
    ],
)
def test_bad_input_is_one_message(arguments, told):
    code, text = plan(*arguments)
    assert code == 1
    assert text.startswith("Error: ")
    assert told in text
    assert "Traceback" not in text


@pytest.mark.parametrize(
    "values",
    [
        {"arch": "qwen2", "precision": "fp32"},
        {"arch": "llama370m", "precision": "bf16", "recompute": True, "ema": 0.9},
        {"arch": "llama370m", "precision": "fp32", "recompute": True, "recompute_keep": "products"},
        {"arch": "codebert", "precision": "bf16"},
        {"arch": "qwen2", "precision": "fp32", "document_mask": True, "sequence_length": 512},
    ],
    ids=lambda values: "-".join(map(str, values.values())),
)
def test_the_preflight_says_what_the_plan_says(monkeypatch, values):
    """But for the optimizer's counts of its updates, four bytes a parameter."""
    monkeypatch.setattr("apr_train.preflight.machine_rules.free_memory", lambda device: 1)
    settings, found = cleared({"preset": "tiny", **ROW, **values})
    asked = PreflightInput.of(settings, batch_size=2, device="cpu", precision=settings.run.precision)
    memory = preflight(asked).facts["memory"]
    planned = estimate(found, _decided(settings, found, 2), 1, 1, 2).held
    assert memory == pytest.approx({kind: planned[kind] for kind in memory}, rel=0, abs=400)
    mask = found.objective.mask_kind(document_mask=settings.data.document_mask)
    most = most_activations(
        found.family.map_tensor_names(found.config, Layout()),
        found.config,
        tokens=2 * settings.data.sequence_length,
        length=settings.data.sequence_length,
        attention="sdpa",
        mask=mask,
    )
    assert most > memory["activations"] + memory["logits"]


def test_what_torch_logs_of_a_step_without_values_is_left_out(caplog):
    """Its traceback of an operator without shapes, where ours is one message; afterwards it logs as before."""
    logger = logging.getLogger(FakeTensorMode.__module__)
    with without_values(torch.nn.Linear(2, 2, device="meta"), Ledger()):
        logger.error("a traceback")
    logger.error("of another program")
    assert [record.message for record in caplog.records] == ["of another program"]


@pytest.mark.rule("PREFLIGHT-016")
def test_activations_alone_can_be_too_many(monkeypatch):
    """Of rows whose activations are more than all the rest, without a look at which nothing was said."""
    monkeypatch.setattr("apr_train.preflight.machine_rules.free_memory", lambda device: 30_000_000)
    settings, _ = cleared(TINY)
    few, many = (preflight(PreflightInput.of(settings, batch_size=rows, device="cpu")) for rows in (1, 64))
    assert "PREFLIGHT-016" not in {found.rule for found in few.findings}
    (warning,) = (found for found in many.findings if found.rule == "PREFLIGHT-016")
    assert "activations" in warning.problem
    assert warning.severity == "warning"


@pytest.mark.parametrize(("shard", "pieces"), [("auto", 4), ("none", 1), ("hybrid", 2)])
def test_the_preflight_of_several_processes_counts_pieces(monkeypatch, tmp_path, shard, pieces):
    launch = {"RANK": 0, "WORLD_SIZE": 4, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 4, "MASTER_PORT": 1}
    for name, value in launch.items():
        monkeypatch.setenv(name, str(value))
    (tmp_path / "text.py").write_text("def half(x):\n    return x / 2\n" * 400)
    spread = {"shard": shard, "batch_size": 8} | ({"replicate": 2} if shard == "hybrid" else {})
    report = apr_train.check_run(**TINY, **spread, data=tmp_path / "text.py", out=tmp_path, device="cpu")
    memory = report.facts["memory"]
    assert memory["weights"] == 4 * 581_456 // pieces
    assert memory["logits"] == 4 * 2 * 64 * 1024


def test_processes_that_cannot_be_divided_are_a_finding_beside_the_others(monkeypatch, tmp_path):
    for name, value in {"RANK": 0, "WORLD_SIZE": 4, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 4, "MASTER_PORT": 1}.items():
        monkeypatch.setenv(name, str(value))
    report = apr_train.check_run(**TINY, replicate=3, data=tmp_path / "gone.py", out=tmp_path, device="cpu")
    assert "--replicate" in {found.subject for found in report.errors}
    assert len(report.errors) > 1


@pytest.mark.slow
def test_32_billion_parameters_on_256_gpus():
    settings, found = cleared({"arch": "qwen2", "preset": "32b", "precision": "fp32", "sequence_length": 128})
    step = take_step(found, _decided(settings, found, 256), 1, 256, 1)
    assert step.parameters == 32_763_876_352
    assert step.phases["optimizer"]["weights"] == pytest.approx(4 * step.parameters / 256, rel=0.01)
    assert step.largest.held["communication"] > 4 * 2 * 152_064 * 5_120  # embedding and head stay gathered
    assert resident_peak() < 2**30


TWO = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("plans", sys.argv[1])
plans = importlib.util.module_from_spec(spec)
spec.loader.exec_module(plans)
plans.compare_with_a_plan()
"""


def compare_with_a_plan():
    """Called in each of two processes: what it holds, and what a plan says."""
    torch.set_num_threads(1)
    cases = [decided(TINY | {"sequence_length": 128, "precision": precision}, 8) for precision in ("fp32", "bf16")]
    dist.init_process_group("gloo")
    measured = [measured_peak(*case, 4, make_mesh("cpu", replicas=1, processes=2)) for case in cases]
    dist.destroy_process_group()
    for case, peak in zip(cases, measured, strict=True):
        sys.stdout.write(f"RATIO {take_step(*case, 1, 2, 4).largest.total / peak}\n")


@pytest.mark.slow
def test_two_processes_hold_what_is_planned_and_what_gloo_copies(tmp_path):
    """Gloo sums a copy of what it reduces, and lets go of it later in a thread of its own: some blocks, now more, now less."""
    program = tmp_path / "two.py"
    program.write_text(TWO)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", program, __file__]
    environ = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, timeout=300, env=environ, cwd=Path(__file__).parent
    )
    ratios = [float(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("RATIO")]
    assert len(ratios) == 4, done.stderr
    assert all(0.8 < ratio <= 1.001 for ratio in ratios), ratios
