"""The pretraining loss beside the objective: its value, its gradient, its data, and that a run repeats it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from phase_runs import finish, make_by_hand, make_config, make_loop, prepare
from PIL import Image
from plain_diffusion import build_plain_diffusion

from rlcm_cli.config import Config, PretrainingSettings, override_config
from rlcm_cli.core.noise import seed_generator
from rlcm_cli.errors import ConfigError
from rlcm_cli.learning.log_probs import refresh_passes
from rlcm_cli.learning.pretraining import accumulate_pretraining, fit_image, step_seed
from rlcm_cli.models.latent_model import LatentModel
from rlcm_cli.models.lora import lora_parameters
from rlcm_cli.phases.train import train
from rlcm_cli.prompts.pairs import open_pairs
from rlcm_cli.runs.inputs import find_pairs
from rlcm_cli.runs.policy import load_policy_model
from rlcm_cli.store.checkpoint import read_trainer_state

CAPTIONS = ["cat", "dog on red", "fox"]
DDIM = {"kind": "ddim"}


@pytest.fixture(autouse=True, scope="module")
def _own_dataset_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three pictures of other sizes than the model's, with captions, as an imagefolder."""
    place = tmp_path_factory.mktemp("pictures") / "set"
    place.mkdir()
    for number, (width, height) in enumerate([(24, 24), (40, 20), (16, 30)]):
        pixels = np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(place / f"{number}.png")
    rows = [json.dumps({"file_name": f"{number}.png", "text": text}) for number, text in enumerate(CAPTIONS)]
    (place / "metadata.jsonl").write_text("\n".join(rows))
    return place


@pytest.fixture(scope="module", params=["epsilon", "v_prediction"])
def pipeline(request, tmp_path_factory, tiny_lcm):
    return build_plain_diffusion(
        tmp_path_factory.mktemp("plain") / request.param, tiny_lcm, prediction_type=request.param
    )


@pytest.fixture(scope="module")
def plain(tmp_path_factory, tiny_lcm):
    return build_plain_diffusion(tmp_path_factory.mktemp("plain") / "sd", tiny_lcm)


def pretrained(model: Path, folder: Path | str, **settings: Any) -> Config:
    pretraining = {"source": str(folder), "batch_size": 5, **settings}
    return make_config(model, sampler=DDIM, pretraining=pretraining)


def gradient(model: LatentModel) -> torch.Tensor:
    found = []
    for parameter in lora_parameters(model).values():
        found.append(parameter.grad.flatten() if parameter.grad is not None else torch.zeros(parameter.numel()))
        parameter.grad = None
    return torch.cat(found)


class TestLoss:
    def test_equals_that_of_diffusers(self, pipeline, folder):
        config = pretrained(pipeline, folder)
        model = load_policy_model(config)
        pairs = find_pairs(config, model)
        settings = config.pretraining
        loss = accumulate_pretraining(model, pairs, settings, step_seed(7, 1, 0), micro_batch_size=8)
        found = gradient(model)

        generator = seed_generator(step_seed(7, 1, 0))
        rows = torch.randint(3, (5,), generator=generator).tolist()
        timesteps = torch.randint(1000, (5,), generator=generator)
        noise = torch.randn(5, 4, 8, 8, generator=generator)
        pipe = model.pipeline
        fitted = [fit_image(Image.open(folder / f"{row}.png"), 16, 16) for row in rows]
        pixels = torch.stack(fitted).float() / 127.5 - 1
        latents = pipe.vae.encode(pixels).latent_dist.mode() * pipe.vae.config.scaling_factor
        embeds = torch.cat([pipe.encode_prompt(CAPTIONS[row], "cpu", 1, False)[0] for row in rows])
        noised = pipe.scheduler.add_noise(latents, noise, timesteps)
        velocity = pipe.scheduler.config.prediction_type == "v_prediction"
        target = pipe.scheduler.get_velocity(latents, noise, timesteps) if velocity else noise
        expected = torch.nn.functional.mse_loss(pipe.unet(noised, timesteps, embeds).sample, target)
        expected.backward()
        assert loss["pretraining_loss"].item() == pytest.approx(expected.item(), rel=1e-5)
        reference = gradient(model)
        assert reference.any()
        assert torch.allclose(found, reference, rtol=1e-3, atol=1e-5 * reference.abs().max())

    def test_weight_and_micro_batches(self, plain, folder):
        config = pretrained(plain, folder)
        model = load_policy_model(config)
        pairs = find_pairs(config, model)

        def run(weight: float, micro: int) -> tuple[torch.Tensor, float]:
            settings = PretrainingSettings(source=str(folder), weight=weight, batch_size=5)
            loss = accumulate_pretraining(model, pairs, settings, 3, micro_batch_size=micro)
            return gradient(model), loss["pretraining_loss"].item()

        (whole, loss), (parts, same), (double, unweighted) = run(1.0, 8), run(1.0, 2), run(2.0, 8)
        assert (same, unweighted) == pytest.approx((loss, loss), rel=1e-6)
        assert torch.allclose(parts, whole, rtol=1e-3, atol=1e-5 * whole.abs().max())
        assert torch.allclose(double, 2 * whole, rtol=1e-5)

    def test_images_come_back_from_their_latents(self, tiny_lcm, plain):
        # The tiny autoencoders are random: that the scaling undoes the decoder's is what can be seen.
        for place, kind in ((tiny_lcm, "lcm"), (plain, "ddim")):
            model = load_policy_model(make_config(place, sampler={"kind": kind}))
            images = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
            encoded = model.pipeline.vae.encode(images.float() / 127.5 - 1)
            raw = encoded.latents if "latents" in encoded else encoded.latent_dist.mode()
            unscaled = model.encode_images(images) / model.pipeline.vae.config.scaling_factor
            assert torch.allclose(unscaled, raw, atol=1e-5)

    def test_pictures_are_resized_and_cropped_in_the_middle(self):
        wide = Image.new("RGB", (60, 20), (255, 0, 0))
        wide.paste((0, 0, 255), (20, 0, 40, 20))
        fitted = fit_image(wide, 16, 16)
        assert fitted.shape == (3, 16, 16)
        assert fitted[:, 8, 8].tolist() == [0, 0, 255]
        assert fit_image(Image.new("L", (5, 9), 7), 4, 4).unique().tolist() == [7]


class TestRuns:
    def test_by_hand_equals_the_loop(self, plain, folder, tmp_path):
        config = pretrained(plain, folder)
        runs = [make_by_hand(tmp_path / "by-hand", config), make_loop(tmp_path / "loop", config)]
        digests = [read_trainer_state(run.layout, 2).policy_digest for run in runs]
        assert digests[0] == digests[1]

    def test_it_acts_and_is_measured(self, plain, folder, tmp_path):
        with_loss, without = (
            prepare(tmp_path / name, config)
            for name, config in [("with", pretrained(plain, folder)), ("without", make_config(plain, sampler=DDIM))]
        )
        rows = [finish(train(*prepared))[-1].metrics for prepared in (with_loss, without)]
        assert rows[0].measured["pretraining_loss"] > 0
        assert "pretraining_loss" not in rows[1].measured
        digests = [read_trainer_state(run.layout, 1).policy_digest for run, _ in (with_loss, without)]
        assert digests[0] != digests[1]

    def test_steps_of_its_own_come_before_those_of_the_objective(self, plain, folder, tmp_path):
        config = pretrained(plain, folder, own_steps=2)
        run, model = prepare(tmp_path / "run", config)
        metrics = finish(train(run, model))[-1].metrics
        assert read_trainer_state(run.layout, 1).optimizer_steps == 3
        assert metrics.updates == 1
        assert metrics.measured["pretraining_loss"] > 0
        assert metrics.measured["ratio_drift"] <= 2e-6  # before any step
        assert metrics.measured["approx_kl"] > 1e-9  # of the policy that the objective finds
        beside, _ = prepare(tmp_path / "beside", pretrained(plain, folder))
        assert finish(train(beside, model))[-1].metrics.measured["approx_kl"] < 1e-12

    def test_steps_of_its_own_by_hand_equal_the_loop(self, plain, folder, tmp_path):
        config = pretrained(plain, folder, own_steps=1)
        runs = [make_by_hand(tmp_path / "by-hand", config, fresh=False), make_loop(tmp_path / "loop", config)]
        digests = [read_trainer_state(run.layout, 2).policy_digest for run in runs]
        assert digests[0] == digests[1]

    def test_in_16_bits_old_log_probs_are_refreshed_before_steps_of_its_own(self, plain, folder):
        config = override_config(pretrained(plain, folder), flags={"model.dtype": "bfloat16"})
        own = override_config(config, flags={"pretraining.own_steps": 1})
        assert (refresh_passes(config), refresh_passes(own)) == (0, 1)

    def test_steps_of_its_own_are_refused_where_nothing_corrects_for_them(self, plain, folder):
        with pytest.raises(ConfigError, match=r"pretraining.own_steps moves the policy .* use objective ppo"):
            override_config(pretrained(plain, folder, own_steps=1), flags={"objective.kind": "reinforce"})

    def test_each_step_has_other_images(self):
        assert len({step_seed(*place) for place in [(0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0)]}) == 4


class TestSources:
    def test_parquet_equals_the_folder(self, folder, tmp_path):
        pairs = open_pairs(str(folder), image_column="image", caption_column="text")
        order = sorted(range(3), key=lambda row: pairs.take([row])[1])
        images, captions = pairs.take(order)
        assert captions == CAPTIONS
        assert [image.size for image in images] == [(24, 24), (40, 20), (16, 30)]
        # As another program writes it: without the note that the column holds images.
        import pyarrow.parquet

        content = [{"bytes": (folder / f"{number}.png").read_bytes(), "path": None} for number in range(3)]
        table = pyarrow.table({"picture": content, "words": CAPTIONS})
        pyarrow.parquet.write_table(table, tmp_path / "set.parquet")
        same = open_pairs(str(tmp_path / "set.parquet"), image_column="picture", caption_column="words")
        again, words = same.take([0, 1, 2])
        assert words == CAPTIONS
        assert all(np.array_equal(np.array(one), np.array(other)) for one, other in zip(images, again, strict=True))

    @pytest.mark.parametrize(
        ("source", "columns", "message"),
        [
            ("folder", {"caption_column": "words"}, r"there is no column 'words'; set pretraining.caption_column to"),
            ("folder/0.png", {}, r"is neither a folder of images nor a .parquet file"),
            ("nowhere.parquet", {}, r"there is no such file; check the path"),
            ("a/b/c/d/e", {}, r"there is no such folder; check the path"),
            ("empty", {}, r"holds no image; name another"),
        ],
    )
    def test_mistakes(self, folder, tmp_path, source, columns, message):
        (tmp_path / "empty").mkdir()
        place = source.replace("folder", str(folder)).replace("empty", str(tmp_path / "empty"))
        with pytest.raises(ConfigError, match=message) as caught:
            open_pairs(place, **{"image_column": "image", "caption_column": "text", **columns}).take([0])
        assert "\n" not in str(caught.value)

    def test_a_row_without_a_caption(self, tmp_path):
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.table({"image": [None], "text": ["cat"]}), tmp_path / "set.parquet")
        pairs = open_pairs(str(tmp_path / "set.parquet"), image_column="image", caption_column="text")
        with pytest.raises(ConfigError, match="row 0 lacks an image"):
            pairs.take([0])

    def test_a_consistency_model_is_refused(self, tiny_lcm, folder):
        config = make_config(tiny_lcm, pretraining={"source": str(folder)})
        with pytest.raises(ConfigError, match="the sampler is lcm: a consistency model was not trained to"):
            find_pairs(config, load_policy_model(config))
