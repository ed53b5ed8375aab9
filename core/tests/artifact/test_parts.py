"""Import, export and comparison of stacks of experts, fused tensors and changed ones, against numpy and gguf's own decoding."""

import tracemalloc
from types import SimpleNamespace

import attrs
import gguf
import numpy as np
import pytest
from apr_train.artifact.convert import Conversion
from apr_train.artifact.diff import _by_parameter, tensor_diffs
from apr_train.checkpoint.apr import AprWriter, TensorSpec
from apr_train.checkpoint.checkpoint import TensorView
from apr_train.checkpoint.dtypes import bytes_of, f32_to_bf16
from apr_train.checkpoint.header import Header, TensorInfo
from apr_train.checkpoint.open import open_checkpoint
from apr_train.errors import FormatError
from apr_train.family.card import Layout
from apr_train.family.decoder_config import DecoderConfig
from apr_train.family.decoder_names import decoder_rules
from apr_train.family.load_plan import plan_load
from apr_train.family.name_map import NameMap
from apr_train.family.name_rules import split, transpose
from apr_train.family.operations import Transpose
from safetensors.numpy import save_file

DENSE = DecoderConfig(
    vocab_size=11,
    hidden_size=256,
    num_hidden_layers=1,
    num_attention_heads=4,
    num_key_value_heads=2,
    intermediate_size=512,
    max_position_embeddings=64,
    rope_theta=1e4,
    rms_norm_eps=1e-5,
    tie_word_embeddings=True,
)
MOE = attrs.evolve(DENSE, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=256)
GEMMA = attrs.evolve(DENSE, norm_offset=1.0)
Q4_K = gguf.GGMLQuantizationType.Q4_K


def family(config, rules=decoder_rules):
    """What a conversion asks of a family: its name maps, its card's layout of a file, and its config."""
    return SimpleNamespace(
        name="toy",
        info=SimpleNamespace(layout_of=lambda header: header.companions["layout"]),
        map_tensor_names=lambda config, layout: NameMap.for_config(config, rules(config, layout)),
        build_config=lambda header: config,
    )


class Held:
    """A checkpoint that lies in memory: arrays, or (kind, bytes, shape) of GGML's blocks."""

    def __init__(self, tensors, layout, dtype="F32"):
        self.tensors = tensors
        infos = {
            name: TensorInfo(name, value[0], value[2], len(value[1]))
            if isinstance(value, tuple)
            else TensorInfo(name, dtype, value.shape, value.nbytes)
            for name, value in tensors.items()
        }
        self.header = Header(path="held", format="gguf", tensors=infos, names=layout.names, companions={"layout": layout})
        self.read_whole = []

    def read(self, name):
        self.read_whole.append(name)
        value = self.tensors[name]
        if isinstance(value, tuple):
            kind, raw, shape = value
            floats = gguf.quants.dequantize(np.frombuffer(raw, np.uint8).reshape(-1, 144), gguf.GGMLQuantizationType[kind])
            return TensorView("F32", floats.reshape(shape))
        return TensorView(self.header.tensors[name].dtype, value)

    def read_raw(self, name):
        value = self.tensors[name]
        return memoryview(value[1]) if isinstance(value, tuple) else bytes_of(value)


def conversion(checkpoint, config, layout, rules=decoder_rules):
    made = family(config, rules)
    plan = plan_load(made.map_tensor_names(config, layout), checkpoint.header.tensors, where="held")
    assert plan.findings == ()
    return Conversion(checkpoint=checkpoint, family=made, config=config, header=checkpoint.header, layout=layout, plan=plan)


def written(made, dtype=None):
    """Every tensor as its bytes and its header say."""
    found = {}
    for move in made.moves(dtype):
        raw = b"".join(bytes(bytes_of(piece)) for piece in made.data(move))
        assert len(raw) == move.written.nbytes
        kind = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16}.get(move.dtype, np.uint8)
        found[move.target] = (move.dtype, move.shape, np.frombuffer(raw, kind))
    return found


def random_files(config, rules=decoder_rules, **layout):
    random = np.random.default_rng(0)
    shapes = NameMap.for_config(config, rules(config, Layout(**layout))).tensors
    return {name: (np.round(random.standard_normal(shape) * 64) / 64).astype(np.float32) for name, shape in shapes.items()}


def separate(files, prefix, gguf_names):
    """A stacked file's experts, one by one, by numpy alone."""
    if gguf_names:
        stacks = {name: files[f"{prefix}.ffn_{name}_exps.weight"] for name in ("gate", "up", "down")}
    else:
        fused = files[f"{prefix}.mlp.experts.gate_up_proj"]
        stacks = {"gate": fused[:, :256], "up": fused[:, 256:], "down": files[f"{prefix}.mlp.experts.down_proj"]}
    return {
        f"model.layers.0.mlp.experts.{expert}.{name}_proj.weight": stack[expert]
        for name, stack in stacks.items()
        for expert in range(4)
    }


@pytest.mark.parametrize("layout", [Layout(experts="stacked"), Layout(names="gguf")], ids=["transformers", "gguf"])
def test_stacks_are_written_as_a_tensor_for_each_expert(layout):
    files = random_files(MOE, names=layout.names, experts=layout.experts)
    found = written(conversion(Held(files, layout), MOE, layout))
    expected = separate(files, "blk.0" if layout.names == "gguf" else "model.layers.0", layout.names == "gguf")
    for name, array in expected.items():
        assert found[name][:2] == ("F32", array.shape)
        np.testing.assert_array_equal(found[name][2].reshape(array.shape), array, err_msg=name)
    assert len(found) == 9 + 12  # what the dense part and the router have, and three matrices of each expert


def test_bytes_that_are_told_of_add_up_to_the_files():
    layout = Layout(experts="stacked")
    made = conversion(Held(random_files(MOE, experts="stacked"), layout), MOE, layout)
    assert sum(move.nbytes for move in made.moves(None)) == made.nbytes


def blocks(files, names):
    """The named tensors as random Q4_K blocks, and what gguf's own decoding makes of them."""
    kept, floats = dict(files), dict(files)
    random = np.random.default_rng(1)
    for name in names:
        shape = files[name].shape
        raw = random.integers(0, 256, (files[name].size // 256, 144), dtype=np.uint8)
        raw[:, :4] = np.frombuffer(np.array([0.01, 0.02], np.float16).tobytes(), np.uint8)
        kept[name] = ("Q4_K", raw.tobytes(), shape)
        floats[name] = gguf.quants.dequantize(raw, Q4_K).reshape(shape)
    return kept, floats


STACKS = [f"blk.0.ffn_{name}_exps.weight" for name in ("gate", "up", "down")]


def test_experts_in_blocks_are_decoded_one_at_a_time():
    layout = Layout(names="gguf")
    kept, floats = blocks(random_files(MOE, names="gguf"), STACKS)
    checkpoint = Held(kept, layout)
    found = written(conversion(checkpoint, MOE, layout))
    for name, array in separate(floats, "blk.0", gguf_names=True).items():
        np.testing.assert_array_equal(found[name][2].reshape(array.shape), array, err_msg=name)
    assert not set(STACKS) & set(checkpoint.read_whole)


def test_experts_in_blocks_are_kept_as_the_bytes_that_they_are():
    layout = Layout(names="gguf")
    kept, _ = blocks(random_files(MOE, names="gguf"), STACKS)
    found = written(conversion(Held(kept, layout), MOE, layout), "keep")
    raw = np.frombuffer(kept[STACKS[0]][1], np.uint8).reshape(4, -1)
    for expert in range(4):
        kind, shape, data = found[f"model.layers.0.mlp.experts.{expert}.gate_proj.weight"]
        assert (kind, shape) == ("Q4_K", (256, 256))
        assert np.array_equal(data, raw[expert])


def fused(config, layout):
    """One tensor of q, k and v in both spellings, as Phi-3 has it."""
    prefix = "blk.{layer}.attn_qkv" if layout.names == "gguf" else "model.layers.{layer}.self_attn.qkv_proj"
    counts = {"q": "num_attention_heads", "k": "num_key_value_heads", "v": "num_key_value_heads"}
    parts = [(f"layers.{{layer}}.self_attn.{name}_proj.weight", f"{count}*head_dim") for name, count in counts.items()]
    drop = [f"self_attn.{name}_proj" for name in "qkv"]
    return decoder_rules(config, layout, drop=drop, add=[split(f"{prefix}.weight", parts, "hidden_size")])


def apart(config, layout):
    """The fused tensor in GGUF files only."""
    return fused(config, layout) if layout.names == "gguf" else decoder_rules(config, layout)


@pytest.mark.parametrize("dtype", ["keep", None])
def test_a_fused_tensor_stays_one_where_both_files_have_it(dtype):
    layout = Layout(names="gguf")
    kept, floats = blocks(random_files(DENSE, fused, names="gguf"), ["blk.0.attn_qkv.weight"])
    found = written(conversion(Held(kept, layout), DENSE, layout, fused), dtype)
    kind, shape, data = found["model.layers.0.self_attn.qkv_proj.weight"]
    expected = (
        np.frombuffer(kept["blk.0.attn_qkv.weight"][1], np.uint8) if dtype else floats["blk.0.attn_qkv.weight"].reshape(-1)
    )
    assert (kind, shape) == ("Q4_K" if dtype else "F32", (512, 256))
    assert np.array_equal(data, expected)


@pytest.mark.parametrize("dtype", ["keep", None])
def test_a_fused_tensor_is_taken_apart_where_the_other_file_has_its_parts(dtype):
    layout = Layout(names="gguf")
    kept, floats = blocks(random_files(DENSE, apart, names="gguf"), ["blk.0.attn_qkv.weight"])
    found = written(conversion(Held(kept, layout), DENSE, layout, apart), dtype)
    whole = (
        np.frombuffer(kept["blk.0.attn_qkv.weight"][1], np.uint8).reshape(512, 144)
        if dtype
        else floats["blk.0.attn_qkv.weight"]
    )
    for name, rows in {"q": slice(256), "k": slice(256, 384), "v": slice(384, 512)}.items():
        data = found[f"model.layers.0.self_attn.{name}_proj.weight"][2]
        assert np.array_equal(data, whole[rows].reshape(-1))


def joined(config, layout):
    """The fused tensor in Hugging Face's files only."""
    return decoder_rules(config, layout) if layout.names == "gguf" else fused(config, layout)


def test_parts_of_different_types_are_written_as_the_widest_and_not_kept():
    layout = Layout(names="gguf")
    files = random_files(DENSE, joined, names="gguf")
    kept, floats = blocks(files, ["blk.0.attn_k.weight"])
    made = conversion(Held(kept, layout), DENSE, layout, joined)
    data = written(made)["model.layers.0.self_attn.qkv_proj.weight"][2].reshape(512, 256)
    assert np.array_equal(data, np.concatenate([floats[f"blk.0.attn_{name}.weight"] for name in "qkv"]))
    with pytest.raises(FormatError, match="tensors of different types that go into one cannot be kept"):
        made.moves("keep")


def turned(config, layout):
    """Hugging Face's file has o_proj as its transpose."""
    if layout.names == "gguf":
        return decoder_rules(config, layout)
    name = "layers.{layer}.self_attn.o_proj.weight"
    added = transpose(f"model.{name}", name, "hidden_size", "num_attention_heads*head_dim")
    return decoder_rules(config, layout, drop=["self_attn.o_proj"], add=[added])


def cut(config, layout):
    """Hugging Face's file has gate and up beside each other, so that a row is cut."""
    if layout.names == "gguf":
        return decoder_rules(config, layout)
    parts = [(f"layers.{{layer}}.mlp.{name}_proj.weight", "intermediate_size") for name in ("gate", "up")]
    added = split("model.layers.{layer}.mlp.both.weight", parts, "hidden_size", dim=1, operation=Transpose())
    return decoder_rules(config, layout, drop=["mlp.gate_proj", "mlp.up_proj"], add=[added])


@pytest.mark.parametrize(
    ("rules", "names", "problem"),
    [
        (turned, ["blk.0.attn_output.weight"], "Q4_K cannot be kept through Transpose"),
        (cut, ["blk.0.ffn_gate.weight", "blk.0.ffn_up.weight"], "Q4_K cannot be kept (through Transpose|where a row is cut)"),
    ],
)
def test_blocks_that_cannot_go_through_are_refused_by_name(rules, names, problem):
    layout = Layout(names="gguf")
    kept, floats = blocks(random_files(DENSE, rules, names="gguf"), names)
    made = conversion(Held(kept, layout), DENSE, layout, rules)
    with pytest.raises(FormatError, match=problem) as caught:
        made.moves("keep")
    assert caught.value.finding.field in names
    assert caught.value.finding.hint == "Take --dtype f32."
    found = written(made)
    if rules is turned:
        data = found["model.layers.0.self_attn.o_proj.weight"][2].reshape(256, 256)
        assert np.array_equal(data, floats[names[0]].T)
    else:
        data = found["model.layers.0.mlp.both.weight"][2].reshape(256, 1024)
        assert np.array_equal(data, np.concatenate([floats[name].T for name in names], 1))


@pytest.mark.parametrize("stored", ["F32", "BF16", "F16"])
def test_a_gguf_norm_less_its_offset_is_what_hugging_face_has(stored):
    layout = Layout(names="gguf")
    files = random_files(GEMMA, names="gguf")
    bits = {"F32": lambda array: array, "BF16": f32_to_bf16, "F16": lambda array: array.astype(np.float16)}[stored]
    made = conversion(Held({name: bits(array) for name, array in files.items()}, layout, stored), GEMMA, layout)
    found = written(made)
    kind, _, data = found["model.norm.weight"]
    expected = files["output_norm.weight"] - 1
    assert kind == ("F32" if stored == "F32" else stored)
    assert np.array_equal(data, bits(expected))
    assert np.array_equal(found["model.embed_tokens.weight"][2], bits(files["token_embd.weight"]).reshape(-1))
    assert not any(move.reorders for move in made.moves(None))


def sides_of(config, a, b, rules=decoder_rules):
    made = family(config, rules)
    return list(tensor_diffs(a, b, _by_parameter(made, a.header, b.header, "")))


@pytest.mark.parametrize("blocked", [False, True])
def test_stacks_and_separate_experts_are_compared_expert_by_expert(blocked):
    layout = Layout(names="gguf")
    kept, _ = blocks(random_files(MOE, names="gguf"), STACKS if blocked else [])
    held = Held(kept, layout)
    shapes = NameMap.for_config(MOE, decoder_rules(MOE, Layout())).tensors
    found = written(conversion(held, MOE, layout))
    arrays = {name: found[name][2].reshape(shape).copy() for name, shape in shapes.items()}
    arrays["model.layers.0.mlp.experts.2.up_proj.weight"][7, 9] += 0.5
    for order in ((held, Held(arrays, Layout())), (Held(arrays, Layout()), held)):
        diffs = sides_of(MOE, *order)
        assert [item.name for item in diffs if item.differs(0)] == ["layers.0.mlp.experts.up_proj [expert 2]"]
        (one,) = [item for item in diffs if item.differs(0)]
        assert abs(one.distance.max_abs - 0.5) < 1e-3
        assert {one.a.name, one.b.name} == {STACKS[1], "model.layers.0.mlp.experts.2.up_proj.weight"}
        assert one.a.shape == one.b.shape == (256, 256)
        assert len(diffs) == len(shapes)
    del arrays["model.layers.0.mlp.experts.3.down_proj.weight"]
    missing = {item.name: item.status for item in sides_of(MOE, held, Held(arrays, Layout())) if item.status != "same"}
    assert missing["layers.0.mlp.experts.down_proj [expert 3]"] == "missing in B"


def test_a_fused_tensor_is_compared_with_its_parts():
    layout = Layout(names="gguf")
    files = random_files(DENSE, apart, names="gguf")
    held = Held(files, layout)
    found = written(conversion(held, DENSE, layout, apart))
    other = Held({name: data.reshape(shape) for name, (_, shape, data) in found.items()}, Layout())
    assert [item.name for item in sides_of(DENSE, held, other, apart) if item.status != "same"] == []


def test_an_offset_is_no_difference():
    layout = Layout(names="gguf")
    held = Held(random_files(GEMMA, names="gguf"), layout)
    found = written(conversion(held, GEMMA, layout))
    other = Held({name: data.reshape(shape) for name, (_, shape, data) in found.items()}, Layout())
    assert [item.name for item in sides_of(GEMMA, held, other) if item.status != "same"] == []


def test_memory_of_a_conversion_is_one_written_tensor(tmp_path):
    """A stack of 16 experts is not put together, nor taken apart at once."""
    config = attrs.evolve(MOE, num_experts=16, moe_intermediate_size=1024)
    files = random_files(config, experts="stacked")
    save_file(files, tmp_path / "model.safetensors")
    expert = 4 * 256 * 1024
    with open_checkpoint(tmp_path / "model.safetensors") as checkpoint:
        layout = Layout(experts="stacked")
        made = conversion(checkpoint, config, layout)
        moves = made.moves(None)
        specs = [TensorSpec(move.target, move.dtype, move.shape) for move in moves]
        tracemalloc.start()
        with AprWriter(tmp_path / "x.apr", {}, specs) as writer:
            for move in moves:
                writer.write(move.target, made.data(move))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 2.5 * expert
    with open_checkpoint(tmp_path / "x.apr") as checkpoint:
        found = checkpoint.read("model.layers.0.mlp.experts.11.up_proj.weight").data
        assert np.array_equal(found, files["model.layers.0.mlp.experts.gate_up_proj"][11, 1024:])
