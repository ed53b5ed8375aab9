"""Files that have not changed are not read again, and what may have changed is."""

import os
import time
from hashlib import blake2b

import pytest
from apr_train.data import unchanged as module
from apr_train.data.corpus import load_corpus
from apr_train.data.documents import read_documents
from apr_train.data.look import look_at
from apr_train.data.sources import search_files
from apr_train.data.unchanged import Unchanged
from apr_train.run.settings import DataSettings


@pytest.fixture
def opened(monkeypatch):
    """The files that are read, one by one."""
    seen = []

    def counting(files, *how, **options):
        chosen = list(files)
        seen.extend(chosen)
        return read_documents(chosen, *how, **options)

    for place in ("reading", "look"):
        monkeypatch.setattr(f"apr_train.data.{place}.read_documents", counting)
    return seen


@pytest.fixture
def later(monkeypatch):
    """Readings begin ten seconds from now, when the files of the tests are settled."""
    monkeypatch.setattr("apr_train.data.reading.now", lambda: time.time_ns() + 10 * 10**9)


@pytest.fixture
def load(tokenizer, tmp_path, corpus_folder, notices):
    def load(**how):
        rehash = how.pop("rehash", False)
        settings = DataSettings(data=(str(corpus_folder),), validation_fraction=0.2, rehash=rehash)
        return load_corpus(settings, tokenizer, cache_dir=tmp_path / "cache", notice=notices.append, **how)

    return load


def test_a_second_start_reads_nothing_and_has_the_same_corpus(load, opened, later):
    first = load()
    opened.clear()
    second = load()
    assert (opened, second.hash, second.train.key) == ([], first.hash, first.train.key)
    assert second.learnt[0].scan == first.learnt[0].scan


@pytest.mark.parametrize("how", [{"rehash": True}, {"believe": False}])
def test_all_is_read_when_it_is_wanted(load, opened, later, how):
    load()
    opened.clear()
    load(**how)
    assert len(opened) == 40


def change_text(path):
    path.write_text(path.read_text().replace("2", "3"))


def same_size_and_date(path):
    """Only the ctime tells."""
    before = path.stat()
    raw = path.read_bytes()
    path.write_bytes(raw[::-1])
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def replaced(path):
    """Another file under the same name, of the same size and date: only the inode and the ctime tell."""
    before = path.stat()
    other = path.with_name("other")
    other.write_bytes(path.read_bytes()[::-1])
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.replace(path)


def new_file(path):
    path.with_name("new.py").write_text("more = 1\n")


@pytest.mark.parametrize("change", [change_text, same_size_and_date, replaced, new_file, os.remove])
def test_what_changed_is_read_again(load, opened, later, corpus_folder, change):
    before = load()
    opened.clear()
    change(corpus_folder / "module_02.py")
    after = load()
    assert opened
    assert after.hash != before.hash


def test_a_file_that_was_young_when_it_was_read_is_not_believed(load, opened):
    load()
    opened.clear()
    load()
    assert len(opened) == 40


def test_what_is_older_than_two_seconds_is(load, opened, monkeypatch, corpus_folder):
    newest = max(path.stat().st_ctime_ns for path in corpus_folder.rglob("*.py"))
    for age, read in ((2 * 10**9 - 1, 40), (2 * 10**9, 0)):
        monkeypatch.setattr("apr_train.data.reading.now", lambda age=age: newest + age)
        load(rehash=True)
        opened.clear()
        load()
        assert len(opened) == read


def test_a_damaged_entry_is_made_again(load, opened, later, tmp_path):
    first = load()
    (entry,) = (tmp_path / "cache" / "readings").iterdir()
    whole = entry.read_bytes()
    for damaged in (whole[:-3], whole[:70] + b"?" + whole[71:], b"", b"{}\n"):
        entry.write_bytes(damaged)
        opened.clear()
        assert load().hash == first.hash
        assert len(opened) == 40
        assert entry.read_bytes()[64:] != damaged[64:]
    opened.clear()
    load()
    assert opened == []


def test_an_entry_that_is_not_true_is_forgotten_when_the_text_is_read(load, later, corpus_folder, tmp_path, byte_tokenizer):
    """As on a file system whose dates cannot be trusted."""
    load()
    settings = DataSettings(data=(str(corpus_folder),), validation_fraction=0.2)
    (entry,) = (tmp_path / "cache" / "readings").iterdir()
    told = module._Entry.read(entry)
    path = corpus_folder / "module_02.py"
    path.write_text(path.read_text().replace("2", "3"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "states_of", lambda paths: told.states[: len(paths)])
        with pytest.raises(Exception, match="changed while"):
            load_corpus(settings, byte_tokenizer(bytes_first=3), cache_dir=tmp_path / "cache")
    assert not entry.exists()


@pytest.fixture
def sought(monkeypatch):
    """The searches for files."""
    seen = []

    def counting(data, **how):
        seen.append(tuple(data))
        return search_files(data, **how)

    monkeypatch.setattr("apr_train.data.reading.search_files", counting)
    return seen


def test_nothing_is_searched_for_where_nothing_has_changed(load, later, sought, corpus_folder, notices):
    (corpus_folder / "picture").write_bytes(b"\x00\x01")
    first = load()
    told = list(notices)
    sought.clear()
    notices.clear()
    second = load()
    assert (sought, second.hash, notices) == ([], first.hash, told)
    assert list(second.learnt[0].scan.files) == list(first.learnt[0].scan.files)


def left_out_becomes_text(folder):
    (folder / "picture").write_text("now = 'text'\n")


def new_folder(folder):
    (folder / "deep" / "er").mkdir(parents=True)
    (folder / "deep" / "er" / "new.py").write_text("more = 1\n")


def rules_inside(folder):
    (folder / ".git").mkdir()
    (folder / ".gitignore").write_text("module_03.py\n")


def rules_above(folder):
    (folder.parent / ".git").mkdir()
    (folder.parent / ".gitignore").write_text("module_03.py\n")


def renamed(folder):
    (folder / "module_02.py").rename(folder / "a_module.py")


def linked(folder):
    """Where a link led to a folder, it leads to a text."""
    (folder / "link").unlink()
    (folder.parent / "outside.py").write_text("outside = 1\n")
    (folder / "link").symlink_to(folder.parent / "outside.py")


def becomes_an_environment(folder):
    (folder / "inner" / "pyvenv.cfg").write_text("")


@pytest.mark.parametrize(
    "change",
    [left_out_becomes_text, new_folder, rules_inside, rules_above, renamed, linked, becomes_an_environment],
    ids=lambda change: change.__name__,
)
def test_what_a_search_would_find_now_is_found(load, later, sought, corpus_folder, tmp_path, change):
    (corpus_folder / "picture").write_bytes(b"\x00\x01")
    (corpus_folder / "inner").mkdir()
    (corpus_folder / "inner" / "one.py").write_text("one = 1\n")
    (tmp_path / "elsewhere").mkdir()
    (corpus_folder / "link").symlink_to(tmp_path / "elsewhere")
    before = load()
    sought.clear()
    change(corpus_folder)
    after = load()
    assert sought
    anew = [str(path) for path in search_files([str(corpus_folder)]).files]
    assert [str(path) for path in after.learnt[0].scan.files] == anew
    assert after.hash != before.hash


def test_rules_of_git_that_change_above_a_folder_count(load, later, corpus_folder):
    (corpus_folder.parent / ".git").mkdir()
    (corpus_folder.parent / ".gitignore").write_text("module_03.py\n")
    assert len(load().learnt[0].scan.files) == 39
    (corpus_folder.parent / ".gitignore").write_text("module_03.py\nmodule_04.py\n")
    assert len(load().learnt[0].scan.files) == 38


def test_what_a_search_depends_on_beside_dates_is_compared(load, later, sought, corpus_folder, tmp_path, tokenizer, notices):
    load()
    sought.clear()
    settings = DataSettings(data=(str(corpus_folder),), validation_fraction=0.2, gitignore=False)
    load_corpus(settings, tokenizer, cache_dir=tmp_path / "cache", notice=notices.append)
    assert sought


def test_after_a_change_that_is_no_text_the_next_start_searches_for_nothing(load, later, opened, sought, corpus_folder):
    load()
    (corpus_folder / "picture").write_bytes(b"\x00\x01")
    opened.clear()
    load()
    assert opened == []
    sought.clear()
    load()
    assert sought == []


@pytest.mark.parametrize("how", [{"rehash": True}, {"believe": False}])
def test_all_is_searched_for_when_it_is_wanted(load, later, sought, how):
    load()
    sought.clear()
    load(**how)
    assert sought


def test_a_folder_that_changed_while_it_was_searched_is_not_believed(load, sought, corpus_folder, monkeypatch):
    """The dates of files are old, that of the folder is younger than the beginning of the search."""
    newest = max(path.stat().st_ctime_ns for path in corpus_folder.rglob("*.py"))
    monkeypatch.setattr("apr_train.data.reading.now", lambda: newest + 3 * 10**9)
    os.utime(corpus_folder, ns=(0, newest + 2 * 10**9))
    load()
    sought.clear()
    load()
    assert sought


def test_notices_are_given_again(load, later, corpus_folder, notices):
    (corpus_folder / "latin.py").write_bytes(b"caf\xe9")
    load()
    first = list(notices)
    notices.clear()
    load()
    assert notices == first != []


def test_a_look_knows_a_large_corpus_without_reading_it(load, opened, later, corpus_folder, tmp_path, monkeypatch):
    corpus = load()
    monkeypatch.setattr("apr_train.data.look.LOOKED_AT", 100)
    opened.clear()
    settings = DataSettings(data=(str(corpus_folder),), validation_fraction=0.2)
    assert not look_at(settings).complete
    opened.clear()
    found = look_at(settings, unchanged=Unchanged(tmp_path / "cache"))
    assert (opened, found.complete, found.learnt) == ([], True, (corpus.learnt[0].scan,))
    assert found.facts["data"]["files"] == 40


def seal(body):
    return blake2b(body, digest_size=32).hexdigest().encode() + b"\n" + body


@pytest.mark.parametrize(
    "body", [b"{}\n", b"[" * 100_000 + b"\n", b"null\n", b'{"began": "x", "files": []}\n', b"\xff\n", b'{"began": NaN}\n']
)
def test_a_forged_entry_is_made_again(load, opened, later, tmp_path, body):
    load()
    opened.clear()
    for entry in (tmp_path / "cache" / "readings").iterdir():
        entry.write_bytes(seal(body))
    load()
    assert len(opened) == 40
