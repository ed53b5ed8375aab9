"""Families in modules of their own, as the registry would find them installed."""

import importlib.metadata
import sys

import pytest
from apr_train.family.discovery import FAMILIES, Discovery, InstalledPlugin
from apr_train.family.registry import Registry

FAMILY = """
from apr_train.family import ConfigError, DecoderConfig, FamilyInfo, Finding, NameMap, hookimpl, rename

FAMILY = FamilyInfo(
    name="{name}", api_version="1.0", kind="{kind}", objectives=("causal-lm",), hf_classes=("{name}ForCausalLM",),
    model_type="{name}", gguf_architectures=("{name}-gguf",), presets=("tiny", "large"), default_preset="tiny",
)

@hookimpl
def build_config(preset, header):
    {build_config}

@hookimpl
def map_tensor_names(config, layout):
    {map_tensor_names}

@hookimpl
def validate_family(header, objective):
    {validate_family}

@hookimpl{mark}
def attention_impl(config):
    {attention_impl}

@hookimpl
def build_model(config, attention):
    {build_model}
"""
CONFIG = (
    "DecoderConfig(vocab_size=8, hidden_size=4, num_hidden_layers=1, num_attention_heads=1, num_key_value_heads=1, "
    "intermediate_size=4, max_position_embeddings=8, rope_theta=1e4, rms_norm_eps=1e-5, tie_word_embeddings=True)"
)
ANSWERS = {
    "kind": "decoder",
    "mark": "",
    "build_config": f"return {CONFIG} if preset else DecoderConfig.from_header(header)",
    "map_tensor_names": "return NameMap.for_config(config, [rename('n', 'norm.weight', 'hidden_size')])",
    "validate_family": "return [Finding(rule='R-1', subject=header.path, problem=objective)]",
    "attention_impl": "return ['sdpa', 'eager']",
    "build_model": "return None",
}


@pytest.fixture
def make_registry(tmp_path, monkeypatch):
    """Write modules into a fresh folder and make a registry of them; their names are new each time."""
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)

    def write(name, text):
        module = f"reg_{tmp_path.name}_{name}".replace("-", "_")
        (tmp_path / f"{module}.py").write_text(text)
        point = importlib.metadata.EntryPoint(name, module, FAMILIES)
        return InstalledPlugin(name=name, distribution=f"dist-{name}", version="2.1", entry_point=point)

    def make(families):
        plugins = [
            write(name, text if isinstance(text, str) else FAMILY.format(**{**ANSWERS, "name": name, **text}))
            for name, text in families.items()
        ]
        return Registry(Discovery(plugins=tuple(plugins)))

    yield make
    for name in set(sys.modules) - before:
        if name.startswith("reg_"):
            del sys.modules[name]


@pytest.fixture
def without():
    """`without(hook)` → the text of a family's module that does not have that hook."""

    def make(hook):
        text = FAMILY.format(**{**ANSWERS, "name": "one"})
        place = text.index(f"def {hook}(")
        start, end = text.rindex("@hookimpl", 0, place), text.find("@hookimpl", place)
        return text[:start] + (text[end:] if end >= 0 else "")

    return make
