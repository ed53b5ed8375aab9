"""The tensor names that decoders share: Hugging Face's, headed and bare, transformers' stacked experts, and llama.cpp's.

One table follows the config: norms, biases, heads' norms, experts. A family whose files follow these names answers
`map_tensor_names` with `NameMap.for_config(config, decoder_rules(config, layout))`; one that differs says in what: other stems
in `names` and `gguf`, modules that it drops, rules that it adds. Torch-free.

Sources: the module names in transformers' modeling files; `MODEL_TENSORS` and `TENSOR_NAMES` of the gguf package.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from attrs import field, frozen

from apr_train import rules
from apr_train.checkpoint.header import Header
from apr_train.errors import Finding, NameMapError, WrongMapError
from apr_train.family.card import Layout
from apr_train.family.decoder_config import DecoderConfig
from apr_train.family.name_rules import (
    EXPERT,
    LAYER,
    Layers,
    Rule,
    add_offset,
    ignored,
    rename,
    rope_rows,
    split,
    stack,
    tie,
)
from apr_train.family.sizes import Shape
from apr_train.suggest import did_you_mean

FRESH_HEAD = "lm_head"
"""Fresh group of a head that a bare file (a base model without its head) does not have."""
HF_PREFIX = "model."
BLOCKS, GGUF_BLOCKS = "layers", "blk"
_STACKED = "mlp.experts"
"""Where transformers has its stacked experts in memory, whatever a file calls them."""


def _always(config: DecoderConfig) -> bool:
    return True


def _never(config: DecoderConfig) -> bool:
    return False


@frozen
class Line:
    """One module of the decoder in both spellings, with its weight's symbolic shape."""

    stem: str
    """The parameter's name without `.weight` and, of a module of a block, without `layers.N.`; Hugging Face's, too."""
    gguf: str
    """llama.cpp's name without `.weight` and `blk.N.`."""
    shape: Shape
    """Of the weight, `[rows, columns]` or `[rows]`; a bias has the rows."""
    bias: Callable[[DecoderConfig], bool] = field(default=_never, kw_only=True)
    """Whether the module has a bias."""
    when: Callable[[DecoderConfig], bool] = field(default=_always, kw_only=True)
    """Whether a model of this config has the module."""
    heads: str | None = field(default=None, kw_only=True)
    """For q and k: the size that counts the heads whose rows RoPE rotates."""
    norm: bool = field(default=False, kw_only=True)
    """Whether the module is a norm, whose weight a GGUF holds with the config's `norm_offset` added."""
    block: bool = field(default=True, kw_only=True)
    """Whether every block has the module."""
    mlp: str = field(default="", kw_only=True)
    """`dense` or `sparse`: only the blocks with that MLP have the module."""
    expert: bool = field(default=False, kw_only=True)
    """Whether the module is one of each expert: `shape` is one expert's, the parameter is the stack of all."""


_Q, _KV = "num_attention_heads*head_dim", "num_key_value_heads*head_dim"
_H, _I, _E, _S = "hidden_size", "intermediate_size", "num_experts", "shared_expert_intermediate_size"


def _has_input_norm(config: DecoderConfig) -> bool:
    return config.norm_position != "post"


def _norm_bias(config: DecoderConfig) -> bool:
    return config.norm == "layer" and config.norm_bias


def _attention_bias(config: DecoderConfig) -> bool:
    return config.attention_bias


def _mlp_bias(config: DecoderConfig) -> bool:
    return config.mlp_bias


def _gated(config: DecoderConfig) -> bool:
    return config.gated_mlp


def _shared(config: DecoderConfig) -> bool:
    return config.num_experts > 0 and config.shared_expert_intermediate_size > 0


def _norm(stem: str, gguf: str, when: Callable[[DecoderConfig], bool], *, block: bool = True) -> Line:
    return Line(stem, gguf, (_H,), norm=True, bias=_norm_bias, when=when, block=block)


def _is(position: str) -> Callable[[DecoderConfig], bool]:
    return lambda config: config.norm_position == position and not config.parallel_residual


DECODER_LINES: tuple[Line, ...] = (
    Line("embed_tokens", "token_embd", ("vocab_size", _H), block=False),
    Line(
        "embed_positions",
        "position_embd",
        ("max_position_embeddings", _H),
        block=False,
        when=lambda config: config.learned_positions,
    ),
    _norm("input_layernorm", "attn_norm", _has_input_norm),
    Line("self_attn.q_proj", "attn_q", (_Q, _H), bias=_attention_bias, heads="num_attention_heads"),
    Line("self_attn.k_proj", "attn_k", (_KV, _H), bias=_attention_bias, heads="num_key_value_heads"),
    Line("self_attn.v_proj", "attn_v", (_KV, _H), bias=_attention_bias),
    Line("self_attn.o_proj", "attn_output", (_H, _Q), bias=lambda config: config.attention_output_bias),
    Line("self_attn.q_norm", "attn_q_norm", ("head_dim",), norm=True, when=lambda config: config.qk_norm == "head"),
    Line("self_attn.k_norm", "attn_k_norm", ("head_dim",), norm=True, when=lambda config: config.qk_norm == "head"),
    Line("self_attn.q_norm", "attn_q_norm", (_Q,), norm=True, when=lambda config: config.qk_norm == "projection"),
    Line("self_attn.k_norm", "attn_k_norm", (_KV,), norm=True, when=lambda config: config.qk_norm == "projection"),
    _norm("post_attention_layernorm", "ffn_norm", _is("pre")),
    _norm("post_attention_layernorm", "post_attention_norm", lambda config: config.norm_position in ("post", "both")),
    _norm("pre_feedforward_layernorm", "ffn_norm", _is("both")),
    _norm("post_feedforward_layernorm", "post_ffw_norm", lambda config: config.norm_position in ("post", "both")),
    Line("mlp.gate_proj", "ffn_gate", (_I, _H), bias=_mlp_bias, when=_gated, mlp="dense"),
    Line("mlp.up_proj", "ffn_up", (_I, _H), bias=_mlp_bias, mlp="dense"),
    Line("mlp.down_proj", "ffn_down", (_H, _I), bias=_mlp_bias, mlp="dense"),
    Line("mlp.gate", "ffn_gate_inp", (_E, _H), mlp="sparse"),
    Line("mlp.experts.gate_proj", "ffn_gate_exps", (_I, _H), mlp="sparse", expert=True),
    Line("mlp.experts.up_proj", "ffn_up_exps", (_I, _H), mlp="sparse", expert=True),
    Line("mlp.experts.down_proj", "ffn_down_exps", (_H, _I), mlp="sparse", expert=True),
    Line("mlp.shared_expert.gate_proj", "ffn_gate_shexp", (_S, _H), mlp="sparse", when=_shared),
    Line("mlp.shared_expert.up_proj", "ffn_up_shexp", (_S, _H), mlp="sparse", when=_shared),
    Line("mlp.shared_expert.down_proj", "ffn_down_shexp", (_H, _S), mlp="sparse", when=_shared),
    Line(
        "mlp.shared_expert_gate",
        "ffn_gate_inp_shexp",
        ("1", _H),
        mlp="sparse",
        when=lambda config: _shared(config) and config.shared_expert_gate,
    ),
    _norm("norm", "output_norm", _always, block=False),
)
"""Every module of the decoder but the head, of every config."""
_HEAD = Line("lm_head", "output", ("vocab_size", _H), bias=lambda config: config.lm_head_bias, block=False)


def decoder_rules(
    config: DecoderConfig,
    layout: Layout,
    *,
    prefix: str = HF_PREFIX,
    names: Mapping[str, str] | None = None,
    gguf: Mapping[str, str] | None = None,
    add: Iterable[Rule | Iterable[Rule]] = (),
    drop: Iterable[str] = (),
) -> list[Rule]:
    """Make the name map's rules for one config and one layout.

    A stem is a module's name here without `layers.N.` and `.weight`: `self_attn.o_proj`, `norm`, `mlp.experts.gate_proj`.
    With `layout.rope_rows == "adjacent"` the rows of q and k (weights and biases) are put into split-half order, as
    llama.cpp's conversion of a Llama wants undone.

    Args:
        prefix: what the headed Hugging Face class puts before the base model's names.
        names: our stem → Hugging Face's, where it is another (`{"self_attn.o_proj": "self_attn.dense"}`); `layers` is the
            list of blocks itself (`{"layers": "h"}`), and an expert's stem has `{expert}` in it.
        gguf: our stem → llama.cpp's, where it is another.
        add: rules, or lists of them as `split` makes, beside those of the table; a rule belongs to one layout.
        drop: our stems that these rules are without, weight and bias: added rules, of a fused tensor, say, are for them.

    Raises:
        WrongMapError: for a stem that no decoder has.
        NameMapError: (PREFLIGHT-008) for adjacent rows where nobody defines their order: heads that are rotated in part, or
            normed q and k.
    """
    names, gguf, dropped = names or {}, gguf or {}, set(drop)
    _check_stems({"names": names, "gguf": gguf, "drop": dropped})
    _check_rows(config, layout)
    spelling = _Spelling(config=config, layout=layout, prefix=prefix, names=names, gguf=gguf)
    rules = [rule for line in DECODER_LINES if line.when(config) and line.stem not in dropped for rule in spelling.rules(line)]
    if layout.names == "hf" and layout.experts == "stacked":
        rules += spelling.stacked(dropped)
    if _HEAD.stem not in dropped:
        rules += spelling.head()
    if layout.names == "hf" and not config.learned_positions:
        buffer = spelling.hf(Line("self_attn.rotary_emb", "", ())) + ".inv_freq"
        rules.append(ignored(buffer, "a saved RoPE table: it is computed from rope_theta"))
    if layout.names == "gguf" and config.rope_scaling is not None:
        from apr_train.checkpoint.gguf_rope import TABLES  # numpy comes with it, which a card does not need

        for table in TABLES.get(config.rope_scaling.rope_type, ()):
            rules.append(ignored(table, "divisors of the rotary frequencies: they are computed from rope_scaling"))
    for item in add:
        rules += [*item] if isinstance(item, Iterable) else [item]
    return rules


def tensors_have(header: Header, *stems: str) -> bool:
    """Whether the file holds a tensor whose name ends with one of `stems` (`q_proj.bias`, say).

    For what a container's metadata does not say (GGUF and `.apr` know no key for Llama's biases) and the tensors do.
    """
    return any(name.endswith(stems) for name in header.tensors)


@frozen(kw_only=True)
class _Spelling:
    """One layout's names of the table's modules, and the rules that they make."""

    config: DecoderConfig
    layout: Layout
    prefix: str
    names: Mapping[str, str]
    gguf: Mapping[str, str]

    def hf(self, line: Line) -> str:
        """Hugging Face's name of a module, without `.weight`."""
        stem = self.names.get(line.stem, _one_of_each(line.stem) if line.expert else line.stem)
        prefix = "" if self.layout.bare or line is _HEAD else self.prefix
        return f"{prefix}{self.names.get(BLOCKS, BLOCKS)}.{LAYER}.{stem}" if line.block else prefix + stem

    def rules(self, line: Line) -> list[Rule]:
        """The rules of one module: its weight, and its bias if it has one."""
        layers = self._layers(line)
        if layers is not None and not layers:
            return []
        in_gguf, stacked = self.layout.names == "gguf", self.layout.experts == "stacked"
        stem = self.gguf.get(line.stem, line.gguf) if in_gguf else self.hf(line)
        if in_gguf and line.block:
            stem = f"{GGUF_BLOCKS}.{LAYER}.{stem}"
        parameter = f"{BLOCKS}.{LAYER}.{line.stem}" if line.block else line.stem
        if line.expert and not in_gguf:
            return [] if stacked else [stack(f"{stem}.weight", parameter, *self._expert(line.shape), layers=layers)]
        if line.expert:
            return [rename(f"{stem}.weight", parameter, _E, *self._expert(line.shape), layers=layers)]
        if line.stem == "mlp.gate" and stacked and not in_gguf:
            stem = f"{self._block}.{line.stem}"
        rules = [self._rule(line, f"{stem}.weight", f"{parameter}.weight", line.shape, layers)]
        if line.bias(self.config):
            rules.append(self._rule(line, f"{stem}.bias", f"{parameter}.bias", line.shape[:1], layers))
        return rules

    def stacked(self, dropped: set[str]) -> list[Rule]:
        """The experts as transformers has them in memory: gate over up in one tensor, down in another."""
        layers = self._layers(Line("", "", (), mlp="sparse"))
        ours = f"{BLOCKS}.{LAYER}.{_STACKED}"
        if not layers or f"{_STACKED}.gate_proj" in dropped:
            return []
        width, theirs = self._expert((_I,))[0], f"{self._block}.{_STACKED}"
        fused = [(f"{ours}.gate_proj", width), (f"{ours}.up_proj", width)]
        return [
            *split(f"{theirs}.gate_up_proj", fused, _E, _H, dim=1, layers=layers),
            rename(f"{theirs}.down_proj", f"{ours}.down_proj", _E, _H, width, layers=layers),
        ]

    def head(self) -> list[Rule]:
        """The output head: a tie, or a matrix of its own, with its bias."""
        stem = self.gguf.get(_HEAD.stem, _HEAD.gguf) if self.layout.names == "gguf" else self.hf(_HEAD)
        if self.config.tie_word_embeddings:
            return [tie(f"{stem}.weight", "embed_tokens.weight", *_HEAD.shape)]
        group = FRESH_HEAD if self.layout.bare else None
        rules = [rename(f"{stem}.weight", "lm_head.weight", *_HEAD.shape, fresh_group=group)]
        if _HEAD.bias(self.config):
            rules.append(rename(f"{stem}.bias", "lm_head.bias", *_HEAD.shape[:1], fresh_group=group))
        return rules

    @property
    def _block(self) -> str:
        """Hugging Face's name of a block."""
        return f"{'' if self.layout.bare else self.prefix}{self.names.get(BLOCKS, BLOCKS)}.{LAYER}"

    def _rule(self, line: Line, checkpoint: str, parameter: str, shape: Shape, layers: Layers | None) -> Rule:
        offset = self.config.norm_offset
        if line.norm and offset and self.layout.names == "gguf":
            return add_offset(checkpoint, parameter, *shape, offset=offset, layers=layers)
        if line.heads is not None and self.layout.rope_rows == "adjacent":
            return rope_rows(checkpoint, parameter, *shape, heads=line.heads, layers=layers)
        return rename(checkpoint, parameter, *shape, layers=layers)

    def _layers(self, line: Line) -> list[int] | None:
        """The layers that have a module; None: all of them."""
        sparse = [layer for layer in range(self.config.num_hidden_layers) if self.config.is_sparse(layer)]
        if not line.mlp or (line.mlp == "dense" and not sparse):
            return None
        if line.mlp == "sparse":
            return sparse
        return [layer for layer in range(self.config.num_hidden_layers) if layer not in set(sparse)]

    def _expert(self, shape: Shape) -> Shape:
        """The shape inside one expert, with the name of the field that says its width."""
        width = _I if self.config.moe_intermediate_size is None else "moe_intermediate_size"
        return tuple(width if size == _I else size for size in shape)


def _one_of_each(stem: str) -> str:
    """`mlp.experts.gate_proj` → `mlp.experts.{expert}.gate_proj`."""
    path, _, leaf = stem.rpartition(".")
    return f"{path}.{EXPERT}.{leaf}"


def _check_stems(given: Mapping[str, Iterable[str]]) -> None:
    known = {line.stem for line in (*DECODER_LINES, _HEAD)}
    faults = [
        Finding(problem=f"{argument}: no module of a decoder is called {stem} ({did_you_mean(stem, known)})")
        for argument, stems in given.items()
        for stem in stems
        if stem not in known and (argument, stem) != ("names", BLOCKS)
    ]
    if faults:
        raise WrongMapError.of(faults)


def _check_rows(config: DecoderConfig, layout: Layout) -> None:
    whole = config.rotary_dim == config.head_dim and config.qk_norm == "none" and not config.learned_positions
    if layout.rope_rows == "adjacent" and not whole:
        raise NameMapError(
            "the order of adjacent rows of q and k is defined for whole heads without norms only",
            field="rope_rows",
            rule=rules.PREFLIGHT_008,
            expected="split-half",
            found=layout.rope_rows,
            hint="No converter permutes the rows of such a model; leave --rope-layout out.",
        )
