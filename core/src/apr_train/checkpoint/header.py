"""The header of a checkpoint: what the file says about itself before a tensor is read, as plain data."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from attrs import Factory, field, frozen

from apr_train.errors import Finding

Names = Literal["hf", "gguf"]
RopeRows = Literal["split-half", "adjacent"]

DIMENSIONS = ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size", "intermediate_size")
"""Keys of the canonical config; a file with none of them does not say how large its model is."""


@frozen
class TensorInfo:
    """One entry of a checkpoint's tensor index."""

    name: str
    dtype: str
    """Upper-case safetensors spelling (`F32`, `BF16`, …) or GGML's name (`Q4_K`); `APR_Q4`, `APR_Q8`."""
    shape: tuple[int, ...]
    """Row-major, outermost first."""
    nbytes: int
    """Bytes in the file."""

    @property
    def elements(self) -> int:
        """The number of elements; 1 for a scalar."""
        return math.prod(self.shape)


@frozen
class Tie:
    """Whether the output head is the embedding matrix (tied), and how that is known."""

    value: bool | None
    """None: only the tensors' bytes can tell, and they are compared at load."""
    reason: str
    """`metadata`, `lm_head absent`, `lm_head.weight declared tied, 0 bytes`, `lm_head equal to the embedding`,
    `lm_head differs`, `decided at load`."""


@frozen(kw_only=True)
class Header:
    """A checkpoint's description of itself, in one vocabulary whatever the container.

    `config` has Hugging Face's key names: aliases resolved, explicit nulls dropped, `rope_theta` lifted out of
    `rope_parameters`, and what is left of a non-default RoPE scaling under `rope_scaling`.
    """

    path: str
    format: Literal["apr", "safetensors", "gguf"]
    hf_class: str | None = None
    """`Qwen2ForCausalLM`; from `architectures[0]` or `.apr`'s `hf_architecture`."""
    architecture: str | None = None
    """Lower case: `model_type` of a config.json, `architecture` of an `.apr` or GGUF (`llama`, `qwen2`)."""
    config: Mapping[str, Any] = Factory(dict)
    tensors: Mapping[str, TensorInfo] = Factory(dict)
    names: Names = "hf"
    """How the tensors are named; `.apr` uses Hugging Face names."""
    rope_rows: RopeRows | None = None
    """Order of the rows of q and k; None when the file does not say and `--rope-layout` must."""
    tie: Tie = Tie(None, "decided at load")
    tokenizer: TokenizerSpec | None = field(default=None, repr=False)
    further: Mapping[str, Any] = Factory(dict)
    """What a GGUF or `.apr` says beside that, in its own spelling (`llama.attention.causal`): judged, never written."""
    companions: Mapping[str, Any] = field(factory=dict, repr=False)
    """File name → what is kept of it beyond the config: see `checkpoint.companions`."""
    provenance: Mapping[str, Any] = Factory(dict)
    """`license`, `data_source`, `data_license`, `source`, `original_format`, `name`, `version`, `created_at`, … as known."""
    findings: tuple[Finding, ...] = field(default=(), repr=False)
    """What was read in another way than it stands in the file, left out, or chosen among several, as warnings."""
    extra: Mapping[str, Any] = field(default=Factory(dict), repr=False)
    """Further metadata of an `.apr`, which says nothing of the model's mathematics: written again with the model."""

    @property
    def parameter_count(self) -> int:
        """Number of stored elements (a head stored twice counts twice)."""
        return sum(tensor.elements for tensor in self.tensors.values())


SPECIAL_TOKENS = ("bos", "eos", "pad", "unk", "mask", "sep", "cls")
"""The roles that `TokenizerSpec.special_ids` can name."""


@frozen(kw_only=True)
class AddedToken:
    """One token outside the BPE vocabulary's merges, with the flags that `tokenizers` keeps."""

    id: int
    content: str
    special: bool = False
    single_word: bool = False
    lstrip: bool = False
    rstrip: bool = False
    normalized: bool = False


@frozen(kw_only=True)
class TokenizerSpec:
    """A byte-level BPE tokenizer's data, or a whole `tokenizer.json`; or the name of a kind that cannot be built.

    Exactly one of the two: `vocabulary` and `merges` (from `.apr` or GGUF metadata), or `json` (the parsed
    content of a `tokenizer.json`, which wins because it says everything).
    """

    model: str = "bpe"
    """`bpe`, or another kind by name (`sentencepiece`, `wordpiece`), which is refused when it is built without `json`."""
    vocabulary: tuple[str, ...] = field(default=(), repr=False)
    """Token strings in the byte-level alphabet; the index is the id."""
    merges: tuple[str, ...] = field(default=(), repr=False)
    """`"a b"` in rank order."""
    pre_type: str | None = None
    """GGUF's `tokenizer.ggml.pre`: `gpt-2`, `qwen2`, `smollm`, `llama-bpe`, `default`."""
    json: Mapping[str, Any] | None = field(default=None, repr=False)
    added_tokens: tuple[AddedToken, ...] = field(default=(), repr=False)
    special_ids: Mapping[str, int] = Factory(dict)
    """Role (one of `SPECIAL_TOKENS`) → id, as far as the source says."""
    chat_template: str | None = field(default=None, repr=False)
    size: int = 0
    """Largest id + 1, added tokens included."""
    add_bos: bool = False
    """Whether `bos` is put in front of a text that is encoded with special tokens; `json` says it itself."""
    companions: Mapping[str, Any] = field(factory=dict, repr=False)
    """File name → what is kept of the files beside tokenizer.json: see `checkpoint.companions`."""
    notes: tuple[str, ...] = ()
    """What was concluded because the source does not say, one sentence each."""
    kept: Mapping[str, Any] = field(default=Factory(dict), repr=False)
    """Further `tokenizer.` keys of the `.apr` that it came from, written again with it."""
    origin: str = ""
    """Where it came from, for messages: the path and the kind of source."""


Kind = Literal["decoder", "encoder"]
"""decoder: causal attention, rotary positions; encoder: bidirectional."""

_ENCODER = re.compile(
    r"(^|\.)encoder\.layer\.\d+\."  # BERT and its descendants
    r"|(^|\.)(position|token_type)_embeddings\.weight$"
    r"|^token_types\.weight$"  # the same, in GGUF
    r"|^blk\.\d+\.attn_output_norm\.weight$"  # GGUF: a norm after attention
)
_DECODER = re.compile(r"^(model\.)?layers\.\d+\.self_attn\.|^blk\.\d+\.(attn|ffn)_norm\.weight$")


def encoder_marks(names: Iterable[str]) -> list[str]:
    """The tensor names that only an encoder has, for messages."""
    return [name for name in names if _ENCODER.search(name)]


def kind_of(header: Header) -> Kind | None:
    """What the tensors show: learnt position or token-type embeddings and `encoder.layer.` make an encoder.

    None when the names show neither, as in a file of no known structure.
    """
    return kind_of_tensors(header.tensors)


def kind_of_tensors(names: Iterable[str]) -> Kind | None:
    """`kind_of` for a header in the making: from the tensor names alone."""
    names = list(names)
    if encoder_marks(names):
        return "encoder"
    return "decoder" if any(_DECODER.search(name) for name in names) else None
