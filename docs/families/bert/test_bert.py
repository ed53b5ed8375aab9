"""The bert family keeps the contract, computes what transformers does, and trains."""

import pytest
import torch
from apr_train.testing import check_family, check_reference, check_run, installed_family, randomize
from transformers import BertConfig, BertForMaskedLM

CONFIG = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
TOKENS = torch.randint(3, 61, (2, 24), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def family():
    return installed_family("bert")


def reference(**changes):
    config = BertConfig(**CONFIG | changes)
    return randomize(BertForMaskedLM._from_config(config, attn_implementation="eager")).eval()


def test_the_contract_is_kept(family):
    check_family(family)


def test_logits_gradients_and_files_are_those_of_transformers(family, tmp_path):
    check_reference(family, reference(), TOKENS, tmp_path, vanishing=("k_proj.bias",))


def test_a_run_resumes_bit_for_bit_and_is_evaluated(family, tmp_path):
    check_run(family, tmp_path, recompute=True)
