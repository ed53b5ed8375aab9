"""Dropout by row: what is dropped of a row depends on its place in the step's batch, not on who computes it."""

import pytest
import torch
from apr_train.family.encoder_config import EncoderConfig
from apr_train.model.attention import Bidirectional, load_backend
from apr_train.model.build import recompute_activations
from apr_train.model.dropout import ByRow, RowDropout, draw_by_row
from apr_train.model.encoder import Encoder

ROWS, LENGTH = 6, 16


def model_of(rows, *, attention="sdpa"):
    config = EncoderConfig(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=32,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
        tie_word_embeddings=True,
        pad_token_id=0,
        hidden_dropout_prob=0.2,
        attention_probs_dropout_prob=0.2,
    )
    model = Encoder(config, ByRow(load_backend(attention), rows))
    model.initialize(torch.Generator().manual_seed(1))
    draw_by_row(model, rows)
    return model.train()


def tokens_and_keep():
    tokens = torch.randint(1, 50, (ROWS, LENGTH), generator=torch.Generator().manual_seed(2))
    keep = torch.ones(ROWS, LENGTH, dtype=torch.bool)
    keep[1, 9:] = keep[4, 3:] = False
    return tokens, keep


def hidden(rows, *, attention="sdpa", passes=1, change=lambda model: None):
    """Of some of the rows, as one of several processes computes them; and the gradient of the first matrix."""
    tokens, keep = (x[rows.start : rows.stop] for x in tokens_and_keep())
    model = model_of(rows, attention=attention)
    change(model)
    torch.manual_seed(7)
    found = [model.hidden_states(tokens, mask=Bidirectional(keep)) for _ in range(passes)]
    (torch.stack(found).square().sum()).backward()
    return torch.stack(found).detach(), model.embeddings.word_embeddings.weight.grad


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_the_masks_do_not_depend_on_how_many_processes_share_the_rows(attention):
    whole, gradient = hidden(range(ROWS), attention=attention, passes=2)
    for cut in ([range(3), range(3, 6)], [range(1), range(1, 4), range(4, 6)]):
        parts = [hidden(rows, attention=attention, passes=2) for rows in cut]
        torch.testing.assert_close(torch.cat([part for part, _ in parts], 1), whole, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(sum(grad for _, grad in parts), gradient, rtol=1e-5, atol=1e-4)


def test_rows_sites_and_passes_have_masks_of_their_own():
    first, second = hidden(range(ROWS), passes=2)[0]
    assert not torch.allclose(first, second)
    torch.manual_seed(3)
    module, ones = RowDropout(0.5, range(4)), torch.ones(4, 64)
    masks = torch.stack([module(ones) for _ in range(3)]).flatten(0, 1)
    assert len(torch.unique(masks, dim=0)) == 12


def test_blocks_that_are_computed_again_drop_the_same():
    plain, again = (hidden(range(ROWS), change=change) for change in (lambda model: None, recompute_activations))
    assert torch.equal(plain[0], again[0])
    assert torch.equal(plain[1], again[1])


def test_as_many_are_dropped_as_torch_drops():
    module, x = RowDropout(0.3, range(8)), torch.randn(8, 50_000)
    out = module(x)
    kept = out != 0
    assert kept.float().mean(1) == pytest.approx(torch.full((8,), 0.7), abs=0.01)
    torch.testing.assert_close(out[kept], x[kept] / 0.7)
    assert torch.equal(module.eval()(x), x)


def test_an_axis_that_holds_several_entries_of_each_row_is_cut_into_rows():
    """A mixture of experts has its tokens in one axis."""
    x = torch.ones(3, 5, 20)
    torch.manual_seed(0)
    expected = RowDropout(0.5, range(3))(x)
    torch.manual_seed(0)
    assert torch.equal(RowDropout(0.5, range(3))(x.flatten(0, 1)), expected.flatten(0, 1))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # torch.compile's own, of itself
def test_compiled_blocks_drop_the_same():
    def compiled(model):
        for block in model.blocks:
            block.forward = torch.compile(block.forward, dynamic=False)

    plain, fused = (hidden(range(ROWS), change=change) for change in (lambda model: None, compiled))
    torch.testing.assert_close(fused[0], plain[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(fused[1], plain[1], rtol=1e-3, atol=1e-3)
