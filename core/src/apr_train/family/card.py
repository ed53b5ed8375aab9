"""The data card of a family, and the layouts that its checkpoints come in. Torch-free."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal, get_args

from attrs import field, frozen

from apr_train.checkpoint.header import Header, Kind, Names, RopeRows, kind_of
from apr_train.errors import PluginError

API_VERSION = "1.0"
"""The hook contract that this core speaks; a plugin of another major version is refused."""

ObjectiveName = Literal["causal-lm", "masked-lm"]
"""The training objectives, which apr_train.data.objectives has as values."""
DEFAULT_OBJECTIVE: ObjectiveName = "causal-lm"
"""The objective of a run whose family is not known."""

_TEXTS = ("name", "model_type", "base_prefix")
_OBJECTS = ("absent_keys", "fixed", "implied", "config_names", "fim_tokens", "parameter_counts")


@frozen(kw_only=True)
class FamilyInfo:
    """A family's data card; every plugin module exposes one as `FAMILY`.

    Raises:
        PluginError: naming the field that is wrong.
    """

    name: str
    """What `--arch` takes; equal to the entry point's name."""
    api_version: str
    """The hook contract that the plugin was written for, `major.minor`. Mandatory: no default."""
    kind: Kind
    """decoder: causal attention, rotary positions; encoder: bidirectional."""
    objectives: tuple[ObjectiveName, ...]
    """What the family can be trained on; the first is the default."""
    hf_classes: tuple[str, ...]
    """Hugging Face classes whose files are this family's; the first is written at an export."""
    model_type: str
    """`model_type` of a Hugging Face config.json."""
    gguf_architectures: tuple[str, ...] = ()
    """`general.architecture` of GGUF files that are this family's."""
    presets: tuple[str, ...] = field(default=())
    """Names that `build_config(preset=…)` answers."""
    default_preset: str
    """The preset of a run without `--init` and `--preset`."""
    parameter_counts: Mapping[str, int] = field(factory=dict, hash=False)
    """Preset → the number of its parameters, a tied head counted once, as the model's makers or another implementation give
    it; the test kit compares."""
    base_prefix: str = "model."
    """Prefix that Hugging Face's headed class puts before the base model's tensor names."""
    absent_keys: Mapping[str, Any] = field(factory=dict, hash=False)
    """What Hugging Face's class takes for keys that a config.json leaves out, where it changes the mathematics
    (`{"use_sliding_window": False}`: a window that is merely mentioned is not used)."""

    config_keys: tuple[str, ...] = ()
    """Config fields made with `architecture` that this family's files decide (`("sliding_window", "layer_types")`): they are
    read and written; all others are as `fixed` says, or a Llama's, and a file that says otherwise is refused."""
    fixed: Mapping[str, Any] = field(factory=dict, hash=False)
    """Config fields that the architecture decides, whether its files have a key for them or not (`{"qk_norm": "head"}`); a
    file that says otherwise is refused."""
    implied: Mapping[str, Any] = field(factory=dict, hash=False)
    """Config field → what Hugging Face's class takes where a file leaves the field out: a symbolic size
    (`{"intermediate_size": "4*hidden_size"}`), a number or a flag; of a field of text the text itself."""
    config_names: Mapping[str, str] = field(factory=dict, hash=False)
    """Config field → its key in this class's config.json, where that is another (`{"hidden_size": "n_embd"}`); several fields
    may share a key (`use_bias`)."""
    layer_pattern: tuple[str, ...] = ()
    """Types of the layers where a file with a window does not list them, repeated (`("sliding_attention",)`); empty: the
    architecture has no windows."""
    never_permuted: bool = False
    """Whether no converter puts this architecture's rows of q and k into adjacent pairs."""
    fim_tokens: Mapping[str, str] = field(factory=dict, hash=False)
    """Role (prefix, middle, suffix, pad) → the tokenizer's token, of models that were trained to fill holes."""
    adapter_targets: tuple[str, ...] = ()
    """Ends of the names of the parameters that adapters are put on by default; empty: every matrix of a block."""

    def __attrs_post_init__(self) -> None:
        for name in (
            "objectives",
            "hf_classes",
            "gguf_architectures",
            "presets",
            "config_keys",
            "layer_pattern",
            "adapter_targets",
        ):
            value = getattr(self, name)
            if not isinstance(value, tuple) or not all(isinstance(item, str) for item in value):
                self._refuse(name, "a tuple of strings", value)
        for name, kind, expected in (
            *((name, str, "a string") for name in _TEXTS),
            *((name, Mapping, "an object") for name in _OBJECTS),
            ("never_permuted", bool, "true or false"),
        ):
            if not isinstance(getattr(self, name), kind):
                self._refuse(name, expected, getattr(self, name))
        self._check_fields()
        if not isinstance(self.api_version, str) or not re.fullmatch(r"\d+\.\d+", self.api_version):
            self._refuse("api_version", "a string major.minor", self.api_version)
        if self.kind not in get_args(Kind):
            self._refuse("kind", " or ".join(get_args(Kind)), self.kind)
        if not self.objectives or set(self.objectives) - set(get_args(ObjectiveName)):
            self._refuse("objectives", f"some of {', '.join(get_args(ObjectiveName))}", self.objectives)
        if not self.hf_classes:
            self._refuse("hf_classes", "at least one class", self.hf_classes)
        if self.default_preset not in self.presets:
            self._refuse("default_preset", f"one of the presets: {', '.join(self.presets)}", self.default_preset)
        self._check_counts()

    def _check_counts(self) -> None:
        """Refuse a number of parameters of a preset that is not there, or that is no number."""
        for name, count in self.parameter_counts.items():
            if name not in self.presets:
                self._refuse("parameter_counts", f"only presets: {', '.join(self.presets)}", name)
            if type(count) is not int or count < 1:
                self._refuse("parameter_counts", f"an integer > 0 for {name}", count)

    def _check_fields(self) -> None:
        """Refuse names of fields that are no text, and a field that the files and the architecture decide both."""
        for name in ("fixed", "implied", "config_names", "fim_tokens", "absent_keys"):
            wrong = [key for key in getattr(self, name) if not isinstance(key, str)]
            if wrong:
                self._refuse(name, "names as text", wrong[0])
        for name in ("config_names", "fim_tokens"):
            wrong = [value for value in getattr(self, name).values() if not isinstance(value, str)]
            if wrong:
                self._refuse(name, "text for every name", wrong[0])
        if both := [name for name in self.config_keys if name in self.fixed]:
            self._refuse("config_keys", "no field that `fixed` has", both[0])
        if strange := [kind for kind in self.layer_pattern if kind not in ("full_attention", "sliding_attention")]:
            self._refuse("layer_pattern", "full_attention or sliding_attention", strange[0])

    def claims(self, header: Header) -> bool:
        """Whether a file is this family's: by Hugging Face class, else by architecture; the tensors' structure has a veto."""
        structure = kind_of(header)
        if structure is not None and structure != self.kind:
            return False
        if header.hf_class is not None:
            return header.hf_class in self.hf_classes
        return header.architecture is not None and header.architecture in (self.model_type, *self.gguf_architectures)

    def layout_of(self, header: Header) -> Layout:
        """The layout of a file of this family: bare without a name under `base_prefix`, stacked by its experts' name."""
        bare = header.names == "hf" and not any(name.startswith(self.base_prefix) for name in header.tensors)
        stacked = header.names == "hf" and any(name.endswith("experts.gate_up_proj") for name in header.tensors)
        experts: Literal["separate", "stacked"] = "stacked" if stacked else "separate"
        return Layout(names=header.names, rope_rows=header.rope_rows or "split-half", experts=experts, bare=bare)

    def _refuse(self, field_name: str, expected: str, found: object) -> None:
        problem = f"FAMILY.{field_name} is wrong"
        raise PluginError(problem, where=self.name, expected=expected, found=repr(found))


@frozen(kw_only=True)
class Layout:
    """The spelling of a checkpoint that a name map is for."""

    names: Names = "hf"
    """`hf` (also what `.apr` uses) or `gguf`."""
    rope_rows: RopeRows = "split-half"
    """Order of the rows of q and k in the file; the model always has split halves."""
    experts: Literal["separate", "stacked"] = "separate"
    """Of `hf` names: a tensor for each expert, as files have them, or one for all, as transformers has them in memory."""
    bare: bool = False
    """Hugging Face base-model file: names without `FamilyInfo.base_prefix`, and no head."""
