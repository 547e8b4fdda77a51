"""Connections that are kept, and others than servers of HTTP at their end."""

import contextlib
import socket
import ssl
import threading
import time

import httpx2
import pytest

from rlcm_cli.errors import RewardError
from rlcm_cli.rewards.http.client import HttpClient, NoReplyError
from rlcm_cli.rewards.http.connection import Connection

QUESTION = b"a question"
WHOLE = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


def make_client(address, *, timeout=60.0):
    return HttpClient(
        address, name="the server", timeout=timeout, advice="fix it", headers={}, secret="", proxied=False
    )


def ask(client):
    return client.exchange("POST", {}, body=[QUESTION], most_bytes=100)


def hear(connection):
    """Read one question; false where there are no more."""
    heard = b""
    while not heard.endswith(QUESTION):
        if not (part := connection.recv(1000)):
            return False
        heard += part
    return True


@contextlib.contextmanager
def answering(answer):
    """Let `answer(connection, number)` answer each connection; yields address and list of the connections."""
    connections = []

    def work(number, connection):
        with contextlib.suppress(OSError):
            answer(connection, number)
        connection.close()

    def accept():
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                connections.append(connection)
                threading.Thread(target=work, args=(len(connections), connection), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield f"127.0.0.1:{listener.getsockname()[1]}/x", connections
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(20)
            for connection in connections:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize(
    ("heard", "foreign"),
    [(b"", False), (b"H", False), (b"HTTP/1.0 200", False), (b"h", True), (b"HTTPS", True), (b"\r\nHTTP/1.1", True)],
)
def test_what_cannot_begin_an_answer(heard, foreign):
    with httpx2.Client() as client:
        connection = Connection(client)
        connection.heard = heard
        assert connection.foreign is foreign


@pytest.mark.parametrize("stays", [False, True], ids=["hangs up", "stays"])
@pytest.mark.parametrize(
    ("said", "words"),
    [
        (b"220 mail.example.org ESMTP\r\n", "no HTTP (220 mail.example.org ESMTP)"),
        (b"SSH-2.0-OpenSSH_9.9\r\nInvalid SSH identification string.\r\n", "no HTTP (SSH-2.0-OpenSSH_9.9)"),
        (b"\x15\x03\x01\x00\x02\x02\x46", "no HTTP but TLS (is it https://?)"),
        (b"\x00\x1b[2J\n", "no HTTP (\ufffd\ufffd[2J)"),
    ],
)
def test_others_than_http_are_refused_at_once_in_what_they_say(said, words, stays):
    def answer(connection, number):
        connection.sendall(said)
        while connection.recv(1000) and stays:
            pass

    started = time.monotonic()
    with answering(answer) as (address, connections), pytest.raises(RewardError) as caught:
        ask(make_client(f"http://{address}"))
    assert str(caught.value) == f"the server gave a malformed answer: {words}; fix it"
    assert time.monotonic() - started < 30
    assert len(connections) == 1


def test_half_a_line_is_enough_where_they_hang_up():
    def answer(connection, number):
        connection.sendall(b"go away")
        hear(connection)

    with answering(answer) as (address, _), pytest.raises(RewardError, match=r"no HTTP \(go away\)"):
        ask(make_client(f"http://{address}"))


@pytest.mark.parametrize("said", [b"", b"HT", b"HTTP/1.1 200 OK\r\n"])
def test_the_beginning_of_an_answer_is_that_of_a_server_worth_asking_again(said):
    def answer(connection, number):
        if number == 1:  # not the greeting of TLS that follows
            hear(connection)
            connection.sendall(said)

    with answering(answer) as (address, _), pytest.raises(NoReplyError, match="connection lost"):
        ask(make_client(f"http://{address}"))


def test_a_server_of_tls_that_hangs_up_without_a_word_is_known():
    # Without a certificate it still answers a greeting of TLS, with an alert.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)

    def answer(connection, number):
        context.wrap_socket(connection, server_side=True)

    with answering(answer) as (address, _), pytest.raises(RewardError, match=r"no HTTP but TLS \(is it https://\?\)"):
        ask(make_client(f"http://{address}"))


def test_a_server_of_http_where_tls_is_expected_is_known():
    def answer(connection, number):
        connection.recv(1000)
        connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    with answering(answer) as (address, _), pytest.raises(RewardError, match=r"no TLS \(is it http://\?\)"):
        ask(make_client(f"https://{address}"))


def test_a_kept_connection_has_a_deadline_too():
    def answer(connection, number):
        hear(connection)
        connection.sendall(WHOLE)
        while hear(connection):
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\n")
            while True:
                time.sleep(0.02)
                connection.sendall(b"x")

    with answering(answer) as (address, connections):
        client = make_client(f"http://{address}", timeout=0.3)
        assert ask(client).body == b"ok"
        with pytest.raises(NoReplyError, match=r"no whole answer within 0.3 s"):
            ask(client)
        assert len(connections) == 1
        assert ask(client).body == b"ok"
        assert len(connections) == 2


def test_a_kept_connection_that_breaks_is_replaced_once():
    def answer(connection, number):
        hear(connection)
        if number == 1:
            connection.sendall(WHOLE)
            hear(connection)

    with answering(answer) as (address, connections):
        client = make_client(f"http://{address}")
        assert ask(client).body == b"ok"
        with pytest.raises(NoReplyError, match="connection lost"):
            ask(client)
    assert len(connections) == 2


def test_requests_at_the_same_time_have_a_connection_each_and_keep_it():
    both = threading.Barrier(2, timeout=20)

    def answer(connection, number):
        while hear(connection):
            both.wait()
            connection.sendall(WHOLE)

    with answering(answer) as (address, connections):
        client = make_client(f"http://{address}")
        for _ in range(3):
            threads = [threading.Thread(target=ask, args=(client,)) for _ in range(2)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(30)
        assert len(connections) == 2


def test_connections_end_with_their_client():
    ended = threading.Event()

    def answer(connection, number):
        while hear(connection):
            connection.sendall(WHOLE)
        ended.set()

    with answering(answer) as (address, _):
        client = make_client(f"http://{address}")
        ask(client)
        del client
        assert ended.wait(20)
