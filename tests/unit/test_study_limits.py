"""Limits before the study's routes: floods, large or slow requests, backups that fail."""

import asyncio
import logging
from typing import Any

import pytest

from cfbench.study import guard, writer
from cfbench.study.guard import BEGIN, Guard, Rates


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def request(app: Guard, path: str, headers: list[tuple[bytes, bytes]], *bodies: bytes) -> int:
    """Status of one POST; a body that does not end is one that never arrives."""
    scope = {"type": "http", "path": path, "headers": headers, "client": ("10.0.0.1", 1)}
    parts = list(bodies)
    statuses: list[int] = []

    async def receive() -> dict[str, Any]:
        if not parts:
            await asyncio.Event().wait()
        part = parts.pop(0)
        return {"type": "http.request", "body": part, "more_body": part != b""}

    async def send(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    asyncio.run(app(scope, receive, send))
    return statuses[0]


def inner(scope: Any, receive: Any, send: Any) -> Any:
    """An application that takes everything."""
    return guard.answer(send, 200, "fine")


def test_a_bucket_fills_up_at_its_rate():
    clock = Clock()
    rates = Rates(2, 0.5, clock)
    assert [rates.allows("a") for _ in range(3)] == [True, True, False]
    clock.now = 2.0
    assert [rates.allows("a") for _ in range(2)] == [True, False]


def test_new_names_do_not_empty_the_buckets_of_others(monkeypatch):
    monkeypatch.setattr(guard, "MOST_ADDRESSES", 10)
    rates = Rates(1, 0.0, Clock())
    assert rates.allows("flooder")
    for index in range(100):
        rates.allows(f"name-{index}")
        assert not rates.allows("flooder")


def test_whoever_begins_without_end_is_slowed_down_and_votes_are_not():
    app = Guard(inner, begins=Rates(3, 0.0, Clock()))
    assert [request(app, BEGIN, [], b"") for _ in range(5)] == [200, 200, 200, 429, 429]
    assert request(app, "/api/vote", [], b"") == 200


@pytest.mark.parametrize(
    ("headers", "bodies", "status"),
    [
        ([(b"x-study-token", b"a" * guard.MOST_HEADER_BYTES)], (b"",), 431),
        ([(b"content-length", b"99999999")], (b"",), 413),
        ([(b"content-length", b"-1")], (b"",), 413),
        ([], (b"a" * guard.MOST_BYTES, b"a", b""), 413),
        ([], (b"{", b""), 200),
    ],
)
def test_large_requests_are_refused(headers, bodies, status):
    assert request(Guard(inner), "/api/vote", headers, *bodies) == status


def test_half_a_request_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(guard, "BODY_S", 0.01)
    assert request(Guard(inner), "/api/vote", [], b"{") == 408


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/upload", "/gradio_api/file=/etc/passwd", "/gradio_api/queue/join", "/docs",
        "/monitoring", "/gradio_api/runs", "/gradio_api/mcp/", "/m/../design.json", "/apis",
        "/study/../../secret.key", "/openapi.json", "//api/vote", "/gradio_api/info",
    ],
)  # fmt: skip
def test_no_other_path_is_reached(path):
    assert request(Guard(inner), path, [], b"") == 404


def test_a_backup_that_fails_is_tried_again(tmp_path, monkeypatch, caplog):
    made = writer.Writer(tmp_path / "votes", "design")
    asked: list[int] = []

    def fail(folder: Any) -> None:
        asked.append(1)
        if len(asked) == 2:
            made._stop.set()
        raise OSError("disk full")

    made._stop.set()
    made._threads[1].join()
    made._stop.clear()
    monkeypatch.setattr(writer, "CHECKPOINT_EVERY_S", 0.0)
    monkeypatch.setattr(writer, "BACKUP_EVERY_S", 0.0)
    monkeypatch.setattr(writer, "back_up", fail)
    with caplog.at_level(logging.ERROR):
        made._keep_house()
    made.close()
    assert len(asked) == 2
    assert caplog.text.count("disk full") == 2


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_fault_in_an_operation_leaves_nobody_waiting(tmp_path):
    """The thread ends; whoever waits or comes later is told at once, and nothing is stored."""
    made = writer.Writer(tmp_path / "votes", "design")
    told: list[Any] = []

    def ask(operation: Any) -> None:
        made.submit(operation, lambda result, failed: told.append((result, failed)))

    ask(lambda _: {}["missing"])
    made._threads[0].join(timeout=10)
    ask(lambda _: writer.Decision((), "done"))
    made.close()
    assert [failed.status for _, failed in told] == [503, 503]
    assert len((tmp_path / "votes" / writer.MIRROR).read_bytes().splitlines()) == 1


def test_a_backup_holds_what_the_database_holds(tmp_path):
    made = writer.Writer(tmp_path / "votes", "design")
    copy = writer.back_up(tmp_path / "votes")
    made.close()
    with writer.contextlib.closing(writer.database.connect(copy, read_only=True)) as db:
        assert writer.database.design_hash(db) == "design"
