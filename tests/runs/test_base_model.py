"""A run keeps to the base model that it was made with: another is refused, and a moved branch is not followed."""

from __future__ import annotations

import json

import pytest
from conftest import tiny_values
from fake_hub import files_of, reached
from safetensors.torch import load_file, save_file

from rlcm_cli.config import parse_config, resolve_config
from rlcm_cli.errors import ForeignFileError, RunMismatchError
from rlcm_cli.pictures.drawing import choose_settings, find_lora, plan_drawing
from rlcm_cli.pictures.generate import generate_plan, plan_plainly
from rlcm_cli.runs.policy import ensure_start, load_checkpoint, load_policy_model, start_run
from rlcm_cli.runs.run import open_run, pin_commit


@pytest.fixture
def started(tiny_lcm_copy, tmp_path):
    run, model = start_run(tmp_path / "run", parse_config(tiny_values(tiny_lcm_copy)))
    ensure_start(run, model)
    return run


def edit(file, **changes):
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def change_weights(folder):
    file = folder / "vae/diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    tensors["decoder.layers.0.weight"] += 1
    save_file(tensors, file, metadata={"format": "pt"})


CHANGES = {
    "weights": change_weights,
    "activation": lambda folder: edit(folder / "text_encoder/config.json", hidden_act="gelu"),
    "scale": lambda folder: edit(folder / "vae/config.json", scaling_factor=0.7),
    "schedule": lambda folder: edit(folder / "scheduler/scheduler_config.json", beta_end=0.011),
    "tokenizer": lambda folder: edit(folder / "tokenizer/tokenizer_config.json", model_max_length=8),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_folder_that_changed_between_two_calls_is_refused(started, tiny_lcm_copy, change):
    load_checkpoint(started, load_policy_model(started.config), 0)
    change(tiny_lcm_copy)
    with pytest.raises(ForeignFileError, match=r"another base model .*start a new run .*: rlcm loop --from"):
        load_checkpoint(started, load_policy_model(started.config), 0)


def test_drawing_with_a_run_tells_that_its_base_model_changed(started, tiny_lcm_copy, tmp_path, caplog):
    adapter = find_lora(str(started.layout.root))
    drawing = plan_drawing(["cat"], count=1, seed=0, adapter=adapter, model={}, sample={"steps": 2}, sampler={})
    list(generate_plan(plan_plainly(drawing, 1), "cpu", tmp_path / "before"))
    assert caplog.messages == []
    CHANGES["scale"](tiny_lcm_copy)
    list(generate_plan(plan_plainly(drawing, 1), "cpu", tmp_path / "after"))
    (line,) = caplog.messages
    assert "base model tiny-lcm-copy are not those that it was trained on" in line
    assert str(tmp_path) not in line


@pytest.fixture
def hub(monkeypatch, tmp_path, tiny_lcm):
    with reached(monkeypatch, tmp_path / "cache") as served:
        served.add("ann/lcm", files=files_of(tiny_lcm))
        yield served


def test_a_run_keeps_to_the_commit_when_the_branch_moves_on(hub, tmp_path, tiny_lcm_copy):
    asked = parse_config(tiny_values("ann/lcm"))
    run, model = start_run(tmp_path / "run", asked)
    ensure_start(run, model)
    assert run.config.model.commit == open_run(tmp_path / "run").config.model.commit == "0" * 40
    CHANGES["activation"](tiny_lcm_copy)
    hub.move("ann/lcm", files_of(tiny_lcm_copy))
    again, loaded = start_run(tmp_path / "run", asked)
    assert (again.config, loaded.digest) == (run.config, model.digest)
    new, other = start_run(tmp_path / "new", asked)
    assert new.config.model.commit == f"{1:040x}"
    assert other.digest != model.digest
    drawn_with, *_ = choose_settings(find_lora(str(tmp_path / "run")), model={}, sample={}, sampler={})
    assert drawn_with.pinned_revision == "0" * 40
    with pytest.raises(RunMismatchError, match=r"model.commit"):
        start_run(tmp_path / "run", pin_commit(asked, f"{1:040x}"))


def test_a_commit_goes_with_its_model_alone(tmp_path):
    run = pin_commit(parse_config(tiny_values("ann/lcm")), "0" * 40)
    (tmp_path / "config.json").write_text(json.dumps({"config": run.model_dump(mode="json")}))
    assert resolve_config([], config_file=tmp_path, flags={}).model.commit == "0" * 40
    assert resolve_config([], config_file=tmp_path, flags={"model.name": "ann/other"}).model.commit is None
