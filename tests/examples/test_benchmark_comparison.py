"""Methods side by side: differences with their intervals, the tables, and the pages that hold them."""

import math

import pytest
import torch

from examples.benchmark.comparison import cost_table, difference_table, pair_differences, score_table, steps_table
from examples.benchmark.finals import coverage, pairwise_distance
from examples.benchmark.pages import ROOT, fill
from examples.benchmark.pictures import draw_curves
from examples.benchmark.results import final_reward, reward_after

WORDS = {"ppo": "PPO", "grpo": "GRPO", "nft": "NFT"}


def point(queries, reward, recognised=1.0):
    measures = {"compressibility": reward, "recognition": 0.0, "kilobytes": -reward, "recognised": recognised}
    costs = {"processor": queries / 10, "queries": queries, "forwards": 8 * queries}
    return {**costs, "all": measures, "training_prompts": measures, "held_out_prompts": measures}


def result(seed, *ends):
    """Give a run of evaluations (queries, reward)."""
    return {
        "seed": seed,
        "reward": {"compressibility": 1.0, "recognition": 2.0},
        "target": {"measure": "kilobytes", "factor": 0.75, "change": 0.0, "recognised": 0.9},
        "points": [point(*end) for end in ends],
        "finals": {
            "second_judge": [66.0, 65.0],
            "diversity": [0.12, 0.1],
            "coverage": [1.0, 0.5],
            "kl": 0.25,
            "steps": {"1": point(0, -3.0)["all"], "2": point(0, -2.0, 0.5)["all"]},
        },
    }


def results(*rewards):
    return [result(seed, (0, -4.0), (100, reward)) for seed, reward in enumerate(rewards)]


class TestDifferences:
    def test_are_paired_by_seed(self):
        methods = {"ppo": results(-3.0, -2.0, -1.0), "grpo": results(-2.9, -1.9, -0.9)}
        found = pair_differences(methods, final_reward)["grpo"]
        assert found.mean == pytest.approx(0.1)
        assert found.interval == pytest.approx((0.1, 0.1))  # every seed says the same, whatever seeds differ by
        assert (found.seeds, found.verdict()) == (3, "better")

    def test_intervals_hold_for_all_comparisons_at_once(self):
        gaps = [0.3, -0.1, 0.2, 0.25, 0.05]
        methods = {
            "ppo": results(*[-3.0] * 5),
            "grpo": results(*(gap - 3 for gap in gaps)),
            "nft": results(*[-3.5] * 5),
        }
        found = pair_differences(methods, final_reward)["grpo"]
        error = torch.tensor(gaps).std().item() / math.sqrt(5)
        half = 3.495406 * error  # two methods are compared with the reference: Student's t at 0.9875, 4 degrees
        assert found.interval == pytest.approx((0.14 - half, 0.14 + half), rel=1e-5)
        assert found.verdict() == "no clear difference"

    def test_seeds_of_one_method_only_do_not_count(self):
        methods = {"ppo": results(-3.0, -2.0), "grpo": [*results(-2.5), result(7, (0, -4.0), (100, -1.0))]}
        found = pair_differences(methods, final_reward)["grpo"]
        assert (found.mean, found.interval, found.verdict()) == (0.5, None, "one seed")

    def test_that_are_below_are_worse(self):
        methods = {"ppo": results(-2.0, -2.1, -2.2), "nft": results(-3.0, -3.2, -3.1)}
        assert pair_differences(methods, final_reward)["nft"].verdict() == "worse"


METHODS = {
    "ppo": [result(1, (0, -4.0), (100, -3.5), (200, -2.5)), result(2, (0, -4.0), (100, -2.9), (200, -2.7))],
    "grpo": [result(1, (0, -4.0), (150, -3.0)), result(2, (0, -4.0), (150, -3.4))],
}


class TestTables:
    def test_scores_begin_with_what_was_before(self):
        _, rows = score_table(METHODS, WORDS)
        assert rows[0][:3] == ["before training", "2 seeds", "−4.00 ± 0.00"]
        assert rows[0][-4:] == ["66.0 ± 0.0", "0.120 ± 0.000", "100.0 ± 0.0", "0"]
        # t(0.975, 1) = 12.7062, and the standard error of (−2.5, −2.7) is 0.1
        assert rows[1][:3] == ["PPO", "2", "−2.60 ± 1.27"]
        assert rows[1][-3:] == ["0.100 ± 0.000", "50.0 ± 0.0", "0.250 ± 0.000"]

    def test_costs_are_each_seeds_own_crossing_and_an_equal_number_of_queries(self):
        header, rows = cost_table(METHODS, WORDS)
        assert header[-1] == "trained reward after 150 queries"
        # 3 kB lie half way from 3.5 to 2.5, and 10 / 11 of the way from 4 to 2.9
        assert rows[0][2:6] == ["200", "12 (9 to 15)", "120 (91 to 150)", "2 of 2"]
        assert rows[0][6].startswith("−2.90 ± ")  # −3.0 and −2.8
        assert rows[1][2:6] == ["150", "15", "150", "1 of 2"]
        assert reward_after(METHODS["ppo"][0], "queries", 1000) == -2.5

    def test_differences_leave_the_reference_out(self):
        _, rows = difference_table(METHODS, WORDS)
        assert [row[:2] for row in rows] == [["GRPO", "2"]]
        assert rows[0][2].startswith("−0.60 ± ")
        assert rows[0][3] == "no clear difference"

    def test_other_numbers_of_steps(self):
        header, rows = steps_table(METHODS, WORDS)
        assert header == ["", "n", "1 step", "2 steps"]
        assert rows[0] == ["PPO", "2", "−3.00 ± 0.00; 100 ± 0 %", "−2.00 ± 0.00; 50 ± 0 %"]

    def test_a_picture_is_drawn(self, tmp_path):
        draw_curves(METHODS, WORDS, tmp_path / "curves.png")
        assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


class TestFeatures:
    def test_distance_is_within_prompts(self):
        features = torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 0.0], [1.0, 0.0]])
        assert pairwise_distance(features, ["a", "a", "b", "b"]) == pytest.approx(0.5)  # 1 and 0
        assert pairwise_distance(features[:3], ["a", "a", "b"]) == pytest.approx(1.0)  # a single image has no pair

    def test_coverage_counts_images_of_the_base_with_one_of_the_policy_in_their_ball(self):
        base = torch.tensor([[0.0], [1.0], [2.0], [10.0], [11.0], [12.0]])
        assert coverage(base, base + 0.1, neighbours=1) == 1
        assert coverage(base, torch.tensor([[1.5]]), neighbours=1) == pytest.approx(2 / 6)
        assert coverage(base, torch.tensor([[-9.0]]), neighbours=1) == 0


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "examples").rglob("*.md"))]


@pytest.mark.parametrize("page", [page for page in PAGES if "<!-- benchmark:" in page.read_text()], ids=str)
def test_pages_hold_what_the_results_say(page):
    text = page.read_text(encoding="utf-8")
    assert fill(text) == text, "run `python -m examples.benchmark.pages`"
