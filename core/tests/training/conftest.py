"""Tiny runs on in-memory tokens: the loop without files, families or tokenizers."""

import numpy as np
import pytest
import torch
from apr_train.data.objectives import OBJECTIVES
from apr_train.data.stream import BatchStream, validation_batches
from apr_train.data.tokens import TokenFile
from apr_train.family.decoder_config import DecoderConfig
from apr_train.model.attention import load_backend
from apr_train.model.build import build_model
from apr_train.model.device import PRECISIONS
from apr_train.run.settings import Settings
from apr_train.run.settings_file import with_values
from apr_train.training.display import PlainDisplay
from apr_train.training.optimizer.make import make_optimizer
from apr_train.training.run import Run
from apr_train.training.schedule import Schedule
from attrs import Factory, frozen
from safetensors.torch import load_file, save_file


@frozen
class NoTokenizer:
    """What a causal stream asks of one: its size."""

    size: int = 64
    special_ids: dict = Factory(dict)
    fingerprint: str = "none"


DEFAULTS = {
    "lr": 1e-3,
    "warmup_steps": 2,
    "steps": 6,
    "sequence_length": 16,
    "batch_size": 2,
    "val_every": 0,
    "save_every": 0,
    "precision": "fp32",
}


def tiny_config(**changes):
    sizes = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    rest = {"num_key_value_heads": 2, "max_position_embeddings": 64, "rope_theta": 1e4, "rms_norm_eps": 1e-5}
    return DecoderConfig(**{**sizes, **rest, "tie_word_embeddings": True, **changes})


def tiny_tokens(count=40, *, key="corpus"):
    """Documents of counting numbers: learnable, and no two the same."""
    random = np.random.default_rng(7)
    documents = []
    for _ in range(count):
        start, stride, length = random.integers(0, 63), random.integers(1, 3), random.integers(10, 30)
        documents.append([int(token) for token in (start + stride * np.arange(length)) % 63] + [63])
    return TokenFile.from_documents(documents, key=key)


def schedule_of(settings):
    chosen = settings.optimizer
    return Schedule.of(chosen, steps=settings.run.steps, lr=chosen.lr, warmup_steps=chosen.warmup_steps)


def write_plain(path, weights, *, step):
    save_file({name: weights.whole(name) for name in weights.parameters}, path)


@pytest.fixture
def make_run(tmp_path):
    """Make a run of a tiny decoder; settings by name. `resume=True` goes on from the folder's latest checkpoint."""

    def make(folder="run", *, resume=False, positions=64, **values):
        path = tmp_path / folder
        path.mkdir(exist_ok=True)
        settings = with_values(Settings(), {**DEFAULTS, **values})
        precision = PRECISIONS[settings.run.precision]
        model = build_model(None, tiny_config(max_position_embeddings=positions), load_backend("sdpa"))
        model.to_empty(device="cpu").to(precision.weights)
        model.initialize(torch.Generator().manual_seed(settings.run.seed))
        tokens = tiny_tokens()
        shape = {"objective": OBJECTIVES["causal-lm"], "batch_size": settings.data.batch_size, "tokenizer": NoTokenizer()}
        shape |= {"sequence_length": settings.data.sequence_length, "document_mask": settings.data.document_mask}
        shape["packing"] = settings.data.packing or "concatenate"
        run = Run(
            settings=settings,
            schedule=schedule_of(settings),
            folder=path,
            model=model,
            optimizer=make_optimizer(model, settings.optimizer, lr=settings.optimizer.lr),
            stream=BatchStream(tokens, seed=settings.run.seed, **shape),
            held_out=lambda: validation_batches(tiny_tokens(4, key="held out"), **shape),
            objective=OBJECTIVES["causal-lm"],
            precision=precision,
            device=torch.device("cpu"),
            write_model=write_plain,
            display=PlainDisplay(settings.run.steps, 100),
            vocab_size=64,
        )
        torch.manual_seed(settings.run.seed)
        if resume:
            go_on(run)
        return run

    make.go_on = go_on
    return make


def go_on(run):
    from apr_train.run.folder import METRICS, MODEL, checkpoints
    from apr_train.run.metrics import cut_back
    from apr_train.training.checkpoint import load_optimizer, read_state

    latest = checkpoints(run.folder)[-1].path
    run.model.load_state_dict(load_file(latest / MODEL))
    state = read_state(latest)
    load_optimizer(latest, run.model, run.optimizer, step=state["step"])
    run.restore(state)
    cut_back(run.folder / METRICS, run.step)
