"""The gpt2 family keeps the contract, computes what transformers does, and trains."""

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
from transformers import GPT2Config, GPT2LMHeadModel

CONFIG = {
    "vocab_size": 61,
    "n_embd": 32,
    "n_inner": 48,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 64,
    "n_ctx": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
IN_GGUF = {"n_inner": 128}
"""The converter takes no other width than four times the model's."""
TOKENS = torch.randint(3, 61, (2, 24), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def family():
    return installed_family("gpt2")


def reference(**changes):
    config = GPT2Config(**CONFIG | changes)
    return randomize(GPT2LMHeadModel._from_config(config, attn_implementation="eager")).eval()


def test_the_contract_is_kept(family):
    check_family(family)


def test_logits_gradients_and_files_are_those_of_transformers(family, tmp_path):
    check_reference(family, reference(), TOKENS, tmp_path, vanishing=("k_proj.bias",))


def test_a_run_resumes_bit_for_bit_and_is_evaluated(family, tmp_path):
    check_run(family, tmp_path, packing="best-fit", recompute=True)


def test_a_gguf_file_of_llama_cpp_computes_the_same(family):
    model, _ = model_from_file(family, Path(__file__).with_name("llama-cpp.gguf"))
    check_agreement(
        {"logits": our_logits(family, model, TOKENS)},
        {"logits": reference(**IN_GGUF)(input_ids=TOKENS).logits},
        tolerance=FLOAT32,
        where="llama-cpp.gguf",
    )
