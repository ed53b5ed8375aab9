"""Headers made up from a config, for tests that need no file. Torch-free."""

from __future__ import annotations

from apr_train.checkpoint.header import Header, TensorInfo, Tie
from apr_train.family.card import Layout
from apr_train.family.config import ModelConfig
from apr_train.family.plugin import Family


def header_from(family: Family, config: ModelConfig, layout: Layout | None = None) -> Header:
    """The header that a complete float32 file of this config would have: every field, every tensor of the name map.

    A tied head is stored once; ignored tensors are left out.
    """
    layout = layout or Layout()
    values = {key: value for key, value in config.to_dict().items() if value is not None}
    fills = family.map_tensor_names(config, layout).fills.values()
    entries = [entry for entry in fills if not (layout.bare and entry.fresh_group)]
    return Header(
        path=f"<{family.name}>",
        format="gguf" if layout.names == "gguf" else "safetensors",
        hf_class=family.info.hf_classes[-1 if layout.bare else 0] if layout.names == "hf" else None,
        architecture=family.info.model_type if layout.names == "hf" else family.info.gguf_architectures[0],
        config=values,
        tensors={entry.checkpoint: _info(entry.checkpoint, entry.shape or ()) for entry in entries},
        names=layout.names,
        rope_rows=layout.rope_rows if family.info.kind == "decoder" else None,
        tie=Tie(config.tie_word_embeddings, "metadata"),
    )


def _info(name: str, shape: tuple[int, ...]) -> TensorInfo:
    count = 1
    for size in shape:
        count *= size
    return TensorInfo(name, "F32", shape, 4 * count)
