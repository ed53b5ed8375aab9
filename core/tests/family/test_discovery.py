"""Installed plugins by their metadata; tests/test_plugins_cli.py reads that of real distributions."""

from apr_train.family.discovery import canonical


def test_distributions_are_compared_as_package_tools_do():
    assert canonical("Apr_Train.Thing") == canonical(" apr-train-thing ") == "apr-train-thing"
