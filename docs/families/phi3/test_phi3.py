"""The phi3 family keeps the contract, computes what transformers does, and trains."""

from pathlib import Path

import pytest
import torch
from apr_train.testing import (
    FLOAT32,
    check_agreement,
    check_family,
    check_reference,
    check_run,
    installed_family,
    model_from_file,
    our_logits,
    randomize,
)
from transformers import Phi3Config, Phi3ForCausalLM

CONFIG = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": None,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "sliding_window": 7,
    "max_position_embeddings": 64,
}
TOKENS = torch.randint(3, 61, (2, 24), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def family():
    return installed_family("phi3")


def reference(**changes):
    config = Phi3Config(**CONFIG | changes)
    return randomize(Phi3ForCausalLM._from_config(config, attn_implementation="eager")).eval()


def test_the_contract_is_kept(family):
    check_family(family)


def test_logits_gradients_and_files_are_those_of_transformers(family, tmp_path):
    check_reference(family, reference(), TOKENS, tmp_path)


def test_a_run_resumes_bit_for_bit_and_is_evaluated(family, tmp_path):
    check_run(family, tmp_path, packing="best-fit", recompute=True)


def test_a_gguf_file_of_llama_cpp_computes_the_same(family):
    model, _ = model_from_file(family, Path(__file__).with_name("llama-cpp.gguf"))
    check_agreement(
        {"logits": our_logits(family, model, TOKENS)},
        {"logits": reference()(input_ids=TOKENS).logits},
        tolerance=FLOAT32,
        where="llama-cpp.gguf",
    )
