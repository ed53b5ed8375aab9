"""Tokens that a run adds to a vocabulary, through the command line: against transformers, resumed, exported, refused."""

import json
import math
import shutil

import gguf
import numpy as np
import pytest
import torch
from apr_train.checkpoint.apr import open_apr
from apr_train.checkpoint.grown import Grown
from apr_train.checkpoint.open import open_checkpoint
from apr_train.checkpoint.tie import embedding_name
from apr_train.data.tokenizer import build_tokenizer
from apr_train.model.decoder import Decoder
from apr_train.testing import installed_family, model_from_file, our_logits
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer

torch.set_num_threads(1)
ARCHS = ("qwen2", "llama370m", "codebert")
TOKENS = ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>", "deoxyribose")
HOW = ("--precision", "fp32", "--allow-cold-init", "--batch-size", "4")


@pytest.fixture
def tokens(place):
    path = place.folder / "tokens.txt"
    path.write_text("\n".join(TOKENS) + "\n")
    return path


def transformers_model(arch, folder):
    auto = AutoModelForMaskedLM if arch == "codebert" else AutoModelForCausalLM
    return auto.from_pretrained(folder).eval()


def logits(arch, path, rows):
    family = installed_family(arch)
    return our_logits(family, model_from_file(family, path)[0], rows)


def old_rows(size, *, length=24):
    return torch.randint(5, size - 5, (2, length), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
@pytest.mark.parametrize("arch", ARCHS)
def test_old_logits_stay_and_new_ones_are_those_of_transformers_resized_model(place, bases, tokens, arch):
    """Tied and untied heads, and a head with a bias; transformers draws its new rows very close around the mean."""
    base, folder = bases[arch]
    said = place.train("--init", base, "--add-tokens", tokens, "--steps", "0", "--run", "g", *HOW)
    plain = transformers_model(arch, folder)
    size = plain.config.vocab_size
    assert f"vocabulary: 4 new tokens (4 in new ones), 1 of them words; {size + 4:,} rows" in said
    rows = old_rows(size)
    grown = logits(arch, place.run("g") / "model.apr", rows)
    assert grown.shape[-1] == size + 4
    assert torch.equal(grown[..., :size], logits(arch, base, rows))
    plain.resize_token_embeddings(size + 4)
    theirs = plain(rows).logits
    assert float((grown - theirs).abs().max()) <= 2e-4
    rows[:, 3] = size + 1  # a new token is read as the mean of all
    theirs = plain(rows).logits
    assert float((logits(arch, place.run("g") / "model.apr", rows) - theirs).abs().max()) <= 1e-3


@torch.no_grad()
def test_the_loss_on_old_text_grows_by_the_logarithm_of_the_share_at_most(place, taught, tokens):
    """Of the mean by Jensen's inequality; see docs/training.md."""
    place.train("--init", taught, "--add-tokens", tokens, "--steps", "0", "--run", "g", *HOW)
    with open_checkpoint(taught) as checkpoint:
        size = checkpoint.header.tokenizer.size
    rows = old_rows(size, length=30)
    before, after = (logits("llama370m", path, rows).logsumexp(-1) for path in (taught, place.run("g") / "model.apr"))
    assert float((after - before).max()) <= math.log1p(len(TOKENS) / size) + 1e-5
    assert float((after - before).min()) > 0


@pytest.mark.parametrize("arch", ARCHS)
def test_an_export_opens_in_transformers_with_the_new_tokens_and_our_logits(place, bases, tokens, arch):
    base, _ = bases[arch]
    place.train("--init", base, "--add-tokens", tokens, "--steps", "2", "--lr", "1e-2", "--run", "g", *HOW)
    place("export", place.run("g"), "-o", "out")
    theirs = transformers_model(arch, "out")
    size = theirs.config.vocab_size
    tokenizer = AutoTokenizer.from_pretrained("out")
    assert [tokenizer.encode(token, add_special_tokens=False) for token in TOKENS] == [[size - 4 + n] for n in range(4)]
    special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    assert set(TOKENS) & special == set(TOKENS[:3])
    rows = old_rows(size)
    with torch.no_grad():
        assert float((theirs(rows).logits - logits(arch, place.run("g") / "model.apr", rows)).abs().max()) <= 1e-5


def test_free_rows_are_taken_first(place, bases, tokens):
    """A folder whose tokenizer has three tokens fewer than the embedding has rows."""
    folder = place.folder / "roomy"
    shutil.copytree(bases["qwen2"][1], folder)
    content = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = content["model"]["vocab"]
    size = max([*vocabulary.values(), *(token["id"] for token in content["added_tokens"])]) + 1
    content["added_tokens"] = [token for token in content["added_tokens"] if token["id"] < size - 3]
    content["model"]["vocab"] = {token: index for token, index in vocabulary.items() if index < size - 3}
    merges = (merge if isinstance(merge, list) else merge.split(" ") for merge in content["model"]["merges"])
    content["model"]["merges"] = [pair for pair in merges if {*pair, "".join(pair)} <= content["model"]["vocab"].keys()]
    (folder / "tokenizer.json").write_text(json.dumps(content))
    said = place.train("--init", folder, "--add-tokens", tokens, "--steps", "0", "--run", "g", *HOW)
    assert f"4 new tokens (3 in free rows, 1 in new ones), 1 of them words; {size + 1:,} rows" in said
    with open_checkpoint(folder) as before, open_checkpoint(place.run("g") / "model.apr") as after:
        name = embedding_name(before.header.tensors)
        old, new = before.read(name).data, after.read(name).data
    assert new.shape[0] == old.shape[0] + 1 == size + 1
    assert np.array_equal(new[: size - 3], old[: size - 3])
    mean = old[: size - 3].astype(np.float64).mean(axis=0)
    assert all(np.array_equal(row, mean.astype(np.float32)) for row in new[size - 3 :])


def test_rows_of_the_pieces_are_the_mean_of_the_text(place, taught, tokens):
    place.train("--init", taught, "--add-tokens", tokens, "--new-rows", "pieces", "--steps", "0", "--run", "g", *HOW)
    with open_checkpoint(taught) as before, open_checkpoint(place.run("g") / "model.apr") as after:
        tokenizer = build_tokenizer(before.header.tokenizer)
        for name, rows in ((name, before.read(name).data) for name in before.header.tensors):
            if rows.shape[0] != tokenizer.size:
                continue
            for place_, token in enumerate(TOKENS):
                mean = rows[tokenizer.encode(token)].astype(np.float64).mean(axis=0)
                assert np.array_equal(after.read(name).data[tokenizer.size + place_], mean.astype(np.float32))


def test_a_run_with_new_tokens_goes_on_bit_for_bit_without_their_file(place, taught, tokens):
    args = ("--init", taught, "--add-tokens", tokens, "--objective", "fim", "--steps", "6", "--save-every", "3", "--keep", "0")
    place.train(*args, "--run", "whole", *HOW)
    place.train(*args, "--run", "parts", *HOW)
    shutil.rmtree(place.run("parts") / "step-000006")
    (place.run("parts") / "model.apr").unlink()
    tokens.unlink()
    place("--resume", place.run("parts"))
    place.assert_same_end("whole", "parts", step=6)


def test_a_run_that_was_stopped_before_its_first_checkpoint_adds_them_again(place, taught, tokens):
    place.train("--init", taught, "--add-tokens", tokens, "--steps", "2", "--run", "whole", *HOW)
    place.train("--init", taught, "--add-tokens", tokens, "--steps", "2", "--run", "parts", *HOW)
    for item in place.run("parts").iterdir():
        if item.name not in ("config.toml", "identity.json", "preflight.json"):
            shutil.rmtree(item) if item.is_dir() else item.unlink()
    place("--resume", place.run("parts"))
    place.assert_same_end("whole", "parts", step=2)
    assert "--add-tokens: a resume cannot change this" in place("--resume", place.run("parts"), "--add-tokens", taught, code=1)


def test_the_model_tells_what_was_added_and_is_a_base_like_every_other(place, taught, tokens):
    place.train("--init", taught, "--add-tokens", tokens, "--steps", "0", "--run", "g", *HOW)
    model = place.run("g") / "model.apr"
    with open_apr(model) as checkpoint, open_checkpoint(taught) as base:
        size = base.header.tokenizer.size
        run = checkpoint.raw_metadata["apr_train.run"]
        assert run["added_tokens"] == {token: size + place_ for place_, token in enumerate(TOKENS)}
        assert run["init"] == base.content_hash()
        assert checkpoint.raw_metadata["vocab_size"] == size + 4
    assert "FIM-003" not in place.train("--init", taught, "--add-tokens", tokens, "--objective", "fim", "--dry-run", *HOW)
    assert "ready: 0 errors" in place.train("--init", model, "--objective", "fim", "--dry-run", *HOW)
    assert "0 errors" in place("check", model)


def test_gguf_has_them_with_their_types(place, taught, tokens):
    place.train("--init", taught, "--add-tokens", tokens, "--steps", "0", "--run", "g", *HOW)
    place("export", place.run("g"), "-o", "g.gguf", "--format", "gguf", "--dtype", "f32")
    reader = gguf.GGUFReader("g.gguf")
    fields = {name: reader.get_field(f"tokenizer.ggml.{name}").contents() for name in ("tokens", "token_type")}
    assert fields["tokens"][-4:] == list(TOKENS)
    control, word = int(gguf.TokenType.CONTROL), int(gguf.TokenType.USER_DEFINED)
    assert fields["token_type"][-4:] == [control, control, control, word]
    embedding = next(tensor for tensor in reader.tensors if tensor.name == "token_embd.weight")
    assert embedding.data.shape[0] == len(fields["tokens"])


def refused(place, *args, code=3):
    said = place.train(*args, *HOW, code=code)
    assert not (place.folder / "runs").exists()
    return said


@pytest.mark.rule("TOKENS-001")
def test_bad_tokens_are_told_before_anything_is_made(place, taught, tokens):
    tokens.write_text("new\nreturn\n\nnew\n")
    said = refused(place, "--init", taught, "--add-tokens", tokens, "--sequence-length", "999999")
    assert said.count("TOKENS-001") == 2
    assert "PREFLIGHT-009" in said
    tokens.write_text("<|x|>\ndef\n")
    assert "a token that the tokenizer has already" in refused(place, "--init", taught, "--add-tokens", tokens)
    assert "cannot be read" in refused(place, "--init", taught, "--add-tokens", "absent.txt")


@pytest.mark.rule("TOKENS-002")
def test_what_cannot_grow_is_refused_with_the_reason(place, taught, tokens):
    scratch = ("--arch", "llama370m", "--preset", "tiny")
    assert "a model from scratch has no vocabulary that could grow" in refused(place, *scratch, "--add-tokens", tokens)
    said = refused(place, "--init", taught, "--add-tokens", tokens, "--lora-rank", "4")
    assert "adapters leave embedding and head as they are" in said
    said = refused(place, "--init", taught, "--new-rows", "pieces")
    assert said.count("--new-rows: this would change nothing") == said.count("--new-rows:") == 1


@pytest.mark.rule("TOKENS-002")
@pytest.mark.parametrize("arch", ["qwen2", "llama370m"])
def test_new_rows_that_a_group_would_freeze_are_refused(place, bases, tokens, arch):
    config, args = place.folder / "run.toml", ("--init", bases[arch][0], "--add-tokens", tokens, "--config")
    config.write_text('[[optimizer.group]]\npattern = "model.embed_tokens.*"\nfrozen = true\n')
    said = refused(place, *args, config)
    assert "TOKENS-002: --add-tokens: rows of new tokens would be frozen" in said
    assert "freezes embed_tokens.weight" in said
    config.write_text('[[optimizer.group]]\npattern = "model.layers.0.*"\nfrozen = true\n')
    place.train(*args, config, *HOW, "--dry-run")


def test_a_tokenizer_of_ones_own_grows_too(place, bases, tokens):
    base, folder = bases["qwen2"]
    args = ("--init", base, "--tokenizer", folder, "--add-tokens", tokens, "--save-every", "1", "--keep", "0", "--steps", "2")
    place.train(*args, "--run", "g", *HOW)
    with open_checkpoint(place.run("g") / "model.apr") as checkpoint:
        assert [token.content for token in checkpoint.header.tokenizer.added_tokens][-4:] == list(TOKENS)
    shutil.rmtree(place.run("g") / "step-000002")
    before = (place.run("g") / "model.apr").read_bytes()
    place("--resume", place.run("g"))
    assert (place.run("g") / "model.apr").read_bytes() == before


@pytest.mark.rule("TOKENS-003")
def test_a_row_of_an_old_token_that_changes_ends_the_run(place, taught, tokens, monkeypatch):
    right = Grown.grown

    def wrong(self, name, pieces):
        view = right(self, name, pieces)
        view.data[7] += 1
        return view

    monkeypatch.setattr(Grown, "grown", wrong)
    said = refused(place, "--init", taught, "--add-tokens", tokens, code=1)
    assert "TOKENS-003" in said
    assert "rows of old tokens as the file has them" in said


@pytest.mark.rule("TOKENS-003")
def test_a_model_whose_logits_depend_on_all_rows_ends_the_run(place, taught, tokens, monkeypatch):
    right = Decoder.hidden_states

    def scaled(self, *args, **named):
        return right(self, *args, **named) * len(self.head_weight)

    monkeypatch.setattr(Decoder, "hidden_states", scaled)
    said = refused(place, "--init", taught, "--add-tokens", tokens, code=1)
    assert "TOKENS-003" in said
    assert "the logits of the file's own matrices" in said
