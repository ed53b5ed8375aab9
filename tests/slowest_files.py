"""A pytest plugin that ends a run with the files that took longest; `make test` loads it. Works under xdist, too."""

from collections import Counter

import pytest

SHOWN = 10


def pytest_terminal_summary(terminalreporter):
    """Sum set-up, test and tear-down by file; fixtures of a session count for the file that asked first."""
    seconds = Counter()
    for reports in terminalreporter.stats.values():
        for report in reports:
            if isinstance(report, pytest.TestReport):
                seconds[report.location[0]] += report.duration
    terminalreporter.section(f"slowest {SHOWN} files")
    for file, spent in seconds.most_common(SHOWN):
        terminalreporter.line(f"{spent:8.1f} s  {file}")
