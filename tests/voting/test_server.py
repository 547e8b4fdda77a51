"""The address of a voting page: on loopback, with a key that is new each time."""

from __future__ import annotations

import socket

import pytest
from voted_runs import write_voted

from rlcm_cli.errors import ConfigError
from rlcm_cli.voting.contests import contests_of_rollout, read_rollout_images
from rlcm_cli.voting.server import open_server
from rlcm_cli.voting.session import Session


@pytest.fixture
def session(tmp_path):
    layout = write_voted(tmp_path / "run").layout
    return Session(layout, contests_of_rollout(layout, 0, ["compression"]), read_rollout_images(layout, 0))


def test_each_page_has_a_key_of_its_own(session):
    addresses = []
    for _ in range(2):
        with open_server(session, "127.0.0.1", 0) as server:
            addresses.append(server.address)
    keys = {address.partition("/#")[2] for address in addresses}
    assert len(keys) == 2
    assert min(map(len, keys)) >= 22  # 128 bits
    assert all(address.startswith("http://127.0.0.1:") for address in addresses)


def test_bound_to_all_addresses_it_is_named_by_this_machine_s_name(session):
    with open_server(session, "0.0.0.0", 0) as server:  # noqa: S104
        assert server.address.startswith(f"http://{socket.gethostname()}:")


def test_a_port_that_is_taken_is_one_line(session):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with (
            pytest.raises(ConfigError, match=rf"--port {port} cannot be listened on"),
            open_server(session, "127.0.0.1", port),
        ):
            pass
