"""Tiny models with random weights and a byte-level tokenizer of their own; no file, no family."""

import json
from types import SimpleNamespace

import pytest
import torch
from apr_train.checkpoint.header import Header, TokenizerSpec
from apr_train.data.objectives import OBJECTIVES
from apr_train.data.tokenizer import build_tokenizer
from apr_train.family.decoder_config import DecoderConfig
from apr_train.family.encoder_config import EncoderConfig
from apr_train.inference.ready import Ready
from apr_train.model.attention import Choice, load_backend
from apr_train.model.build import build_model
from apr_train.model.device import Precision
from apr_train.model.load import LoadReport
from apr_train.testing.models import randomize
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM

TEXT = [
    "def alpha(value):\n    return value + 1\n",
    "def beta(items):\n    # Größe → 数, naïve 🎈\n    return [x for x in items]\n",
]
SPECIALS = ["<|endoftext|>", "<s>", "</s>", "<pad>", "<mask>"]
FLOAT32 = Precision(name="fp32", weights=torch.float32, autocast=None, kernel_dtype="F32")
FLOAT64 = Precision(name="fp64", weights=torch.float64, autocast=None, kernel_dtype="F64")
VOCABULARY = 320


def byte_tokenizer(*, bos=False):
    """A BPE of 320 tokens over all bytes; with `bos`, one that puts `<s>` and `</s>` around a text."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - 1, special_tokens=SPECIALS, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(TEXT * 4, trainer)
    backend.add_tokens([AddedToken("two words", normalized=False)])
    if bos:
        backend.post_processor = processors.TemplateProcessing("<s> $A </s>", None, [("<s>", 1), ("</s>", 2)])
    ids = {"eos": 0, "bos": 1, "pad": 3, "mask": 4}
    content = json.loads(backend.to_str())
    return build_tokenizer(TokenizerSpec(json=content, special_ids=ids, size=backend.get_vocab_size(), origin="made here"))


@pytest.fixture(scope="session")
def tokenizer():
    return byte_tokenizer()


@pytest.fixture(scope="session")
def with_bos():
    return byte_tokenizer(bos=True)


def decoder_config(**changes):
    sizes = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes |= {"num_key_value_heads": 2, "intermediate_size": 48, "max_position_embeddings": 64}
    rest = {"rope_theta": 1e4, "rms_norm_eps": 1e-5, "tie_word_embeddings": True}
    return DecoderConfig(**{**sizes, **rest, **changes})


def encoder_config():
    return EncoderConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=40,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
        pad_token_id=3,
        tie_word_embeddings=True,
    )


@pytest.fixture
def make_ready(tokenizer):
    """Make a model ready to run; `kind` decoder or encoder, `own` a module instead of the core's."""

    def make(kind="decoder", *, precision=FLOAT32, attention="sdpa", own=None, tokenizer=tokenizer, metadata=None, **changes):
        config = decoder_config(**changes) if kind == "decoder" else encoder_config()
        backend = load_backend(attention)
        model = own or build_model(None, config, backend).to_empty(device="cpu")
        if own is None:
            model = randomize(model.to(precision.weights), seed=3).eval().requires_grad_(False)
        loaded = LoadReport(loaded=(), duplicates=(), ignored=(), fresh=(), bytes_read=0, verified=False)
        return Ready(
            path="model.apr",
            family=SimpleNamespace(name="none"),
            config=config,
            header=Header(path="model.apr", format="apr", config=metadata or {}),
            objective=OBJECTIVES["causal-lm" if kind == "decoder" else "masked-lm"],
            model=model,
            tokenizer=tokenizer,
            device=torch.device("cpu"),
            precision=precision,
            attention=Choice(backend=backend, rejected={}),
            loaded=loaded,
        )

    return make


@pytest.fixture
def transformers_llama():
    """Make transformers' Llama with the weights of a decoder, in their precision; its names are ours behind `model.`."""

    def make(ready):
        config = ready.config
        names = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
        names += ("intermediate_size", "max_position_embeddings", "rms_norm_eps", "tie_word_embeddings")
        rope = {"rope_type": "default", "rope_theta": config.rope_theta}
        theirs = LlamaForCausalLM(LlamaConfig(**{name: getattr(config, name) for name in names}, rope_parameters=rope))
        theirs = theirs.to(next(ready.model.parameters()).dtype)
        theirs.load_state_dict({f"model.{name}": value for name, value in ready.model.state_dict().items()}, strict=False)
        theirs.tie_weights()
        theirs.generation_config.eos_token_id = None
        return theirs.eval()

    return make


@pytest.fixture
def in_float64():
    return FLOAT64


class Scripted(torch.nn.Module):
    """Writes down what it is told to: one continuation for each prompt, in their order."""

    def __init__(self, config, continuations):
        super().__init__()
        self.config, self.waiting, self.now = config, list(continuations), []

    def hidden_states(self, tokens, *, mask, positions=None, cache=None):
        if tokens.shape[1] > 1:
            self.now = list(self.waiting.pop(0))
        hidden = torch.zeros(*tokens.shape, self.config.vocab_size)
        hidden[:, -1, self.now.pop(0)] = 1.0
        return hidden

    def logits(self, hidden):
        return hidden


@pytest.fixture
def scripted(make_ready, tokenizer):
    """A model that continues with these texts, each followed by end-of-text for as long as it is asked."""

    def make(*texts, **changes):
        scripts = [tokenizer.encode(text) + [0] * 200 for text in texts]
        return make_ready(own=Scripted(decoder_config(**changes), scripts), **changes)

    return make
