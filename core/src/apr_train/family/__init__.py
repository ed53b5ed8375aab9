"""The one import of a family's plugin: everything that it needs until a model is built. Torch-free.

    from apr_train.family import DecoderConfig, FamilyInfo, NameMap, decoder_rules, hookimpl

`apr_train.model` has the parts for a `build_model` of one's own. See docs/tutorial.md.
"""

from apr_train import rules
from apr_train.checkpoint.header import Header, TensorInfo, Tie
from apr_train.errors import AprTrainError, ConfigError, Finding, NameMapError, PluginError
from apr_train.family.card import API_VERSION, FamilyInfo, Layout
from apr_train.family.config import ModelConfig, architecture, choose_preset, read_config
from apr_train.family.decoder_config import DecoderConfig
from apr_train.family.decoder_names import DECODER_LINES, FRESH_HEAD, Line, decoder_rules, tensors_have
from apr_train.family.encoder_config import EncoderConfig
from apr_train.family.hooks import hookimpl
from apr_train.family.name_map import Fill, Ignored, NameMap, Tied
from apr_train.family.name_rules import (
    FillRule,
    IgnoreRule,
    Rule,
    TieRule,
    add_offset,
    apply,
    concatenate,
    ignored,
    rename,
    rope_rows,
    split,
    stack,
    tie,
    transpose,
)
from apr_train.family.operations import AddOffset, Identity, Operation, RopeRowPermutation, Transpose
from apr_train.family.rope_scaling import LinearScaling, Llama3Scaling, LongRopeScaling, RopeScaling, YarnScaling
from apr_train.family.validate import boolean, fraction, natural, positive, positive_int, text

__all__ = [
    "API_VERSION",
    "DECODER_LINES",
    "FRESH_HEAD",
    "AddOffset",
    "AprTrainError",
    "ConfigError",
    "DecoderConfig",
    "EncoderConfig",
    "FamilyInfo",
    "Fill",
    "FillRule",
    "Finding",
    "Header",
    "Identity",
    "IgnoreRule",
    "Ignored",
    "Layout",
    "Line",
    "LinearScaling",
    "Llama3Scaling",
    "LongRopeScaling",
    "ModelConfig",
    "NameMap",
    "NameMapError",
    "Operation",
    "PluginError",
    "RopeRowPermutation",
    "RopeScaling",
    "Rule",
    "TensorInfo",
    "Tie",
    "TieRule",
    "Tied",
    "Transpose",
    "YarnScaling",
    "add_offset",
    "apply",
    "architecture",
    "boolean",
    "choose_preset",
    "concatenate",
    "decoder_rules",
    "fraction",
    "hookimpl",
    "ignored",
    "natural",
    "positive",
    "positive_int",
    "read_config",
    "rename",
    "rope_rows",
    "rules",
    "split",
    "stack",
    "tensors_have",
    "text",
    "tie",
    "transpose",
]
