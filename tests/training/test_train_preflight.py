"""The preflight of a real run: everything it finds is said at once, and before anything is made."""

import gzip
import json

import attrs
import pytest
import torch
from apr_train.checkpoint.apr import open_apr
from apr_train.checkpoint.apr.writer import AprWriter, TensorSpec
from apr_train.data import corpus as corpora
from apr_train.data.tokenizer import build_tokenizer
from apr_train.model.attention.sdpa import SdpaAttention
from apr_train.training import inputs
from tokenizers import Tokenizer, models

SCRATCH = ("--arch", "llama370m", "--preset", "tiny")


@pytest.fixture
def untrained(place):
    """model.apr of a run of no steps."""
    place.train(*SCRATCH, "--steps", "0", "--run", "untrained")
    return place.run("untrained") / "model.apr"


@pytest.fixture
def wrongly_tied(untrained, place):
    """A file that says tied, and holds a head of zeros beside an embedding that is not zero."""
    target = place.folder / "wrongly_tied.apr"
    with open_apr(untrained) as old:
        tensors = old.header.tensors
        head = TensorSpec("lm_head.weight", *_kind(tensors["model.embed_tokens.weight"]))
        specs = [TensorSpec(tensor.name, *_kind(tensor)) for tensor in tensors.values()]
        metadata = {**old.raw_metadata, "tie_word_embeddings": True}
        with AprWriter(target, metadata, [*specs, head]) as writer:
            for name in tensors:
                writer.write(name, old.read_raw(name))
            writer.write(head.name, bytes(head.nbytes))
    return target


def _kind(tensor):
    return tensor.dtype, tensor.shape


@pytest.mark.rule("PREFLIGHT-007", "PREFLIGHT-018")
@pytest.mark.parametrize("dry", [("--dry-run",), ()])
def test_a_wrong_tie_does_not_hide_the_next_fault(place, wrongly_tied, dry):
    out = place.train("--init", wrongly_tied, "--tokenizer", "none.json", "--seq-len", "4000", *dry, code=3)
    for rule in ("PREFLIGHT-007", "PREFLIGHT-018", "PREFLIGHT-009"):
        assert rule in out


def test_a_dry_run_reports_like_check(place, untrained):
    dry = place.train("--init", untrained, "--dry-run")
    checked = place("check", untrained)
    assert "tensors       38 of 38 used" in dry
    assert set(checked.splitlines()) - {"ready: 0 errors, 0 warnings"} <= set(dry.splitlines())


def test_a_dry_run_with_faults_ends_with_status_3(place, untrained):
    assert "not ready: 1 error" in place.train("--init", untrained, "--seq-len", "4000", "--dry-run", code=3)


@pytest.mark.rule("FALSIFY-APR-PRETRAIN-INIT-003")
def test_a_path_that_cannot_be_looked_at_is_a_finding(place):
    assert "FALSIFY-APR-PRETRAIN-INIT-003" in place.train("--init", "x" * 300, code=3)


@pytest.mark.rule("PREFLIGHT-012")
@pytest.mark.parametrize(("largest", "code"), [(1023, 0), (1024, 3)])
def test_a_token_id_without_a_row_stops_the_run_before_its_folder_is_made(place, monkeypatch, largest, code):
    @attrs.frozen
    class Lying(corpora.Corpus):
        """A corpus of 1024 different tokens whose largest id is said to be another."""

        @property
        def max_token_id(self):
            return largest

    def load(*args, **kwargs):
        found = corpora.load_corpus(*args, **kwargs)
        return Lying(**{item.name: getattr(found, item.name) for item in attrs.fields(corpora.Corpus)})

    monkeypatch.setattr(inputs, "load_corpus", load)
    out = place.train(*SCRATCH, "--steps", "0", code=code)
    assert ("PREFLIGHT-012" in out) == bool(code)
    assert (place.folder / "runs").exists() != bool(code)


@pytest.fixture
def endless(place):
    """A tokenizer.json without any special token."""
    path = place.folder / "endless.json"
    Tokenizer(models.BPE(vocab={"a": 0, "b": 1}, merges=[])).save(str(path))
    return path


@pytest.mark.rule("PREFLIGHT-013", "PREFLIGHT-015", "PREFLIGHT-018", "PREFLIGHT-019")
@pytest.mark.parametrize("dry", [("--dry-run",), ()])
def test_every_fault_of_a_run_is_told_at_once(place, untrained, endless, dry):
    data = ("--data", "none.txt", "--data", "none/*.py")
    out = place.train(
        "--init", untrained, *data, "--tokenizer", endless, "--device", "abacus", "--run", "untrained", *dry, code=3
    )
    assert [out.count(f"PREFLIGHT-{number:03d}") for number in (13, 15, 18, 19)] == [1, 1, 1, 2]
    for part in ("none.txt", "none/*.py", "abacus", "the tokenizer has no eos token", "--resume"):
        assert part in out


def test_a_file_that_does_not_open_does_not_hide_what_can_be_known_without_it(place):
    out = place.train("--init", "none.apr", "--data", "none.txt", "--device", "abacus", code=3)
    for rule in ("FALSIFY-APR-PRETRAIN-INIT-003", "PREFLIGHT-015", "PREFLIGHT-019"):
        assert rule in out


@pytest.mark.rule("PREFLIGHT-017")
@pytest.mark.parametrize("dry", [("--dry-run",), ()])
def test_weights_without_a_tokenizer_are_not_trained_on_a_new_one(place, untrained, dry):
    bare = place.folder / "bare.apr"
    with open_apr(untrained) as old:
        build_tokenizer(old.header.tokenizer).save(place.folder / "tok.json")
        metadata = {key: value for key, value in old.raw_metadata.items() if "tokenizer" not in key}
        specs = [TensorSpec(tensor.name, *_kind(tensor)) for tensor in old.header.tensors.values()]
        with AprWriter(bare, metadata, specs) as writer:
            for name in old.header.tensors:
                writer.write(name, old.read_raw(name))
    out = place.train("--init", bare, "--run", "x", *dry, code=3)
    assert "PREFLIGHT-017" in out
    assert "--tokenizer" in out
    assert not place.run("x").exists()
    assert "ready: 0 errors, 1 warning" in place("check", bare)
    assert "ready: 0 errors" in place.train("--init", bare, "--tokenizer", "tok.json", "--dry-run")


@pytest.mark.rule("FALSIFY-APR-PRETRAIN-ARCH-003")
def test_a_preset_beside_init_is_an_error(place, untrained):
    out = place.train("--init", untrained, "--preset", "tiny", "--vocab-size", "512", code=3)
    assert out.count("FALSIFY-APR-PRETRAIN-ARCH-003") == 2
    assert "expected no --preset, found tiny" in out
    assert "expected no --vocab-size, found 512" in out


@pytest.mark.rule("PREFLIGHT-015")
@pytest.mark.parametrize(
    ("arch", "options", "mask"),
    [
        ("llama370m", (), "causal"),
        ("llama370m", ("--document-mask",), "documents"),
        ("llama370m", ("--packing", "best-fit"), "documents"),
        ("codebert", ("--document-mask",), "bidirectional"),
    ],
)
@pytest.mark.parametrize("deterministic", [True, False])
def test_backends_are_asked_about_the_mask_that_the_run_has(place, monkeypatch, arch, options, mask, deterministic):
    asked = []

    def supports(self, request):
        asked.append((request.mask, torch.are_deterministic_algorithms_enabled()))

    torch.use_deterministic_algorithms(False)
    monkeypatch.setattr(SdpaAttention, "supports", supports)
    option = "--deterministic" if deterministic else "--no-deterministic"
    place.train("--arch", arch, "--preset", "tiny", *options, option, "--dry-run")
    assert set(asked) == {(mask, deterministic)}


@pytest.mark.rule("PREFLIGHT-014")
def test_disk_is_asked_for_what_the_run_will_write(place, monkeypatch):
    """The tiny preset has 836,736 parameters: 3.3 MB as a model, 10 MB as a checkpoint, half of it in bfloat16."""
    place.train(*SCRATCH, "--steps", "2", "--save-every", "1", "--run", "x", "--precision", "fp32")
    usage = attrs.make_class("Usage", ["free"])
    monkeypatch.setattr("apr_train.preflight.machine_rules.shutil.disk_usage", lambda folder: usage(free=14_000_000))
    place.train(*SCRATCH, "--steps", "30", "--precision", "fp32", "--dry-run")
    long = (*SCRATCH, "--steps", "300", "--dry-run")
    assert "3 checkpoints" in place.train(*long, "--precision", "fp32", code=3)
    place.train(*long, "--precision", "bf16-weights", "--keep", "1")
    place("--resume", "runs/x", "--steps", "9", "--dry-run")


def write(path, raw):
    path.write_bytes(raw)
    return path


@pytest.mark.rule("PREFLIGHT-019", "PREFLIGHT-025", "PREFLIGHT-026")
@pytest.mark.parametrize("dry", [("--dry-run",), ()])
@pytest.mark.parametrize(
    ("name", "raw", "rule"),
    [
        ("a.jsonl", b'{"text": {"a": 1}}\n', "PREFLIGHT-025"),
        ("a.jsonl.gz", gzip.compress(b'{"text": "x"}' * 99)[:-4], "PREFLIGHT-025"),
        ("a.txt", b" \n", "PREFLIGHT-025"),
        ("a.txt", b"x", "PREFLIGHT-025"),
        ("a.txt", b"a few words, and no more\n" * 3, "PREFLIGHT-026"),
        (None, b"", "PREFLIGHT-019"),
    ],
    ids=("no string", "half an archive", "white space", "a letter", "a few words", "not there"),
)
def test_text_that_a_start_refuses_is_refused_by_a_dry_run_with_the_same_id(place, untrained, dry, name, raw, rule):
    path = place.folder / "none.txt" if name is None else write(place.folder / name, raw)
    out = place("--init", untrained, "--data", path, "--seq-len", "128", *dry, code=3)
    assert f"{rule}: " in out
    assert "1 error" in out if dry else not place.run("untrained").with_name("llama370m-untrained").exists()


@pytest.mark.rule("PREFLIGHT-026")
def test_without_a_tokenizer_only_what_no_tokenizer_could_make_a_row_of_is_refused(place):
    path = write(place.folder / "a.txt", b"a few words\n" * 30)
    assert "PREFLIGHT-026" in place(*SCRATCH, "--data", path, "--dry-run", code=3)
    assert "PREFLIGHT-026" not in place(*SCRATCH, "--data", path, "--dry-run", "--seq-len", "128")


def test_a_text_that_fills_no_row_can_be_packed(place):
    path = write(place.folder / "a.txt", b"a few words\n")
    assert "PREFLIGHT-026" not in place(*SCRATCH, "--data", path, "--dry-run", "--packing", "best-fit")


@pytest.mark.rule("PREFLIGHT-029")
@pytest.mark.parametrize("dry", [("--dry-run",), ()])
def test_an_encoder_does_not_pack_what_it_cannot_keep_apart(place, dry):
    args = ("--arch", "codebert", "--preset", "tiny")
    out = " ".join(place.train(*args, "--packing", "best-fit", *dry, code=3).split())
    assert "PREFLIGHT-029: --packing: masked-lm has no mask that keeps documents in a row apart" in out
    assert "expected concatenate, found best-fit. With --document-mask no row holds two documents" in out
    place.train(*args, "--packing", "concatenate", "--dry-run")


@pytest.mark.rule("PREFLIGHT-024")
def test_a_share_that_whole_documents_do_not_make_up_is_said_once_and_recorded(place):
    folder = place.folder / "two"
    folder.mkdir()
    for name in ("one", "two"):
        (folder / f"{name}.txt").write_text(f"{name} and some more\n" * 600)
    run = (*SCRATCH, "--data", folder, "--seq-len", "32", "--sample-tokens", "0", "--val-batches", "1")
    assert "ready: 0 errors, 1 warning" in place(*run, "--dry-run")
    out = place(*run, "--steps", "0", "--run", "x")
    assert out.count("PREFLIGHT-024") == 1
    findings = json.loads((place.run("x") / "preflight.json").read_text())["findings"]
    assert [finding["id"] for finding in findings] == ["PREFLIGHT-024"]


def test_a_dry_run_says_that_it_looked_at_the_beginning_of_a_large_file_only(place, monkeypatch):
    monkeypatch.setattr("apr_train.data.look.LOOKED_AT", 10_000)
    large, small = (write(place.folder / name, b"some text\n" * lines) for name, lines in (("a.txt", 3000), ("b.txt", 10)))
    run = (*SCRATCH, "--seq-len", "32", "--dry-run", "--data", large)
    assert "the first 10,000 bytes of text in 1 file looked at; there is more" in " ".join(place(*run).split())
    both = " ".join(place(*run, "--data", small).split())
    assert "10,000 bytes of text in 2 files (of 1 only the beginning) looked at; there is more" in both


def test_a_dry_run_says_what_it_looked_at_and_what_is_left_out(place):
    (place.folder / ".git").mkdir()
    for name, text in (("a.txt", "some text\n" * 300), ("b.log", "x"), ("c.json", '["one", "two"]'), (".gitignore", "*.log")):
        (place.folder / name).write_text(text)
    out = place(*SCRATCH, "--data", place.folder, "--dry-run", "--seq-len", "32")
    assert f"note: {place.folder}: left out: by .gitignore: 1 ({place.folder / 'b.log'})" in out
    assert "note: .json files: 1 read as arrays, a document a record" in out
    assert "3,006 bytes of text in 2 files, all of it looked at" in out
    assert "3,007 bytes of text in 3 files" in place(*SCRATCH, "--data", place.folder, "--no-gitignore", "--dry-run")
