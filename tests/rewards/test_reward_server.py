"""The reward server, asked over real connections."""

import base64
import contextlib
import http.client
import io
import json
import logging
import socket
import struct
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import pytest
import safetensors.torch
import torch
from PIL import Image
from reward_services import SAFETENSORS, ask, images, register, rows, serving

from rlcm_cli.errors import ConfigError, RewardError
from rlcm_cli.rewards import RewardSpec, Weights, load_reward
from rlcm_cli.rewards.remote import app, protocol, service
from rlcm_cli.rewards.remote.receiving import Buffers
from rlcm_cli.rewards.remote.served import load_served, public_settings
from rlcm_cli.rewards.remote.server import read_token
from rlcm_cli.rewards.remote.service import Limits

PIXELS = images(3)
PROMPTS, METADATA = rows(3)


def tensors_body(batch=PIXELS, prompts=PROMPTS, metadata=METADATA, name="images", **extra):
    record = json.dumps({"prompts": prompts, "metadata": metadata, **extra})
    return safetensors.torch.save({name: batch.contiguous()}, metadata={"rlcm": record})


def png(image, **options):
    buffer = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(buffer, "PNG", **options)
    return base64.b64encode(buffer.getvalue()).decode()


def json_body(batch=PIXELS, prompts=PROMPTS, **more):
    return json.dumps({"images": [png(image) for image in batch], "prompts": list(prompts), **more})


def post(url, body, kind=SAFETENSORS, **headers):
    status, _, answer = ask("POST", url, body, {"Content-Type": kind, **headers})
    return status, answer


def refusal(url, body, kind=SAFETENSORS, **headers):
    status, answer = post(url, body, kind, **headers)
    (key, detail), *others = json.loads(answer).items()
    assert (key, others) == ("detail", [])
    assert "\n" not in detail
    return status, detail


def read_rewards(answer):
    """Read an answer with the safetensors package: rewards and the record."""
    length = int.from_bytes(answer[:8], "little")
    record = json.loads(json.loads(answer[8 : 8 + length])["__metadata__"]["rlcm"])
    return safetensors.torch.load(answer)["rewards"], record


@pytest.fixture(scope="module")
def root():
    with serving("compressibility", "recognition", limits=Limits(most_bytes=100_000)) as address:
        yield address


@pytest.fixture
def sizes(monkeypatch):
    """A reward, `counting`, that gives each image its first pixel, with the list of the sizes of its calls."""
    calls = []

    def counting(batch, prompts, metadata):
        calls.append(len(batch))
        time.sleep(0.05)
        return batch[:, 0, 0, 0].float()

    register(monkeypatch, "counting", counting)
    return calls


class TestBodies:
    expected = load_reward(RewardSpec("compressibility")).score(PIXELS, PROMPTS, METADATA)

    def test_safetensors(self, root):
        status, answer = post(f"{root}/compressibility", tensors_body())
        rewards, record = read_rewards(answer)
        assert status == 200
        assert rewards.dtype == torch.float32
        assert torch.equal(rewards, self.expected)
        assert (record["count"], record["reward"]) == (3, "compressibility")
        described = json.loads(ask("GET", f"{root}/compressibility")[2])
        assert record["revision"] == described["revision"]

    @pytest.mark.parametrize("more", [{}, {"metadata": METADATA}, {"metadata": None}])
    def test_json(self, root, more):
        status, answer = post(f"{root}/compressibility", json_body(**more), "application/json; charset=utf-8")
        said = json.loads(answer)
        assert status == 200
        assert torch.equal(torch.tensor(said["rewards"]), self.expected)
        assert (said["count"], said["reward"]) == (3, "compressibility")
        assert sorted(said) == ["count", "revision", "reward", "rewards"]

    def test_prompts_reach_the_reward(self, root):
        body = tensors_body(images(1), ["a cat"], [{}])
        rewards, _ = read_rewards(post(f"{root}/recognition", body)[1])
        here = load_reward(RewardSpec("recognition")).score(images(1), ["a cat"], [{}])
        torch.testing.assert_close(rewards, here, rtol=1e-5, atol=1e-6)

    def test_a_body_in_chunks(self, root):
        body = tensors_body()
        status, answer = post(f"{root}/compressibility", iter([body[:700], body[700:]]))
        assert status == 200
        assert torch.equal(read_rewards(answer)[0], self.expected)

    def test_images_of_any_shape(self, root):
        batch = torch.arange(3 * 5 * 9, dtype=torch.uint8).reshape(1, 3, 5, 9)
        rewards, _ = read_rewards(post(f"{root}/compressibility", tensors_body(batch, ["x"], [{}]))[1])
        assert torch.equal(rewards, load_reward(RewardSpec("compressibility")).score(batch, ["x"], [{}]))
        said = json.loads(post(f"{root}/compressibility", json_body(batch, ["x"]), "application/json")[1])
        assert said["rewards"] == rewards.tolist()


def cut(body, count):
    return body[:-count]


def with_header(change):
    """A request whose safetensors header is changed."""
    body = tensors_body()
    length = int.from_bytes(body[:8], "little")
    header = json.loads(body[8 : 8 + length])
    header = change(header) or header
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body[8 + length :]


BROKEN_TENSORS = {
    "nothing": (b"", "not a safetensors file"),
    "words": (b"images please", "not a safetensors file"),
    "cut off": (cut(tensors_body(), 1), "images should have 2304 bytes"),
    "too long": (tensors_body() + b"x", "images should have 2304 bytes"),
    "huge header": (b"\xff" * 8 + tensors_body()[8:], "not a safetensors file"),
    "no JSON": (tensors_body().replace(b"{", b"[", 1), "the safetensors header is not JSON"),
    "another name": (tensors_body(name="pixels"), "not __metadata__ and images"),
    "floats": (tensors_body(PIXELS.float()), "images is F32, not U8"),
    "one image": (tensors_body(PIXELS[0]), "shape [3, 16, 16]"),
    "grey": (tensors_body(PIXELS[:, :1]), "shape [3, 1, 16, 16]"),
    "no image": (tensors_body(PIXELS[:0], [], []), "at least 1"),
    "fewer prompts": (tensors_body(prompts=PROMPTS[:2]), "3 images came with 2 prompts"),
    "fewer metadata": (tensors_body(metadata=METADATA[:2]), "3 prompts and 2 metadata"),
    "a prompt that is none": (tensors_body(prompts=["a", "b", 3]), "not a list of texts"),
    "metadata that is none": (tensors_body(metadata=[1, 2, 3]), "not a list of objects"),
    "NaN in the metadata": (tensors_body(metadata=[{}, {}, {"x": float("nan")}]), "NaN is not a JSON number"),
    "more in the record": (tensors_body(more=1), "not prompts and metadata"),
    "depth": (
        with_header(lambda header: header["__metadata__"].update(rlcm="[" * 90_000)),
        "the metadata is not JSON",
    ),
    "no metadata": (with_header(lambda header: header.pop("__metadata__")), "not __metadata__ and images"),
    "other metadata": (with_header(lambda header: header["__metadata__"].update(format="pt")), "the one key rlcm"),
    "negative shape": (with_header(lambda header: header["images"].update(shape=[-1, 3, 1, 1])), "whole numbers"),
    "true in the shape": (with_header(lambda header: header["images"].update(shape=[True, 3, 1, 1])), "whole numbers"),
    "other offsets": (with_header(lambda header: header["images"].update(data_offsets=[1, 2305])), "should have"),
    "a list as header": (with_header(lambda header: [header]), "not a JSON object"),
}

BROKEN_JSON = {
    "nothing": ("", "Invalid JSON"),
    "no JSON": ("{", "Invalid JSON"),
    "no images": ("{}", "images: Field required"),
    "another key": (json_body(other=1), "other: Extra inputs"),
    "no image": (json_body([], []), "images"),
    "no base64": (json.dumps({"images": ["%"], "prompts": ["x"]}), "image 0 is not base64"),
    "no PNG": (json.dumps({"images": ["aGVsbG8="], "prompts": ["x"]}), "image 0 is not a PNG file"),
    "a number": (json.dumps({"images": [3], "prompts": ["x"]}), "images.0"),
    "fewer prompts": (json_body(prompts=PROMPTS[:2]), "3 images came with 2 prompts"),
    "fewer metadata": (json_body(metadata=[{}]), "3 prompts and 1 metadata"),
    "two sizes": (json_body([images(1, 8)[0], images(1, 16)[0]], ["a", "b"]), "image 1 has another size"),
    "transparent": (json_body([torch.zeros(4, 8, 8, dtype=torch.uint8)], ["a"]), "image 0 is RGBA, not RGB"),
    "a damaged PNG": (
        json.dumps({"images": [base64.b64encode(base64.b64decode(png(PIXELS[0]))[:-300]).decode()], "prompts": ["x"]}),
        "image 0 is a damaged PNG",
    ),
}


class TestRefusals:
    @pytest.mark.parametrize(("body", "words"), BROKEN_TENSORS.values(), ids=BROKEN_TENSORS)
    def test_broken_safetensors(self, root, body, words):
        status, detail = refusal(f"{root}/compressibility", body)
        assert status == 400
        assert words in detail

    @pytest.mark.parametrize(("body", "words"), BROKEN_JSON.values(), ids=BROKEN_JSON)
    def test_broken_json(self, root, body, words):
        status, detail = refusal(f"{root}/compressibility", body, "application/json")
        assert status == 400
        assert words in detail

    @pytest.mark.parametrize("kind", ["", "text/plain", "application/octet-stream", "application/x-pickle"])
    def test_another_kind_of_body(self, root, kind):
        status, detail = refusal(f"{root}/compressibility", tensors_body(), kind)
        assert status == 415
        assert "application/x-safetensors or application/json" in detail

    def test_an_unknown_reward(self, root):
        for method in ("GET", "POST"):
            status, _, answer = ask(method, f"{root}/aesthetics", b"", {"Content-Type": SAFETENSORS})
            assert status == 404
            assert "this server has compressibility, recognition" in json.loads(answer)["detail"]

    def test_another_method(self, root):
        assert ask("DELETE", f"{root}/compressibility")[0] == 405

    def test_a_reward_that_is_not_defined(self, root):
        status, detail = refusal(f"{root}/recognition", tensors_body())
        assert status == 422
        assert "the prompt 'prompt 0' names none of the labels" in detail

    def test_a_bug_is_logged_with_its_traceback_and_its_words_stay_here(self, monkeypatch, caplog):
        def broken(batch, prompts, metadata):
            raise ZeroDivisionError("what only the log may say")

        register(monkeypatch, "broken", broken)
        with serving("broken") as address, caplog.at_level(logging.ERROR, "rlcm.rewards"):
            status, detail = refusal(f"{address}/broken", tensors_body())
            assert ask("GET", f"{address}/health")[0] == 200
        assert status == 500
        assert "ZeroDivisionError" in detail
        assert "what only" not in detail
        assert "what only the log may say" in caplog.text
        assert "Traceback" in caplog.text

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_nan_is_no_answer(self, monkeypatch, value):
        register(monkeypatch, "odd", lambda batch, prompts, metadata: torch.full((len(batch),), value))
        with serving("odd") as address:
            status, detail = refusal(f"{address}/odd", tensors_body())
        assert status == 422
        assert f"'odd' returned {value} for 3 of 3" in detail


class TestSizeLimit:
    def too_large(self):
        return tensors_body(images(40, 32), *rows(40))

    def test_a_declared_size(self, root):
        status, detail = refusal(f"{root}/compressibility", self.too_large())
        assert status == 413
        assert "100000 bytes" in detail

    def test_a_size_that_shows_while_reading(self, root):
        body = self.too_large()
        pieces = [body[start : start + 5000] for start in range(0, len(body), 5000)]
        status, detail = refusal(f"{root}/compressibility", iter(pieces))
        assert status == 413
        assert "100000 bytes" in detail

    def test_the_end_of_an_endless_body_is_not_waited_for(self, root):
        parts = urlsplit(root)
        with contextlib.closing(http.client.HTTPConnection(parts.hostname, parts.port, timeout=30)) as connection:
            connection.putrequest("POST", "/compressibility")
            connection.putheader("Content-Type", SAFETENSORS)
            connection.putheader("Content-Length", str(10**12))
            connection.endheaders()
            connection.send(b"x" * 1000)
            assert connection.getresponse().status == 413

    def test_a_small_png_of_a_large_picture(self, root):
        black = torch.zeros(3, 200, 200, dtype=torch.uint8)
        body = json_body([black], ["x"])
        assert len(body) < 2000
        status, detail = refusal(f"{root}/compressibility", body, "application/json")
        assert status == 413
        assert "200×200" in detail

    def test_a_png_that_would_fill_the_memory(self, root):
        header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)

        def chunk(name, data):
            return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

        file = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
        body = json.dumps({"images": [base64.b64encode(file).decode()], "prompts": ["x"]})
        assert refusal(f"{root}/compressibility", body, "application/json")[0] == 413

    def test_the_connection_goes_on_after_a_refusal(self, root):
        parts = urlsplit(root)
        with contextlib.closing(http.client.HTTPConnection(parts.hostname, parts.port, timeout=30)) as connection:
            for body, status in ((self.too_large(), 413), (tensors_body(), 200), (b"odd", 400), (tensors_body(), 200)):
                connection.request("POST", "/compressibility", body, {"Content-Type": SAFETENSORS})
                response = connection.getresponse()
                response.read()
                assert response.status == status


@pytest.fixture(scope="module")
def guarded():
    with serving("compressibility", token="s3cret-token") as address:  # noqa: S106
        yield address


class TestToken:
    @pytest.mark.parametrize(
        "headers", [{}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic s3cret-token"}, {"token": "x"}]
    )
    @pytest.mark.parametrize(
        ("method", "path"), [("POST", "/compressibility"), ("GET", "/compressibility"), ("GET", "/metrics")]
    )
    def test_without_the_token_nothing_is_answered(self, guarded, method, path, headers, caplog, capfd):
        status, said, answer = ask(method, guarded + path, tensors_body(), {"Content-Type": SAFETENSORS, **headers})
        assert status == 401
        assert said["WWW-Authenticate"] == "Bearer"
        assert "wants its bearer token" in json.loads(answer)["detail"]
        assert "s3cret" not in answer.decode() + caplog.text + "".join(capfd.readouterr())

    def test_an_unknown_reward_is_not_told_from_a_known_one(self, guarded):
        assert ask("GET", f"{guarded}/other")[0] == 401

    def test_with_it_all_is(self, guarded):
        token = {"Authorization": "Bearer s3cret-token"}
        assert post(f"{guarded}/compressibility", tensors_body(), **token)[0] == 200
        for path in ("/compressibility", "/metrics", "/openapi.json"):
            assert ask("GET", guarded + path, headers=token)[0] == 200

    def test_health_needs_none(self, guarded):
        status, _, answer = ask("GET", f"{guarded}/health")
        assert (status, json.loads(answer)) == (200, {"status": "ok", "rewards": ["compressibility"]})

    @pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.7", "gpu-box"])  # noqa: S104
    def test_other_machines_need_one(self, monkeypatch, host):
        monkeypatch.delenv("RLCM_REWARD_TOKEN", raising=False)
        with pytest.raises(ConfigError, match=r"lets other machines in, and .* RLCM_REWARD_TOKEN is not set; choose"):
            read_token(host, "RLCM_REWARD_TOKEN", named=False)
        monkeypatch.setenv("RLCM_REWARD_TOKEN", " abc ")
        assert read_token(host, "RLCM_REWARD_TOKEN", named=False) == "abc"

    @pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "127.0.0.2"])
    def test_this_machine_needs_none_unless_it_was_asked_for(self, monkeypatch, host):
        monkeypatch.delenv("TOKEN_OF_MINE", raising=False)
        assert read_token(host, "TOKEN_OF_MINE", named=False) is None
        with pytest.raises(ConfigError, match="--token-env TOKEN_OF_MINE"):
            read_token(host, "TOKEN_OF_MINE", named=True)

    def test_a_token_that_no_header_can_carry(self, monkeypatch):
        monkeypatch.setenv("RLCM_REWARD_TOKEN", "ab cd")
        with pytest.raises(ConfigError, match="holds what no token has") as caught:
            read_token("127.0.0.1", "RLCM_REWARD_TOKEN", named=False)
        assert "ab cd" not in str(caught.value)


def ask_together(address, bodies):
    with ThreadPoolExecutor(len(bodies)) as pool:
        return [answer for _, answer in pool.map(lambda body: post(address, body), bodies)]


class TestBatching:
    def bodies(self, counts, size=8):
        drawn = [images(count, size, seed) for seed, count in enumerate(counts)]
        return drawn, [tensors_body(batch, *rows(len(batch))) for batch in drawn]

    def test_concurrent_requests_are_joined_and_told_apart(self, sizes):
        drawn, bodies = self.bodies([1, 2, 3, 4] * 4)
        with serving("counting", limits=Limits(batch=16, wait=0.05)) as address:
            answers = ask_together(f"{address}/counting", bodies)
        for batch, answer in zip(drawn, answers, strict=True):
            assert torch.equal(read_rewards(answer)[0], batch[:, 0, 0, 0].float())
        assert sum(sizes) == 40
        assert max(sizes) <= 16
        assert len(sizes) <= 8

    def test_a_large_request_is_one_call(self, sizes):
        _, bodies = self.bodies([30])
        with serving("counting", limits=Limits(batch=16)) as address:
            ask_together(f"{address}/counting", bodies)
        assert sizes == [30]

    def test_a_lone_request_does_not_wait_long(self, sizes):
        _, bodies = self.bodies([1])
        with serving("counting", limits=Limits(wait=0.01)) as address:
            started = time.monotonic()
            ask_together(f"{address}/counting", bodies)
            assert time.monotonic() - started < 5
        assert sizes == [1]

    def test_images_of_two_sizes_are_two_calls(self, sizes):
        bodies = [self.bodies([2], size)[1][0] for size in (8, 16)]
        with serving("counting", limits=Limits(wait=0.2)) as address:
            answers = ask_together(f"{address}/counting", bodies)
        assert sizes == [2, 2]
        assert all(len(read_rewards(answer)[0]) == 2 for answer in answers)

    def test_a_fault_stays_with_its_request(self, monkeypatch):
        calls = []

        def fussy(batch, prompts, metadata):
            calls.append(len(batch))
            if "bad" in prompts:
                raise RewardError(f"bad is image {prompts.index('bad')}")
            return torch.ones(len(batch))

        register(monkeypatch, "fussy", fussy)
        bodies = [tensors_body(images(2), [word, word], [{}, {}]) for word in ("good", "bad", "fine")]
        with serving("fussy", limits=Limits(wait=0.5)) as address, ThreadPoolExecutor(3) as pool:
            statuses = list(pool.map(lambda body: post(f"{address}/fussy", body), bodies))
        assert [status for status, _ in statuses] == [200, 422, 200]
        assert json.loads(statuses[1][1])["detail"] == "bad is image 0"
        assert calls == [6, 2, 2, 2]

    def test_groups_of_two_clients_never_meet(self, monkeypatch):
        def spread(batch, prompt, metadata):
            values = batch[:, 0, 0, 0].float()
            return values - values.mean()

        register(monkeypatch, "spread", spread, set_level=True)
        drawn, bodies = self.bodies([4] * 8)
        with serving("spread", limits=Limits(wait=0.1)) as address:
            answers = ask_together(f"{address}/spread", bodies)
        for batch, answer in zip(drawn, answers, strict=True):
            values = batch[:, 0, 0, 0].float().reshape(2, 2)
            expected = (values - values.mean(1, keepdim=True)).flatten()
            torch.testing.assert_close(read_rewards(answer)[0], expected)

    def test_a_set_level_reward_needs_groups(self, monkeypatch):
        register(monkeypatch, "spread", lambda batch, prompt, metadata: torch.zeros(len(batch)), set_level=True)
        with serving("spread") as address:
            status, detail = refusal(f"{address}/spread", tensors_body(metadata=[{"group": 1}, {}, {"group": 1}]))
            assert (status, "metadata 1 has no group" in detail) == (400, True)
            status, detail = refusal(f"{address}/spread", tensors_body())  # groups 0, 0 and 1
            assert (status, "compares the images of a prompt" in detail) == (422, True)

    def test_a_client_that_leaves_disturbs_nobody(self, sizes, caplog):
        _, (body, *_) = self.bodies([2])
        with serving("counting", limits=Limits(wait=0.05)) as address:
            parts = urlsplit(address)
            for sent in (body, body[:-5]):
                connection = http.client.HTTPConnection(parts.hostname, parts.port)
                connection.putrequest("POST", "/counting")
                connection.putheader("Content-Type", SAFETENSORS)
                connection.putheader("Content-Length", str(len(body)))
                connection.endheaders()
                connection.send(sent)
                connection.close()
            assert post(f"{address}/counting", body)[0] == 200
        assert not caplog.records


class TestUploads:
    """Bodies that arrive in one piece or many, with the header or after it."""

    BATCH = images(5, size=100)

    @pytest.fixture
    def roomy(self):
        with serving("compressibility") as address:
            yield address

    def exchange(self, root, pieces, answers=1):
        """Send bytes piece by piece on one connection, and give the bodies of the answers."""
        parts = urlsplit(root)
        found = []
        with socket.create_connection((parts.hostname, parts.port), timeout=30) as sock:
            for piece in pieces:
                sock.sendall(piece)
                time.sleep(0.01)
            with sock.makefile("rb") as file:
                for _ in range(answers):
                    status, length = file.readline(), 0
                    while (line := file.readline().strip().lower()) != b"":
                        length = int(line.split(b":")[1]) if line.startswith(b"content-length") else length
                    found.append((int(status.split()[1]), file.read(length)))
        return found

    def request(self, more=b""):
        body = tensors_body(self.BATCH, *rows(5))
        head = f"POST /compressibility HTTP/1.1\r\nHost: x\r\nContent-Type: {SAFETENSORS}\r\n"
        return head.encode() + more + f"Content-Length: {len(body)}\r\n\r\n".encode(), body

    @pytest.mark.parametrize("size", [1000, 65_536, 70_000, 149_999])
    def test_in_pieces(self, roomy, size):
        head, body = self.request()
        whole = head + body
        pieces = [whole[first : first + size] for first in range(0, len(whole), size)]
        ((status, answer),) = self.exchange(roomy, pieces)
        assert (status, answer) == (200, post(f"{roomy}/compressibility", body)[1])

    def test_requests_one_behind_the_other(self, roomy):
        head, body = self.request()
        health = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
        found = self.exchange(roomy, [head + body + health + head + body[:9], body[9:]], answers=3)
        assert [status for status, _ in found] == [200, 200, 200]
        assert found[0] == found[2]

    def test_announced_with_a_question(self, roomy):
        head, body = self.request(b"Expect: 100-continue\r\n")
        first, second = self.exchange(roomy, [head, body], answers=2)
        assert (first, second[0]) == ((100, b""), 200)


class TestMemory:
    def test_it_is_used_again(self, root, monkeypatch):
        taken = []
        take = Buffers.take
        monkeypatch.setattr(Buffers, "take", lambda self, size: taken.append(buffer := take(self, size)) or buffer)
        with serving("compressibility") as address:
            for _ in range(6):
                post(f"{address}/compressibility", tensors_body())
        assert len({id(buffer) for buffer in taken}) <= 3

    def test_images_that_a_reward_keeps_stay_as_they_are(self, monkeypatch):
        kept = []

        def hoarding(batch, prompts, metadata):
            kept.append(batch)
            return torch.zeros(len(batch))

        register(monkeypatch, "hoarding", hoarding)
        drawn = [images(3, seed=seed) for seed in range(12)]
        with serving("hoarding") as address:
            for batch in drawn:
                assert post(f"{address}/hoarding", tensors_body(batch))[0] == 200
        assert all(torch.equal(*pair) for pair in zip(kept, drawn, strict=True))


class TestWhatItSays:
    def test_description(self, root):
        status, _, answer = ask("GET", f"{root}/recognition")
        said = json.loads(answer)
        assert status == 200
        assert said["name"] == "recognition"
        assert said["settings"]["model"] == "emoji-judge"
        assert (said["set_level"], said["max_bytes"], said["protocol"], said["version"]) == (False, 100_000, 1, 1)
        assert said["range"] == "floor to 0, nats"

    def test_secrets_are_left_out(self):
        settings = {
            "api_key": "x",
            "hub_token": "x",
            "password": "x",
            "endpoint": "http://me:x@host/v1",
            "model": "a",
            "max_tokens": 64,
            "api_key_env": "KEY",
        }
        assert public_settings(settings) == {"model": "a", "max_tokens": 64, "api_key_env": "KEY"}

    def test_metrics(self, sizes):
        with serving("counting") as address:
            post(f"{address}/counting", tensors_body())
            post(f"{address}/counting", b"odd")
            status, headers, answer = ask("GET", f"{address}/metrics")
        lines = answer.decode().splitlines()
        assert status == 200
        assert headers["Content-Type"].startswith("text/plain; version=")
        for line in (
            'rlcm_reward_requests_total{reward="counting",status="200"} 1.0',
            'rlcm_reward_requests_total{reward="counting",status="400"} 1.0',
            'rlcm_reward_images_total{reward="counting"} 3.0',
            'rlcm_reward_images_waiting{reward="counting"} 0.0',
            'rlcm_reward_call_images_count{reward="counting"} 1.0',
            'rlcm_reward_call_seconds_count{reward="counting"} 1.0',
        ):
            assert line in lines

    def test_openapi(self, root):
        described = json.loads(ask("GET", f"{root}/openapi.json")[2])
        operation = described["paths"]["/{name}"]["post"]
        assert set(operation["requestBody"]["content"]) == {"application/json", SAFETENSORS}
        assert set(operation["responses"]) == {"200", "400", "401", "404", "408", "413", "415", "422", "500"}
        assert set(operation["responses"]["200"]["content"]) == {"application/json", SAFETENSORS}
        request = operation["requestBody"]["content"]["application/json"]["schema"]
        assert set(request["properties"]) == {"images", "prompts", "metadata"}
        assert operation["security"]
        assert set(described["paths"]) == {"/health", "/metrics", "/{name}"}
        validator = pytest.importorskip("openapi_spec_validator")
        validator.validate(described)


class TestRevision:
    def revision(self, name="recognition", **settings):
        (served,) = load_served([RewardSpec(name, settings)])
        return served.revision

    def test_it_changes_with_the_settings(self):
        assert self.revision() != self.revision(floor=-5.0)
        assert self.revision() == self.revision()

    def test_it_changes_with_what_is_behind_the_reward(self, monkeypatch):
        before = self.revision()
        monkeypatch.setattr(Weights, "digest", lambda *args, **kwargs: "other")
        assert self.revision() != before

    def test_the_place_of_the_weights_has_no_part(self, monkeypatch, tmp_path):
        for name in ("a", "b"):
            (tmp_path / name).mkdir()
        register(monkeypatch, "weighty", None, settings={"model": "hub/id"}, revise=lambda settings: "digest")
        first, second, hub = (self.revision("weighty", model=m) for m in (f"{tmp_path}/a", f"{tmp_path}/b", "hub/id"))
        assert first == second != hub


def test_two_rewards_of_one_address_are_refused(tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.py").write_text("def mine(images, prompts, metadata): ...\n")
    with pytest.raises(ConfigError, match="the address /mine"):
        load_served([RewardSpec(f"{tmp_path}/{name}.py:mine") for name in ("a", "b")])


def test_answers_are_not_held_back_for_an_acknowledgement(root):
    """Header and body of an answer are sent apart, which Nagle's algorithm would make 40 ms of."""
    parts = urlsplit(root)
    seconds = []
    with contextlib.closing(http.client.HTTPConnection(parts.hostname, parts.port, timeout=30)) as connection:
        for _ in range(60):
            started = time.perf_counter()
            connection.request("GET", "/health")
            connection.getresponse().read()
            seconds.append(time.perf_counter() - started)
    assert sorted(seconds[20:])[10] < 0.03


@pytest.fixture(scope="module")
def wide():
    """The address of a server with the usual limits."""
    with serving("compressibility") as address:
        yield address


@contextlib.contextmanager
def unfinished(root, sent, declared=b"Content-Length: 100000"):
    """A request whose body does not come to its end; gives its socket."""
    parts = urlsplit(root)
    with socket.create_connection((parts.hostname, parts.port), timeout=30) as sock:
        head = f"POST /compressibility HTTP/1.1\r\nHost: x\r\nContent-Type: {SAFETENSORS}\r\n".encode()
        sock.sendall(head + declared + b"\r\n\r\n" + sent)
        yield sock


def test_requests_without_a_body_hold_no_place(monkeypatch):
    monkeypatch.setattr(app, "REQUESTS_HELD", 2)
    with serving("compressibility") as root, contextlib.ExitStack() as stack:
        for _ in range(5):
            stack.enter_context(unfinished(root, b""))
        assert post(f"{root}/compressibility", tensors_body())[0] == 200


@pytest.mark.parametrize(
    ("sent", "declared"), [(b"x", b"Content-Length: 100000"), (b"1\r\nx\r\n", b"Transfer-Encoding: chunked")]
)
def test_requests_that_stall_give_their_place_up(monkeypatch, sent, declared):
    monkeypatch.setattr(app, "REQUESTS_HELD", 2)
    monkeypatch.setattr(service, "PAUSE_SECONDS", 0.3)
    with serving("compressibility") as root, contextlib.ExitStack() as stack:
        stalled = [stack.enter_context(unfinished(root, sent, declared)) for _ in range(2)]
        assert post(f"{root}/compressibility", tensors_body())[0] == 200
        assert all(sock.recv(12) == b"HTTP/1.1 408" for sock in stalled)


def test_a_request_may_take_long_that_keeps_coming(monkeypatch):
    monkeypatch.setattr(service, "PAUSE_SECONDS", 0.3)
    body = tensors_body(images(40, size=64), *rows(40))
    monkeypatch.setattr(service, "SLOWEST_BYTES", len(body) / 30)
    with serving("compressibility") as root:
        head = f"POST /compressibility HTTP/1.1\r\nHost: x\r\nContent-Type: {SAFETENSORS}\r\n"
        parts = urlsplit(root)
        with socket.create_connection((parts.hostname, parts.port), timeout=30) as sock:
            sock.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode())
            for part in range(8):
                sock.sendall(body[part * len(body) // 8 : (part + 1) * len(body) // 8])
                time.sleep(0.1)
            assert sock.recv(12) == b"HTTP/1.1 200"


SHAPES = {
    "900 numbers of 4,000 digits": [10**4000] * 900,
    "two numbers whose product has too many digits": [10**4299, 10**4299],
    "a million numbers": [1] * 10**6,
    "five numbers": [1, 3, 16, 16, 1],
    "one number that is too large": [2**62, 3, 1, 1],
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_a_shape_is_bounded_before_it_is_multiplied(wide, shape):
    status, detail = refusal(
        f"{wide}/compressibility", with_header(lambda header: header["images"].update(shape=shape))
    )
    assert (status, detail) == (400, "images has a shape that does not fit its 2304 bytes")


def test_a_header_is_bounded_before_it_is_parsed(root, monkeypatch):
    monkeypatch.setattr(protocol, "HEADER_BYTES", 1000)
    status, detail = refusal(f"{root}/compressibility", tensors_body(prompts=["x" * 2000, "", ""]))
    assert status == 400
    assert "more than 1000; send fewer images at a time" in detail


def test_requests_are_decoded_off_the_event_loop(monkeypatch):
    decoding, seen = threading.Event(), threading.Event()

    def slow(body):
        decoding.set()
        assert seen.wait(30)
        return protocol.decode_batch(body)

    monkeypatch.setattr(service, "decode_batch", slow)
    with serving("compressibility") as root, ThreadPoolExecutor(1) as pool:
        answer = pool.submit(post, f"{root}/compressibility", tensors_body())
        assert decoding.wait(30)
        assert ask("GET", f"{root}/health")[0] == 200
        seen.set()
        assert answer.result()[0] == 200


LOUD = "\x1b[2J\u202e" + "x" * 3_000_000


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (with_header(lambda header: header.update({LOUD: 1})), SAFETENSORS),
        (with_header(lambda header: header["images"].update(dtype=LOUD)), SAFETENSORS),
        (tensors_body(**{LOUD[:1000]: 1}), SAFETENSORS),
        (json_body(**{LOUD[:100_000]: 1}), "application/json"),
        (tensors_body(), "text/" + "x" * 30_000),
    ],
    ids=["header", "dtype", "record", "JSON", "kind"],
)
def test_a_refusal_repeats_little_of_what_was_sent(wide, body, kind):
    status, detail = refusal(f"{wide}/compressibility", body, kind)
    assert status in (400, 415)
    assert len(detail) < 400
    assert detail.isprintable()


def test_an_unknown_name_is_repeated_in_part(root):
    answer = ask("GET", f"{root}/{'x' * 30_000}")[2]
    assert len(answer) < 400


@pytest.mark.parametrize("sent", [0, 10, 90_000])
def test_a_slow_upload_is_broken_off(root, monkeypatch, sent):
    monkeypatch.setattr(service, "UPLOAD_SECONDS", 0.2)
    parts = urlsplit(root)
    with contextlib.closing(http.client.HTTPConnection(parts.hostname, parts.port, timeout=30)) as connection:
        connection.putrequest("POST", "/compressibility")
        connection.putheader("Content-Type", SAFETENSORS)
        connection.putheader("Content-Length", "100000")
        connection.endheaders()
        connection.send(bytes(sent))
        answer = connection.getresponse()
        assert (answer.status, answer.will_close) == (408, True)  # where the next request begins is not known


def test_requests_under_way_end_before_the_server(monkeypatch):
    started = threading.Event()

    def slow(batch, prompts, metadata):
        started.set()
        time.sleep(0.5)
        return torch.ones(len(batch))

    register(monkeypatch, "slow", slow)
    with ThreadPoolExecutor(1) as pool:
        with serving("slow") as address:
            answer = pool.submit(post, f"{address}/slow", tensors_body())
            assert started.wait(30)
        assert answer.result()[0] == 200
    with pytest.raises(ConnectionRefusedError):
        post(f"{address}/slow", tensors_body())
