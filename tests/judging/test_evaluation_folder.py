"""An evaluation in a folder: drawn once, scored later, read back with care."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rlcm_cli.errors import ConfigError, CorruptFileError, MissingFileError
from rlcm_cli.events import Advanced
from rlcm_cli.judging import drawing
from rlcm_cli.judging.drawing import draw_ways
from rlcm_cli.judging.folder import RESULTS, SUMMARY, check_folder, read_image, read_results, summarise
from rlcm_cli.judging.scoring import load_judges, score_folder
from rlcm_cli.judging.ways import Wanted, plan_ways
from rlcm_cli.rewards import REWARDS, RewardEntry, RewardSpec


def plan(tiny_lcm: Path, **wanted):
    return plan_ways(Wanted(["cat", "dog", "cow"], model={"name": str(tiny_lcm)}, count=2, steps=(1, 2), **wanted))


def draw(ways, folder: Path) -> int:
    """Draw, and return the number of images that were not there."""
    return sum(event.count for event in draw_ways(ways, folder, "cpu") if isinstance(event, Advanced))


def score(folder: Path, *specs: RewardSpec) -> int:
    """Score, and return the number of values that were computed."""
    return sum(event.count for event in score_folder(folder, load_judges(specs)) if isinstance(event, Advanced))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.fixture(scope="module")
def drawn(tiny_lcm, tmp_path_factory):
    """A folder with 3 prompts, 2 images of each, with 1 and with 2 steps."""
    folder = tmp_path_factory.mktemp("evaluation") / "drawn"
    assert draw(plan(tiny_lcm), folder) == 12
    return folder


@pytest.fixture
def folder(drawn, tmp_path):
    for name, data in contents(drawn).items():
        (tmp_path / "copy" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "copy" / name).write_bytes(data)
    return tmp_path / "copy"


class TestDrawing:
    def test_what_is_there_is_not_drawn_and_no_model_is_loaded(self, tiny_lcm, folder, monkeypatch):
        before = contents(folder)
        monkeypatch.setattr(drawing.ModelCache, "set_up", lambda *_: pytest.fail("a model was loaded"))
        assert draw(plan(tiny_lcm), folder) == 0
        assert contents(folder) == before

    def test_what_is_missing_is_drawn_again_to_the_byte(self, tiny_lcm, folder):
        before = contents(folder)
        ways = plan(tiny_lcm)
        for file in (ways[0].files[1], ways[0].files[5], ways[1].files[0]):
            (folder / file).unlink()
        assert draw(ways, folder) == 3
        assert contents(folder) == before

    def test_more_ways_and_prompts_join_the_others(self, tiny_lcm, folder):
        more = plan_ways(Wanted(["cat", "dog", "cow"], model={"name": str(tiny_lcm)}, count=2, steps=(3,)))
        assert draw(more, folder) == 6
        rows = read_results(folder).rows
        assert list(dict.fromkeys(row["way"] for row in rows)) == [
            "base, 1 step",
            "base, 2 steps",
            "base, 3 steps",
        ]
        assert len(rows) == 18

    def test_images_that_were_drawn_in_another_way_are_never_taken_for_these(self, tiny_lcm, folder):
        before = contents(folder)
        pairs = zip(plan(tiny_lcm), plan(tiny_lcm, seed=5), strict=True)
        other = [replace(way, drawing=later.drawing) for way, later in pairs]
        with pytest.raises(ConfigError, match=r"was drawn in another way \(seed 0 → 5\)") as caught:
            draw(other, folder)
        assert "choose another folder with --out" in str(caught.value)
        assert contents(folder) == before

    def test_a_folder_of_something_else_is_left_alone(self, tiny_lcm, tmp_path):
        (tmp_path / "mine.txt").write_text("mine")
        with pytest.raises(ConfigError, match="holds something else than an evaluation"):
            draw(plan(tiny_lcm), tmp_path)
        check_folder(tmp_path / "new")


class TestScoring:
    def test_each_image_gets_its_value_once(self, folder):
        assert score(folder, RewardSpec("brightness"), RewardSpec("sharpness")) == 24
        rows = read_results(folder).rows
        for row in rows:
            expected = REWARDS["brightness"].factory()(torch.from_numpy(read_image(folder, row))[None], ["x"], [{}])
            assert row["reward.brightness"] == pytest.approx(expected.item())
        before = contents(folder)
        assert score(folder, RewardSpec("brightness")) == 0
        assert contents(folder) == before

    def test_the_summary_is_that_of_the_rows(self, folder):
        score(folder, RewardSpec("brightness"))
        summary = json.loads((folder / SUMMARY).read_text())
        rows = [json.loads(line) for line in (folder / RESULTS).read_text().splitlines()]
        one, two = (
            np.array([row["reward.brightness"] for row in rows if row["steps"] == steps]).reshape(3, 2)
            for steps in (1, 2)
        )
        first, second = summary["judged"]
        assert (first["way"], second["way"], second["against"]) == ("base, 1 step", "base, 2 steps", "base, 1 step")
        assert first["mean"] == pytest.approx(one.mean())
        assert first["standard_error"] == pytest.approx(one.mean(1).std(ddof=1) / math.sqrt(3))
        assert second["difference"] == pytest.approx((two - one).mean())
        assert second["win_rate"] == pytest.approx(((np.sign(two - one) + 1) / 2).mean(1).mean())

    def test_another_version_of_a_reward_scores_all_again(self, folder, monkeypatch):
        for version, value in ((1, 1.0), (2, 2.0)):

            def give(images, prompts, metadata, value=value):
                return torch.full((len(images),), value)

            entry = RewardEntry(lambda give=give: give, "", "", version=version)
            monkeypatch.setitem(REWARDS, "constant", entry)
            assert score(folder, RewardSpec("constant")) == 12
            assert {row["reward.constant"] for row in read_results(folder).rows} == {value}

    def test_images_of_a_prompt_are_compared_within_their_way(self, folder, monkeypatch):
        seen = []

        def compare(images, prompt, metadata):
            seen.append((prompt, len(images), len({known["group"] for known in metadata})))
            return torch.zeros(len(images))

        monkeypatch.setitem(REWARDS, "comparing", RewardEntry(lambda: compare, "", "", set_level=True))
        score(folder, RewardSpec("comparing"))
        assert seen == [(prompt, 2, 1) for _ in range(2) for prompt in ("cat", "dog", "cow")]

    def test_what_people_give_is_not_asked_of_a_folder(self):
        with pytest.raises(ConfigError, match="is given by people"):
            load_judges([RewardSpec("votes")])


class TestReading:
    def test_pictures_of_generate_need_no_results(self, folder):
        (folder / RESULTS).unlink()
        (folder / SUMMARY).unlink()
        rows = read_results(folder).rows
        assert [(row["prompt"], row["seed"]) for row in rows[:6]] == [
            (prompt, seed) for seed, prompt in enumerate(["cat", "cat", "dog", "dog", "cow", "cow"])
        ]
        assert len({row["way"] for row in rows}) == 2
        assert score(folder, RewardSpec("brightness")) == 12
        assert (folder / RESULTS).is_file()

    @pytest.mark.parametrize(
        ("line", "fault"),
        [
            ('{"file": "../x.png", "prompt": "a", "way": "b"}', "leads out of the folder"),
            ('{"file": "/x.png", "prompt": "a", "way": "b"}', "leads out of the folder"),
            ('{"file": "x.png", "way": "b"}', "has no text under 'prompt'"),
            ('{"file": "x.png", "prompt": "a", "way": "b", "reward.r": "high"}', "'reward.r' is not a number"),
            ("[1]", "is not a JSON object"),
            ("{", "is not a JSON object"),
        ],
    )
    def test_a_row_that_cannot_be_is_named(self, tmp_path, line, fault):
        (tmp_path / RESULTS).write_text('{"file": "x.png", "prompt": "a", "way": "b"}\n' + line + "\n")
        with pytest.raises(CorruptFileError, match=f"{RESULTS}, line 2: .*{fault}"):
            read_results(tmp_path)

    def test_a_missing_or_damaged_image_is_named(self, folder):
        row = read_results(folder).rows[0]
        (folder / row["file"]).write_bytes(b"no picture")
        with pytest.raises(CorruptFileError, match="is damaged or not a PNG"):
            score(folder, RewardSpec("brightness"))
        (folder / row["file"]).unlink()
        with pytest.raises(MissingFileError, match="is not there; draw it again"):
            score(folder, RewardSpec("brightness"))

    def test_a_folder_without_images_says_how_to_make_some(self, tmp_path):
        Image.new("RGB", (2, 2)).save(tmp_path / "plain.png")
        with pytest.raises(MissingFileError, match=r"holds neither results.jsonl nor a PNG .*`rlcm evaluate --model"):
            read_results(tmp_path)
        with pytest.raises(MissingFileError, match="there is no such folder"):
            read_results(tmp_path / "none")


def test_a_lora_is_compared_with_the_base_of_its_own_steps():
    def row(way, lora, steps, value):
        image = {"file": f"{way}.png", "prompt": "cat", "seed": 0}
        return {**image, "way": way, "lora": lora, "steps": steps, "reward.r": value}

    rows = [row("b1", None, 1, 1.0), row("b2", None, 2, 4.0), row("l1", "x", 1, 2.0), row("l2", "x", 2, 3.0)]
    found = summarise(rows)
    assert [(one.way, one.against, one.wins and one.wins.share) for one in found] == [
        ("b1", None, None),
        ("b2", "b1", 1.0),
        ("l1", "b1", 1.0),
        ("l2", "b2", 0.0),
    ]
