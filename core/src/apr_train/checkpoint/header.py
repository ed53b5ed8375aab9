"""What a checkpoint says about itself without a tensor being read: plain data, torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from attrs import Factory, field, frozen

from apr_train.checkpoint.tokenizer_spec import TokenizerSpec

Names = Literal["hf", "gguf"]
RopeRows = Literal["split-half", "adjacent"]


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


@frozen
class Tie:
    """Whether the output head is the embedding matrix, and how that is known."""

    value: bool | None
    """None: a check without reading data cannot know; it is decided at load."""
    reason: str
    """`metadata`, `lm_head absent`, `lm_head equal to the embedding`, `lm_head differs`, `decided at load`."""


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
    provenance: Mapping[str, Any] = Factory(dict)
    """`license`, `data_source`, `data_license`, `source`, `original_format`, `name`, `version`, `created_at`, … as known."""

    @property
    def parameter_count(self) -> int:
        """Number of stored elements (a head stored twice counts twice)."""
        total = 0
        for tensor in self.tensors.values():
            count = 1
            for size in tensor.shape:
                count *= size
            total += count
        return total
