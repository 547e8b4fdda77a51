import base64
import contextlib
import io
import json
import logging
import pickle
import socket
import threading
import time

import numpy
import pytest
import torch
from judge_servers import Reply, serve
from PIL import Image

from rlcm_cli.errors import ConfigError, RewardError
from rlcm_cli.rewards.http import pool
from rlcm_cli.rewards.judges import JUDGE_DEFAULTS, JUDGES, JudgeSettings, read_settings
from rlcm_cli.rewards.judges._server import ANSWER_LIMIT
from rlcm_cli.rewards.judges.openai import OpenAIJudge

KEY = "sk-very-secret-0123456789"


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name in ("RLCM_JUDGE_ENDPOINT", "RLCM_JUDGE_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pool, "FIRST_PAUSE", 0.01)


def images(count: int, height: int = 8, width: int = 12) -> torch.Tensor:
    return torch.randint(
        0, 256, (count, 3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )


def judge(endpoint, kind="openai", **settings):
    model = {"model": "small-vlm"} if kind == "openai" else {}
    return JUDGES[kind].make(JudgeSettings(judge=kind, endpoint=endpoint, **{**model, **settings}), "vqa")


def obstacle(**settings):
    chosen = JudgeSettings(**settings)
    return JUDGES[chosen.judge].find_obstacle(chosen, "vqa")


def completion(text, **choice) -> Reply:
    message = {"role": "assistant", "content": text}
    return Reply(json.dumps({"choices": [{"index": 0, "message": message, **choice}]}).encode())


def question_of(request) -> str:
    return json.loads(request.body)["messages"][0]["content"][1]["text"]


def refusal(call, kind=RewardError) -> str:
    with pytest.raises(kind) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


class TestOpenAI:
    def test_the_request(self, monkeypatch):
        monkeypatch.setenv("MY_KEY", KEY)
        batch = images(1)
        with serve(lambda request: completion("  a cat\n")) as (address, requests):
            answers = judge(address + "/v1/", api_key_env="MY_KEY", max_tokens=17)(batch, ["What is this?"])
        assert answers == ["a cat"]
        (request,) = requests
        assert request.path == "/v1/chat/completions"
        assert request.headers["Authorization"] == f"Bearer {KEY}"
        assert request.headers["Content-Type"] == "application/json"
        body = json.loads(request.body)
        (message,) = body.pop("messages")
        assert body == {"model": "small-vlm", "temperature": 0, "max_tokens": 17}
        picture, text = message["content"]
        assert message["role"] == "user"
        assert text == {"type": "text", "text": "What is this?"}
        kind, data = picture["image_url"]["url"].split(",")
        assert (picture["type"], kind) == ("image_url", "data:image/png;base64")
        pixels = numpy.asarray(Image.open(io.BytesIO(base64.b64decode(data))))
        assert numpy.array_equal(pixels, batch[0].permute(1, 2, 0).numpy())

    def test_without_a_key_none_is_sent(self):
        with serve(lambda request: completion("")) as (address, requests):
            assert judge(address)(images(1), ["?"]) == [""]
        assert "Authorization" not in requests[0].headers

    def test_answers_keep_their_order_whatever_order_they_come_in(self):
        answered = []

        def reply(request):
            question = question_of(request)
            time.sleep(0.1 * (5 - int(question) % 5))
            answered.append(int(question))
            return completion(f"answer {question}")

        with serve(reply) as (address, _):
            answers = judge(address, concurrency=5)(images(10), [str(row) for row in range(10)])
        assert answers == [f"answer {row}" for row in range(10)]
        assert answered != sorted(answered)

    def test_concurrency_is_what_was_asked_for(self):
        state = {"now": 0, "most": 0}
        lock = threading.Lock()

        def reply(request):
            with lock:
                state["now"] += 1
                state["most"] = max(state["most"], state["now"])
            time.sleep(0.03)
            with lock:
                state["now"] -= 1
            return completion("x")

        with serve(reply) as (address, _):
            judge(address, concurrency=3)(images(12), ["?"] * 12)
        assert state["most"] == 3

    @pytest.mark.parametrize(
        ("body", "fault"),
        [
            (b"", "not JSON"),
            (b"{", "not JSON"),
            (b"\xff", "not JSON"),
            (b"[" * 100_000, "not JSON"),
            (b"[]", "no choices[0].message.content"),
            (b'{"choices": []}', "no choices[0].message.content"),
            (b'{"choices": [{"message": {}}]}', "no choices[0].message.content"),
            (b'{"choices": [{"message": "text"}]}', "no choices[0].message.content"),
            (b'{"choices": [{"message": {"content": 3}}]}', "content is int, not text"),
            (b'{"choices": [{"message": {"content": ["a"]}}]}', "content is list, not text"),
            (
                b'{"choices": [{"finish_reason": "length", "message": {"content": null}}]}',
                "content is NoneType, not text, finish_reason 'length'; a judge that thinks first needs more",
            ),
        ],
    )
    def test_malformed_answers(self, body, fault):
        with serve(lambda request: Reply(body)) as (address, requests):
            message = refusal(lambda: judge(address)(images(1), ["?"]))
        assert f"the judge at {address}/chat/completions gave a malformed answer" in message
        assert fault in message
        assert len(requests) == 1

    def test_an_answer_that_is_too_long(self):
        with serve(lambda request: Reply(b" " * (ANSWER_LIMIT + 1))) as (address, _):
            assert f"more than {ANSWER_LIMIT} bytes" in refusal(lambda: judge(address)(images(1), ["?"]))

    @pytest.mark.parametrize(
        ("status", "advice"),
        [
            (401, "refuses us (status 401); put its key into the environment variable RLCM_JUDGE_API_KEY"),
            (403, "refuses us (status 403)"),
            (404, "answered with status 404: no such model *** here; check endpoint and model"),
            (400, "answered with status 400"),
            (301, "answered with status 301"),
        ],
    )
    def test_refusals_are_final_and_never_show_the_key(self, monkeypatch, caplog, status, advice):
        caplog.set_level(logging.DEBUG)
        monkeypatch.setenv("RLCM_JUDGE_API_KEY", KEY)
        with serve(lambda request: Reply(f"no such model\n{KEY} here".encode(), status)) as (address, requests):
            message = refusal(lambda: judge(address)(images(1), ["?"]))
        assert advice in message
        assert address in message
        assert len(requests) == 1
        assert KEY not in message
        assert KEY not in caplog.text

    def test_a_key_that_no_header_can_hold_is_not_shown(self, monkeypatch):
        monkeypatch.setenv("RLCM_JUDGE_API_KEY", KEY + "é\n" + KEY)
        message = refusal(lambda: judge("http://127.0.0.1:1")(images(1), ["?"]))
        assert "RLCM_JUDGE_API_KEY is not plain text" in message
        assert KEY not in message

    def test_the_key_is_kept_nowhere(self, monkeypatch):
        monkeypatch.setenv("RLCM_JUDGE_API_KEY", KEY)
        with serve(lambda request: completion("x")) as (address, _):
            asked = OpenAIJudge(JudgeSettings(endpoint=address, model="m"), "vqa")
            asked(images(1), ["?"])
        assert KEY not in repr(vars(asked))

    @pytest.mark.parametrize("status", [408, 429, 500, 502, 503])
    def test_passing_trouble_is_waited_for_with_a_warning_each(self, caplog, status):
        failures = iter([Reply(b"busy", status), Reply(b"Traceback (most\n\nValueError: no", status)])
        with serve(lambda request: next(failures, completion("at last"))) as (address, requests):
            assert judge(address)(images(1), ["?"]) == ["at last"]
        assert len(requests) == 3
        first, second = caplog.records
        assert (first.name, first.levelname) == ("rlcm.rewards", "WARNING")
        assert f"the judge at {address}/chat/completions does not answer (status {status}: busy)" in first.message
        assert "trying again in 0.0 s, for 600 s more" in first.message
        assert f"(status {status}: ValueError: no)" in second.message

    def test_retry_after_is_honoured(self):
        failures = iter([Reply(b"", 429, {"Retry-After": "1"})])
        with serve(lambda request: next(failures, completion("x"))) as (address, _):
            start = time.monotonic()
            judge(address)(images(1), ["?"])
        assert 1 <= time.monotonic() - start < 2

    def test_a_retry_after_beyond_the_patience_is_not_waited_for(self):
        with serve(lambda request: Reply(b"", 429, {"Retry-After": "3600"})) as (address, requests):
            message = refusal(lambda: judge(address, patience=5)(images(1), ["?"]))
        assert "did not answer for 5 s (status 429)" in message
        assert len(requests) == 1

    @pytest.mark.parametrize(
        ("value", "low", "high"),
        [("", 0, 0), ("7", 7, 7), ("soon", 0, 0), ("-3", 0, 0), ("Wed, 21 Oct 2015 07:28:00 GMT", 0, 0)],
    )
    def test_retry_after_values(self, value, low, high):
        assert low <= pool.read_retry_after(value) <= high

    def test_a_date_in_retry_after(self):
        from email.utils import formatdate

        assert 50 < pool.read_retry_after(formatdate(time.time() + 60, usegmt=True)) <= 60

    def test_a_judge_that_hangs(self):
        release = threading.Event()

        def reply(request):
            release.wait(5)
            return completion("late")

        with serve(reply) as (address, _):
            start = time.monotonic()
            message = refusal(lambda: judge(address, timeout=0.1, patience=0.3)(images(3), ["?"] * 3))
            assert time.monotonic() - start < 2
            release.set()
        assert "did not answer for 0.3 s (no whole answer within 0.1 s)" in message

    @pytest.mark.parametrize(
        ("first", "more"),
        [
            (b"", b"x"),
            (b"HTTP/1.1 200 OK\r\nX-Slow: ", b"x"),
            (b"HTTP/1.1 200 OK\r\n", b"X: y\r\n"),
            (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
            (b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n", b" "),
            (b"HTTP/1.1 200 OK\r\n\r\n", b" "),
            (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n"),
        ],
        ids=["status line", "header", "headers", "100 Continue", "body", "body of no length", "chunks"],
    )
    def test_a_judge_that_drips(self, first, more):
        """Every part comes in time, the whole does not."""
        listener = socket.create_server(("127.0.0.1", 0))

        def drip():
            connection, _ = listener.accept()
            with connection, contextlib.suppress(OSError):
                connection.sendall(first)
                while True:
                    connection.sendall(more)
                    time.sleep(0.02)

        thread = threading.Thread(target=drip)
        thread.start()
        address = f"http://127.0.0.1:{listener.getsockname()[1]}"
        message = refusal(lambda: judge(address, timeout=0.3, patience=0)(images(1), ["?"]))
        assert "no whole answer within 0.3 s" in message
        thread.join()
        listener.close()

    @pytest.mark.parametrize("status", [200, 404, 500])
    def test_its_words_are_cleaned_and_shortened(self, monkeypatch, status):
        monkeypatch.setenv("RLCM_JUDGE_API_KEY", KEY)
        body = json.dumps(f"\x1b[2J {KEY}").encode() + b"\x1b\xc2\x9b31m " + b"long " * 10_000
        with serve(lambda request: Reply(body, status)) as (address, _):
            message = refusal(lambda: judge(address, patience=0)(images(1), ["?"]))
        assert "***" in message
        assert KEY not in message
        assert message.isprintable()
        assert len(message) < 600

    def test_nobody_listens(self):
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        message = refusal(lambda: judge(f"http://127.0.0.1:{port}", patience=0.1)(images(2), ["?"] * 2))
        assert f"http://127.0.0.1:{port}/chat/completions did not answer for 0.1 s (connection refused)" in message
        assert "run the same command again" in message

    def test_a_judge_that_starts_late_is_waited_for(self):
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        answers = []
        asked = judge(f"http://127.0.0.1:{port}", patience=20)
        thread = threading.Thread(target=lambda: answers.extend(asked(images(4), ["a", "b", "c", "d"])))
        thread.start()
        time.sleep(0.2)
        with serve(lambda request: completion(question_of(request)), port):
            thread.join(20)
        assert answers == ["a", "b", "c", "d"]

    def test_the_first_error_ends_the_waiting_of_the_others(self):
        def reply(request):
            return Reply(b"", 503) if question_of(request) == "wait" else Reply(b"", 404)

        with serve(reply) as (address, _):
            start = time.monotonic()
            message = refusal(lambda: judge(address, concurrency=4)(images(4), ["wait", "wait", "wait", "fail"]))
        assert "status 404" in message
        assert time.monotonic() - start < 2


class TestSettings:
    def test_the_endpoint_comes_from_the_environment(self, monkeypatch):
        with serve(lambda request: completion("x")) as (address, requests):
            monkeypatch.setenv("RLCM_JUDGE_ENDPOINT", address + "/v1")
            judge(None)(images(1), ["?"])
        assert requests[0].path == "/v1/chat/completions"

    def test_a_missing_endpoint(self):
        message = refusal(lambda: judge(None))
        assert "set RLCM_JUDGE_ENDPOINT=http://127.0.0.1:8000/v1 or --set reward_settings.vqa.endpoint=" in message
        assert obstacle(model="m") in message
        assert "http://127.0.0.1:8085" in obstacle(judge="llava-server")

    def test_a_missing_model(self):
        assert "no model is set; --set reward_settings.vqa.model=NAME" in obstacle(endpoint="http://127.0.0.1:1")
        assert "no model is set" in refusal(lambda: judge("http://127.0.0.1:1", model=None))

    def test_no_obstacle(self):
        assert obstacle(endpoint="http://127.0.0.1:1", model="m") is None
        assert obstacle(judge="llava-server", endpoint="http://127.0.0.1:1") is None

    def test_what_identifies_a_server(self):
        for kind, identity in (("openai", "openai:m"), ("llava-server", "llava-server")):
            assert JUDGES[kind].revise(JudgeSettings(judge=kind, endpoint="http://a", model="m"), "vqa") == identity

    @pytest.mark.parametrize(
        ("settings", "fault"),
        [
            ({"judge": "oracle"}, "judge 'oracle' must be one of llava-server, local, openai"),
            ({"dtype": "int8"}, "dtype 'int8' must be one of"),
            ({"max_tokens": 0}, "max_tokens 0 must be a whole number above 0"),
            ({"concurrency": 1.5}, "concurrency 1.5 must be a whole number above 0"),
            ({"concurrency": True}, "concurrency True must be a whole number above 0"),
            ({"timeout": 0}, "timeout 0 must be a number of seconds above 0"),
            ({"timeout": "long"}, "timeout 'long' must be"),
            ({"patience": -1}, "patience -1 must be a number of seconds of 0 or more"),
            ({"patience": float("inf")}, "patience inf must be"),
            ({"model": ""}, "model '' must be a name"),
            ({"judge": "llava-server", "model": "x"}, "serves one model; leave model unset"),
            ({"judge": "local", "endpoint": "http://a"}, "a local judge has no endpoint"),
        ],
    )
    def test_impossible_values(self, settings, fault):
        assert fault in refusal(lambda: read_settings({**JUDGE_DEFAULTS, **settings}, "vqa"), ConfigError)

    @pytest.mark.parametrize(
        "address",
        ["host:8000", "ftp://host", "http://", "http://user:hunter2@host", "http://host/?key=hunter2", 8000, "http://[",
         "http://ho st", "http://host:99999", ""],
    )  # fmt: skip
    def test_impossible_addresses_are_not_repeated(self, monkeypatch, address):
        message = refusal(lambda: read_settings({**JUDGE_DEFAULTS, "endpoint": address}, "vqa"), ConfigError)
        assert "endpoint must be an address such as" in message
        assert "hunter2" not in message
        if address and isinstance(address, str):
            monkeypatch.setenv("RLCM_JUDGE_ENDPOINT", address)
            message = refusal(lambda: judge(None), ConfigError)
            assert "RLCM_JUDGE_ENDPOINT must be an address" in message
            assert "hunter2" not in message

    def test_a_key_in_place_of_its_name_is_not_shown(self):
        message = refusal(lambda: read_settings({**JUDGE_DEFAULTS, "api_key_env": KEY}, "vqa"), ConfigError)
        assert "api_key_env must be the name of an environment variable" in message
        assert KEY not in message


class TestLlavaServer:
    """The server speaks kvablack/LLaVA-server's protocol: pickle in, pickle out, tracebacks with status 500."""

    def reply(self, request) -> Reply:
        data = pickle.loads(request.body)  # noqa: S301
        pictures = [Image.open(io.BytesIO(picture), formats=["jpeg"]) for picture in data["images"]]
        outputs = [
            [
                f" {question} {picture.size[0]}x{picture.size[1]} {numpy.asarray(picture)[0, 0, 0]}\n"
                for question in row
            ]
            for picture, row in zip(pictures, data["queries"], strict=True)
        ]
        answer = {"outputs": outputs}
        if "answers" in data:
            recall = numpy.array([[len(text) for text in row] for row in data["answers"]], dtype=numpy.float32)
            answer |= {"precision": recall.tolist(), "recall": recall.tolist(), "f1": recall.tolist()}
        return Reply(pickle.dumps(answer))

    def test_answers(self):
        batch = torch.cat([torch.full((1, 3, 16, 24), 10 * row, dtype=torch.uint8) for row in range(20)])
        with serve(self.reply) as (address, requests):
            answers = judge(address, "llava-server")(batch, [f"q{row}" for row in range(20)])
        assert answers == [f"q{row} 24x16 {10 * row}" for row in range(20)]
        sent = sorted((pickle.loads(request.body) for request in requests), key=lambda data: -len(data["images"]))  # noqa: S301
        assert [len(data["images"]) for data in sent] == [16, 4]
        assert [set(data) for data in sent] == [{"images", "queries"}] * 2
        assert {request.path for request in requests} == {"/"}

    def test_the_images_are_jpegs_of_quality_80(self):
        batch = images(1, 32, 32)
        with serve(self.reply) as (address, requests):
            judge(address, "llava-server")(batch, ["?"])
        expected = io.BytesIO()
        Image.fromarray(batch[0].permute(1, 2, 0).numpy()).save(expected, format="JPEG", quality=80)
        assert pickle.loads(requests[0].body)["images"] == [expected.getvalue()]  # noqa: S301

    def test_recall(self):
        with serve(self.reply) as (address, requests):
            values = judge(address, "llava-server").recall(images(18), "What?", ["x" * row for row in range(18)])
        assert values == [float(row) for row in range(18)]
        sent = [pickle.loads(request.body) for request in requests]  # noqa: S301
        assert all(query == ["What?"] for data in sent for query in data["queries"])

    def test_a_traceback_is_waited_for_and_then_told(self):
        trace = b"Traceback (most recent call last):\n  File x\nRuntimeError: CUDA out of memory\n"
        with serve(lambda request: Reply(trace, 500)) as (address, requests):
            message = refusal(lambda: judge(address, "llava-server", patience=0.1)(images(1), ["?"]))
        assert "status 500: RuntimeError: CUDA out of memory" in message
        assert len(requests) > 1

    def test_a_hostile_answer_is_refused_and_runs_nothing(self, tmp_path):
        left = tmp_path / "left"

        class Hostile:
            def __reduce__(self):
                return open, (str(left), "w")

        body = pickle.dumps({"outputs": [[Hostile()]]})
        with serve(lambda request: Reply(body)) as (address, _):
            message = refusal(lambda: judge(address, "llava-server")(images(1), ["?"]))
        assert f"the judge at {address} gave a malformed answer: the pickle asks for '" in message
        assert "which is not plain data" in message
        assert not left.exists()

    def test_a_huge_answer_is_refused(self):
        body = pickle.dumps({"outputs": [["x" * ANSWER_LIMIT]]})
        with serve(lambda request: Reply(body)) as (address, _):
            assert "more than" in refusal(lambda: judge(address, "llava-server")(images(1), ["?"]))

    @pytest.mark.parametrize(
        "answer",
        [
            None,
            [],
            {},
            {"outputs": None},
            {"outputs": []},
            {"outputs": [["a"], ["b"]]},
            {"outputs": ["a"]},
            {"outputs": [[]]},
            {"outputs": [["a", "b"]]},
            {"outputs": [[None]]},
            {"outputs": [[b"a"]]},
            {"outputs": [[3]]},
        ],
    )
    def test_malformed_answers(self, answer):
        with serve(lambda request: Reply(pickle.dumps(answer))) as (address, _):
            message = refusal(lambda: judge(address, "llava-server")(images(1), ["?"]))
        assert "gave a malformed answer: outputs" in message

    def test_no_pickle_at_all(self):
        with serve(lambda request: Reply(b"<html>welcome</html>")) as (address, _):
            assert "the pickle" in refusal(lambda: judge(address, "llava-server")(images(1), ["?"]))
