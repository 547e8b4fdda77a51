"""What trackers are given of a run: what its files hold, each iteration once, and nothing private."""

from __future__ import annotations

import getpass
import json
import math
import shutil
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import PartialState
from accelerate.tracking import GeneralTracker
from reported_runs import PROMPTS, make_metrics, write_evaluation, write_reported
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer import event_file_writer

from rlcm_cli.errors import ConfigError
from rlcm_cli.report import tracker_services, trackers
from rlcm_cli.report.trackers import (
    RunTrackers,
    begin_state,
    choose_images,
    choose_trackers,
    flatten_settings,
    name_numbers,
)
from rlcm_cli.runs.run import open_run
from rlcm_cli.store.evaluations import read_evaluation
from rlcm_cli.store.layout import RunLayout
from rlcm_cli.store.metrics import publish_metrics, read_metrics
from rlcm_cli.store.run import read_config

SECRETS = {
    "rewards": {"https://ann:pw@judge.example/score": 1.0, "/home/ann/mine.py:score": 0.5},
    "model": {"name": "/home/ann/models/tiny"},
    "runtime": {"device": "cpu", "log_with": ["tensorboard"]},
    "prompts": {"source": "C:\\Users\\ann\\prompts.txt"},
}


@pytest.fixture(autouse=True)
def files_in_order(monkeypatch):
    """TensorBoard reads files by name, which within a second ends in a count of this process: 10 comes before 9."""
    monkeypatch.setattr(event_file_writer, "_global_uid", event_file_writer.AtomicCounter(0))


@pytest.fixture
def layout(tmp_path: Path) -> RunLayout:
    """A run of four iterations whose checkpoints 0, 2 and 4 were evaluated."""
    found = write_reported(tmp_path / "a-run")
    for number in range(5):
        found.checkpoint(number).mkdir(parents=True)
    return found


def follow(layout: RunLayout, *names: str) -> list[str]:
    """Log what a run has, as one session of the loop does; give the warnings."""
    opened = RunTrackers(open_run(layout.root), names or ["tensorboard"])
    warnings = list(opened.catch_up())
    opened.close()
    return warnings


def extend(layout: RunLayout, checkpoint: int) -> None:
    """Add an iteration."""
    publish_metrics(layout, make_metrics(checkpoint - 1))
    layout.checkpoint(checkpoint).mkdir(parents=True)


def read_events(layout: RunLayout) -> EventAccumulator:
    found = EventAccumulator(str(layout.logs / "tensorboard"), size_guidance={"scalars": 0, "images": 0})
    found.Reload()
    return found


def read_rows(layout: RunLayout) -> list[dict[str, Any]]:
    return [row.as_row() for row in read_metrics(layout)]


def assert_scalars_are_the_metrics(layout: RunLayout) -> None:
    events, rows = read_events(layout), read_rows(layout)
    for tag in name_numbers(rows[0]):
        logged = [(event.step, event.value) for event in events.Scalars(tag)]
        assert logged == [(row["checkpoint"], np.float32(name_numbers(row)[tag])) for row in rows], tag


def test_the_event_file_holds_the_metrics_and_the_fixed_images(layout):
    assert follow(layout) == []
    assert_scalars_are_the_metrics(layout)
    events = read_events(layout)
    assert {"reward_mean", "rewards/compressibility", "monitored/recognition", "tasks/compression"} <= {
        *events.Tags()["scalars"]
    }
    drawn = choose_images(read_evaluation(layout, 2))
    assert (
        {*events.Tags()["images"]}
        == {*drawn}
        == {
            "evaluation/sheet",
            *(f"evaluation/prompt/{prompt}" for prompt in PROMPTS),
        }
    )
    for tag, image in drawn.items():
        logged = {event.step: event for event in events.Images(tag)}
        assert sorted(logged) == [0, 2, 4]
        assert (decode(logged[2].encoded_image_string) == image).all(), tag
    held_out = events.Scalars("evaluation/held_out/compressibility")
    assert [(event.step, event.value) for event in held_out] == [
        (number, np.float32(read_evaluation(layout, number).rewards["compressibility"][:2].mean()))
        for number in (0, 2, 4)
    ]


def decode(png: bytes) -> np.ndarray:
    import io

    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(png)))


def test_going_on_adds_to_the_log_and_repeats_nothing(layout):
    follow(layout)
    follow(layout)
    extend(layout, 5)
    write_evaluation(layout, 5)
    follow(layout)
    assert_scalars_are_the_metrics(layout)
    assert [event.step for event in read_events(layout).Images("evaluation/sheet")] == [0, 2, 4, 5]


def test_a_session_that_was_killed_before_it_noted_what_it_logged_repeats_no_step(layout):
    follow(layout)
    noted = layout.tracked("tensorboard").read_bytes()
    extend(layout, 5)
    follow(layout)
    layout.tracked("tensorboard").write_bytes(noted)
    follow(layout)
    assert_scalars_are_the_metrics(layout)


def test_an_iteration_that_is_made_anew_replaces_the_one_before(layout):
    follow(layout)
    for folder in (layout.checkpoint(4), layout.evaluation(4).parent):
        shutil.rmtree(folder)
    follow(layout)
    extend(layout, 4)
    publish_metrics(layout, make_metrics(3, reward_mean=99.0))
    write_evaluation(layout, 4)
    follow(layout)
    assert_scalars_are_the_metrics(layout)
    assert [event.step for event in read_events(layout).Images("evaluation/sheet")] == [0, 2, 4]


def test_metrics_without_their_checkpoint_are_not_logged(layout):
    publish_metrics(layout, make_metrics(4))
    follow(layout)
    assert [event.step for event in read_events(layout).Scalars("reward_mean")] == [1, 2, 3, 4]


def test_settings_are_logged_once_and_without_what_is_private(layout):
    flat = flatten_settings({**read_config(layout), **SECRETS})
    assert flat["train.learning_rate"] == 1e-3
    assert flat["model.name"] == "…/tiny"
    text = json.dumps(flat)
    for private in ("ann", "pw", "judge.example", "home", "Users"):
        assert private not in text
    follow(layout)
    follow(layout)
    assert len(list((layout.logs / "tensorboard").glob("*/hparams.yml"))) == 1


def test_no_log_names_a_folder_the_user_or_the_machine(layout, monkeypatch):
    monkeypatch.setattr(socket, "gethostname", lambda: "ann-laptop")
    follow(layout)
    private = [str(layout.root.parent), str(Path.home()) + "/"]
    private += [] if getpass.getuser() in ("root", "user") else [getpass.getuser()]
    for file in layout.logs.rglob("*"):
        if file.is_file():
            content = file.read_bytes()
            for words in (*private, socket.gethostname()):
                assert words.encode() not in content, (file, words)
                assert words not in file.name


def test_names_are_such_as_every_tracker_admits():
    metrics = {
        "note": "text",
        "rewards": {"/home/ann/mine.py:score": 1.0, "http://a:1/x": 2.0, "http://b:2/y": 3.0, "a reward": 4},
    }
    assert name_numbers(metrics) == {
        "rewards/mine.py_score": 1.0,
        "rewards/server_address_withheld": 2.0,
        "rewards/server_address_withheld_2": 3.0,
        "rewards/a_reward": 4,
    }


class Recorder(GeneralTracker):
    """A tracker that keeps what it is given, in the place of one that is not installed."""

    name = "recorder"
    requires_logging_directory = False
    main_process_only = False
    started: list[Recorder]

    def __init__(self, project: str, **settings: Any) -> None:
        super().__init__()
        self.project, self.settings = project, settings
        self.configuration: dict[str, Any] = {}
        self.rows: list[tuple[int | None, dict[str, Any]]] = []
        self.images: list[tuple[int | None, list[str]]] = []

    @property
    def tracker(self) -> Any:
        return None

    def start(self) -> None:
        print("what a tracker says of itself")
        type(self).started.append(self)

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self.configuration = values

    def log(self, values: dict[str, Any], step: int | None = None, **kwargs: Any) -> None:
        self.rows.append((step, values))

    def log_images(self, values: dict[str, Any], step: int | None = None, **kwargs: Any) -> None:
        self.images.append((step, [*values]))


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[Recorder]:
    """What is started in the place of wandb."""
    started: list[Recorder] = []
    monkeypatch.setattr(Recorder, "started", started, raising=False)
    monkeypatch.setattr(tracker_services, "WandBTracker", Recorder)
    return started


def test_wandb_is_offline_and_told_nothing_of_the_machine(layout, recorded, monkeypatch, capsys):
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    follow(layout, "wandb")
    (tracker,) = recorded
    assert tracker.project == "rlcm"
    assert tracker.settings["mode"] == "offline"
    assert tracker.settings["name"] == "a-run"
    assert tracker.settings["settings"]["x_disable_meta"]
    assert [step for step, _ in tracker.rows] == [0, 1, 2, 2, 3, 4, 4]
    assert [step for step, _ in tracker.images] == [0, 2, 4]
    assert tracker.rows[1][1] == name_numbers(read_rows(layout)[0])
    assert capsys.readouterr() == ("", "")


def test_a_key_takes_wandb_online_and_it_continues_the_same_run(layout, recorded, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "a-secret-key")
    follow(layout, "wandb")
    extend(layout, 5)
    follow(layout, "wandb")
    first, second = recorded
    assert "mode" not in first.settings
    assert (first.settings["id"], first.settings["resume"]) == (second.settings["id"], "allow")
    assert "a-secret-key" not in json.dumps(first.configuration)
    assert second.configuration["train.learning_rate"] == 1e-3
    assert [step for step, _ in second.rows] == [5]


@pytest.mark.parametrize("fault", [ConnectionError("no\nroute"), RuntimeError("x" * 1000), OSError(28, "disk full")])
def test_a_tracker_that_fails_warns_once_and_is_caught_up_later(layout, recorded, monkeypatch, fault):
    opened = RunTrackers(open_run(layout.root), ["wandb", "tensorboard"])

    def fail(self: Recorder, values: dict[str, Any], step: int | None = None, **kwargs: Any) -> None:
        if step == 2:
            raise fault
        self.rows.append((step, values))

    with monkeypatch.context() as broken:
        broken.setattr(Recorder, "log", fail)
        (warning,) = opened.catch_up()
        assert list(opened.catch_up()) == []
        opened.close()
    assert type(fault).__name__ in warning
    assert "\n" not in warning
    assert len(warning) < 400
    assert "--log-with wandb" in warning
    assert_scalars_are_the_metrics(layout)
    follow(layout, "wandb")
    assert [step for step, _ in recorded[-1].rows] == [2, 2, 3, 4, 4]


def test_a_tracker_that_is_not_installed_is_one_line(monkeypatch):
    monkeypatch.setattr(trackers, "get_available_trackers", lambda: ["tensorboard"])
    with pytest.raises(ConfigError, match=r"--log-with wandb: .*pip install 'rlcm\[wandb\]'"):
        choose_trackers(["tensorboard", "wandb"])
    assert choose_trackers(["all"]) == ["tensorboard"]
    assert choose_trackers(["tensorboard", "tensorboard"]) == ["tensorboard"]
    monkeypatch.setattr(trackers, "get_available_trackers", list)
    with pytest.raises(ConfigError, match="none of tensorboard, wandb, trackio, mlflow is installed"):
        choose_trackers(["all"])


def test_a_launcher_s_other_processes_are_not_waited_for(monkeypatch):
    PartialState._reset_state()
    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}.items():
        monkeypatch.setenv(name, value)
    begin_state()
    assert (PartialState().num_processes, PartialState().is_main_process) == (1, True)
    assert not torch.distributed.is_initialized()


def test_a_metric_that_is_not_finite_is_not_logged(layout):
    publish_metrics(layout, make_metrics(4, loss=math.nan))
    layout.checkpoint(5).mkdir()
    assert follow(layout) == []
    assert [event.step for event in read_events(layout).Scalars("loss")] == [1, 2, 3, 4]
