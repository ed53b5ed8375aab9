"""Encoder or decoder by tensor names alone."""

import pytest
from apr_train.checkpoint.header import Header, TensorInfo, encoder_marks, kind_of

NAMES = {
    "roberta.encoder.layer.11.output.dense.weight": "encoder",
    "encoder.layer.0.attention.self.query.weight": "encoder",
    "embeddings.position_embeddings.weight": "encoder",
    "bert.embeddings.token_type_embeddings.weight": "encoder",
    "token_types.weight": "encoder",
    "blk.0.attn_output_norm.weight": "encoder",
    "model.layers.0.self_attn.q_proj.weight": "decoder",
    "layers.3.self_attn.k_proj.bias": "decoder",
    "blk.0.attn_norm.weight": "decoder",
    "position_embd.weight": None,  # GPT-2 in GGUF has it as well
    "transformer.h.0.attn.c_attn.weight": None,
    "model.encoder.layers.0.self_attn.q_proj.weight": None,
}


@pytest.mark.parametrize(("name", "kind"), NAMES.items())
def test_a_tensor_name_shows_the_structure(name, kind):
    assert kind_of(Header(path="x", format="safetensors", tensors={name: TensorInfo(name, "F32", (1,), 4)})) == kind


def test_an_encoder_mark_outweighs_a_decoder_name_and_is_told():
    names = ["blk.0.ffn_norm.weight", "token_types.weight"]
    index = {name: TensorInfo(name, "F32", (1,), 4) for name in names}
    assert kind_of(Header(path="x", format="gguf", tensors=index)) == "encoder"
    assert encoder_marks(names) == ["token_types.weight"]


def test_a_file_without_tensors_has_no_structure():
    assert kind_of(Header(path="x", format="apr")) is None
