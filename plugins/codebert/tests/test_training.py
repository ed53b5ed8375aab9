"""CodeBERT through the command line: it trains on the masked-LM objective, and the causal trainer refuses it."""

import inspect
import textwrap

import pytest
import torch
from apr_train.cli import cli
from apr_train.testing import installed_family, model_from_file
from click.testing import CliRunner
from transformers import RobertaConfig, RobertaForMaskedLM, RobertaModel

QUICK = ("--seq-len", 64, "--batch-size", 16, "--val-every", 0, "--precision", "fp32", "--no-compile", "--attention", "sdpa")


def train(tmp_path, *arguments):
    common = ("--arch", "codebert", "--out", tmp_path / "runs", "--run", "test", "--data", corpus(tmp_path), *QUICK)
    return CliRunner().invoke(cli, [str(argument) for argument in (*common, *arguments)])


def corpus(tmp_path):
    """Ten files of real code that are not copies of each other: duplicates would be left out."""
    folder = tmp_path / "corpus"
    folder.mkdir(exist_ok=True)
    for number in range(10):
        text = inspect.getsource(textwrap).replace("self", f"self{number}").replace("text", f"text{number}")
        (folder / f"{number}.py").write_text(text[: 8000 + 500 * number])
    return folder


def test_masked_lm_training_learns_and_its_file_loads_again(tmp_path):
    result = train(tmp_path, "--preset", "tiny", "--steps", 40, "--lr", 3e-3)
    assert result.exit_code == 0, result.output
    first, last = (float(part) for part in result.output.split("validation loss")[1].split("\n")[0].split("→"))
    assert 6.5 < first < 7.2  # ln(1024) = 6.93: knows nothing
    assert last < first - 0.7
    _, report = model_from_file(installed_family("codebert"), tmp_path / "runs" / "test" / "model.apr")
    assert (report.fresh, report.ignored) == ((), ())


@pytest.mark.rule("FALSIFY-APR-PRETRAIN-ARCH-007")
@pytest.mark.parametrize("model_class", [RobertaModel, RobertaForMaskedLM])
def test_causal_trainer_refuses_it(tmp_path, model_class):
    sizes = {"vocab_size": 300, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    model_class(RobertaConfig(**sizes, max_position_embeddings=130, type_vocab_size=1)).save_pretrained(tmp_path / "init")
    result = train(tmp_path, "--init", tmp_path / "init", "--objective", "causal-lm", "--steps", 1)
    assert result.exit_code == 3
    for word in ("FALSIFY-APR-PRETRAIN-ARCH-007", "Encoder", "decoder-only", model_class.__name__):
        assert word in result.output
    assert not (tmp_path / "runs" / "test" / "model.apr").exists()


def test_head_of_a_bare_file_is_fresh_and_that_is_repeatable(tmp_path):
    sizes = {"vocab_size": 300, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    RobertaModel(RobertaConfig(**sizes, max_position_embeddings=130, type_vocab_size=1)).save_pretrained(tmp_path)
    family = installed_family("codebert")
    heads = [model_from_file(family, tmp_path, seed=seed)[0].lm_head.dense.weight for seed in (0, 0, 1)]
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])
