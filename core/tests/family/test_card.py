"""The data card: in which layout a file of the family is."""

import pytest
from apr_train.checkpoint.header import Header, TensorInfo
from apr_train.family.card import FamilyInfo, Layout

INFO = FamilyInfo(
    name="one",
    api_version="1.0",
    kind="decoder",
    objectives=("causal-lm",),
    hf_classes=("OneForCausalLM",),
    model_type="one",
    presets=("tiny",),
    default_preset="tiny",
)


@pytest.mark.parametrize(
    ("values", "name", "layout"),
    [
        ({"rope_rows": "split-half"}, "model.norm.weight", Layout()),
        ({"rope_rows": None}, "model.norm.weight", Layout()),
        ({"rope_rows": "split-half"}, "norm.weight", Layout(bare=True)),
        ({"names": "gguf", "rope_rows": "adjacent"}, "output_norm.weight", Layout(names="gguf", rope_rows="adjacent")),
    ],
)
def test_names_and_rows_make_the_layout_and_a_file_without_the_prefix_is_bare(values, name, layout):
    header = Header(path="f", format="safetensors", tensors={name: TensorInfo(name, "F32", (1,), 4)}, **values)
    assert INFO.layout_of(header) == layout
