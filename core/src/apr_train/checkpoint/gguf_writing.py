"""GGUF files written: keys of a config and of a tokenizer, the type that each tensor gets, and the bytes. Torch-free.

The layout and the quantisers are those of llama.cpp's own package, `gguf`. Facts about llama.cpp's loader name GGUF
architectures, and say where they stand in its sources (those of llama-cpp-python 0.3.36).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from apr_train.checkpoint.dtypes import Array, DType
from apr_train.checkpoint.gguf_keys import KEYS, LOGIT_DIVISORS, PATTERN, YARN_KEYS
from apr_train.checkpoint.header import TensorInfo, TokenizerSpec
from apr_train.checkpoint.implied import ORIGINAL_LENGTH
from apr_train.checkpoint.pre_tokenizers import canonical_pre_type
from apr_train.checkpoint.quantization import ggml_types
from apr_train.checkpoint.tokenizer_json import PADDING, flatten
from apr_train.checkpoint.tokenizer_metadata import CONTROL, GGUF_SPECIAL, NORMAL, UNUSED, USER_DEFINED
from apr_train.errors import OutputError, TokenizerError

if TYPE_CHECKING:
    from gguf import GGUFWriter

GgufDtype = Literal["F32", "F16", "BF16", "Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0"]
"""What the matrices of a file can be written as here."""
QUANTISED: tuple[GgufDtype, ...] = ("Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0")
"""Those that the `gguf` package quantises to; it has no K-quants."""
FILE_TYPES = {
    "F32": "ALL_F32", "F16": "MOSTLY_F16", "BF16": "MOSTLY_BF16", "Q8_0": "MOSTLY_Q8_0", "Q5_1": "MOSTLY_Q5_1",
    "Q5_0": "MOSTLY_Q5_0", "Q4_1": "MOSTLY_Q4_1", "Q4_0": "MOSTLY_Q4_0",
}  # fmt: skip
"""Type of the matrices → its name in `gguf.LlamaFileType`, whose number is `general.file_type`."""
_STORED_AS_THEY_ARE = ("F32", "F16", "BF16")
_WIDE = ("_norm.weight", "ffn_gate_inp.weight", "ffn_gate_inp_shexp.weight", "position_embd.weight", "token_types.weight")
"""Ends of the names of matrices that stay float32: `tensor_allows_quantization` in llama-quant.cpp, `prepare_tensors` in
conversion/base.py."""
EMBEDDING, HEAD = "token_embd.weight", "output.weight"
READS_WINDOW = frozenset({"gemma2", "gemma3", "olmo2"})
"""Those that are known to compute sliding windows; phi3's is switched off, starcoder2's and llama's key is not read."""
_PIECE = 1 << 20


def written_type(tensor: str, shape: Sequence[int], wanted: str, *, tied: bool) -> str:
    """The type in which a tensor is written when the matrices shall be `wanted`.

    As llama.cpp's quantize and converter have it: vectors, norms, routers and positions stay F32; rows that are no whole
    blocks become F16. The matrix that makes the logits (the embedding, where the head is tied) gets Q8_0 where llama.cpp
    takes Q6_K for any smaller type, which the `gguf` package cannot write.
    """
    if len(shape) < 2 or not tensor.endswith(".weight") or tensor.endswith(_WIDE):
        return "F32"
    if wanted in _STORED_AS_THEY_ARE:
        return wanted
    makes_logits = tensor == HEAD or (tied and tensor == EMBEDDING)
    chosen = "Q8_0" if makes_logits else wanted
    return chosen if shape[-1] % ggml_type(chosen).block == 0 else "F16"


def ggml_type(name: str) -> DType:
    """A type by GGML's name; KeyError for another."""
    return _by_name()[name]


@cache
def _by_name() -> Mapping[str, DType]:
    return {dtype.name: dtype for dtype in ggml_types().values()}


def tensor_info(name: str, dtype: str, shape: tuple[int, ...]) -> TensorInfo:
    """An entry of the index, with the bytes that it takes."""
    return TensorInfo(name, dtype, shape, ggml_type(dtype).nbytes(math.prod(shape)))


def quantised(pieces: Iterable[Array], dtype: str) -> Iterator[Array]:
    """Float32 in row-major order, of rows that are whole blocks → bytes of blocks, by the `gguf` package's own quantiser.

    A piece of the stream may end anywhere: what is not a whole block waits for the next one.
    """
    from gguf import GGMLQuantizationType
    from gguf.quants import quantize

    block, rest = ggml_type(dtype).block, np.empty(0, np.float32)
    for piece in pieces:
        flat = np.concatenate([rest, piece.reshape(-1)]) if rest.size else piece.reshape(-1)
        whole = flat.size - flat.size % block
        rest = flat[whole:]
        for start in range(0, whole, _PIECE):
            yield quantize(flat[start : min(start + _PIECE, whole)].reshape(-1, block), GGMLQuantizationType[dtype])


def write_gguf(
    path: Path,
    architecture: str,
    metadata: Mapping[str, Any],
    tensors: Sequence[TensorInfo],
    data: Callable[[str], Iterable[Array | memoryview]],
) -> None:
    """Write a file through the `gguf` package's writer; memory is one written tensor.

    Args:
        path: where, over whatever is there.
        architecture: `general.architecture`.
        metadata: the other keys; the type of a value is its Python type: a list is an array, an int is unsigned 32-bit
            (signed in an array, as GGUF's token types are), a float 32-bit.
        tensors: the index, in the file's order.
        data: a tensor's bytes in row-major order, in pieces.

    Raises:
        OSError: when it cannot be written.
        OutputError: when the bytes of a tensor are more or fewer than its entry says.
    """
    from gguf import GGUFWriter

    writer = GGUFWriter(path, architecture)
    try:
        for key, value in metadata.items():
            _add(writer, key, value)
        for tensor in tensors:
            _declare(writer, tensor)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for tensor in tensors:
            writer.write_tensor_data(_whole(tensor, data(tensor.name), path))
        writer.flush()
    finally:
        writer.close()


def _add(writer: GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, list(value))


def _declare(writer: GGUFWriter, tensor: TensorInfo) -> None:
    from gguf import GGMLQuantizationType

    elements = np.dtype(np.float32)  # with any type but bytes, the package takes the shape as one of elements
    kind = GGMLQuantizationType[tensor.dtype]
    writer.add_tensor_info(tensor.name, tensor.shape, elements, tensor.nbytes, raw_dtype=kind)


def _whole(tensor: TensorInfo, pieces: Iterable[Array | memoryview], path: Path) -> Array:
    """A tensor's bytes in one array, as many as its entry of the index says."""
    whole, at = np.empty(tensor.nbytes, np.uint8), 0
    for piece in pieces:
        raw = np.ascontiguousarray(piece).reshape(-1).view(np.uint8)
        taken = whole[at : at + raw.size]
        taken[:] = raw[: taken.size]
        at += raw.size
    if at != tensor.nbytes:
        problem = "a tensor came with another number of bytes than its entry says"
        raise OutputError(problem, where=path, field=tensor.name, expected=tensor.nbytes, found=at)
    return whole


_WHOLE_NUMBERS = frozenset({
    "num_hidden_layers", "max_position_embeddings", "hidden_size", "intermediate_size", "num_attention_heads",
    "num_key_value_heads", "head_dim", "sliding_window", "vocab_size", "num_experts", "num_experts_per_tok",
    "moe_intermediate_size", "shared_expert_intermediate_size",
})  # fmt: skip
_FLAGS = frozenset({"norm_topk_prob"})


def config_keys(architecture: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """The keys below the architecture's prefix for the fields of a config, by Hugging Face's names; those None are left out.

    `rotary_dim` counts the rotated dimensions of a head, `layer_types` the kinds of layers where they are to be listed.
    """
    names = {**KEYS, "attention.value_length": "head_dim", "rope.dimension_count": "rotary_dim"}
    if architecture in LOGIT_DIVISORS:
        names["logit_scale"] = "logits_scaling"
    found = {key: _number(name, values[name]) for key, name in names.items() if values.get(name) is not None}
    if values.get("layer_types") is not None:
        found[PATTERN] = [kind == "sliding_attention" for kind in values["layer_types"]]
    return {f"{architecture}.{key}": value for key, value in (found | _scaling_keys(values.get("rope_scaling"))).items()}


def _number(name: str, value: Any) -> Any:
    if name in _FLAGS:
        return bool(value)
    return int(value) if name in _WHOLE_NUMBERS or name == "rotary_dim" else float(value)


def _scaling_keys(scaling: Mapping[str, Any] | None) -> dict[str, Any]:
    """The keys of a linear scaling, or of YaRN; `gguf_rope` has what llama.cpp reads from tables."""
    if scaling is None or scaling["rope_type"] not in ("linear", "yarn"):
        return {}
    found = {"rope.scaling.type": scaling["rope_type"], "rope.scaling.factor": float(scaling["factor"])}
    if scaling["rope_type"] == "yarn":
        kinds = {name: int if name == ORIGINAL_LENGTH else float for name in YARN_KEYS.values()}
        found |= {key: kinds[name](scaling[name]) for key, name in YARN_KEYS.items()}
    return found


def tokenizer_keys(spec: TokenizerSpec | None, *, rows: int, first: Sequence[int], last: Sequence[int]) -> dict[str, Any]:
    """The keys of a byte-level BPE tokenizer; of none, the one that says so.

    Args:
        spec: the tokenizer.
        rows: of the embedding; ids without a token are padding, as llama.cpp's converter has it.
        first: the ids that the tokenizer puts in front of a text.
        last: those that it puts behind.

    Raises:
        TokenizerError: a tokenizer that is none, that llama.cpp has no pre-tokenizer type for, or with more tokens than rows.
    """
    if spec is None:
        return {"tokenizer.ggml.model": "none"}
    tokens, merges, pre = _parts(spec)
    if spec.size > rows or len(tokens) > rows:
        raise _not_written(spec, "more tokens than the embedding has rows", f"at most {rows}", max(spec.size, len(tokens)))
    tokens = [*tokens, *(f"[PAD{index}]" for index in range(len(tokens), rows))]
    ids = {name: index for name, index in spec.special_ids.items() if name in GGUF_SPECIAL and index < rows}
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": _types(spec, tokens),
        **({"tokenizer.ggml.merges": merges} if merges else {}),
        **{f"tokenizer.ggml.{GGUF_SPECIAL[name]}": index for name, index in ids.items()},
        **_around(spec, ids, first, last),
        **({"tokenizer.chat_template": spec.chat_template} if spec.chat_template else {}),
    }


def _parts(spec: TokenizerSpec) -> tuple[list[str], list[str], str]:
    """Tokens by id, merges, and llama.cpp's type of the pre-tokenizer."""
    if spec.json is None:
        tokens, merges, pre = list(spec.vocabulary), list(spec.merges), spec.pre_type or "default"
        kind = spec.model
    else:
        tokens, merges, found, _ = flatten(spec.json)
        pre, kind = found or "", str((spec.json.get("model") or {}).get("type", "BPE")).lower()
    if kind != "bpe" or not tokens:
        raise _not_written(spec, "only a byte-level BPE tokenizer can be written to a GGUF", "bpe", kind)
    if canonical_pre_type(pre) is None:
        problem = "llama.cpp has no pre-tokenizer that is known here to cut text as this one does"
        raise _not_written(spec, problem, "a pre-tokenizer of docs/checkpoints.md", pre or "another one")
    return [token or f"[PAD{index}]" for index, token in enumerate(tokens)], merges, pre


def _types(spec: TokenizerSpec, tokens: Sequence[str]) -> list[int]:
    """GGUF's type of each token: normal, control, user-defined, or unused."""
    types = [UNUSED if PADDING.fullmatch(token) else NORMAL for token in tokens]
    for token in spec.added_tokens:
        if token.id < len(types):
            types[token.id] = CONTROL if token.special else USER_DEFINED
    return types


def _around(spec: TokenizerSpec, ids: Mapping[str, int], first: Sequence[int], last: Sequence[int]) -> dict[str, bool]:
    """Whether bos and eos are put around a text; other ids there cannot be said."""
    for places, name in ((first, "bos"), (last, "eos")):
        if places and list(places) != [ids.get(name)]:
            problem = f"what the tokenizer puts around a text is not its {name}"
            raise _not_written(spec, problem, f"{name} {ids.get(name)}, or nothing", ", ".join(map(str, places)))
    return {"tokenizer.ggml.add_bos_token": bool(first), "tokenizer.ggml.add_eos_token": bool(last)}


def _not_written(spec: TokenizerSpec, problem: str, expected: str, found: object) -> TokenizerError:
    hint = (
        "Export to a folder (--format hf), which keeps tokenizer.json, and convert that with llama.cpp's convert_hf_to_gguf.py."
    )
    return TokenizerError(problem, where=spec.origin, expected=expected, found=found, hint=hint)


def unknown_tensors(architecture: str, names: Iterable[str]) -> list[str]:
    """The names that no tensor of the architecture has, by the tables of the `gguf` package; all of an unknown architecture."""
    from gguf import MODEL_ARCH_NAMES, MODEL_TENSORS, TENSOR_NAMES

    known = [
        TENSOR_NAMES[item] for kind, own in MODEL_ARCH_NAMES.items() if own == architecture for item in MODEL_TENSORS[kind]
    ]
    return [name for name in names if _BLOCK.sub("blk.{bid}.", name).rpartition(".")[0] not in known]


_BLOCK = re.compile(r"^blk\.\d+\.")
