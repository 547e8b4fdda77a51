"""`rlcm doctor`: a line a thing, and an exit status for scripts."""

import pytest
from command_line import rlcm, succeed

from rlcm_cli.measuring import doctor
from rlcm_cli.measuring.doctor import Finding

FINE = Finding("python", "ok", "3.11")
ODD = Finding("extra ray", "note", "absent: ray is not installed", "if you want it, pip install 'rlcm[ray]'")
BROKEN = Finding("torch", "problem", "cannot be imported", "install it again")


@pytest.fixture
def find(monkeypatch):
    def give(*findings):
        monkeypatch.setattr(doctor, "examine", lambda runs: iter(findings))

    return give


def test_each_finding_is_a_line_with_what_to_do(capsys, find):
    longest = Finding("extra tensorboard", "ok", "2.21.0")
    find(FINE, ODD, longest)
    assert succeed(capsys, "doctor").out.splitlines() == [
        "ok      python            3.11",
        "note    extra ray         absent: ray is not installed → if you want it, pip install 'rlcm[ray]'",
        "ok      extra tensorboard 2.21.0",
    ]


def test_what_is_needed_and_broken_makes_the_status_1(capsys, find):
    find(FINE, BROKEN, ODD)
    outcome = rlcm(capsys, "doctor", "--json")
    assert outcome.status == 1
    told = outcome.json_line()
    assert told["healthy"] is False
    assert [finding["status"] for finding in told["findings"]] == ["ok", "problem", "note"]
    assert rlcm(capsys, "doctor").status == 1


def test_this_machine_is_examined_as_a_whole(capsys, tmp_path):
    told = succeed(capsys, "doctor", "--runs", tmp_path / "runs", "--json").json_line()
    assert told["healthy"]
    topics = [finding["topic"] for finding in told["findings"]]
    assert {"python", "torch", "cpu", "packages", "memory", "runs", "embedded models", "hub", "extra ocr"} <= set(
        topics
    )
    assert not (tmp_path / "runs").exists()
