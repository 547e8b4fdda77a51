"""The picture of the rewards over the iterations."""

import io
from contextlib import contextmanager

import pytest
from matplotlib.figure import Figure
from metric_rows import make_row
from PIL import Image

from rlcm_cli.config import parse_config
from rlcm_cli.report.run.curves import write_curves
from rlcm_cli.store.layout import RunLayout
from rlcm_cli.store.metrics import publish_metrics
from rlcm_cli.store.run import publish_config


def publish(root, rewards, monitored=(), iterations=3, combine="sum"):
    """Publish metrics; `monitored` has a list of names an iteration, or one for all."""
    layout = RunLayout(root)
    publish_config(
        layout, parse_config({"task": "t", "rewards": {"compressibility": 1.0}, "combine": combine}).to_json(), {}
    )
    for number in range(iterations):
        seen = monitored[number] if monitored and isinstance(monitored[0], list) else monitored
        names = [*rewards, *seen]
        row = make_row(
            number,
            reward_mean=10.0 + number,
            reward_std=2.0,
            rewards={name: index + number for index, name in enumerate(rewards)},
            monitored=dict.fromkeys(seen, -1.0 - number),
            reward_stds=dict.fromkeys(names, 0.5),
            tasks={"compression": 10.0 + number},
        )
        publish_metrics(layout, row)
    return layout


@pytest.fixture
def drawn(monkeypatch):
    """The figures that are saved."""
    figures, save = [], Figure.savefig

    def note(figure, *arguments, **options):
        figures.append(figure)
        return save(figure, *arguments, **options)

    monkeypatch.setattr(Figure, "savefig", note)
    return figures


def panels(figure):
    return {axis.get_title(loc="left"): axis.lines[0].get_xydata().tolist() for axis in figure.axes}


@contextmanager
def opened(path):
    with Image.open(io.BytesIO(path.read_bytes())) as image:
        image.load()
        yield image


def test_a_band_ends_where_the_reward_does(tmp_path, drawn):
    """−1 ± 0.5, −2 ± 0.5 and −3 ± 0.5 of what is −0.75 at most and never below −3.25."""
    write_curves(publish(tmp_path, ["compressibility"], ["sharpness"]), {"sharpness": (-3.25, -0.75)})
    (band,) = drawn[0].axes[1].collections
    heights = [y for _, y in band.get_paths()[0].vertices]
    assert (min(heights), max(heights)) == (-3.25, -0.75)


def test_one_reward_is_one_panel(tmp_path, drawn):
    path = write_curves(publish(tmp_path, ["compressibility"]))
    assert path == tmp_path / "rewards.png"
    with opened(path) as image:
        assert image.format == "PNG"
        assert len(set(image.convert("L").tobytes())) > 10
    assert panels(drawn[0]) == {"compressibility": [[1, 0], [2, 1], [3, 2]]}


def test_rewards_that_are_normalised_have_no_sum(tmp_path, drawn):
    write_curves(publish(tmp_path, ["compressibility", "recognition"], combine="normalised"))
    assert list(panels(drawn[0])) == ["compressibility", "recognition"]


def test_several_rewards_come_after_the_reward_that_they_make(tmp_path, drawn):
    path = write_curves(publish(tmp_path, ["compressibility", "recognition"], ["sharpness"]))
    titles = panels(drawn[0])
    assert len(titles) == 4
    first, *others = titles
    assert titles[first] == [[1, 10], [2, 11], [3, 12]]
    assert others == ["compressibility", "recognition", "sharpness (monitored)"]
    assert titles["recognition"] == [[1, 1], [2, 2], [3, 3]]
    assert titles["sharpness (monitored)"] == [[1, -1], [2, -2], [3, -3]]
    with opened(path) as image:
        assert image.height > image.width / 2


def test_trained_and_monitored_rewards_have_colours_of_their_own(tmp_path, drawn):
    write_curves(publish(tmp_path, ["compressibility"], ["sharpness"]))
    colours = [axis.lines[0].get_color() for axis in drawn[0].axes]
    assert len(colours) == 2
    assert colours[0] != colours[1]


def test_a_reward_that_was_monitored_for_a_while_is_drawn_for_that_while(tmp_path, drawn):
    write_curves(publish(tmp_path, ["compressibility"], [[], ["sharpness"], ["sharpness"], []], iterations=4))
    assert panels(drawn[0])["sharpness (monitored)"] == [[2, -2], [3, -3]]


def test_a_reward_that_is_trained_on_and_monitored_is_drawn_once(tmp_path, drawn):
    write_curves(publish(tmp_path, ["compressibility"], ["compressibility"]))
    assert list(panels(drawn[0])) == ["compressibility"]


def test_the_band_is_one_standard_deviation(tmp_path, drawn):
    write_curves(publish(tmp_path, ["compressibility"]))
    (band,) = drawn[0].axes[0].collections
    heights = band.get_paths()[0].vertices[:, 1]
    assert (heights.min(), heights.max()) == (-0.5, 2.5)


@pytest.mark.parametrize("iterations", [0, 1])
def test_fewer_than_two_iterations_make_no_curve(tmp_path, iterations):
    assert write_curves(publish(tmp_path, ["compressibility"], iterations=iterations)) is None
    assert not (tmp_path / "rewards.png").exists()


def test_the_picture_is_drawn_anew_each_time(tmp_path):
    before = write_curves(publish(tmp_path, ["compressibility"])).read_bytes()
    assert write_curves(publish(tmp_path, ["compressibility"], iterations=9)).read_bytes() != before
