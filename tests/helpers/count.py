"""Runs tests and prints how many cases passed, as JSON: what figures about tests are made of.

python -m tests.helpers.count tests/browser
"""

import contextlib
import json
import sys

import pytest


class Counter:
    """Counts the cases that pytest reports."""

    def __init__(self) -> None:
        self.passed = 0
        self.failed = 0
        self.skipped = 0

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Takes notice of one phase of one case."""
        self.passed += report.when == "call" and report.passed
        self.failed += report.failed
        self.skipped += report.skipped


def main(arguments: list[str]) -> int:
    """Counts the cases that pytest finds for its arguments; its exit code."""
    counter = Counter()
    with contextlib.redirect_stdout(sys.stderr):
        code = pytest.main(["-q", *arguments], plugins=[counter])
    sys.stdout.write(json.dumps(vars(counter)) + "\n")
    return int(code)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
