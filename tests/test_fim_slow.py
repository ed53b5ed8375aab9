"""The tokens around a hole in real vocabularies: those of llama.cpp's own tests, read from an unpacked copy of its source."""

import os
from pathlib import Path

import pytest
from apr_train import rules
from apr_train.checkpoint.open import open_checkpoint
from apr_train.data.documents import Document
from apr_train.data.fim_tokens import fim_tokens
from apr_train.data.objectives.fim import FimEncoder, Parts
from apr_train.data.special_tokens import decoder_ends
from apr_train.data.tokenizer import build_tokenizer
from apr_train.data.tokens import TokenFile, TokenWriter
from apr_train.errors import TokenizerError

LLAMA_CPP = os.environ.get("LLAMA_CPP")
"""llama.cpp's folder with `models/`: a checkout, or `vendor/llama.cpp` of llama-cpp-python's source package."""
ROOT = Path(__file__).parents[1]
KEY = "00" * 32

pytestmark = [pytest.mark.slow, pytest.mark.skipif(LLAMA_CPP is None, reason="LLAMA_CPP names no folder of llama.cpp")]


def spec(name):
    with open_checkpoint(Path(LLAMA_CPP) / "models" / f"ggml-vocab-{name}.gguf") as checkpoint:
        return checkpoint.header.tokenizer


class Names:
    """A vocabulary that nothing is encoded with, for pre-tokenizers that are not read here."""

    def __init__(self, tokenizer):
        self._ids = {token: index for index, token in enumerate(tokenizer.vocabulary)}

    def id(self, token):
        return self._ids.get(token)

    def encode_batch(self, texts, *, parse_special=False):
        raise NotImplementedError


@pytest.mark.parametrize(
    ("name", "ids"),
    [("starcoder", (1, 3, 2, 4)), ("refact", (1, 3, 2, 4)), ("deepseek-coder", (32016, 32015, 32017, None))],
)
def test_the_tokens_of_published_vocabularies_are_found(name, ids):
    found = fim_tokens(Names(spec(name)), card={}, setting=None, where=name)
    assert (found.prefix, found.suffix, found.middle, found.pad) == ids


@pytest.mark.parametrize("name", ["qwen2", "llama-bpe"])
def test_a_published_vocabulary_without_them_is_refused(name):
    """Qwen2 had none; Qwen2.5-Coder has."""
    with pytest.raises(TokenizerError) as caught:
        fim_tokens(build_tokenizer(spec(name)), card={}, setting=None, where=name)
    assert caught.value.finding.rule == rules.FIM_001


def test_real_code_is_rearranged_and_can_be_read_back(tmp_path):
    """This repository's own source with a published vocabulary: parts fit their rows, and together are the text."""
    tokenizer = build_tokenizer(spec("starcoder"))
    tokens = fim_tokens(tokenizer, card={}, setting=None, where="starcoder")
    length = 256
    encoder = FimEncoder(
        tokenizer=tokenizer,
        tokens=tokens,
        ends=decoder_ends(tokenizer),
        length=length,
        seed=0,
        rate=1.0,
        spm_rate=0.5,
        parse_special=False,
    )
    paths = sorted((ROOT / "core" / "src").rglob("*.py"))
    documents = [Document(str(path), path.read_text()) for path in paths if path.stat().st_size]
    with TokenWriter(tmp_path / "x.tokens", key=KEY, size=tokenizer.size) as writer:
        encoder.encode(documents, writer, done=lambda _: None)
        writer.finish()
    found = TokenFile.open(tmp_path / "x.tokens", key=KEY, size=tokenizer.size)
    sizes = [end - begin for begin, end in zip(found.starts[:-1].tolist(), found.starts[1:].tolist(), strict=True)]
    assert max(sizes) <= length
    assert sum(sizes) / len(sizes) > 0.75 * length  # short files among them
    assert len(found.starts) == found.counts["fim_parts"] == found.counts["fim_psm"] + found.counts["fim_spm"]
    parts = list(Parts(tokenizer, 200, parse_special=False).of(documents))
    assert "".join(part.text for part in parts) == "".join(document.text for document in documents)
    assert found.text_bytes == sum(len(document.utf8) for document in documents)
