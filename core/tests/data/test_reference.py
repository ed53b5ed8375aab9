"""The reference text: its bytes, its ids, its rows, and that a wheel has it."""

import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from apr_train.checkpoint.reference import KEY, ReferenceLoss, reference_of
from apr_train.data import reference
from apr_train.data.batch import IGNORED
from apr_train.data.objectives import OBJECTIVES
from apr_train.data.reference import SHA256, most_apart, reference_rows, reference_text
from apr_train.errors import DataError, FormatError

CORE = Path(__file__).parents[2]
TEXT = CORE / "src" / "apr_train" / "data" / "reference.txt"


class Bytes:
    """A tokenizer of bytes: id = byte + 8."""

    size = 264
    special_ids: ClassVar = {"bos": 0, "eos": 1, "pad": 2, "mask": 3}
    special_tokens: ClassVar = {"<s>": 0, "</s>": 1, "<pad>": 2, "<mask>": 3}
    start_ids = (0,)

    def encode_batch(self, texts, *, parse_special=False):
        assert not parse_special
        return [[byte + 8 for byte in text.encode()] for text in texts]


def sha256(ids):
    """By the definition in docs/apr-format.md."""
    return hashlib.sha256(b"".join(int(token).to_bytes(8, "little", signed=True) for token in ids)).hexdigest()


def test_the_text_is_the_one_that_its_hash_names_and_about_as_long_as_it_should_be():
    raw = TEXT.read_bytes()
    assert hashlib.sha256(raw).hexdigest() == SHA256
    assert reference_text().encode() == raw
    assert 6000 < len(raw) < 9000


def test_the_code_in_the_text_runs(tmp_path):
    (tmp_path / "test_ferries.py").write_text(reference_text(), encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--doctest-modules", "test_ferries.py"]
    done = subprocess.run(command, cwd=tmp_path, check=False, capture_output=True, text=True)
    assert "3 passed" in done.stdout, done.stdout


@pytest.mark.parametrize("change", [lambda raw: raw + b"\n", lambda raw: raw.replace(b"\n", b"\r\n"), None])
def test_a_text_that_was_changed_is_refused(monkeypatch, tmp_path, change):
    if change is not None:
        (tmp_path / "reference.txt").write_bytes(change(TEXT.read_bytes()))
    monkeypatch.setattr(reference, "files", lambda package: tmp_path)
    with pytest.raises(DataError, match="not the one of this version") as caught:
        reference_text()
    assert caught.value.finding.expected == SHA256
    assert str(tmp_path / "reference.txt") in str(caught.value)


def test_ids_of_a_decoder_begin_as_its_tokenizer_begins_a_text():
    rows = reference_rows(OBJECTIVES["causal-lm"], Bytes(), positions=100)
    ids = [0, *(byte + 8 for byte in TEXT.read_bytes())]
    assert rows.ids == sha256(ids)
    assert rows.sequence_length == 100
    batches = list(rows.batches())
    assert all(batch.tokens.shape == (1, 100) for batch in batches)
    assert batches[0].tokens[0].tolist() == ids[:100]
    targets = [token for batch in batches for token in batch.targets[0].tolist() if token != IGNORED]
    assert targets == ids[1:]  # every token but the first, once


def test_an_encoder_has_the_text_between_its_ends_and_the_same_masks_each_time():
    rows = reference_rows(OBJECTIVES["masked-lm"], Bytes(), positions=4096)
    ids = [byte + 8 for byte in TEXT.read_bytes()]
    assert rows.ids == sha256([0, *ids, 1])
    assert rows.sequence_length == 512
    one, other = (list(rows.batches()) for _ in range(2))
    assert all(
        np.array_equal(a.tokens, b.tokens) and np.array_equal(a.targets, b.targets) for a, b in zip(one, other, strict=True)
    )
    assert sum(batch.target_count for batch in one) == pytest.approx(0.15 * len(ids), rel=0.1)
    whole = [
        token if target == IGNORED else target
        for batch in one
        for token, target in zip(batch.tokens[0].tolist(), batch.targets[0].tolist(), strict=True)
        if token > 2 or target != IGNORED
    ]
    assert whole == ids


HELD = ReferenceLoss(loss=2.5, text=SHA256, ids="a" * 64, sequence_length=512, precision="fp32")


def test_a_note_is_read_as_it_was_written():
    assert reference_of({KEY: HELD.to_metadata()}, "x") == HELD
    assert reference_of({}, "x") is None


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"loss": True}, "loss"),
        ({"loss": float("nan")}, "loss"),
        ({"text": "A" * 64}, "text"),
        ({"ids": "a" * 63}, "ids"),
        ({"sequence_length": 0}, "sequence_length"),
        ({"sequence_length": 1.5}, "sequence_length"),
    ],
)
def test_a_damaged_note_is_refused_by_its_field(change, field):
    with pytest.raises(FormatError) as caught:
        reference_of({KEY: HELD.to_metadata() | change}, "x.apr")
    assert caught.value.finding.field == f"{KEY}.{field}"
    assert "eval FILE --reference --write" in caught.value.finding.hint


def test_the_tolerance_is_a_share_of_the_loss_and_at_least_of_one_nat():
    small = ReferenceLoss(loss=0.01, text=SHA256, ids="a" * 64, sequence_length=512, precision="fp32")
    assert most_apart(HELD, device="cpu", precision="fp32") == pytest.approx(2.5e-5)
    assert most_apart(small, device="cpu", precision="fp32") == pytest.approx(1e-5)
    assert most_apart(HELD, device="cuda", precision="fp32") == pytest.approx(2.5e-4)
    assert {most_apart(HELD, device="cuda", precision=name) for name in ("bf16", "bf16-weights")} == {7.5e-3}


def test_a_wheel_has_the_text(tmp_path):
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=CORE, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        assert archive.read("apr_train/data/reference.txt") == TEXT.read_bytes()
