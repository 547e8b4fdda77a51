"""The moving average of the weights: what it is, where it is kept, and that a run goes on with it."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import tiny_values
from phase_runs import adapter, fingerprint, finish, largest_difference, make_by_hand, make_config, make_loop, prepare

from rlcm_cli.config import parse_config
from rlcm_cli.errors import CorruptFileError
from rlcm_cli.models.lora import bind_lora
from rlcm_cli.phases.loop import loop
from rlcm_cli.phases.score import load_scorers
from rlcm_cli.phases.train import train
from rlcm_cli.pictures.drawing import find_lora, load_drawing_model, plan_drawing
from rlcm_cli.pictures.generate import generate
from rlcm_cli.runs.policy import load_policy_model
from rlcm_cli.store.adapters import read_adapter_settings
from rlcm_cli.store.checkpoint import (
    LORA_FILE,
    MARKER_FILE,
    digest_safetensors,
    read_average,
    read_optimizer,
    read_trainer_state,
    read_weights,
)

DECAY = 0.7


@pytest.fixture(scope="module")
def averaged(tiny_lcm, tmp_path_factory):
    """A run of three iterations, of two optimizer steps each."""
    config = make_config(
        tiny_lcm, train={"ema_decay": DECAY, "minibatch_size": 4, "inner_epochs": 1}, runtime={"iterations": 3}
    )
    return make_loop(tmp_path_factory.mktemp("ema") / "run", config)


def test_the_average_is_the_recurrence_over_the_optimizer_steps(tiny_lcm, tmp_path, monkeypatch):
    config = make_config(tiny_lcm, train={"ema_decay": DECAY, "minibatch_size": 4}, runtime={"iterations": 3})
    seen, step = [], torch.optim.AdamW.step
    model = load_policy_model(config)

    def record(optimizer, *arguments):
        if not seen:
            seen.append(adapter(model))
        result = step(optimizer, *arguments)
        seen.append(adapter(model))
        return result

    monkeypatch.setattr(torch.optim.AdamW, "step", record)
    run, _ = prepare(tmp_path / "run", config, upto="sample")
    finish(loop(run, model, load_scorers(run)))
    assert len(seen) == 1 + 3 * 2
    for number in (1, 2, 3):
        kept = bind_lora(model, read_average(run.layout, number))
        steps = seen[: 1 + 2 * number]
        for name, tensor in kept.items():
            # e_T = d^T w_0 + Σ (1 − d) d^(T − t) w_t
            expected = DECAY ** (len(steps) - 1) * steps[0][name].double()
            for t in range(1, len(steps)):
                expected += (1 - DECAY) * DECAY ** (len(steps) - 1 - t) * steps[t][name].double()
            assert torch.allclose(tensor.double(), expected, rtol=1e-6, atol=1e-9)
    assert largest_difference(kept, bind_lora(model, read_weights(run.layout, 3))) > 1e-4


def test_the_files_are_diffusers_own_under_the_marker(averaged):
    for number in (1, 2, 3):
        folder = averaged.layout.checkpoint(number)
        assert sorted(file.name for file in (folder / "ema").iterdir()) == [LORA_FILE]
        settings = read_adapter_settings(folder / "ema" / LORA_FILE)
        assert settings == read_adapter_settings(folder / LORA_FILE)
        files = json.loads((folder / MARKER_FILE).read_text())["files"]
        assert files[f"ema/{LORA_FILE}"] == digest_safetensors(folder / "ema" / LORA_FILE)
    assert not (averaged.layout.checkpoint(0) / "ema").exists()


@pytest.mark.parametrize("damage", ["lost", "another", "unpublished"])
def test_a_damaged_average_is_refused(averaged, tmp_path, damage):
    root = tmp_path / "run"
    shutil.copytree(averaged.layout.root, root)
    layout = type(averaged.layout)(root)
    file = layout.checkpoint(2) / "ema" / LORA_FILE
    if damage == "lost":
        file.unlink()
    elif damage == "another":
        shutil.copy(layout.checkpoint(1) / "ema" / LORA_FILE, file)
    else:
        marker = layout.checkpoint(2) / MARKER_FILE
        content = json.loads(marker.read_text())
        del content["files"][f"ema/{LORA_FILE}"]
        marker.write_text(json.dumps(content))
    with pytest.raises(CorruptFileError, match=f"ema/{LORA_FILE}: is not the file that was published"):
        read_trainer_state(layout, 2)


def test_a_run_without_average_has_the_files_that_it_always_had(tiny_lcm, tmp_path):
    run, model = prepare(tmp_path / "run", make_config(tiny_lcm))
    finish(train(run, model))
    assert sorted(path.name for path in run.layout.checkpoint(1).rglob("*")) == sorted(
        [LORA_FILE, "optimizer.safetensors", "prompt_statistics.json", "trainer.json", MARKER_FILE]
    )


def test_the_average_does_not_touch_what_is_sampled_and_trained(averaged, tiny_lcm, tmp_path):
    config = make_config(tiny_lcm, train={"minibatch_size": 4}, runtime={"iterations": 3})
    plain = make_loop(tmp_path / "run", config)
    for number in (0, 3):
        states = [read_trainer_state(run.layout, number) for run in (plain, averaged)]
        assert states[0].policy_digest == states[1].policy_digest
    ours, theirs = (read_optimizer(run.layout, 3) for run in (averaged, plain))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_each_phase_in_a_process_of_its_own_gives_what_the_loop_gives(averaged, tmp_path):
    run = make_by_hand(tmp_path / "run", averaged.config)
    assert fingerprint(run.layout.root) == fingerprint(averaged.layout.root)


def test_the_average_can_be_drawn_with(averaged, tiny_lcm, tmp_path):
    images = {}
    for place in ("", "ema"):
        folder = averaged.layout.checkpoint(3) / place
        lora = find_lora(str(folder), 1.0)
        assert Path(lora.place) == folder / LORA_FILE
        drawing = plan_drawing(["cat"], count=2, seed=0, adapter=lora, model={}, sample={}, sampler={})
        assert drawing.model.name == str(tiny_lcm)  # the settings are those of the run that it lies in
        model = load_drawing_model(drawing, "cpu")
        finish(generate(drawing, model, tmp_path / f"out-{place}"))
        images[place] = {
            name.replace(".policy.", "."): parameter.detach()
            for name, parameter in model.denoiser.named_parameters()
            if ".lora_" in name
        }
    average = read_average(averaged.layout, 3)
    assert {f"unet.{name}" for name in images["ema"]} == average.keys()
    assert all(torch.equal(tensor, average[f"unet.{name}"]) for name, tensor in images["ema"].items())
    assert largest_difference(images[""], images["ema"]) > 1e-4


def test_an_average_that_forgets_at_once_is_the_weights(tiny_lcm, tmp_path):
    run, model = prepare(tmp_path / "run", parse_config(tiny_values(tiny_lcm, train={"ema_decay": 0.0})))
    finish(train(run, model))
    weights, average = read_weights(run.layout, 1), read_average(run.layout, 1)
    assert all(torch.equal(weights[name], average[name]) for name in weights)
