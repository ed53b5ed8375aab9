"""Each key of a config.json, changed: where transformers' logits change, the change is carried or refused, never lost."""

import json

import pytest
import torch
import transformers
from apr_train.artifact.metadata import hf_config
from apr_train.checkpoint.open import open_checkpoint
from apr_train.family.registry import Registry
from apr_train.preflight import PreflightInput, preflight

SMALL = {
    **{"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4},
    **{"max_position_embeddings": 128},
}
MODELS = {
    "LlamaForCausalLM": transformers.LlamaConfig(**SMALL, num_key_value_heads=2),
    "Qwen2ForCausalLM": transformers.Qwen2Config(**SMALL, num_key_value_heads=2),
    "RobertaForMaskedLM": transformers.RobertaConfig(**SMALL, type_vocab_size=1),
}
BESIDE = {
    **{"is_causal": False, "use_bidirectional_attention": True, "is_decoder": True, "attention_bias": True, "mlp_bias": True},
    **{"hidden_act": "gelu_new", "rope_theta": 100.0, "rope_scaling": {"type": "linear", "factor": 2.0}, "head_dim": 16},
    **{"rms_norm_eps": 0.5, "layer_norm_eps": 0.5, "pad_token_id": 3, "partial_rotary_factor": 0.5},
    "rope_parameters": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4},
}
"""Values for keys that the class may not list, or that another value than the next one tests better."""
TOKENS = torch.arange(5, 37)[None]


def changed(value):
    """Another value of the same type; None where the type has none."""
    if isinstance(value, bool):
        return not value
    return value + 1 if isinstance(value, int) else value * 2 + 0.1 if isinstance(value, float) else None


def logits(name, config, state):
    model = getattr(transformers, name)(config).eval()
    model.load_state_dict(state)
    with torch.no_grad():
        return model(TOKENS, return_dict=True).logits


def carried(name, report, values, state):
    """Whether a config.json that is written from what was read means the same to transformers as the file."""
    if report.config is None:
        return False
    config_class, info = type(MODELS[name]), report.family.info
    ids = {key: MODELS[name].to_dict()[key] for key in MODELS[name].to_dict() if key.endswith("_token_id")}
    exported = config_class(**{**ids, **hf_config(report.config, info)})
    return torch.allclose(logits(name, exported, state), logits(name, config_class(**values), state), atol=1e-6)


@pytest.mark.rule("PREFLIGHT-003")
@pytest.mark.parametrize("name", MODELS)
def test_no_key_that_changes_transformers_logits_is_lost(name, tmp_path):
    torch.manual_seed(0)
    model, registry = getattr(transformers, name)(MODELS[name]), Registry.discover()
    model.save_pretrained(tmp_path)
    state, written = model.state_dict(), json.loads((tmp_path / "config.json").read_text())
    before, full = logits(name, MODELS[name], state), MODELS[name].to_dict()
    other = {key: changed(value) for key, value in full.items() if changed(value) is not None} | BESIDE
    lost, differing = [], []
    for key, value in other.items():
        values = {**written, key: value}
        if key in ("rope_theta", "rope_scaling", "partial_rotary_factor"):
            values.pop("rope_parameters", None)
            values.setdefault("rope_theta", 1e4)
        (tmp_path / "config.json").write_text(json.dumps(values))
        try:
            same = torch.allclose(logits(name, type(MODELS[name]).from_pretrained(tmp_path), state), before, atol=1e-6)
        except Exception:  # transformers itself cannot build or run it with these weights: there is nothing to compare
            continue
        with open_checkpoint(tmp_path) as checkpoint:
            report = preflight(PreflightInput(registry=registry, header=checkpoint.header))
        refused = any(finding.severity == "error" for finding in report.findings)
        differing += [] if same else [key]
        lost += [] if same or refused or carried(name, report, values, state) else [key]
    assert lost == []
    assert len(differing) >= 3, differing
