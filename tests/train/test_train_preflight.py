"""The preflight of a real run: everything it finds is said at once, and before anything is made."""

import attrs
import pytest
from apr_train.data import corpus as corpora
from apr_train.formats.apr import open_apr
from apr_train.formats.apr.writer import AprWriter, TensorSpec
from apr_train.train import prepare

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

    monkeypatch.setattr(prepare, "load_corpus", load)
    out = place.train(*SCRATCH, "--steps", "0", code=code)
    assert ("PREFLIGHT-012" in out) == bool(code)
    assert (place.folder / "runs").exists() != bool(code)
