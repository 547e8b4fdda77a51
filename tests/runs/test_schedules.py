"""A schedule in a plan: written down and made again, the same to the bit."""

from __future__ import annotations

import json

import pytest
import torch

from rlcm_cli.core.schedule import Schedule
from rlcm_cli.runs.schedules import record_schedule, restore_schedule
from rlcm_cli.store.manifest import ScheduleRecord


def make_schedule(times: torch.Tensor) -> Schedule:
    numbers = torch.rand(3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return Schedule(times, torch.cat([times[1:], times.new_zeros(1)]), *numbers, initial_scale=14.6146)


@pytest.mark.parametrize(
    "times",
    [
        torch.tensor([999, 759, 499, 259]),
        torch.tensor([999.5, 759.25, 1 / 3, 0.1], dtype=torch.float64),
        torch.tensor([1000.0, 750.0, 500.0, 250.0], dtype=torch.float64),
    ],
    ids=["whole", "fractions", "whole numbers of a float"],
)
def test_times_come_back_in_their_dtype_to_the_bit(times):
    schedule = make_schedule(times)
    record = record_schedule(schedule, 1.5)
    written = ScheduleRecord.model_validate_json(record.model_dump_json())
    assert (written, written.agrees_with(record)) == (record, True)
    restored = restore_schedule(written)
    assert restored.initial_scale == 14.6146
    for name, values in vars(schedule).items():
        if name != "initial_scale":
            assert torch.equal(getattr(restored, name), values), name
            assert getattr(restored, name).dtype == values.dtype, name
    assert written.transitions == schedule.transition_pairs().tolist()


@pytest.mark.parametrize("guess", ["timesteps", "next_timesteps"])
def test_times_agree_within_their_rounding(guess):
    record = record_schedule(make_schedule(torch.tensor([1000.0, 958.4, 883.7, 1 / 3], dtype=torch.float64)), 1.0)
    times = getattr(record, guess)

    def with_third(value):
        return record.model_copy(update={guess: (*times[:2], value, *times[3:])})

    assert record.agrees_with(with_third(float(torch.tensor(times[2], dtype=torch.float32))))
    assert not record.agrees_with(with_third(times[2] + 0.01))
    assert not record.agrees_with(record.model_copy(update={guess: times[:3]}))
    whole = record_schedule(make_schedule(torch.tensor([999, 759, 499, 259])), 1.0)
    assert not whole.agrees_with(whole.model_copy(update={guess: (998, *getattr(whole, guess)[1:])}))


def test_another_scale_of_the_initial_noise_is_another_sampler():
    record = record_schedule(make_schedule(torch.tensor([999, 759, 499, 259])), 1.0)
    assert not record.agrees_with(record.model_copy(update={"initial_scale": 1.0}))


def test_times_that_are_whole_stay_whole_in_json():
    record = record_schedule(make_schedule(torch.tensor([999, 759, 499, 259])), 1.0)
    assert json.loads(record.model_dump_json())["timesteps"] == [999, 759, 499, 259]
    assert '"timesteps":[999,' in record.model_dump_json()
