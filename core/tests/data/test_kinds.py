"""What a file is by its first bytes: made by the programs that make such files, not by bytes of ours."""

import bz2
import gzip
import io
import lzma
import tarfile
import zipfile

import pytest
from apr_train.data.kinds import how_to_unpack, kind_of
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


FILES = {
    "lines.jsonl.gz": (gzip.compress(TEXT), "gzip-compressed", "gzip -dk"),
    "disguised.jsonl": (gzip.compress(TEXT), "gzip-compressed", "gzip -dk"),
    "a.xz": (lzma.compress(TEXT), "xz-compressed", "xz -dk"),
    "a.bz2": (bz2.compress(TEXT), "bzip2-compressed", "bzip2 -dk"),
    "empty.bz2": (bz2.compress(b""), "bzip2-compressed", "bzip2 -dk"),
    # RFC 8878: the magic number of a frame, its header and a raw last block of 5 bytes
    "a.zst": (bytes.fromhex("28b52ffd2005290000") + b"hello", "zstd-compressed", "zstd -dk"),
    "a.zip": (zipped(), "a zip archive", "unzip"),
    "a.tar": (tarred(), "a tar archive", "tar -xf"),
    "a.tar.gz": (gzip.compress(tarred()), "gzip-compressed", "tar -xf"),
    # parquet.apache.org: "PAR1" at both ends; arrow.apache.org: "ARROW1" and padding, or a continuation marker
    "a.parquet": (b"PAR1\x15\x04\x15\x10" + bytes(40) + b"PAR1", "a Parquet file", "read_parquet"),
    "file.arrow": (b"ARROW1\0\0" + bytes(40) + b"ARROW1", "an Arrow file", "from_file"),
    "stream.arrow": (b"\xff\xff\xff\xff\xf8\x01\0\0" + bytes(40), "an Arrow file", "from_file"),
    "a.pdf": (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n", "a PDF", "pdftotext"),
    "wide.txt": ("text".encode("utf-16"), "UTF-16 text", "iconv -f UTF-16"),
    "wider.txt": ("text".encode("utf-32"), "UTF-32 text", "iconv -f UTF-32"),
    "large.txt": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12\n",
        "a Git LFS pointer",
        "git lfs pull",
    ),
}


@pytest.mark.rule("PREFLIGHT-025")
@pytest.mark.parametrize("name", FILES)
def test_a_named_file_that_is_no_text_is_called_what_it_is_with_a_command(tmp_path, name):
    raw, kind, command = FILES[name]
    path = tmp_path / name
    path.write_bytes(raw)
    with pytest.raises(DataError) as caught:
        find_files([str(path)], notice=print)
    finding = caught.value.finding
    assert (finding.rule, finding.subject, finding.found) == ("PREFLIGHT-025", str(path), kind)
    assert command in finding.hint


def test_what_is_no_text_is_counted_by_kind_in_one_notice_of_a_folder(tmp_path, notices):
    for name, (raw, _, _) in FILES.items():
        (tmp_path / name).write_bytes(raw)
    (tmp_path / "b.txt").write_text("text")
    (tmp_path / "image.raw").write_bytes(b"\1\0")
    assert find_files([str(tmp_path)], notice=notices.append) == [tmp_path / "b.txt"]
    (notice,) = notices
    for part in (
        "gzip-compressed: 3 (",
        "a Parquet file: 1 (",
        "an Arrow file: 2 (",
        "with NUL bytes: 1 (",
        "a Git LFS pointer: 1 (",
    ):
        assert part in notice


@pytest.mark.parametrize(
    "text", [b"", b"PAR1", b"PAR1 is a sum", b"BZh is no word", b"BZh9 is none", b"PK is short", b"\xef\xbb\xbftext", b"ustar"]
)
def test_text_that_begins_like_one_of_them_is_text(tmp_path, text):
    path = tmp_path / "a.txt"
    path.write_bytes(text)
    assert kind_of(path) == (None, False)


def test_the_commands_that_are_told_make_text(tmp_path):
    import shutil
    import subprocess

    for name, tool in (("a b.txt.gz", "gzip"), ("x.tar.gz", "tar")):
        if shutil.which(tool) is None:
            pytest.skip(f"no {tool} here")
        path = tmp_path / name
        path.write_bytes(gzip.compress(TEXT if tool == "gzip" else tarred()))
        kind, _ = kind_of(path)
        subprocess.run(how_to_unpack(kind, path), shell=True, check=True, cwd=tmp_path)  # a command for a shell
    assert (tmp_path / "a b.txt").read_bytes() == (tmp_path / "a.txt").read_bytes() == TEXT
