from collections.abc import Sequence

import pytest
from apr_train.data.tokens import TokenFile


class ByteTokenizer:
    """One token a byte, specials above them: small enough to predict by hand."""

    def __init__(self, *, bytes_first: int = 0, extra: int = 0) -> None:
        names = ("bos", "pad", "eos", "unk", "mask")
        self._first = bytes_first
        self.special_ids = {name: bytes_first + 256 + number for number, name in enumerate(names)}
        self.size = bytes_first + 256 + len(names) + extra
        self.fingerprint = f"bytes-{bytes_first}-{extra}"
        self.special_tokens = {}
        self.start_ids = ()
        self.calls = 0

    def id(self, token: str) -> int | None:
        return None

    def boundary(self, left: str, right: str, *, parse_special: bool) -> str:
        return "word"

    def encode_batch(self, texts: Sequence[str], *, parse_special: bool = False) -> list[list[int]]:
        self.calls += 1
        return [[self._first + byte for byte in text.encode()] for text in texts]

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(token - self._first for token in ids if token - self._first < 256).decode()


def make_tokens(lengths: Sequence[int], *, eos: int = 258, key: str = "k") -> TokenFile:
    """Documents of the given lengths (separator included) with ids counting up, so that each place is known."""
    documents, number = [], 0
    for length in lengths:
        documents.append([(number + place) % 256 for place in range(length - 1)] + [eos])
        number += length - 1
    return TokenFile.from_documents(documents, key=key)


@pytest.fixture
def tokenizer():
    return ByteTokenizer()


@pytest.fixture(scope="session")
def byte_tokenizer():
    return ByteTokenizer


@pytest.fixture(scope="session")
def tokens_of():
    return make_tokens


@pytest.fixture
def notices():
    return []


@pytest.fixture
def corpus_folder(tmp_path):
    """Forty small modules."""
    folder = tmp_path / "corpus"
    (folder / "sub").mkdir(parents=True)
    for number in range(40):
        path = folder / ("sub" if number % 2 else "") / f"module_{number:02}.py"
        path.write_text(f"def function_{number}(x):\n    return x + {number}\n\n\nprint(function_{number}({number}))\n")
    return folder
