"""Full fine-tuning: the U-Net's own weights in the place of an adapter's, in every phase."""

import contextlib
import dataclasses
import itertools
import json
import shutil

import pytest
import torch
from conftest import tiny_values
from diffusers import UNet2DConditionModel
from phase_runs import fingerprint, finish, make_by_hand, make_config

from rlcm_cli.config import parse_config
from rlcm_cli.errors import ConfigError, ModelError
from rlcm_cli.models.full import denoiser_parameters
from rlcm_cli.models.latent_model import LatentModel
from rlcm_cli.phases.evaluate import evaluate
from rlcm_cli.phases.loop import loop
from rlcm_cli.phases.sample import sample
from rlcm_cli.phases.score import load_scorers, score
from rlcm_cli.phases.train import train
from rlcm_cli.pictures.drawing import find_lora, load_drawing_model, plan_drawing
from rlcm_cli.pictures.generate import generate
from rlcm_cli.runs.policy import load_checkpoint, load_policy_model, start_run
from rlcm_cli.runs.run import create_run, open_run
from rlcm_cli.store.checkpoint import (
    DENOISER_FILES,
    MARKER_FILE,
    digest_safetensors,
    read_optimizer,
    read_trainer_state,
)
from rlcm_cli.store.inspection import describe_path
from rlcm_cli.store.layout import RunLayout
from rlcm_cli.store.verification import verify_run

UNET_FILE = DENOISER_FILES[0]

FULL = {"parameters": "full", "learning_rate": 1e-5, "kl_weight": 0.1, "ema_decay": 0.5, "minibatch_size": 4}


def full_config(folder, **train_settings):
    return make_config(folder, train={**FULL, **train_settings})


@pytest.fixture(scope="module")
def finished(tiny_lcm, tmp_path_factory):
    """A run of two iterations, all of whose options are of full training; read it, do not change it."""
    run, model = start_run(tmp_path_factory.mktemp("full") / "run", full_config(tiny_lcm))
    finish(loop(run, model, load_scorers(run)))
    return run


def test_training_changes_the_u_net_and_diffusers_reads_it(finished, tiny_lcm):
    base = UNet2DConditionModel.from_pretrained(tiny_lcm / "unet").state_dict()
    tensors = [base]
    for number in (1, 2):
        folder = finished.layout.checkpoint(number)
        for place in (folder / "unet", folder / "ema" / "unet"):
            tensors.append(UNet2DConditionModel.from_pretrained(place).state_dict())
    for one, other in itertools.pairwise(tensors):
        assert one.keys() == other.keys()
        changed = [name for name in one if not torch.equal(one[name], other[name])]
        assert len(changed) > 0.9 * len(one)
        assert max((one[name] - other[name]).abs().max() for name in one) < 1e-3


def test_the_checkpoints_hold_a_u_net_but_the_first_holds_none(finished):
    layout = finished.layout
    always = {"optimizer.safetensors", "prompt_statistics.json", "trainer.json"}
    for number in (0, 1, 2):
        files = set(json.loads((layout.checkpoint(number) / MARKER_FILE).read_text())["files"])
        unet = {UNET_FILE, "unet/config.json"} if number else set()
        assert files == always | unet | {f"ema/{name}" for name in unet}
    start, later = (read_trainer_state(layout, number) for number in (0, 1))
    assert start.policy_digest == start.model_digest == later.model_digest
    assert later.policy_digest == digest_safetensors(layout.checkpoint(1) / UNET_FILE)
    size = sum(file.stat().st_size for file in layout.checkpoint(0).iterdir())
    assert size < 2000


def test_the_penalty_is_zero_at_the_start_and_positive_later(tiny_lcm, tmp_path):
    # One update an iteration, so that the first iteration measures the base itself.
    config = full_config(tiny_lcm, minibatch_size=None)
    run, model = start_run(tmp_path / "run", config)
    finish(loop(run, model, load_scorers(run)))
    first, second = (json.loads(line) for line in run.layout.metrics_jsonl.read_text().splitlines())
    assert first["kl_to_base"] == 0
    assert second["kl_to_base"] > 1e-9


def test_the_gradient_with_a_penalty_is_that_of_another_copy_of_the_base(finished, tiny_lcm, tmp_path, monkeypatch):
    run = open_run(shutil.copytree(finished.layout.root, tmp_path / "run"))
    shutil.rmtree(run.layout.checkpoint(2))
    finish(train(run, load_policy_model(run.config)))
    expected = fingerprint(run.layout.root)
    shutil.rmtree(run.layout.checkpoint(2))

    copy, model, own = load_policy_model(run.config), load_policy_model(run.config), LatentModel.predict
    in_block = []

    @contextlib.contextmanager
    def other_model(asked):
        in_block.append(asked)
        yield
        in_block.clear()

    monkeypatch.setattr(
        LatentModel, "predict", lambda asked, *inputs: own(copy if in_block and asked is model else asked, *inputs)
    )
    model.attached = dataclasses.replace(model.trained, base_model=other_model)
    finish(train(run, model))
    assert fingerprint(run.layout.root) == expected


def test_the_phases_by_hand_give_what_the_loop_gives(finished, tmp_path):
    run = make_by_hand(tmp_path / "run", finished.config)
    assert fingerprint(run.layout.root) == fingerprint(finished.layout.root)


@pytest.mark.parametrize("phase", ["sample", "score", "train"])
def test_a_run_that_was_stopped_goes_on_bit_for_bit(finished, tmp_path, phase):
    root = shutil.copytree(finished.layout.root, tmp_path / "run")
    layout = RunLayout(root)
    shutil.rmtree(layout.checkpoint(2))
    shutil.rmtree(layout.root / "evaluations" / "000002")
    if phase != "train":
        shutil.rmtree(layout.rollout(1) / "rewards")
    if phase == "sample":
        shutil.rmtree(layout.rollout(1))
    run, model = start_run(root, finished.config)
    finish(loop(run, model, load_scorers(run)))
    assert fingerprint(root) == fingerprint(finished.layout.root)


def test_one_model_goes_from_any_checkpoint_to_any_other(finished, tiny_lcm):
    model = load_policy_model(finished.config)
    base = {name: p.detach().clone() for name, p in denoiser_parameters(model).items()}
    for number in (2, 0, 1, 0):
        load_checkpoint(finished, model, number)
        folder = finished.layout.checkpoint(number) / "unet"
        there = UNet2DConditionModel.from_pretrained(folder).state_dict() if number else base
        assert all(torch.equal(there[name], p) for name, p in denoiser_parameters(model).items())


def test_a_model_that_was_trained_starts_another_run_from_the_base(finished, tiny_lcm, tmp_path):
    model = load_policy_model(finished.config)
    load_checkpoint(finished, model, 2)
    run = create_run(tmp_path / "run", finished.config)
    finish(sample(run, model))
    finish(score(run, load_scorers(run)))
    finish(train(run, model))
    ours, theirs = fingerprint(run.layout.root), fingerprint(finished.layout.root)
    names = [name for name in ours if name.startswith(("checkpoints", "rollouts"))]
    assert {name: ours[name] for name in names} == {name: theirs[name] for name in names}


def test_what_is_kept_of_the_optimizer_is_of_every_weight(finished, tiny_lcm):
    names = UNet2DConditionModel.from_pretrained(tiny_lcm / "unet").state_dict().keys()
    tensors = read_optimizer(finished.layout, 2)
    assert tensors.keys() == {f"{quantity}/{name}" for name in names for quantity in ("step", "exp_avg", "exp_avg_sq")}


@pytest.mark.parametrize("place", ["", "checkpoints/000002", "checkpoints/000002/ema"])
def test_it_is_drawn_with_as_a_lora_is(finished, tiny_lcm, tmp_path, place):
    folder = finished.layout.root / place
    adapter = find_lora(str(folder), 1.0)
    drawing = plan_drawing(["cat"], count=2, seed=0, adapter=adapter, model={}, sample={}, sampler={})
    assert (drawing.model.name, drawing.sample) == (str(tiny_lcm), finished.config.sample)
    model = load_drawing_model(drawing, "cpu")
    there = place or "checkpoints/000002"
    expected = UNet2DConditionModel.from_pretrained(finished.layout.root / there / "unet").state_dict()
    assert all(torch.equal(expected[name], p) for name, p in model.denoiser.state_dict().items())
    assert model.denoiser.dtype == torch.float32
    finish(generate(drawing, model, tmp_path / "out"))
    assert len(list((tmp_path / "out").glob("*cat*.png"))) == 2


def test_a_whole_u_net_has_no_strength_and_the_start_none_of_its_own(finished):
    drawing = plan_drawing(
        ["cat"], count=1, seed=0, adapter=find_lora(str(finished.layout.root), 0.5), model={}, sample={}, sampler={}
    )
    with pytest.raises(ConfigError, match=r"--scale 0\.5: .* is a whole denoiser") as caught:
        load_drawing_model(drawing, "cpu")
    assert "\n" not in str(caught.value)
    with pytest.raises(ModelError, match="holds no LoRA"):
        find_lora(str(finished.layout.checkpoint(0)), 1.0)


def test_the_inspection_says_what_is_there(finished):
    layout = finished.layout
    assert verify_run(layout) == []
    assert "adapter" not in describe_path(layout.checkpoint(0))
    found = describe_path(layout.checkpoint(2))
    assert found["adapter"]["kind"] == "denoiser"
    assert found["adapter"]["digest"] == found["policy_digest"]
    assert describe_path(layout.checkpoint(2) / UNET_FILE)["parameters"] == found["adapter"]["parameters"] > 10_000


def test_the_evaluation_of_the_start_is_of_the_base(finished, tiny_lcm, tmp_path):
    model, root = load_policy_model(finished.config), shutil.copytree(finished.layout.root, tmp_path / "run")
    shutil.rmtree(root / "evaluations")
    run = open_run(root)
    for number in (2, 0):
        finish(evaluate(run, model, load_scorers(run), number))
    assert fingerprint(root) == fingerprint(finished.layout.root)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_refused(tiny_lcm, dtype):
    values = tiny_values(tiny_lcm, train={"parameters": "full"})
    values["model"]["dtype"] = dtype
    with pytest.raises(ConfigError, match=rf"train\.parameters full .* less than {dtype} can resolve; set") as caught:
        parse_config(values)
    assert "\n" not in str(caught.value)


def test_a_lora_to_start_from_is_refused(tiny_lcm):
    with pytest.raises(ConfigError, match=r"lora\.start is a LoRA to start from"):
        parse_config(tiny_values(tiny_lcm, train={"parameters": "full"}, lora={"start": "a"}))
