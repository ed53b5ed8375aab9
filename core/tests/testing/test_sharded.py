"""The kit's check of sharding: sound families pass it, and what only a sharded model shows is caught."""

import pytest
import torch.distributed as dist
from apr_train.model.decoder import Decoder
from apr_train.testing import ConformanceError, installed_family
from apr_train.testing.report import NotCheckedError
from apr_train.testing.sharded import check_sharding
from apr_train.testing.subject import Subject


def subject(family="llama370m"):
    family = installed_family(family)
    return Subject(family, family.build_config(preset="tiny"))


@pytest.mark.parametrize("family", ["llama370m", "qwen2", "codebert"])
def test_sound_families_compute_the_same_sharded(family):
    """The tiny qwen2 is tied, and codebert has dropout."""
    assert check_sharding(subject(family)).startswith("loss and gradients")
    assert not dist.is_initialized()


def test_a_parameter_that_is_used_outside_of_its_block_is_caught(monkeypatch):
    plain = Decoder.hidden_states

    def reading(self, *arguments, **named):
        return plain(self, *arguments, **named) * (1 + self.layers[0].mlp.up_proj.weight.mean())

    monkeypatch.setattr(Decoder, "hidden_states", reading)
    with pytest.raises((RuntimeError, ConformanceError)):
        check_sharding(subject())
    assert not dist.is_initialized()


def test_a_block_that_is_called_by_its_forward_is_caught(monkeypatch):
    plain = Decoder.hidden_states

    def past_the_hooks(self, *arguments, **named):
        layers, self.__dict__["layers"] = self.layers, [block.forward for block in self.layers]
        try:
            return plain(self, *arguments, **named)
        finally:
            del self.__dict__["layers"]
            assert self.layers is layers

    monkeypatch.setattr(Decoder, "hidden_states", past_the_hooks)
    with pytest.raises((RuntimeError, ConformanceError)):
        check_sharding(subject())


def test_without_gloo_it_says_that_nothing_was_checked(monkeypatch):
    monkeypatch.setattr(dist, "is_gloo_available", lambda: False)
    with pytest.raises(NotCheckedError, match="gloo"):
        check_sharding(subject())
