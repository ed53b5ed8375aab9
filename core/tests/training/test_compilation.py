"""When a run is compiled that does not say whether."""

import attrs
import pytest
from apr_train.family.config import ModelConfig
from apr_train.family.decoder_config import DecoderConfig
from apr_train.run.settings import Settings
from apr_train.run.settings_file import with_values
from apr_train.training.compilation import pays

SMOLLM2 = DecoderConfig(
    vocab_size=49152, hidden_size=576, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3, head_dim=64,
    intermediate_size=1536, max_position_embeddings=8192, rope_theta=1e5, rms_norm_eps=1e-5, tie_word_embeddings=True,
)  # fmt: skip
TINY = attrs.evolve(
    SMOLLM2, vocab_size=320, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=1, head_dim=8
)


def is_compiled(config, *, steps, device="cpu", workers=2, batch_size=2):
    settings = with_values(Settings(), {"steps": steps})
    return pays(settings, config, device=device, length=512, batch_size=batch_size, workers=workers)


@pytest.mark.parametrize(
    ("config", "asked", "compiled"),
    [
        (SMOLLM2, {"steps": 30}, False),
        (SMOLLM2, {"steps": 500}, True),
        (SMOLLM2, {"steps": 500, "workers": 64}, False),  # a machine on which 500 steps take seconds
        (SMOLLM2, {"steps": 500, "device": "cuda", "workers": 1, "batch_size": 8}, False),
        (SMOLLM2, {"steps": 5000, "device": "cuda", "workers": 1, "batch_size": 8}, True),
        (SMOLLM2, {"steps": 5000, "device": "cuda", "workers": 8, "batch_size": 8}, False),
        (TINY, {"steps": 10_000}, False),
    ],
)
def test_it_is_when_the_operations_of_all_steps_are_many_for_the_machine(config, asked, compiled):
    assert is_compiled(config, **asked) is compiled


def test_what_cannot_be_counted_is_not_compiled():
    sizes = {"vocab_size": 49152, "hidden_size": 576, "num_hidden_layers": 30, "num_attention_heads": 9}
    other = ModelConfig(**sizes, intermediate_size=1536, max_position_embeddings=512, tie_word_embeddings=True)
    assert not is_compiled(other, steps=10**6)
