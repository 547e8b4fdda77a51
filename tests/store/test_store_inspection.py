import re
import shutil

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from store_samples import LORA_METADATA, flip_bit, forge_record, make_manifest, write_lora, write_run

from rlcm_cli.errors import ConfigError, CorruptFileError, MissingFileError, ModelError
from rlcm_cli.store.adapters import read_adapter_settings
from rlcm_cli.store.checkpoint import LORA_FILE, digest_safetensors
from rlcm_cli.store.inspection import describe_path
from rlcm_cli.store.layout import receipt_path
from rlcm_cli.store.quarantine import quarantine
from rlcm_cli.store.run import prune_checkpoints, prune_rollouts
from rlcm_cli.store.shards import read_record, restore_receipt
from rlcm_cli.store.verification import verify_run


@pytest.fixture
def layout(tmp_path):
    return write_run(tmp_path / "run", iterations=2)


class TestDescribe:
    def test_a_run(self, layout):
        receipt_path(layout.shard(1, 1, 2)).unlink()
        found = describe_path(layout.root)
        assert found["kind"] == "run"
        assert (found["task"], found["model"], found["seed"]) == ("compression", "tiny", 5)
        assert found["iterations trained"] == 2
        assert found["checkpoints"] == [0, 1, 2]
        assert found["evaluations"] == [0]
        assert found["rollouts"][0] == {"sampled": "2/2", "rewards": {"odd-0123456789ab": "2/2"}}
        assert found["rollouts"][1]["sampled"] == "1/2"
        assert found["reward of the first iteration"] == 0.5
        assert found["reward of the last iteration"] == 1.5

    def test_a_checkpoint(self, layout):
        found = describe_path(layout.checkpoint(2))
        assert (found["kind"], found["number"], found["optimizer_steps"]) == ("checkpoint", 2, 2)
        assert found["adapter"]["digest"] == found["policy_digest"]

    def test_a_shard(self, layout):
        found = describe_path(layout.shard(0, 0, 2))
        assert (found["kind"], found["rows"]) == ("rollout", 4)
        assert found["fields"]["plan"] == make_manifest().digest
        assert found["tensors"]["latents"] == "float32 [4, 3, 4, 2, 2]"
        assert found["tensors"]["images"] == "uint8 [4, 3, 4, 4]"

    def test_rewards_and_an_evaluation(self, layout):
        assert describe_path(layout.reward_shard(0, "odd-0123456789ab", 0, 2))["kind"] == "rewards"
        assert describe_path(layout.evaluation(0))["kind"] == "evaluation"

    def test_a_lora_file(self, layout):
        path = layout.checkpoint(1) / LORA_FILE
        assert describe_path(path) == {
            "kind": "adapter",
            "format": "diffusers",
            "rank": 2,
            "alpha": 4,
            "strength": 2,
            "modules": {"unet": 1},
            "target_modules": ["to_k", "to_q"],
            "layers": 2,
            "parameters": 12,
            "digest": digest_safetensors(path),
        }

    def test_a_kohya_file_whose_modules_differ(self, tmp_path):
        tensors = {"lora_te_text_model_encoder_layers_0_mlp_fc1.alpha": torch.tensor(1.0)}
        for module, rank in (("lora_unet_mid_q", 2), ("lora_te_text_model_encoder_layers_0_mlp_fc1", 4)):
            tensors[f"{module}.lora_down.weight"] = torch.ones(rank, 3)
            tensors[f"{module}.lora_up.weight"] = torch.ones(5, rank)
        save_file(tensors, tmp_path / "x.safetensors")
        found = describe_path(tmp_path / "x.safetensors")
        assert {key: found[key] for key in ("format", "rank", "alpha", "strength", "modules")} == {
            "format": "kohya",
            "rank": "2 to 4",
            "alpha": "1 to 2",
            "strength": "0.25 to 1",
            "modules": {"unet": 1, "text_encoder": 1},
        }

    def test_what_is_none_of_them(self, layout, tmp_path):
        with pytest.raises(MissingFileError, match="no such file or folder"):
            describe_path(tmp_path / "nowhere")
        (tmp_path / "notes.txt").write_text("no record")
        for path in (layout.root / "metrics", tmp_path / "notes.txt"):
            with pytest.raises(ConfigError, match=r"name a run, a checkpoint, a shard, a LoRA file or a PNG$"):
                describe_path(path)

    @pytest.mark.parametrize("inside", ["b.PNG", "way/b.png"])
    def test_a_folder_of_pictures_is_not_described_but_one_of_them_named(self, tmp_path, inside):
        file = tmp_path / "outputs" / inside
        file.parent.mkdir(parents=True)
        file.touch()
        with pytest.raises(ConfigError, match=re.escape(f"name one of its PNGs, such as {file}")):
            describe_path(tmp_path / "outputs")

    def test_a_damaged_shard(self, layout):
        flip_bit(layout.shard(0, 0, 2), 600)
        with pytest.raises(CorruptFileError):
            describe_path(layout.shard(0, 0, 2))


class TestVerifyRun:
    def test_a_sound_run_has_no_fault(self, layout):
        assert verify_run(layout) == []

    def test_pruned_files_are_no_fault(self, layout):
        prune_rollouts(layout, keep=1, trained=2)
        prune_checkpoints(layout, keep=1)
        assert verify_run(layout) == []

    def test_every_damaged_file_is_one_line(self, layout):
        damaged = [
            layout.checkpoint(1) / "optimizer.safetensors",
            layout.shard(0, 1, 2),
            layout.reward_shard(1, "odd-0123456789ab", 0, 2),
            layout.evaluation(0),
        ]
        for path in damaged:
            flip_bit(path, path.stat().st_size - 1)
        assert [fault.partition(": ")[0] for fault in verify_run(layout)] == [str(path) for path in damaged]

    @pytest.mark.parametrize(
        ("place", "fault"),
        [
            ("checkpoints/000001", "is gone, though what follows it is there"),
            ("rollouts/000000/shard-00001-of-00002.safetensors", "has a receipt but is gone"),
            ("rollouts/000000/shard-00001-of-00002.json", "is gone, though its iteration was trained"),
            ("rollouts/000000", "is gone, though its iteration was trained"),
            ("metrics/000001.json", "is gone, though its iteration was trained"),
            ("inputs.json", "is gone, though each run has it"),
        ],
    )
    def test_what_is_missing_is_one_line(self, layout, place, fault):
        path = layout.root / place
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
        told = path / "manifest.json" if place == "rollouts/000000" else path
        (line,) = verify_run(layout)
        assert line.startswith(f"{told}: {fault}")

    def test_what_is_not_made_yet_is_no_fault(self, layout):
        shutil.rmtree(layout.checkpoint(2))
        layout.metrics(2).unlink()
        for file in (layout.shard(1, 1, 2), receipt_path(layout.shard(1, 1, 2))):
            file.unlink()
        shutil.rmtree(layout.reward_shard(1, "odd-0123456789ab", 1, 2).parent)
        assert verify_run(layout) == []

    def test_a_shard_of_another_plan_is_a_fault(self, layout):
        _, fields = restore_receipt(layout.shard(0, 0, 2))
        tensors, _ = read_record(layout.shard(0, 0, 2), "rollout")
        forge_record(layout.shard(0, 0, 2), {**fields, "plan": "another"}, tensors)
        (fault,) = verify_run(layout)
        assert "belongs to another plan" in fault

    def test_a_manifest_that_is_none_is_one_fault(self, layout):
        layout.manifest(0).write_text("{}")
        (fault,) = verify_run(layout)
        assert fault.startswith(f"{layout.manifest(0)}: cannot be read as rollout manifest")

    def test_a_quarantined_file_is_no_fault_any_more(self, layout):
        path = layout.shard(0, 1, 2)
        flip_bit(path, 10)
        quarantine(path)
        assert verify_run(layout) == []


class TestAdapters:
    def test_a_lora_without_rank_and_alpha_is_refused(self, tmp_path):
        write_lora(tmp_path, metadata={"unet.r": 2})
        with pytest.raises(ModelError, match="states no rank and alpha"):
            read_adapter_settings(tmp_path / LORA_FILE)
        for damage in (b"", b"\xff" * 40, b"\x02\0\0\0\0\0\0\0[]"):
            (tmp_path / LORA_FILE).write_bytes(damage)
            with pytest.raises(ModelError, match="not a readable safetensors file"):
                read_adapter_settings(tmp_path / LORA_FILE)

    def test_a_whole_alpha_may_be_written_as_a_fraction(self, tmp_path):
        write_lora(tmp_path, metadata={**LORA_METADATA, "unet.lora_alpha": 4.0})
        settings = read_adapter_settings(tmp_path / LORA_FILE)
        assert (settings.rank, settings.alpha, settings.target_modules) == (2, 4, ("to_k", "to_q"))
        assert isinstance(settings.alpha, int)

    @pytest.mark.parametrize(
        ("settings", "fault"),
        [
            ({"unet.use_rslora": True}, "use_rslora"),
            ({"unet.alpha_pattern": {"to_q": 2}}, "alpha_pattern"),
            ({"unet.rank_pattern": {"to_q": 1}}, "rank_pattern"),
            ({"unet.lora_alpha": 0.5}, "an alpha of 0.5"),
            ({"unet.target_modules": ".*to_q"}, "by a pattern"),
            ({"unet.corda_config": {"rank": 1}}, "corda_config"),
        ],
    )
    def test_a_lora_whose_strength_a_run_cannot_have_is_refused(self, tmp_path, settings, fault):
        write_lora(tmp_path, metadata={**LORA_METADATA, **settings})
        with pytest.raises(ModelError, match=fault) as caught:
            read_adapter_settings(tmp_path / LORA_FILE)
        assert str(tmp_path / LORA_FILE) in str(caught.value)

    @pytest.mark.parametrize(
        ("name", "fault"),
        [("text_encoder.fc1.lora_A.weight", "other parts"), ("unet.to_q.lora_magnitude_vector", "a DoRA")],
    )
    def test_a_lora_with_more_than_a_run_trains_is_refused(self, tmp_path, name, fault):
        write_lora(tmp_path)
        with safe_open(tmp_path / LORA_FILE, framework="pt") as file:
            metadata, tensors = file.metadata(), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        save_file({**tensors, name: torch.ones(2, 3)}, tmp_path / LORA_FILE, metadata=metadata)
        with pytest.raises(ModelError, match=fault):
            read_adapter_settings(tmp_path / LORA_FILE)
