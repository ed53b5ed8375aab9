"""Whole runs against plain transformers + torch loops that share no code with ours but the batches."""

import json
import math

import pytest
import torch
from apr_train.checkpoint.apr import open_apr
from apr_train.data.bpe import train_bpe
from apr_train.data.corpus import load_corpus
from apr_train.data.objectives import OBJECTIVES
from apr_train.data.stream import BatchStream, validation_batches
from apr_train.data.tokenizer import build_tokenizer
from apr_train.family.registry import Registry
from apr_train.model.device import PRECISIONS
from apr_train.model.tensors import to_torch
from apr_train.run.settings import DataSettings, OptimizerSettings
from apr_train.testing import meta_model
from apr_train.training.evaluation import held_out_loss
from apr_train.training.optimizer.make import make_optimizer
from apr_train.training.step import train_step
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, Qwen2Config, Qwen2ForCausalLM, RobertaConfig, RobertaForMaskedLM, RobertaModel
from transformers.optimization import get_cosine_with_min_lr_schedule_with_warmup

SIZES = {"hidden_size": 112, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 14}
TINY = Qwen2Config(**SIZES, vocab_size=700, num_key_value_heads=2, max_position_embeddings=128, tie_word_embeddings=True)
HALF_BILLION = Qwen2Config(
    vocab_size=151_936,
    hidden_size=896,
    intermediate_size=4864,
    num_hidden_layers=24,
    num_attention_heads=14,
    num_key_value_heads=2,
    max_position_embeddings=32_768,
    rms_norm_eps=1e-6,
    rope_parameters={"rope_type": "default", "rope_theta": 1_000_000.0},
    tie_word_embeddings=True,
)
STEPS, LENGTH, LR = 3, 48, 1e-3


@pytest.fixture
def tokenizer(place):
    return build_tokenizer(train_bpe(DataSettings(data=(str(place.corpus),)), 600))


def publish(config, folder, tokenizer):
    """A folder as transformers writes it, with a tokenizer.json beside."""
    torch.manual_seed(3)
    with torch.device("cpu"):
        model = Qwen2ForCausalLM(config)
    model.save_pretrained(folder)
    tokenizer.save(folder / "tokenizer.json")
    config_file = folder / "config.json"
    values = json.loads(config_file.read_text())
    config_file.write_text(json.dumps(values | {"eos_token_id": 0, "bos_token_id": None}))
    return folder


def batches(place, tokenizer, accumulate):
    """The batches that a run with seed 0 takes, step by step, and the validation's."""
    corpus = load_corpus(DataSettings(data=(str(place.corpus),)), tokenizer)
    shape = {"objective": OBJECTIVES["causal-lm"], "sequence_length": LENGTH, "batch_size": 2, "tokenizer": tokenizer}
    stream = BatchStream(corpus.train, seed=0, **shape)
    return [[stream.next_batch() for _ in range(accumulate)] for _ in range(STEPS)], list(
        validation_batches(corpus.validation, max_rows=4, **shape)
    )


def reference_loop(folder, steps, held_out):
    """Load, measure, three AdamW steps with warm-up, clipping and decay on matrices, measure; transformers and torch only."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").train()
    groups = [[p for p in model.parameters() if (p.ndim >= 2) == matrix] for matrix in (True, False)]
    optimizer = torch.optim.AdamW(
        [{"params": groups[0], "weight_decay": 0.1}, {"params": groups[1], "weight_decay": 0.0}],
        lr=LR,
        betas=(0.9, 0.95),
        fused=False,
    )
    schedule = get_cosine_with_min_lr_schedule_with_warmup(optimizer, 2, STEPS, min_lr_rate=0.1)
    optimizer.step()  # without gradients it does nothing, but the schedule insists
    losses = [mean_loss(model, held_out)]
    for step in steps:
        schedule.step()
        targets = sum(int((batch.targets != -100).sum()) for batch in step)
        optimizer.zero_grad()
        total = 0.0
        for batch in step:
            loss = summed(model, batch)[0] / targets
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(total)
    losses.append(mean_loss(model, held_out))
    return losses, dict(model.named_parameters())


@torch.no_grad()
def mean_loss(model, batches):
    measured = [summed(model, batch) for batch in batches]
    return float(sum(loss for loss, _ in measured)) / sum(count for _, count in measured)


def summed(model, batch):
    logits = model(input_ids=batch.tokens).logits.float()
    loss = F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), ignore_index=-100, reduction="sum")
    return loss, int((batch.targets != -100).sum())


def relative(ours, theirs):
    return float((ours - theirs).norm() / theirs.norm())


def compare(place, config, tokenizer, accumulate):
    folder = publish(config, place.folder / "published", tokenizer)
    args = ("--steps", STEPS, "--lr", LR, "--warmup-steps", "2", "--accumulate", accumulate, "--sequence-length", LENGTH)
    init = ("--arch", "qwen2", "--init", folder, "--allow-cold-init", "--precision", "fp32", "--run", "x", "--batch-size", "2")
    out = place.train(*init, *args)
    steps, held_out = batches(place, tokenizer, accumulate)
    losses, parameters = reference_loop(folder, steps, held_out)
    lines = place.curve("x")
    ours = [lines[0]["val_loss"], *(line["loss"] for line in lines[1:]), lines[-1]["val_loss"]]
    assert len(ours) == STEPS + 2
    assert abs(ours[0] - ours[-1]) > 1e-3  # the steps changed what the last number measures
    assert ours == pytest.approx(losses, rel=1e-4)
    with open_apr(place.run("x") / "model.apr") as checkpoint:
        names = [name for name in parameters if name != "lm_head.weight"]
        assert set(checkpoint.header.tensors) == set(names)
        apart = {name: relative(to_torch(checkpoint.read(name)), parameters[name].detach()) for name in names}
    # biases start at zero: all of them is AdamW's update, in which a gradient is divided by its own size, rounding included
    assert {name: far for name, far in apart.items() if far > (1e-2 if name.endswith("bias") else 1e-4)} == {}
    return out


@pytest.mark.rule("FALSIFY-APR-PRETRAIN-INIT-009")
@pytest.mark.parametrize("accumulate", [1, 3])
def test_three_steps_equal_a_plain_loop(place, tokenizer, accumulate):
    compare(place, TINY, tokenizer, accumulate)


@pytest.mark.slow
@pytest.mark.rule("FALSIFY-APR-PRETRAIN-INIT-007")
def test_three_steps_of_half_a_billion_parameters_equal_a_plain_loop(place, tokenizer):
    assert "290 of 290 tensors accounted for" in compare(place, HALF_BILLION, tokenizer, 1)


@pytest.fixture
def roberta(place):
    """RobertaForMaskedLM and its bare RobertaModel as transformers writes them, with a tokenizer of their own."""
    tokenizer = build_tokenizer(train_bpe(DataSettings(data=(str(place.corpus),)), 600, encoder=True))
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = RobertaConfig(
        **sizes, vocab_size=600, max_position_embeddings=66, type_vocab_size=1, pad_token_id=1, bos_token_id=0, eos_token_id=2
    )
    torch.manual_seed(1)
    for name, kind in (("headed", RobertaForMaskedLM), ("bare", RobertaModel)):
        kind(config).save_pretrained(place.folder / name)
        tokenizer.save(place.folder / name / "tokenizer.json")
        (place.folder / name / "tokenizer_config.json").write_text('{"mask_token": "<mask>"}')
    return place.folder


@pytest.mark.parametrize("kind", ["headed", "bare"])
def test_an_encoder_made_by_transformers_learns(place, roberta, kind):
    args = ("--init", roberta / kind, "--allow-cold-init", "--precision", "fp32", "--lr", "3e-3", "--batch-size", "16")
    out = place.train("--arch", "codebert", *args, "--steps", "60", "--run", "x")
    lines = place.curve("x")
    assert lines[0]["val_loss"] == pytest.approx(math.log(600), abs=0.4)
    assert lines[-1]["val_loss"] < lines[0]["val_loss"] - 1.0
    if kind == "bare":
        assert "pooler" in out
        assert "freshly initialised: lm_head" in out


@pytest.mark.parametrize("kind", ["headed", "bare"])
def test_a_resumed_run_from_a_folder_ends_in_the_same_bytes(place, roberta, kind):
    args = ("--init", roberta / kind, "--allow-cold-init", "--steps", "4", "--save-every", "2")
    for name in ("whole", "back"):
        place.train(*args, "--run", name)
    place("--resume", "runs/back/step-000002")
    place.assert_same_end("whole", "back", step=4)


@pytest.mark.rule("FALSIFY-APR-PRETRAIN-ARCH-007")
def test_an_encoder_is_refused_by_the_causal_objective(place, roberta):
    out = place.train("--init", roberta / "bare", "--objective", "causal-lm", "--run", "x", code=3)
    for part in ("FALSIFY-APR-PRETRAIN-ARCH-007", "Encoder", "decoder-only", "RobertaModel"):
        assert part in out
    assert not (place.folder / "runs").exists()


@pytest.mark.parametrize("name", ["llama370m", "qwen2", "codebert"])
def test_every_family_overfits_one_batch(place, name):
    family = Registry.discover().family(name)
    config = family.build_config(preset="tiny")
    objective = OBJECTIVES[family.info.objectives[0]]
    settings = DataSettings(data=(str(place.corpus),))
    tokenizer = build_tokenizer(train_bpe(settings, 600, encoder=family.info.kind == "encoder"))
    stream = BatchStream(
        load_corpus(settings, tokenizer).train,
        objective=objective,
        sequence_length=32,
        batch_size=4,
        seed=0,
        tokenizer=tokenizer,
    )
    batch = stream.next_batch()
    torch.manual_seed(0)
    model = meta_model(family, config, attention="sdpa").to_empty(device="cpu")
    model.initialize(torch.Generator().manual_seed(0))
    optimizer = make_optimizer(model.train(), OptimizerSettings(weight_decay=0.0), lr=2e-3)
    for step in range(150):
        train_step(model, optimizer, [batch], objective=objective, precision=PRECISIONS["fp32"], clip_norm=1.0, step=step + 1)
    assert held_out_loss(model, [batch], objective=objective, precision=PRECISIONS["fp32"]).loss < 0.05
