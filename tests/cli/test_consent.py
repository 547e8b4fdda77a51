"""What only a configuration names, hosts, variables, files and code, waits until the user agrees."""

from __future__ import annotations

import json
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from command_line import refuse, succeed, write_settings
from conftest import edit_config

from rlcm_cli.cli.consent import Given, named_texts, permit
from rlcm_cli.config import override_config, resolve_config
from rlcm_cli.errors import ConfigError
from rlcm_cli.runs.run import Run
from rlcm_cli.store.layout import RunLayout

SECRET = "the-users-own-secret"  # noqa: S105


@pytest.fixture(autouse=True)
def machine(tmp_path, monkeypatch):
    """A machine on which nothing was named before, with secrets in its environment."""
    monkeypatch.setenv("RLCM_CACHE", str(tmp_path / "cache"))
    for name in ("AWS_SECRET_ACCESS_KEY", "RLCM_JUDGE_API_KEY", "RLCM_REWARD_TOKEN"):
        monkeypatch.setenv(name, SECRET)
    monkeypatch.delenv("RLCM_JUDGE_ENDPOINT", raising=False)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


@pytest.fixture
def listener():
    """A server that notes whatever reaches it, and answers every judge's question with "yes"."""
    seen = []

    class Handler(BaseHTTPRequestHandler):
        def answer(self):
            seen.append(self.headers.get("Authorization"))
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            body = json.dumps({"choices": [{"message": {"content": "yes"}}]}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = answer

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"127.0.0.1:{server.server_port}", seen
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def run(capsys, tiny_lcm, tmp_path):
    """A run whose first rollout is drawn."""
    succeed(capsys, "sample", "--config", write_settings(tmp_path, tiny_lcm), "--run", tmp_path / "run")
    return tmp_path / "run"


def edit(run, **settings):
    """Change a run's configuration and its digest, as somebody may who sends it."""
    edit_config(run, lambda config: config.update(settings))


def judged(address, **settings):
    question = {"judge": "openai", "model": "m", "question": "Is this a {prompt}?", "answer": "yes"}
    return {
        "monitor": {"rewards": ["vqa"]},
        "reward_settings": {"vqa": {**question, "endpoint": f"http://{address}/v1", **settings}},
    }


COMMANDS = (["score"], ["score", "--reward", "vqa"], ["evaluate"], ["loop", "--iterations", "1"])


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
@pytest.mark.parametrize("variable", ["AWS_SECRET_ACCESS_KEY", "RLCM_JUDGE_API_KEY"])
def test_a_judge_that_a_run_names_is_asked_nothing(capsys, run, listener, command, variable):
    address, seen = listener
    edit(run, **judged(address, api_key_env=variable))
    words = ("reward_settings.vqa.endpoint", f"http://{address}/v1", f"--allow-host {address}")
    line = refuse(capsys, ConfigError, *command, "--run", run, saying=words)
    assert SECRET not in line
    assert seen == []


@pytest.mark.parametrize("command", [["score"], ["evaluate"], ["loop", "--iterations", "1"]], ids=" ".join)
def test_a_reward_server_that_a_run_names_is_asked_nothing(capsys, run, listener, command):
    address, seen = listener
    edit(run, monitor={"rewards": [f"http://{address}/x"]})
    refuse(capsys, ConfigError, *command, "--run", run, saying=(f"http://{address}/x", f"--allow-host {address}"))
    assert seen == []


def test_a_host_in_a_file_for_config_needs_leave_too(capsys, tiny_lcm, tmp_path, listener):
    address, seen = listener
    settings = write_settings(tmp_path, tiny_lcm, monitor={"rewards": [f"http://{address}/x"]})
    refuse(capsys, ConfigError, "loop", "--config", settings, "--run", tmp_path / "run", saying=("--allow-host",))
    assert seen == []
    assert not (tmp_path / "run").exists()


def test_another_variable_than_the_default_has_to_be_named(capsys, run, listener):
    address, seen = listener
    edit(run, **judged(address, api_key_env="AWS_SECRET_ACCESS_KEY"))
    for folder in ("checkpoints", "rollouts"):  # which state the run as it was
        shutil.rmtree(run / folder)
    succeed(capsys, "sample", "--run", run)
    words = ("AWS_SECRET_ACCESS_KEY", "--set 'reward_settings.vqa.api_key_env=AWS_SECRET_ACCESS_KEY'")
    refuse(capsys, ConfigError, "score", "--run", run, "--allow-host", address, saying=words)
    assert seen == []
    named = ["--set", "reward_settings.vqa.api_key_env=AWS_SECRET_ACCESS_KEY"]
    succeed(capsys, "score", "--run", run, "--allow-host", address, *named)
    assert set(seen) == {f"Bearer {SECRET}"}


class TestNaming:
    """What counts as named, without a run: `permit` alone."""

    def run(self, tmp_path, **settings):
        config = resolve_config(["compression"])
        return Run(RunLayout(tmp_path / "none"), override_config(config, flags=settings))

    def vqa(self, tmp_path, **settings):
        return self.run(tmp_path, **{"monitor.rewards": ["vqa"], "reward_settings.vqa": settings})

    def is_permitted(self, run, named=(), **given):
        try:
            permit(run, Given(named, **given))
        except ConfigError:
            return False
        return True

    @pytest.mark.parametrize(
        "host", ["judge", "judge:8000", "http://judge:8000", "http://judge:8000/v1", "JUDGE:8000"]
    )
    def test_a_host_by_the_option(self, tmp_path, host):
        run = self.vqa(tmp_path, endpoint="http://judge:8000/v1")
        assert self.is_permitted(run, hosts=[host])

    @pytest.mark.parametrize("host", ["judg", "judge:80", "http://judge", "other", "judge:8000.evil", ""])
    def test_another_host_by_the_option(self, tmp_path, host):
        run = self.vqa(tmp_path, endpoint="http://judge:8000/v1")
        assert not self.is_permitted(run, hosts=[host])

    def test_a_host_by_the_environment(self, tmp_path, monkeypatch):
        run = self.vqa(tmp_path, endpoint="http://judge:8000/v1")
        assert not self.is_permitted(run)
        monkeypatch.setenv("RLCM_JUDGE_ENDPOINT", "http://judge:8000/other")
        assert self.is_permitted(run)

    def test_a_host_by_a_setting_and_from_then_on(self, tmp_path):
        run = self.vqa(tmp_path, endpoint="http://judge:8000/v1")
        named = named_texts(["reward_settings.vqa.endpoint=http://judge:8000/v1"])
        assert self.is_permitted(run, named)
        assert self.is_permitted(run)
        assert not self.is_permitted(self.vqa(tmp_path, endpoint="http://judge:8001/v1"))

    def test_several_servers_all_have_to_be_named(self, tmp_path):
        run = self.run(tmp_path, **{"monitor.rewards": ["http://a:1/x,http://b:1/x"]})
        assert not self.is_permitted(run, ["http://a:1/x"])
        assert self.is_permitted(run, ["http://a:1/x", "http://b:1/y"])

    def test_several_servers_are_named_by_one_text(self, tmp_path):
        name = "http://a:1/x, http://b:1/x"
        assert self.is_permitted(self.run(tmp_path, **{"monitor.rewards": [name]}), [name])

    def test_a_trusted_host_gets_no_other_variable(self, tmp_path):
        named = named_texts(["reward_settings.vqa.endpoint=http://judge:8000/v1"])
        assert self.is_permitted(self.vqa(tmp_path, endpoint="http://judge:8000/v1"), named)
        run = self.vqa(tmp_path, endpoint="http://judge:8000/v1", api_key_env="AWS_SECRET_ACCESS_KEY")
        assert not self.is_permitted(run)
        # Trusted for one host, the variable is not for another.
        assert self.is_permitted(run, ["AWS_SECRET_ACCESS_KEY"])
        assert self.is_permitted(run)
        other = self.vqa(tmp_path, endpoint="http://elsewhere/v1", api_key_env="AWS_SECRET_ACCESS_KEY")
        assert not self.is_permitted(other, hosts=["elsewhere"])

    def test_a_variable_without_an_endpoint(self, tmp_path, monkeypatch):
        monkeypatch.setenv("RLCM_JUDGE_ENDPOINT", "http://judge:8000/v1")
        assert not self.is_permitted(self.vqa(tmp_path, api_key_env="AWS_SECRET_ACCESS_KEY"))
        assert self.is_permitted(self.vqa(tmp_path, api_key_env="RLCM_JUDGE_API_KEY"))

    def test_a_local_file_that_a_run_names(self, tmp_path):
        (tmp_path / "head.pth").touch()
        run = self.run(
            tmp_path,
            **{"monitor.rewards": ["aesthetic"], "reward_settings.aesthetic": {"head": str(tmp_path / "head.pth")}},
        )
        permit(run, Given(()))  # of a configuration that is the user's own
        run.layout.root.mkdir()
        run.layout.config.touch()
        with pytest.raises(ConfigError, match=rf"--set 'reward_settings.aesthetic.head={tmp_path}/head.pth'"):
            permit(run, Given(()))
        assert self.is_permitted(run, [str(tmp_path / "head.pth")])
        assert self.is_permitted(run)

    def test_a_cluster_that_a_configuration_names(self, tmp_path, monkeypatch):
        run = self.run(tmp_path, **{"ray.address": "head:6379"})
        assert permit(run, Given(())) == []
        monkeypatch.delenv("RAY_ADDRESS", raising=False)
        with pytest.raises(ConfigError, match="--allow-host head:6379"):
            permit(run, Given(()), ray=True)
        permit(run, Given(named_texts([], "head:6379")), ray=True)

    def test_code_is_trusted_as_it_was_when_the_user_had_it_run(self, tmp_path):
        (tmp_path / "mine.py").write_text("def f(*_): ...")
        run = self.run(tmp_path, **{"monitor.rewards": [f"{tmp_path}/mine.py:f"]})
        assert not self.is_permitted(run)
        (line,) = permit(run, Given([f"{tmp_path}/mine.py:f"]))
        assert "mine.py:f is now trusted on this machine in its current form" in line
        assert permit(run, Given(())) == []
        (tmp_path / "mine.py").write_text("def f(*_): evil()")
        assert not self.is_permitted(run)

    def test_the_same_code_elsewhere_is_not_trusted(self, tmp_path):
        for folder in ("a", "b"):
            (tmp_path / folder).mkdir()
            (tmp_path / folder / "mine.py").write_text("def f(*_): ...")
        of = {folder: f"{tmp_path}/{folder}/mine.py:f" for folder in ("a", "b")}
        permit(self.run(tmp_path, **{"monitor.rewards": [of["a"]]}), Given([of["a"]]))
        assert not self.is_permitted(self.run(tmp_path, **{"monitor.rewards": [of["b"]]}))


def test_my_own_code_needs_no_leave_on_this_machine(capsys, tiny_lcm, tmp_path):
    (tmp_path / "mine.py").write_text("def f(images, *_):\n    return images.float().mean((1, 2, 3))\n")
    run, settings = tmp_path / "run", write_settings(tmp_path, tiny_lcm)
    words = ["--config", settings, "--run", run, "--iterations", "1", "--reward", f"{tmp_path}/mine.py:f"]
    assert "is now trusted on this machine in its current form" in succeed(capsys, "loop", *words).out
    succeed(capsys, "evaluate", "--run", run)
    said = succeed(capsys, "loop", "--run", run, "--iterations", "2").out
    assert "trusted" not in said
