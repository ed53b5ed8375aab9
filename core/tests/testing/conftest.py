"""A toy family in a module of its own, sound or with one fault, as a plugin's author would have it."""

import sys
from importlib.metadata import EntryPoint

import pytest
from apr_train.family.discovery import FAMILIES, Discovery, InstalledPlugin
from apr_train.family.registry import Registry

SOUND = """
import attrs
from apr_train.family import DecoderConfig, FamilyInfo, NameMap, choose_preset, decoder_rules, hookimpl

TINY = DecoderConfig(
    vocab_size=11, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, intermediate_size=24,
    max_position_embeddings=64, rope_theta=1e4, rms_norm_eps=1e-5, tie_word_embeddings=True,
)
PRESETS = {"tiny": TINY, "untied": attrs.evolve(TINY, tie_word_embeddings=False)}
FAMILY = FamilyInfo(
    name="toy", api_version="1.0", kind="decoder", objectives=("causal-lm",), hf_classes=("ToyForCausalLM",), model_type="toy",
    presets=tuple(PRESETS), default_preset="tiny",
)

@hookimpl
def build_config(preset, header):
    return DecoderConfig.from_header(header, info=FAMILY) if header else choose_preset(PRESETS, preset, family="toy")

@hookimpl
def map_tensor_names(config, layout):
    return NameMap.for_config(config, decoder_rules(config, layout))

@hookimpl
def validate_family(header, objective):
    return []

@hookimpl
def attention_impl(config):
    return ["eager"]
"""


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """Make the toy family, with `old` in its source replaced by `new`."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def make(old="", new=""):
        assert old in SOUND
        (tmp_path / "toy_family.py").write_text(SOUND.replace(old, new) if old else SOUND)
        monkeypatch.delitem(sys.modules, "toy_family", raising=False)
        entry = EntryPoint(name="toy", value="toy_family", group=FAMILIES)
        plugin = InstalledPlugin(name="toy", distribution="toy", version="1", entry_point=entry)
        return Registry(Discovery(plugins=(plugin,))).family("toy")

    yield make
    sys.modules.pop("toy_family", None)
