"""Rewards behind addresses: real servers, and servers that do what they should not."""

import json
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import safetensors.torch
import torch
from reward_services import DESCRIPTION, free_port, images, register, rows, scripted, serving

from rlcm_cli.errors import ConfigError, RewardError
from rlcm_cli.rewards import Reward, RewardSpec, load_reward
from rlcm_cli.rewards.http import pool
from rlcm_cli.rewards.remote import protocol
from rlcm_cli.rewards.remote.client import RemoteReward, connect
from rlcm_cli.rewards.remote.protocol import Answer, Batch, decode_batch, encode_answer, encode_batch
from rlcm_cli.rewards.remote.service import Limits

SILENT = {"timeout": 5.0, "patience": 0.0}
PATIENT = {"timeout": 20.0, "patience": 30.0}


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch):
    monkeypatch.delenv("RLCM_REWARD_TOKEN", raising=False)
    monkeypatch.setattr(pool, "FIRST_PAUSE", 0.02)
    monkeypatch.setattr(pool, "LONGEST_PAUSE", 0.2)


def load(name, **settings) -> Reward:
    return load_reward(RewardSpec(name, {**PATIENT, **settings}))


def score(name, batch, **settings):
    return load(name, **settings).score(batch, *rows(len(batch)))


def first_pixels(batch, prompts, metadata):
    return batch[:, 0, 0, 0].float()


def answer(body, *, revision="r1", change=lambda rewards: rewards):
    """What a faultless server gives: each image its first pixel."""
    rewards = decode_batch(body).images[:, 0, 0, 0].astype(np.float32)
    return 200, {}, encode_answer(Answer(change(rewards), "odd", revision))


def faultless(body, handler):
    return answer(body)


class TestProtocol:
    def test_a_request_is_a_safetensors_file(self):
        pixels = images(2).numpy()
        head, data = encode_batch(Batch(pixels, ["a", "ß"], [{"sample": 1}, {}]))
        assert (data.nbytes, len(head) % 8) == (pixels.nbytes, 0)
        loaded = safetensors.torch.load(head + data)
        assert torch.equal(loaded["images"], images(2))
        header = json.loads(head[8:])
        assert json.loads(header["__metadata__"]["rlcm"]) == {
            "prompts": ["a", "ß"],
            "metadata": [{"sample": 1}, {}],
        }

    def test_sending_and_reading_copy_no_image(self):
        pixels = images(2).numpy()
        head, data = encode_batch(Batch(pixels, ["a", "b"], [{}, {}]))
        assert np.shares_memory(np.frombuffer(data, np.uint8), pixels)
        body = bytearray(head + data)
        assert np.shares_memory(decode_batch(body).images, np.frombuffer(body, np.uint8))

    def test_an_answer_is_a_safetensors_file(self):
        rewards = np.array([1.5, -2.25], np.float32)
        body = encode_answer(Answer(rewards, "odd", "r1"))
        assert safetensors.torch.load(body)["rewards"].tolist() == [1.5, -2.25]
        read = protocol.decode_answer(body)
        assert (read.rewards.tolist(), read.reward, read.revision) == ([1.5, -2.25], "odd", "r1")

    @pytest.mark.parametrize("value", [float("nan"), {1, 2}, torch.zeros(1)])
    def test_metadata_that_is_no_json(self, value):
        with scripted(faultless) as (address, _), pytest.raises(RewardError, match=f"{address} cannot be asked"):
            load(address).score(images(1), ["x"], [{"x": value}])


class TestValues:
    def test_they_are_those_of_this_process(self):
        batch = images(7)
        with serving("compressibility") as root:
            reward = load(f"{root}/compressibility")
            rewards = reward.score(batch, *rows(7))
        assert torch.equal(rewards, load_reward(RewardSpec("compressibility")).score(batch, *rows(7)))
        assert not reward.set_level

    def test_an_empty_batch_asks_nobody(self):
        with scripted(faultless) as (address, requests):
            assert score(address, images(0)).shape == (0,)
        assert requests == []

    def test_images_that_lie_apart_in_memory(self):
        batch = images(4).permute(0, 1, 3, 2)
        with scripted(faultless) as (address, _):
            assert torch.equal(score(address, batch), first_pixels(batch, None, None))

    def test_a_batch_is_cut_to_what_the_server_takes(self, monkeypatch):
        calls = []

        def counting(batch, prompts, metadata):
            calls.append(len(batch))
            assert prompts == [f"prompt {known['sample']}" for known in metadata]
            return first_pixels(batch, prompts, metadata)

        register(monkeypatch, "counting", counting)
        batch = images(50)  # of 768 bytes each
        with serving("counting", limits=Limits(most_bytes=8000, batch=1)) as root:
            assert torch.equal(score(f"{root}/counting", batch), first_pixels(batch, None, None))
        assert len(calls) == 6
        assert max(calls) == 9

    def test_a_set_level_reward(self, monkeypatch):
        def spread(batch, prompt, metadata):
            assert isinstance(prompt, str)
            values = batch[:, 0, 0, 0].float()
            return values - values.mean()

        register(monkeypatch, "spread", spread, set_level=True)
        batch, (prompts, metadata) = images(6), rows(6)
        prompts = [prompts[known["group"]] for known in metadata]
        with serving("spread") as root:
            remote = load(f"{root}/spread")
            assert remote.set_level
            assert torch.equal(
                remote.score(batch, prompts, metadata),
                load_reward(RewardSpec("spread")).score(batch, prompts, metadata),
            )

    def test_the_revision_is_the_server_s(self):
        with scripted(faultless) as (address, _):
            assert load(address).revision == "r1"
            function = connect([address], timeout=20, patience=30)
        assert isinstance(function, RemoteReward)
        assert function.revision == "r1"

    def test_connections_are_kept(self, caplog):
        ports = set()

        def noting(body, handler):
            ports.add(handler.client_address[1])
            return answer(body)

        with scripted(noting) as (address, _):
            reward = load(address)
            for _ in range(5):
                reward.score(images(2), *rows(2))
        assert len(ports) == 1
        assert not caplog.records


class TestSeveralServers:
    def test_they_take_turns_and_the_order_is_kept(self):
        batch = images(9)
        with scripted(faultless) as (first, asked), scripted(faultless) as (second, asked_too):
            reward = load(f"{first},{second}")
            for _ in range(4):
                assert torch.equal(reward.score(batch, *rows(9)), first_pixels(batch, None, None))
        assert len(asked) == len(asked_too) == 4

    def test_they_work_at_the_same_time(self):
        both = threading.Barrier(2, timeout=20)

        def waiting(body, handler):
            both.wait()
            return answer(body)

        with scripted(waiting) as (first, _), scripted(waiting) as (second, _):
            score(f"{first},{second}", images(4))

    def test_others_take_over_from_one_that_is_down(self, caplog):
        batch = images(8)
        with scripted(faultless) as (first, _):
            with scripted(faultless) as (second, _):
                reward = load(f"{first},{second}", patience=0)
            for _ in range(3):
                assert torch.equal(reward.score(batch, *rows(8)), first_pixels(batch, None, None))
        assert f"reward server {second} does not answer (connection" in caplog.text
        assert "with 1 other meanwhile" in caplog.text

    def test_one_may_be_down_at_the_start_and_come_later(self, caplog):
        port = free_port()
        late = f"http://127.0.0.1:{port}/odd"
        with scripted(faultless) as (first, _):
            reward = load(f"{late},{first}")
            reward.score(images(4), *rows(4))
            with scripted(faultless, port=port) as (_, requests):
                deadline = time.monotonic() + 20
                while not requests and time.monotonic() < deadline:
                    reward.score(images(4), *rows(4))
                    time.sleep(0.05)
        assert requests

    @pytest.mark.parametrize("when", ["at the start", "later"])
    def test_two_revisions_are_never_mixed(self, when):
        other = {**DESCRIPTION, "revision": "r2"} if when == "at the start" else DESCRIPTION
        with (
            scripted(faultless) as (first, _),
            scripted(lambda body, handler: answer(body, revision="r2"), description=other) as (second, _),
            pytest.raises(RewardError) as caught,
        ):
            score(f"{first},{second}", images(4))
        assert f"{second} serves revision r2, and the scores so far are of revision r1 ({first})" in str(caught.value)

    def test_an_error_of_one_ends_the_waiting_for_the_others(self):
        away = threading.Event()

        def refusing(body, handler):
            away.wait(20)
            return 422, {}, b'{"detail": "no"}'

        def slow(body, handler):
            away.set()
            time.sleep(3)
            return 503, {}, b""

        with scripted(refusing) as (first, _), scripted(slow) as (second, _):
            reward = load(f"{first},{second}", patience=600)
            started = time.monotonic()
            with pytest.raises(RewardError, match="refused the request"):
                reward.score(images(4), *rows(4))
            assert time.monotonic() - started < 2.5


def short(body, handler):
    return answer(body, change=lambda rewards: rewards[:-1])


def with_nan(body, handler):
    return answer(body, change=lambda rewards: np.where(np.arange(len(rewards)) == 1, np.nan, rewards))


def text_of_floats(body, handler):
    return 200, {}, b'{"rewards": [1, 2]}'


def doubles(body, handler):
    return 200, {}, safetensors.torch.save({"rewards": torch.zeros(2).double()}, metadata={"rlcm": "{}"})


def another_count(body, handler):
    record = '{"count": 3, "reward": "odd", "revision": "r1"}'
    return 200, {}, safetensors.torch.save({"rewards": torch.zeros(2)}, metadata={"rlcm": record})


def nameless(body, handler):
    record = '{"count": 2}'
    return 200, {}, safetensors.torch.save({"rewards": torch.zeros(2)}, metadata={"rlcm": record})


def endless(body, handler):
    return 200, {}, b"x" * (3 * 2**20)


def not_http(body, handler):
    handler.wfile.write(b"220 mail.example.org ESMTP\r\n")


ODD_ANSWERS = {
    short: "returned 1 rewards for 2 images",
    with_nan: "returned nan for 1 of 2 images, the first with prompt 'prompt 1', metadata {'sample': 1, 'group': 0}",
    text_of_floats: "malformed answer: the body is not a safetensors file",
    doubles: "malformed answer: rewards is F64, not F32",
    another_count: "malformed answer: rewards have the shape [2], the count is 3",
    nameless: "malformed answer: it names no reward and revision",
    endless: "malformed answer: more than 10",
    not_http: "malformed answer: no HTTP (220 mail.example.org ESMTP)",
}


class TestOddServers:
    @pytest.mark.parametrize("reply", ODD_ANSWERS)
    def test_an_odd_answer_names_the_server_and_is_not_asked_for_again(self, reply):
        with scripted(reply) as (address, requests):
            reward = load(address)
            with pytest.raises(RewardError) as caught:
                reward.score(images(2), *rows(2))
        message = str(caught.value)
        assert message.startswith(f"reward server {address} ")
        assert ODD_ANSWERS[reply] in message
        assert "check the server and its log" in message
        assert "\n" not in message
        assert len(requests) == 1

    @pytest.mark.parametrize(
        ("status", "words"),
        [
            (400, "check the server and its log"),
            (401, "put its token into the environment variable RLCM_REWARD_TOKEN"),
            (403, "put its token into the environment variable RLCM_REWARD_TOKEN"),
            (404, "name one of its rewards in the address"),
            (413, "start it with a larger --max-mb"),
            (422, "status 422): because of\tits reasons".replace("\t", " ")),
            (500, "check the server and its log"),
        ],
    )
    def test_a_refusal_is_named_and_not_tried_again(self, status, words):
        detail = json.dumps({"detail": "because of\n  its reasons"}).encode()
        with scripted(lambda body, handler: (status, {}, detail)) as (address, requests):
            reward = load(address)
            with pytest.raises(RewardError) as caught:
                reward.score(images(2), *rows(2))
        message = str(caught.value)
        assert message.startswith(f"reward server {address} refused the request (status {status}): because of its")
        assert words in message
        assert len(requests) == 1

    @pytest.mark.parametrize("status", [301, 302, 307, 308])
    def test_a_redirect_is_not_followed(self, status, monkeypatch):
        monkeypatch.setenv("RLCM_REWARD_TOKEN", "s3cret")
        with scripted(faultless) as (elsewhere, requests):
            there = {"Location": elsewhere}
            for description in (DESCRIPTION, None):
                with (
                    scripted(lambda body, handler: (status, there, b""), description=description) as (address, _),
                    pytest.raises(RewardError, match=f"{address} redirects to {elsewhere}, which is not followed"),
                ):
                    score(address, images(2))
        assert requests == []

    @pytest.mark.parametrize(
        ("description", "words"),
        [
            ({}, "does not describe itself as one"),
            ([], "does not describe itself as one"),
            ({**DESCRIPTION, "set_level": "no"}, "does not describe itself as one"),
            ({**DESCRIPTION, "max_bytes": 0}, "does not describe itself as one"),
            ({**DESCRIPTION, "protocol": 2}, "speaks version 2 of the protocol, not 1"),
        ],
    )
    def test_something_that_is_no_reward_server(self, description, words):
        with scripted(faultless, description=description) as (address, _), pytest.raises(RewardError, match=words):
            load(address)

    @pytest.mark.parametrize("fault", ["reset", "cut off", "502", "503", "504", "too slow", "trickle"])
    def test_what_may_pass_is_tried_again(self, fault, caplog):
        asked = []

        def failing_once(body, handler):
            asked.append(1)
            # A kept connection that breaks is tried again at once and in silence, on a new one.
            if len(asked) > (2 if fault in ("reset", "cut off") else 1):
                return answer(body)
            if fault.isdecimal():
                return int(fault), {}, b"away"
            if fault == "too slow":
                time.sleep(2)
            if fault == "cut off":
                handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\nhalf")
            if fault == "trickle":
                handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n")
                with np.errstate(all="ignore"):
                    for _ in range(40):
                        try:
                            handler.wfile.write(b"x")
                        except OSError:
                            break
                        time.sleep(0.1)
            return None

        batch = images(3)
        with scripted(failing_once) as (address, _):
            rewards = score(address, batch, timeout=0.5)
        assert torch.equal(rewards, first_pixels(batch, None, None))
        assert len(asked) == (3 if fault in ("reset", "cut off") else 2)
        reason = {"502": "status 502", "503": "status 503", "504": "status 504"}.get(fault, "")
        reason = reason or ("connection lost" if fault in ("reset", "cut off") else "no whole answer within 0.5 s")
        (line,) = [record.getMessage() for record in caplog.records]
        assert re.fullmatch(
            rf"reward server {address} does not answer \({reason}\); trying again in 0\.0 s, for 30 s more", line
        )


DRIPS = {
    "a status line": (b"", b"x"),
    "a header": (b"HTTP/1.1 200 OK\r\nX-Slow: ", b"x"),
    "100 Continue": (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "a body of some length": (b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n", b"x"),
    "a body of no length": (b"HTTP/1.1 200 OK\r\n\r\n", b"x"),
    "a chunked body": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
    "a chunk size": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"0"),
}


@pytest.mark.parametrize("drip", DRIPS.values(), ids=DRIPS)
@pytest.mark.parametrize("asked", ["description", "rewards"])
def test_whatever_drips_without_end_is_given_up(drip, asked):
    ended = threading.Event()

    def reply(body, handler):
        first, more = drip
        try:
            handler.wfile.write(first)
            while not ended.wait(0.02):
                handler.wfile.write(more)
        except OSError:
            ended.set()

    with scripted(reply, description=DESCRIPTION if asked == "rewards" else None) as (address, _):
        with pytest.raises(RewardError, match=r"did not answer for 0 s \(no whole answer within 0.3 s\)"):
            score(address, images(2), timeout=0.3, patience=0)
        assert ended.wait(30)


class TestForeignWords:
    """What a server says reaches a terminal as one short line without control characters or our token."""

    @pytest.fixture(autouse=True)
    def token(self, monkeypatch):
        monkeypatch.setenv("RLCM_REWARD_TOKEN", "s3cret-token")

    def message(self, reply, description=DESCRIPTION):
        with scripted(reply, description=description) as (address, _), pytest.raises(RewardError) as caught:
            score(address, images(2))
        message = str(caught.value)
        assert message.isprintable()
        assert len(message) < 1000
        assert "s3cret" not in message
        return message

    HOSTILE = "\x1b[2J s3cret-token \x9b31m\u202e" + "long " * 10_000

    def test_of_a_refusal(self):
        detail = json.dumps({"detail": self.HOSTILE}).encode()
        assert "*** \ufffd31m\ufffdlong long" in self.message(lambda body, handler: (400, {}, detail))

    def test_of_a_redirect(self):
        location = "http://elsewhere/\x1b[2J?s3cret-token" + "x" * 10_000
        assert "***" in self.message(lambda body, handler: (302, {"Location": location}, b""))

    def test_of_the_answer(self):
        def reply(body, handler):
            return 200, {}, encode_answer(Answer(np.zeros(2, np.float32), "odd", self.HOSTILE))

        assert "***" in self.message(reply)

    def test_of_a_header(self):
        name = json.dumps({"s3cret-token \x1b" + "x" * 10_000: 1}).encode()
        self.message(lambda body, handler: (200, {}, len(name).to_bytes(8, "little") + name))

    @pytest.mark.parametrize(
        "change", [{"revision": HOSTILE}, {"revision": "\x1b"}, {"protocol": HOSTILE}, {"protocol": [HOSTILE]}]
    )
    def test_of_the_description(self, change):
        self.message(faultless, {**DESCRIPTION, **change})

    @pytest.mark.parametrize(
        "shape", [[10**4000] * 200, [10**4299, 10**4299], [2, 1, 1, 1, 1], [2**40]], ids=["200", "2", "5", "1"]
    )
    def test_a_shape_is_bounded_before_it_is_multiplied(self, shape):
        head = json.dumps(
            {
                "__metadata__": {"rlcm": "{}"},
                "rewards": {"dtype": "F32", "shape": shape, "data_offsets": [0, 8]},
            }
        ).encode()
        body = len(head).to_bytes(8, "little") + head + bytes(8)
        assert "a shape that does not fit its 8 bytes" in self.message(lambda *_: (200, {}, body))


class TestPatience:
    def test_it_ends(self, caplog):
        address = f"http://127.0.0.1:{free_port()}/odd"
        started = time.monotonic()
        with pytest.raises(RewardError) as caught:
            load(address, patience=0.5)
        assert 0.5 <= time.monotonic() - started < 10
        message = str(caught.value)
        assert f"reward server {address} did not answer for 0.5 s (connection refused); start it" in message
        assert "run the same command again" in message
        assert len(caplog.records) >= 3

    def test_pauses_grow_and_stay_within_the_patience(self, caplog, monkeypatch):
        monkeypatch.setattr(pool, "FIRST_PAUSE", 0.1)
        monkeypatch.setattr(pool, "LONGEST_PAUSE", 0.4)
        with pytest.raises(RewardError):
            load(f"http://127.0.0.1:{free_port()}/odd", patience=2)
        pauses = [record.args[2] for record in caplog.records]
        assert 0.05 <= pauses[0] <= 0.1
        assert 0.1 <= pauses[1] <= 0.2
        assert all(0.2 <= pause <= 0.4 for pause in pauses[2:-1])
        assert sum(pauses) < 2.1

    def test_it_goes_on_when_the_server_returns(self, caplog):
        batch = images(3)
        with scripted(faultless) as (address, _):
            reward = load(address)
            port = int(address.split(":")[2].split("/")[0])
        with ThreadPoolExecutor(1) as pool:
            future = pool.submit(reward.score, batch, *rows(3))
            deadline = time.monotonic() + 20
            while not caplog.records and time.monotonic() < deadline:
                time.sleep(0.01)
            assert not future.done()
            with scripted(faultless, port=port):
                assert torch.equal(future.result(), first_pixels(batch, None, None))
        assert "does not answer (connection refused); trying again in" in caplog.text

    def test_a_kept_connection_that_the_server_has_closed_is_no_failure(self, caplog):
        def once(body, handler):
            handler.close_connection = True
            return answer(body)

        with scripted(once) as (address, _):
            reward = load(address)
            for _ in range(3):
                reward.score(images(2), *rows(2))
        assert not caplog.records

    def test_a_server_that_was_restarted_between_requests_is_no_failure(self, caplog):
        with scripted(faultless) as (address, _):
            reward = load(address)
            reward.score(images(2), *rows(2))
        with scripted(faultless, port=int(address.split(":")[2].split("/")[0])) as (_, requests):
            reward.score(images(2), *rows(2))
        assert len(requests) == 1
        assert not caplog.records

    def test_a_connection_that_closes_as_the_request_arrives_is_no_failure(self, caplog):
        asked = []

        def closing_once(body, handler):
            asked.append(handler.client_address[1])
            return None if len(asked) == 2 else answer(body)

        with scripted(closing_once) as (address, _):
            reward = load(address)
            for _ in range(2):
                reward.score(images(2), *rows(2))
        assert len(asked) == 3
        assert asked[0] == asked[1] != asked[2]
        assert not caplog.records


class TestToken:
    def test_it_is_sent_and_never_shown(self, monkeypatch, caplog, capfd):
        monkeypatch.setenv("RLCM_REWARD_TOKEN", " s3cret-token\n")
        batch = images(2)
        with serving("compressibility", token="s3cret-token") as root:  # noqa: S106
            assert len(score(f"{root}/compressibility", batch)) == 2
            monkeypatch.setenv("RLCM_REWARD_TOKEN", "wrong-token")
            with pytest.raises(RewardError) as caught:
                load(f"{root}/compressibility")
        message = str(caught.value)
        assert "status 401): this server wants its bearer token" in message
        shown = message + caplog.text + "".join(capfd.readouterr())
        assert "s3cret" not in shown
        assert "wrong-token" not in shown

    @pytest.mark.parametrize("token", ["two words", "tökén", "a\nb"])
    def test_one_that_no_header_can_carry(self, monkeypatch, token):
        monkeypatch.setenv("RLCM_REWARD_TOKEN", token)
        with pytest.raises(ConfigError, match="RLCM_REWARD_TOKEN holds what no token has") as caught:
            load("http://127.0.0.1:9/odd")
        assert token not in str(caught.value)


class TestNames:
    @pytest.mark.parametrize(
        "name",
        [
            "http://",
            "http://host:8000",
            "http://host:8000/",
            "http://host:eight/x",
            "http://host:99999/x",
            "http://host/x?y=1",
            "http://host/x#y",
            "http://host/x,",
            "http://host/x,ftp://host/x",
            "http:///x",
        ],
    )
    def test_an_address_that_cannot_be(self, name):
        with pytest.raises(ConfigError, match="write http://HOST:PORT/NAME"):
            _ = RewardSpec(name).entry

    def test_a_password_in_the_address_is_refused_and_not_shown(self):
        with pytest.raises(ConfigError, match="RLCM_REWARD_TOKEN") as caught:
            _ = RewardSpec("http://me:s3cret@host/x").entry
        assert "s3cret" not in str(caught.value)

    def test_one_server_twice(self):
        with pytest.raises(ConfigError, match="is there twice"):
            _ = RewardSpec("http://host/x,http://host/x/").entry

    def test_naming_one_asks_nobody(self):
        spec = RewardSpec("http://host.invalid:8000/aesthetic", {"patience": 5})
        assert spec.directory.startswith("aesthetic-")
        assert spec.resolved == {"timeout": 300.0, "patience": 5}

    @pytest.mark.parametrize("settings", [{"timeout": 0}, {"timeout": "1"}, {"patience": -1}, {"patience": True}])
    def test_settings_that_cannot_be(self, settings):
        with pytest.raises(ConfigError, match="must be a number of seconds"):
            load("http://127.0.0.1:9/odd", **settings)

    def test_the_obstacle_is_that_it_is_down(self):
        spec = RewardSpec(f"http://127.0.0.1:{free_port()}/odd")
        assert "connection refused" in spec.find_obstacle()
        with scripted(faultless) as (address, _):
            spec = RewardSpec(address)
            assert spec.find_obstacle() is None
