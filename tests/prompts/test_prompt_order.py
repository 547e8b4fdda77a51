"""Which prompts are held out, and in which order the others are drawn."""

import hashlib
from collections import Counter

import pytest

from rlcm_cli.errors import ConfigError
from rlcm_cli.prompts.order import draw_prompts, split_prompts
from rlcm_cli.prompts.sources import load_prompts

ANIMALS = load_prompts("simple_animals")


class TestSplit:
    @pytest.mark.parametrize(("fraction", "count"), [(0, 0), (0.001, 1), (0.2, 9), (0.5, 22), (0.97, 44)])
    def test_parts_are_complete_and_in_source_order(self, fraction, count):
        training, held_out = split_prompts(ANIMALS, fraction)
        assert len(held_out) == count
        assert sorted(training + held_out) == sorted(ANIMALS)
        assert list(training) == sorted(training, key=ANIMALS.index)
        assert list(held_out) == sorted(held_out, key=ANIMALS.index)

    def test_the_lowest_digests_are_held_out(self):
        _, held_out = split_prompts(ANIMALS, 0.2)
        ranked = sorted(ANIMALS, key=lambda prompt: hashlib.sha256(prompt.encode()).hexdigest())
        assert set(held_out) == set(ranked[:9])

    def test_the_order_of_the_source_has_no_part(self):
        assert set(split_prompts(ANIMALS[::-1], 0.2)[1]) == set(split_prompts(ANIMALS, 0.2)[1])

    @pytest.mark.parametrize("appended", range(1, 40, 3))
    def test_appending_moves_old_prompts_in_one_direction_only(self, appended):
        before = set(split_prompts(ANIMALS, 0.2)[1])
        longer = ANIMALS + load_prompts("imagenet_animals")[:appended]
        after = set(split_prompts(longer, 0.2)[1]) & set(ANIMALS)
        assert before <= after or after <= before

    @pytest.mark.parametrize(("prompts", "fraction"), [(("cat",), 0.1), (("cat", "dog"), 0.9)])
    def test_nothing_left_to_train_on_is_refused(self, prompts, fraction):
        with pytest.raises(ConfigError, match="leaves none to train on"):
            split_prompts(prompts, fraction)

    @pytest.mark.parametrize("fraction", [-0.1, 1, 1.5, float("nan")])
    def test_fractions_out_of_range_are_refused(self, fraction):
        with pytest.raises(ConfigError, match="from 0 to below 1"):
            split_prompts(ANIMALS, fraction)


class TestDraw:
    def test_every_pass_is_a_permutation_of_its_own(self):
        drawn = draw_prompts(ANIMALS, seed=3, start=0, count=90)
        first, second = drawn[:45], drawn[45:]
        assert Counter(first) == Counter(second) == Counter(ANIMALS)
        assert first != second
        assert first != list(ANIMALS)

    @pytest.mark.parametrize(("start", "count"), [(0, 1), (44, 2), (45, 45), (7, 120), (90, 0), (100, 35)])
    def test_any_slice_is_the_slice_of_the_whole(self, start, count):
        whole = draw_prompts(ANIMALS, seed=5, start=0, count=135)
        assert draw_prompts(ANIMALS, seed=5, start=start, count=count) == whole[start : start + count]

    def test_a_late_slice_costs_no_earlier_pass(self):
        assert len(draw_prompts(ANIMALS, seed=5, start=10**15, count=3)) == 3

    def test_seeds_differ(self):
        assert draw_prompts(ANIMALS, 0, 0, 45) != draw_prompts(ANIMALS, 1, 0, 45)

    def test_the_sequence_never_changes(self):
        # A change here changes which prompts every existing run draws.
        prompts = ("cat", "dog", "cow", "Bär")
        passes = ["cow", "dog", "Bär", "cat"], ["cow", "dog", "cat", "Bär"]
        assert draw_prompts(prompts, seed=0, start=0, count=8) == passes[0] + passes[1]
