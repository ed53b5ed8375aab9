"""Relative errors, and the comparison of two models: it passes equals and fails everything else."""

import json
from types import SimpleNamespace

import attrs
import numpy as np
import pytest
import torch
from apr_train.family.card import Layout
from apr_train.model.attention import Bidirectional, Causal, Documents, load_backend
from apr_train.model.cache import KeyValueCache
from apr_train.model.decoder import Decoder
from apr_train.model.mlp import MLP
from apr_train.testing import (
    FLOAT32,
    FLOAT64,
    ConformanceError,
    check_agreement,
    compare_models,
    compute_in_float64,
    installed_family,
    meta_model,
    model_from_tensors,
    random_tensors,
    randomize,
    reference_config,
    relative_error,
    relative_errors,
    tolerance_of,
)
from torch import nn
from transformers import Qwen2Config, Qwen2ForCausalLM


class Reference(nn.Module):
    """Another implementation's face: Hugging Face's names, and an answer with `.logits`."""

    def __init__(self, config, spoil=0.0):
        super().__init__()
        self.model = Decoder(config, load_backend("sdpa"))
        self.config = SimpleNamespace(to_dict=config.to_dict)
        self.spoil = spoil

    def forward(self, input_ids, attention_mask=None):
        logits = self.model(input_ids, mask=Causal())
        return SimpleNamespace(logits=logits + self.spoil * logits.sin())


@pytest.fixture
def family(toy):
    return toy()


@pytest.fixture
def config(family):
    return family.build_config(preset="tiny")


TOKENS = torch.arange(24).reshape(2, 12) % 11


def test_error_is_the_norm_of_the_difference_by_the_references():
    assert relative_error(np.array([3.0, 4.0]), np.array([3.0, 0.0])) == pytest.approx(4 / 3)
    assert relative_error(torch.tensor([1.0]), np.array([1.0])) == 0.0


def test_error_against_zeros_is_absolute():
    assert relative_error(np.array([0.5]), np.array([0.0])) == 0.5


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_numbers_that_are_none_never_agree(bad):
    assert relative_error(np.array([bad]), np.array([bad])) == float("inf")
    assert relative_error(np.array([1.0]), np.array([bad])) == float("inf")


def test_shapes_must_be_equal_even_if_they_broadcast():
    assert relative_error(np.ones((2, 1)), np.ones((2, 2))) == float("inf")


def test_tensor_of_one_side_only_never_agrees():
    errors = relative_errors({"a": np.ones(1), "b": np.ones(1)}, {"a": np.ones(1), "c": np.ones(1)})
    assert errors == {"a": 0.0, "b": float("inf"), "c": float("inf")}


def test_disagreement_lists_every_tensor():
    with pytest.raises(ConformanceError, match=r"x: a differs by 1.*\nx: b differs by 1"):
        check_agreement({"a": np.zeros(1), "b": np.zeros(1)}, {"a": np.ones(1), "b": np.ones(1)}, tolerance=0.5, where="x")


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, FLOAT32), (torch.float64, FLOAT64)])
def test_equal_models_agree(family, config, dtype, tolerance):
    reference = randomize(Reference(config)).to(dtype)
    agreement = compare_models(family, config, reference, TOKENS, precision="weights")
    assert agreement.tolerance == tolerance
    assert agreement.logits <= tolerance
    assert agreement.gradients <= tolerance


def test_config_is_read_from_the_reference(family, config):
    assert reference_config(family, Reference(config)) == config


def test_wrong_logits_are_caught(family, config):
    with pytest.raises(ConformanceError, match="logits differs"):
        compare_models(family, config, randomize(Reference(config, spoil=1e-3)), TOKENS)


def test_wrong_gradients_are_caught_where_the_logits_agree(family, config):
    reference = randomize(Reference(config))
    reference.model.layers[0].mlp.up_proj.weight.register_hook(lambda grad: grad * 1.001)
    with pytest.raises(ConformanceError, match=r"gradients: layers\.0\.mlp\.up_proj\.weight differs by 0\.00(1|0999)"):
        compare_models(family, config, reference, TOKENS, precision="weights")


def test_gradient_that_is_said_to_vanish_must(family, config):
    with pytest.raises(ConformanceError, match="should have no gradient"):
        compare_models(family, config, randomize(Reference(config)), TOKENS, vanishing=("q_proj.weight",))


def test_only_real_tokens_are_compared(family, config):
    keep = torch.arange(12) < torch.tensor([[12], [7]])
    compare_models(family, config, randomize(Reference(config)), TOKENS, keep=keep)


def test_model_is_filled_from_checkpoint_tensors_and_nothing_may_be_left(family, config):
    tensors = {
        name: torch.from_numpy(array) for name, array in random_tensors(family.map_tensor_names(config, Layout())).items()
    }
    model = model_from_tensors(family, config, tensors)
    assert torch.equal(model.embed_tokens.weight, tensors["model.embed_tokens.weight"])
    with pytest.raises(ConformanceError, match="not used by the model"):
        model_from_tensors(family, config, tensors | {"model.extra": torch.zeros(1)})
    del tensors["model.norm.weight"]
    with pytest.raises(ConformanceError, match="missing from the file"):
        model_from_tensors(family, config, tensors)


def test_meta_model_takes_no_memory(family, config):
    assert {parameter.device.type for parameter in meta_model(family, config).parameters()} == {"meta"}


def test_randomized_models_have_neither_zero_biases_nor_unit_norms(config):
    model = randomize(Reference(config))
    assert all(parameter.std() > 0.05 for parameter in model.parameters())


def test_masks_of_the_comparison_follow_the_kind(family, config):
    """A decoder must never be compared under a mask that shows it the future."""
    model = randomize(Reference(config)).model
    causal = model(TOKENS, mask=Causal())
    assert relative_error(model(TOKENS, mask=Bidirectional(None)), causal) > 0.01


class Casts(nn.Module):
    """A reference with every cast to float32 that transformers' models have, and a table made while it is built."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.weight = nn.Parameter(torch.full((6,), 0.1))
        self.table = nn.Buffer(torch.arange(6, dtype=torch.float) / 7, persistent=False)
        self.scale = nn.Buffer(torch.tensor(2**0.5), persistent=False)

    def forward(self, x):
        wide = x.float() * self.table.to(device=x.device, dtype=torch.float) * self.scale.to(self.weight.dtype)
        wide = wide.to(torch.float32) * self.weight.type(torch.float32)
        wide = nn.functional.softmax(wide, dim=-1, dtype=torch.float32).to(x.dtype)
        return torch.softmax(wide, -1, dtype=torch.float) + torch.ones(6, dtype=torch.float32) / 3


def test_no_cast_to_float32_is_left_in_a_lifted_reference():
    reference = Casts(SimpleNamespace()).eval()
    reference.weight.data.copy_(torch.linspace(-1, 1, 6))
    lifted = compute_in_float64(reference)
    x = torch.linspace(0, 1, 6, dtype=torch.float64)
    weight = reference.weight.double()
    inner = (x * (torch.arange(6, dtype=torch.float64) / 7) * 2**0.5 * weight).softmax(-1)
    expected = inner.softmax(-1) + 1 / 3
    torch.testing.assert_close(lifted(x), expected, rtol=1e-15, atol=1e-15)
    assert (reference(x) - expected).abs().max() > 1e-9
    assert not lifted.training
    assert torch.get_default_dtype() is torch.float32


def test_reference_that_cannot_be_made_again_is_refused():
    reference = Casts(SimpleNamespace())
    del reference.config
    with pytest.raises(ConformanceError, match="Casts: no config"):
        compute_in_float64(reference)
    reference = Casts(SimpleNamespace())
    reference.more = nn.Parameter(torch.zeros(2))
    with pytest.raises(ConformanceError, match=r"(?s)Casts: made again from its config.*more"):
        compute_in_float64(reference)


QWEN2 = {
    "vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "pad_token_id": None, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
ROWS = torch.randint(3, 61, (2, 24), generator=torch.Generator().manual_seed(0))


def qwen2(attention="eager", **changes):
    config = Qwen2Config(**QWEN2 | changes, attn_implementation=attention)
    return randomize(Qwen2ForCausalLM(config)).eval()


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_any_attention_of_the_reference_is_compared_in_float64(attention):
    agreement = compare_models(installed_family("qwen2"), None, qwen2(attention), ROWS, files=True)
    seen = [getattr(agreement, name) for name in ("logits", "gradients", "prefill", "decode", "documents", "files")]
    assert all(0 <= error < 1e-13 for error in seen)
    assert (agreement.precision, agreement.tolerance) == ("float64", FLOAT64)
    assert "decode " in str(agreement)


def test_float64_sees_an_epsilon_that_float32_does_not():
    family, reference = installed_family("qwen2"), qwen2(rms_norm_eps=1e-6)
    config = attrs.evolve(reference_config(family, reference), rms_norm_eps=1.001e-6)
    assert compare_models(family, config, reference, ROWS, precision="weights").logits < FLOAT32
    with pytest.raises(ConformanceError, match="logits differs"):
        compare_models(family, config, reference, ROWS)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_held_against_the_references_own_rounding(monkeypatch, dtype):
    family = installed_family("qwen2")
    agreement = compare_models(family, None, qwen2().to(dtype), ROWS, precision="weights")
    assert 1e-4 < agreement.logits < 0.05
    assert agreement.tolerance == tolerance_of([torch.zeros(1, dtype=dtype)])
    forward = MLP.forward
    monkeypatch.setattr(MLP, "forward", lambda self, x: forward(self, x) * 1.3)
    with pytest.raises(ConformanceError, match=r"logits differs by .* from float64, more than .* the reference's own"):
        compare_models(family, None, qwen2().to(dtype), ROWS, precision="weights")


def spoil_the_cache(monkeypatch):
    append = KeyValueCache.append

    def shifted(self, layer, k, v):
        keys, values = append(self, layer, k, v)
        return keys, values.roll(1, dims=1)

    monkeypatch.setattr(KeyValueCache, "append", shifted)


def spoil_the_documents(monkeypatch):
    masks = Decoder._masks
    monkeypatch.setattr(Decoder, "_masks", lambda self, mask, *rest: masks(self, Causal(), *rest) if isinstance(mask, Documents)
                        else masks(self, mask, *rest))  # fmt: skip


@pytest.mark.parametrize(
    ("spoil", "message"),
    [(spoil_the_cache, "Qwen2ForCausalLM, prefill: logits differs"), (spoil_the_documents, "documents: logits of document 1")],
)
def test_faults_of_cache_and_documents_are_seen(monkeypatch, spoil, message):
    spoil(monkeypatch)
    with pytest.raises(ConformanceError, match=message):
        compare_models(installed_family("qwen2"), None, qwen2(), ROWS)


def test_files_of_the_reference_are_read_with_their_own_config(monkeypatch):
    """A field that its config.json spells otherwise is wrong in files alone."""
    reference, family = qwen2(), installed_family("qwen2")
    config, save = reference_config(family, reference), reference.save_pretrained

    def altered(folder):
        save(folder)
        path = folder / "config.json"
        values = json.loads(path.read_text())
        values["rope_parameters"]["rope_theta"] = 5.0
        path.write_text(json.dumps(values))

    reference.save_pretrained = altered
    compare_models(family, config, reference, ROWS)
    with pytest.raises(ConformanceError, match="qwen2 from theirs: logits differs"):
        compare_models(family, config, reference, ROWS, files=True)


def test_reference_with_other_weights_is_one_message():
    family = installed_family("qwen2")
    config = reference_config(family, qwen2())
    with pytest.raises(ConformanceError, match="the reference has other weights than the family") as caught:
        compare_models(family, config, qwen2(hidden_size=40, head_dim=8), ROWS)
    assert all("other weights" in finding.subject for finding in caught.value.findings)
    with pytest.raises(ConformanceError, match=r"(?s)the reference has other weights.*missing from the file"):
        compare_models(family, config, qwen2(num_hidden_layers=1), ROWS)


def test_reference_without_logits_is_one_message():
    family, headed = installed_family("qwen2"), qwen2()

    class Headless(type(headed)):
        def forward(self, **inputs):
            return self.model(**inputs)

    headed.__class__ = Headless
    with pytest.raises(ConformanceError, match=r"Headless: the reference's forward gives no logits.*BaseModelOutput"):
        compare_models(family, None, headed, ROWS)


def test_reference_that_wants_other_arguments_is_one_message(family, config):
    class Other(Reference):
        def forward(self, ids):
            return super().forward(ids)

    with pytest.raises(ConformanceError, match="Other: the reference cannot be called"):
        compare_models(family, config, randomize(Other(config)), TOKENS)


def test_reference_without_a_config_is_one_message(family):
    with pytest.raises(ConformanceError, match="Linear: no config to read"):
        compare_models(family, None, nn.Linear(2, 2), TOKENS)
