"""Merging an adapter takes the memory of a few tensors, however many the base has."""

import tracemalloc
from pathlib import Path

import peft
import pytest
import torch
from apr_train.artifact.convert import import_to_apr, plan_conversion
from apr_train.artifact.merge import merged_checkpoint
from apr_train.family.registry import Registry
from transformers import Qwen2Config, Qwen2ForCausalLM

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
LAYERS = 12


@pytest.fixture
def base(tmp_path):
    torch.manual_seed(0)
    sizes = {"vocab_size": 320, "hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 4}
    config = Qwen2Config(**sizes, num_key_value_heads=4, num_hidden_layers=LAYERS, tie_word_embeddings=True)
    model = Qwen2ForCausalLM(config)
    model.save_pretrained(tmp_path / "base")
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
    adapted.save_pretrained(tmp_path / "adapter")
    return tmp_path / "base"


def test_merging_holds_a_few_tensors_at_a_time(base, tmp_path):
    with merged_checkpoint(tmp_path / "adapter", base) as merged:
        assert len(merged.changed) == 7 * LAYERS
        sizes = [info.nbytes for info in merged.header.tensors.values()]
        conversion = plan_conversion(merged, Registry.discover())
        tracemalloc.start()
        try:
            import_to_apr(conversion, Path(tmp_path / "merged.apr"))
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert peak <= 6 * max(sizes)
    assert peak <= sum(sizes) / 8
