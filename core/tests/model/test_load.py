"""Weights arrive where the plan says, converted as asked; whatever cannot be accounted for is an error."""

from __future__ import annotations

import pkgutil
from pathlib import Path

import numpy as np
import pytest
import torch
from apr_train.checkpoint.apr import AprWriter, TensorSpec, open_apr
from apr_train.checkpoint.checkpoint import TensorView
from apr_train.checkpoint.header import Header, TensorInfo
from apr_train.errors import FormatError, PreflightError, RunError
from apr_train.family.load_plan import LoadPlan, plan_load
from apr_train.family.name_map import NameMap
from apr_train.family.name_rules import add_offset, concatenate, ignored, rename, rope_rows, split, stack, tie
from apr_train.family.operations import RopeRowPermutation, Transpose
from apr_train.model.load import load_weights
from apr_train.model.tensors import to_torch, to_view
from torch import nn

SIZES = {"vocab": 6, "hidden": 8, "heads": 2, "head_dim": 4, "rows": 8}
RULES = (
    rename("model.embed.weight", "embed.weight", "vocab", "hidden"),
    tie("lm_head.weight", "embed.weight", "vocab", "hidden"),
    rope_rows("model.layers.{layer}.q.weight", "layers.{layer}.q.weight", "rows", "hidden", heads="heads"),
    rename("model.layers.{layer}.norm.weight", "layers.{layer}.norm.weight", "hidden"),
    rename("head.bias", "bias", "vocab", fresh_group="head"),
    ignored("pooler.weight", "masked-LM training does not use it"),
)


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q = nn.Linear(8, 8, bias=False)
        self.norm = nn.RMSNorm(8)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(6, 8)
        self.layers = nn.ModuleList(Layer() for _ in range(2))
        self.bias = nn.Parameter(torch.zeros(6))

    def initialize(self, generator, names=None) -> None:
        for name, parameter in self.named_parameters():
            if names is None or name in names:
                nn.init.normal_(parameter, generator=generator)


def meta_model() -> Model:
    with torch.device("meta"):
        return Model()


def name_map() -> NameMap:
    return NameMap(rules=RULES, sizes=SIZES, num_layers=2)


def tensors(*, bias: bool = True, head: bool = False, pooler: bool = False) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    found = {
        "model.embed.weight": random.standard_normal((6, 8)),
        **{f"model.layers.{layer}.q.weight": random.standard_normal((8, 8)) for layer in range(2)},
        **{f"model.layers.{layer}.norm.weight": random.standard_normal(8) for layer in range(2)},
    }
    if bias:
        found["head.bias"] = random.standard_normal(6)
    if head:
        found["lm_head.weight"] = found["model.embed.weight"].copy()
    if pooler:
        found["pooler.weight"] = random.standard_normal((8, 8))
    return {name: value.astype(np.float32) for name, value in found.items()}


def write(path: Path, values: dict[str, np.ndarray], dtype: str = "F32") -> Path:
    specs = [TensorSpec(name, dtype, value.shape) for name, value in values.items()]
    with AprWriter(path, {"model_type": "test"}, specs) as writer:
        for name, value in values.items():
            torch_dtype = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}[dtype]
            writer.write(name, to_view(torch.from_numpy(value).to(torch_dtype)).data)
    return path


def plan_for(checkpoint) -> LoadPlan:
    return plan_load(name_map(), checkpoint.header.tensors, where="x")


def expected_parameters(values: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """Independently of the loader: rename, and reorder q with numpy."""
    found = {"embed.weight": values["model.embed.weight"]}
    for layer in range(2):
        q = values[f"model.layers.{layer}.q.weight"]
        found[f"layers.{layer}.q.weight"] = q.reshape(2, 2, 2, 8).transpose(0, 2, 1, 3).reshape(8, 8)
        found[f"layers.{layer}.norm.weight"] = values[f"model.layers.{layer}.norm.weight"]
    if "head.bias" in values:
        found["bias"] = values["head.bias"]
    return {name: torch.from_numpy(value.copy()) for name, value in found.items()}


def assert_equal(model: nn.Module, expected: dict[str, torch.Tensor], dtype: torch.dtype = torch.float32) -> None:
    found = dict(model.named_parameters())
    for name, value in expected.items():
        assert found[name].dtype == dtype
        assert torch.equal(found[name].detach(), value.to(dtype)), name


class Plain:
    """A checkpoint without streaming, as the other containers are."""

    def __init__(self, values: dict[str, np.ndarray]) -> None:
        self.values = values
        infos = {name: TensorInfo(name, "F32", value.shape, value.nbytes) for name, value in values.items()}
        self.header = Header(path="plain", format="safetensors", tensors=infos)

    def read(self, name: str) -> TensorView:
        value = self.values[name].view()
        value.flags.writeable = False
        return TensorView("F32", value)

    def read_raw(self, name: str) -> memoryview:
        return memoryview(self.values[name].tobytes())


@pytest.mark.parametrize("stored", ["F32", "BF16", "F16"])
@pytest.mark.parametrize("wanted", [None, torch.bfloat16, torch.float64])
def test_every_parameter_has_the_files_values_in_the_wanted_dtype(tmp_path, stored, wanted):
    values = tensors()
    model = meta_model()
    with open_apr(write(tmp_path / "x.apr", values, stored)) as checkpoint:
        report = load_weights(model, checkpoint, plan_for(checkpoint), dtype=wanted)
    rounding = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}[stored]
    expected = {name: value.to(rounding) for name, value in expected_parameters(values).items()}
    assert_equal(model, expected, wanted or torch.float32)
    assert len(report.loaded) == 6
    assert report.verified
    assert "6 of 6 tensors" in str(report)


def test_pieces_smaller_than_a_tensor_make_the_same_model(tmp_path, monkeypatch):
    monkeypatch.setattr("apr_train.checkpoint.apr.reader.CHUNK", 24)
    values = tensors(head=True, pooler=True)
    for dtype in (torch.float32, torch.float64):
        model = meta_model()
        with open_apr(write(tmp_path / "x.apr", values)) as checkpoint:
            load_weights(model, checkpoint, plan_for(checkpoint), dtype=dtype)
        assert_equal(model, expected_parameters(values), dtype)


def test_a_container_without_streaming_loads_the_same(tmp_path):
    values = tensors(head=True)
    model = meta_model()
    report = load_weights(model, Plain(values), plan_for(Plain(values)))
    assert_equal(model, expected_parameters(values))
    assert not report.verified
    assert report.duplicates == ("lm_head.weight",)
    assert "not verified" in str(report)


def test_block_quantised_tensors_are_decoded_into_the_model(tmp_path):
    model = nn.Module()
    model.weight = nn.Parameter(torch.empty(4, 16, device="meta", dtype=torch.bfloat16))
    raw = np.random.default_rng(0).integers(0, 256, (2, 18), dtype=np.uint8)
    raw[:, :2] = np.frombuffer(np.float16(0.25).tobytes(), np.uint8)
    with AprWriter(tmp_path / "x.apr", {}, [TensorSpec("w", "APR_Q4", (4, 16))]) as writer:
        writer.write("w", raw)
    table = NameMap(rules=(rename("w", "weight", "a", "b"),), sizes={"a": 4, "b": 16}, num_layers=1)
    with open_apr(tmp_path / "x.apr") as checkpoint:
        load_weights(model, checkpoint, plan_load(table, checkpoint.header.tensors, where="x"))
        assert torch.equal(model.weight.detach(), to_torch(checkpoint.read("w")).bfloat16())


@pytest.mark.parametrize("plain", [True, False])
def test_a_tied_tensor_stored_twice_must_be_equal(tmp_path, plain):
    values = tensors(head=True)
    values["lm_head.weight"][5, 7] += 1
    model = meta_model()
    with open_apr(write(tmp_path / "x.apr", values)) as reader:
        checkpoint = Plain(values) if plain else reader
        with pytest.raises(PreflightError, match=r"FALSIFY-APR-PRETRAIN-INIT-007.*lm_head.weight") as caught:
            load_weights(model, checkpoint, plan_for(checkpoint))
    assert caught.value.findings[0].expected == "the bytes of model.embed.weight"
    assert all(parameter.is_meta for parameter in model.parameters())


def test_a_tied_tensor_of_another_dtype_is_not_equal(tmp_path):
    values = tensors(head=True)
    specs = [TensorSpec(name, "F16" if name == "lm_head.weight" else "F32", value.shape) for name, value in values.items()]
    with AprWriter(tmp_path / "x.apr", {}, specs) as writer:
        for name, value in values.items():
            writer.write(name, value.astype(np.float16) if name == "lm_head.weight" else value)
    with open_apr(tmp_path / "x.apr") as checkpoint, pytest.raises(PreflightError, match="INIT-007"):
        load_weights(meta_model(), checkpoint, plan_for(checkpoint))


def test_what_the_file_lacks_is_initialised_and_said_and_what_is_ignored_too(tmp_path):
    values = tensors(bias=False, pooler=True)
    models = [meta_model(), meta_model()]
    for model in models:
        with open_apr(write(tmp_path / "x.apr", values)) as checkpoint:
            report = load_weights(model, checkpoint, plan_for(checkpoint), generator=torch.Generator().manual_seed(3))
    assert report.fresh == ("bias",)
    assert report.ignored == (("pooler.weight", "masked-LM training does not use it"),)
    assert "freshly initialised: bias" in str(report)
    assert "pooler.weight ignored" in str(report)
    assert models[0].bias.detach().abs().sum() > 0
    assert torch.equal(models[0].bias, models[1].bias)
    assert_equal(model, expected_parameters(values))


def test_a_plan_with_findings_is_refused_before_anything_is_allocated(tmp_path):
    values = tensors()
    del values["model.layers.1.norm.weight"]
    values["model.layers.1.nrom.weight"] = np.zeros(8, np.float32)
    model = meta_model()
    with open_apr(write(tmp_path / "x.apr", values)) as checkpoint, pytest.raises(PreflightError, match="nrom") as caught:
        load_weights(model, checkpoint, plan_for(checkpoint))
    assert len(caught.value.findings) == 2
    assert all(parameter.is_meta for parameter in model.parameters())


def test_a_model_with_a_parameter_that_no_rule_fills_is_refused(tmp_path):
    model = meta_model()
    model.extra = nn.Parameter(torch.empty(3, device="meta"))
    del model.bias
    with open_apr(write(tmp_path / "x.apr", tensors())) as checkpoint, pytest.raises(PreflightError) as caught:
        load_weights(model, checkpoint, plan_for(checkpoint))
    assert {finding.where for finding in caught.value.findings} == {
        f"{tmp_path / 'x.apr'} [extra]",
        f"{tmp_path / 'x.apr'} [bias]",
    }
    assert "INIT-007" in str(caught.value)


def test_a_model_with_a_buffer_that_nothing_can_fill_is_refused(tmp_path):
    model = meta_model()
    model.register_buffer("table", torch.empty(3, device="meta"))
    with open_apr(write(tmp_path / "x.apr", tensors())) as checkpoint, pytest.raises(RunError, match="table"):
        load_weights(model, checkpoint, plan_for(checkpoint))


def test_a_damaged_file_is_noticed_before_the_model_is_handed_back(tmp_path):
    path = write(tmp_path / "x.apr", tensors(pooler=True))
    raw = path.read_bytes()
    with open_apr(path) as reader:
        data = int.from_bytes(raw[32:40], "little")
        places = {name: data + entry.offset for name, entry in reader.entries.items()}
    for name, place in places.items():
        path.write_bytes(raw[:place] + bytes([raw[place] ^ 1]) + raw[place + 1 :])
        model = meta_model()
        with open_apr(path) as checkpoint, pytest.raises(FormatError, match="checksum"):
            load_weights(model, checkpoint, plan_for(checkpoint))
        assert all(parameter.is_meta for parameter in model.parameters()), name


@pytest.fixture
def threads(monkeypatch):
    """Three of them, for pieces of a few bytes."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    monkeypatch.setattr("apr_train.checkpoint.apr.reader.CHUNK", 16)
    monkeypatch.setattr("apr_train.checkpoint.apr.reader._CUTS", 2)


@pytest.mark.usefixtures("threads")
def test_threads_bring_every_value_to_its_place_and_tell_all_bytes(tmp_path):
    values, told = tensors(pooler=True), []
    with open_apr(write(tmp_path / "x.apr", values)) as checkpoint:
        model = meta_model()
        report = load_weights(model, checkpoint, plan_for(checkpoint), progress=told.append)
    assert np.array_equal(model.embed.weight.detach(), values["model.embed.weight"])
    assert np.array_equal(model.layers[1].norm.weight.detach(), values["model.layers.1.norm.weight"])
    used = sum(value.nbytes for name, value in values.items() if name != "pooler.weight")
    assert report.bytes_read == sum(told) == used


@pytest.mark.usefixtures("threads")
def test_threads_notice_a_damaged_byte_wherever_it_is_and_leave_the_model_untouched(tmp_path):
    path = write(tmp_path / "x.apr", tensors())
    raw = path.read_bytes()
    for place in range(int.from_bytes(raw[32:40], "little"), len(raw) - 4, 37):
        path.write_bytes(raw[:place] + bytes([raw[place] ^ 1]) + raw[place + 1 :])
        model = meta_model()
        with open_apr(path) as checkpoint, pytest.raises(FormatError, match="checksum"):
            load_weights(model, checkpoint, plan_for(checkpoint))
        assert all(parameter.is_meta for parameter in model.parameters()), place


@pytest.mark.usefixtures("threads")
def test_a_file_that_ends_while_threads_read_it_leaves_the_model_untouched(tmp_path):
    path, model = write(tmp_path / "x.apr", tensors()), meta_model()
    with open_apr(path) as checkpoint, pytest.raises(FormatError, match="shorter"):
        path.write_bytes(path.read_bytes()[:-100])
        load_weights(model, checkpoint, plan_for(checkpoint))
    assert all(parameter.is_meta for parameter in model.parameters())


@pytest.mark.parametrize("where", ["open", "load"])
def test_verification_that_is_switched_off_says_so(tmp_path, where):
    path = write(tmp_path / "x.apr", tensors())
    raw = path.read_bytes()
    path.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    with open_apr(path, verify=where != "open") as checkpoint:
        report = load_weights(meta_model(), checkpoint, plan_for(checkpoint), verify=False if where == "load" else None)
    assert not report.verified
    assert "checksum not verified" in str(report)


def test_a_shared_parameter_stays_shared(tmp_path):
    class Tied(Model):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(8, 6, bias=False)
            self.head.weight = self.embed.weight

    with torch.device("meta"):
        model = Tied()
    with open_apr(write(tmp_path / "x.apr", tensors())) as checkpoint:
        load_weights(model, checkpoint, plan_for(checkpoint))
    assert model.head.weight is model.embed.weight
    assert not model.head.weight.is_meta


def test_a_frozen_parameter_stays_frozen_and_progress_counts_the_bytes(tmp_path):
    model = meta_model()
    model.embed.weight.requires_grad_(False)
    counts: list[int] = []
    values = tensors(head=True)
    with open_apr(write(tmp_path / "x.apr", values)) as checkpoint:
        report = load_weights(model, checkpoint, plan_for(checkpoint), progress=counts.append)
    assert not model.embed.weight.requires_grad
    assert model.bias.requires_grad
    assert sum(counts) == report.bytes_read == sum(value.nbytes for value in values.values())


def test_loading_twice_gives_the_same_bits(tmp_path):
    path = write(tmp_path / "x.apr", tensors(bias=False))
    models = [meta_model(), meta_model()]
    for model in models:
        with open_apr(path) as checkpoint:
            load_weights(model, checkpoint, plan_for(checkpoint))
    for one, other in zip(*(model.parameters() for model in models), strict=True):
        assert torch.equal(one, other)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_on_a_gpu_has_the_values_of_one_on_the_cpu(tmp_path, dtype):
    values = tensors(head=True)
    model = meta_model()
    with open_apr(write(tmp_path / "x.apr", values)) as checkpoint:
        load_weights(model, checkpoint, plan_for(checkpoint), dtype=dtype, device="cuda")
    assert model.embed.weight.device.type == "cuda"
    assert_equal(model.cpu(), expected_parameters(values), dtype)


def test_the_row_permutation_of_the_test_is_the_operations():
    rows = torch.arange(64.0).reshape(8, 8)
    assert torch.equal(RopeRowPermutation(2).to_parameter(rows), rows.reshape(2, 2, 2, 8).transpose(1, 2).reshape(8, 8))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.uint8])
def test_a_view_of_a_tensor_and_back_shares_memory_and_bits(dtype):
    tensor = (torch.arange(6) * 3).to(dtype).reshape(2, 3)
    view = to_view(tensor)
    back = to_torch(view)
    assert back.dtype == dtype
    assert torch.equal(back, tensor)
    assert back.data_ptr() == tensor.data_ptr() == view.data.ctypes.data


def test_a_read_only_view_becomes_a_tensor_without_a_copy_or_a_warning():
    array = np.arange(4, dtype=np.float32)
    array.flags.writeable = False
    assert to_torch(TensorView("F32", array)).data_ptr() == array.ctypes.data


def test_a_dtype_that_a_side_does_not_have_is_a_format_error():
    with pytest.raises(FormatError, match="complex"):
        to_view(torch.zeros(1, dtype=torch.complex64))
    with pytest.raises(FormatError, match="Q4_K"):
        to_torch(TensorView("Q4_K", np.zeros(1, np.uint8)))


PARTS_SIZES = {"hidden": 8, "rows": 6, "num_experts": 3}
PARTS = (
    *split("qkv", [("q", "hidden"), ("k", "2"), ("v", "2")], "hidden"),
    *split("c_attn", [("a", "hidden"), ("b", "rows")], "hidden", dim=1, operation=Transpose()),
    stack("experts.{expert}.w", "experts", "rows", "hidden"),
    *concatenate([("left", "2"), ("right", "rows")], "joined", "hidden", dim=1),
    add_offset("norm", "norm", "hidden", offset=1.0),
)


def parted():
    """Tensors of a file, a meta model and what its parameters must be, by numpy alone."""
    random = np.random.default_rng(0)
    shapes = {"qkv": (12, 8), "c_attn": (8, 14), "left": (8, 2), "right": (8, 6), "norm": (8,)}
    shapes |= {f"experts.{expert}.w": (6, 8) for expert in range(3)}
    files = {name: (random.integers(-9, 9, shape) / 8).astype(np.float32) for name, shape in shapes.items()}
    expected = {"q": files["qkv"][:8], "k": files["qkv"][8:10], "v": files["qkv"][10:]}
    expected |= {"a": files["c_attn"][:, :8].T, "b": files["c_attn"][:, 8:].T, "norm": files["norm"] - 1}
    expected["experts"] = np.stack([files[f"experts.{expert}.w"] for expert in range(3)])
    expected["joined"] = np.concatenate([files["left"], files["right"]], 1)
    model = nn.Module()
    for name, value in expected.items():
        model.register_parameter(name, nn.Parameter(torch.empty(value.shape, device="meta")))
    return files, model, {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in expected.items()}


@pytest.mark.parametrize("stored", ["F32", "BF16", "F16"])
@pytest.mark.parametrize("wanted", [None, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("plain", [True, False])
def test_parts_and_operations_arrive_where_they_belong(tmp_path, stored, wanted, plain):
    files, model, expected = parted()
    table = NameMap(rules=PARTS, sizes=PARTS_SIZES, num_layers=1)
    with open_apr(write(tmp_path / "x.apr", files, stored)) as reader:
        checkpoint = Plain(files) if plain else reader
        report = load_weights(model, checkpoint, plan_load(table, checkpoint.header.tensors, where="x"), dtype=wanted)
    assert_equal(model, expected, wanted or torch.float32)
    assert sorted(report.loaded) == sorted(files)
    assert str(report).startswith("8 of 8 tensors accounted for: 8 loaded")


def test_experts_are_read_straight_into_their_stack(tmp_path, monkeypatch):
    """One that is cut, joined along its columns or changed goes through memory of its own, and no other does."""
    files, model, _ = parted()
    staged = []
    monkeypatch.setattr("apr_train.model.load._Source._staged", note(staged, "apr_train.model.load._Source._staged"))
    table = NameMap(rules=PARTS, sizes=PARTS_SIZES, num_layers=1)
    with open_apr(write(tmp_path / "x.apr", files)) as checkpoint:
        load_weights(model, checkpoint, plan_load(table, checkpoint.header.tensors, where="x"))
    assert sorted(staged) == ["c_attn", "left", "norm", "qkv", "right"]


def note(names, target):
    original = pkgutil.resolve_name(target.replace(".load.", ".load:"))

    def noting(self, stream, info):
        names.append(info.name)
        return original(self, stream, info)

    return noting


def test_a_stack_that_lacks_an_expert_leaves_the_model_untouched(tmp_path):
    files, model, _ = parted()
    del files["experts.1.w"]
    files["experts.3.w"] = files["experts.0.w"]
    table = NameMap(rules=PARTS, sizes=PARTS_SIZES, num_layers=1)
    with open_apr(write(tmp_path / "x.apr", files)) as checkpoint, pytest.raises(PreflightError) as caught:
        load_weights(model, checkpoint, plan_load(table, checkpoint.header.tensors, where="x"))
    assert [finding.field for finding in caught.value.findings] == ["experts.1.w", "experts.3.w"]
    assert all(parameter.is_meta for parameter in model.parameters())
