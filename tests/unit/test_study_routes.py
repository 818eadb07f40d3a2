"""The study's routes: what a rater may do, and what an attacker may not."""

import contextlib
import json
import subprocess
import sys

import pytest

from cfbench.study import database, schemas
from cfbench.study.design import Spec, load
from cfbench.study.guard import Guard, Rates
from cfbench.study.simulated import vote
from tests.helpers.bench import ROOT
from tests.helpers.study import study_folder

pytest.importorskip("fastapi")
testclient = pytest.importorskip("starlette.testclient")

TEXT = "application/json"
HOSTILE_PATHS = (
    "/m/..%2f..%2fdesign.json", "/m/%2e%2e/%2e%2e/secret.key", "/m/", "/m/a.mp4",
    "/m/" + "0" * 40 + ".mp4", "/study/..%2f..%2f..%2fpyproject.toml", "/study/gallery.js",
    "/study/%2fetc%2fpasswd", "/media/", "/design.json", "/secret.key", "/votes/study.sqlite",
    "/static/../../design.json", "/assets/..%2f..%2f..%2f..%2fetc%2fpasswd",
    "/gradio_api/info", "/gradio_api/openapi.json", "/gradio_api/runs", "/gradio_api/upload",
    "/gradio_api/file=/etc/passwd", "/gradio_api/file=design.json", "/gradio_api/queue/data",
    "/gradio_api/run-history/buckets", "/gradio_api/mcp/", "/gradio_api/mcp/sse", "/monitoring",
    "/monitoring/summary", "/docs", "/redoc", "/openapi.json", "/login", "/token", "/proxy=http://x",
    "/gradio_api/proxy=http://x", "/custom_component/a/b/c/d", "/dev/reload", "/svelte/a.js",
    "/gradio_api/vibe-edit", "/.git/config", "/api/export", "/api/status", "/api/build",
)  # fmt: skip
HOSTILE_BODIES = (
    b"", b"null", b"[]", b"1", b'"x"', b"{", b"\xff\xfe", b"[" * 10_000, b'{"item": 1e999}',
    b'{"item": NaN}', b'{"item": ' + b"9" * 5000 + b"}", b'{"__proto__": {}}',
)  # fmt: skip
WRONG_VOTES = (
    {"item": -1}, {"item": 10**9}, {"item": 99}, {"item": 1.5}, {"item": True}, {"item": "0"},
    {"item": None}, {"question": "nothing"}, {"question": "' OR 1=1 --"}, {"question": ["a"]},
    {"question": "x" * 1000}, {"answer": "both"}, {"answer": ""}, {"answer": None}, {"answer": {}},
    {"reason": "x" * 2001}, {"reason": 3}, {"answer": "cannot", "reason": ""},
    {"reason": "\ud800"}, {"watched_left_s": -1}, {"watched_left_s": float("nan")},
    {"watched_left_s": float("inf")}, {"watched_right_s": "60"}, {"replays": -1},
    {"replays": 10**400}, {"hidden_s": []}, {"response_s": -0.1}, {"client": "x" * 65},
    {"session": "other"}, {"side": "left"}, {"seq": 1}, {"at": "2020-01-01"},
)  # fmt: skip


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    from cfbench.study.raters import Study
    from cfbench.study.serve import make_app

    folder = study_folder(tmp_path_factory.mktemp("study"), spec=Spec(block_pairs=3))
    study = Study(folder)
    return study, Guard(make_app(study, with_page=False), Rates(1e9, 1e9))


@pytest.fixture(scope="module")
def running(app):
    with testclient.TestClient(app[1]) as client:
        yield client


@pytest.fixture
def client(running):
    running.cookies.clear()
    return running


def begin(client, **body):
    answer = client.post("/api/session", json={"consent": True, **body})
    assert answer.status_code == 200, answer.text
    tree = answer.json()
    return {"x-study-token": tree["token"]}, tree["state"]


def post(client, head, /, **changes):
    body = {**vote(0, "aesthetics", "left"), **changes}
    content = json.dumps(body).encode()
    return client.post("/api/vote", content=content, headers={**head, "content-type": TEXT})


def answer_all(client, head, state):
    for index, item in enumerate(state["items"]):
        for question in item["questions"]:
            assert post(client, head, item=index, question=question["id"]).status_code == 200
    return client.get("/api/state", headers=head).json()


def events(study):
    path = study.folder / "votes" / "study.sqlite"
    with contextlib.closing(database.connect(path, read_only=True)) as db:
        return database.last_seq(db)


def test_a_whole_study_ends_with_a_code_and_goes_on_with_another_block(client, app):
    head, state = begin(client)
    assert len(state["items"]) == 3 + 4
    assert client.post("/api/block", json={}, headers=head).status_code == 409
    state = answer_all(client, head, state)
    assert (state["finished"], state["more"]) == (True, True)
    more = client.post("/api/block", json={}, headers=head).json()["state"]
    assert (len(more["items"]), more["finished"], more["code"]) == (8, False, "")
    last = answer_all(client, head, more)
    assert (last["finished"], last["more"], last["code"]) == (True, False, state["code"])
    assert client.post("/api/block", json={}, headers=head).status_code == 409


def test_the_same_vote_twice_is_one_event_and_another_one_is_a_change(client, app):
    head, _ = begin(client)
    place = {"question": app[0].questions(app[0].rater(head["x-study-token"]).items[0])[0].id}
    before = events(app[0])
    for _ in range(3):
        assert post(client, head, **place).status_code == 200
    assert events(app[0]) == before + 1
    assert post(client, head, answer="right", **place).status_code == 200
    assert events(app[0]) == before + 2


def test_films_not_watched_cannot_be_judged(client):
    head, _ = begin(client)
    assert post(client, head, watched_left_s=0.5).status_code == 409
    assert post(client, head, watched_right_s=0.0, answer="tie").status_code == 409
    assert post(client, head, watched_left_s=0.0, answer="cannot", reason="no picture").is_success


def test_the_link_resumes_and_a_participant_begins_once(client):
    head, state = begin(client, participant="P1")
    again = client.post("/api/resume", json={"token": head["x-study-token"]}).json()
    assert again["state"] == state
    refused = client.post("/api/session", json={"consent": True, "participant": "P1"})
    assert refused.status_code == 409
    assert client.post("/api/session", json={"consent": False}).status_code == 422


def test_a_film_comes_in_ranges_and_each_rater_gets_other_bytes(client):
    _, state = begin(client)
    url = state["items"][0]["left"]
    whole = client.get(url)
    assert whole.status_code == 200
    size = len(whole.content)
    for header, span in (
        ("bytes=0-9", slice(0, 10)), (f"bytes={size - 40}-", slice(size - 40, size)),
        ("bytes=-20", slice(size - 20, size)), (f"bytes=5-{size + 9}", slice(5, size)),
    ):  # fmt: skip
        part = client.get(url, headers={"range": header})
        assert part.status_code == 206
        assert part.content == whole.content[span]
    for header in ("bytes=9-5", f"bytes={size}-", "bytes=a-b", "bytes=-", "bytes=0-1,3-4", "x"):
        assert client.get(url, headers={"range": header}).status_code == 416
    names = {name.lower() for name in whole.headers}
    assert not names & {"etag", "last-modified", "server"}
    assert whole.headers["cache-control"] == "no-store"
    assert whole.headers["content-disposition"] == "inline"


def test_another_raters_and_altered_and_guessed_films_are_not_there(client):
    _, first = begin(client)
    mine = [item[side] for item in first["items"] for side in ("left", "right")]
    assert client.get(mine[0]).status_code == 200
    _, second = begin(client)  # the cookie is now the second rater's
    theirs = [item[side] for item in second["items"] for side in ("left", "right")]
    assert not set(mine) & set(theirs)
    assert {client.get(url).status_code for url in mine} == {404}
    url = theirs[0]
    for place in range(3, 40, 6):
        letter = "0" if url[place] != "0" else "1"
        assert client.get(url[:place] + letter + url[place + 1 :]).status_code == 404
    assert client.get(url.upper().replace("/M/", "/m/")).status_code == 404
    client.cookies.clear()
    assert client.get(url).status_code == 404


@pytest.mark.parametrize("path", HOSTILE_PATHS)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_paths_that_are_none(client, path, method):
    begin(client)
    answer = client.request(method, path)
    assert answer.status_code in (404, 405)
    assert len(answer.content) < 200


@pytest.mark.parametrize("name", sorted(schemas.BODIES))
@pytest.mark.parametrize("body", HOSTILE_BODIES, ids=range(len(HOSTILE_BODIES)))
def test_bodies_that_are_none(client, app, name, body):
    head, _ = begin(client)
    before = events(app[0])
    answer = client.post(f"/api/{name}", content=body, headers={**head, "content-type": TEXT})
    assert answer.status_code == 422
    assert events(app[0]) == before


@pytest.mark.parametrize("wrong", WRONG_VOTES, ids=range(len(WRONG_VOTES)))
def test_votes_that_are_none(client, app, wrong):
    head, _ = begin(client)
    before = events(app[0])
    assert post(client, head, **wrong).status_code == 422
    assert events(app[0]) == before


@pytest.mark.parametrize("token", ["", "x", "' OR ''='", "0" * 5000, "../..", "é", "\x00"])
def test_tokens_that_are_none(client, token):
    head = {"x-study-token": token.encode("latin-1")}
    assert post(client, head).status_code == 404
    assert client.get("/api/state", headers=head).status_code == 404
    assert client.post("/api/resume", json={"token": token[:64]}).status_code == 404


def test_large_bodies_wrong_types_and_sockets_are_refused(client):
    head, _ = begin(client)
    large = b'{"text": "' + b"x" * 20_000 + b'"}'
    typed = {**head, "content-type": TEXT}
    assert client.post("/api/comment", content=large, headers=typed).status_code == 413
    chunked = client.post("/api/comment", content=iter([large[:9000], large[9000:]]), headers=typed)
    assert chunked.status_code == 413
    form = client.post("/api/session", data={"consent": "true"})
    assert form.status_code == 415
    with (
        pytest.raises(testclient.WebSocketDisconnect),
        client.websocket_connect("/gradio_api/queue/join"),
    ):
        pass


def test_every_answer_carries_the_security_headers(client):
    for answer in (client.get("/api/alive"), client.get("/nothing"), client.post("/api/vote")):
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "default-src 'self'" in answer.headers["content-security-policy"]
        assert answer.headers["x-frame-options"] == "DENY"


def test_rates_are_limited_and_recover():
    now = [0.0]
    rates = Rates(3, 1, clock=lambda: now[0])
    assert [rates.allows("a") for _ in range(4)] == [True, True, True, False]
    assert rates.allows("b")
    now[0] = 1.0
    assert [rates.allows("a") for _ in range(2)] == [True, False]


def test_a_rater_who_floods_is_slowed_down(client):
    head, _ = begin(client)
    statuses = [client.get("/api/state", headers=head).status_code for _ in range(80)]
    assert set(statuses) == {200, 429}


def test_schemas_say_what_the_routes_do(client):
    schemathesis = pytest.importorskip("schemathesis")
    import hypothesis

    head, _ = begin(client)
    schema = schemathesis.openapi.from_dict(schemas.openapi())
    tried = []
    for operation in schema.get_all_operations():
        made = operation.ok().as_strategy()

        @hypothesis.settings(
            max_examples=40, deadline=None, derandomize=True, database=None,
            suppress_health_check=list(hypothesis.HealthCheck),
        )  # fmt: skip
        @hypothesis.given(case=made)
        def attack(case):
            body = json.dumps(case.body).encode() if case.body is not None else b""
            answer = client.post(case.path, content=body, headers={"content-type": TEXT, **head})
            tried.append(answer.status_code)
            assert answer.status_code < 500
            assert answer.status_code in (200, *schemas.REFUSALS)

        attack()
    assert len(tried) >= 100


def test_serving_needs_no_torch(tmp_path):
    folder = study_folder(tmp_path)
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from cfbench.study.raters import Study\n"
        "from cfbench.study.serve import make_app\n"
        f"study = Study(Path({str(folder)!r}))\n"
        "make_app(study, with_page=False)\n"
        "study.close()\n"
        "assert not {'torch', 'transformers', 'diffusers', 'cfmodel', 'av'} & set(sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert load(folder)[0].version == 1
