"""A draft of a family concluded from a checkpoint: config keys by what the core knows of them, structure by the tensors."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

import attrs

from apr_train import rules
from apr_train.artifact.new_family.draft import LLAMA, TINY, Draft, camel, size_name
from apr_train.artifact.new_family.reference import reference_arguments
from apr_train.artifact.new_family.source import EITHER_EPSILON, KEY_NAMES, Source
from apr_train.artifact.new_family.survey import FUSED, HEAD, Sizes, Survey, survey_gguf, survey_hf
from apr_train.artifact.new_family.tiny import period, tiny_of
from apr_train.checkpoint.header import Header, Tie
from apr_train.errors import AprTrainError, ConfigError, Finding
from apr_train.family.card import Layout
from apr_train.family.decoder_config import DecoderConfig
from apr_train.family.decoder_names import DECODER_LINES
from apr_train.family.layer_patterns import LAYER_TYPES
from apr_train.family.load_plan import plan_load
from apr_train.family.reading import LAYER_NORM_EPS, QUIET
from apr_train.preflight.config_keys import config_key_findings, unknown_keys
from apr_train.preflight.config_tables import EXPERTS, OFF

_TEXT = re.compile(r"[A-Za-z0-9_.-]{1,80}")
"""A model_type that may stand in a module's source."""
_WINDOWS = ("sliding_window", "layer_types")
_NORMS = ("input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm")
_BIAS_KEYS: Mapping[str, tuple[str, ...]] = {
    "attention_bias": ("attention_bias", "use_qkv_bias", "qkv_bias", "add_qkv_bias", "use_bias", "bias", "add_bias_linear"),
    "attention_output_bias": ("attention_output_bias", "attention_out_bias", "attention_bias", "use_bias", "bias"),
    "mlp_bias": ("mlp_bias", "use_bias", "bias", "add_bias_linear"),
    "lm_head_bias": ("lm_head_bias",),
}
"""Our flag of a bias → keys that may stand for it, where the tensors and the key agree."""
_PARALLEL = ("use_parallel_residual", "parallel_attn")
_MOST_TRIALS = 40
"""More fields than that a config does not have to lose."""


def conclude(name: str, source: Source) -> Draft:
    """Make the draft; what the file says and nobody understands is a finding of it.

    Raises:
        ConfigError: for a file whose numbers give no config, whatever is left out.
    """
    header = source.header
    draft = _identity(name, source)
    _keys(draft, source)
    survey = _survey(draft, source)
    if survey is not None:
        _structure(draft, source, survey)
        header = _tie(header, survey)
    else:
        draft.remark("no tensors were looked at: their names are taken to be a Llama's, and no biases or norms were seen")
    _norm(draft, source, survey)
    _windows(draft, source)
    _fields(draft, source)
    config = _config(draft, header)
    draft.presets = {size_name(_parameters(draft, config)): config, TINY: tiny_of(config)}
    _judge(draft, header, config, survey)
    draft.reference = None if header.hf_class is None and draft.is_llama else reference_arguments(draft, source)
    return draft


def _identity(name: str, source: Source) -> Draft:
    header = source.header
    kind = header.architecture or ""
    model_type = kind if _TEXT.fullmatch(kind) else name
    own = camel(name)
    found = header.hf_class or ""
    known = found.isascii() and found.isidentifier() and len(found) <= 100
    classes = _classes(found) if known else (f"{own}ForCausalLM", f"{own}Model")
    draft = Draft(name=name, hf_classes=classes, model_type=model_type)
    if header.names == "gguf":
        draft.gguf_architectures, draft.model_type = (model_type,), name
        draft.never_permuted = header.rope_rows == "split-half"
        draft.remark(
            "a GGUF names no class of Hugging Face: hf_classes and model_type are made of the name", field="hf_classes"
        )
        if header.rope_rows is None:
            problem = "the order of the rows of q and k in its GGUF files is not known: --rope-layout has to say it"
            draft.todo(problem, field="general.architecture", found=kind)
    if not known and source.is_hf:
        draft.todo("the class is not known", field="architectures", expected="the name of a class", found=repr(found))
    if model_type != kind and source.is_hf:
        draft.todo("the model_type is no plain name", field="model_type", found=repr(kind))
    return draft


def _classes(found: str) -> tuple[str, str]:
    """A headed class and its base model, whichever of the two the file has."""
    for end in ("ForCausalLM", "LMHeadModel"):
        if found.endswith(end):
            return found, f"{found.removesuffix(end)}Model"
    if found.endswith("Model"):
        return f"{found.removesuffix('Model')}ForCausalLM", found
    return found, f"{found}Base"


def _keys(draft: Draft, source: Source) -> None:
    """Keys of this class that are other names of fields."""
    for name in KEY_NAMES:
        key = source.key_of(name) if source.is_hf else None
        if key not in (None, name) and key not in EITHER_EPSILON:
            draft.config_names[name] = str(key)
    if source.value("hidden_act") is None:
        draft.todo(
            "nothing says which activation the MLP has; silu is taken",
            field="hidden_act",
            hint='If the class takes another, say it on the card: implied={"hidden_act": "gelu_new"}.',
        )
        draft.implied["hidden_act"] = LLAMA.hidden_act


def _survey(draft: Draft, source: Source) -> Survey | None:
    tensors = source.header.tensors
    if not tensors:
        return None
    if source.header.names == "gguf":
        return survey_gguf(tensors)
    hidden, heads, inner = (source.value(name) for name in ("hidden_size", "num_attention_heads", "intermediate_size"))
    dim, pairs = source.value("head_dim"), source.value("num_key_value_heads")
    dim = dim if isinstance(dim, int) else hidden // heads
    sizes = Sizes(
        hidden=hidden,
        queries=heads * dim,
        pairs=(pairs if isinstance(pairs, int) else heads) * dim,
        inner=inner if isinstance(inner, int) else None,
    )
    survey = survey_hf(tensors, sizes)
    draft.base_prefix = survey.prefix
    if survey.blocks != "layers":
        draft.names["layers"] = survey.blocks
    own = {"layers", HEAD, *(line.stem for line in DECODER_LINES)}
    for stem, module in survey.ours.items():
        if stem in FUSED:
            draft.fused[module.stem] = FUSED[stem]
        elif stem in own and module.stem not in (stem, _separate(stem)) and "experts.gate_up" not in module.stem:
            draft.names[stem] = module.stem
    if any(module.stem.endswith("experts.gate_up_proj") for module in survey.ours.values()):
        draft.names = {stem: name for stem, name in draft.names.items() if not stem.startswith("mlp.experts.")}
    for stem in survey.guessed:
        found = survey.ours[stem].stem
        draft.remark(f"the only matrix of its shape is taken to be {stem}", field=found)
    for fused, stems in draft.fused.items():
        order = " over ".join(stem.rpartition(".")[2] for stem in stems)
        draft.remark(f"a fused matrix, taken to be {order}; some classes have the rows of each head side by side", field=fused)
    if survey.bare:
        draft.remark(
            "a base model without a head: what the class with a head puts before these names is taken to be model.",
            field="base_prefix",
        )
    return survey


def _separate(stem: str) -> str:
    path, _, leaf = stem.rpartition(".")
    return f"{path}.{{expert}}.{leaf}" if stem.startswith("mlp.experts.") else stem


def _structure(draft: Draft, source: Source, survey: Survey) -> None:
    """What only the tensors say: which norms there are, which biases, whether the MLP has a gate."""
    fixed = draft.fixed
    norms = [survey.has(stem) for stem in _NORMS]
    places: dict[tuple[int, ...], str] = {
        (1, 0, 0, 0): "parallel",
        (1, 1, 0, 0): "pre",
        (0, 1, 0, 1): "post",
        (1, 1, 1, 1): "both",
    }
    place = places.get(tuple(int(there) for there in norms))
    if place is None:
        found = ", ".join(stem for stem, there in zip(_NORMS, norms, strict=True) if there) or "none that is known"
        draft.todo("the norms of a block are of no known arrangement", field="norm_position", found=found)
    elif place == "parallel":
        fixed["parallel_residual"] = True
        key = next((key for key in _PARALLEL if source.raw.get(key) is True), None)
        if key is not None:
            draft.config_names["parallel_residual"] = key
        else:
            draft.remark("one norm a block: attention and MLP are taken to be parallel behind it", field="parallel_residual")
    elif place != "pre":
        fixed["norm_position"] = place
    if survey.has("self_attn.q_norm", "self_attn.k_norm"):
        fixed["qk_norm"] = _qk_norm(source, survey)
    if survey.has("mlp.up_proj") and not survey.has("mlp.gate_proj") and "mlp.experts.gate_proj" not in survey.ours:
        fixed["gated_mlp"] = False
    if survey.has("embed_positions"):
        fixed["learned_positions"] = True
    _biases(draft, source, survey)
    _implied_sizes(draft, source, survey)


def _qk_norm(source: Source, survey: Survey) -> str:
    heads, rows = source.value("num_attention_heads"), survey.ours["self_attn.q_norm"].rows
    q = next((survey.ours[stem].rows for stem in ("self_attn.q_proj",) if stem in survey.ours), None)
    whole = rows == q if q else rows != source.value("head_dim")
    return "projection" if whole and heads != 1 else "head"


_BIASED = {
    "attention_bias": ("self_attn.q_proj", "qkv"),
    "attention_output_bias": ("self_attn.o_proj",),
    "mlp_bias": ("mlp.up_proj", "gate_up"),
    "lm_head_bias": (HEAD,),
}


def _biases(draft: Draft, source: Source, survey: Survey) -> None:
    """A bias that the tensors have: read from the key that says so, else fixed."""
    for name, stems in _BIASED.items():
        modules = [survey.ours[stem] for stem in stems if stem in survey.ours]
        if not modules:
            continue
        has = any(module.bias for module in modules)
        key = next((key for key in _BIAS_KEYS[name] if source.raw.get(key) is has), None) if source.is_hf else None
        if key is not None and key != name and (has or key == "attention_bias") and name not in source.raw:
            draft.config_names[name] = key
        elif has and key is None:
            draft.fixed[name] = True
        if name == "lm_head_bias" and (key is not None) and has:
            draft.config_keys.append(name)


def _implied_sizes(draft: Draft, source: Source, survey: Survey) -> None:
    """Sizes that the file leaves out and its matrices show, as what the class makes of other sizes."""
    hidden, heads = source.value("hidden_size"), source.value("num_attention_heads")
    up, k = survey.ours.get("mlp.up_proj"), survey.ours.get("self_attn.k_proj")
    inner, fields = source.value("intermediate_size"), draft.implied
    if inner is None and up is not None and up.weight is not None and up.weight[1] == hidden and up.rows % hidden == 0:
        fields["intermediate_size"] = f"{up.rows // hidden}*hidden_size"
    qkv, dim = survey.ours.get("qkv"), source.value("head_dim")
    width = heads * (dim if isinstance(dim, int) else hidden // heads)
    whole = (k is not None and k.rows == width) or (qkv is not None and qkv.rows == 3 * width)
    if source.value("num_key_value_heads") is None and whole:
        fields["num_key_value_heads"] = "num_attention_heads"
    for name in ("intermediate_size", "num_key_value_heads"):
        if name in fields:
            draft.remark("the file does not say, its matrices do: the card implies it", field=name, found=fields[name])


def _tie(header: Header, survey: Survey) -> Header:
    """The tie, where the head has a name by which `checkpoint.tie` does not know it."""
    says = isinstance(header.config.get("tie_word_embeddings"), bool)
    if says or not survey.has(HEAD) or header.tie.value is not True or header.tie.reason != "lm_head absent":
        return header
    return attrs.evolve(header, tie=Tie(None, "a head of another name"))


def _norm(draft: Draft, source: Source, survey: Survey | None) -> None:
    """RMSNorm or LayerNorm: by the norms' biases, else by the name that the config has for the epsilon."""
    norms = [module for stem, module in (survey.ours if survey else {}).items() if stem == "norm" or stem in _NORMS]
    biased = any(module.bias for module in norms)
    either = next((key for key in EITHER_EPSILON if source.raw.get(key) is not None), None) if source.is_hf else None
    rms = source.value("rms_norm_eps") is not None
    layer = not rms and either is None and source.value(LAYER_NORM_EPS) is not None
    if biased or layer:
        draft.fixed["norm"] = "layer"
        draft.config_keys.append(LAYER_NORM_EPS)
        if norms and not biased:
            draft.fixed["norm_bias"] = False
            draft.remark("norms without a bias, and the config has layer_norm_eps: taken to be LayerNorm", field="norm")
        key = either or (source.key_of(LAYER_NORM_EPS) if source.is_hf else None)
        if key not in (None, LAYER_NORM_EPS):
            draft.config_names[LAYER_NORM_EPS] = str(key)
    elif either is not None and not rms:
        draft.config_names["rms_norm_eps"] = either
        draft.remark("norms without a bias, of an epsilon that names no kind: taken to be RMSNorm", field=either)
    if draft.fixed.get("norm") != "layer":
        draft.config_names.pop(LAYER_NORM_EPS, None)


def _windows(draft: Draft, source: Source) -> None:
    config = source.header.config
    listed: Any = config.get("layer_types")
    kinds = set(map(str, listed)) if isinstance(listed, list) else set()
    if kinds - {"full_attention"}:
        draft.config_keys += [name for name in _WINDOWS if config.get(name) is not None]
        step = period(listed)
        if kinds <= set(LAYER_TYPES) and step < len(listed):
            draft.layer_pattern = tuple(listed[:step])
        return
    if kinds or not config.get("sliding_window") or config.get("use_sliding_window") is False:
        return
    draft.config_keys.append("sliding_window")
    every: Any = config.get("sliding_window_pattern", config.get("_sliding_window_pattern"))
    if isinstance(every, int) and 1 < every <= 64:
        draft.layer_pattern = ("sliding_attention",) * (every - 1) + ("full_attention",)
    elif config.get("use_sliding_window") is not True or not isinstance(config.get("max_window_layers"), int):
        draft.layer_pattern = ("sliding_attention",)
        draft.remark("the file has a window and does not say in which layers: taken to be all", field="sliding_window")


def _fields(draft: Draft, source: Source) -> None:
    """Every field of the core's config that the file has under its own name, at a value that does something."""
    config = source.header.config
    experts = source.value("num_experts") not in OFF
    for item in attrs.fields(DecoderConfig):
        value, name = config.get(item.name), item.name
        if not item.metadata.get(QUIET) or value is None or name in (*_WINDOWS, LAYER_NORM_EPS, *draft.fixed):
            continue
        if name in EXPERTS or name in ("num_experts", "router_aux_loss_coef"):
            if experts and name not in draft.config_keys:
                draft.config_keys.append(name)
        elif value != item.default and not _is_default(item.default, value) and name not in draft.config_keys:
            draft.config_keys.append(name)
    if experts and source.value("norm_topk_prob") is None:
        draft.todo(
            "nothing says whether the weights of a token's experts are made to add up to one",
            field="norm_topk_prob",
            hint='Say it on the card: fixed={"norm_topk_prob": True}, or False.',
        )


def _is_default(default: Any, value: Any) -> bool:
    if isinstance(default, tuple):
        return bool(value == list(default))
    return default is None and (value == 0 or (isinstance(value, list) and all(item == 1 for item in value)))


_STANDINS: Mapping[str, Any] = {
    "rope_theta": LLAMA.rope_theta,
    "rms_norm_eps": LLAMA.rms_norm_eps,
    LAYER_NORM_EPS: 1e-5,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": False,
    "norm_topk_prob": True,
    "hidden_act": LLAMA.hidden_act,
}


def _config(draft: Draft, header: Header) -> DecoderConfig:
    """The config that the family reads from the file; what is missing or refused is a finding, and something stands in.

    Raises:
        ConfigError: when nothing can stand in.
    """
    for _ in range(_MOST_TRIALS):
        try:
            return DecoderConfig.from_header(header, info=draft.info())
        except ConfigError as error:
            header = _without(draft, header, error)
    return DecoderConfig.from_header(header, info=draft.info())


def _without(draft: Draft, header: Header, error: ConfigError) -> Header:
    values = dict(header.config)
    changed = False
    for finding in error.findings:
        name = (finding.field or finding.subject).partition(".")[0]
        if name not in {item.name for item in attrs.fields(DecoderConfig)}:
            continue
        absent = finding.rule == rules.ARCH_003
        if name not in {known.field for known in draft.findings if known.severity == "error"}:
            hint = f'If the class takes a value where a file is silent, say it on the card: implied={{"{name}": …}}.'
            draft.findings.append(attrs.evolve(finding, subject="", field=name, hint=hint if absent else finding.hint))
        if absent:
            if (value := _standin(name, values)) is not None:
                values[name], changed = value, True
            continue
        keys = {name, draft.config_names.pop(name, name)}
        changed |= bool(keys & values.keys()) or name in draft.fixed or name in draft.config_keys
        values = {key: value for key, value in values.items() if key not in keys}
        draft.fixed.pop(name, None)
        draft.config_keys = [key for key in draft.config_keys if key != name]
        if name in _WINDOWS:
            draft.layer_pattern = ()
            draft.config_keys = [key for key in draft.config_keys if key not in _WINDOWS]
    if not changed:
        raise error
    return attrs.evolve(header, config=values)


def _standin(name: str, values: Mapping[str, Any]) -> Any:
    sizes = {"num_key_value_heads": values.get("num_attention_heads")}
    inner = values.get("hidden_size")
    sizes["intermediate_size"] = 4 * inner if isinstance(inner, int) else None
    return sizes.get(name, _STANDINS.get(name))


def _parameters(draft: Draft, config: DecoderConfig) -> int:
    shapes = draft.name_map(config, Layout(names="gguf" if draft.gguf_architectures else "hf")).parameters
    return sum(math.prod(shape) for shape in shapes.values())


def _judge(draft: Draft, header: Header, config: DecoderConfig, survey: Survey | None) -> None:
    """The preflight's own verdict on the file, and the name map's: what either finds is left to do."""
    known = {finding.field for finding in draft.findings if finding.severity == "error"}
    found = config_key_findings(header, config, draft.info())
    for finding in found:
        if finding.field not in known and finding.severity == "error":
            draft.findings.append(attrs.evolve(finding, subject="", hint=_HINT))
    for key in unknown_keys(header, config, draft.info()):
        draft.findings.append(_unknown_key(key, header.config.get(key, header.further.get(key))))
    if survey is None:
        return
    stacked = any(name.endswith("experts.gate_up_proj") for name in header.tensors)
    layout = Layout(names=header.names, experts="stacked" if stacked else "separate", bare=survey.bare)
    try:
        plan = plan_load(draft.name_map(config, layout), header.tensors, where="")
    except AprTrainError as error:
        draft.findings += [attrs.evolve(finding, subject="") for finding in error.findings]
        return
    draft.findings += _by_module(plan.findings)


_HINT = "Say it on the card, or answer build_model with mathematics of your own; docs/hooks.md."


def _unknown_key(key: str, value: Any) -> Finding:
    return Finding(
        rule=rules.PREFLIGHT_004,
        field=key,
        problem="a key that the core does not know",
        found=f"{value!r:.80}",
        hint="Find out what the class does with it: what changes the mathematics must be on the card.",
    )


def _by_module(findings: Iterable[Finding]) -> list[Finding]:
    """One finding for a tensor of all layers and experts."""
    groups: dict[tuple[str, str], list[Finding]] = {}
    for finding in findings:
        name = re.sub(r"(?<=\.)\d+(?=\.)", "N", finding.field)
        groups.setdefault((finding.problem, name), []).append(finding)
    made = []
    for (_, name), each in groups.items():
        count = f" ({len(each)} tensors)" if len(each) > 1 else ""
        hint = "Say what it is in NAMES, or in rules of its own; docs/hooks.md, map_tensor_names."
        made.append(attrs.evolve(each[0], subject="", field=name, problem=each[0].problem + count, hint=hint))
    return made
