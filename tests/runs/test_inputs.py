"""What a run takes from files: read once and kept in the run; what one task holds out, all do."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from phase_runs import make_config
from PIL import Image

from rlcm_cli.config import Config, parse_config, resolve_config
from rlcm_cli.errors import ConfigError, CorruptFileError, ForeignFileError, MissingFileError, RunMismatchError
from rlcm_cli.phases.evaluate import plan_evaluation
from rlcm_cli.runs.inputs import (
    begin_inputs,
    check_images,
    open_images,
    read_prompts,
    refuse_unnamed,
    settle_inputs,
    split_tasks,
)
from rlcm_cli.runs.run import create_run, open_run
from rlcm_cli.store.layout import RunLayout
from rlcm_cli.store.quarantine import quarantine
from rlcm_cli.store.verification import verify_run

FIRST = ("a cat", "a dog", "a fox")


def write_prompts(folder: Path, *prompts: str) -> str:
    file = folder / "prompts.txt"
    file.write_text("\n".join(prompts))
    return str(file)


def of_file(model: Path, source: str) -> Config:
    return make_config(model, prompts={"source": source, "held_out_fraction": 0.0})


class TestHeldOut:
    @pytest.mark.parametrize(
        "tasks", [("compression", "mirror_symmetry"), ("compression", "incompression", "aesthetic", "mirror_symmetry")]
    )
    def test_no_prompt_that_a_shipped_task_holds_out_is_trained_on_by_another(self, tasks):
        config = resolve_config(tasks)
        prompts = read_prompts(config)
        trained_on = {prompt for own in prompts.values() for prompt in own.training}
        alone = {task: set(read_prompts(resolve_config([task]))[task].held_out) for task in tasks}
        assert len(alone["mirror_symmetry"]) == 14
        for task in tasks:
            assert not alone[task] & trained_on
            assert set(prompts[task].held_out) == set.union(*alone.values())
        for fixed in plan_evaluation(config, prompts):
            assert fixed.held_out == (fixed.prompt not in trained_on)

    def test_a_task_keeps_prompts_that_no_other_has(self, tiny_lcm):
        tasks = {
            "a": {"rewards": {"compressibility": 1.0}, "prompts": {"source": "x", "held_out_fraction": 0.5}},
            "b": {"rewards": {"compressibility": 1.0}, "prompts": {"source": "y", "held_out_fraction": 0.0}},
        }
        values = make_config(tiny_lcm).model_dump(mode="json", exclude={"rewards", "prompts"})
        config = parse_config({**values, "tasks": tasks})
        prompts = split_tasks(config, {"x": FIRST[:2], "y": (*FIRST, "a cow")})
        (held_out,) = prompts["a"].held_out
        assert prompts["b"].held_out == (held_out,)
        assert set(prompts["b"].training) == {*FIRST, "a cow"} - {held_out}
        with pytest.raises(ConfigError, match=r"tasks trained with 'b' hold out all of its 1 prompts; lower their"):
            split_tasks(config, {"x": FIRST[:2], "y": (held_out,)})


class TestPrompts:
    def test_are_those_that_the_run_began_with(self, tiny_lcm, tmp_path):
        source = write_prompts(tmp_path, *FIRST)
        run = create_run(tmp_path / "run", of_file(tiny_lcm, source))
        assert not verify_run(run.layout)
        write_prompts(tmp_path, "another")
        assert open_run(tmp_path / "run").prompts["compression"].training == FIRST
        Path(source).unlink()
        assert open_run(tmp_path / "run").prompts["compression"].training == FIRST

    def test_a_named_file_that_has_changed_is_refused_with_the_difference(self, tiny_lcm, tmp_path):
        source = write_prompts(tmp_path, *FIRST)
        config = of_file(tiny_lcm, source)
        run = create_run(tmp_path / "run", config)
        settle_inputs(run.layout, config, {source})
        write_prompts(tmp_path, "a cat", "a bee", "an ant")
        settle_inputs(run.layout, config, ())
        with pytest.raises(RunMismatchError) as caught:
            settle_inputs(run.layout, config, {source})
        assert (
            f"prompts '{source}': changed since the run {tmp_path / 'run'} began (new 2: 'a bee', 'an ant'; "
            in str(caught.value)
        )
        assert "gone 2: 'a dog', 'a fox'); resume with the run's own by `rlcm loop --run" in str(caught.value)
        write_prompts(tmp_path, *FIRST[::-1])
        with pytest.raises(RunMismatchError, match="another order"):
            settle_inputs(run.layout, config, {source})
        Path(source).unlink()
        settle_inputs(run.layout, config, {source})

    def test_what_only_a_run_names_is_not_read(self, tiny_lcm, tmp_path):
        source = write_prompts(tmp_path, *FIRST)
        config = of_file(tiny_lcm, source)
        run = create_run(tmp_path / "run", config)
        run.layout.inputs.unlink()
        for named in ((), ("another",)):
            settle_inputs(run.layout, config, named)
            with pytest.raises(
                MissingFileError, match=r"what only a run names is not read.*name it: `rlcm sample"
            ) as e:
                _ = open_run(tmp_path / "run").prompts
            assert f"--set 'prompts.source={source}'" in str(e.value)
        settle_inputs(run.layout, config, {source})
        assert open_run(tmp_path / "run").prompts["compression"].training == FIRST

    def test_built_in_ones_need_no_word(self, tiny_lcm, tmp_path):
        run = create_run(tmp_path / "run", make_config(tiny_lcm))
        run.layout.inputs.unlink()
        assert len(open_run(tmp_path / "run").prompts["compression"].training) == 41

    def test_a_start_that_was_cut_short_leaves_none_behind(self, tiny_lcm, tmp_path):
        config = of_file(tiny_lcm, write_prompts(tmp_path, *FIRST))
        begin_inputs(RunLayout(tmp_path / "run"), config)
        write_prompts(tmp_path, "another")
        assert create_run(tmp_path / "run", config).prompts["compression"].training == ("another",)

    @pytest.mark.parametrize("change", ["a cow", 3, None, []])
    def test_a_record_that_was_changed_is_refused(self, tiny_lcm, tmp_path, change):
        source = write_prompts(tmp_path, *FIRST)
        run = create_run(tmp_path / "run", of_file(tiny_lcm, source))
        record = json.loads(run.layout.inputs.read_text())
        record["prompts"][source] = ["a cat", change]
        run.layout.inputs.write_text(json.dumps(record))
        with pytest.raises(CorruptFileError, match=r"inputs.json: was changed or is damaged"):
            _ = open_run(tmp_path / "run").prompts
        (fault,) = verify_run(run.layout)
        assert "inputs.json: was changed or is damaged" in fault

    def test_those_of_another_run_are_refused(self, tiny_lcm, tmp_path):
        runs = [create_run(tmp_path / f"run-{seed}", make_config(tiny_lcm, seed=seed)) for seed in (0, 1)]
        shutil.copy(runs[1].layout.inputs, runs[0].layout.inputs)
        with pytest.raises(ForeignFileError, match=r"inputs.json: belongs to another run .*`rlcm quarantine"):
            _ = open_run(tmp_path / "run-0").prompts
        (fault,) = verify_run(runs[0].layout)
        assert fault.startswith(f"{runs[0].layout.inputs}: belongs to another run")
        quarantine(runs[0].layout.inputs)
        assert not verify_run(runs[0].layout)
        settle_inputs(runs[0].layout, runs[0].config, ())
        assert open_run(tmp_path / "run-0").prompts == open_run(tmp_path / "run-1").prompts
        assert not verify_run(runs[0].layout)

    def test_that_are_gone_are_told(self, tiny_lcm, tmp_path):
        run = create_run(tmp_path / "run", make_config(tiny_lcm))
        run.layout.inputs.unlink()
        (fault,) = verify_run(run.layout)
        assert fault.startswith(f"{run.layout.inputs}: is gone")

    def test_a_configuration_from_elsewhere_names_no_file(self, tiny_lcm):
        config = make_config(tiny_lcm, prompts={"source": "/etc/passwd"}, pretraining={"source": "/home"})
        with pytest.raises(ConfigError, match=r"reads '/etc/passwd', which only it names.*prompts.source=/etc/passwd"):
            refuse_unnamed(config, (), "--config x")
        with pytest.raises(ConfigError, match=r"pretraining.source=/home"):
            refuse_unnamed(config, {"/etc/passwd"}, "--config x")
        refuse_unnamed(config, {"/etc/passwd", "/home"}, "--config x")


class TestImages:
    @pytest.fixture
    def folder(self, tmp_path):
        (tmp_path / "set").mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / "set" / "a.png")
        (tmp_path / "set" / "a.txt").write_text("a cat")
        return tmp_path / "set"

    def test_that_have_changed_are_refused(self, tiny_lcm, tmp_path, folder):
        config = make_config(tiny_lcm, pretraining={"source": str(folder)})
        run = create_run(tmp_path / "run", config)
        check_images(run.layout, config)
        (folder / "a.txt").write_text("a dog")
        open_images.cache_clear()
        with pytest.raises(RunMismatchError, match=r"set': its images or captions have changed since the run"):
            check_images(run.layout, config)

    def test_that_only_a_run_names_are_not_read(self, tiny_lcm, tmp_path, folder):
        config = make_config(tiny_lcm, pretraining={"source": str(folder)})
        run = create_run(tmp_path / "run", config)
        run.layout.inputs.unlink()
        with pytest.raises(MissingFileError, match=r"--set 'pretraining.source="):
            check_images(run.layout, config)
        settle_inputs(run.layout, config, {str(folder)})
        check_images(run.layout, config)
