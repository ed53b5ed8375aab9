"""How well a run uses its machine: operations by the config against torch's own count, the peak, the share."""

import json
import math

import numpy as np
import pytest
import torch
from apr_train.data.batch import IGNORED, Batch
from apr_train.data.objectives import OBJECTIVES
from apr_train.errors import RunError
from apr_train.family.config import ModelConfig
from apr_train.family.decoder_config import DecoderConfig
from apr_train.family.encoder_config import EncoderConfig
from apr_train.family.flops import TrainingFlops, training_flops
from apr_train.model.adapters import attach
from apr_train.model.attention import load_backend
from apr_train.model.build import build_model
from apr_train.model.device import PRECISIONS, Precision
from apr_train.model.peak import device_peak, measured_rate, peak_table, table_peak
from apr_train.run.folder import METRICS
from apr_train.run.machine import Machine, Peak, read_machine, write_machine
from apr_train.training.loop import train
from apr_train.training.step import train_step
from attrs import frozen
from torch.utils.flop_counter import FlopCounterMode

ROWS, LENGTH = 2, 12
DECODER = {
    **{"vocab_size": 61, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2},
    **{"head_dim": 8, "intermediate_size": 24, "max_position_embeddings": 64, "rope_theta": 1e4, "rms_norm_eps": 1e-5},
    "tie_word_embeddings": True,
}
MOE = DECODER | {"num_experts": 5, "num_experts_per_tok": 2, "norm_topk_prob": True, "moe_intermediate_size": 20}
ENCODER = {
    **{"vocab_size": 61, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64},
    **{"max_position_embeddings": 24, "type_vocab_size": 1, "layer_norm_eps": 1e-5, "pad_token_id": 1},
    **{"tie_word_embeddings": True, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
}
CONFIGS = {
    "a Llama": DecoderConfig(**DECODER),
    "an untied head": DecoderConfig(**DECODER | {"tie_word_embeddings": False}),
    "no gate": DecoderConfig(**DECODER | {"gated_mlp": False}),
    "experts": DecoderConfig(**MOE),
    "a shared expert": DecoderConfig(**MOE | {"shared_expert_intermediate_size": 28, "decoder_sparse_step": 2}),
    "an encoder": EncoderConfig(**ENCODER),
}
FLOAT64 = Precision(name="fp64", weights=torch.float64, autocast=None, kernel_dtype="F64")


@frozen
class NoOptimizer:
    """Of a step whose operations are counted, nothing but the passes."""

    def zero_grad(self, *, set_to_none): ...

    def step(self): ...


def model_of(config):
    """In float64, in which each expert's product is one of torch's own."""
    model = build_model(None, config, load_backend("eager")).to(torch.float64).to_empty(device="cpu")
    model.initialize(torch.Generator().manual_seed(0))
    return model.train()


def batch_of(config, *, every=1):
    """Rows whose every so-many-th token is predicted."""
    tokens = torch.from_numpy(np.random.default_rng(0).integers(4, config.vocab_size, (ROWS, LENGTH)))
    targets = torch.full_like(tokens, IGNORED)
    targets[:, ::every] = tokens[:, ::every]
    return Batch(tokens=tokens, targets=targets, target_count=int((targets != IGNORED).sum()))


def counted(model, batch, objective):
    """What torch counts in the passes of a step."""
    counter = FlopCounterMode(display=False)
    with counter:
        train_step(model, NoOptimizer(), [batch], objective=OBJECTIVES[objective], precision=FLOAT64, clip_norm=0.0, step=1)
    return counter.get_total_flops()


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_the_operations_of_a_step_are_those_that_torch_counts(config, every):
    batch = batch_of(config, every=every)
    objective = "masked-lm" if isinstance(config, EncoderConfig) else "causal-lm"
    needed = training_flops(config, length=LENGTH).of_step(ROWS * LENGTH, batch.target_count)
    assert needed == counted(model_of(config), batch, objective)


@pytest.mark.slow  # peft takes seconds to import
def test_under_adapters_no_weight_of_the_base_has_a_gradient():
    pytest.importorskip("peft")
    config, rank = CONFIGS["an untied head"], 2
    model = model_of(config)
    names = [name for name, module in model.layers.named_modules() if isinstance(module, torch.nn.Linear)]
    sites = [Named(f"layers.{name}") for name in names]
    attach(model, sites, rank=rank, alpha=4.0, dropout=0.0)
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    batch = batch_of(config)
    flops = training_flops(config, length=LENGTH, adapter_parameters=trained)
    towards_the_embedding = config.hidden_size * config.head_dim * 8 + 3 * rank * config.hidden_size  # by q, k, v and adapters
    nobodys = 2 * ROWS * LENGTH * towards_the_embedding
    head = 2 * batch.target_count * config.hidden_size * config.vocab_size  # which our loss computes though it is frozen
    assert (
        flops.of_step(ROWS * LENGTH, batch.target_count)
        == counted(model.to(torch.float64), batch, "causal-lm") + nobodys - head
    )


@frozen
class Named:
    module: str


def test_a_window_is_as_many_keys_and_a_longer_row_costs_attention_alone():
    sliding = {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
    plain, windowed = DecoderConfig(**DECODER), DecoderConfig(**DECODER | sliding)
    saved = training_flops(plain, length=10).per_token - training_flops(windowed, length=10).per_token
    assert saved == 12 * 4 * 8 * (2 * (10 - 4))
    assert training_flops(plain, length=20).per_token - training_flops(plain, length=10).per_token == 12 * 4 * 8 * 3 * 10


def test_it_is_palms_formula_for_a_model_of_known_size():
    """6 N + 12 L H Q T for a Llama of 7 billion, N without the embedding: 6.607 billion with the head's 131 million."""
    sizes = {
        "vocab_size": 32000,
        "hidden_size": 4096,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
    }
    config = DecoderConfig(**DECODER | sizes | {"head_dim": 128, "intermediate_size": 11008, "max_position_embeddings": 2048})
    found = training_flops(config, length=2048)
    matrices = 6_738_415_616 - 32000 * 4096 - 65 * 4096  # the published count, less the embedding and the norms
    assert found.per_token + found.per_target == 6 * matrices + 12 * 32 * 32 * 128 * 2048


def test_of_an_unknown_kind_of_config_nothing_is_said():
    config = ModelConfig(**{name: DECODER[name] for name in (
        "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "max_position_embeddings",
        "tie_word_embeddings")})  # fmt: skip
    assert training_flops(config, length=8) is None
    assert machine(flops=None).mfu(tokens=1, targets=1, seconds=1.0) is None


def machine(**changes):
    values = {"device": "cpu (AVX2)", "precision": "fp32", "threads": 1, "flops": TrainingFlops(per_token=600, per_target=100)}
    return Machine(**values | {"peak": Peak(flops_per_s=1e4, known_from="asked", source="--peak-tflops")} | changes)


def test_the_share_is_what_is_needed_by_what_the_device_does_in_that_time():
    assert machine().mfu(tokens=10, targets=5, seconds=2.0) == (600 * 10 + 100 * 5) / (1e4 * 2)
    assert machine(peak=None).mfu(tokens=10, targets=5, seconds=2.0) is None


@pytest.mark.parametrize(
    ("name", "rate", "tera"),
    [
        ("NVIDIA H100 80GB HBM3", "bf16", 989.5),
        ("NVIDIA H100 PCIe", "fp32", 51),
        ("NVIDIA A100-SXM4-80GB", "tf32", 156),
        ("NVIDIA A100 80GB PCIe", "bf16", 312),
        ("NVIDIA GeForce RTX 4090", "bf16", 165.2),
        ("NVIDIA H200", "bf16", 989.5),
        ("NVIDIA H200 NVL", "bf16", 835.5),
    ],
)
def test_a_device_of_the_table_is_known_by_its_whole_name(name, rate, tera):
    assert table_peak(name, rate).flops_per_s == pytest.approx(tera * 1e12)


@pytest.mark.parametrize(
    "name",
    ["NVIDIA H100 80GB HBM3 MIG 1g.10gb", "NVIDIA GeForce RTX 4090 Laptop GPU", "NVIDIA A100-SXM4-40GB MIG 1g.5gb", "A", ""],
)
def test_a_part_of_a_device_or_a_slower_one_is_not_taken_for_it(name):
    assert table_peak(name, "bf16") is None


def test_a_rate_that_a_device_does_not_have_is_unknown():
    assert table_peak("Tesla T4", "bf16") is None
    assert table_peak("Tesla T4", "fp16").flops_per_s == 65e12


def test_every_entry_of_the_table_has_its_source_and_rates_in_their_order():
    for entry in peak_table():
        assert entry["source"].startswith("https://")
        assert set(entry) <= {"name", "source", "bf16", "fp16", "tf32", "fp32"}
        assert entry.get("bf16", entry["fp16"]) == entry["fp16"] >= entry.get("tf32", 0)
        assert entry["fp16"] > entry.get("fp32", 1) > 0
    names = [entry["name"] for entry in peak_table()]
    assert len(set(names)) == len(names)


def test_what_the_user_says_wins_over_everything():
    peak = device_peak(torch.device("cpu"), PRECISIONS["fp32"], asked=1.5)
    assert (peak.flops_per_s, str(peak)) == (1.5e12, "1.5 TFLOP/s (--peak-tflops)")


def test_measuring_a_cpu_draws_no_random_number_and_changes_no_setting():
    before = torch.get_rng_state(), torch.get_num_threads(), torch.is_grad_enabled()
    assert 1e8 < measured_rate(torch.float32) < 1e15
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (torch.get_num_threads(), torch.is_grad_enabled()) == before[1:]


def test_a_run_writes_the_share_of_each_step_and_learns_the_same(make_run):
    plain, measured = make_run("a"), make_run("b")
    measured.machine = machine()
    lines = []
    for run in (plain, measured):
        train(run)
        lines.append([json.loads(line) for line in (run.folder / METRICS).read_text().splitlines()])
    for before, line in zip(*lines, strict=True):
        assert "mfu" not in before
        assert line.get("loss") == before.get("loss")
        if line["step"]:
            needed = 600 * line["tokens_per_s"] * line["step_time"] + 100 * line["targets"]
            assert line["mfu"] == pytest.approx(needed / (1e4 * line["step_time"]), rel=1e-9)


def test_a_machine_is_read_back_as_it_was_written(tmp_path):
    for number, found in enumerate((machine(), machine(flops=None, peak=None, threads=None))):
        write_machine(path := tmp_path / f"{number}.json", found)
        assert read_machine(path) == found
    assert read_machine(tmp_path / "none.json") is None


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"device": 1}', '{"a":' * 9999])
def test_a_damaged_machine_is_one_error_with_its_path(tmp_path, text):
    (path := tmp_path / "machine.json").write_text(text)
    with pytest.raises(RunError, match=r"machine\.json.*Move the file away"):
        read_machine(path)


@pytest.mark.parametrize(
    "change",
    [
        {"device": None},
        {"flops": {"per_token": "x", "per_target": 1}},
        {"flops": {"per_token": 1}},
        {"peak": {"flops_per_s": "1", "known_from": "asked", "source": ""}},
        {"peak": {"flops_per_s": 1, "known_from": "hearsay", "source": ""}},
        {"peak": {"flops_per_s": math.nan, "known_from": "asked", "source": "", "more": 1}},
    ],
)
def test_a_value_of_another_type_is_one_error(tmp_path, change):
    write_machine(path := tmp_path / "machine.json", machine())
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(RunError, match="no description of a machine"):
        read_machine(path)
