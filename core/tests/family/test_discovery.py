"""Installed plugins by their metadata; tests/test_plugins_cli.py reads that of real distributions."""

import pytest
from apr_train.family.discovery import canonical, discover
from apr_train.family.registry import Registry


def test_distributions_are_compared_as_package_tools_do():
    assert canonical("Apr_Train.Thing") == canonical(" apr-train-thing ") == "apr-train-thing"


@pytest.mark.parametrize(
    "content", [b"[console_scripts]\na line without an equals sign\n", b"[console_scripts]\nx = m:f \xff\n"]
)
def test_a_damaged_entry_points_file_of_another_distribution_hides_no_family(tmp_path, monkeypatch, content):
    before = discover()
    folder = tmp_path / "bad_one-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: bad-one\nVersion: 1.0\n")
    (folder / "entry_points.txt").write_bytes(content)
    monkeypatch.syspath_prepend(tmp_path)
    found = discover()
    assert found.plugins == before.plugins != ()
    assert [item.distribution for item in found.unreadable] == ["bad-one"]
    (fault,) = Registry(found).broken()
    assert "bad-one: its entry_points.txt cannot be read" in fault.reason
