"""A certificate's file, and what it says of the code that is installed."""

import hashlib
import json
import sys
from importlib.metadata import EntryPoint

import attrs
import pytest
from apr_train.errors import FormatError
from apr_train.family.certificate import (
    NAME,
    Certificate,
    certificate_path,
    code_sha256,
    read_certificate,
    standing,
    write_certificate,
)
from apr_train.family.discovery import FAMILIES, InstalledPlugin

CODE = b"FAMILY = 1\n"


def plugin(module="some_family", **more):
    entry = EntryPoint(name="some", value=module, group=FAMILIES)
    return InstalledPlugin(**{"name": "some", "distribution": "apr-train-some", "version": "1.2", "entry_point": entry} | more)


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A plugin of one module on the path; importing it would fail."""
    monkeypatch.syspath_prepend(tmp_path)
    path = tmp_path / "some_family.py"
    path.write_bytes(CODE)
    yield path
    assert "some_family" not in sys.modules


def certificate(**more):
    values = {"family": "some", "distribution": "apr-train-some", "version": "1.2", "api_version": "1.0", "code": ""}
    return Certificate(**values | {"code": code_sha256(plugin()), "against": "transformers 5"} | more)


def test_a_certificate_is_read_as_it_was_written(tmp_path):
    made = Certificate(
        family="some", distribution="d", version="1", api_version="1.0", code="c", environment={"torch": "2"},
        checks=({"check": "cache", "seen": "5 tokens"},), agreement={"float64, eager": {"logits": 1e-15}},
    )  # fmt: skip
    write_certificate(tmp_path / "x.json", made)
    assert read_certificate(tmp_path / "x.json") == made
    content = json.loads((tmp_path / "x.json").read_text())
    sealed = {key: value for key, value in content.items() if key != "sha256"}
    text = json.dumps(sealed, sort_keys=True, separators=(",", ":"))
    assert content["sha256"] == made.sha256 == hashlib.sha256(text.encode()).hexdigest()


def test_the_hash_is_of_the_modules_name_and_bytes(module):
    assert code_sha256(plugin()) == hashlib.sha256(b"%d some_family.py %d\n" % (14, len(CODE)) + CODE).hexdigest()
    before = code_sha256(plugin())
    module.write_bytes(CODE + b"# more\n")
    assert code_sha256(plugin()) != before


def test_a_package_is_hashed_with_its_data_and_without_compiled_files_and_certificates(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    package = tmp_path / "packed_family"
    (package / "inner").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    found = plugin("packed_family")
    assert certificate_path(found) == package / NAME
    before = code_sha256(found)
    (package / NAME).write_text("{}")
    (package / "__pycache__").mkdir()
    (package / "__pycache__" / "__init__.cpython-311.pyc").write_bytes(b"x")
    (package / ".DS_Store").write_bytes(b"x")
    assert code_sha256(found) == before
    (package / "inner" / NAME).write_text("{}")
    assert code_sha256(found) != before
    (package / "inner" / NAME).unlink()
    (package / "inner" / "table.json").write_text("{}")
    assert code_sha256(found) != before


def test_no_certificate_is_no_fault(module):
    assert standing(plugin()).state == "none"
    assert standing(plugin("no_such_module")).state == "none"
    assert standing(plugin()).sentence == ""


def test_a_certificate_of_the_installed_code_is_verified(module):
    write_certificate(certificate_path(plugin()), certificate())
    found = standing(plugin())
    assert (found.state, found.label) == ("verified", f"verified (transformers 5, {certificate().sha256[:12]})")
    assert certificate().sha256[:12] in found.sentence


def test_changed_code_and_another_version_are_told(module):
    write_certificate(certificate_path(plugin()), certificate())
    module.write_bytes(CODE + b"\n")
    found = standing(plugin(version="1.3"))
    assert (found.state, found.label.partition(" (")[0]) == ("changed", "changed since 1.2")
    assert found.why == "version 1.3, certified 1.2; the plugin's files are other ones"
    assert "changed since version 1.2" in found.sentence


@pytest.mark.parametrize(
    ("spoil", "match"),
    [
        (lambda text: text.replace("1.2", "1.3"), "not the one that was sealed"),
        (lambda text: text[:-20], "not valid JSON"),
        (lambda text: "[]", "not a JSON object"),
        (lambda text: text.replace('"format": 1', '"format": 2'), "found 2"),
        (lambda text: "[" * 100_000, "nested too deep"),
        (lambda text: " " * (1 << 21), "too large"),
    ],
)
def test_a_damaged_certificate_is_said_to_be_one(module, spoil, match):
    path = certificate_path(plugin())
    write_certificate(path, certificate())
    path.write_text(spoil(path.read_text()))
    found = standing(plugin())
    assert (found.state, found.label) == ("damaged", "damaged")
    with pytest.raises(FormatError, match=match):
        read_certificate(path)


@pytest.mark.parametrize(
    "part",
    [
        {"checks": 5}, {"checks": ["x"]}, {"checks": [1]}, {"checks": [{"check": 5}]}, {"environment": []}, {"family": 5},
        {"environment": {"torch": 2}}, {"agreement": {"float64, eager": 5}}, {"agreement": {"float64, eager": {"logits": "0"}}},
        {"training": {"float64": {"losses": None}}}, {"training": {"float64": {"losses": True}}}, {"agreement": [1]},
    ],
)  # fmt: skip
def test_a_sealed_file_with_parts_of_another_type_is_damaged(tmp_path, part):
    values = attrs.evolve(Certificate(family="a", distribution="b", version="c", api_version="d", code="e")).to_dict()
    content = {key: value for key, value in values.items() if key != "sha256"} | part
    seal = hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
    (tmp_path / "x.json").write_text(json.dumps(content | {"sha256": seal}))
    with pytest.raises(FormatError, match="of another type"):
        read_certificate(tmp_path / "x.json")
