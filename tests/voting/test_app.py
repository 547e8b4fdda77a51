"""The voting page's server: what it serves, and all that it refuses."""

from __future__ import annotations

import pytest
from starlette.testclient import TestClient
from voted_runs import write_voted

from rlcm_cli.errors import StorageFullError
from rlcm_cli.store.votes import read_votes
from rlcm_cli.voting.app import FILES, build_app
from rlcm_cli.voting.contests import contests_of_rollout, read_rollout_images
from rlcm_cli.voting.session import Session

KEY = "a-key"
OWN = {"Authorization": f"Bearer {KEY}"}
BALLOT = {"number": 0, "answer": "left"}


@pytest.fixture
def run(tmp_path):
    return write_voted(tmp_path / "run")


@pytest.fixture
def session(run):
    return Session(run.layout, contests_of_rollout(run.layout, 0, ["compression"]), read_rollout_images(run.layout, 0))


@pytest.fixture
def client(session):
    return TestClient(build_app(session, KEY, "127.0.0.1"), base_url="http://127.0.0.1:8001")


@pytest.fixture
def voter(client):
    return client.post("/api/voters", headers=OWN).json()["voter"]


def test_a_voter_gets_pairs_and_images_and_votes(client, run):
    joined = client.post("/api/voters", headers=OWN).json()
    assert (joined["done"], joined["total"], len(joined["pairs"])) == (0, 6, 3)
    first = joined["pairs"][0]
    image = client.get(f"/api/images/{first['left']}", headers=OWN)
    assert image.headers["content-type"] == "image/png"
    after = client.post(f"/api/voters/{joined['voter']}", headers=OWN, json=BALLOT).json()
    assert (after["done"], after["pairs"][0]["number"]) == (1, 1)
    assert client.get(f"/api/voters/{joined['voter']}", headers=OWN).json() == after
    assert client.get("/api/session", headers=OWN).json() == {
        "images": 6,
        "pairs": 6,
        "voters": [{"voter": joined["voter"], "done": 1}],
    }
    assert [vote.answer for vote in read_votes(run.layout)[joined["voter"]]] == ["left"]


def test_a_pair_says_nothing_of_where_its_images_come_from(client, run):
    pair = client.post("/api/voters", headers=OWN).json()["pairs"][0]
    assert pair.keys() == {"number", "prompt", "left", "right"}
    image = client.get(f"/api/images/{pair['left']}", headers=OWN)
    assert {name.lower() for name in image.headers} == {
        *("content-length", "content-type", "content-security-policy", "cross-origin-resource-policy"),
        *("x-content-type-options", "referrer-policy", "cache-control"),
    }


@pytest.mark.parametrize("path", FILES)
def test_the_page_is_served_without_a_key_and_holds_nothing(client, path):
    page = client.get(path)
    assert page.status_code == 200
    assert page.headers["content-type"].startswith(FILES[path][1])
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert "frame-ancestors 'none'" in page.headers["content-security-policy"]
    assert "prompt 0" not in page.text
    assert KEY not in page.text


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {KEY}"}])
@pytest.mark.parametrize(("method", "path"), [("get", "session"), ("post", "voters"), ("get", "images/0")])
def test_without_the_key_nothing_is_read_or_changed(client, session, headers, method, path):
    assert getattr(client, method)(f"/api/{path}", headers=headers).status_code == 401
    assert session.voters == {}


def test_the_key_is_not_taken_from_an_address_or_a_cookie(client):
    assert client.get(f"/api/session?key={KEY}&token={KEY}").status_code == 401
    client.cookies.set("Authorization", f"Bearer {KEY}")
    assert client.get("/api/session").status_code == 401


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://127.0.0.1:9999"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Host": "evil.example"}, 421),
        ({"Host": "evil.example:8001"}, 421),
        ({"Host": "127.0.0.1.evil.example"}, 421),
        ({"Host": "[::1"}, 421),
        ({"Host": ""}, 421),
        ({"Origin": "http://127.0.0.1:8001", "Sec-Fetch-Site": "same-origin"}, 200),
        ({"Host": "localhost:9000", "Origin": "http://localhost:9000"}, 200),  # through a tunnel
        ({"Host": "[::1]:8001"}, 200),
        ({"Host": "192.0.2.7:8001"}, 200),
    ],
)
def test_other_sites_and_other_names_are_refused_even_with_the_key(client, run, voter, headers, status):
    answer = client.post(f"/api/voters/{voter}", headers={**OWN, **headers}, json=BALLOT)
    assert answer.status_code == status
    assert bool(read_votes(run.layout)) == (status == 200)
    if status == 421:
        assert client.get("/", headers=headers).status_code == 421


@pytest.mark.parametrize(
    "path", ["voters", "voters/{voter}", "session", "images/x", "voters/{voter}?answer=left&number=0"]
)
def test_a_get_changes_nothing(client, run, session, voter, path):
    client.get(f"/api/{path.format(voter=voter)}", headers=OWN)
    assert not run.layout.votes.exists()
    assert [*session.voters] == [voter]


@pytest.mark.parametrize("method", ["put", "delete", "patch", "options"])
def test_other_methods_are_refused(client, voter, method):
    assert getattr(client, method)(f"/api/voters/{voter}", headers=OWN).status_code in (405, 411)


@pytest.mark.parametrize(
    "path",
    [
        "../../etc/passwd",
        "..%2f..%2fetc%2fpasswd",
        "%2e%2e/%2e%2e/config.json",
        "/etc/passwd",
        "page/../../store/votes.py",
        "api/images/..%2f..%2fconfig.json",
        "api/voters/..%2f..",
        "openapi.json",
        "docs",
    ],
)
def test_no_path_leads_anywhere(client, path):
    answer = client.get(f"/{path}", headers=OWN)
    assert answer.status_code == 404
    assert answer.json().keys() == {"detail"}


@pytest.mark.parametrize("voter_named", ["ffffffff", "..%2f..%2fvotes", "0123ABCD", "a" * 5000])
def test_a_voter_that_is_not_known_cannot_vote(client, run, voter_named):
    assert client.post(f"/api/voters/{voter_named}", headers=OWN, json=BALLOT).status_code == 404
    assert not run.layout.votes.exists()


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"number": 6, "answer": "left"}, 404),
        ({"number": 10**30, "answer": "left"}, 404),
        ({"number": -1, "answer": "left"}, 422),
        ({"number": "0", "answer": "left"}, 422),
        ({"number": True, "answer": "left"}, 422),
        ({"number": 0, "answer": "both"}, 422),
        ({"number": 0}, 422),
        ({"number": 0, "answer": "left", "voter": "ann"}, 422),
        ([0, "left"], 422),
        ({"number": 0, "answer": "x" * 2000}, 413),
    ],
)
def test_what_is_no_ballot_is_refused(client, run, voter, body, status):
    assert client.post(f"/api/voters/{voter}", headers=OWN, json=body).status_code == status
    assert not run.layout.votes.exists()


def test_a_body_of_unknown_length_is_refused_unread(client, voter):
    def endless():
        yield b"{"
        raise AssertionError("was read on")

    headers = {**OWN, "Transfer-Encoding": "chunked"}
    answer = client.post(f"/api/voters/{voter}", headers=headers, content=b"")
    assert answer.status_code in (411, 422)
    answer = client.post(f"/api/voters/{voter}", headers={**OWN, "Content-Length": "1" * 30}, content=b"{}")
    assert answer.status_code == 413


def test_a_full_disk_is_told_without_a_path(client, voter, monkeypatch, caplog):
    def fail(*arguments):
        raise StorageFullError("/home/ann/runs/a/votes: not written, the disk is full")

    monkeypatch.setattr("rlcm_cli.voting.session.publish_vote", fail)
    answer = client.post(f"/api/voters/{voter}", headers=OWN, json=BALLOT)
    assert answer.status_code == 500
    assert "could not be stored" in answer.json()["detail"]
    assert "ann" not in answer.text
    assert "the disk is full" in caplog.text
