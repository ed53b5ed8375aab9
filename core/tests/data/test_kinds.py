"""What a file is by its first bytes: made by the programs that make such files, not by bytes of ours."""

import bz2
import gzip
import io
import lzma
import pickle
import tarfile
import zipfile

import pytest
import torch
import zstandard
from apr_train.data.kinds import kind_of, what_to_do
from apr_train.data.sources import find_files
from apr_train.errors import DataError

TEXT = b'{"text": "a document"}\n' * 20


def zipped():
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as file:
        file.writestr("a.txt", TEXT)
    return target.getvalue()


def tarred():
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w") as file:
        info = tarfile.TarInfo("a.txt")
        info.size = len(TEXT)
        file.addfile(info, io.BytesIO(TEXT))
    return target.getvalue()


def saved_by_torch(*, zipped):
    target = io.BytesIO()
    torch.save({"text": "a"}, target, _use_new_zipfile_serialization=zipped)
    return target.getvalue()


TORCH = "a PyTorch file, which holds a pickle"
NO_PICKLES = "Nothing is unpickled here"
FILES = {
    "a.xz": (lzma.compress(TEXT), "xz-compressed", "xz -dk"),
    "a.bz2": (bz2.compress(TEXT), "bzip2-compressed", "bzip2 -dk"),
    "empty.bz2": (bz2.compress(b""), "bzip2-compressed", "bzip2 -dk"),
    "a.zip": (zipped(), "a zip archive", "unzip"),
    "a.tar": (tarred(), "a tar archive", "tar -xf"),
    "a.tar.gz": (gzip.compress(tarred()), "a tar archive, gzip-compressed", "tar -xf"),
    "a.tar.zst": (zstandard.compress(tarred()), "a tar archive, zstd-compressed", "tar -xf"),
    "twice.jsonl.gz.gz": (gzip.compress(gzip.compress(TEXT)), "gzip-compressed, gzip-compressed", "gzip -dk"),
    "packed.parquet.gz": (gzip.compress(b"PAR1" + bytes(40) + b"PAR1"), "a Parquet file, gzip-compressed", "gzip -dk"),
    "a.pdf": (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n", "a PDF", "pdftotext"),
    "wide.txt": ("text".encode("utf-16"), "UTF-16 text", "iconv -f UTF-16"),
    "wider.txt": ("text".encode("utf-32"), "UTF-32 text", "iconv -f UTF-32"),
    "large.txt": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12\n",
        "a Git LFS pointer",
        "git lfs pull",
    ),
    "pointer.parquet": (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer", "git lfs pull"),
    "a.pkl": (pickle.dumps(["text"], protocol=0), "a pickle", NO_PICKLES),
    "a.pt": (b"text", "a pickle", NO_PICKLES),
    "disguised.jsonl": (pickle.dumps([{"text": "a"}]), "a pickle", NO_PICKLES),
    "packed.jsonl.gz": (gzip.compress(pickle.dumps([{"text": "a"}])), "a pickle, gzip-compressed", NO_PICKLES),
    "zip.bin": (saved_by_torch(zipped=True), TORCH, NO_PICKLES),
    "old.bin": (saved_by_torch(zipped=False), "a pickle", NO_PICKLES),
}


@pytest.mark.rule("PREFLIGHT-025")
@pytest.mark.parametrize("name", FILES)
def test_a_named_file_that_is_no_text_is_called_what_it_is_with_a_command(tmp_path, name):
    raw, kind, advice = FILES[name]
    path = tmp_path / name
    path.write_bytes(raw)
    with pytest.raises(DataError) as caught:
        find_files([str(path)], notice=print)
    finding = caught.value.finding
    assert (finding.rule, finding.subject, finding.found) == ("PREFLIGHT-025", str(path), kind)
    assert advice in finding.hint


def test_what_is_no_text_is_counted_by_kind_in_one_notice_of_a_folder(tmp_path, notices):
    for name, (raw, _, _) in FILES.items():
        (tmp_path / name).write_bytes(raw)
    (tmp_path / "b.txt").write_text("text")
    (tmp_path / "image.raw").write_bytes(b"\1\0")
    (tmp_path / "image.raw.gz").write_bytes(gzip.compress(b"\1\0"))
    assert find_files([str(tmp_path)], notice=notices.append) == [tmp_path / "b.txt"]
    (notice,) = notices
    for part in ("bzip2-compressed: 2 (", "a pickle: 4 (", f"{TORCH}: 1 (", "with NUL bytes: 2 (", "a Git LFS pointer: 2 ("):
        assert part in notice


@pytest.mark.parametrize(
    "text", [b"", b"PAR1", b"PAR1 is a sum", b"BZh is no word", b"BZh9 is none", b"PK is short", b"\xef\xbb\xbftext", b"ustar"]
)
def test_text_that_begins_like_one_of_them_is_text(tmp_path, text):
    path = tmp_path / "a.txt"
    path.write_bytes(text)
    assert kind_of(path) == (None, False)


@pytest.mark.parametrize("pack", [gzip.compress, zstandard.compress])
def test_a_packed_text_is_text_by_what_is_in_it(tmp_path, pack):
    path = tmp_path / "a.log"
    path.write_bytes(pack(TEXT))
    assert kind_of(path) == (None, False)
    path.write_bytes(pack(b"\0" + TEXT))
    assert kind_of(path) == (None, True)


def test_the_commands_that_are_told_make_text(tmp_path):
    import shutil
    import subprocess

    for name, raw, tool in (("a b.txt.bz2", bz2.compress(TEXT), "bzip2"), ("x.tar.gz", gzip.compress(tarred()), "tar")):
        if shutil.which(tool) is None:
            pytest.skip(f"no {tool} here")
        path = tmp_path / name
        path.write_bytes(raw)
        kind, _ = kind_of(path)
        command = what_to_do(kind, path).removeprefix("Make text of it: ")
        subprocess.run(command, shell=True, check=True, cwd=tmp_path)  # a command for a shell
    assert (tmp_path / "a b.txt").read_bytes() == (tmp_path / "a.txt").read_bytes() == TEXT
