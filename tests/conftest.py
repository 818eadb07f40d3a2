"""Set-up of all tests, and one Chromium for those of a module that need it."""

import os

import pytest

# Tests run on several workers: one thread each, set before anything imports torch.
os.environ.setdefault("OMP_NUM_THREADS", "1")

FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update",
)  # fmt: skip


@pytest.fixture(scope="module")
def browser():
    """Skips where playwright is missing."""
    from tests.helpers.study import chromium

    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as play:
        one = play.chromium.launch(executable_path=chromium(), args=list(FLAGS))
        yield one
        one.close()
