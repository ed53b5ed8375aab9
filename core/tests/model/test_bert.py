"""The encoder as BERT: positions counted from 0, against transformers' BertForMaskedLM."""

import logging

import pytest
import torch
from apr_train.errors import ConfigError
from apr_train.family.encoder_config import EncoderConfig
from apr_train.model import Bidirectional
from apr_train.model.attention import load_backend
from apr_train.model.encoder import Encoder
from transformers import BertConfig, BertForMaskedLM

logging.getLogger("transformers").setLevel(logging.ERROR)
PAD = 3
CONFIG = EncoderConfig(
    vocab_size=61,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=64,
    max_position_embeddings=24,
    type_vocab_size=2,
    layer_norm_eps=1e-12,
    pad_token_id=PAD,
    tie_word_embeddings=True,
    positions_after_padding=False,
)
BLOCK = {
    "attention.q_proj": "attention.self.query",
    "attention.k_proj": "attention.self.key",
    "attention.v_proj": "attention.self.value",
    "attention.o_proj": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "mlp.up_proj": "intermediate.dense",
    "mlp.down_proj": "output.dense",
    "mlp_norm": "output.LayerNorm",
}
STEMS = {f"layers.{layer}.{ours}": f"bert.encoder.layer.{layer}.{far}" for layer in range(2) for ours, far in BLOCK.items()} | {
    "embeddings.norm": "bert.embeddings.LayerNorm",
    "lm_head.dense": "cls.predictions.transform.dense",
    "lm_head.norm": "cls.predictions.transform.LayerNorm",
}
NAMES = {f"{ours}.{part}": f"{far}.{part}" for ours, far in STEMS.items() for part in ("weight", "bias")} | {
    **{f"embeddings.{table}_embeddings.weight": f"bert.embeddings.{table}_embeddings.weight"
       for table in ("word", "position", "token_type")},
    "lm_head.bias": "cls.predictions.bias",
}  # fmt: skip
"""Our name → transformers'."""


def pair(dtype, backend="eager"):
    """transformers' model and ours, with the same random weights."""
    names = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    names += ("max_position_embeddings", "type_vocab_size", "layer_norm_eps", "pad_token_id", "tie_word_embeddings")
    torch.manual_seed(0)
    theirs = BertForMaskedLM(BertConfig(**{name: getattr(CONFIG, name) for name in names})).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.2)
    ours = Encoder(CONFIG, load_backend(backend)).eval()
    assert {name for name, _ in ours.named_parameters()} == set(NAMES)
    assert {name for name, _ in theirs.named_parameters()} == set(NAMES.values())
    source = dict(theirs.named_parameters())
    ours.load_state_dict({name: source[far].detach().clone() for name, far in NAMES.items()})
    return ours.to(dtype), theirs.to(dtype)


def relative(ours, theirs):
    return ((ours - theirs).norm() / theirs.norm()).item()


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-9)])
def test_logits_and_gradients_are_those_of_transformers_with_padding_inside_and_behind(dtype, tolerance, backend):
    ours, theirs = pair(dtype, backend)
    tokens = torch.randint(4, 61, (3, 24), generator=torch.Generator().manual_seed(1))
    tokens[1, 15:] = PAD
    tokens[2, 3] = PAD  # inside: it counts as a position, unlike in RoBERTa
    keep = tokens != PAD
    logits, reference = ours(tokens, mask=Bidirectional(keep)), theirs(tokens, attention_mask=keep.long()).logits
    assert relative(logits[keep], reference[keep]) <= tolerance
    for side in (logits, reference):
        side[keep].square().mean().backward()
    grads = dict(theirs.named_parameters())
    # A key bias shifts every score of a query alike: its true gradient is zero, and both are rounding noise.
    names = {name: far for name, far in NAMES.items() if not name.endswith("k_proj.bias")}
    worst = {name: relative(ours.get_parameter(name).grad, grads[far].grad) for name, far in names.items()}
    assert max(worst.values()) <= tolerance, worst


def test_the_padding_learns_a_position_but_no_word():
    """In the input: where it may be seen, as here, the position's row gets a gradient and the word's none."""
    ours, theirs = pair(torch.float64)
    tokens = torch.full((1, 24), 7)
    tokens[0, PAD] = PAD
    for model, names in ((ours, list(NAMES)), (theirs, list(NAMES.values()))):
        hidden = model.hidden_states(tokens, mask=Bidirectional()) if model is ours else model.bert(tokens).last_hidden_state
        hidden.square().sum().backward()
        words, places = (next(name for name in names if f".{table}_embeddings" in name) for table in ("word", "position"))
        assert float(model.get_parameter(words).grad[PAD].abs().sum()) == 0.0
        assert float(model.get_parameter(places).grad[PAD].abs().sum()) > 0.0


def test_every_row_of_the_position_table_is_used():
    model, tokens = pair(torch.float32)[0], torch.full((1, 25), 7)
    assert CONFIG.usable_positions == 24
    with pytest.raises(ConfigError, match="expected at most 24 tokens, found 25"):
        model(tokens, mask=Bidirectional())


def test_fresh_positions_have_no_row_of_zeros():
    model = Encoder(CONFIG, load_backend("eager"))
    model.initialize(torch.Generator().manual_seed(0))
    assert bool((model.embeddings.position_embeddings.weight.abs().sum(1) > 0).all())
    assert model.embeddings.word_embeddings.weight[PAD].abs().sum() == 0
