"""A file's tensors by module, each under the name that the core's decoder has for it, as far as names and shapes tell."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import Literal

from attrs import define, field, frozen

from apr_train.checkpoint.header import TensorInfo
from apr_train.family.decoder_names import DECODER_LINES, HF_PREFIX
from apr_train.family.name_rules import EXPERT

Group = Literal["attention", "mlp", "norm", "table", ""]
QKV, GATE_UP = "qkv", "gate_up"
"""Fused modules: q over k over v, gate over up."""
FUSED: Mapping[str, tuple[str, ...]] = {
    QKV: ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    GATE_UP: ("mlp.gate_proj", "mlp.up_proj"),
}
HEAD = "lm_head"
_SIMPLE = re.compile(r"[A-Za-z0-9_.-]{1,120}")
"""Names of tensors that may stand in a module's source; any other stays unmatched."""
_BUFFERS = ("rotary_emb.inv_freq",)
"""Ends of the names of saved tables that `decoder_rules` ignores by itself."""
_ATTENTION = re.compile(r"attn|attention")
_MLP = re.compile(r"mlp|ffn|feed_forward|moe")

WORDS: Mapping[str, str] = {
    "embed_tokens": "embed_tokens wte word_embeddings tok_embeddings embed_in",
    "embed_positions": "embed_positions wpe position_embeddings",
    "norm": "norm ln_f norm_f final_layernorm final_layer_norm final_norm",
    "lm_head": "lm_head embed_out output",
    "input_layernorm": "input_layernorm ln_1 norm_1 attention_norm attn_norm",
    "post_attention_layernorm": "post_attention_layernorm ln_2 norm_2 ffn_norm mlp_norm",
    "pre_feedforward_layernorm": "pre_feedforward_layernorm",
    "post_feedforward_layernorm": "post_feedforward_layernorm",
    "self_attn.q_proj": "q_proj wq query",
    "self_attn.k_proj": "k_proj wk key",
    "self_attn.v_proj": "v_proj wv value",
    "self_attn.o_proj": "o_proj out_proj wo dense c_proj",
    "self_attn.q_norm": "q_norm",
    "self_attn.k_norm": "k_norm",
    QKV: "qkv_proj Wqkv",
    "mlp.gate_proj": "gate_proj w1",
    "mlp.up_proj": "up_proj w3 c_fc fc1 fc_in dense_h_to_4h",
    "mlp.down_proj": "down_proj w2 c_proj fc2 fc_out dense_4h_to_h",
    GATE_UP: "gate_up_proj",
    "mlp.gate": "gate router",
    "mlp.experts.gate_proj": "gate_proj w1",
    "mlp.experts.up_proj": "up_proj w3",
    "mlp.experts.down_proj": "down_proj w2",
    "mlp.shared_expert.gate_proj": "gate_proj",
    "mlp.shared_expert.up_proj": "up_proj",
    "mlp.shared_expert.down_proj": "down_proj",
    "mlp.shared_expert_gate": "shared_expert_gate",
}
"""Our module → last parts of the names that implementations have for it; which of two it is, the path and the shape tell."""


@define
class Module:
    """One module of the file in all of its layers."""

    stem: str
    """Without `.weight`; of a block's module without the block, with `{expert}` for an expert's number."""
    in_block: bool
    weight: tuple[int, ...] | None = None
    bias: tuple[int, ...] | None = None
    varies: bool = False
    """Whether its shape is another in another layer."""
    names: list[str] = field(factory=list)
    """Of its tensors in the file."""

    @property
    def rows(self) -> int:
        """Of the weight."""
        return self.weight[0] if self.weight else 0


@frozen(kw_only=True)
class Survey:
    """The modules of a file, matched or not."""

    prefix: str
    """Before the names of the base model, with its dot."""
    blocks: str
    """Name of the list of blocks, below the prefix."""
    bare: bool
    """Whether nothing has a prefix."""
    ours: Mapping[str, Module]
    """Our stem → the module; `qkv` and `gate_up` for fused ones."""
    unmatched: tuple[Module, ...]
    guessed: tuple[str, ...] = ()
    """Our stems that were matched by shape alone."""

    def has(self, *stems: str) -> bool:
        """Whether all of these were found."""
        return all(stem in self.ours for stem in stems)


@frozen(kw_only=True)
class Sizes:
    """The sizes that shapes are compared with; None where the config does not say."""

    hidden: int
    queries: int
    """Rows of q."""
    pairs: int | None
    """Rows of k and of v."""
    inner: int | None
    """Width inside the MLP."""


def survey_hf(tensors: Mapping[str, TensorInfo], sizes: Sizes) -> Survey:
    """Match a file with Hugging Face's kind of names: `[prefix.]blocks.N.module.weight`."""
    container = _container(tensors)
    path, blocks = _prefix(container, tensors)
    modules = _modules(tensors, container)
    ours, left = _by_word(modules)
    ours, left = _settled(ours, left)
    guessed = _by_shape(ours, left, sizes)
    names = {HEAD} & set(ours)
    bare = not path and not names
    return Survey(
        prefix=path or HF_PREFIX,
        blocks=blocks,
        bare=bare,
        ours=ours,
        unmatched=tuple(module for module in left if not module.stem.endswith(_BUFFERS)),
        guessed=guessed,
    )


def survey_gguf(tensors: Mapping[str, TensorInfo]) -> Survey:
    """Match a file with llama.cpp's names, which are those of the core's own table."""
    modules = {(module.in_block, module.stem): module for module in _modules(tensors, "blk")}
    both = (True, "post_ffw_norm") in modules and (True, "ffn_norm") in modules
    post = (True, "post_attention_norm") in modules
    ours: dict[str, Module] = {}
    for line in DECODER_LINES:
        module = modules.get((line.block, line.gguf))
        is_mlp_norm = line.stem == "pre_feedforward_layernorm"
        if module is None or (line.gguf == "ffn_norm" and is_mlp_norm != (both or post)):
            continue
        if module.varies or len(module.weight or ()) != len(line.shape) + line.expert:
            continue
        ours[line.stem] = modules.pop((line.block, line.gguf))
    if (head := modules.pop((False, "output"), None)) is not None:
        ours[HEAD] = head
    left = tuple(modules.values())
    return Survey(prefix=HF_PREFIX, blocks="layers", bare=False, ours=ours, unmatched=left)


def _container(tensors: Iterable[str]) -> str:
    """The dotted name of the list that most tensors are in: `model.layers`."""
    counts: Counter[str] = Counter()
    for name in tensors:
        parts = name.split(".")
        place = next((number for number, part in enumerate(parts) if number and part.isascii() and part.isdecimal()), None)
        if place is not None and _SIMPLE.fullmatch(name):
            counts[".".join(parts[:place])] += 1
    return counts.most_common(1)[0][0] if counts else f"{HF_PREFIX}layers"


def _prefix(container: str, tensors: Iterable[str]) -> tuple[str, str]:
    """The longest beginning of the list's name that tensors outside of it have, too, and the rest of the name."""
    parts = container.split(".")
    outside = [name for name in tensors if not name.startswith(f"{container}.")]
    for length in range(len(parts) - 1, 0, -1):
        prefix = ".".join(parts[:length]) + "."
        if any(name.startswith(prefix) for name in outside):
            return prefix, ".".join(parts[length:])
    return "", container


def _modules(tensors: Mapping[str, TensorInfo], container: str) -> list[Module]:
    found: dict[tuple[bool, str], Module] = {}
    block = re.compile(rf"{re.escape(container)}\.\d+\.(.+)", re.DOTALL)
    path, _ = _prefix(container, tensors)
    for name, info in tensors.items():
        inside = block.fullmatch(name)
        stem = inside[1] if inside else name.removeprefix(path)
        stem = re.sub(r"(?<=experts\.)\d+(?=\.)", lambda _: EXPERT, stem)
        stem, _, leaf = stem.rpartition(".")
        if leaf not in ("weight", "bias"):
            stem, leaf = f"{stem}.{leaf}".removeprefix("."), "weight"
        module = found.setdefault((inside is not None, stem), Module(stem, inside is not None))
        module.names.append(name)
        before = getattr(module, leaf)
        module.varies |= before not in (None, info.shape)
        setattr(module, leaf, info.shape)
    return list(found.values())


def _by_word(modules: list[Module]) -> tuple[dict[str, Module], list[Module]]:
    """The modules whose names are known ones, and the rest."""
    ours: dict[str, Module] = {}
    left = []
    for module in modules:
        stem = _known(module)
        if stem is None or stem in ours:
            left.append(module)
        else:
            ours[stem] = module
    return ours, left


def _known(module: Module) -> str | None:
    if not _SIMPLE.fullmatch(module.stem.replace(EXPERT, "0")) or module.varies:
        return None
    path, _, word = module.stem.rpartition(".")
    group, rank = _group(path, module), len(module.weight or ())
    for ours, words in WORDS.items():
        if word in words.split() and _fits(ours, group, rank, module, path):
            return ours
    return None


def _group(path: str, module: Module) -> Group:
    if not module.in_block:
        return "table"
    if _ATTENTION.search(path):
        return "attention"
    return "mlp" if _MLP.search(path) else ""


def _fits(ours: str, group: Group, rank: int, module: Module, path: str) -> bool:
    """Whether a module of this place and of so many dimensions can be ours of that name."""
    if ours in ("embed_tokens", "embed_positions", HEAD, "norm"):
        return not module.in_block and rank == (1 if ours == "norm" else 2)
    if ours.endswith("_layernorm"):
        return module.in_block and not path and rank == 1
    if ours.startswith("self_attn.") or ours == QKV:
        return group == "attention" and rank == (1 if ours.endswith("_norm") else 2)
    expert, shared = EXPERT in module.stem, "shared_expert" in path
    return (
        group == "mlp"
        and rank == 2
        and expert == ours.startswith("mlp.experts.")
        and shared == ours.startswith("mlp.shared_expert.")
    )


def _settled(ours: dict[str, Module], left: list[Module]) -> tuple[dict[str, Module], list[Module]]:
    """A first matrix without a third beside it is no gate; a stack of all experts is the core's own business."""
    if "mlp.gate_proj" in ours and "mlp.up_proj" not in ours and GATE_UP not in ours:
        ours = {**ours, "mlp.up_proj": ours["mlp.gate_proj"]}
        del ours["mlp.gate_proj"]
    stacked = [module for module in left if module.stem.endswith(("experts.gate_up_proj", "experts.down_proj"))]
    if len(stacked) == 2 and all(len(module.weight or ()) == 3 for module in stacked):
        left = [module for module in left if module not in stacked]
        ours |= dict(zip(("mlp.experts.gate_proj", "mlp.experts.down_proj"), stacked, strict=True))
        ours["mlp.experts.up_proj"] = stacked[0]
    return ours, left


def _by_shape(ours: dict[str, Module], left: list[Module], sizes: Sizes) -> tuple[str, ...]:
    """Match what only one module of the block can be: one matrix left of that shape, and one of ours that has it."""
    wanted = _missing(ours, sizes)
    free: dict[tuple[Group, tuple[int, ...]], list[Module]] = defaultdict(list)
    for module in left:
        if module.in_block and module.weight and not module.varies and _SIMPLE.fullmatch(module.stem):
            free[_group(module.stem, module), module.weight].append(module)
    guessed = []
    for place, stems in wanted.items():
        if len(stems) == 1 and len(free[place]) == 1:
            ours[stems[0]] = free[place][0]
            left.remove(free[place][0])
            guessed.append(stems[0])
    return tuple(guessed)


def _missing(ours: Mapping[str, Module], sizes: Sizes) -> dict[tuple[Group, tuple[int, ...]], list[str]]:
    """(group, shape) → the matrices of an ordinary block that no name has given; k and v share a shape, and so gate and up."""
    hidden, wanted = sizes.hidden, defaultdict(list)
    shapes: dict[str, tuple[Group, tuple[int | None, ...]]] = {
        "self_attn.o_proj": ("attention", (hidden, sizes.queries)),
        "mlp.down_proj": ("mlp", (hidden, sizes.inner)),
    }
    if QKV not in ours:
        shapes |= {"self_attn.q_proj": ("attention", (sizes.queries, hidden))}
        shapes |= dict.fromkeys(("self_attn.k_proj", "self_attn.v_proj"), ("attention", (sizes.pairs, hidden)))
    if GATE_UP not in ours:
        shapes |= {"mlp.up_proj": ("mlp", (sizes.inner, hidden))}
    if any(stem.startswith("mlp.experts.") for stem in ours):
        shapes = {stem: place for stem, place in shapes.items() if place[0] != "mlp"}
    for stem, (group, shape) in shapes.items():
        if stem not in ours and None not in shape:
            wanted[group, tuple(size for size in shape if size is not None)].append(stem)
    return wanted
