"""One Chromium for the tests of a module."""

import pytest

from tests.helpers.study import chromium

FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update",
)  # fmt: skip


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as play:
        one = play.chromium.launch(executable_path=chromium(), args=list(FLAGS))
        yield one
        one.close()
